"""What a timeline says, and that broken timelines are caught."""

from dataclasses import replace
from itertools import pairwise

import pytest

from simulator.analysis import (
    bubble_fraction,
    busy_s,
    check_timeline,
    critical_path,
    exposed_communication_s,
    makespan_s,
    peak_memory_bytes,
)
from simulator.engine import simulate
from simulator.timeline import Span, Timeline
from simulator.timeline_check import ConservationError


def span(name, start, end, *, rank=0, stream="compute", category="compute"):
    return Span(
        name=name, rank=rank, stream=stream, kind="compute", category=category, start_s=start,
        end_s=end,
    )  # fmt: skip


def test_exposed_communication_counts_idle_compute_only():
    timeline = Timeline(
        spans=(
            span("work", 0, 4),
            span("reduce", 2, 7, stream="data", category="data"),
            span("reduce more", 6, 8, stream="tensor", category="data"),
            span("send", 5, 6, stream="pipeline", category="pipeline"),
            span("other rank", 0, 8, rank=1),
        ),
        num_ranks=2,
    )
    # of 2..8 the compute of rank 0 covers 2..4; means over two ranks
    assert exposed_communication_s(timeline) == {"data": 2.0, "pipeline": 0.5}
    assert busy_s(timeline)[0, "compute"] == 4
    assert bubble_fraction(timeline) == pytest.approx(4 / 16)
    assert makespan_s(timeline) == 8


def test_empty_timeline():
    empty = Timeline(spans=(), num_ranks=1, memory=((),))
    assert makespan_s(empty) == 0
    assert bubble_fraction(empty) == 0
    assert critical_path(empty) == ()
    assert peak_memory_bytes(empty) == (0,)


def test_critical_path_of_a_pipeline_is_as_long_as_the_makespan(pipeline_program):
    timeline = simulate(pipeline_program("1f1b", num_ranks=4, num_microbatches=6, send=1))
    path = critical_path(timeline)
    assert path[0].start_s == 0
    assert sum(s.end_s - s.start_s for s in path) == makespan_s(timeline)
    assert all(a.end_s == b.start_s for a, b in pairwise(path))


def test_critical_path_follows_the_slow_rank(pipeline_program):
    program = pipeline_program("1f1b", num_ranks=3, num_microbatches=20, factors=[1, 5, 1])
    path = critical_path(simulate(program))
    assert sum(s.rank == 1 and s.stream == "compute" for s in path) >= 2 * 19


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "stands in the place of"),
        ({"end_s": 0}, "ran 0 s of 1 s"),
        ({"start_s": 90, "end_s": 91}, "overlaps|started before|exceeds"),
    ],
)
def test_broken_timelines_are_caught(pipeline_program, change, message):
    program = pipeline_program("1f1b", num_ranks=2, num_microbatches=2)
    timeline = simulate(program)
    broken = (replace(timeline.spans[0], **change), *timeline.spans[1:])
    with pytest.raises(ConservationError, match=message):
        check_timeline(program, replace(timeline, spans=broken))


def test_lost_memory_is_caught(pipeline_program):
    program = pipeline_program("1f1b", num_ranks=2, num_microbatches=2)
    timeline = simulate(program)
    broken = replace(timeline, memory=(timeline.memory[0][:-1], timeline.memory[1]))
    with pytest.raises(ConservationError, match="rank 0 ends at 101 B, expected 100"):
        check_timeline(program, broken)


def test_lost_span_is_caught(pipeline_program):
    program = pipeline_program("1f1b", num_ranks=2, num_microbatches=2)
    timeline = simulate(program)
    with pytest.raises(ConservationError, match="12 tasks but 11 spans"):
        check_timeline(program, replace(timeline, spans=timeline.spans[1:]))
