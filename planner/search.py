"""Enumerate, reject with reasons, score by the closed form, replay the finalists, rank."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from planner.baselines import GIB, Baseline, find_baselines
from planner.errors import NoFeasiblePlanError
from planner.evaluation import Evaluation, evaluate
from planner.problem import PriceBook, Problem
from planner.replay import replay_step_times
from planner.scoring import Progress, Tally, score_all
from planner.space import divisors
from planner.strategy import Strategy

Objective = Literal["time", "cost", "devices"]
NUM_FINALISTS = 8
SMALL_CLUSTER = 64
"""Devices up to which a second search on fewer of them is made [1]."""
CLASS_MARGIN = 1.05
"""The best two of every class within this factor of the leader are replayed too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """A candidate with its final step time."""

    evaluation: Evaluation
    step_time_s: float
    """By the engine where ``replayed``, else by the closed form [s]."""
    replayed: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResult:
    """What a search found."""

    book: PriceBook
    best: Ranked
    ranked: tuple[Ranked, ...]
    """Feasible candidates, best first, one per distinct program."""
    baselines: tuple[Baseline, ...]
    num_candidates: int
    rejected: dict[str, int]
    search_time_s: float
    objective: Objective


def search(
    problem: Problem,
    *,
    fixed: dict[str, Any] | None = None,
    objective: Objective = "time",
    progress: Progress | None = None,
) -> SearchResult:
    """Return the best plan's ingredients, the ranking and the baselines.

    Parameters
    ----------
    problem : Problem
        Model, workload, cluster and software.
    fixed : dict, optional
        Fields of :class:`planner.strategy.Strategy` that the user fixes.
    objective : str
        ``time`` (shortest step on the whole cluster), ``cost`` (cheapest step) or ``devices``
        (fewest devices on which it fits).
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Raises
    ------
    NoFeasiblePlanError
        If every candidate is rejected; the message counts reasons and names the nearest.
    """
    started = time.perf_counter()
    fixed = fixed or {}
    book = PriceBook(problem=problem)
    tally = Tally()
    for num_devices in _device_counts(problem, objective=objective, fixed=fixed):
        score_all(book, tally, num_devices=num_devices, fixed=fixed, progress=progress)
        if tally.fitting and objective != "cost":
            break
    if objective == "time" and not fixed:
        fewer = _dividing_devices(problem)
        if fewer is not None:
            score_all(book, tally, num_devices=fewer, fixed=fixed, progress=progress)
    if not tally.fitting:
        raise NoFeasiblePlanError(_nothing_fits(book, tally))
    ranked = _rank(tally.fitting, objective=objective, progress=progress)
    baselines = find_baselines(book, num_devices=ranked[0].evaluation.strategy.num_devices)
    ranked = _with_baselines(ranked, baselines, objective=objective, fixed=fixed)
    return SearchResult(
        book=book,
        best=ranked[0],
        ranked=tuple(ranked),
        baselines=baselines,
        num_candidates=tally.num_candidates,
        rejected=dict(sorted(tally.rejected.items())),
        search_time_s=time.perf_counter() - started,
        objective=objective,
    )


def _dividing_devices(problem: Problem) -> int | None:
    """Return how many devices plain data parallelism can use, where not all of a small cluster.

    A batch of 7 on 8 devices runs best on 7; on large clusters the difference is not worth a second
    search.
    """
    have, batch = problem.cluster.num_devices, problem.workload.global_batch_size
    usable = max(d for d in divisors(batch) if d <= have)
    return usable if 1 < usable < have <= SMALL_CLUSTER else None


def _device_counts(
    problem: Problem, *, objective: Objective, fixed: dict[str, Any]
) -> Iterator[int]:
    """Yield numbers of devices to try: all first for time, few first for devices."""
    have = problem.cluster.num_devices
    sizes = ("data", "tensor", "pipeline", "context")
    if all(f"{name}_parallel_size" in fixed for name in sizes):
        yield Strategy(
            **{k: v for k, v in fixed.items() if k.endswith("_parallel_size")}
        ).num_devices
        return
    whole_nodes = problem.cluster.devices_per_node
    counts = {count for count in divisors(have) if count <= whole_nodes or count % whole_nodes == 0}
    counts |= {2**i for i in range(have.bit_length()) if 2**i <= have}
    yield from sorted(counts, reverse=objective == "time")


def _order(evaluation: Evaluation, step_time_s: float, objective: Objective) -> tuple[Any, ...]:
    """Return the sort key: objective, then time, then the plainer strategy."""
    strategy = evaluation.strategy
    devices = strategy.num_devices
    first = {"time": 0.0, "cost": step_time_s * devices, "devices": float(devices)}[objective]
    plainness = (
        strategy.pipeline_parallel_size,
        strategy.tensor_parallel_size,
        strategy.context_parallel_size,
        strategy.expert_parallel_size,
        strategy.virtual_stages,
        ("none", "optimizer", "gradients", "parameters").index(strategy.sharding),
        strategy.sharding_replicas,
        strategy.sequence_parallel,
        -strategy.microbatch_size,
    )
    return (round(first, 9), float(f"{step_time_s:.6g}"), plainness, str(strategy))


def _rank(
    fitting: list[Evaluation], *, objective: Objective, progress: Progress | None
) -> list[Ranked]:
    scored = sorted(fitting, key=lambda e: _order(e, e.step.step_time_s, objective))
    finalists = _finalists(_distinct(scored))
    chosen = {id(e) for e in finalists}
    if progress is not None:
        progress("replaying finalists", 0, len(finalists))
    ranked = [
        Ranked(evaluation=evaluation, step_time_s=step_time_s, replayed=True)
        for evaluation, step_time_s in zip(finalists, replay_step_times(finalists), strict=True)
    ]
    rest = [
        Ranked(evaluation=e, step_time_s=e.step.step_time_s, replayed=False)
        for e in _distinct(scored)
        if id(e) not in chosen
    ]
    return _best_first(ranked + rest, objective=objective)


def _distinct(scored: list[Evaluation]) -> list[Evaluation]:
    """Keep the first of candidates that differ only in flags without effect."""
    seen: set[Any] = set()
    kept = []
    for evaluation in scored:
        same_numbers = (
            f"{evaluation.step.step_time_s:.9g}",
            f"{evaluation.peak_bytes:.9g}",
            evaluation.mesh,
        )
        if str(evaluation.strategy) not in seen and same_numbers not in seen:
            seen |= {str(evaluation.strategy), same_numbers}
            kept.append(evaluation)
    return kept


def _finalists(scored: list[Evaluation]) -> list[Evaluation]:
    leader = scored[0].step.step_time_s
    chosen = scored[:NUM_FINALISTS]
    counts: Counter[tuple[Any, ...]] = Counter(_class_of(e) for e in chosen)
    for evaluation in scored[NUM_FINALISTS:]:
        if evaluation.step.step_time_s > CLASS_MARGIN * leader:
            continue
        if counts[_class_of(evaluation)] < 2:  # noqa: PLR2004
            counts[_class_of(evaluation)] += 1
            chosen.append(evaluation)
    return chosen


def _class_of(evaluation: Evaluation) -> tuple[Any, ...]:
    pp, m = evaluation.mesh.pp, evaluation.num_microbatches
    return (
        evaluation.strategy.schedule,
        (m >= pp) + (m >= 4 * pp),
        evaluation.strategy.sharding == "parameters",
    )


def _with_baselines(
    ranked: list[Ranked],
    baselines: tuple[Baseline, ...],
    *,
    objective: Objective,
    fixed: dict[str, Any],
) -> list[Ranked]:
    """Merge fitting baselines, so that the answer is never worse than one that was scored."""
    if fixed or objective != "time":
        return ranked
    known = {str(r.evaluation.strategy) for r in ranked if r.replayed}
    merged = list(ranked)
    for baseline in baselines:
        evaluation, step_time_s = baseline.evaluation, baseline.step_time_s
        if evaluation is None or step_time_s is None or not evaluation.fits:
            continue
        if str(evaluation.strategy) in known:
            continue
        known.add(str(evaluation.strategy))
        merged = [r for r in merged if str(r.evaluation.strategy) != str(evaluation.strategy)]
        merged.append(Ranked(evaluation=evaluation, step_time_s=step_time_s, replayed=True))
    return _best_first(merged, objective=objective)


def _best_first(ranked: list[Ranked], *, objective: Objective) -> list[Ranked]:
    """Return the best replayed candidate, then all others by step time."""
    ordered = sorted(ranked, key=lambda r: _order(r.evaluation, r.step_time_s, objective))
    best = next(r for r in ordered if r.replayed)
    return [best, *(r for r in ordered if r is not best)]


def _nothing_fits(book: PriceBook, tally: Tally) -> str:
    problem = book.problem
    total = sum(tally.rejected.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(tally.rejected.items()))
    head = (
        f"no feasible plan for {problem.graph.name} on {problem.cluster.name}: "
        f"{total} of {total} strategies rejected ({reasons or 'none could be built'})"
    )
    if tally.nearest is None:
        examples = "; ".join(tally.first_message.values())
        return f"{head}; {examples}" if examples else head
    _, strategy, layout = tally.nearest
    nearest = evaluate(book, strategy, layout)
    capacity = min(nearest.capacity_bytes)
    return (
        f"{head}; the nearest, '{strategy}', needs {nearest.peak_bytes / GIB:.1f} GiB of "
        f"{capacity / GIB:.1f} GiB per device; try more devices, a larger device, a smaller "
        "--seq-len or a leaner --optimizer"
    )
