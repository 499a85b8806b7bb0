"""Cuts into pipeline stages, against every possible cut."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.stages import balanced_cuts, even_cuts, item_units, stage_cuts
from tests.planner.problems import problem_of

TIMES = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8)


def slowest_stage(times: list[float], cuts: tuple[int, ...], speed: list[float]) -> float:
    ends = [*cuts[1:], len(times)]
    return max(sum(times[first:last]) / s for first, last, s in zip(cuts, ends, speed, strict=True))


def best_of_all(times: list[float], num_stages: int, speed: list[float]) -> float:
    return min(
        slowest_stage(times, (0, *inner), speed)
        for inner in combinations(range(1, len(times)), num_stages - 1)
    )


def found(times: list[float], num_stages: int, speed: list[float]) -> float:
    cuts = balanced_cuts(np.array(times), num_stages=num_stages, stage_speed=np.array(speed))
    assert cuts[0] == 0
    assert np.all(np.diff(cuts) > 0)
    assert cuts[-1] < len(times)
    return slowest_stage(times, tuple(cuts.tolist()), speed)


@settings(max_examples=60, deadline=None)
@given(times=TIMES, data=st.data())
def test_no_cut_over_equal_devices_is_better(times: list[float], data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, len(times)))
    speed = [1.0] * num_stages
    slack = 1e-6 * sum(times)
    assert found(times, num_stages, speed) <= best_of_all(times, num_stages, speed) + slack


@settings(max_examples=60, deadline=None)
@given(times=st.lists(st.floats(0.1, 10.0), min_size=2, max_size=8), slow=st.floats(0.2, 1.0))
def test_no_cut_over_two_unlike_devices_is_better(times: list[float], slow: float) -> None:
    """Two kinds, as mixed clusters have; where a slow stage stands between, greed may lose."""
    for speed in ([1.0, slow], [slow, 1.0]):
        slack = 1e-6 * sum(times) / slow
        assert found(times, 2, speed) <= best_of_all(times, 2, speed) + slack


def test_more_stages_than_items() -> None:
    with pytest.raises(ValueError, match="3 stages for 2 items"):
        balanced_cuts(np.ones(2), num_stages=3)


def test_items_of_nothing_are_cut_all_the_same() -> None:
    assert len(balanced_cuts(np.zeros(4), num_stages=3)) == 3


@pytest.mark.parametrize(("num_stages", "blocks"), [(2, [6, 6]), (4, [3, 3, 3, 3]), (12, [1] * 12)])
def test_blocks_are_dealt_evenly(num_stages: int, blocks: list[int]) -> None:
    graph = problem_of().graph
    cuts = even_cuts(graph, num_stages=num_stages)
    assert cuts is not None
    units = item_units(graph)
    repeated = np.bincount(units).argmax()
    ends = [*cuts[1:].tolist(), len(units)]
    assert [int(np.sum(units[a:b] == repeated)) for a, b in zip(cuts, ends, strict=True)] == blocks
    assert stage_cuts(graph, np.ones(len(units)), num_stages=num_stages).tolist() == cuts.tolist()


def test_what_does_not_divide_is_balanced_by_time() -> None:
    graph = problem_of().graph
    assert even_cuts(graph, num_stages=5) is None
    times = np.ones(len(item_units(graph)))
    assert stage_cuts(graph, times, num_stages=5).tolist() == (
        balanced_cuts(times, num_stages=5).tolist()
    )


def test_slower_devices_get_less() -> None:
    graph = problem_of().graph
    times = np.ones(len(item_units(graph)))
    cuts = stage_cuts(graph, times, num_stages=2, stage_speed=np.array([1.0, 0.5]))
    assert cuts[1] > len(times) / 2
