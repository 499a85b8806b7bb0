"""Time of the host: who calls nothing pays nothing."""

import numpy as np

from planner.evaluation import evaluate
from planner.problem import PriceBook
from planner.step_costs import StepCosts
from planner.strategy import parse_strategy
from tests.planner.problems import problem_of


def costs(strategy: str) -> StepCosts:
    book = PriceBook(problem=problem_of("resnet50", "dgx-1v-32g:1", global_batch=64))
    parsed = parse_strategy(strategy)
    layouts = book.layouts(parsed)
    plain = [layout for layout in layouts if layout.name in ("replicated", "data")]
    return evaluate(book, parsed, plain[0]).costs


def test_samples_cost_the_same_on_either_axis() -> None:
    # Nothing but gradients is exchanged; with one tensor rank there is nobody to exchange with.
    copies = costs("dp=8,microbatch=8").actions
    parts = costs("dp=4,tp=2,microbatch=16,layout=mixed").actions
    np.testing.assert_allclose(copies.forward_compute_s, parts.forward_compute_s, rtol=1e-9)
    np.testing.assert_allclose(copies.backward_compute_s, parts.backward_compute_s, rtol=1e-9)
