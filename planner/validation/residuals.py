"""How far published step times are from predictions near a setting; where intervals come from."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from planner.validation.outcome import Outcome
from planner.validation.settings import Setting

COVERAGE = 0.8
"""Share of published step times that an interval is made to hold [1]."""
MIN_STEPS, MIN_GROUPS = 8, 3
"""Published steps, and sources of them, below which the next wider family is taken [1]."""
SCALES = (8, 128)
"""Numbers of devices between which runs resemble each other: a node, some nodes, many [1]."""
LEAST_OFF = 0.01
"""Least half-width of an interval, and the least by which it leans over the prediction [1]."""
_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual:
    """One published step time beside its prediction."""

    source: str
    """Where it was published: steps of one source err together."""
    setting: Setting
    log_ratio: float
    """Natural logarithm of published over predicted [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Quantiles of the residuals nearest to a setting."""

    low: float
    """Logarithm of the lower end over the prediction, below 0 [1]."""
    high: float
    """Logarithm of the upper end over the prediction, above 0 [1]."""
    basis: str
    """Which residuals, in words."""


def residuals_of(outcomes: Iterable[Outcome]) -> tuple[Residual, ...]:
    """Return residuals of the headline; fitted and incomplete cases would flatter or blur."""
    found = []
    for outcome in outcomes:
        ratio = outcome.log_residual
        if outcome.is_headline and outcome.predicted is not None and ratio is not None:
            found.append(
                Residual(
                    source=outcome.group.source,
                    setting=outcome.predicted.setting,
                    log_ratio=round(ratio, _DIGITS),
                )
            )
    return tuple(found)


def spread_of(
    residuals: Iterable[Residual], setting: Setting, *, without_source: str | None = None
) -> Spread | None:
    """Return the spread of the nearest residuals, None where no device of the kind has any.

    Parameters
    ----------
    residuals : iterable of Residual
        Published steps beside predictions.
    setting : Setting
        What is predicted.
    without_source : str, optional
        A source that is left out: a case is not judged by residuals of its own source.
    """
    known = [
        r
        for r in residuals
        if r.source != without_source and r.setting.device_kind == setting.device_kind
    ]
    for is_near, words in _families(setting):
        near = [r for r in known if is_near(r.setting)]
        if len(near) >= MIN_STEPS and len({r.source for r in near}) >= MIN_GROUPS:
            return _spread(near, words)
    return _spread(known, f"any {setting.device_kind.upper()}") if known else None


def _families(setting: Setting) -> list[tuple[Callable[[Setting], bool], str]]:
    """Return families around a setting, the nearest first, each with its words."""
    model, software = setting.model_class, setting.software
    generation, scale = setting.generation, scale_of(setting.num_devices)
    here = f"{model}s on {generation}"
    return [
        (
            lambda s: (
                (s.model_class, s.generation, s.software) == (model, generation, software)
                and scale_of(s.num_devices) == scale
            ),
            f"{here} with {software}",
        ),
        (
            lambda s: (s.model_class, s.generation, s.software) == (model, generation, software),
            f"{here} with {software}",
        ),
        (lambda s: (s.model_class, s.generation) == (model, generation), here),
        (lambda s: s.model_class == model, f"{model}s on any {setting.device_kind.upper()}"),
    ]


def scale_of(num_devices: int) -> int:
    """Return the number of the scale that a number of devices is of.

    Examples
    --------
    >>> [scale_of(count) for count in (1, 8, 64, 4096)]
    [0, 0, 1, 2]
    """
    return sum(num_devices > limit for limit in SCALES)


def _spread(near: Sequence[Residual], words: str) -> Spread:
    low, high = weighted_quantiles(near)
    counts = [r.setting.num_devices for r in near]
    devices = f"{min(counts):,}" if min(counts) == max(counts) else _range(counts)
    sources = len({r.source for r in near})
    return Spread(
        low=min(low, -LEAST_OFF),
        high=max(high, LEAST_OFF),
        basis=f"{len(near)} published steps of {words}, {devices} devices, "
        f"from {sources} source{'s' if sources > 1 else ''}",
    )


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts):,}\N{EN DASH}{max(counts):,}"


def weighted_quantiles(near: Sequence[Residual]) -> tuple[float, float]:
    """Return the residuals that leave a tenth of the weight outside on either side.

    A source weighs as the square root of its number of steps: its steps share their set-up and err
    together.
    """
    counts: dict[str, int] = {}
    for residual in near:
        counts[residual.source] = counts.get(residual.source, 0) + 1
    pairs = sorted((r.log_ratio, 1.0 / math.sqrt(counts[r.source])) for r in near)
    outside = (1.0 - COVERAGE) / 2.0
    return reached(pairs, outside), reached(pairs[::-1], outside)


def reached(pairs: Sequence[tuple[float, float]], share: float) -> float:
    """Return the first value up to which more than a share of the weight is passed.

    Examples
    --------
    >>> reached([(1.0, 1.0), (2.0, 1.0), (3.0, 2.0)], 0.5)
    3.0
    """
    passed, limit = 0.0, share * sum(weight for _, weight in pairs)
    for value, weight in pairs:
        passed += weight
        if passed > limit:
            return value
    return pairs[-1][0]
