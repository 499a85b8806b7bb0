"""Time of the closed form for one candidate, as the validation page tells it."""

import time
from itertools import product

from paraplan.planning import Options, make_problem
from planner.evaluation import evaluate
from planner.problem import PriceBook
from planner.strategy import parse_strategy
from planner.validation.summaries import median

_SIZES = "dp=16,tp=8,pp=8,microbatch=1"
_ROUNDS = 20


def candidate_time() -> float:
    """Return the median processor time of one closed-form evaluation, prices known [s].

    Of GPT-3 175B on 1,024 A100s.
    """
    problem = make_problem(
        Options(model="gpt3-175b", cluster="dgx-a100-80g:128", global_batch=1536, seq_len=2048)
    )
    book = PriceBook(problem=problem)
    candidates = [
        parse_strategy(f"{_SIZES},sharding={sharding},recompute={recompute}")
        for sharding, recompute in product(
            ("none", "optimizer", "parameters"), ("none", "selective", "full")
        )
    ]
    layout = book.layouts(candidates[0])[0]
    for candidate in candidates:
        evaluate(book, candidate, layout)
    times = []
    for candidate in candidates * _ROUNDS:
        started = time.process_time()
        evaluate(book, candidate, layout)
        times.append(time.process_time() - started)
    return median(times)
