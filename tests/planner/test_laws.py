"""Laws that every prediction keeps, on small traced models."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraplan.planning import rank_strategy
from planner import gradient_sync, replay
from planner.lowering import lower
from planner.prediction import prediction
from planner.replay import replay_step_time
from planner.step_time import BREAKDOWN_TERMS
from simulator.analysis import makespan_s, peak_memory_bytes
from simulator.engine import simulate
from tests.planner.problems import (
    all_faster,
    evaluated,
    faster_devices,
    faster_network,
    on,
    problem_of,
)

STRATEGIES = (
    "dp=8,microbatch=2",
    "dp=8,microbatch=2,sharding=optimizer",
    "dp=8,microbatch=2,sharding=parameters",
    "dp=1,tp=4,microbatch=8",
    "dp=2,tp=2,pp=2,microbatch=4,sequence_parallel=on",
    "dp=2,pp=4,microbatch=2,recompute=full",
    "dp=1,tp=2,pp=4,microbatch=4,schedule=gpipe",
    "dp=2,tp=1,pp=4,microbatch=2,schedule=interleaved,virtual_stages=3",
    "dp=4,cp=2,microbatch=4,recompute=selective",
    "dp=2,tp=4,microbatch=16,layout=mixed",
    "tp=8,microbatch=8,layout=mixed",
)


# What data parallelism moves and keeps.


class Recorder:
    """Notes every collective that gradient synchronisation asks for."""

    def __init__(self) -> None:
        self.moved_bytes: dict[str, float] = {}

    def __call__(self, kind: str, message_bytes: float, **_: object) -> float:
        self.moved_bytes[kind] = self.moved_bytes.get(kind, 0.0) + message_bytes
        return message_bytes


def moved(monkeypatch: pytest.MonkeyPatch, sharding: str) -> tuple[dict[str, float], float]:
    """Return bytes per collective of one step and the parameters of one rank."""
    record = Recorder()
    problem = problem_of(software="no-overlap", precision="fp32")
    problem = replace(problem, software=replace(problem.software, gradient_bucket_bytes=1e15))
    monkeypatch.setattr(gradient_sync, "collective_time", record)
    evaluation = evaluated(problem, f"dp=8,microbatch=4,sharding={sharding}")
    return record.moved_bytes, float(evaluation.stages.total_parameters().sum())


def test_data_parallelism_moves_twice_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_, psi = moved(monkeypatch, "none")
    assert psi == 124_439_808
    # An all-reduce of V bytes moves 2 V per rank (ZeRO, arXiv:1910.02054, section 7.1).
    assert bytes_ == {"all_reduce": 4 * psi}


@pytest.mark.parametrize("sharding", ["optimizer", "gradients", "parameters"])
def test_sharded_data_parallelism_scatters_and_gathers_all(
    monkeypatch: pytest.MonkeyPatch, sharding: str
) -> None:
    bytes_, psi = moved(monkeypatch, sharding)
    assert bytes_ == {"reduce_scatter": 4 * psi, "all_gather": 4 * psi}


def test_fsdp_moves_half_as_much_again() -> None:
    """FSDP gathers twice and scatters once: 3 Psi beside the 2 Psi of data parallelism.

    ZeRO, arXiv:1910.02054, section 7.2.2. With ring collectives of equal cost per byte and no
    latency, communication time is the volume.
    """
    problem = problem_of(software="no-overlap", precision="fp32")
    cluster = faster_network(problem.cluster, latency=1e12)
    bare = replace(
        on(problem, cluster), software=replace(problem.software, gradient_bucket_bytes=1e15)
    )
    plain = evaluated(bare, "dp=8,microbatch=4").step.breakdown_s["data"]
    fsdp = evaluated(bare, "dp=8,microbatch=4,sharding=parameters").step.breakdown_s["data"]
    assert fsdp / plain == pytest.approx(1.5, rel=0.25)


@pytest.mark.parametrize(
    ("sharding", "per_parameter"),
    [
        ("none", lambda n: 16.0),
        ("optimizer", lambda n: 4 + 12 / n),
        ("gradients", lambda n: 2 + 14 / n),
        ("parameters", lambda n: 16 / n),
    ],
)
@pytest.mark.parametrize("size", [2, 8])
def test_zero_memory(sharding: str, per_parameter: object, size: int) -> None:
    """16 bytes of Adam per parameter, sharded in three steps (arXiv:1910.02054, figure 1)."""
    problem = problem_of()
    software = replace(
        problem.software,
        gradient_precision="compute",
        master_weights=True,
        fully_shards=False,
        frees_gradients=False,
    )
    found = evaluated(
        replace(problem, software=software), f"dp={size},microbatch=4,sharding={sharding}"
    ).memory.breakdown_of_largest()
    kept = sum(found[term] for term in ("parameters", "gradients", "optimizer"))
    assert callable(per_parameter)
    assert kept / 124_439_808 == pytest.approx(per_parameter(size), rel=1e-9)


# What adds up.


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_breakdowns_add_up(strategy: str) -> None:
    problem = problem_of()
    _, ranked = rank_strategy(problem, strategy)
    found = prediction(problem, ranked.evaluation, step_time_s=ranked.step_time_s)
    assert set(found["breakdown_s"]) == set(BREAKDOWN_TERMS)
    assert min(found["breakdown_s"].values()) >= 0
    assert sum(found["breakdown_s"].values()) == pytest.approx(found["step_time_s"], rel=1e-9)
    assert sum(found["memory_breakdown_bytes"].values()) == pytest.approx(
        found["peak_memory_bytes"], rel=1e-12
    )
    closed = ranked.evaluation.step
    assert sum(closed.breakdown_s.values()) == pytest.approx(closed.step_time_s, rel=1e-9)


# Better machines.


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=8, deadline=None)
@given(
    flops=st.floats(1, 8), memory=st.floats(1, 8), launch=st.floats(1, 8),
    bandwidth=st.floats(1, 8), latency=st.floats(1, 8),
)  # fmt: skip
def test_a_better_machine_is_never_slower(
    strategy: str, flops: float, memory: float, launch: float, bandwidth: float, latency: float
) -> None:
    problem = problem_of()
    before = evaluated(problem, strategy)
    cluster = faster_devices(problem.cluster, flops=flops, bandwidth=memory, latency=launch)
    cluster = faster_network(cluster, bandwidth=bandwidth, latency=latency)
    after = evaluated(on(problem, cluster), strategy)
    slack = 1 + 1e-9
    assert after.step.step_time_s <= before.step.step_time_s * slack
    assert replay_step_time(after) <= replay_step_time(before) * slack


@pytest.mark.parametrize("cluster", ["dgx-a100-80g:2", "tpu-v4:8", "pcie-k20-8"])
@pytest.mark.parametrize("strategy", ["dp=8,microbatch=2", STRATEGIES[4]])
def test_k_times_as_fast_takes_one_kth(cluster: str, strategy: str) -> None:
    problem = problem_of(cluster=cluster)
    before = evaluated(problem, strategy)
    after = evaluated(all_faster(problem, 3.0), strategy)
    assert after.step.step_time_s == pytest.approx(before.step.step_time_s / 3, rel=1e-6)
    assert replay_step_time(after) == pytest.approx(replay_step_time(before) / 3, rel=1e-6)
    assert after.peak_bytes == before.peak_bytes


@pytest.mark.parametrize("axis", ["dp", "tp", "pp", "cp", "ep"])
def test_an_axis_of_one_changes_nothing(axis: str) -> None:
    problem = problem_of()
    sizes = {"dp": 2, "tp": 2, "pp": 2}
    sizes.pop(axis, None)
    text = ",".join(f"{key}={value}" for key, value in sizes.items())
    without = evaluated(problem, f"{text},microbatch=4")
    with_one = evaluated(problem, f"{text},{axis}=1,microbatch=4")
    assert with_one.step == without.step
    assert np.array_equal(with_one.memory.peak_bytes, without.memory.peak_bytes)


# Three speeds, one truth.


def test_unfolded_equals_folded() -> None:
    evaluation = evaluated(problem_of(), "dp=2,tp=2,pp=2,microbatch=4")
    folded = simulate(lower(evaluation.costs))
    full = simulate(lower(evaluation.costs, detail="full"))
    assert (folded.num_ranks, full.num_ranks) == (2, 8)
    assert makespan_s(full) == pytest.approx(makespan_s(folded), rel=1e-9)
    assert set(peak_memory_bytes(full)) == set(peak_memory_bytes(folded))


@pytest.mark.parametrize(
    "strategy",
    [
        "pp=4,microbatch=1",
        "pp=4,microbatch=1,schedule=interleaved,virtual_stages=3",
        "pp=5,microbatch=1",  # 12 blocks on 5 stages
        "dp=2,pp=3,microbatch=1,schedule=gpipe",
    ],
)
def test_long_pipelines_are_extrapolated(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = evaluated(problem_of(global_batch=80), strategy)
    full = replay_step_time(evaluation)
    monkeypatch.setattr(replay, "MAX_ACTIONS", 100)
    assert replay_step_time(evaluation) == pytest.approx(full, rel=0.01)


# What a reviewer found untrue once.


@pytest.mark.parametrize("strategy", ["pp=4,microbatch=1", "dp=2,pp=4,microbatch=2", "pp=8"])
def test_inference_sends_one_way(strategy: str) -> None:
    evaluation = evaluated(problem_of(mode="infer"), strategy)
    assert evaluation.costs.actions.transfer_s > evaluation.costs.actions.blocking_s
    assert evaluation.step.step_time_s == pytest.approx(replay_step_time(evaluation))


def test_mixed_cluster_is_judged_by_all_devices_in_use() -> None:
    problem = problem_of(cluster="mixed-a100-v100", precision="fp16")
    cluster = problem.cluster
    assert cluster.is_mixed
    num = cluster.num_devices
    _, ranked = rank_strategy(problem, f"dp={num}")
    found = prediction(problem, ranked.evaluation, step_time_s=ranked.step_time_s)
    peaks = [cluster.device_of(rank).peak_flops_per_s["fp16"] for rank in range(num)]
    rate = found["model_flops_per_s_per_device"]
    assert found["mfu"] == pytest.approx(rate * num / sum(peaks))


def test_transfers_name_the_bytes_that_the_next_stage_takes() -> None:
    evaluation = evaluated(problem_of(), "pp=4,microbatch=4")
    entries = evaluation.stages.entry_bytes
    sends = [task for task in lower(evaluation.costs).tasks if task.kind == "send"]
    for task in sends:
        is_forward = "F" in task.name
        assert task.num_bytes == entries[task.stage + 1 if is_forward else task.stage]
