"""A whole validation: outcomes cut into the tables that are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.validation.outcome import Outcome
from planner.validation.summaries import (
    ErrorSummary,
    FitTable,
    SweepSummary,
    fit_table,
    memory_error,
    step_error,
    summarise,
    summarise_sweeps,
)

NUM_WORST = 10


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
    families: tuple[Row, ...]
    """Headline's cases by family; measured grids of strategies stand apart."""
    groups: tuple[Row, ...]
    incomplete: tuple[Row, ...]
    """Groups of cases whose source does not state every input."""
    calibrate: tuple[Row, ...]
    """Groups of cases that profiles may be fitted on."""
    sweeps: tuple[SweepSummary, ...]
    fit_table: FitTable
    worst: tuple[Outcome, ...]
    failures: tuple[Outcome, ...]


def results_of(outcomes: Sequence[Outcome]) -> Results:
    """Return the tables of a validation."""
    headline = [o for o in outcomes if o.is_headline]
    runs = [o for o in headline if not is_of_grid(o, headline)]
    judged = [o for o in headline if o.step_error is not None]
    return Results(
        outcomes=tuple(outcomes),
        overall=summarise(runs or headline, measure=step_error),
        memory=summarise(headline, measure=memory_error),
        families=_families(headline),
        groups=_rows(headline),
        incomplete=_rows([o for o in outcomes if not o.case.is_complete]),
        calibrate=_rows([o for o in outcomes if o.case.role == "calibrate"]),
        sweeps=summarise_sweeps(headline),
        fit_table=fit_table(headline),
        worst=tuple(sorted(judged, key=_badness, reverse=True)[:NUM_WORST]),
        failures=tuple(o for o in outcomes if o.failure),
    )


def _badness(outcome: Outcome) -> tuple[float, str]:
    return abs(outcome.step_error or 0.0), outcome.case.name


def is_of_grid(outcome: Outcome, outcomes: Sequence[Outcome]) -> bool:
    """Return whether all timed cases of the group are members of sweeps.

    Such a group is a measured grid of strategies and not a list of runs that someone cared for.
    """
    members = (o.case for o in outcomes if o.group.name == outcome.group.name)
    return all(case.sweep is not None for case in members if case.step_time_s is not None)


def _families(outcomes: Sequence[Outcome]) -> tuple[Row, ...]:
    named: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grid = ", grids" if is_of_grid(outcome, outcomes) else ""
        named.setdefault(f"{outcome.group.family}{grid}", []).append(outcome)
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
