"""Chain elements: which modules are units, and which calls repeat the one before."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from planner.tracing.notes import TensorNote, Value
from planner.tracing.record import Switch, grown
from planner.tracing.tracer import Tracer

POSITION_NAMES = re.compile(r"(layer|block)_?(idx|index|id|number|num)$|^(idx|index)$")


def structure_hash(module: nn.Module) -> str:
    """Return what two modules share when they run the same operators on the same shapes."""
    digest = hashlib.sha256()
    for path, child in module.named_modules():
        digest.update(f"{path}:{type(child).__module__}.{type(child).__qualname__}".encode())
        digest.update(_settings(child).encode())
        for name, parameter in child.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            digest.update(f"{name}{shape}{parameter.dtype}{parameter.requires_grad}".encode())
    return digest.hexdigest()


def _settings(module: nn.Module) -> str:
    """Return the hyperparameters of a module, without its position in the model."""
    return ";".join(
        f"{name}={_setting(value)}"
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "forward" and not POSITION_NAMES.search(name)
    )


def _setting(value: Any) -> str:
    """Return what tells two hyperparameters apart; objects only by their type."""
    if isinstance(value, (int, float, str, bool, type(None), torch.dtype)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({','.join(_setting(item) for item in value)})"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


@dataclass(kw_only=True, slots=True)
class Element:
    """One future unit: a module of the chain, or the operators outside any."""

    path: str
    count: int = 1
    module_paths: list[str] = field(default_factory=list)
    carried: list[tuple[TensorNote, TensorNote]] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class _Call:
    """A recorded call of a chain element, for replay."""

    key: tuple[Any, ...]
    element: int
    inputs: list[TensorNote]
    input_ids: list[int]
    leaves: list[Any]
    spec: Any


def chain_paths(module: nn.Module, declared: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the module paths that become units.

    The declared chain if there is one; otherwise the children of the outermost ModuleLists and
    Sequentials.
    """
    if declared is not None:
        return declared
    found: list[str] = []

    def visit(node: nn.Module, path: str) -> None:
        for name, child in node.named_children():
            inner = f"{path}.{name}" if path else name
            if isinstance(node, (nn.ModuleList, nn.Sequential)):
                found.append(inner)
            else:
                visit(child, inner)

    visit(module, "")
    return tuple(found)


class ChainRunner:
    """Wraps forwards: tracks module paths, opens elements, replays repeated blocks."""

    def __init__(self, tracer: Tracer, module: nn.Module, paths: tuple[str, ...], *, fold: bool):
        self.tracer = tracer
        self.elements: list[Element] = [Element(path="")]
        self.fold = fold
        self.is_declared = False
        self.switch = Switch()
        self._wrapped: list[tuple[nn.Module, Any]] = []
        self._inside = False
        self._last: _Call | None = None
        self._chain = set(paths)
        for path, child in module.named_modules():
            if path:
                self._wrap(child, path)

    def _wrap(self, module: nn.Module, path: str) -> None:
        forward = module.forward
        run = self._element_call if path in self._chain else self._plain_call

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return run(module, path, forward, args, kwargs)

        self._wrapped.append((module, vars(module).get("forward")))
        module.forward = wrapped

    def unwrap(self) -> None:
        """Give the modules their own forward back."""
        for module, forward in self._wrapped:
            if forward is None:
                del module.forward
            else:
                module.forward = forward

    def _plain_call(
        self, module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        del module
        self.tracer.paths.append(path)
        try:
            return forward(*args, **kwargs)
        finally:
            self.tracer.paths.pop()

    def _element_call(
        self, module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if self._inside:
            return self._plain_call(module, path, forward, args, kwargs)
        key = (structure_hash(module), self._signature(args, kwargs))
        if self.fold and self._repeats(key, path, args, kwargs):
            return self._replay(path, args, kwargs)
        self._open(path)
        self._inside = True
        try:
            out = self._plain_call(module, path, forward, args, kwargs)
        finally:
            self._inside = False
            element = self.tracer.element
            self._open_gap()
        tensors = _tensors(args, kwargs)
        leaves, spec = tree_flatten(out)
        self._last = _Call(
            key=key,
            element=element,
            inputs=[self.tracer.value(tensor).note for tensor in tensors],
            input_ids=[id(tensor) for tensor in tensors],
            leaves=leaves,
            spec=spec,
        )
        return out

    def _open(self, path: str) -> None:
        """Start a new element."""
        self._drop_empty_gap()
        self.elements.append(Element(path=path, module_paths=[path]))
        self.tracer.element = len(self.elements) - 1

    def _open_gap(self) -> None:
        """Operators between chain elements go to an element without a module."""
        self.elements.append(Element(path=""))
        self.tracer.element = len(self.elements) - 1

    def _drop_empty_gap(self) -> None:
        if not self._gap_is_used() and self.elements[-1].path == "":
            self.elements.pop()

    def _gap_is_used(self) -> bool:
        kernels = self.tracer.kernels
        return bool(kernels) and kernels[-1].element == len(self.elements) - 1

    def _signature(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        leaves, spec = tree_flatten((args, kwargs))
        return (str(spec), tuple(_describe(leaf) for leaf in leaves))

    def _repeats(self, key: tuple[Any, ...], path: str, args: Any, kwargs: Any) -> bool:
        """Tell whether this call continues the run of equal blocks just before it."""
        last = self._last
        if last is None or last.key != key or self._gap_is_used():
            return False
        if path in self.elements[last.element].module_paths:
            return False
        outputs = {
            self.tracer.value(leaf).note for leaf in last.leaves if isinstance(leaf, torch.Tensor)
        }
        return any(
            self.tracer.value(tensor).note in outputs and before not in outputs
            for tensor, before in zip(_tensors(args, kwargs), last.inputs, strict=True)
        )

    def _replay(self, path: str, args: Any, kwargs: Any) -> Any:
        """Return what the recorded call returned, as new tensors with the same indices."""
        last = self._last
        if last is None:
            raise RuntimeError("no call to replay")
        tracer, element = self.tracer, self.elements[last.element]
        tensors = _tensors(args, kwargs)
        if element.count == 1:
            self._carry(element, last, tensors)
        element.count += 1
        element.module_paths.append(path)
        known = dict(zip(last.input_ids, tensors, strict=True))
        leaves = []
        for leaf in last.leaves:
            if not isinstance(leaf, torch.Tensor):
                leaves.append(leaf)
            elif id(leaf) in known:
                leaves.append(known[id(leaf)])
            else:
                leaves.append(self._copy(tracer, leaf))
        return tree_unflatten(leaves, last.spec)

    def _carry(self, element: Element, last: _Call, tensors: list[torch.Tensor]) -> None:
        for tensor, before in zip(tensors, last.inputs, strict=True):
            value = self.tracer.value(tensor)
            if value.note is not before:
                element.carried.append((before, value.note))
                for kept, other in zip(before.dims, value.note.dims, strict=False):
                    self.tracer.atoms.join(kept, other)

    def _copy(self, tracer: Tracer, leaf: torch.Tensor) -> torch.Tensor:
        value = tracer.value(leaf)
        with self.switch.off(), torch.no_grad():
            fresh = torch.empty_like(leaf)
            if leaf.requires_grad:
                fresh = grown(fresh)
        tracer.bind(fresh, Value(note=value.note, dims=list(value.dims), weak=value.weak))
        return fresh


def _keep_carried(tracer: Tracer, element: Element, number: int) -> None:
    """Keep an exit for backward where a block keeps its entry: the next one reads it."""
    for entry, exit_ in element.carried:
        exit_.savers |= {at for at in entry.savers if tracer.kernels[at].element == number}


def settle(tracer: Tracer, elements: list[Element], *, declared: bool) -> list[Element]:
    """Give operators outside any chain module to a neighbour and renumber the elements.

    They stay a unit of their own (embedding, head) where the neighbour is a repeated block or where
    they hold parameters of a model without a declared chain.
    """
    used = {kernel.element for kernel in tracer.kernels}
    holds = {
        kernel.element
        for kernel in tracer.kernels
        for read in kernel.reads
        if read.note.kind == "parameter"
    }
    places = [at for at, e in enumerate(elements) if e.path or at in used]
    target = {at: at for at in places}
    for position, at in enumerate(places):
        if elements[at].path or (at in holds and not declared):
            continue
        near = [places[n] for n in (position - 1, position + 1) if 0 <= n < len(places)]
        single = [n for n in near if elements[n].path and elements[n].count == 1]
        if single:
            target[at] = single[0]
    kept = [at for at in places if target[at] == at]
    for kernel in tracer.kernels:
        kernel.element = kept.index(target[kernel.element])
    for at in kept:
        _keep_carried(tracer, elements[at], kept.index(at))
    return [elements[at] for at in kept]


def _tensors(args: Any, kwargs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]


def _describe(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return (tuple(leaf.shape), leaf.dtype, leaf.requires_grad)
    if isinstance(leaf, (int, float, str, bool, type(None))):
        return leaf
    return type(leaf).__qualname__
