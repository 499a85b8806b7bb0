"""What torch does on one machine beside kernels: checkpoints, a first bucket, casts to nothing."""

from dataclasses import replace

import pytest

from planner.layouts.costs import cut_of, setting_of
from planner.layouts.traffic import operator_traffic
from planner.mesh import MeshShape
from planner.problem import Problem
from tests.planner.problems import evaluated, problem_of

MEBIBYTE = 2.0**20
CHECKPOINT_S = 1e-3
BLOCKS = 12


def changed(*, precision: str = "bf16", **software: float) -> Problem:
    problem = problem_of(precision=precision)
    return replace(problem, software=replace(problem.software, **software))  # type: ignore[arg-type]


def test_each_recomputed_block_pays_its_checkpoint() -> None:
    strategy = "dp=8,microbatch=1,recompute=full"
    free, paid = (
        evaluated(changed(checkpoint_s=seconds), strategy).costs.actions.backward_compute_s.sum()
        for seconds in (0.0, CHECKPOINT_S)
    )
    assert paid - free == pytest.approx(BLOCKS * CHECKPOINT_S)


@pytest.mark.parametrize(
    ("strategy", "is_longer"),
    [("dp=8,microbatch=1", True), ("dp=8,sharding=optimizer,microbatch=1", False),
     ("dp=4,tp=2,microbatch=1", False)],
)  # fmt: skip
def test_a_first_bucket_is_one_more_message_of_plain_replicas(
    strategy: str, is_longer: bool
) -> None:
    one = {"gradient_bucket_bytes": 1e12, "overlap_gradient_sync": 0.0}
    whole, parted = (
        evaluated(changed(first_bucket_bytes=size, **one), strategy).costs.end.sync_s.sum()
        for size in (0.0, MEBIBYTE)
    )
    assert (parted > 1.01 * whole) if is_longer else (parted == whole)


@pytest.mark.parametrize(("precision", "is_done"), [("fp32", False), ("bf16", True)])
def test_a_cast_to_the_type_that_is_there_is_no_kernel(*, precision: str, is_done: bool) -> None:
    problem = changed(precision=precision)
    setting = setting_of(
        problem.graph, microbatch_size=1, workload=problem.workload, cluster=problem.cluster,
        software=problem.software,
        mesh=MeshShape(pp=1, dp=1, cp=1, tp=1, ep=1, devices_per_node=8),
    )  # fmt: skip
    operators = (problem.graph.operator(n) for unit in problem.graph.units for n in unit.operators)
    casts = [operator for operator in operators if operator.target == "aten._to_copy"]
    cut = cut_of(setting, None)
    moved = [operator_traffic(one, cut, backward=way) for one in casts for way in (False, True)]
    assert moved
    assert all((num_bytes > 0 and kernels > 0) == is_done for num_bytes, kernels in moved)
