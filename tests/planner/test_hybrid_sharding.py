"""Sharded state in several copies: hybrid sharding between data parallel and fully sharded."""

from dataclasses import replace

import pytest

from planner.errors import StrategyError
from planner.explanation import explain
from planner.mesh import mesh_of
from planner.search import search
from planner.space import sharding_replicas
from planner.strategy import check_strategy, parse_strategy
from tests.planner.problems import evaluated, problem_of

TWO_NODES = "dgx-a100-80g:2"


def test_groups_are_neighbours_and_replicas_their_counterparts() -> None:
    strategy = parse_strategy("dp=8,tp=2,microbatch=1,sharding=parameters,replicas=2")
    mesh = mesh_of(strategy, devices_per_node=8)
    shards, copies = mesh.data_shard_group(), mesh.data_replica_group()
    assert (shards.num_ranks, shards.num_nodes) == (4, 1)
    assert (copies.num_ranks, copies.num_nodes) == (2, 2)


def test_the_text_reads_back() -> None:
    text = "dp=16,microbatch=1,sharding=parameters,replicas=2"
    assert str(parse_strategy(text)) == text
    assert "replicas" not in str(parse_strategy("dp=16,microbatch=1,sharding=parameters"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dp=16,replicas=2", "nothing is sharded"),
        ("dp=16,sharding=parameters,replicas=3", "no equal shards"),
        ("dp=16,sharding=parameters,replicas=16", "no equal shards"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        check_strategy(parse_strategy(text))


@pytest.mark.parametrize("sharding", ["optimizer", "parameters"])
def test_state_takes_as_many_times_the_memory_as_there_are_copies(sharding: str) -> None:
    problem = problem_of(cluster=TWO_NODES, software="megatron-2021", precision="fp16")
    text = f"dp=16,microbatch=2,sharding={sharding}"
    whole = evaluated(problem, text).memory.breakdown_of_largest()
    copied = evaluated(problem, f"{text},replicas=2").memory.breakdown_of_largest()
    assert copied["optimizer"] == pytest.approx(2 * whole["optimizer"])


def test_gathers_inside_a_node_are_faster_than_across() -> None:
    """Copies are summed once per step, gathers and scatters come with every microbatch."""
    problem = problem_of(
        "gpt2-xl", cluster=TWO_NODES, software="no-overlap", seq_len=128, global_batch=128
    )
    whole = evaluated(problem, "dp=16,microbatch=1,sharding=parameters").step
    copied = evaluated(problem, "dp=16,microbatch=1,sharding=parameters,replicas=2").step
    assert copied.breakdown_s["data"] < whole.breakdown_s["data"]
    assert copied.breakdown_s["compute"] == whole.breakdown_s["compute"]


def test_the_search_tries_one_copy_per_node_and_only_across_nodes() -> None:
    across, within = problem_of(cluster=TWO_NODES), problem_of(cluster="dgx-a100-80g:1")
    assert sharding_replicas(
        across, "parameters", ranks=16, stride=1, pipeline_size=1, fixed={}
    ) == [1, 2]
    assert sharding_replicas(
        across, "parameters", ranks=4, stride=4, pipeline_size=1, fixed={}
    ) == [1, 2]
    assert sharding_replicas(
        across, "optimizer", ranks=16, stride=1, pipeline_size=1, fixed={}
    ) == [1]
    assert sharding_replicas(
        within, "parameters", ranks=8, stride=1, pipeline_size=1, fixed={}
    ) == [1]
    assert sharding_replicas(
        across, "parameters", ranks=16, stride=1, pipeline_size=2, fixed={}
    ) == [1]
    found = search(across, fixed={"sharding": "parameters", "sharding_replicas": 2})
    assert found.best.evaluation.strategy.sharding_replicas == 2


def test_another_number_of_copies_is_no_runner_up() -> None:
    result = search(problem_of(cluster=TWO_NODES), fixed={"sharding": "parameters"})
    best, second = (ranked.evaluation.strategy for ranked in result.ranked[:2])
    assert second == replace(best, sharding_replicas=2)
    assert result.ranked[1].replayed
    other = parse_strategy(explain(result)["runner_up"]["strategy"])
    assert replace(other, sharding_replicas=1) != best
