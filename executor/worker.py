"""What one rank does: join, build, step, measure, hand in; rank 0 also checks and writes."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from executor import memory
from executor.assemble import assemble
from executor.death import die_with_parent
from executor.foreign_load import foreign_cores, mark_load
from executor.gradients import local_of
from executor.judging import Measured, RankReport, judge
from executor.optimizer import ShardOptimizer
from executor.optimizer_choice import optimizer_that_runs
from executor.precision import allow_tf32
from executor.rank_mesh import make_mesh
from executor.recording import Recorder
from executor.result import RunResult, result_to_json, write_atomically
from executor.settings import SETTINGS_FILE, RunSettings, load_settings, progress_total
from executor.spans import breakdown_of, collective_counts, spans_of
from executor.training import Trainer
from planner.models.resolve import resolve_model
from planner.models.source import ModelSource
from planner.plan import Plan, load_plan
from simulator.timeline import Span


def run_local_rank(run_dir: Path) -> None:
    """Run one rank of the settings in a folder that all ranks share."""
    settings = load_settings(run_dir / SETTINGS_FILE)
    run_rank(load_plan(settings.plan_path), settings, run_dir=run_dir)


def run_rank(plan: Plan, settings: RunSettings, *, run_dir: Path | None) -> RunResult | None:
    """Run one rank of a plan; rank 0 returns the result, and writes it into the run's folder.

    Parameters
    ----------
    plan : Plan
        The plan.
    settings : RunSettings
        What to run.
    run_dir : Path or None
        Folder shared by the processes of a local run, used to find each other; None to join the
        group that torchrun's environment describes.
    """
    source = resolve_model(settings.model)
    device = join(settings, run_dir=run_dir)
    rank = dist.get_rank()
    try:
        reports, collectives, load = _train(plan, settings, source=source, device=device)
        backend = dist.get_backend()
        _barrier()
    finally:
        dist.destroy_process_group()
    if rank != 0:
        return None
    _say(settings, "comparing with one process" if settings.check else "done", settings.steps + 1)
    measured = Measured(
        reports=tuple(reports), collectives=collectives, foreign_load_cores=load,
        backend=backend, device=device.type,
    )  # fmt: skip
    result = judge(plan, settings, source=source, measured=measured)
    if run_dir is not None:
        text = json.dumps(result_to_json(result), indent=1) + "\n"
        write_atomically(settings.result_path, text)
    return result


def join(settings: RunSettings, *, run_dir: Path | None) -> torch.device:
    """Join the other ranks; return this one's device."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun leaves its ranks alive when it is killed
        die_with_parent(os.getppid())
    torch.set_num_threads(settings.threads_per_process)
    world = settings.shape.num_processes
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    use_cuda = torch.cuda.is_available() and (
        torch.cuda.device_count() >= world or (run_dir is None and torch.cuda.device_count() > 0)
    )
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if use_cuda else "gloo"
    timeout = timedelta(seconds=settings.timeout_s)
    store = _store(world, run_dir=run_dir)
    if store is None:
        dist.init_process_group(backend, timeout=timeout)
    else:
        rank = int(os.environ["RANK"])
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    return device


def _store(world: int, *, run_dir: Path | None) -> Any:
    """Return where ranks find each other; None leaves it to torch.

    Under torchrun each attempt gets keys of its own: ranks of a restart that read the addresses of
    dead peers fail to connect.
    """
    if run_dir is not None:
        return dist.FileStore(str(run_dir / "store"), world)  # type: ignore[attr-defined]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    agents = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt-{attempt}", agents)  # type: ignore[attr-defined]


def make_trainer(
    plan: Plan, settings: RunSettings, *, source: ModelSource, device: torch.device
) -> tuple[Trainer, float]:
    """Build a rank's part of the model; return it and the memory held before [B]."""
    shape = settings.shape
    allow_tf32(settings.precision, device=device)
    base_bytes = memory.held_bytes(device)
    ranks = make_mesh(shape, device_type=device.type)
    recorder = Recorder(
        axis_of_group=ranks.groups(),
        held_bytes=lambda: max(0.0, memory.held_bytes(device) - base_bytes),
    )
    assembly = assemble(
        plan, settings, source=source, ranks=ranks, device=device, recorder=recorder
    )
    optimizer = None
    if shape.mode == "train":
        optimizer = ShardOptimizer(
            optimizer_that_runs(shape), list(assembly.parameters().values()),
            learning_rate=settings.learning_rate,
        )  # fmt: skip
    trainer = Trainer(assembly=assembly, ranks=ranks, source=source, optimizer=optimizer,
                      recorder=recorder, device=device)  # fmt: skip
    return trainer, base_bytes


def _train(
    plan: Plan, settings: RunSettings, *, source: ModelSource, device: torch.device
) -> tuple[list[RankReport], dict[str, dict[str, dict[str, float]]], float]:
    trainer, base_bytes = make_trainer(plan, settings, source=source, device=device)
    recorder = trainer.recorder
    memory.reset_peak(device)
    before = mark_load()
    losses, times, gradients = _steps(trainer, settings)
    after = mark_load()
    peak = max(0.0, memory.peak_bytes(device) - base_bytes)
    spans, breakdown, marks = _instrumented_step(trainer, settings)
    report = RankReport(
        losses=tuple(losses), step_times_s=tuple(times), peak_bytes=peak,
        cpu_s=after.own_s - before.own_s, spans=spans, memory=marks, breakdown_s=breakdown,
        gradients=gradients,
    )  # fmt: skip
    reports = _gather(report)
    load = foreign_cores(before, after, own_s=sum(r.cpu_s for r in reports)) if reports else 0.0
    return reports, collective_counts(recorder), load


def _steps(
    trainer: Trainer, settings: RunSettings
) -> tuple[list[float | None], list[float], dict[str, torch.Tensor]]:
    shape = settings.shape
    losses: list[float | None] = []
    times: list[float] = []
    gradients: dict[str, torch.Tensor] = {}
    for step in range(settings.steps):
        batch = trainer.source.make_batch(
            shape.global_batch_size, shape.sequence_length, settings.seed + step
        )
        _barrier()
        start = time.perf_counter()
        losses.append(trainer.forward_backward(batch))
        finish_device(trainer.device)
        middle = time.perf_counter()
        if step == 0 and settings.check and shape.mode == "train":
            gradients = _whole_gradients(trainer)
        resumed = time.perf_counter()
        trainer.update()
        finish_device(trainer.device)
        times.append(middle - start + time.perf_counter() - resumed)
        if dist.get_rank() == 0:
            _say(settings, f"step {step + 1}: {times[-1]:.3f} s", step + 1)
    return losses, times, gradients


def _whole_gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Gather gradients within each stage, as the optimizer will use them; one rank keeps them."""
    ranks = trainer.ranks
    keeps = not any(ranks.coordinate(axis) for axis in ("dp", "cp", "tp"))
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in trainer.assembly.parameters().items():
        if parameter.grad is None:
            continue
        full = local_of(parameter.grad)
        if isinstance(parameter, DTensor):
            # with the parameter's placement: a sum that is missing must not be made up for here
            full = DTensor.from_local(
                full, parameter.device_mesh, parameter.placements, run_check=False,
                shape=parameter.shape, stride=parameter.stride(),
            ).full_tensor()  # fmt: skip
        if keeps:
            whole[name] = full.detach().cpu().clone()
    return whole


def _instrumented_step(
    trainer: Trainer, settings: RunSettings
) -> tuple[tuple[Span, ...], dict[str, float], tuple[tuple[float, float], ...]]:
    shape, recorder = settings.shape, trainer.recorder
    batch = trainer.source.make_batch(
        shape.global_batch_size, shape.sequence_length, settings.seed + settings.steps
    )
    _barrier()
    start = time.monotonic()
    with recorder.observed():
        trainer.forward_backward(batch)
        trainer.update()
        finish_device(trainer.device)
    own_end = time.monotonic()
    _barrier()
    spans = spans_of(recorder, rank=dist.get_rank(), start_s=start)
    breakdown = breakdown_of(recorder, spans, step_s=time.monotonic() - start)
    breakdown["idle"] = max(breakdown["idle"], time.monotonic() - own_end)
    marks = tuple((at - start, held) for at, held in recorder.memory)
    return spans, breakdown, marks


def finish_device(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _barrier() -> None:
    dist.barrier()


def _gather(report: RankReport) -> list[RankReport]:
    """Collect the reports on rank 0, in rank order; other ranks get an empty list."""
    is_root = dist.get_rank() == 0
    gathered: list[Any] | None = [None] * dist.get_world_size() if is_root else None
    dist.gather_object(report, gathered, dst=0)
    return list(gathered or [])


def _say(settings: RunSettings, what: str, done: int) -> None:
    """Tell the launcher, which reads lines of JSON from our standard output."""
    if settings.local:
        print(json.dumps([what, done, progress_total(settings)]), flush=True)  # noqa: T201
