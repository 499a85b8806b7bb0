"""Where to cut the sequence of units into pipeline stages."""

from bisect import bisect_right
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from planner.graph import ModelGraph

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BISECTION_SHARE = 1e-7
"""Width, as a share of the total, at which the bisection stops [1]."""
ROUNDING = 1e-12
"""Slack for sums of floats [1]."""


def item_units(graph: ModelGraph) -> Ints:
    """Return, for each repetition of each unit in order, the unit's position in ``graph.units``."""
    return np.repeat(np.arange(len(graph.units)), [unit.count for unit in graph.units])


def even_cuts(graph: ModelGraph, *, num_stages: int) -> Ints | None:
    """Return stage starts with the repeated blocks dealt out evenly, or None if they do not divide.

    What stands before the blocks joins the first stage and what stands after them the last, as in
    Megatron-LM. Applies where one unit holds all the repetition.
    """
    repeated = [position for position, unit in enumerate(graph.units) if unit.count > 1]
    if len(repeated) != 1 or graph.units[repeated[0]].count % num_stages:
        return None
    before = sum(unit.count for unit in graph.units[: repeated[0]])
    per_stage = graph.units[repeated[0]].count // num_stages
    starts = before + per_stage * np.arange(num_stages, dtype=np.int64)
    starts[0] = 0
    return starts


def balanced_cuts(
    item_time_s: Floats, *, num_stages: int, stage_speed: Floats | None = None
) -> Ints:
    """Return stage starts that minimise the largest stage time.

    Bisection on the limit with a greedy fill: exact to 1e-7 of the total for equal speeds, near it
    for unlike ones. Every stage holds at least one item.

    Parameters
    ----------
    item_time_s : array of float
        Time of each item in order [s].
    num_stages : int
        At most the number of items.
    stage_speed : array of float, optional
        Speed of each stage's devices beside the fastest, in (0, 1]; 1 where left out [1].

    Examples
    --------
    >>> balanced_cuts(np.array([1.0, 2.0, 2.0, 1.0]), num_stages=2).tolist()
    [0, 2]
    >>> balanced_cuts(np.array([5.0, 1.0, 1.0]), num_stages=3).tolist()
    [0, 1, 2]
    >>> balanced_cuts(np.ones(6), num_stages=2, stage_speed=np.array([1.0, 0.5])).tolist()
    [0, 4]
    """
    num_items = len(item_time_s)
    if num_stages > num_items:
        raise ValueError(f"{num_stages} stages for {num_items} items")
    prefix = [0.0, *accumulate(item_time_s.tolist())]
    speed = [1.0] * num_stages if stage_speed is None else stage_speed.tolist()
    low, high = prefix[-1] / num_stages, prefix[-1] / min(speed)
    best = _fill(prefix, high, speed)
    while high - low > BISECTION_SHARE * prefix[-1]:
        middle = (low + high) / 2
        cuts = _fill(prefix, middle, speed)
        if cuts is None:
            low = middle
        else:
            best, high = cuts, middle
    if best is None:
        raise ValueError("no partition within the total")
    return np.array(best, dtype=np.int64)


def _fill(prefix: list[float], limit: float, speed: list[float]) -> list[int] | None:
    """Fill stages greedily up to a limit; None if the items do not fit."""
    num_items, num_stages = len(prefix) - 1, len(speed)
    starts = [0]
    slack = limit * (1 + ROUNDING)
    for stage in range(num_stages - 1):
        reach = prefix[starts[-1]] + slack * speed[stage]
        stop = min(bisect_right(prefix, reach) - 1, num_items - (num_stages - 1 - stage))
        if stop <= starts[-1]:
            return None
        starts.append(stop)
    if prefix[-1] - prefix[starts[-1]] > slack * speed[-1]:
        return None
    return starts


def stage_cuts(
    graph: ModelGraph,
    item_time_s: Floats,
    *,
    num_stages: int,
    stage_speed: Floats | None = None,
) -> Ints:
    """Return stage starts: even where blocks divide on equal devices, else balanced by time."""
    if num_stages == 1:
        return np.zeros(1, dtype=np.int64)
    even = even_cuts(graph, num_stages=num_stages) if stage_speed is None else None
    if even is not None:
        return even
    return balanced_cuts(item_time_s, num_stages=num_stages, stage_speed=stage_speed)
