"""Enumerate, reject with reasons, score by the closed form, replay the finalists, rank."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from planner.baselines import GIB, Baseline, find_baselines
from planner.errors import NoFeasiblePlanError, StrategyError
from planner.evaluation import Evaluation, evaluate, evaluate_memory
from planner.feasibility import find_rejection
from planner.layouts.terms import LayoutSolution
from planner.problem import PriceBook, Problem
from planner.replay import replay_step_time
from planner.space import Core, cores, divisors, microbatch_sizes, recomputes, strategies_of
from planner.strategy import Recompute, Strategy, check_strategy

Objective = Literal["time", "cost", "devices"]
NUM_FINALISTS = 8
CLASS_MARGIN = 1.05
"""The best two of every class within this factor of the leader are replayed too."""
Progress = Callable[[str, int, int], None]


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


@dataclass(kw_only=True)
class _Tally:
    """What the enumeration saw."""

    num_candidates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_message: dict[str, str] = field(default_factory=dict)
    nearest: tuple[float, Strategy, LayoutSolution] | None = None
    fitting: list[Evaluation] = field(default_factory=list)

    def reject(self, reason: str, message: str, count: int = 1) -> None:
        self.num_candidates += count
        self.rejected[reason] += count
        self.first_message.setdefault(reason, message)


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
    tally = _Tally()
    for num_devices in _device_counts(problem, objective=objective, fixed=fixed):
        _score_all(book, tally, num_devices=num_devices, fixed=fixed, progress=progress)
        if tally.fitting and objective != "cost":
            break
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


def _score_all(
    book: PriceBook,
    tally: _Tally,
    *,
    num_devices: int,
    fixed: dict[str, Any],
    progress: Progress | None,
) -> None:
    problem = book.problem
    all_cores = list(cores(problem, num_devices=num_devices, fixed=fixed))
    sizes = microbatch_sizes(problem, fixed=fixed)
    for number, core in enumerate(all_cores):
        for size in sizes:
            if progress is not None:
                progress(
                    f"tp={core.tensor_parallel_size} microbatch={size}", number, len(all_cores)
                )
            options = _valid(problem, core, tally, size=size, num_devices=num_devices, fixed=fixed)
            if options and not _score_core(book, tally, options, fixed=fixed):
                break


def _valid(
    problem: Problem,
    core: Core,
    tally: _Tally,
    *,
    size: int,
    num_devices: int,
    fixed: dict[str, Any],
) -> list[Strategy]:
    valid = []
    for strategy in strategies_of(
        problem, core, microbatch_size=size, num_devices=num_devices, fixed=fixed
    ):
        try:
            rejection = find_rejection(problem, check_strategy(strategy))
        except StrategyError as error:
            tally.reject("contradiction", str(error))
            continue
        if rejection is not None:
            tally.reject(rejection.reason, rejection.message)
        else:
            valid.append(strategy)
    return valid


def _score_core(
    book: PriceBook, tally: _Tally, options: list[Strategy], *, fixed: dict[str, Any]
) -> bool:
    """Score strategies that share layouts; return whether larger microbatches may fit, too."""
    modes = recomputes(book.problem, fixed=fixed)
    any_fits = False
    for strategy in options:
        if not _leanest_fits(book, strategy, modes[-1]):
            tally.reject("memory", f"'{strategy}' does not fit even with every weight cut")
            continue
        for layout in book.layouts(strategy):
            if strategy.layout == "mixed" and layout.name != "hybrid":
                tally.reject("same as unmixed", f"'{strategy}' mixes nothing: {layout.name}")
                any_fits = True
                continue
            mode = _first_fitting(book, tally, strategy, layout, modes)
            if mode is None:
                continue
            any_fits = True
            tally.num_candidates += 1
            tally.fitting.append(evaluate(book, replace(strategy, recompute=mode), layout))
            if mode == modes[0]:
                break
    return any_fits


def _leanest_fits(book: PriceBook, strategy: Strategy, most: Recompute) -> bool:
    """Return whether a mix could fit: no layout holds less than one that cuts everything.

    With sequence parallelism the unmixed layout keeps a share of every weight and activation.
    """
    graph = book.problem.graph
    length, tp = graph.sequence_length, strategy.tensor_parallel_size
    if strategy.layout != "mixed" or not graph.sequence_labels or length % tp:
        return True
    leanest = replace(strategy, layout="tensor", sequence_parallel=True, recompute=most)
    if find_rejection(book.problem, leanest) is not None:
        return True
    _, overflow_bytes = evaluate_memory(book, leanest, book.layouts(leanest)[0])
    return overflow_bytes <= 0


def _first_fitting(
    book: PriceBook,
    tally: _Tally,
    strategy: Strategy,
    layout: LayoutSolution,
    modes: list[Recompute],
) -> Recompute | None:
    """Return the least recomputation with which a candidate fits: more is never faster.

    Layouts come fastest first, so where the first fits as it is, leaner ones are not tried.
    """
    for mode in modes:
        tried = replace(strategy, recompute=mode)
        _, overflow_bytes = evaluate_memory(book, tried, layout)
        if overflow_bytes <= 0:
            return mode
        tally.reject("memory", f"'{tried}' does not fit")
        if tally.nearest is None or overflow_bytes < tally.nearest[0]:
            tally.nearest = (overflow_bytes, tried, layout)
    return None


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
    ranked = []
    for number, evaluation in enumerate(finalists):
        if progress is not None:
            progress("replaying finalists", number, len(finalists))
        ranked.append(
            Ranked(evaluation=evaluation, step_time_s=replay_step_time(evaluation), replayed=True)
        )
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


def _nothing_fits(book: PriceBook, tally: _Tally) -> str:
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
