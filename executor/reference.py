"""The same training in one process, and how far a run is from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from executor.assemble import run_modes
from executor.model_parts import build_model
from executor.optimizer import ShardOptimizer
from executor.settings import RunSettings
from executor.training import rows_of
from planner.models.source import ModelSource

LOSS_TOLERANCE = 1e-4
"""Accepted difference of losses, relative to the loss [1]; sums in another order differ by some
1e-7 in fp32, and Adam carries that into the next steps."""
GRADIENT_TOLERANCE = 1e-3
"""Accepted difference of a gradient, relative to its largest entry [1]. A missing sum is off by a
factor, some 1e-1 and more."""
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


def run_reference(source: ModelSource, settings: RunSettings, *, slices_per_step: int) -> Reference:
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
    """
    shape = settings.shape
    model = build_model(source, seed=settings.seed).train()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = ShardOptimizer(
        shape.optimizer, list(named.values()), learning_rate=settings.learning_rate
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
            is_training = shape.mode == "train"
            with (
                run_modes(shape=shape, has_layout=False, check=True),
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
    losses: tuple[float, ...], gradients: Mapping[str, torch.Tensor], reference: Reference
) -> Comparison:
    """Judge a run; a gradient that is missing on one side counts as wholly wrong."""
    loss_gap = max((abs(a - b) for a, b in zip(losses, reference.losses, strict=True)), default=0.0)
    loss_limit = LOSS_TOLERANCE * max((abs(b) for b in reference.losses), default=1.0)
    passed = loss_gap <= loss_limit and all(math.isfinite(loss) for loss in losses)
    largest_gap, worst, worst_ratio = 0.0, None, 0.0
    floor = _GRADIENT_FLOOR * max(
        (float(g.abs().max()) for g in reference.gradients.values()), default=0.0
    )
    for name in sorted(gradients.keys() | reference.gradients.keys()):
        gap, scale = _gap(gradients.get(name), reference.gradients.get(name))
        ratio = gap / (GRADIENT_TOLERANCE * scale + floor) if gap else 0.0
        largest_gap = max(largest_gap, gap)
        if ratio > worst_ratio:
            worst, worst_ratio = name, ratio
    return Comparison(
        max_loss_difference=loss_gap,
        max_gradient_difference=largest_gap,
        worst_gradient=worst,
        passed=passed and worst_ratio <= 1.0,
    )


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
