"""Replaying a candidate on the engine; long pipelines by their steady state."""

from dataclasses import replace

from planner.evaluation import Evaluation
from planner.lowering import lower
from simulator.analysis import makespan_s
from simulator.engine import simulate
from simulator.timeline import Timeline

MAX_ACTIONS = 6_000
"""Forwards and backwards beyond which a folded replay is extrapolated [1]."""
STEADY_FACTOR = 2
"""Microbatches per pipeline rank after which every schedule is steady [1]."""


def replay(evaluation: Evaluation, *, detail: str = "folded") -> Timeline:
    """Return the whole step on the engine."""
    return simulate(lower(evaluation.costs, detail=detail))


def replay_step_time(evaluation: Evaluation) -> float:
    """Return the engine's step time, jitter included [s].

    A pipeline with more than :data:`MAX_ACTIONS` actions is replayed twice with fewer microbatches;
    in the steady state each further one adds the same time, which tests hold against full replays.
    """
    full = evaluation.num_microbatches
    stages = evaluation.stages.num_stages
    if 2 * full * stages <= MAX_ACTIONS:
        return makespan_s(replay(evaluation)) * evaluation.straggler_factor
    period = evaluation.mesh.pp
    first = STEADY_FACTOR * period
    second = first + period
    if second >= full:
        return makespan_s(replay(evaluation)) * evaluation.straggler_factor
    short, longer = (_with_microbatches(evaluation, count) for count in (first, second))
    slope = (longer - short) / (second - first)
    return (longer + slope * (full - second)) * evaluation.straggler_factor


def _with_microbatches(evaluation: Evaluation, count: int) -> float:
    return makespan_s(simulate(lower(replace(evaluation.costs, num_microbatches=count))))


def shown_timeline(evaluation: Evaluation, *, detail: str = "folded") -> tuple[Timeline, int]:
    """Return a timeline to draw and the number of microbatches it shows."""
    full = evaluation.num_microbatches
    if detail == "full" or 2 * full * evaluation.stages.num_stages <= MAX_ACTIONS:
        return replay(evaluation, detail=detail), full
    shown = min(full, STEADY_FACTOR * evaluation.mesh.pp)
    costs = replace(evaluation.costs, num_microbatches=shown)
    return simulate(lower(costs, detail=detail)), shown
