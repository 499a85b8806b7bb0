"""Whether intervals hold what they claim: each case judged without its own source."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.validation.outcome import Outcome
from planner.validation.residuals import Residual, Spread, spread_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One published step time against the interval of its prediction."""

    outcome: Outcome
    is_inside: bool
    width: float
    """Upper over lower end [1]."""
    basis: str


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
    """Return which published step times lie inside; no source judges its own cases."""
    spreads: dict[tuple[object, str], Spread | None] = {}
    found = []
    for outcome in outcomes:
        ratio = outcome.log_residual
        if outcome.predicted is None or ratio is None:
            continue
        setting, group = outcome.predicted.setting, outcome.group.name
        if (setting, group) not in spreads:
            spreads[setting, group] = spread_of(residuals, setting, without_group=group)
        spread = spreads[setting, group]
        if spread is not None:
            found.append(
                Judged(
                    outcome=outcome,
                    is_inside=spread.low <= ratio <= spread.high,
                    width=math.exp(spread.high - spread.low),
                    basis=spread.basis,
                )
            )
    return tuple(found)


def coverage_of(name: str, judged: Sequence[Judged]) -> Coverage:
    """Return the share inside of at least one judged interval."""
    widths = sorted(one.width for one in judged)
    return Coverage(
        name=name,
        number=len(judged),
        inside=sum(one.is_inside for one in judged) / len(judged),
        median_width=widths[len(widths) // 2],
    )
