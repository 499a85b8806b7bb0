"""From recorded regions to spans and parts of a step; run files; comparison with a prediction."""

import json
from dataclasses import replace

import pytest
from plans import plan_of

from executor.compare import compare, comparison_notes, comparison_table
from executor.errors import RunError
from executor.recording import Recorder, Region
from executor.result import RunResult, load_run, result_from_json, result_to_json, write_atomically
from executor.spans import breakdown_of, collective_counts, spans_of
from simulator.timeline import Span, Timeline


def recorded():
    """A step of 10 s: forward 0-4 with an all-reduce at 1-2, idle pipeline at 4-6, backward 6-9."""
    recorder = Recorder()
    for name, category, start, end in (
        ("pipeline", "pipeline", 0.0, 9.0), ("forward", "compute", 0.0, 4.0),
        ("backward", "compute", 6.0, 9.0), ("optimizer", "optimizer", 9.0, 9.5),
    ):  # fmt: skip
        recorder.regions.append(
            Region(name=name, category=category, start_s=100 + start, end_s=100 + end)
        )
    recorder.add("all_reduce", axis="tp", num_bytes=64, start_s=100.5, end_s=102.0,
                 blocked_from_s=101.0)  # fmt: skip
    recorder.add("all_reduce", axis="dp", num_bytes=32, start_s=107.0, end_s=108.0,
                 blocked_from_s=108.0)  # fmt: skip
    return recorder


def test_compute_is_cut_where_a_collective_blocked_it():
    spans = spans_of(recorded(), rank=3, start_s=100.0)
    forward = [(s.start_s, s.end_s) for s in spans if s.name == "forward"]
    assert forward == [(0.0, 1.0), (2.0, 4.0)]
    assert {span.rank for span in spans} == {3}
    overlapped = next(s for s in spans if s.category == "data")
    assert (overlapped.start_s, overlapped.end_s, overlapped.stream) == (7.0, 8.0, "data")


def test_parts_add_up_to_the_step():
    recorder = recorded()
    parts = breakdown_of(recorder, spans_of(recorder, rank=0, start_s=100.0), step_s=10.0)
    assert parts == {"compute": 6.0, "tensor": 1.0, "context": 0.0, "expert": 0.0, "data": 0.0,
                     "pipeline": 2.0, "optimizer": 0.5, "idle": 0.5}  # fmt: skip
    assert collective_counts(recorder)["tp"] == {"all_reduce": {"count": 1, "bytes": 64.0}}


def a_result(**changes):
    plan = plan_of("dp=2,microbatch=4")
    result = RunResult(
        strategy=plan.strategy, model="m", axes=(("dp", 2),), num_processes=2, backend="gloo",
        device="cpu", global_batch_size=8, sequence_length=16, num_microbatches=1, steps=2,
        losses=(2.0, 1.0), reference_losses=(2.0, 1.0), max_loss_difference=0.0,
        max_gradient_difference=0.0, worst_gradient=None, loss_tolerance=1e-4,
        gradient_tolerance=1e-3, passed=True, measured_step_time_s=0.5, step_times_s=(0.6, 0.5),
        predicted_step_time_s=1.0, peak_memory_bytes=2e6, peak_memory_bytes_per_rank=(2e6, 1e6),
        breakdown_s={"compute": 0.25, "data": 0.25}, collectives_issued={}, foreign_load_cores=0.0,
        notes=(), timeline=Timeline(
            spans=(Span(name="forward", rank=0, stream="compute", kind="compute",
                        category="compute", start_s=0.0, end_s=0.1),),
            num_ranks=2, memory=(((0.1, 5.0),), ()), origin="measured",
        ),
    )  # fmt: skip
    return replace(result, **changes)


def test_a_run_file_comes_back_as_it_was(tmp_path):
    path = tmp_path / "deep" / "run.json"
    write_atomically(path, json.dumps(result_to_json(a_result())))
    assert load_run(path) == a_result()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', '{"schema_version": 99}'])
def test_what_is_no_run_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RunError) as caught:
        load_run(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_run_json_has_the_names_that_others_rely_on():
    data = result_to_json(a_result())
    assert {"num_processes", "losses", "reference_losses", "max_loss_difference",
            "max_gradient_difference", "measured_step_time_s", "predicted_step_time_s",
            "peak_memory_bytes"} <= data.keys()  # fmt: skip
    assert result_from_json(json.loads(json.dumps(data))) == a_result()


def test_compare_puts_the_parts_side_by_side():
    plan = plan_of("dp=2,microbatch=4").model_copy(update={"prediction": {
        "step_time_s": 1.0, "breakdown_s": {"compute": 0.5, "data": 0.25, "bubble": 0.25},
        "peak_memory_bytes": 3e6,
    }})  # fmt: skip
    rows = {row["quantity"]: row for row in compare(plan, a_result())}
    assert rows["step time"]["ratio"] == 2.0
    assert rows["step time"]["error"] == 1.0
    assert rows["compute"]["ratio"] == 2.0
    assert rows["data communication"]["ratio"] == 1.0
    assert rows["pipeline, bubble and idle"]["ratio"] is None
    assert rows["peak memory"]["ratio"] == 1.5
    assert "1.50" in comparison_table(list(rows.values())).splitlines()[-1]


def test_compare_tells_what_to_mind():
    plan = plan_of("dp=2,microbatch=4")
    assert comparison_notes(plan, a_result()) == []
    plan = plan.model_copy(update={"prediction": {"step_time_interval_s": [0.1, 0.4]}})
    loaded = a_result(notes=("times are high",), breakdown_s={"compute": 0.2})
    told = comparison_notes(plan, loaded)
    assert told[0] == "note: times are high"
    assert "outside the predicted range, 0.1000 to 0.4000 s" in told[1]
    assert "add up to 0.2000 s" in told[2]


def test_compare_refuses_a_run_of_another_plan_or_size():
    with pytest.raises(RunError, match="the run is of strategy"):
        compare(plan_of("dp=4"), a_result())
    shrunk = a_result(predicted_step_time_s=None, notes=("axis dp shrunk from 4 to 2",))
    with pytest.raises(RunError, match="axis dp shrunk"):
        compare(plan_of("dp=2,microbatch=4"), shrunk)
