"""From the ranks' reports to the result of a run, on rank 0 after the others are done."""

import statistics
from dataclasses import dataclass

import torch

from executor.optimizer_choice import optimizer_that_runs
from executor.precision import Numerics, numerics_of, precision_notes
from executor.reference import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    Comparison,
    compare_with_reference,
    has_batch_statistics,
    run_reference,
)
from executor.result import RunResult
from executor.settings import RunSettings
from executor.shape import RunShape
from executor.spans import BREAKDOWN_KEYS
from planner.models.source import ModelSource
from planner.plan import Plan
from simulator.timeline import Span, Timeline

CollectiveCounts = dict[str, dict[str, dict[str, float]]]
_NOISY_CORES = 0.15
"""Foreign load above which times are not worth comparing [cores]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport:
    """What a rank hands to rank 0."""

    losses: tuple[float | None, ...]
    step_times_s: tuple[float, ...]
    peak_bytes: float
    cpu_s: float
    """CPU time during the timed steps [s]."""
    spans: tuple[Span, ...]
    memory: tuple[tuple[float, float], ...]
    breakdown_s: dict[str, float]
    gradients: dict[str, torch.Tensor]
    """Whole gradients of the first step, from one rank per stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """All reports, in rank order, and what belongs to the run as a whole."""

    reports: tuple[RankReport, ...]
    collectives: CollectiveCounts
    """Of rank 0, one step."""
    foreign_load_cores: float
    backend: str
    device: str


def judge(
    plan: Plan, settings: RunSettings, *, source: ModelSource, measured: Measured
) -> RunResult:
    """Compare a run with one process and put its result together."""
    shape, reports = settings.shape, measured.reports
    losses = _mean_losses(reports)
    notes = [*shape.notes, *_notes(plan, settings, measured)]
    reference_losses: tuple[float, ...] = ()
    comparison: Comparison | None = None
    if settings.check:
        slices = _slices(source, plan, shape)
        if slices > 1:
            notes.append(f"batch statistics are per slice; the reference runs {slices} slices")
        numerics = numerics_of(settings.precision, software=plan.software)
        reference = run_reference(source, settings, slices_per_step=slices, numerics=numerics)
        reference_losses = reference.losses
        gradients = {name: g for report in reports for name, g in report.gradients.items()}
        exact = None
        if numerics.is_mixed:
            exact = run_reference(source, settings, slices_per_step=slices, numerics=Numerics())
        comparison = compare_with_reference(losses, gradients, reference, exact=exact)
    times = tuple(max(step) for step in zip(*(r.step_times_s for r in reports), strict=True))
    peaks = tuple(report.peak_bytes for report in reports)
    return RunResult(
        strategy=plan.strategy, model=settings.model, axes=shape.axes,
        num_processes=shape.num_processes, backend=measured.backend, device=measured.device,
        global_batch_size=shape.global_batch_size, sequence_length=shape.sequence_length,
        num_microbatches=shape.num_microbatches, steps=settings.steps,
        losses=losses, reference_losses=reference_losses,
        max_loss_difference=comparison.max_loss_difference if comparison else None,
        max_gradient_difference=comparison.max_gradient_difference if comparison else None,
        worst_gradient=comparison.worst_gradient if comparison else None,
        loss_tolerance=comparison.loss_tolerance if comparison else LOSS_TOLERANCE,
        gradient_tolerance=comparison.gradient_tolerance if comparison else GRADIENT_TOLERANCE,
        passed=comparison.passed if comparison else None,
        measured_step_time_s=statistics.median(times[1:] or times), step_times_s=times,
        predicted_step_time_s=_prediction(plan, settings),
        peak_memory_bytes=max(peaks), peak_memory_bytes_per_rank=peaks,
        breakdown_s={key: statistics.fmean(r.breakdown_s.get(key, 0.0) for r in reports)
                     for key in BREAKDOWN_KEYS},
        collectives_issued=measured.collectives,
        foreign_load_cores=measured.foreign_load_cores, notes=tuple(notes),
        timeline=_timeline(reports), precision=settings.precision,
    )  # fmt: skip


def _timeline(reports: tuple[RankReport, ...]) -> Timeline:
    return Timeline(
        spans=tuple(span for report in reports for span in report.spans),
        num_ranks=len(reports),
        memory=tuple(report.memory for report in reports),
        origin="measured",
    )


def _mean_losses(reports: tuple[RankReport, ...]) -> tuple[float, ...]:
    """Average over the ranks that know a loss: those of the last stage, each its own samples."""
    steps = zip(*(report.losses for report in reports), strict=True)
    return tuple(statistics.fmean(x for x in step if x is not None) for step in steps)


def _slices(source: ModelSource, plan: Plan, shape: RunShape) -> int:
    """Return into how many parts the reference must cut the batch: 1 without batch statistics."""
    with torch.device("meta"):
        if not has_batch_statistics(source.build()):
            return 1
    splits_samples = plan.layouts and plan.layouts[0].model_input == "S0"
    tensor_slices = shape.size("tp") if splits_samples else 1
    return shape.size("dp") * shape.num_microbatches * tensor_slices


def _prediction(plan: Plan, settings: RunSettings) -> float | None:
    other_precision = settings.precision != plan.workload.precision
    if settings.scale_down > 1 or settings.shape.notes or other_precision:
        return None
    found = plan.prediction.get("step_time_s")
    return float(found) if isinstance(found, int | float) else None


def _notes(plan: Plan, settings: RunSettings, measured: Measured) -> list[str]:
    notes = []
    if settings.scale_down > 1:
        notes.append(
            f"{plan.model.source} scaled down by {settings.scale_down}; the plan's prediction is "
            "for the whole model and not comparable"
        )
    if plan.cluster.device_kind != measured.device and measured.device == "cpu":
        notes.append(f"planned for {plan.cluster.device}, run on this CPU: times do not compare")
    notes += precision_notes(
        settings.precision, planned=plan.workload.precision, software=plan.software
    )
    shape = settings.shape
    if shape.schedule == "1f1b" and shape.num_microbatches < shape.num_stages:
        notes.append("1f1b with fewer microbatches than stages ran in gpipe's order")
    if optimizer_that_runs(shape) != shape.optimizer:
        notes.append(f"optimizer {shape.optimizer} ran as {optimizer_that_runs(shape)}")
    if settings.check:
        notes.append("dropout is off, so that both runs compute the same function")
    if measured.foreign_load_cores > _NOISY_CORES:
        notes.append(
            f"other programs used {measured.foreign_load_cores:.1f} cores meanwhile: times are high"
        )
    return notes
