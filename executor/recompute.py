"""Recomputation of blocks in the backward pass: all of a block, or what a policy does not keep."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from executor.layouts import pattern_of
from planner.plan import PlannedStage

ModeFactory = Callable[[], AbstractContextManager[Any]]
_ATEN = torch.ops.aten
_PRODUCTS = frozenset({_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default,
                       _ATEN.convolution.default})  # fmt: skip
_ATTENTION = "_scaled_dot_product"
"""Start of the names of torch's attention kernels."""
_COLLECTIVES = "_c10d_functional"
"""Namespace of the collectives that layouts issue: what was sent is not sent again."""


def repeated_patterns(stages: Sequence[PlannedStage]) -> frozenset[str]:
    """Return name patterns of the modules that a model repeats: what full recomputation covers.

    Embedding and head keep what they save, as in Megatron-LM and in the plan's own costs. Empty
    where nothing repeats, or where the plan's units are no modules: all blocks are covered then.
    """
    repetitions: dict[str, int] = {}
    unit_of: dict[str, str] = {}
    for stage in stages:
        items = [units.unit for units in stage.units for _ in range(units.first, units.last)]
        if len(items) != len(stage.module_paths):
            return frozenset()
        unit_of |= zip(stage.module_paths, items, strict=True)
        for units in stage.units:
            repetitions[units.unit] = max(repetitions.get(units.unit, 0), units.last)
    return frozenset(pattern_of(path) for path, unit in unit_of.items() if repetitions[unit] > 1)


def recompute_blocks(
    blocks: Iterable[nn.Module], *, mode: ModeFactory, keeps_products: bool = False
) -> None:
    """Make each block recompute its forward pass; ``mode`` is entered around the second run.

    With ``keeps_products`` the results of attention and of every second product are kept
    (torchtitan's option ``op``, arXiv:2410.06511, section 2.1.3).

    The module keeps its identity and parameter names (no wrapper), and hooks at its boundary run
    once.
    """
    for block in blocks:
        block.forward = _recomputed(block.forward, mode, keeps_products=keeps_products)


def _recomputed(
    forward: Callable[..., Any], mode: ModeFactory, *, keeps_products: bool
) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        if not keeps_products:
            return nullcontext(), mode()
        first, again = create_selective_checkpoint_contexts(_Policy())  # type: ignore[no-untyped-call]
        return first, _both(again, mode())

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, context_fn=contexts, **kwargs
        )  # fmt: skip

    return call


class _Policy:
    """Keep attention, every second product and what collectives brought, in either run alike."""

    def __init__(self) -> None:
        self._products = {False: 0, True: 0}

    def __call__(self, context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator in _PRODUCTS:
            self._products[context.is_recompute] += 1
            keeps = self._products[context.is_recompute] % 2 == 1
        else:
            keeps = any(part in str(operator) for part in (_ATTENTION, _COLLECTIVES))
        return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(outer)
        stack.enter_context(inner)
        yield
