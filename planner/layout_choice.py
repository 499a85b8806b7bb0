"""Which layout stands for a strategy: one rule, so that a text names one plan."""

from planner.evaluation import evaluate_memory
from planner.layouts.terms import LayoutSolution
from planner.problem import PriceBook
from planner.strategy import Strategy


def layout_that_fits(book: PriceBook, strategy: Strategy) -> LayoutSolution:
    """Return the layout that the search takes: the fastest that fits, else the leanest.

    Where layouts may mix, those that do come first; the search counts the others as unmixed.
    """
    layouts = book.layouts(strategy)
    mixes = [layout for layout in layouts if layout.name == "hybrid"]
    overflows: list[tuple[float, int, LayoutSolution]] = []
    for layout in mixes if strategy.layout == "mixed" and mixes else layouts:
        _, overflow_bytes = evaluate_memory(book, strategy, layout)
        if overflow_bytes <= 0:
            return layout
        overflows.append((overflow_bytes, len(overflows), layout))
    return min(overflows, key=lambda found: found[:2])[2]
