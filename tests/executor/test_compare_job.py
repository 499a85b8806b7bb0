"""A job beside its plan, and a run's timeline laid below the predicted one."""

import json
from dataclasses import replace

import pytest
from plans import plan_of

from executor.compare_job import compare_job, load_job_if_one
from executor.errors import RunError
from executor.job_result import JobResult, job_result_to_json
from paraplan.cli import run_command_line
from planner.plan import plan_to_json
from simulator.errors import ProgramError
from simulator.exports.overlay import overlay_trace
from simulator.timeline import Span, Timeline

JOB = JobResult(
    strategy="dp=2,microbatch=2", model=plan_of("dp=2,microbatch=2").model.source,
    axes=(("dp", 2),), num_processes=2, backend="gloo", device="cpu", precision="fp32",
    global_batch_size=8, sequence_length=16, num_microbatches=2, steps=4, resumed_from_step=0,
    losses=(2.0, 1.0), step_time_s=0.5, tokens_per_s=256.0, peak_memory_bytes=1e6,
    checkpoint_dir=None, log=None, restarts=(), notes=(),
)  # fmt: skip


def planned():
    plan = plan_of("dp=2,microbatch=2")
    prediction = {"step_time_s": 0.4, "peak_memory_bytes": 2e6}
    return plan.model_copy(update={"strategy": JOB.strategy, "prediction": prediction})


def test_a_job_is_compared_by_time_throughput_and_memory():
    rows = {row["quantity"]: row for row in compare_job(planned(), JOB)}
    assert rows["step time"]["ratio"] == pytest.approx(0.8)
    assert rows["throughput"]["predicted"] == pytest.approx(8 * 16 / 0.4)
    assert rows["throughput"]["ratio"] == pytest.approx(1.25)
    assert rows["peak memory"]["error"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"strategy": "dp=1,microbatch=2"}, "its strategy is dp=1,microbatch=2"),
     ({"model": "gpt2?num_layers=1"}, "without --scale-down"),
     ({"axes": ()}, "its mesh is one process, the plan's dp=2; run it on all its ranks"),
     ({"precision": "bf16"}, "its precision is bf16, the plan's fp32; run it with --precision"),
     ({"step_time_s": None}, "nothing was measured; ask for more --steps")],
)  # fmt: skip
def test_another_job_is_refused_in_one_line(change, words):
    with pytest.raises(RunError, match=words) as caught:
        compare_job(planned(), replace(JOB, **change))
    assert "\n" not in str(caught.value)


def test_the_verb_tells_a_job_from_a_run_and_has_no_trace_of_it(tmp_path, capsys):
    plan, job = tmp_path / "plan.json", tmp_path / "job.json"
    plan.write_text(plan_to_json(planned()))
    job.write_text(json.dumps(job_result_to_json(JOB)))
    assert load_job_if_one(plan) is None
    assert run_command_line(["compare", str(plan), str(job)]) == 0
    assert "256 tokens/s" in capsys.readouterr().out
    assert run_command_line(["compare", str(plan), str(job), "--trace", "x.json"]) != 0
    assert "a job, which records no timeline; give the run.json" in capsys.readouterr().err


def timeline(origin, *, forward, ranks=2):
    spans = [
        Span(name=forward, rank=rank, stream="compute", kind="compute", category="forward",
             start_s=0.0, end_s=1e-3, stage=0, microbatch=1)
        for rank in range(ranks)
    ]  # fmt: skip
    memory = tuple(((0.0, 5.0),) for _ in range(ranks))
    return Timeline(spans=tuple(spans), num_ranks=ranks, memory=memory, origin=origin)


@pytest.mark.parametrize(
    ("action", "measured"),
    [("0F1", "forward"), ("0B1", "backward"), ("0I1", "input gradients"),
     ("0W1", "weight gradients")],
)  # fmt: skip
def test_each_rank_is_shown_twice_with_the_same_names_on_one_clock(action, measured):
    trace = overlay_trace(timeline("simulated", forward=action), timeline("x", forward=measured))
    events = trace["traceEvents"]
    assert all({"ph", "ts", "pid", "tid"} <= event.keys() for event in events)
    named = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    order = [e["pid"] for e in events if e["name"] == "process_name"]
    shown = [name for _, name in sorted(zip(order, named, strict=True))]
    assert shown == ["rank 0 predicted", "rank 0 measured", "rank 1 predicted", "rank 1 measured"]
    spans = [(e["pid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert sorted(spans) == [(process, action, 0.0, 1e3) for process in range(4)]
    assert sorted(e["pid"] for e in events if e["ph"] == "C") == [0, 1, 2, 3]


def test_timelines_of_other_ranks_do_not_overlay():
    with pytest.raises(ProgramError, match="predicted for 4 ranks, measured on 2"):
        overlay_trace(timeline("a", forward="0F1", ranks=4), timeline("b", forward="forward"))
