"""Scoring the strategy space by the closed form: reject with reasons, keep what fits."""

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from planner.errors import StrategyError
from planner.evaluation import Evaluation, evaluate, evaluate_memory
from planner.feasibility import find_rejection
from planner.layouts.terms import LayoutSolution
from planner.problem import PriceBook, Problem
from planner.processes import num_workers
from planner.space import (
    Core,
    cores,
    microbatch_sizes,
    recomputes,
    recomputes_of,
    split_variants,
    strategies_of,
)
from planner.strategy import Recompute, Strategy, check_strategy

Progress = Callable[[str, int, int], None]
MIN_CORES_PER_WORKER = 6
"""Below this a process costs more than it saves [1]."""
SPLIT_PER_CORE = 4
"""Fastest pipelines of a core whose backward pass is split on trial, schedules apart [1]."""
KEPT_PER_CORE = 40
"""Fitting candidates that are ranked per core, fastest first; the rest are only counted [1]."""


@dataclass(kw_only=True)
class Tally:
    """What the enumeration saw."""

    num_candidates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_message: dict[str, str] = field(default_factory=dict)
    nearest: tuple[float, Strategy, LayoutSolution] | None = None
    fitting: list[Evaluation] = field(default_factory=list)

    def reject(self, reason: str, message: str, count: int = 1) -> None:
        """Count candidates that are out, and keep the first message of each reason."""
        self.num_candidates += count
        self.rejected[reason] += count
        self.first_message.setdefault(reason, message)

    def join(self, other: "Tally") -> None:
        """Add what another enumeration saw."""
        self.num_candidates += other.num_candidates
        self.rejected += other.rejected
        for reason, message in other.first_message.items():
            self.first_message.setdefault(reason, message)
        if other.nearest is not None and (
            self.nearest is None or other.nearest[0] < self.nearest[0]
        ):
            self.nearest = other.nearest
        self.fitting += other.fitting


def score_all(
    book: PriceBook,
    tally: Tally,
    *,
    num_devices: int,
    fixed: dict[str, Any],
    progress: Progress | None,
) -> None:
    """Score every strategy of a number of devices by the closed form.

    Cores share no prices, so many of them are scored by several processes; results are joined in
    the order of the cores, and are the same for any number of processes.
    """
    all_cores = list(cores(book.problem, num_devices=num_devices, fixed=fixed))
    job = _Job(book=book, num_devices=num_devices, fixed=fixed)
    workers = num_workers(len(all_cores) // MIN_CORES_PER_WORKER)
    if workers == 1:
        for number, core in enumerate(all_cores):
            if progress is not None:
                progress(f"tp={core.tensor_parallel_size}", number, len(all_cores))
            tally.join(_score_core(job, core))
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, initializer=_inherit, initargs=(job,)) as pool:
        for number, found in enumerate(pool.imap(_score_in_worker, all_cores)):
            tally.join(found)
            if progress is not None:
                progress("scoring", number + 1, len(all_cores))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Job:
    """What all cores of a call share."""

    book: PriceBook
    num_devices: int
    fixed: dict[str, Any]


_INHERITED: list[_Job] = []
"""In a forked worker its job: the problem is large, and a fork hands it over for nothing."""


def _inherit(job: _Job) -> None:
    """Prepare a forked worker; an interrupt is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _INHERITED.append(job)


def _score_in_worker(core: Core) -> Tally:
    job = _INHERITED[0]
    alone = replace(job, book=PriceBook(problem=job.book.problem))  # prices of one core at a time
    return _score_core(alone, core)


def _score_core(job: _Job, core: Core) -> Tally:
    """Score a core at growing microbatches until nothing fits any more; keep the fastest."""
    tally = Tally()
    for size in microbatch_sizes(job.book.problem, fixed=job.fixed):
        options = _valid(
            job.book.problem, core, tally, size=size, num_devices=job.num_devices, fixed=job.fixed
        )
        if options and not _score_options(job.book, tally, options, fixed=job.fixed):
            break
    tally.fitting.sort(key=lambda evaluation: evaluation.step.step_time_s)
    if "schedule" not in job.fixed and job.book.problem.workload.is_training:
        _score_split(job, tally)
        tally.fitting.sort(key=lambda evaluation: evaluation.step.step_time_s)
    del tally.fitting[KEPT_PER_CORE:]
    return tally


def _score_split(job: _Job, tally: Tally) -> None:
    """Score the fastest candidates with a split backward pass: the fuller pipelines gain less."""
    chunks = job.fixed.get("virtual_stages")
    plain = dict.fromkeys(
        replace(evaluation.strategy, schedule="1f1b", virtual_stages=1, recompute="none")
        for evaluation in tally.fitting
        if evaluation.mesh.pp > 1
    )
    tried = [
        variant
        for strategy in islice(plain, SPLIT_PER_CORE)
        for variant in split_variants(job.book.problem, strategy)
        if chunks in (None, variant.virtual_stages)
    ]
    options = _possible(job.book.problem, tally, tried)
    if options:
        _score_options(job.book, tally, options, fixed=job.fixed)


def _valid(
    problem: Problem,
    core: Core,
    tally: Tally,
    *,
    size: int,
    num_devices: int,
    fixed: dict[str, Any],
) -> list[Strategy]:
    every = strategies_of(problem, core, microbatch_size=size, num_devices=num_devices, fixed=fixed)
    return _possible(problem, tally, every)


def _possible(problem: Problem, tally: Tally, strategies: Iterable[Strategy]) -> list[Strategy]:
    """Return the strategies that suit the problem; count the others by reason."""
    valid = []
    for strategy in strategies:
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


def _score_options(
    book: PriceBook, tally: Tally, options: list[Strategy], *, fixed: dict[str, Any]
) -> bool:
    """Score strategies that share layouts; return whether larger microbatches may fit, too."""
    all_modes = recomputes(book.problem, fixed=fixed)
    any_fits = False
    for strategy in options:
        modes = recomputes_of(strategy, all_modes)
        if not modes:
            tally.reject("contradiction", _no_recomputation(strategy, all_modes[0]))
            continue
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


def _no_recomputation(strategy: Strategy, mode: Recompute) -> str:
    """Return why a schedule does not go with what is recomputed."""
    try:
        check_strategy(replace(strategy, recompute=mode))
    except StrategyError as error:
        return str(error)
    return f"'{strategy}' does not go with recompute={mode}"


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
    return any(evaluate_memory(book, leanest, layout)[1] <= 0 for layout in book.layouts(leanest))


def _first_fitting(
    book: PriceBook,
    tally: Tally,
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
