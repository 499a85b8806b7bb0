"""What each process of a calibration measures, all processes at once as in a real run.

Kernels are timed by the CPU time of the thread that runs them, which programs beside ours hardly
stretch (they share caches, not the clock); what waits for other processes by the wall clock.
"""

import json
import statistics
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from os import cpu_count, environ
from pathlib import Path

import torch
import torch.distributed as dist

from executor import memory
from executor.calibration_data import (
    CPU,
    NOISY_CORES,
    REQUEST_FILE,
    SAMPLES_FILE,
    CalibrationRequest,
    Sample,
    write_samples,
)
from executor.calibration_framework import framework_kernels, world_mesh
from executor.calibration_kernels import BYTES_PER_ELEMENT, Action, Kernel, kernels
from executor.foreign_load import foreign_cores, mark_load

_TIMEOUT_S = 60.0
_MINIMUM_REPETITIONS, _WARM_UPS = 15, 4
_QUICK_SECONDS, _FULL_SECONDS = 0.12, 0.5
"""Time spent on one kernel [s]."""
_BATCH_SECONDS = 1e-4
"""Shortest time between two readings of a clock [s]."""
_BETWEEN_SECONDS, _BETWEEN_SIZE = 2e-3, 256
"""Compute between messages: about one pass of a block [s], by products of this size [1]."""
_MESSAGE_BYTES = tuple(1 << power for power in range(10, 25, 2))
_PERCENTILE_90 = 8
_MAXIMUM_REPETITIONS = 20_000
_PAIR = 2
WALL = "wall"


def run_calibration_rank(run_dir: Path) -> None:
    """Measure kernels and messages; rank 0 writes the samples."""
    data = json.loads((run_dir / REQUEST_FILE).read_text(encoding="utf-8"))
    request = CalibrationRequest(**data)
    torch.set_num_threads(1)
    store = dist.FileStore(str(run_dir / "store"), request.num_processes)  # type: ignore[attr-defined]
    dist.init_process_group(
        "gloo", store=store, rank=int(environ["RANK"]), world_size=request.num_processes,
        timeout=timedelta(seconds=_TIMEOUT_S),
    )  # fmt: skip
    seconds = _QUICK_SECONDS if request.quick else _FULL_SECONDS
    samples: list[Sample] = []
    try:
        samples.append(_scratch())
        total = _count(request.num_processes)
        for kernel, participants, clock in _everything(request.num_processes):
            samples.append(
                _measure(kernel, seconds=seconds, participants=participants, clock=clock)
            )
            _say(f"{kernel.kind} {'x'.join(map(str, kernel.shape))} {kernel.precision}",
                 min(len(samples), total), total)  # fmt: skip
    finally:
        dist.destroy_process_group()
    if int(environ["RANK"]) == 0:
        write_samples(run_dir / SAMPLES_FILE, samples)


def _scratch() -> Sample:
    """Return what libraries allocate when they are first used: its shape is the size [B]."""
    cpu = torch.device("cpu")
    before, start, mark = memory.held_bytes(cpu), time.perf_counter(), mark_load()
    for kernel in framework_kernels(None):
        kernel.action()
        if kernel.kind.startswith("optimizer:"):
            break  # the first is small; those after it hold tensors of their own
    dist.all_reduce(torch.zeros(1))
    size = max(0.0, memory.held_bytes(cpu) - before)
    load = foreign_cores(mark, mark_load())
    return Sample(
        kind="scratch", shape=(int(size),), precision="fp32", time_s=time.perf_counter() - start,
        statistic=CPU, spread=1.0, repetitions=1, foreign_load_cores=load,
    )  # fmt: skip


def _everything(num_processes: int) -> Iterator[tuple[Kernel, int, str]]:
    """Yield what to measure, by how many processes, and the clock."""
    for kernel in kernels():
        yield kernel, num_processes, CPU
    mesh = world_mesh()
    for kernel in framework_kernels(mesh):
        yield kernel, num_processes, WALL if kernel.kind in _MEETING else CPU
    for ranks in _group_sizes(num_processes):
        for kernel in _messages(ranks):
            yield kernel, ranks, WALL


def _count(num_processes: int) -> int:
    """Return about how many things there are to measure, for the progress bar."""
    return _KERNELS_ABOUT + _MESSAGES_ABOUT * len(_group_sizes(num_processes))


_KERNELS_ABOUT, _MESSAGES_ABOUT = 100, 30
_MEETING = ("plain_units", "sharded_units")
"""What is timed by the clock, since processes wait for each other in it."""


def _say(what: str, done: int, total: int) -> None:
    if dist.get_rank() == 0:
        print(json.dumps([what, done, total]), flush=True)  # noqa: T201


def _measure(kernel: Kernel, *, seconds: float, participants: int, clock: str) -> Sample:
    """Repeat an action for about ``seconds`` in the first ``participants`` processes at once."""
    takes_part = dist.get_rank() < participants
    once = _once(kernel.action) if takes_part else _BATCH_SECONDS
    is_alone = clock == CPU
    inner = _agreed(max(1, int(_BATCH_SECONDS / once)), 1) if is_alone else 1
    each = once * inner + (0.0 if is_alone else _BETWEEN_SECONDS)
    count = _agreed(int(seconds / each), _MINIMUM_REPETITIONS)
    before = mark_load()
    times = [0.0, 0.0]
    if takes_part and is_alone:
        times = _times(kernel.action, inner=inner, count=count)
    elif takes_part:
        times = _times_between_compute(kernel.action, count=count)
    after = mark_load()
    median, tenths = statistics.median(times), statistics.quantiles(times, n=10)
    own = [after.own_s - before.own_s, median, statistics.fmean(times), tenths[0]]
    totals = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(totals)
    own_s, *found = (float(total) for total in totals)
    load = foreign_cores(before, after, own_s=own_s)
    name, time_s = _statistic(found, clock=clock, load=load, participants=participants)
    return Sample(
        kind=kernel.kind, shape=kernel.shape, precision=kernel.precision,
        time_s=time_s / participants, statistic=name,
        spread=tenths[_PERCENTILE_90] / median if takes_part else 1.0,
        repetitions=count * inner, foreign_load_cores=load,
    )  # fmt: skip


def _times(action: Action, *, inner: int, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.thread_time()
        for _ in range(inner):
            action()
        times.append((time.thread_time() - start) / inner)
    return times


def _times_between_compute(action: Action, *, count: int) -> list[float]:
    """Return times by the clock of an action that follows on compute, as in a step.

    One after the other, messages find the threads that carry them awake; after some compute these
    sleep, wake on a core where the main thread runs, and their peers are not there yet: several
    times as long.
    """
    square = torch.randn(_BETWEEN_SIZE, _BETWEEN_SIZE)
    once = _once(partial(torch.mm, square, square))
    products = max(1, round(_BETWEEN_SECONDS / once))
    times = []
    for _ in range(count):
        for _ in range(products):
            torch.mm(square, square)
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return times


def _statistic(
    found: list[float], *, clock: str, load: float, participants: int
) -> tuple[str, float]:
    """Return which of median, mean and 10th percentile counts, and it [s].

    Kernels take about the same every time. Messages are quick or wait for a turn of the scheduler;
    a step, which holds many of them, takes their mean.
    """
    median_s, mean_s, fast_s = found
    sharing = max(1.0, participants / (cpu_count() or 1))
    if clock == CPU:
        return CPU, median_s * sharing
    return ("p10", fast_s * sharing) if load > NOISY_CORES else ("mean", mean_s)


def _once(action: Action) -> float:
    """Warm up and return the time of one repetition [s]."""
    for _ in range(_WARM_UPS):
        action()
    start = time.perf_counter()
    action()
    return max(time.perf_counter() - start, 1e-7)


def _agreed(count: int, least: int) -> int:
    """Return one number of repetitions for all processes."""
    number = torch.tensor([min(count, _MAXIMUM_REPETITIONS)])
    dist.all_reduce(number, op=dist.ReduceOp.MIN)
    return max(least, int(number))


def _group_sizes(num_processes: int) -> list[int]:
    """Return 2, 4, ... and the whole.

    Examples
    --------
    >>> _group_sizes(6)
    [2, 4, 6]
    """
    sizes = {2**power for power in range(1, num_processes.bit_length())} | {num_processes}
    return sorted(size for size in sizes if 1 < size <= num_processes)


def _messages(ranks: int) -> Iterator[Kernel]:
    """Yield collectives of the first ``ranks`` processes, and round trips between the first two."""
    group = dist.new_group(list(range(ranks)))
    for num_bytes in _MESSAGE_BYTES:
        whole = torch.zeros(num_bytes // BYTES_PER_ELEMENT)
        part = torch.zeros(num_bytes // BYTES_PER_ELEMENT // ranks)
        whole = whole[: part.numel() * ranks]
        shape = (ranks, whole.numel() * BYTES_PER_ELEMENT)
        yield Kernel("all_reduce", shape, "fp32", partial(dist.all_reduce, whole, group=group))
        yield Kernel("all_gather", shape, "fp32",
                     partial(dist.all_gather_into_tensor, whole, part, group=group))  # fmt: skip
        yield Kernel("reduce_scatter", shape, "fp32",
                     partial(dist.reduce_scatter_tensor, part, whole, group=group))  # fmt: skip
        if ranks == _PAIR:
            yield Kernel("round_trip", shape, "fp32", partial(_round_trip, whole))


def _round_trip(buffer: torch.Tensor) -> None:
    """Send there and back; half of its time is one message."""
    if dist.get_rank() == 0:
        dist.send(buffer, 1)
        dist.recv(buffer, 1)
    else:
        dist.recv(buffer, 0)
        dist.send(buffer, 0)
