"""What the validation is to reach, and what it reaches."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.validation.markdown import percent, signed
from planner.validation.outcome import Outcome
from planner.validation.results import Results
from planner.validation.summaries import (
    GOOD_REGRET,
    Measure,
    SweepSummary,
    median,
    memory_error,
    step_error,
    summarise,
)

GOOD_TAU = 0.85
"""Rank correlation of a sweep that a planner can rely on [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """One aim with the measured value."""

    subject: str
    number: int
    aim: str
    reached: str
    is_met: bool
    clocked: str = ""
    """What a clock showed; it differs from run to run, so the page leaves it out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Limits:
    mean: float
    """Largest mean absolute error [1]."""
    bias: float | None = None
    worst: float | None = None
    lowest: float | None = None
    """Least error of any case, signed [1]."""


_KORTHIKANTI, _TABLE_1, _TABLE_2 = "korthikanti22", "sc21-table1", "sc21-table2"
_MILLISECOND = 1e-3
_CANDIDATE_S = 1e-3
"""Most time that the closed form may take for a candidate [s]."""
_SWEEPS = (("sweep-a100-single", "one node", 0.09), ("sweep-a100-multi", "several nodes", 0.12))
_GOOD_SHARE = 0.9
_COVERAGE = (0.75, 0.85)


def aims(results: Results, *, candidate_s: float | None = None) -> tuple[Aim, ...]:
    """Return the aims on which there are cases.

    Parameters
    ----------
    results : Results
        A validation.
    candidate_s : float, optional
        Measured time of the closed form for one candidate; its aim is left out without it [s].
    """
    training = [o for o in results.outcomes if o.is_headline and o.group.family != "fpga"]
    runs = [o for o in training if o.group.name not in results.grids]
    on_tpus = [o for o in runs if o.group.family == "tpu"]
    level = _Limits(mean=0.08, bias=0.03)
    found: list[Aim | None] = [
        *_papers(results),
        _errors("all complete training steps, sweep grids excluded", runs, level),
        _errors("all complete training steps, sweep grids included", training, level),
        _errors("steps on TPUs", on_tpus, _Limits(mean=0.10)),
        *(
            _errors(f"A100 sweeps, {words}", _members(results, name), _Limits(mean=limit))
            for name, words, limit in _SWEEPS
        ),
        *_ranks(results.sweeps),
        _errors(
            "peak memory of complete cases", [o for o in results.outcomes if o.is_headline],
            _Limits(mean=0.03, lowest=-0.02), measure=memory_error,
        ),
        _covered(results),
        _speed(candidate_s),
    ]  # fmt: skip
    return tuple(aim for aim in found if aim is not None)


def _papers(results: Results) -> tuple[Aim | None, ...]:
    """Return the aims on Megatron's papers.

    The rows of SC'21 table 2 that ran Megatron's pipeline and tensor parallelism leave out virtual
    stages, which makes them incomplete; those of ZeRO-3 state everything and are told apart.
    """
    of_papers = _Limits(mean=0.04, worst=0.09)
    korthikanti = _members(results, _KORTHIKANTI)
    incomplete = [o for o in results.outcomes if not o.case.is_complete]
    ptd, table_1 = (
        [o for o in incomplete if o.group.name == name] for name in (_TABLE_2, _TABLE_1)
    )
    return (
        _errors("Korthikanti et al. table 5", korthikanti, of_papers),
        _errors(
            "the same and SC'21 table 2, Megatron's rows with the best virtual stages",
            [*korthikanti, *ptd], of_papers,
        ),
        _errors("SC'21 table 2, ZeRO-3's rows", _members(results, _TABLE_2), of_papers),
        _errors(
            "SC'21 table 1, with the best microbatch and virtual stages",
            table_1, of_papers,
        ),
    )  # fmt: skip


def _speed(candidate_s: float | None) -> Aim | None:
    if candidate_s is None:
        return None
    is_met = candidate_s < _CANDIDATE_S
    most = f"{_CANDIDATE_S / _MILLISECOND:g} ms"
    return Aim(
        subject="closed form for one candidate, prices known", number=1, aim=f"< {most}",
        reached=f"{'<' if is_met else '≥'} {most}", is_met=is_met,
        clocked=f"{candidate_s / _MILLISECOND:.2f} ms",
    )  # fmt: skip


def _members(results: Results, group: str) -> list[Outcome]:
    return [o for o in results.outcomes if o.is_headline and o.group.name == group]


def _errors(
    subject: str, outcomes: Sequence[Outcome], limits: _Limits, *, measure: Measure = step_error
) -> Aim | None:
    found = summarise(outcomes, measure=measure)
    if found is None:
        return None
    aim, reached = (
        [f"mean ≤ {percent(limits.mean)}"],
        [f"mean {percent(found.mean_absolute_error)}"],
    )
    is_met = found.mean_absolute_error <= limits.mean
    if limits.bias is not None:
        aim.append(f"bias within ±{percent(limits.bias)}")
        reached.append(f"bias {signed(found.bias)}")
        is_met = is_met and abs(found.bias) <= limits.bias
    if limits.worst is not None:
        aim.append(f"worst ≤ {percent(limits.worst)}")
        reached.append(f"worst {signed(found.worst)}")
        is_met = is_met and abs(found.worst) <= limits.worst
    if limits.lowest is not None:
        lowest = min(error for o in outcomes if (error := measure(o)) is not None)
        aim.append(f"none below {signed(limits.lowest)}")
        reached.append(f"lowest {signed(lowest)}")
        is_met = is_met and lowest >= limits.lowest
    return Aim(
        subject=subject, number=found.number, aim=", ".join(aim), reached=", ".join(reached),
        is_met=is_met,
    )  # fmt: skip


def _ranks(sweeps: Sequence[SweepSummary]) -> list[Aim]:
    taus = [sweep.kendall_tau for sweep in sweeps if sweep.kendall_tau is not None]
    if not taus:
        return []
    good = sum(sweep.regret <= GOOD_REGRET for sweep in sweeps) / len(sweeps)
    return [
        Aim(
            subject="order within sweeps", number=len(taus), aim=f"median τ ≥ {GOOD_TAU}",
            reached=f"{median(taus):.2f}", is_met=median(taus) >= GOOD_TAU,
        ),
        Aim(
            subject=f"sweeps whose pick is within {GOOD_REGRET:.0%} of the best",
            number=len(sweeps), aim=f"≥ {_GOOD_SHARE:.0%}", reached=f"{good:.0%}",
            is_met=good >= _GOOD_SHARE,
        ),
    ]  # fmt: skip


def _covered(results: Results) -> Aim | None:
    if not results.coverage:
        return None
    overall = results.coverage[0]
    return Aim(
        subject="published steps inside the 80 % interval", number=overall.number,
        aim="about 80 %", reached=f"{overall.inside:.0%}",
        is_met=_COVERAGE[0] <= overall.inside <= _COVERAGE[1],
    )  # fmt: skip
