"""What a rank keeps whole and what it shards, on small traced models."""

import pytest

from tests.planner.problems import evaluated, problem_of


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


def test_without_pipeline_two_units_are_gathered() -> None:
    evaluation = evaluated(problem_of(), "dp=8,microbatch=2,sharding=parameters")
    largest = evaluation.stages.largest_item_parameters
    # bf16 weights and fp32 gradients
    assert evaluation.memory.terms["gathered_parameters"] == pytest.approx(2 * largest * (2 + 4))


@pytest.mark.parametrize("sharding", ["optimizer", "parameters"])
def test_weights_whole_on_tensor_ranks_are_sharded_over_data_ranks_only(sharding: str) -> None:
    evaluation = evaluated(
        problem_of("alexnet", seq_len=None, global_batch=64),
        f"dp=2,tp=4,microbatch=32,layout=mixed,sharding={sharding}",
    )
    held = evaluation.stages.total_parameters().sum()
    assert any("tp" in axes for axes, _ in evaluation.stages.parameters)
    assert evaluation.memory.terms["optimizer"].sum() == pytest.approx(held * 12 / 2)


def test_sharded_gradients_are_whole_until_they_are_reduced() -> None:
    evaluation = evaluated(problem_of(), "dp=8,microbatch=2,sharding=gradients")
    largest = evaluation.stages.largest_item_parameters
    assert evaluation.memory.terms["gathered_parameters"] == pytest.approx(2 * largest * 4)
