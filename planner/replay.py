"""Replaying a candidate on the engine; long pipelines by their steady state."""

from dataclasses import replace
from multiprocessing import get_context

from planner.evaluation import Evaluation
from planner.lowering import lower
from planner.processes import num_workers
from planner.step_costs import merged
from simulator.analysis import makespan_s
from simulator.engine import simulate
from simulator.timeline import Timeline

MAX_ACTIONS = 6_000
"""Forwards and backwards beyond which a folded replay is extrapolated [1]."""
_WARM_ROUNDS = {"interleaved": 2, "zero_bubble": 2, "zbv": 2}
SHOWN_FACTOR = 2
"""Microbatches per pipeline rank that a drawn timeline shows of a long pipeline [1]."""


def replay(evaluation: Evaluation, *, detail: str = "folded") -> Timeline:
    """Return the whole step on the engine."""
    return simulate(lower(evaluation.costs, detail=detail))


def replay_step_time(evaluation: Evaluation) -> float:
    """Return the engine's step time, jitter included [s].

    A pipeline with more than :data:`MAX_ACTIONS` actions is replayed twice with fewer microbatches;
    in the steady state each further one adds the same time, which tests hold against full replays.
    1F1B is steady after as many microbatches as ranks; Megatron's interleaving warms up differently
    for exactly that many, so it starts from twice as many, as do schedules that split the backward
    pass: a V is full with twice as many.
    """
    full = evaluation.num_microbatches
    stages = evaluation.stages.num_stages
    if 2 * full * stages <= MAX_ACTIONS:
        return _with_microbatches(evaluation, full) * evaluation.straggler_factor
    warm = _WARM_ROUNDS.get(evaluation.strategy.schedule, 1)
    first = warm * evaluation.mesh.pp
    second = first + evaluation.mesh.pp
    if second >= full:
        return _with_microbatches(evaluation, full) * evaluation.straggler_factor
    short, longer = (_with_microbatches(evaluation, count) for count in (first, second))
    slope = (longer - short) / (second - first)
    return (longer + slope * (full - second)) * evaluation.straggler_factor


def replay_step_times(evaluations: list[Evaluation]) -> list[float]:
    """Return :func:`replay_step_time` of several candidates, long ones on several processes [s]."""
    actions = sum(2 * 3 * e.mesh.pp * e.stages.num_stages for e in evaluations)
    workers = num_workers(len(evaluations))
    if workers == 1 or actions < MAX_ACTIONS:
        return [replay_step_time(evaluation) for evaluation in evaluations]
    with get_context("fork").Pool(workers) as pool:
        return pool.map(replay_step_time, evaluations, chunksize=1)


def _with_microbatches(evaluation: Evaluation, count: int) -> float:
    costs = replace(merged(evaluation.costs), num_microbatches=count)
    return makespan_s(simulate(lower(costs)))


def shown_timeline(evaluation: Evaluation, *, detail: str = "folded") -> tuple[Timeline, int]:
    """Return a timeline to draw and the number of microbatches it shows."""
    full = evaluation.num_microbatches
    if detail == "full" or 2 * full * evaluation.stages.num_stages <= MAX_ACTIONS:
        return replay(evaluation, detail=detail), full
    shown = min(full, SHOWN_FACTOR * evaluation.mesh.pp)
    costs = replace(evaluation.costs, num_microbatches=shown)
    return simulate(lower(costs, detail=detail)), shown
