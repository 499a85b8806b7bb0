"""A whole validation: outcomes cut into the tables that are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.validation.coverage import (
    Coverage,
    Judged,
    coverage_of,
    judge_intervals,
    widening,
)
from planner.validation.outcome import Outcome
from planner.validation.residual_file import ResidualTable
from planner.validation.residuals import residuals_of
from planner.validation.summaries import (
    ErrorSummary,
    FitTable,
    Misfits,
    SweepSummary,
    fit_table,
    memory_error,
    misfits,
    step_error,
    summarise,
    summarise_sweeps,
)

NUM_WORST = 10
TOO_LOW = -0.02
"""Error of a predicted peak below which it is silently low [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of a summary table."""

    name: str
    steps: ErrorSummary | None
    memory: ErrorSummary | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Outcomes and what follows from them."""

    outcomes: tuple[Outcome, ...]
    overall: ErrorSummary | None
    """Step times of the headline's cases."""
    memory: ErrorSummary | None
    grids: frozenset[str]
    """Groups that are measured grids of strategies."""
    families: tuple[Row, ...]
    """Headline's cases by family; measured grids of strategies stand apart."""
    groups: tuple[Row, ...]
    incomplete: tuple[Row, ...]
    """Groups of cases whose source does not state every input."""
    calibrate: tuple[Row, ...]
    """Groups of cases that profiles may be fitted on."""
    sweeps: tuple[SweepSummary, ...]
    incomplete_sweeps: tuple[SweepSummary, ...]
    """Ranking within a source does not need all that it leaves out."""
    fit_table: FitTable
    incomplete_fit_table: FitTable
    misfits: tuple[Misfits, ...]
    memory_too_low: int
    """Peaks predicted below :data:`TOO_LOW`: the expensive error."""
    coverage: tuple[Coverage, ...]
    worst: tuple[Outcome, ...]
    known: tuple[Outcome, ...]
    """Outside tolerance with a written cause."""
    failures: tuple[Outcome, ...]


def results_of(outcomes: Sequence[Outcome], *, shipped: ResidualTable | None = None) -> Results:
    """Return the tables of a validation.

    Intervals are judged by the residuals of these outcomes where they are all cases, else by the
    shipped ones; either way without those of a case's own source.
    """
    headline = [o for o in outcomes if o.is_headline]
    grids = grid_groups(headline)
    runs = [o for o in headline if o.group.name not in grids]
    judged = [o for o in headline if o.step_error is not None]
    return Results(
        outcomes=tuple(outcomes),
        overall=summarise(runs or headline, measure=step_error),
        memory=summarise(headline, measure=memory_error),
        grids=grids,
        families=_families(headline, grids),
        groups=_rows(headline),
        incomplete=_rows([o for o in outcomes if not o.case.is_complete]),
        calibrate=_rows([o for o in outcomes if o.case.role == "calibrate"]),
        sweeps=summarise_sweeps(headline),
        incomplete_sweeps=summarise_sweeps(o for o in outcomes if not o.case.is_complete),
        fit_table=fit_table(headline),
        incomplete_fit_table=fit_table([o for o in outcomes if not o.case.is_complete]),
        misfits=misfits(headline),
        memory_too_low=sum((o.memory_error or 0.0) < TOO_LOW for o in headline),
        coverage=_coverage(_judged(headline, shipped), grids),
        worst=tuple(sorted(judged, key=_badness, reverse=True)[:NUM_WORST]),
        known=tuple(o for o in outcomes if o.is_known),
        failures=tuple(o for o in outcomes if o.failure),
    )


def _badness(outcome: Outcome) -> tuple[float, str]:
    """Return how many times too fast or too slow a prediction is, as a logarithm."""
    return abs(outcome.log_residual or 0.0), outcome.case.name


def grid_groups(outcomes: Sequence[Outcome]) -> frozenset[str]:
    """Return names of groups whose timed cases are all members of sweeps.

    Such a group is a measured grid of strategies and not a list of runs that someone cared for.
    """
    timed = [o.case for o in outcomes if o.case.step_time_s is not None]
    return frozenset(case.group for case in timed) - {
        case.group for case in timed if case.sweep is None
    }


def _judged(
    headline: Sequence[Outcome], shipped: ResidualTable | None
) -> list[tuple[Judged, float]]:
    """Return cases against their intervals, with the factor by which those are widened."""
    if shipped is not None:
        return [(one, shipped.widening) for one in judge_intervals(headline, shipped.residuals)]
    judged = judge_intervals(headline, residuals_of(headline))
    sources = {one.outcome.group.source for one in judged}
    factors = {source: widening(judged, without_source=source) for source in sources}
    return [(one, factors[one.outcome.group.source]) for one in judged]


def residual_table(outcomes: Sequence[Outcome]) -> ResidualTable:
    """Return the residuals of a whole validation with their widening, to be shipped."""
    residuals = residuals_of(outcomes)
    headline = [outcome for outcome in outcomes if outcome.is_headline]
    return ResidualTable(
        residuals=residuals, widening=widening(judge_intervals(headline, residuals))
    )


def _coverage(
    judged: Sequence[tuple[Judged, float]], grids: frozenset[str]
) -> tuple[Coverage, ...]:
    """Return coverage over all cases, outside grids, and by family."""
    named: dict[str, list[tuple[Judged, float]]] = {}
    for pair in judged:
        outcome = pair[0].outcome
        is_grid = outcome.group.name in grids
        named.setdefault("all cases", []).append(pair)
        named.setdefault("all but grids", []).extend([] if is_grid else [pair])
        named.setdefault(family_name(outcome, grids), []).append(pair)
    return tuple(coverage_of(name, members) for name, members in named.items() if members)


def family_name(outcome: Outcome, grids: frozenset[str]) -> str:
    """Return the family of a case; grids are told apart."""
    family = outcome.group.family
    return f"{family}, grids" if outcome.group.name in grids else family


def _families(outcomes: Sequence[Outcome], grids: frozenset[str]) -> tuple[Row, ...]:
    named: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        named.setdefault(family_name(outcome, grids), []).append(outcome)
    return tuple(_row(name, members) for name, members in sorted(named.items()))


def _rows(outcomes: Sequence[Outcome]) -> tuple[Row, ...]:
    named: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        named.setdefault(outcome.group.name, []).append(outcome)
    return tuple(_row(name, members) for name, members in sorted(named.items()))


def _row(name: str, members: Sequence[Outcome]) -> Row:
    return Row(
        name=name,
        steps=summarise(members, measure=step_error),
        memory=summarise(members, measure=memory_error),
    )
