"""What a rank keeps whole and what it shards, on small traced models."""

import numpy as np
import pytest

from hardware_profiles import load_software
from planner.gathered_memory import gathered_of_items, reduction_of_items
from planner.state_memory import StateBytes
from tests.planner.problems import evaluated, problem_of

SHARDED = "dp=8,microbatch=2,sharding=parameters"
BF16 = StateBytes(parameters=4, gradients=4, optimizer=8, gathered=2, cast=2)


def test_pipelined_ranks_come_to_hold_all_gathered_weights() -> None:
    # torch pipelining reshards a stage's units only in their next forward.
    evaluation = evaluated(problem_of(), "dp=2,pp=4,microbatch=2,sharding=parameters")
    whole = evaluation.stages.total_parameters() * 2.0  # bf16
    assert evaluation.memory.terms["gathered_parameters"] == pytest.approx(whole)


def test_virtual_stages_of_a_rank_are_all_gathered() -> None:
    evaluation = evaluated(
        problem_of(),
        "dp=2,pp=2,microbatch=2,schedule=interleaved,virtual_stages=3,sharding=parameters",
    )
    whole = evaluation.stages.total_parameters().reshape(3, 2).sum(axis=0) * 2.0
    assert evaluation.memory.terms["gathered_parameters"] == pytest.approx(whole)


def test_a_unit_the_one_before_and_gradients_of_the_one_behind_are_whole() -> None:
    items = evaluated(problem_of("llama3-8b?scale_down=32"), SHARDED).stages.items
    assert items is not None
    block, table = items.parameters[2], items.parameters[0]
    gathered = gathered_of_items(
        items, sharding="parameters", state=BF16, software=load_software("eager"), stays=False
    )
    assert gathered[2] == block * (2 + 2 + 4)
    assert gathered[1] == (block + table) * 2 + block * 4
    assert gathered[0] == table * 2 + block * 4


def test_tied_weights_are_gathered_with_the_root_throughout() -> None:
    items = evaluated(problem_of(), SHARDED).stages.items
    assert items is not None
    block, table = items.parameters[5], items.parameters[0]
    gathered = gathered_of_items(
        items, sharding="parameters", state=BF16, software=load_software("eager"), stays=False
    )
    root = items.root[0]
    assert root >= table
    assert gathered[5] == root * 2 + block * (2 + 2 + 4)
    assert gathered[0] == root * 2 + block * 4


def test_a_reduction_holds_gradients_twice_and_a_third_time_where_it_runs_in_a_copy() -> None:
    items = evaluated(problem_of("llama3-8b?scale_down=32"), SHARDED).stages.items
    assert items is not None
    head = items.parameters[-1]
    sizes = []
    for name in ("eager", "local"):
        found = reduction_of_items(
            items, sharding="gradients", state=BF16, software=load_software(name),
            shard_bytes=np.zeros(items.num_items),
        )  # fmt: skip
        sizes.append(found[-1])
    assert items.output[-1] > 0  # a head's own weight is the last that the loop names
    assert sizes == [head * (2 + 4), head * (2 + 4 + 4)]


@pytest.mark.parametrize("sharding", ["optimizer", "parameters"])
def test_weights_whole_on_tensor_ranks_are_sharded_over_data_ranks_only(sharding: str) -> None:
    evaluation = evaluated(
        problem_of("alexnet", seq_len=None, global_batch=64),
        f"dp=2,tp=4,microbatch=32,layout=mixed,sharding={sharding}",
    )
    held = evaluation.stages.total_parameters().sum()
    assert any("tp" in axes for axes, _ in evaluation.stages.parameters)
    assert evaluation.memory.terms["optimizer"].sum() == pytest.approx(held * 8 / 2)


def test_sharded_gradients_are_whole_until_they_are_reduced() -> None:
    items = evaluated(problem_of(), "dp=8,microbatch=2,sharding=gradients").stages.items
    assert items is not None
    gathered = gathered_of_items(
        items, sharding="gradients", state=BF16, software=load_software("eager"), stays=False
    )
    assert gathered[5] == items.parameters[5] * 4
