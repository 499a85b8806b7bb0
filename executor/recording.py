"""Record what one instrumented step does: compute regions, collectives, waits."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_FUNCTIONAL_KINDS = {
    "all_reduce": "all_reduce", "all_reduce_": "all_reduce", "all_reduce_coalesced": "all_reduce",
    "all_gather_into_tensor": "all_gather", "all_gather_into_tensor_coalesced": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter", "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "all_to_all_single": "all_to_all", "broadcast": "broadcast", "broadcast_": "broadcast",
}  # fmt: skip
_LIBRARY_CALLS = {
    "all_gather_single": "all_gather", "reduce_scatter_single": "reduce_scatter",
    "all_gather_into_tensor": "all_gather", "reduce_scatter_tensor": "reduce_scatter",
}  # fmt: skip
"""What FSDP calls: the first two from torch 2.13 on, the others before."""
_FUNCTIONAL_NAMESPACE = "_c10d_functional"


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Time of the main thread between two marks."""

    name: str
    category: str
    start_s: float
    end_s: float
    stage: int | None = None
    microbatch: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """One collective: from its issue to its end, and the time in which the main thread stood."""

    kind: str
    axis: str
    num_bytes: float
    """Largest of input and output, the nccl-tests convention [B]."""
    start_s: float
    end_s: float
    blocked_from_s: float
    blocked_until_s: float


@dataclass(kw_only=True, slots=True)
class Recorder:
    """Collects regions and collectives while ``is_on``; costs nothing otherwise."""

    axis_of_group: dict[str, str] = field(default_factory=dict)
    """Process group name -> mesh axis."""
    is_on: bool = False
    regions: list[Region] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    held_bytes: Any = None
    """Function that returns the memory in use now [B]."""

    @contextmanager
    def region(
        self, name: str, category: str, *, stage: int | None = None, microbatch: int | None = None
    ) -> Iterator[None]:
        """Mark a region of the main thread."""
        if not self.is_on:
            yield
            return
        start = time.monotonic()
        yield
        end = time.monotonic()
        self.regions.append(
            Region(name=name, category=category, start_s=start, end_s=end, stage=stage,
                   microbatch=microbatch)
        )  # fmt: skip
        if self.held_bytes is not None:
            self.memory.append((end, self.held_bytes()))

    @contextmanager
    def collective(self, kind: str, *, axis: str, tensor: torch.Tensor) -> Iterator[None]:
        """Mark a collective that the main thread waits for."""
        if not self.is_on:
            yield
            return
        start = time.monotonic()
        yield
        end = time.monotonic()
        self.add(kind, axis=axis, num_bytes=tensor.numel() * tensor.element_size(),
                 start_s=start, end_s=end, blocked_from_s=start)  # fmt: skip

    def add(
        self, kind: str, *, axis: str, num_bytes: float, start_s: float, end_s: float,
        blocked_from_s: float,
    ) -> None:  # fmt: skip
        """Add a collective whose times were taken elsewhere."""
        self.collectives.append(
            Collective(kind=kind, axis=axis, num_bytes=num_bytes, start_s=start_s, end_s=end_s,
                       blocked_from_s=blocked_from_s, blocked_until_s=end_s)
        )  # fmt: skip

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Record everything inside, including what DTensor and FSDP issue."""
        with ExitStack() as stack:
            for name, kind in _LIBRARY_CALLS.items():
                if hasattr(dist, name):
                    timed = _timed(getattr(dist, name), kind, self)
                    stack.enter_context(mock.patch.object(dist, name, timed))
            stack.enter_context(_FunctionalCollectives(self))
            self.is_on = True
            try:
                yield
            finally:
                self.is_on = False


def _timed(original: Any, kind: str, recorder: Recorder) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        work = original(*args, **kwargs)
        group = kwargs.get("group")
        axis = recorder.axis_of_group.get(group.group_name, "") if group is not None else ""
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        largest = max(t.numel() * t.element_size() for t in tensors)
        recorder.add(kind, axis=axis or "dp", num_bytes=largest, start_s=start,
                     end_s=time.monotonic(), blocked_from_s=start)  # fmt: skip
        return work

    return call


class _FunctionalCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Time DTensor's collectives from issue to the end of their wait."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder
        self._pending: dict[int, tuple[str, str, float, float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        if func.namespace != _FUNCTIONAL_NAMESPACE:
            return func(*args, **kwargs)
        name = func._opname
        start = time.monotonic()
        out = func(*args, **kwargs)
        if name == "wait_tensor":
            self._finish(args[0], start)
        elif name in _FUNCTIONAL_KINDS and isinstance(out, torch.Tensor):
            axis = next(
                (self._recorder.axis_of_group[value] for value in reversed(args)
                 if isinstance(value, str) and value in self._recorder.axis_of_group), "tp",
            )  # fmt: skip
            largest = max(out.numel(), args[0].numel()) * out.element_size()
            self._pending[out.data_ptr()] = (_FUNCTIONAL_KINDS[name], axis, largest, start)
        return out

    def _finish(self, tensor: torch.Tensor, wait_start_s: float) -> None:
        pending = self._pending.pop(tensor.data_ptr(), None)
        if pending is not None:
            kind, axis, num_bytes, start = pending
            self._recorder.add(kind, axis=axis, num_bytes=num_bytes, start_s=start,
                               end_s=time.monotonic(), blocked_from_s=wait_start_s)  # fmt: skip
