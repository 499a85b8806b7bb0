"""Peak of live tensor bytes: what torch's allocator has handed out and not got back."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CDLL, c_bool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from executor.training import Trainer, rows_of
from planner.models.source import Batch

NUM_WARM_UP = 2
"""Steps before the measured one: the optimizer makes its state in the first, DDP lays out its
buckets anew in the second."""
_LIBRARY = "*c10.*"
_FLAG = "FLAGS_caffe2_report_cpu_memory_usage"
"""torch's own switch: its CPU allocator then keeps the sum of all live blocks, whichever thread
makes or releases them (c10/core/CPUAllocator.cpp, ``ProfiledCPUMemoryReporter``). The profiler
reports that sum with each allocation. Without the switch it misses what other threads release, and
gloo's threads release what FSDP2 and DTensor exchange."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorMemory:
    """Live tensor bytes of one rank in one step [B]."""

    held_bytes: float
    """Between steps: weights and what the optimizer keeps."""
    peak_bytes: float


def step_memory(
    make_trainer: Callable[[], Trainer], *, global_batch_size: int, sequence_length: int
) -> TensorMemory | None:
    """Build a rank's part of a model, train some steps and measure the last one.

    On the CPU and on CUDA it is the same quantity: bytes that torch's allocator has handed out
    (``torch.cuda.max_memory_allocated``), without its slack, libraries' code and the interpreter.
    Every rank of the run must call it.

    Parameters
    ----------
    make_trainer : callable
        Builds the rank's part anew: all its tensors are counted from their making.
    global_batch_size, sequence_length : int
        Sizes of a step's batch; a rank holds its own rows of it.

    Returns
    -------
    TensorMemory or None
        None where this build of torch does not tell what its CPU allocator has handed out.
    """
    with _counting() as is_counted:
        before = float(torch.cuda.memory_allocated()) if torch.cuda.is_available() else 0.0
        trainer = make_trainer()
        if trainer.device.type == "cpu" and not is_counted:
            return None
        batches = [
            _own_rows(trainer, global_batch_size, sequence_length, number)
            for number in range(NUM_WARM_UP + 1)
        ]
        for batch in batches[:-1]:
            _step(trainer, batch)
        gc.collect()
        del batches[:-1]
        if dist.is_initialized():
            dist.barrier()
        if trainer.device.type == "cuda":
            return _on_cuda(trainer, batches[-1], before=before)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            _step(trainer, batches[-1])
    return _of_events(profiler.profiler.kineto_results.experimental_event_tree())


def _own_rows(trainer: Trainer, size: int, length: int, number: int) -> Batch:
    """Return the rank's rows of a made-up batch, without the rest of it."""
    ranks = trainer.ranks
    whole = trainer.source.make_batch(size, length, number)
    own = rows_of(whole, ranks.coordinate("dp"), ranks.shape.size("dp"))

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else value

    return Batch(
        inputs=tuple(copied(value) for value in own.inputs),
        keywords={key: copied(value) for key, value in own.keywords.items()},
        targets=copied(own.targets),
    )


def _step(trainer: Trainer, own: Batch) -> None:
    trainer.forward_backward_own(own)
    trainer.update()


def _on_cuda(trainer: Trainer, batch: Batch, *, before: float) -> TensorMemory:
    device = trainer.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) - before
    _step(trainer, batch)
    torch.cuda.synchronize(device)
    return TensorMemory(
        held_bytes=held, peak_bytes=torch.cuda.max_memory_allocated(device) - before
    )


@contextmanager
def _counting() -> Iterator[bool]:
    """Have the CPU allocator count live bytes from here on; yields whether it can."""
    flag = _switch()
    if flag is None:
        yield False
        return
    flag.value = True
    try:
        yield True
    finally:
        flag.value = False


def _switch() -> c_bool | None:
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted(folder.glob(_LIBRARY)):
        try:
            return c_bool.in_dll(CDLL(str(path)), _FLAG)
        except (OSError, ValueError):
            continue  # not the library, or a build that keeps the switch to itself
    return None


def _of_events(roots: list[Any]) -> TensorMemory:
    """Return what was held at the first allocation of a profiled step and the most after it."""
    found = sorted(_allocations(roots), key=lambda event: event.start_time_ns)
    totals = [float(event.extra_fields.total_allocated) for event in found]
    first = found[0].extra_fields
    return TensorMemory(
        held_bytes=float(first.total_allocated - first.alloc_size), peak_bytes=max(totals)
    )


def _allocations(events: list[Any]) -> Iterator[Any]:
    pending = list(events)
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == _EventType.Allocation:
            yield event
