"""Exports: frame, Chrome trace and back, plots."""

import json

import pytest

from simulator.analysis import makespan_s
from simulator.engine import simulate
from simulator.errors import ProgramError
from simulator.exports.chrome import chrome_json, chrome_trace, timeline_from_chrome
from simulator.exports.frame import memory_frame, timeline_frame
from simulator.exports.gantt import gantt_figure, memory_figure
from simulator.timeline import Timeline


@pytest.fixture(scope="module")
def timeline(pipeline_program):
    return simulate(pipeline_program("1f1b", num_ranks=3, num_microbatches=4, send=1))


def test_frame_has_a_row_per_span(timeline):
    frame = timeline_frame(timeline)
    assert len(frame) == len(timeline.spans)
    assert frame["end_s"].max() == makespan_s(timeline)
    compute = frame[frame["stream"] == "compute"]
    assert compute.groupby("rank")["duration_s"].sum().tolist() == [12, 12, 12]
    assert str(frame["microbatch"].dtype) == "Int64"


def test_memory_frame(timeline):
    frame = memory_frame(timeline)
    assert frame.groupby("rank")["memory_bytes"].max().tolist() == [103, 102, 101]


def test_chrome_trace_and_back(timeline):
    assert timeline_from_chrome(json.loads(chrome_json(timeline))) == timeline


def test_chrome_trace_is_in_microseconds_and_named(timeline):
    events = chrome_trace(timeline)["traceEvents"]
    first = next(event for event in events if event["ph"] == "X" and event["name"] == "0F1")
    assert (first["ts"], first["dur"], first["pid"]) == (1e6, 1e6, 0)
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {"compute", "pipeline"}


def test_foreign_trace_is_refused():
    with pytest.raises(ProgramError, match="expected a trace written by paraplan"):
        timeline_from_chrome({"traceEvents": []})


def test_gantt_shows_ranks_phases_and_microbatches(timeline):
    axes = gantt_figure(timeline, title="1F1B").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rank 0", "rank 1", "rank 2"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["forward", "backward", "pipeline communication"]
    assert sorted({text.get_text() for text in axes.texts}) == ["0", "1", "2", "3"]
    assert axes.get_xlabel() == "time [s]"


def test_gantt_of_many_ranks_drops_what_does_not_fit(pipeline_program, tmp_path):
    many = simulate(pipeline_program("1f1b", num_ranks=32, num_microbatches=160))
    figure = gantt_figure(many)
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_yticks()) < 10
    figure.savefig(tmp_path / "gantt.svg")
    assert (tmp_path / "gantt.svg").stat().st_size > 0


def test_gantt_without_spans_is_an_error(timeline):
    with pytest.raises(ProgramError, match="no span on the chosen ranks"):
        gantt_figure(timeline, ranks=[])


def test_memory_plot(timeline):
    axes = memory_figure(timeline, capacity_bytes=2**30).axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["rank 0", "rank 1", "rank 2", "capacity"]
    with pytest.raises(ProgramError, match="holds no memory curves"):
        memory_figure(Timeline(spans=timeline.spans, num_ranks=3))
