"""Build a model without weights, run it once, and assemble the graph."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.graph import ModelGraph
from planner.models.source import Batch, ModelSource
from planner.tracing.assemble import TraceFacts, assemble
from planner.tracing.atoms import Product
from planner.tracing.blocks import ChainRunner, chain_paths, settle
from planner.tracing.notes import Value
from planner.tracing.record import ScalarAnswers, recording
from planner.tracing.rules_kernel import tensors_in
from planner.tracing.tracer import Tracer

TRACED_BATCH_SIZE = 2
"""Two samples: one would hide the batch index (size 1 is the empty product)."""


def trace_source(
    source: ModelSource,
    *,
    sequence_length: int,
    content_key: str,
    fold: bool = True,
    progress: Callable[[str], None] | None = None,
) -> ModelGraph:
    """Trace a model source on fake tensors."""
    tell = progress or (lambda _: None)
    with fake_world() as fake:
        tell("building the model without weights")
        with _no_init(), ScalarAnswers() as scalars:
            module = source.build()
        with fake:
            batch = source.make_batch(TRACED_BATCH_SIZE, sequence_length, 0)
        tell("tracing the forward pass")
        with prepared(module):
            tracer, runner, symbols = run_recorded(
                module, batch, source, sequence_length, fold=fold
            )
        tell("assembling the graph")
        for subject, message in scalars.warnings:
            tracer.warn(subject, message)
        elements = settle(tracer, runner.elements, declared=runner.is_declared)
        facts = TraceFacts(
            name=source.name,
            source=source.source,
            content_key=content_key,
            batch=symbols[0],
            sequence=symbols[1],
            sequence_length=sequence_length,
            num_parameters=sum(p.numel() for p in module.parameters()),
            active_parameters=_active_parameters(module),
            parameter_names=_parameter_names(module),
        )
        return assemble(tracer, elements, facts)


@contextmanager
def fake_world() -> Iterator[FakeTensorMode]:
    """Fake CPU tensors of the 16-bit compute type."""
    before = torch.get_default_dtype()
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_quiet, logger.disabled = logger.disabled, True
    torch.set_default_dtype(torch.bfloat16)
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield fake
    finally:
        torch.set_default_dtype(before)
        logger.disabled = was_quiet


@contextmanager
def _no_init() -> Iterator[None]:
    """Skip transformers' weight initialisation (it reads values) where transformers is loaded."""
    initialization = sys.modules.get("transformers.initialization")
    context = initialization.no_init_weights() if initialization else nullcontext()
    with context:
        yield


@contextmanager
def prepared(module: nn.Module) -> Iterator[None]:
    """Tie weights, and for the trace alone drop caches and choose grouped experts.

    The configuration may be shared with the next model that its owner builds, so it is given back
    as it was.
    """
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    wanted: dict[str, Any] = {"use_cache": False}
    can_group = getattr(module, "_can_set_experts_implementation", None)
    if callable(can_group) and can_group():
        wanted["_experts_implementation"] = "grouped_mm"
    configs = {
        id(child.config): child.config
        for child in module.modules()
        if getattr(child, "config", None) is not None
    }
    before = [
        (config, name, getattr(config, name))
        for config in configs.values()
        for name in wanted
        if hasattr(config, name)
    ]
    for config, name, _ in before:
        setattr(config, name, wanted[name])
    module.train()
    try:
        yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)


def run_recorded(
    module: nn.Module,
    batch: Batch,
    source: ModelSource,
    sequence_length: int,
    *,
    fold: bool,
    observer: Any = None,
) -> tuple[Tracer, ChainRunner, tuple[Product, Product]]:
    """Run forward and loss once under the recorder."""
    tracer = Tracer()
    declared = source.chain(module)
    batch = _own_keywords(batch)
    runner = ChainRunner(tracer, module, chain_paths(module, declared), fold=fold)
    runner.is_declared = declared is not None
    _bind_module(tracer, module)
    symbols = _bind_batch(tracer, batch, sequence_length)
    try:
        with recording(tracer, observer=observer) as runner.switch:
            out = module(*batch.inputs, **batch.keywords)
            tracer.in_loss = True
            loss = source.loss(out, batch.targets)
    finally:
        runner.unwrap()
    del loss
    return tracer, runner, symbols


def _own_keywords(batch: Batch) -> Batch:
    """Copy keyword tensors given twice (ids of encoder and decoder): each has its own tokens."""
    seen = {id(tensor) for tensor in batch.inputs}
    keywords = dict(batch.keywords)
    for name, item in keywords.items():
        if isinstance(item, torch.Tensor):
            keywords[name] = item.clone() if id(item) in seen else item
            seen.add(id(item))
    return replace(batch, keywords=keywords)


def _bind_module(tracer: Tracer, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        dims = [tracer.atoms.fresh(size) for size in parameter.shape]
        note = tracer.note(parameter, dims, kind="parameter", name=name)
        tracer.bind(parameter, Value(note=note, dims=dims))
        for dim in dims:
            tracer.atoms.mark(dim, -1 - note.number)
    for name, buffer in module.named_buffers():
        dims = [tracer.atoms.fresh(size) for size in buffer.shape]
        note = tracer.note(buffer, dims, kind="buffer", name=name)
        tracer.bind(buffer, Value(note=note, dims=dims, weak=True))


def _bind_batch(tracer: Tracer, batch: Batch, sequence_length: int) -> tuple[Product, Product]:
    """Give inputs their indices: samples, then tokens where the second dim has that many."""
    sample = tracer.atoms.declared(TRACED_BATCH_SIZE, hint="b")
    tokens: dict[str, Product] = {}
    named: list[tuple[str, Any]] = [(f"input.{at}", item) for at, item in enumerate(batch.inputs)]
    named += [(f"input.{name}", item) for name, item in batch.keywords.items()]
    named.append(("target", batch.targets))
    for name, item in named:
        for tensor in tensors_in(item):
            dims: list[Product] = []
            stack = "decoder" if "decoder" in name or name == "target" else ""
            for at, size in enumerate(tensor.shape):
                if at == 0 and size == TRACED_BATCH_SIZE:
                    dims.append(sample)
                elif at == 1 and size == sequence_length and sequence_length > 1:
                    if stack not in tokens:
                        tokens[stack] = _tokens(tracer, tokens, sequence_length, name)
                    dims.append(tokens[stack])
                else:
                    dims.append(tracer.atoms.fresh(size))
            note = tracer.note(tensor, dims, kind="input", name=name)
            tracer.bind(tensor, Value(note=note, dims=dims, weak="mask" in name))
    return sample, next(iter(tokens.values()), ())


def _tokens(tracer: Tracer, tokens: dict[str, Product], sequence_length: int, name: str) -> Product:
    if not tokens:
        return tracer.atoms.declared(sequence_length, hint="s")
    if name == "target":
        return tracer.atoms.fresh(sequence_length, hint="s")
    return tracer.atoms.declared(sequence_length, hint="s_decoder")


def _parameter_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Map each distinct parameter's first name to all its names (tied ones)."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {group[0]: tuple(group) for group in names.values()}


def _active_parameters(module: nn.Module) -> int | None:
    """Count what one token uses, where the model has routed experts."""
    config = getattr(module, "config", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    total = sum(parameter.numel() for parameter in module.parameters())
    if chosen is None:
        return None
    idle = 0.0
    for name, parameter in module.named_parameters():
        if ".experts." in name and parameter.dim() >= 2:  # noqa: PLR2004
            idle += parameter.numel() * (1 - chosen / _num_experts(config, parameter))
    return round(total - idle)


def _num_experts(config: Any, parameter: torch.Tensor) -> int:
    for name in ("num_local_experts", "n_routed_experts", "num_experts"):
        count = getattr(config, name, None)
        if count:
            return int(count)
    return int(parameter.shape[0])
