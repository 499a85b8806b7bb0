"""The best strategy where a published run does not state all of it."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from planner.errors import StrategyError
from planner.evaluation import Evaluation, evaluate
from planner.feasibility import find_rejection
from planner.layout_choice import layout_that_fits
from planner.problem import PriceBook, Problem
from planner.replay import replay_step_time
from planner.search import Ranked
from planner.space import Core, cores, microbatch_sizes, recomputes, strategies_of
from planner.strategy import (
    FIELD_OF_KEY,
    Strategy,
    check_strategy,
    parse_partial_strategy,
)

NUM_REPLAYED = 3
"""Candidates that are replayed, the fastest by the closed form [1]."""


def best_free_strategy(book: PriceBook, text: str, *, free: Sequence[str]) -> Ranked:
    """Return the fastest strategy over the free keys; all other keys are as the text says.

    Parameters
    ----------
    book : PriceBook
        Prices of the problem.
    text : str
        A strategy; keys left out are 1 or off.
    free : sequence of str
        Keys to choose: the fastest that fits, else the one that needs least memory.

    Raises
    ------
    StrategyError
        If no value of the free keys is possible.
    """
    found = list(_candidates(book, text, free=free))
    if not found:
        raise StrategyError(
            f"strategy '{text}': no value of {', '.join(free)} is possible; state them"
        )
    fitting = [evaluation for evaluation in found if evaluation.fits]
    if not fitting:
        fitting = [min(found, key=lambda e: (e.overflow_bytes, str(e.strategy)))]
    fastest = sorted(fitting, key=lambda e: (e.step.step_time_s, str(e.strategy)))
    ranked = [_replayed(evaluation) for evaluation in fastest[:NUM_REPLAYED]]
    return min(ranked, key=lambda r: (r.step_time_s, str(r.evaluation.strategy)))


def _replayed(evaluation: Evaluation) -> Ranked:
    return Ranked(evaluation=evaluation, step_time_s=replay_step_time(evaluation), replayed=True)


def _candidates(book: PriceBook, text: str, *, free: Sequence[str]) -> Iterator[Evaluation]:
    """Yield evaluated strategies in the order of the search's space.

    Microbatches grow until none fits any more.
    """
    problem = book.problem
    fixed = _fixed_fields(text, free=free)
    for core in cores(problem, num_devices=problem.cluster.num_devices, fixed=fixed):
        for size in microbatch_sizes(problem, fixed=fixed):
            found = [
                evaluate(book, strategy, layout_that_fits(book, strategy))
                for strategy in _possible(problem, core, size=size, fixed=fixed)
            ]
            yield from found
            if found and not any(evaluation.fits for evaluation in found):
                break


def _possible(
    problem: Problem, core: Core, *, size: int, fixed: dict[str, Any]
) -> Iterator[Strategy]:
    devices = problem.cluster.num_devices
    for base in strategies_of(
        problem, core, microbatch_size=size, num_devices=devices, fixed=fixed
    ):
        for mode in recomputes(problem, fixed=fixed):
            strategy = replace(base, recompute=mode)
            if _is_valid(problem, strategy):
                yield strategy


def _is_valid(problem: Problem, strategy: Strategy) -> bool:
    try:
        return find_rejection(problem, check_strategy(strategy)) is None
    except StrategyError:
        return False


def _fixed_fields(text: str, *, free: Sequence[str]) -> dict[str, Any]:
    """Return all fields of a strategy but the free ones; virtual stages free the schedule."""
    stated = parse_partial_strategy(text)
    chosen = {FIELD_OF_KEY[key] for key in free}
    both = sorted(chosen & set(stated))
    if both:
        raise StrategyError(f"strategy '{text}': free keys are stated, too: {', '.join(both)}")
    if "virtual_stages" in chosen and "schedule" not in stated:
        chosen.add("schedule")
    whole = Strategy(**stated)
    return {
        field.name: getattr(whole, field.name)
        for field in fields(whole)
        if field.name not in chosen
    }
