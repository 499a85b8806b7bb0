"""Torch's collectives in a pretended world are those that the simulator prices."""

import pytest
from dry_runs import BERT, GPT, LLAMA, MLP, dry_run_here, plan_for

pytestmark = pytest.mark.filterwarnings("ignore")

GPT_STRATEGIES = [
    "dp=8,microbatch=1",
    "dp=8,microbatch=1,sharding=optimizer",
    "dp=8,microbatch=1,sharding=gradients",
    "dp=8,microbatch=1,sharding=parameters",
    "dp=8,microbatch=1,sharding=gradients,replicas=2",
    "tp=4,microbatch=2",
    "tp=4,microbatch=1,sequence_parallel=on",
    "dp=2,tp=2,microbatch=1,sharding=parameters,sequence_parallel=on",
    "pp=4,microbatch=1,schedule=gpipe",
    "dp=4,pp=2,microbatch=1,schedule=1f1b,sharding=parameters",
    "pp=2,microbatch=1,schedule=interleaved,virtual_stages=2",
    "dp=2,tp=2,pp=2,microbatch=1,schedule=1f1b,sequence_parallel=on,recompute=full",
    "dp=2,tp=2,pp=2,microbatch=1,schedule=zbv,sequence_parallel=on",
    "dp=2,pp=2,microbatch=1,schedule=zero_bubble,sharding=optimizer",
]
LLAMA_STRATEGIES = [
    "dp=3,microbatch=1,sharding=gradients",
    "tp=2,microbatch=1,sequence_parallel=on,recompute=full",
    "dp=2,tp=2,pp=2,microbatch=1,schedule=interleaved,virtual_stages=2",
]
BERT_STRATEGIES = [
    "tp=2,pp=2,microbatch=1,schedule=1f1b",
    "dp=2,tp=2,microbatch=2,sharding=parameters,sequence_parallel=on,recompute=full",
]


@pytest.mark.parametrize(
    ("model", "strategy"),
    [(GPT, strategy) for strategy in GPT_STRATEGIES]
    + [(LLAMA, strategy) for strategy in LLAMA_STRATEGIES]
    + [(BERT, strategy) for strategy in BERT_STRATEGIES],
)
def test_torch_issues_what_the_simulator_says(model, strategy):
    result = dry_run_here(plan_for(model, strategy))
    assert result.differences == ()
    assert all(rank.issued for rank in result.ranks)


def test_a_stack_that_sums_tied_gradients_whole_is_held_against_torch_which_sums_shards():
    strategy = "dp=2,tp=2,pp=2,microbatch=1,schedule=1f1b,sharding=optimizer"
    result = dry_run_here(plan_for(GPT, strategy, software="megatron-core"))
    assert result.differences == ()
    assert "stages sum shards of tied gradients" in "".join(
        known.reason for rank in result.ranks for known in rank.known
    )


def test_a_thousand_ranks_are_played_by_one_of_each_kind():
    plan = plan_for(
        GPT, "dp=64,tp=4,pp=4,microbatch=1,schedule=1f1b,sequence_parallel=on", batch=256,
        cluster="dgx-a100-80g:128",
    )  # fmt: skip
    result = dry_run_here(plan)
    assert result.num_processes == 1024
    assert [rank.pipeline_rank for rank in result.ranks] == [0, 1, 3, 3]
    assert result.ranks[-1].rank == 1023
    assert result.differences == ()


def test_a_missing_average_of_gradients_is_named(monkeypatch):
    monkeypatch.setattr("executor.training.average_over_data_ranks", lambda *a, **k: None)
    result = dry_run_here(plan_for(GPT, "dp=2,pp=2,microbatch=1"))
    assert not result.matches
    assert "axis dp, all_reduce: torch issued 0 with 0 B, the simulator says 1" in "\n".join(
        result.differences
    )


def test_a_missing_sum_of_partial_gradients_is_named(monkeypatch):
    monkeypatch.setattr("executor.training.reduce_partial_gradients", lambda *a, **k: None)
    plan = plan_for(GPT, "tp=4,microbatch=1,sequence_parallel=on")
    result = dry_run_here(plan)
    named = {line.split(":")[1] for line in result.differences}
    assert named == {" axis tp, all_reduce"}


def test_a_missing_exchange_of_a_layout_is_named():
    plan = plan_for(GPT, "tp=4,microbatch=2")
    layout = plan.layouts[0]
    without = {key: value for key, value in layout.modules.items() if key != "blocks.2.ffn.down"}
    broken = plan.model_copy(update={"layouts": (layout.model_copy(update={"modules": without}),)})
    assert not dry_run_here(broken).matches


def test_an_executor_that_reduces_twice_is_named(monkeypatch):
    from executor import training

    once = training.sum_tied_gradients

    def twice(*args, **kwargs):
        once(*args, **kwargs)
        once(*args, **kwargs)

    monkeypatch.setattr("executor.training.sum_tied_gradients", twice)
    result = dry_run_here(plan_for(GPT, "pp=2,microbatch=1"))
    assert all("axis pp, all_reduce: torch issued 2" in line for line in result.differences)
    assert len(result.differences) == len(result.ranks)


def test_models_without_blocks_are_played_too():
    assert dry_run_here(plan_for(MLP, "dp=4,microbatch=2,sharding=parameters")).matches


def test_the_known_differences_have_reasons_and_sizes():
    result = dry_run_here(plan_for(GPT, "dp=2,microbatch=2,sharding=gradients"))
    known = [entry for entry in result.ranks[0].known if entry.change.num_bytes == 0]
    assert {entry.reason for entry in known} == {
        "FSDP sends its 5 units one by one; the model fills buckets"
    }


def test_a_split_of_the_vocabulary_is_kept_through_the_loss():
    result = dry_run_here(plan_for(GPT, "tp=4,microbatch=2"))
    assert {entry.reason for entry in result.ranks[0].known} == set()
    assert set(result.ranks[0].issued) == {("tp", "all_reduce")}
