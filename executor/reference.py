"""The same training in one process, and how far a run is from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from executor.assemble import run_modes
from executor.model_parts import build_model
from executor.optimizer import ShardOptimizer
from executor.optimizer_choice import optimizer_that_runs
from executor.precision import Numerics, cast_at_edges, lower_weights
from executor.settings import RunSettings
from executor.training import rows_of
from planner.models.source import ModelSource

LOSS_TOLERANCE = 1e-4
"""Accepted difference of losses, relative to the loss [1]; sums in another order differ by some
1e-7 in fp32, and Adam carries that into the next steps."""
GRADIENT_TOLERANCE = 1e-3
"""Accepted difference of a gradient, relative to its largest entry [1]. A missing sum is off by a
factor, some 1e-1 and more."""
ROUNDED_LOSS_TOLERANCE = 2.0**-8
"""The same in bf16, at least: one rounding of a number [1]; splits of a GPT differed by 6e-5."""
ROUNDING_TOLERANCE = 3.0
"""Accepted difference from one process in bf16, relative to how far bf16 takes that one from fp32:
of a gradient's norm, and of losses where that is more than one rounding [1]. Two runs that round
apart differ by up to twice that; splits differed by 1.6 times. A missing sum differs by 30 times
and more."""
_GRADIENT_FLOOR = 1e-6
"""Gradients that are zero but for rounding are judged beside the largest of the model [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Losses of each step and gradients of the first, in one process."""

    losses: tuple[float, ...]
    gradients: dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How far a run is from its reference."""

    max_loss_difference: float
    max_gradient_difference: float
    worst_gradient: str | None
    passed: bool
    loss_tolerance: float
    gradient_tolerance: float


def run_reference(
    source: ModelSource, settings: RunSettings, *, slices_per_step: int, numerics: Numerics
) -> Reference:
    """Train in this process with the run's seed and batches.

    Parameters
    ----------
    source : ModelSource
        The model that ran.
    settings : RunSettings
        Seed, steps, batch and optimizer.
    slices_per_step : int
        1 runs the global batch at once; models with batch statistics run as many equal slices as
        the run had, since statistics are per slice there by definition [1].
    numerics : Numerics
        In which it computes.
    """
    shape = settings.shape
    model = build_model(source, seed=settings.seed).train()
    is_training = shape.mode == "train"
    lower_weights(model.modules(), numerics, is_training=is_training, is_sharded=False)
    cast_at_edges(model, numerics, is_first=True, is_last=True)
    autocast = numerics.autocast_on(torch.device("cpu"))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = ShardOptimizer(
        optimizer_that_runs(shape), list(named.values()), learning_rate=settings.learning_rate
    )
    losses: list[float] = []
    gradients: dict[str, torch.Tensor] = {}
    for step in range(settings.steps):
        batch = source.make_batch(
            shape.global_batch_size, shape.sequence_length, settings.seed + step
        )
        total = 0.0
        for index in range(slices_per_step):
            part = rows_of(batch, index, slices_per_step)
            with (
                run_modes(shape=shape, has_layout=False, check=True, autocast=autocast),
                torch.set_grad_enabled(is_training),
            ):
                loss = source.loss(model(*part.inputs, **part.keywords), part.targets)
                if is_training:
                    (loss / slices_per_step).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / slices_per_step
        losses.append(total)
        if shape.mode == "train":
            if step == 0:
                gradients = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
            optimizer.step()
            optimizer.zero_grad()
    return Reference(losses=tuple(losses), gradients=gradients)


def has_batch_statistics(model: nn.Module) -> bool:
    """Return whether a model normalises over samples, so that a split changes its function."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())


def compare_with_reference(
    losses: tuple[float, ...],
    gradients: Mapping[str, torch.Tensor],
    reference: Reference,
    *,
    exact: Reference | None = None,
) -> Comparison:
    """Judge a run; a gradient that is missing on one side counts as wholly wrong.

    Parameters
    ----------
    losses, gradients : tuple, mapping
        Of the run.
    reference : Reference
        One process in the run's precision.
    exact : Reference, optional
        One process in fp32, where the run computes in bf16.
    """
    loss_tolerance = LOSS_TOLERANCE if exact is None else _rounded_loss_tolerance(reference, exact)
    loss_gap = max((abs(a - b) for a, b in zip(losses, reference.losses, strict=True)), default=0.0)
    loss_limit = loss_tolerance * max((abs(b) for b in reference.losses), default=1.0)
    passed = loss_gap <= loss_limit and all(math.isfinite(loss) for loss in losses)
    largest_gap, worst, worst_ratio = 0.0, None, 0.0
    floor = _GRADIENT_FLOOR * max(
        (float(g.abs().max()) for g in reference.gradients.values()), default=0.0
    )
    for name in sorted(gradients.keys() | reference.gradients.keys()):
        found, wanted = gradients.get(name), reference.gradients.get(name)
        gap, scale = _gap(found, wanted)
        largest_gap = max(largest_gap, gap)
        if exact is None or found is None or wanted is None or not math.isfinite(gap):
            ratio = gap / (GRADIENT_TOLERANCE * scale + floor) if gap else 0.0
        else:
            ratio = (
                _rounding_ratio(found, wanted, exact.gradients[name], floor=floor) if gap else 0.0
            )
        if ratio > worst_ratio:
            worst, worst_ratio = name, ratio
    return Comparison(
        max_loss_difference=loss_gap,
        max_gradient_difference=largest_gap,
        worst_gradient=worst,
        passed=passed and worst_ratio <= 1.0,
        loss_tolerance=loss_tolerance,
        gradient_tolerance=GRADIENT_TOLERANCE if exact is None else ROUNDING_TOLERANCE,
    )


def _rounded_loss_tolerance(reference: Reference, exact: Reference) -> float:
    """Return the accepted difference of losses in bf16, relative to the largest loss [1]."""
    pairs = zip(reference.losses, exact.losses, strict=True)
    rounding = max((abs(a - b) for a, b in pairs), default=0.0)
    largest = max((abs(loss) for loss in reference.losses), default=0.0) or 1.0
    return max(ROUNDED_LOSS_TOLERANCE, ROUNDING_TOLERANCE * rounding / largest)


def _rounding_ratio(
    found: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor, *, floor: float
) -> float:
    """Return a difference over what is accepted in bf16, both as norms over all entries [1]."""
    rounding = float((wanted - exact).norm())
    accepted = ROUNDING_TOLERANCE * rounding + floor * math.sqrt(wanted.numel())
    return float((found - wanted).norm()) / accepted


def _gap(found: torch.Tensor | None, wanted: torch.Tensor | None) -> tuple[float, float]:
    """Return the largest difference and the largest entry of the wanted gradient."""
    if found is None and wanted is None:
        return 0.0, 0.0
    if wanted is None or found is None:
        present = found if wanted is None else wanted
        return (float(present.abs().max()) if present is not None else 0.0), 0.0
    if found.shape != wanted.shape or not bool(torch.isfinite(found).all()):
        return float("inf"), float(wanted.abs().max())
    return float((found - wanted).abs().max()), float(wanted.abs().max())
