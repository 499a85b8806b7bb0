"""Volumes that follow from a layout, against the closed forms of the field."""

from collections import Counter
from dataclasses import replace

import pytest

from planner.layouts.evaluate import all_unit_terms
from planner.layouts.reshard import reshard_kind
from planner.layouts.solve import data_layout, megatron_layout

TOKENS_BYTES = 2 * 1024 * 1024 * 2
"""b s h of the hand-made GPT at a microbatch of 2, in bf16 [B]."""


@pytest.fixture
def circumstances(builders, training, software):
    return {"workload": training, "cluster": builders["cluster"](300e9), "software": software}


def priced(graph, layout, circumstances, *, microbatch_size=2, context=1, experts=1):
    return all_unit_terms(
        graph, layout=layout, context_parallel_size=context, expert_parallel_size=experts,
        microbatch_size=microbatch_size, **circumstances,
    )  # fmt: skip


def volumes(terms, *, axis="tp"):
    found = Counter()
    for use in terms.communication:
        if use.axis == axis:
            found[use.kind, use.phase, use.message_bytes] += use.count
    return dict(found)


@pytest.mark.parametrize("name", ["alexnet", "resnet", "gpt"])
def test_data_parallelism_sums_every_parameter_once(builders, circumstances, name):
    graph = builders[name]()
    layout = data_layout(graph, tensor_parallel_size=8, microbatch_size=16)
    assert layout.name == "data"
    terms = priced(graph, layout, circumstances, microbatch_size=16)
    total = 0
    for unit in graph.units:
        assert volumes(terms[unit.name]) == {}
        for group in terms[unit.name].gradient_groups:
            assert group.axes == ("dp", "cp", "tp")
            total += unit.count * group.num_parameters
    assert total == graph.num_parameters


def megatron(graph, circumstances, **options):
    return megatron_layout(
        graph, tensor_parallel_size=8, microbatch_size=2, **circumstances, **options
    )


def test_megatron_has_two_all_reduces_each_way_per_block(builders, circumstances):
    graph = builders["gpt"](tied=True)
    layout = megatron(graph, circumstances)
    terms = priced(graph, layout, circumstances)
    block = {
        ("all_reduce", "forward", TOKENS_BYTES): 2,
        ("all_reduce", "backward", TOKENS_BYTES): 2,
    }
    assert volumes(terms["block"]) == block
    assert [layout.choices[n] for n in ("q", "attention", "proj")] == ["heads"] * 3
    assert [layout.choices[n] for n in ("fc1", "gelu", "fc2")] == ["ffn"] * 3


def test_split_vocabulary_adds_one_each_way_and_row_statistics(builders, circumstances):
    graph = builders["gpt"](tied=True)
    layout = megatron(graph, circumstances)
    terms = priced(graph, layout, circumstances)
    assert [layout.choices[n] for n in ("embedding", "head", "loss")] == ["v"] * 3
    assert volumes(terms["embedding"]) == {("all_reduce", "forward", TOKENS_BYTES): 1}
    assert volumes(terms["head"]) == {
        ("all_reduce", "backward", TOKENS_BYTES): 1,
        ("all_reduce", "forward", 2 * 1024 * 4): 3,
    }


def test_sequence_parallelism_moves_as_much(builders, circumstances):
    graph = builders["gpt"](tied=True)
    layout = megatron(graph, circumstances, sequence_parallel=True)
    assert {layout.choices[n] for n in ("norm1", "add1", "norm2", "add2", "norm")} == {"s"}
    terms = priced(graph, layout, circumstances)
    assert volumes(terms["block"]) == {
        (kind, phase, TOKENS_BYTES): 2
        for kind in ("all_gather", "reduce_scatter")
        for phase in ("forward", "backward")
    }
    norms = [group for group in terms["block"].gradient_groups if "tp" in group.axes]
    assert sum(group.num_parameters for group in norms) == 2 * 1024 + 2 * 1024  # norms, biases


def test_tensor_parallelism_holds_an_eighth_of_the_products(builders, circumstances):
    graph = builders["gpt"](tied=True)
    terms = priced(graph, megatron(graph, circumstances), circumstances)
    products = 12 * 1024 * 1024 / 8
    biases_and_norms = 4 * 1024 + 4 * 1024 / 8
    assert terms["block"].num_parameters == products + biases_and_norms
    assert terms["head"].num_parameters == 1024  # the shared table counts at the embedding
    assert terms["head"].tied_parameters == 32768 * 1024 / 8


def test_work_is_shared_out(builders, circumstances):
    graph = builders["gpt"](tied=True)
    whole = data_layout(graph, tensor_parallel_size=1, microbatch_size=2)
    one = priced(graph, whole, circumstances)["block"]
    eight = priced(graph, megatron(graph, circumstances), circumstances)["block"]
    assert one.forward_flops == 2 * 2 * 1024 * (12 * 1024**2 + 2 * 1024 * 1024)
    assert eight.forward_flops == one.forward_flops / 8
    assert eight.backward_flops == 2 * eight.forward_flops
    assert eight.forward_s < one.forward_s < 8 * eight.forward_s


def test_context_ranks_exchange_keys_and_values(builders, circumstances):
    graph = builders["gpt"]()
    layout = data_layout(graph, tensor_parallel_size=1, microbatch_size=2)
    one = priced(graph, layout, circumstances)["block"]
    four = priced(graph, layout, circumstances, context=4)["block"]
    keys_and_values = 2 * TOKENS_BYTES
    assert volumes(four, axis="cp") == {
        ("all_gather", "forward", keys_and_values): 1,
        ("all_gather", "backward", keys_and_values): 1,
        ("reduce_scatter", "backward", keys_and_values): 1,
    }
    assert four.forward_flops == one.forward_flops / 4
    assert four.saved_bytes == one.saved_bytes / 4
    assert four.boundary_bytes == TOKENS_BYTES / 4


def test_experts_are_spread_and_tokens_sent_to_them(builders, circumstances):
    graph = builders["experts"]()
    layout = data_layout(graph, tensor_parallel_size=1, microbatch_size=2)
    one = priced(graph, layout, circumstances)["block"]
    four = priced(graph, layout, circumstances, experts=4)["block"]
    sent = 2 * TOKENS_BYTES  # two experts per token
    assert volumes(four, axis="ep") == {
        ("all_to_all", "forward", sent): 2,
        ("all_to_all", "backward", sent): 2,
    }
    held = {group.is_expert: group.num_parameters for group in four.gradient_groups}
    assert held[True] == 2 * 8 * 1024 * 4096 / 4
    assert held[False] == one.num_parameters - 2 * 8 * 1024 * 4096
    assert four.forward_flops == one.forward_flops


def test_inference_has_no_backward(builders, circumstances):
    graph = builders["gpt"]()
    serving = circumstances | {"workload": replace(circumstances["workload"], mode="infer")}
    terms = priced(graph, megatron(graph, serving), serving)["block"]
    assert {use.phase for use in terms.communication} == {"forward"}
    assert (terms.backward_s, terms.backward_flops, terms.saved_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("have", "want", "kind"),
    [("P", "R", "all_reduce"), ("P", "S:n", "reduce_scatter"), ("S:n", "R", "all_gather"),
     ("S:n", "S:b", "all_to_all"), ("R", "S:n", None), ("R", "P", None), ("S:n", "P", None)],
)  # fmt: skip
def test_table_of_reshards(have, want, kind):
    assert reshard_kind(have, want) == kind
