"""The best strategy where a published run does not state all of it."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from planner.errors import StrategyError
from planner.evaluation import Evaluation, evaluate
from planner.problem import PriceBook
from planner.replay import replay_step_time
from planner.scoring import Tally, score_all
from planner.search import Ranked
from planner.strategy import FIELD_OF_KEY, Strategy, parse_partial_strategy

NUM_REPLAYED = 3
"""Candidates that are replayed, the fastest by the closed form [1]."""


def best_free_strategy(book: PriceBook, text: str, *, free: Sequence[str]) -> Ranked:
    """Return the fastest strategy over the free keys; all other keys are as the text says.

    The search's own scoring, with every field but the free ones fixed.

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
    tally = Tally()
    score_all(
        book,
        tally,
        num_devices=book.problem.cluster.num_devices,
        fixed=_fixed_fields(text, free=free),
        progress=None,
    )
    fastest = sorted(tally.fitting, key=lambda e: (e.step.step_time_s, str(e.strategy)))
    if not fastest:
        if tally.nearest is None:
            why = "; ".join(tally.first_message.values()) or "state them"
            raise StrategyError(
                f"strategy '{text}': no value of {', '.join(free)} is possible; {why}"
            )
        _, strategy, layout = tally.nearest
        fastest = [evaluate(book, strategy, layout)]
    ranked = [_replayed(evaluation) for evaluation in fastest[:NUM_REPLAYED]]
    return min(ranked, key=lambda r: (r.step_time_s, str(r.evaluation.strategy)))


def _replayed(evaluation: Evaluation) -> Ranked:
    return Ranked(evaluation=evaluation, step_time_s=replay_step_time(evaluation), replayed=True)


def _fixed_fields(text: str, *, free: Sequence[str]) -> dict[str, Any]:
    """Return all fields of a strategy but the free ones; virtual stages free the schedule."""
    stated = parse_partial_strategy(text)
    chosen = {FIELD_OF_KEY[key] for key in free}
    both = sorted(chosen & set(stated))
    if both:
        raise StrategyError(
            f"strategy '{text}': free keys are stated, too: {', '.join(both)}; state or free each"
        )
    if "virtual_stages" in chosen and "schedule" not in stated:
        chosen.add("schedule")
    whole = Strategy(**stated)
    return {
        field.name: getattr(whole, field.name)
        for field in fields(whole)
        if field.name not in chosen
    }
