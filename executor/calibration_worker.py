"""What each process of a calibration measures, all processes at once as in a real run."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from os import cpu_count, environ
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional

from executor.calibration_data import (
    NOISY_CORES,
    REQUEST_FILE,
    SAMPLES_FILE,
    CalibrationRequest,
    Sample,
    write_samples,
)
from executor.foreign_load import foreign_cores, mark_load

Action = Callable[[], object]
_TIMEOUT_S = 60.0
_MINIMUM_REPETITIONS = 5
_QUICK_SECONDS, _FULL_SECONDS = 0.12, 0.5
"""Time spent on one kernel [s]."""
_BYTES_PER_ELEMENT = 4
_LAUNCHES = 200
_SQUARES = (64, 128, 256, 512, 1024)
_OBLONG = ((512, 512, 32), (512, 512, 128), (64, 1024, 1024), (1024, 64, 256), (16, 512, 512),
           (256, 2048, 512))  # fmt: skip
_COPY_BYTES = tuple(1 << power for power in range(14, 27, 2))
_MESSAGE_BYTES = tuple(1 << power for power in range(10, 25, 2))
_PERCENTILE_90 = 8
_MAXIMUM_REPETITIONS = 20_000
_PAIR = 2


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
        kernels, groups = list(_kernels()), _group_sizes(request.num_processes)
        total = len(kernels) + len(groups)
        for kind, shape, precision, action in kernels:
            samples.append(_measure(kind, shape, precision, action, seconds=seconds,
                                    participants=request.num_processes))  # fmt: skip
            _say(f"{kind} {'x'.join(map(str, shape))} {precision}", len(samples), total)
        for number, ranks in enumerate(groups, start=1):
            for kind, shape, precision, action in _messages(ranks):
                samples.append(_measure(kind, shape, precision, action, seconds=seconds,
                                        participants=ranks))  # fmt: skip
            _say(f"messages among {ranks} processes", len(kernels) + number, total)
    finally:
        dist.destroy_process_group()
    if int(environ["RANK"]) == 0:
        write_samples(run_dir / SAMPLES_FILE, samples)


def _say(what: str, done: int, total: int) -> None:
    if dist.get_rank() == 0:
        print(json.dumps([what, done, total]), flush=True)  # noqa: T201


def _kernels() -> Iterator[tuple[str, tuple[int, ...], str, Action]]:
    """Yield kind, sizes, precision and one repetition of every kernel."""
    for size in _SQUARES:
        yield _product(size, size, size, torch.float32)
    for m, n, k in _OBLONG:
        yield _product(m, n, k, torch.float32)
    for size in _SQUARES[2:]:
        yield _product(size, size, size, torch.bfloat16)
    for num_bytes in _COPY_BYTES:
        source = torch.ones(num_bytes // _BYTES_PER_ELEMENT)
        yield (
            "copy",
            (num_bytes,),
            "fp32",
            source.clone,
        )  # into new memory, as eager operators write
    small = torch.ones(16)
    yield "launch", (_LAUNCHES,), "fp32", lambda: [small.add(1.0) for _ in range(_LAUNCHES)]
    vector = torch.ones(1 << 13)
    yield "vector", (vector.numel(),), "fp32", lambda: vector.mul_(1.0)
    yield from _attentions()
    images, filters = torch.randn(4, 32, 28, 28), torch.randn(64, 32, 3, 3)
    yield (
        "convolution", (4, 32, 28, 28, 64), "fp32",
        lambda: functional.conv2d(images, filters, padding=1),
    )  # fmt: skip


def _product(
    m: int, n: int, k: int, dtype: torch.dtype
) -> tuple[str, tuple[int, ...], str, Action]:
    left, right = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    return "matmul", (m, n, k), name, partial(functional.linear, left, right)


def _attentions() -> Iterator[tuple[str, tuple[int, ...], str, Action]]:
    shape = (1, 4, 256, 64)
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))

    def forward() -> object:
        with torch.no_grad():
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    kept = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    upstream = torch.ones_like(kept)

    def backward() -> object:
        return torch.autograd.grad(kept, (query, key, value), upstream, retain_graph=True)

    yield "attention", shape, "fp32", forward
    yield "attention_backward", shape, "fp32", backward


def _measure(
    kind: str,
    shape: tuple[int, ...],
    precision: str,
    action: Action,
    *,
    seconds: float,
    participants: int,
) -> Sample:
    """Repeat an action for about ``seconds`` in the first ``participants`` processes at once."""
    takes_part = dist.get_rank() < participants
    once = _once(action) if takes_part else 0.0
    count = _agreed(int(seconds / once) if takes_part else None)
    times: list[float] = [0.0, 0.0]
    before = mark_load()
    if takes_part:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
    after = mark_load()
    median, tenths = statistics.median(times), statistics.quantiles(times, n=10)
    own = [after.own_s - before.own_s, median, statistics.fmean(times), tenths[0]]
    totals = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(totals)
    own_s, median_s, mean_s, fast_s = (float(total) for total in totals)
    load = foreign_cores(before, after, own_s=own_s)
    sharing = max(1.0, participants / (cpu_count() or 1))
    name, time_s = "median", median_s
    if load > NOISY_CORES:
        name, time_s = "p10", fast_s * sharing
    elif sharing > 1.0:
        name, time_s = "mean", mean_s
    return Sample(
        kind=kind, shape=shape, precision=precision, time_s=time_s / participants, statistic=name,
        spread=tenths[_PERCENTILE_90] / median if takes_part else 1.0,
        repetitions=count,
        foreign_load_cores=load,
    )  # fmt: skip


def _once(action: Action) -> float:
    """Warm up and return the time of one repetition [s]."""
    action()
    start = time.perf_counter()
    action()
    return max(time.perf_counter() - start, 1e-7)


def _agreed(count: int | None) -> int:
    """Return one number of repetitions for all processes; None leaves it to the others."""
    number = torch.tensor([_MAXIMUM_REPETITIONS if count is None else count])
    dist.all_reduce(number, op=dist.ReduceOp.MIN)
    return max(_MINIMUM_REPETITIONS, int(number))


def _group_sizes(num_processes: int) -> list[int]:
    """Return 2, 4, ... and the whole.

    Examples
    --------
    >>> _group_sizes(6)
    [2, 4, 6]
    """
    sizes = {2**power for power in range(1, num_processes.bit_length())} | {num_processes}
    return sorted(size for size in sizes if 1 < size <= num_processes)


def _messages(ranks: int) -> Iterator[tuple[str, tuple[int, ...], str, Action]]:
    """Yield all-reduces of the first ``ranks`` processes, and round trips between the first two."""
    group = dist.new_group(list(range(ranks)))
    for num_bytes in _MESSAGE_BYTES:
        buffer = torch.zeros(num_bytes // _BYTES_PER_ELEMENT)
        shape = (ranks, num_bytes)
        yield "all_reduce", shape, "fp32", partial(dist.all_reduce, buffer, group=group)
        if ranks == _PAIR:
            yield "round_trip", shape, "fp32", partial(_round_trip, buffer)


def _round_trip(buffer: torch.Tensor) -> None:
    """Send there and back; half of its time is one message."""
    if dist.get_rank() == 0:
        dist.send(buffer, 1)
        dist.recv(buffer, 1)
    else:
        dist.recv(buffer, 0)
        dist.send(buffer, 0)
