"""What one rank of a training job does: join, build, go on from a checkpoint, step, log, save."""

import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn

from executor import memory
from executor.checkpoint import (
    JobIdentity,
    Restored,
    put_damaged_aside,
    restore_checkpoint,
    save_checkpoint,
)
from executor.checkpoint_state import State, persistent_buffers, training_state
from executor.clipping import clip_gradients
from executor.dataset import BatchReader, Share, make_reader, seed_all
from executor.errors import RunError
from executor.job_log import StepRecord, append_record, begin_log
from executor.job_result import JobResult, job_result_to_json
from executor.job_settings import JOB_SETTINGS_FILE, JobSettings, load_job
from executor.learning_rate import learning_rate_at
from executor.optimizer import ShardOptimizer
from executor.result import write_atomically
from executor.settings import SETTINGS_FILE, RunSettings, load_settings
from executor.training import Trainer
from executor.trial_pass import keep_buffers_in_trial
from executor.worker import finish_device, join, make_trainer
from planner.models.resolve import resolve_model
from planner.plan import Plan, load_plan

_STEP_SEED_STRIDE = 7_919
_RANK_SEED_STRIDE = 104_729
"""Primes, so that the random numbers of steps and ranks differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Everything a rank works with."""

    settings: RunSettings
    job: JobSettings
    trainer: Trainer
    optimizer: ShardOptimizer
    reader: BatchReader
    parameters: dict[str, nn.Parameter]
    """As the optimizer got them."""
    stages_holding: dict[str, int]
    base_bytes: float
    """Memory held before the model was built [B]."""
    strategy: str

    def state(self) -> State:
        """Return what is saved, as it is now."""
        buffers = persistent_buffers(dict(self.trainer.assembly.owned))
        return training_state(self.parameters, buffers=buffers, optimizer=self.optimizer)

    @property
    def identity(self) -> JobIdentity:
        """What must be the same for a training to go on."""
        shape = self.settings.shape
        return JobIdentity(
            model=self.settings.model, optimizer=shape.optimizer, seed=self.settings.seed,
            global_batch_size=shape.global_batch_size, sequence_length=shape.sequence_length,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """Numbers of all ranks on their way to all ranks, beside the next step."""

    every: torch.Tensor
    work: Any

    @classmethod
    def of(cls, numbers: list[float], *, device: torch.device) -> Self:
        """Send this rank's numbers."""
        every = torch.zeros(dist.get_world_size(), len(numbers), dtype=torch.float64, device=device)
        every[dist.get_rank()] = torch.tensor(numbers, dtype=torch.float64, device=device)
        # a gather: all but one rank add zeros to a row
        return cls(every=every, work=dist.all_reduce(every, async_op=True))

    def wait(self) -> list[list[float]]:
        """Return a list per rank."""
        self.work.wait()
        found: list[list[float]] = self.every.tolist()
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedStep:
    """A step that this rank has done, before it knows of the others."""

    step: int
    """From 1."""
    learning_rate: float
    gradient_norm: float | None
    loss: float | None
    """Mean over this rank's samples; None where it does not know it."""
    ranks: Shared
    """Loss, times and memory of each rank."""
    time: str
    """End of the step, UTC, ISO 8601."""


def run_local_job_rank(run_dir: Path) -> None:
    """Run one rank of the job in a folder that all ranks share."""
    settings, job = load_settings(run_dir / SETTINGS_FILE), load_job(run_dir / JOB_SETTINGS_FILE)
    run_job_rank(load_plan(settings.plan_path), settings, job, run_dir=run_dir)


def run_job_rank(
    plan: Plan, settings: RunSettings, job: JobSettings, *, run_dir: Path | None
) -> JobResult | None:
    """Run one rank of a training job; rank 0 returns the result, and writes it into a run's folder.

    Parameters
    ----------
    plan : Plan
        The plan.
    settings : RunSettings
        Model, shape, steps and seed.
    job : JobSettings
        Data, learning rate, checkpoints and log.
    run_dir : Path or None
        Folder shared by the processes of a local run; None under torchrun.
    """
    device = join(settings, run_dir=run_dir)
    try:
        work = prepare_work(plan, settings, job, device=device)
        restored = _go_on(work)
        _say(work, _began(restored), restored.step)
        records = _steps(work, first=restored.step)
        is_first = dist.get_rank() == 0
        result = _result(work, restored, records, backend=dist.get_backend()) if is_first else None
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if result is not None and run_dir is not None:
        text = json.dumps(job_result_to_json(result), indent=1) + "\n"
        write_atomically(settings.result_path, text)
    return result


def prepare_work(
    plan: Plan, settings: RunSettings, job: JobSettings, *, device: torch.device
) -> Work:
    """Build a rank's part of the model, the optimizer and the reader of batches."""
    source = resolve_model(settings.model)
    trainer, base_bytes = make_trainer(plan, settings, source=source, device=device)
    optimizer = trainer.optimizer
    if optimizer is None:
        raise RunError(f"{settings.model}: the plan is for inference; a job needs mode=train")
    parameters = trainer.assembly.parameters()
    holding = {name: group.size() for name, group in trainer.assembly.tied.items()}
    if trainer.assembly.schedule is not None:
        keep_buffers_in_trial(trainer.assembly.schedule)
    shape, ranks = settings.shape, trainer.ranks
    reader = make_reader(
        job.dataset, source=source, global_batch_size=shape.global_batch_size,
        sequence_length=shape.sequence_length, seed=settings.seed,
        share=Share(index=ranks.coordinate("dp"), count=shape.size("dp")),
    )  # fmt: skip
    memory.reset_peak(device)
    return Work(
        settings=settings, job=job, trainer=trainer, optimizer=optimizer, reader=reader,
        parameters=parameters, stages_holding=holding, base_bytes=base_bytes,
        strategy=plan.strategy,
    )  # fmt: skip


def _go_on(work: Work) -> Restored:
    """Read the newest whole checkpoint where one is wanted, and begin the log."""
    job, restored = work.job, Restored(step=0)
    if job.checkpoint_dir and job.start != "new":
        directory = Path(job.checkpoint_dir)
        restored = restore_checkpoint(work.state(), directory=directory, identity=work.identity)
        if restored.step > work.settings.steps:
            raise RunError(
                f"--steps is {work.settings.steps}, but {directory} has done {restored.step}; "
                "ask for more, they count from the job's beginning"
            )
        put_damaged_aside(directory, newer_than=restored.step)
    if job.log_path and dist.get_rank() == 0:
        begin_log(job.log_path, is_new=restored.step == 0 and job.attempt == 0)
    return restored


def _steps(work: Work, *, first: int) -> list[StepRecord]:
    """Train from step ``first`` to the last one.

    A step is told of while the next one is done; before a checkpoint and at the end nothing is
    left untold.
    """
    steps, job = work.settings.steps, work.job
    records: list[StepRecord] = []
    untold: list[TrainedStep] = []
    for step in range(first, steps):
        untold.append(train_step(work, step))
        is_due = bool(job.save_every) and (step + 1) % job.save_every == 0
        is_last = step + 1 == steps
        num_told = len(untold) - (0 if is_due or is_last else 1)
        records.extend(tell(work, done) for done in untold[:num_told])
        del untold[:num_told]
        if job.checkpoint_dir and (is_due or is_last):
            _save(work, step + 1)
    return records


def train_step(work: Work, step: int) -> TrainedStep:
    """Read the batch of a step and train on it; ranks begin to tell each other how it went."""
    trainer, settings, job = work.trainer, work.settings, work.job
    began = time.perf_counter()
    batch = work.reader.read(step)
    data_time_s = time.perf_counter() - began
    rate = learning_rate_at(step, rate=job.learning_rate, steps=settings.steps)
    work.optimizer.set_learning_rate(rate)
    seed_all(_dropout_seed(work, step))
    loss = trainer.forward_backward_own(batch)
    norm = None
    if job.clip_norm is not None:
        norm = clip_gradients(
            trainer.assembly.parameters(), ranks=trainer.ranks,
            stages_holding=work.stages_holding, max_norm=job.clip_norm,
        )  # fmt: skip
    trainer.update()
    finish_device(trainer.device)
    took = time.perf_counter() - began
    held = memory.held_bytes(trainer.device) - work.base_bytes
    peak = memory.peak_bytes(trainer.device) - work.base_bytes
    told = math.nan if loss is None else loss
    ranks = Shared.of(
        [told, took, data_time_s, held, peak, float(loss is not None)], device=trainer.device
    )
    return TrainedStep(
        step=step + 1, learning_rate=rate, gradient_norm=norm, loss=loss, ranks=ranks,
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )  # fmt: skip


def tell(work: Work, trained: TrainedStep) -> StepRecord:
    """Check the loss of a step, log it and tell of it.

    Raises
    ------
    RunError
        If the loss is no number.
    """
    record = _record(work, trained)
    if not math.isfinite(record.loss):
        raise RunError(
            f"step {record.step}: the loss is {record.loss}; nothing was saved since the last "
            "checkpoint; try a smaller --learning-rate or --clip-norm"
        )
    if work.job.log_path and dist.get_rank() == 0:
        append_record(work.job.log_path, record)
    _say(work, _shown(record, work.settings.steps), record.step, is_step=True)
    return record


def _record(work: Work, trained: TrainedStep) -> StepRecord:
    shape, ranks = work.settings.shape, trained.ranks.wait()
    step_time_s = max(rank[1] for rank in ranks)
    return StepRecord(
        step=trained.step, loss=statistics.fmean(rank[0] for rank in ranks if rank[-1]),
        learning_rate=trained.learning_rate, gradient_norm=trained.gradient_norm,
        step_time_s=step_time_s, data_time_s=max(rank[2] for rank in ranks),
        tokens_per_s=shape.global_batch_size * shape.sequence_length / step_time_s,
        samples_per_s=shape.global_batch_size / step_time_s,
        memory_bytes=max(0.0, *(rank[3] for rank in ranks)),
        peak_memory_bytes=max(0.0, *(rank[4] for rank in ranks)),
        attempt=work.job.attempt, time=trained.time,
    )  # fmt: skip


def _dropout_seed(work: Work, step: int) -> int:
    """Return the seed of a step's dropout: the same again after a resume on the same plan.

    Ranks of one tensor group draw alike, those of other stages and samples differently.
    """
    ranks = work.trainer.ranks
    place = 0
    for axis in ("pp", "dp", "cp"):
        place = place * ranks.shape.size(axis) + ranks.coordinate(axis)
    return (work.settings.seed + step * _STEP_SEED_STRIDE + 1) * _RANK_SEED_STRIDE + place


def _save(work: Work, step: int) -> None:
    began = time.perf_counter()
    save_checkpoint(
        work.state(), directory=Path(work.job.checkpoint_dir), step=step, identity=work.identity,
        strategy=work.strategy, keep=work.job.keep,
    )  # fmt: skip
    _say(work, f"saved step {step} in {time.perf_counter() - began:.1f} s", step)


def _result(
    work: Work, restored: Restored, records: list[StepRecord], *, backend: str
) -> JobResult:
    settings, shape = work.settings, work.settings.shape
    times = [record.step_time_s for record in records]
    step_time_s = statistics.median(times[1:] or times) if times else None
    tokens = shape.global_batch_size * shape.sequence_length
    return JobResult(
        strategy=work.strategy, model=settings.model, axes=shape.axes,
        num_processes=shape.num_processes, backend=backend, device=work.trainer.device.type,
        precision=work.job.precision, global_batch_size=shape.global_batch_size,
        sequence_length=shape.sequence_length, num_microbatches=shape.num_microbatches,
        steps=settings.steps, resumed_from_step=restored.step,
        losses=tuple(record.loss for record in records), step_time_s=step_time_s,
        tokens_per_s=tokens / step_time_s if step_time_s else None,
        peak_memory_bytes=max((record.peak_memory_bytes for record in records), default=None),
        checkpoint_dir=work.job.checkpoint_dir or None, log=work.job.log_path or None,
        restarts=(), notes=(*shape.notes, *restored.damaged),
    )  # fmt: skip


def _began(restored: Restored) -> str:
    where = f"going on after step {restored.step}" if restored.step else "starting at step 1"
    return "; ".join([*restored.damaged, where])


def _shown(record: StepRecord, steps: int) -> str:
    return (
        f"step {record.step}/{steps}: loss {record.loss:.4f}, {record.step_time_s:.3f} s, "
        f"{record.tokens_per_s:,.0f} tokens/s, {record.peak_memory_bytes / 1e6:.0f} MB"
    )


def _say(work: Work, what: str, done: int, *, is_step: bool = False) -> None:
    """Tell the launcher, which reads lines of JSON from our standard output; else the person."""
    if dist.get_rank() != 0:
        return
    if work.settings.local:
        print(json.dumps([what, done, work.settings.steps]), flush=True)  # noqa: T201
    elif not is_step or done % work.job.log_every == 0:
        print(what, file=sys.stderr, flush=True)  # noqa: T201
