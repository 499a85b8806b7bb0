"""Lowered programs on the engine against the closed form, folded against unfolded."""

import numpy as np
import pytest

from planner.lowering import lower
from planner.mesh import MeshShape
from planner.stage_costs import RECOMPUTE_MODES, StageCosts
from planner.step_costs import StepCosts, merged
from planner.step_time import ActionTimes, EndTimes, step_time
from simulator.analysis import makespan_s, peak_memory_bytes
from simulator.engine import simulate
from simulator.timeline_check import check_timeline
from simulator.zero_bubble import splits_backward

NO_OVERLAP = 0.0


def equal_stages(num_stages: int, *, forward: float = 1.0, backward: float = 2.0) -> StageCosts:
    ones = np.ones(num_stages)
    return StageCosts(
        starts=np.arange(num_stages),
        forward_s=forward * ones,
        backward_s=dict.fromkeys(RECOMPUTE_MODES, backward * ones),
        forward_compute_s=forward * ones,
        backward_compute_s=dict.fromkeys(RECOMPUTE_MODES, backward * ones),
        inputs_compute_s={"none": backward / 2 * ones},
        weights_compute_s=backward / 2 * ones,
        beside_weights_s=0 * ones,
        forward_comm_s={},
        backward_comm_s={mode: {} for mode in RECOMPUTE_MODES},
        saved_bytes=dict.fromkeys(RECOMPUTE_MODES, 10 * ones),
        awaiting_bytes={"none": 14 * ones},
        transient_bytes=dict.fromkeys(RECOMPUTE_MODES, 3 * ones),
        entry_bytes=5 * ones,
        parameters={(("dp", "cp"), False): 100 * ones},
        tied_parameters=0 * ones,
        model_flops=1.0,
        recomputed_flops=dict.fromkeys(RECOMPUTE_MODES, 0.0),
        largest_item_parameters=100 * ones,
    )


def costs(
    *,
    pp: int,
    m: int,
    v: int = 1,
    schedule: str = "1f1b",
    dp: int = 1,
    tp: int = 1,
    tensor_s: float = 0.0,
    sync_s: float = 0.0,
    tied_s: float = 0.0,
    overlap: float = 0.0,
    send_s: float = 0.0,
) -> StepCosts:
    stages = equal_stages(pp * v)
    ones = np.ones(pp * v)
    tied = tied_s * np.array([stage in (0, pp * v - 1) for stage in range(pp * v)])
    comm = {"tensor": tensor_s * ones} if tensor_s else {}
    return StepCosts(
        stages=stages,
        actions=ActionTimes(
            forward_compute_s=ones,
            backward_compute_s=2 * ones,
            weights_compute_s=ones if splits_backward(schedule) else None,
            forward_comm_s=comm,
            backward_comm_s=comm,
            transfer_s=send_s,
            blocking_s=0.0,
        ),
        end=EndTimes(
            sync_s=sync_s * ones + tied,
            tied_s=tied,
            sync_hidden_s=np.minimum(sync_s, overlap * 2.0) * ones,
            optimizer_s=0.5 * ones / v,
            update_gather_s=0 * ones,
        ),
        schedule=schedule,
        recompute="none",
        mesh=MeshShape(
            pp=pp, dp=dp, cp=1, tp=tp, ep=1, devices_per_node=8, v_shaped=schedule == "zbv"
        ),
        num_microbatches=m,
        tail_s=overlap * (1 if splits_backward(schedule) else 2) * ones,
        sync_slowdown=0.0,
        is_training=True,
        resting_memory_bytes=(1000.0,) * pp,
    )


class _Software:
    compute_slowdown = 1.0
    straggler_share = 0.0


def closed_form(value: StepCosts) -> float:
    return step_time(
        value.actions,
        value.end,
        schedule=value.schedule,
        mesh=value.mesh,
        num_microbatches=value.num_microbatches,
        num_nodes=1,
        software=_Software(),
    ).step_time_s


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("pp", "m"), [(1, 1), (1, 4), (2, 2), (4, 8), (4, 3)])
def test_equal_stages_and_free_communication_are_exact(schedule: str, pp: int, m: int) -> None:
    value = costs(pp=pp, m=m, schedule=schedule)
    expected = (m + pp - 1) * 3.0 + 0.5
    program = lower(value)
    timeline = simulate(program)
    check_timeline(program, timeline)
    assert makespan_s(timeline) == pytest.approx(expected, rel=1e-12)
    assert closed_form(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("pp", "m", "v"), [(2, 4, 2), (4, 8, 2), (4, 8, 3)])
def test_interleaved_bubble(pp: int, m: int, v: int) -> None:
    value = costs(pp=pp, m=m, v=v, schedule="interleaved")
    ideal = m * v * 3.0
    expected = ideal + (pp - 1) * 3.0 + 0.5
    assert makespan_s(simulate(lower(value))) == pytest.approx(expected, rel=1e-12)
    assert closed_form(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "v", "bubble"), [("zero_bubble", 1, 3.0), ("zero_bubble", 2, 3.0), ("zbv", 2, 3.0)]
)
def test_weight_gradients_fill_the_bubble(schedule: str, v: int, bubble: float) -> None:
    """Per rank of the four but one F + I - W of a stage, and in a V one F of a stage."""
    value = costs(pp=4, m=8, v=v, schedule=schedule)
    expected = 8 * v * 3.0 + bubble + 0.5
    program = lower(value)
    timeline = simulate(program)
    check_timeline(program, timeline)
    assert makespan_s(timeline) == pytest.approx(expected, rel=1e-12)
    assert closed_form(value) == pytest.approx(expected, rel=1e-12)
    assert [curve[-1][1] for curve in timeline.memory] == [1000.0] * 4


def test_a_turn_on_one_rank_sends_nothing() -> None:
    timeline = simulate(lower(costs(pp=2, m=4, v=2, schedule="zbv", send_s=0.25)))
    sends = [span for span in timeline.spans if span.kind == "send"]
    assert {span.stage for span in sends if "F" in span.name} == {0, 2}
    assert {span.stage for span in sends if "I" in span.name} == {1, 3}


def test_what_awaits_its_weight_gradients_is_held() -> None:
    """As W begins: on H1's first rank one in flight and one that waits, on its last rank two."""
    first, last = peak_memory_bytes(simulate(lower(costs(pp=2, m=4, schedule="zero_bubble"))))
    assert (first, last) == (1000 + 10 + 14 + 3, 1000 + 2 * 14 + 3)


def test_tensor_communication_is_exposed() -> None:
    value = costs(pp=2, m=4, tensor_s=0.25, tp=2)
    expected = (4 + 1) * 3.5 + 0.5
    assert makespan_s(simulate(lower(value))) == pytest.approx(expected)
    assert closed_form(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sync", "overlap", "exposed"), [(3.0, 0.0, 3.0), (3.0, 0.5, 2.0), (0.5, 1.0, 0.0)]
)
def test_gradient_sync_hides_under_the_last_backward(
    sync: float, overlap: float, exposed: float
) -> None:
    value = costs(pp=1, m=3, dp=2, sync_s=sync, overlap=overlap)
    expected = 9.0 + exposed + 0.5
    assert makespan_s(simulate(lower(value))) == pytest.approx(expected)
    assert closed_form(value) == pytest.approx(expected)


@pytest.mark.parametrize("v", [1, 2])
def test_the_sum_of_tied_weights_hides_under_nothing(v: int) -> None:
    schedule = "1f1b" if v == 1 else "interleaved"
    value = costs(pp=2, m=4, v=v, schedule=schedule, dp=2, sync_s=0.25, tied_s=2.0, overlap=0.5)
    expected = 4 * v * 3.0 + 3.0 + 2.0 + 0.5
    program = lower(value)
    timeline = simulate(program)
    check_timeline(program, timeline)
    assert closed_form(value) == pytest.approx(expected)
    assert makespan_s(timeline) == pytest.approx(expected)
    sums = [span for span in timeline.spans if span.name.startswith("tied")]
    assert len({span.start_s for span in sums}) == 1


@pytest.mark.parametrize(("schedule", "v"), [("1f1b", 1), ("zero_bubble", 1), ("zbv", 2)])
def test_unfolded_equals_folded(schedule: str, v: int) -> None:
    value = costs(
        pp=2, m=4, v=v, schedule=schedule, dp=2, tp=2, tensor_s=0.25, sync_s=1.0, overlap=0.5,
        send_s=0.125,
    )  # fmt: skip
    folded, full = simulate(lower(value)), simulate(lower(value, detail="full"))
    assert full.num_ranks == 8
    assert makespan_s(full) == pytest.approx(makespan_s(folded), rel=1e-12)
    assert peak_memory_bytes(full)[::4] == peak_memory_bytes(folded)


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
def test_merged_costs_take_the_same_time(schedule: str) -> None:
    value = costs(
        pp=3, m=8, schedule=schedule, dp=2, tensor_s=0.25, sync_s=3.0, overlap=0.5, send_s=0.125
    )
    program = lower(merged(value))
    assert len(program.tasks) < len(lower(value).tasks)
    assert makespan_s(simulate(program)) == pytest.approx(makespan_s(simulate(lower(value))))


def test_memory_counts_microbatches_in_flight() -> None:
    first, last = peak_memory_bytes(simulate(lower(costs(pp=2, m=4))))
    assert first == 1000 + 2 * 10 + 3
    assert last == 1000 + 1 * 10 + 3
    gpipe = peak_memory_bytes(simulate(lower(costs(pp=2, m=4, schedule="gpipe"))))
    assert gpipe[0] == 1000 + 4 * 10 + 3


def test_memory_returns_to_rest() -> None:
    timeline = simulate(lower(costs(pp=2, m=4)))
    assert [curve[-1][1] for curve in timeline.memory] == [1000.0, 1000.0]


def test_inference_has_no_backward() -> None:
    from dataclasses import replace

    value = replace(costs(pp=2, m=4), is_training=False)
    timeline = simulate(lower(value))
    assert all(span.category in ("forward", "pipeline") for span in timeline.spans)
    assert makespan_s(timeline) == pytest.approx(5.0)
