"""Errors of many cases in a few numbers, per group, family and sweep."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from planner.validation.outcome import Outcome

SHARES = (0.05, 0.10, 0.20)
"""Errors within which the share of cases is told [1]."""
GOOD_REGRET = 0.03
"""A pick this close to the best measured is as good as the best: steps vary as much [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorSummary:
    """Relative errors of several cases."""

    number: int
    mean_absolute_error: float
    bias: float
    """Mean signed error."""
    worst: float
    """Error of the worst case, signed."""
    worst_name: str
    within: tuple[float, ...]
    """Share of cases within each of :data:`SHARES`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSummary:
    """One sweep: measured runs that differ in strategy."""

    group: str
    sweep: str
    number: int
    kendall_tau: float | None
    """Rank correlation of predicted and measured times; None below three cases."""
    regret: float
    """Measured time of the predicted fastest over the measured best, minus 1; infinite where the
    pick ran out of memory."""
    pick: str
    best: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FitTable:
    """Whether runs fit in memory, predicted against measured."""

    true_fits: int
    false_fits: int
    """Predicted to fit, ran out of memory."""
    false_overflows: int
    """Predicted to overflow, ran."""
    true_overflows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfits:
    """Cases of a group whose fit is predicted wrongly."""

    group: str
    ran: bool
    number: int
    least_used: float
    """Smallest predicted peak over device memory [1]."""
    most_used: float


Measure = Callable[[Outcome], float | None]


def step_error(outcome: Outcome) -> float | None:
    """Return the error of the step time of a case."""
    return outcome.step_error


def memory_error(outcome: Outcome) -> float | None:
    """Return the error of the peak memory of a case."""
    return outcome.memory_error


def summarise(outcomes: Iterable[Outcome], *, measure: Measure = step_error) -> ErrorSummary | None:
    """Return the errors of all cases that have one, None where none has."""
    found = [
        (error, outcome.case.name)
        for outcome in outcomes
        if (error := measure(outcome)) is not None
    ]
    if not found:
        return None
    errors = [error for error, _ in found]
    worst, name = max(found, key=lambda pair: (abs(pair[0]), pair[1]))
    return ErrorSummary(
        number=len(errors),
        mean_absolute_error=sum(map(abs, errors)) / len(errors),
        bias=sum(errors) / len(errors),
        worst=worst,
        worst_name=name,
        within=tuple(sum(abs(e) <= share for e in errors) / len(errors) for share in SHARES),
    )


def kendall_tau(predicted: Sequence[float], measured: Sequence[float]) -> float:
    r"""Return Kendall's rank correlation :math:`\tau_b`.

    Pairs in the same order minus pairs in opposite order, over the geometric mean of the numbers of
    pairs that are not tied in each.

    References
    ----------
    .. [1] M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33, 1945.

    Examples
    --------
    >>> kendall_tau([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0])
    0.6666
    >>> kendall_tau([1.0, 1.0, 2.0], [3.0, 4.0, 5.0])
    0.8164
    """
    balance = untied_predicted = untied_measured = 0
    pairs = zip(predicted, measured, strict=True)
    for (p, m), (q, n) in combinations(pairs, 2):
        first, second = (p > q) - (p < q), (m > n) - (m < n)
        balance += first * second
        untied_predicted += first != 0
        untied_measured += second != 0
    scale = math.sqrt(untied_predicted * untied_measured)
    return balance / scale if scale else 0.0


def summarise_sweeps(outcomes: Iterable[Outcome]) -> tuple[SweepSummary, ...]:
    """Return the sweeps with at least two measured cases, by group and name."""
    sweeps: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.case.sweep is not None:
            sweeps.setdefault((outcome.case.group, outcome.case.sweep), []).append(outcome)
    found = (_sweep(key, members) for key, members in sorted(sweeps.items()))
    return tuple(summary for summary in found if summary is not None)


def _sweep(key: tuple[str, str], members: list[Outcome]) -> SweepSummary | None:
    """Return a sweep; what cannot be predicted is never picked, but may be the best measured."""
    measured_ones = [outcome for outcome in members if outcome.case.step_time_s is not None]
    timed = [outcome for outcome in measured_ones if outcome.predicted is not None]
    if len(timed) < 2:  # noqa: PLR2004
        return None
    predicted = [_predicted_s(outcome) for outcome in timed]
    measured = [_measured_s(outcome) for outcome in timed]
    able = [o for o in members if o.predicted is not None and o.predicted.fits] or timed
    pick = min(able, key=lambda o: (_predicted_s(o), o.case.id))
    best = min(measured_ones, key=lambda o: (_measured_s(o), o.case.id))
    return SweepSummary(
        group=key[0],
        sweep=key[1],
        number=len(timed),
        kendall_tau=kendall_tau(predicted, measured) if len(timed) > 2 else None,  # noqa: PLR2004
        regret=_measured_s(pick) / _measured_s(best) - 1.0,
        pick=pick.case.id,
        best=best.case.id,
    )


def _predicted_s(outcome: Outcome) -> float:
    return math.inf if outcome.predicted is None else outcome.predicted.step_time_s


def _measured_s(outcome: Outcome) -> float:
    """Return the measured step time; one that ran out of memory never ends."""
    return math.inf if outcome.case.step_time_s is None else outcome.case.step_time_s


def median(values: Sequence[float]) -> float:
    """Return the median of at least one value."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2.0


def fit_table(outcomes: Iterable[Outcome]) -> FitTable:
    """Return how often a predicted fit agrees with the measured one."""
    pairs = [
        (outcome.predicted.fits, outcome.measured_fits)
        for outcome in outcomes
        if outcome.predicted is not None
    ]
    return FitTable(
        true_fits=pairs.count((True, True)),
        false_fits=pairs.count((True, False)),
        false_overflows=pairs.count((False, True)),
        true_overflows=pairs.count((False, False)),
    )


def misfits(outcomes: Iterable[Outcome]) -> tuple[Misfits, ...]:
    """Return wrongly predicted fits by group, those that ran first."""
    used: dict[tuple[bool, str], list[float]] = {}
    for outcome in outcomes:
        predicted, ran = outcome.predicted, outcome.measured_fits
        if predicted is not None and predicted.fits != ran:
            share = predicted.peak_bytes / predicted.capacity_bytes
            used.setdefault((not ran, outcome.case.group), []).append(share)
    return tuple(
        Misfits(
            group=group,
            ran=not ran_out,
            number=len(shares),
            least_used=min(shares),
            most_used=max(shares),
        )
        for (ran_out, group), shares in sorted(used.items())
    )
