"""One rank of a case of the comparison matrix: steps by the clock, and memory."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import environ
from pathlib import Path

import torch
import torch.distributed as dist

from executor import memory
from executor.calibration_data import NOISY_CORES
from executor.foreign_load import foreign_cores, mark_load
from executor.live_tensors import step_memory
from executor.settings import SETTINGS_FILE, RunSettings, load_settings
from executor.spans import breakdown_of, spans_of
from executor.training import Trainer
from executor.worker import join, make_trainer
from planner.models.resolve import resolve_model
from planner.plan import load_plan

MEASURED_FILE = "measured.json"
_WARM_UP = 2
_INSTRUMENTED = 3
_MOST_TRIES = 4
"""Times that a case beside which other programs run is measured; the calmest counts [1]."""
_Found = tuple[list[tuple[float, ...]], float, dict[str, float], float | None]
"""Steps, resident peak, parts of a step, tensors' peak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredStep:
    """One step; times of ranks by rank."""

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    """CPU time of each rank's main thread [s]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredCase:
    """What the ranks of a case measured."""

    steps: tuple[MeasuredStep, ...]
    peak_bytes: tuple[float, ...]
    """Resident set per rank, above what the process held before the model was built [B]."""
    tensor_bytes: tuple[float | None, ...]
    """Peak of live tensors per rank; None where torch does not tell [B]."""
    parts_s: tuple[dict[str, float], ...]
    """Breakdown of the fastest instrumented step, per rank [s]."""
    foreign_load_cores: float


def run_matrix_rank(run_dir: Path) -> None:
    """Measure one case; rank 0 writes what all ranks found."""
    settings = load_settings(run_dir / SETTINGS_FILE)
    plan = load_plan(settings.plan_path)
    source = resolve_model(settings.model)
    device = join(settings, run_dir=run_dir)
    try:
        trainer, base_bytes = make_trainer(plan, settings, source=source, device=device)
        memory.reset_peak(device)
        for number in range(_WARM_UP):
            _timed(trainer, settings, number)
        own, load = min(_tries(trainer, settings), key=lambda found: found[1])
        peak = max(0.0, memory.peak_bytes(device) - base_bytes)
        parts = min(
            (_instrumented(trainer, settings) for _ in range(_INSTRUMENTED)),
            key=lambda found: sum(found.values()),
        )
        del trainer
        tensors = step_memory(
            lambda: make_trainer(plan, settings, source=source, device=device)[0],
            global_batch_size=settings.shape.global_batch_size,
            sequence_length=settings.shape.sequence_length,
        )
        tensor_bytes = None if tensors is None else tensors.peak_bytes
        mine = (own, peak, parts, tensor_bytes)
        everyone: list[_Found | None]
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    finally:
        dist.destroy_process_group()
    if int(environ["RANK"]) != 0:
        return
    told = [entry for entry in everyone if entry is not None]
    steps = tuple(
        MeasuredStep(wall_s=wall, cpu_s=cpu)
        for wall, cpu in (
            tuple(zip(*step, strict=True)) for step in zip(*(t[0] for t in told), strict=True)
        )
    )
    found = MeasuredCase(
        steps=steps, peak_bytes=tuple(t[1] for t in told), tensor_bytes=tuple(t[3] for t in told),
        parts_s=tuple(t[2] for t in told), foreign_load_cores=load,
    )  # fmt: skip
    (run_dir / MEASURED_FILE).write_text(json.dumps(asdict(found)), encoding="utf-8")


def _tries(
    trainer: Trainer, settings: RunSettings
) -> Iterator[tuple[list[tuple[float, ...]], float]]:
    """Yield a case's steps and the load of other programs beside them, until there is none."""
    for _ in range(_MOST_TRIES):
        before = mark_load()
        steps = [_timed(trainer, settings, number) for number in range(settings.steps)]
        after = mark_load()
        own_s = torch.tensor(after.own_s - before.own_s)
        dist.all_reduce(own_s)
        load = torch.tensor(foreign_cores(before, after, own_s=float(own_s)))
        dist.all_reduce(load, op=dist.ReduceOp.MAX)
        yield steps, float(load)
        if float(load) <= NOISY_CORES:
            return


def _timed(trainer: Trainer, settings: RunSettings, number: int) -> tuple[float, ...]:
    """Run a step; return its time by the clock and that of the main thread on the CPU [s]."""
    shape = settings.shape
    batch = trainer.source.make_batch(
        shape.global_batch_size, shape.sequence_length, settings.seed + number
    )
    dist.barrier()
    own, start = time.thread_time(), time.perf_counter()
    trainer.forward_backward(batch)
    trainer.update()
    wall = time.perf_counter() - start
    return wall, time.thread_time() - own


def _instrumented(trainer: Trainer, settings: RunSettings) -> dict[str, float]:
    """Run a step that is recorded; return its parts on this rank [s]."""
    shape, recorder = settings.shape, trainer.recorder
    batch = trainer.source.make_batch(shape.global_batch_size, shape.sequence_length, settings.seed)
    recorder.regions.clear()
    recorder.collectives.clear()
    recorder.memory.clear()
    dist.barrier()
    start = time.monotonic()
    with recorder.observed():
        trainer.forward_backward(batch)
        trainer.update()
    own_end = time.monotonic()
    dist.barrier()
    spans = spans_of(recorder, rank=dist.get_rank(), start_s=start)
    parts = breakdown_of(recorder, spans, step_s=time.monotonic() - start)
    parts["idle"] = max(parts["idle"], time.monotonic() - own_end)
    return parts


def measured_from_json(text: str) -> MeasuredCase:
    """Read what :func:`run_matrix_rank` wrote."""
    data = json.loads(text)
    steps = tuple(
        MeasuredStep(**{key: tuple(value) for key, value in step.items()}) for step in data["steps"]
    )
    return MeasuredCase(
        steps=steps, peak_bytes=tuple(data["peak_bytes"]),
        tensor_bytes=tuple(data["tensor_bytes"]), parts_s=tuple(data["parts_s"]),
        foreign_load_cores=data["foreign_load_cores"],
    )  # fmt: skip
