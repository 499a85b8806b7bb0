"""Scoring the strategy space by the closed form: reject with reasons, keep what fits."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from planner.errors import StrategyError
from planner.evaluation import Evaluation, evaluate, evaluate_memory
from planner.feasibility import find_rejection
from planner.layouts.terms import LayoutSolution
from planner.problem import PriceBook, Problem
from planner.space import Core, cores, microbatch_sizes, recomputes, strategies_of
from planner.strategy import Recompute, Strategy, check_strategy

Progress = Callable[[str, int, int], None]
MAX_WORKERS = 8
MIN_CORES_PER_WORKER = 6
"""Below this a process costs more than it saves [1]."""
KEPT_PER_CORE = 40
"""Fitting candidates that a worker hands back per core, fastest first [1]."""


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
    the order of the cores, and are the same.
    """
    problem = book.problem
    all_cores = list(cores(problem, num_devices=num_devices, fixed=fixed))
    workers = min(os.cpu_count() or 1, MAX_WORKERS, len(all_cores) // MIN_CORES_PER_WORKER)
    if workers > 1 and "fork" in multiprocessing.get_all_start_methods():
        _score_in_processes(
            problem, tally, all_cores, workers=workers, num_devices=num_devices, fixed=fixed,
            progress=progress,
        )  # fmt: skip
        return
    for number, core in enumerate(all_cores):
        if progress is not None:
            progress(f"tp={core.tensor_parallel_size}", number, len(all_cores))
        _score_sizes(book, tally, core, num_devices=num_devices, fixed=fixed)


def _score_sizes(
    book: PriceBook, tally: Tally, core: Core, *, num_devices: int, fixed: dict[str, Any]
) -> None:
    """Score a core at growing microbatches, until nothing fits any more."""
    problem = book.problem
    for size in microbatch_sizes(problem, fixed=fixed):
        options = _valid(problem, core, tally, size=size, num_devices=num_devices, fixed=fixed)
        if options and not _score_core(book, tally, options, fixed=fixed):
            break


_JOB: dict[str, Any] = {}
"""What forked workers inherit: the problem is large, and a fork hands it over for nothing."""


def _score_in_processes(
    problem: Problem,
    tally: Tally,
    all_cores: list[Core],
    *,
    workers: int,
    num_devices: int,
    fixed: dict[str, Any],
    progress: Progress | None,
) -> None:
    _JOB.update(problem=problem, num_devices=num_devices, fixed=fixed)
    try:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            for number, found in enumerate(pool.imap(_score_in_worker, all_cores)):
                tally.join(found)
                if progress is not None:
                    progress("scoring", number + 1, len(all_cores))
    finally:
        _JOB.clear()


def _score_in_worker(core: Core) -> Tally:
    """Score one core; of many that fit only the fastest travel back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tally = Tally()
    book = PriceBook(problem=_JOB["problem"])
    _score_sizes(book, tally, core, num_devices=_JOB["num_devices"], fixed=_JOB["fixed"])
    tally.fitting.sort(key=lambda evaluation: evaluation.step.step_time_s)
    del tally.fitting[KEPT_PER_CORE:]
    return tally


def _valid(
    problem: Problem,
    core: Core,
    tally: Tally,
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
    book: PriceBook, tally: Tally, options: list[Strategy], *, fixed: dict[str, Any]
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
