"""Whether intervals hold what they claim: each case judged without its own source."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.validation.outcome import Outcome
from planner.validation.residuals import COVERAGE, Residual, Spread, reached, spread_of

_DIGITS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One published step time against the interval of its prediction."""

    outcome: Outcome
    spread: Spread
    """Of the nearest residuals of other sources."""
    reach: float
    """Widening at which the interval just holds the published value [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How many published step times lie inside their interval."""

    name: str
    number: int
    inside: float
    """Share of cases inside [1]."""
    median_width: float
    """Upper over lower end of the middle interval [1]."""


def judge_intervals(
    outcomes: Iterable[Outcome], residuals: Sequence[Residual]
) -> tuple[Judged, ...]:
    """Return how wide the interval of each case must be; no source judges its own cases."""
    spreads: dict[tuple[object, str], Spread | None] = {}
    found = []
    for outcome in outcomes:
        ratio = outcome.log_residual
        if outcome.predicted is None or ratio is None:
            continue
        setting, source = outcome.predicted.setting, outcome.group.source
        if (setting, source) not in spreads:
            spreads[setting, source] = spread_of(residuals, setting, without_source=source)
        spread = spreads[setting, source]
        if spread is not None:
            reach = ratio / (spread.high if ratio > 0 else spread.low)
            found.append(Judged(outcome=outcome, spread=spread, reach=reach))
    return tuple(found)


def widening(judged: Sequence[Judged], *, without_source: str | None = None) -> float:
    """Return the factor on intervals with which they hold the claimed share of cases.

    Quantiles of a few sources fall short for the next source. The factor is the quantile of the
    reaches of cases whose own source was left out (conformal prediction with groups left out
    [1]_); a source weighs as the square root of its number of cases.

    References
    ----------
    .. [1] R. F. Barber, E. J. Candes, A. Ramdas, R. J. Tibshirani, "Predictive inference with the
       jackknife+", Annals of Statistics 49, 2021, section 1.4 (CV+), arXiv:1905.02928.
    """
    known = [one for one in judged if one.outcome.group.source != without_source]
    if not known:
        return 1.0
    counts = Counter(one.outcome.group.source for one in known)
    pairs = sorted((one.reach, counts[one.outcome.group.source] ** -0.5) for one in known)
    return round(reached(pairs, COVERAGE), _DIGITS)


def coverage_of(name: str, judged: Sequence[tuple[Judged, float]]) -> Coverage:
    """Return the share inside of at least one interval, each with its widening."""
    widths = sorted(math.exp((one.spread.high - one.spread.low) * factor) for one, factor in judged)
    return Coverage(
        name=name,
        number=len(judged),
        inside=sum(one.reach <= factor for one, factor in judged) / len(judged),
        median_width=widths[len(widths) // 2],
    )
