"""The closed forms again, on graphs that the tracer made."""

from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from planner.layouts.evaluate import all_unit_terms
from planner.layouts.placements import planned_layout
from planner.layouts.solve import data_layout, megatron_layout, solve_layouts
from planner.models.resolve import resolve_model
from planner.tracing import trace_model


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")

    def trace(name, length=None):
        return trace_model(resolve_model(name), sequence_length=length, cache_dir=folder)

    return trace


@pytest.fixture
def circumstances(builders, training, software):
    return {"workload": training, "cluster": builders["cluster"](300e9), "software": software}


def priced(graph, layout, circumstances, microbatch_size):
    return all_unit_terms(
        graph, layout=layout, context_parallel_size=1, expert_parallel_size=1,
        microbatch_size=microbatch_size, **circumstances,
    )  # fmt: skip


def counts(terms):
    found = Counter()
    for use in terms.communication:
        found[use.kind, use.phase, use.message_bytes] += use.count
    return dict(found)


def block_of(graph):
    return max(graph.units, key=lambda unit: unit.count).name


@pytest.mark.parametrize(
    ("name", "num_parameters"), [("gpt2", 124_439_808), ("alexnet", 61_100_840)]
)
def test_data_parallelism_sums_every_parameter_once(traced, circumstances, name, num_parameters):
    graph = traced(name)
    layout = data_layout(graph, tensor_parallel_size=4, microbatch_size=8)
    terms = priced(graph, layout, circumstances, 8)
    summed = sum(
        unit.count * group.num_parameters
        for unit in graph.units
        for group in terms[unit.name].gradient_groups
        if group.axes == ("dp", "cp", "tp")
    )
    assert summed == num_parameters
    assert all(terms[unit.name].communication == () for unit in graph.units)


def test_megatron_volumes(traced, circumstances):
    graph = traced("gpt3-1.3b")
    layout = megatron_layout(graph, tensor_parallel_size=4, microbatch_size=2, **circumstances)
    terms = priced(graph, layout, circumstances, 2)
    tokens_bytes = 2 * 2048 * 2048 * 2
    assert counts(terms[block_of(graph)]) == {
        ("all_reduce", "forward", tokens_bytes): 2,
        ("all_reduce", "backward", tokens_bytes): 2,
    }
    assert counts(terms["embedding"]) == {("all_reduce", "forward", tokens_bytes): 1}
    assert counts(terms["head"]) == {
        ("all_reduce", "backward", tokens_bytes): 1,
        ("all_reduce", "forward", 2 * 2048 * 4): 3,
    }


@pytest.mark.parametrize("name", ["gpt3-1.3b", "llama3-8b"])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_megatron_layouts_can_run(traced, circumstances, name, sequence_parallel):
    graph = traced(name)
    layout = megatron_layout(
        graph, tensor_parallel_size=4, microbatch_size=2, sequence_parallel=sequence_parallel,
        **circumstances,
    )  # fmt: skip
    plan = planned_layout(graph, layout)
    assert plan.executable, plan.not_executable_because
    assert plan.parameters["blocks.7.ffn.up.weight"] == "S0"
    assert plan.parameters["blocks.7.ffn.down.weight"] == "S1"
    outside = "S1" if sequence_parallel else "R"
    assert plan.modules["blocks.7.ffn.down"].output.want == outside


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_saved_activations_are_those_of_korthikanti(traced, circumstances, size, sequence_parallel):
    """Per block ``s b h (10 + 24 / t + 5 a s / (h t))``, all over t with sequence parallelism.

    Korthikanti et al. 2022, arXiv:2205.05198, equations 2 and 4; statistics of norms and of the
    softmax come on top.
    """
    graph = traced("gpt3-1.3b")
    unfused = replace(circumstances["workload"], attention="unfused")
    fixed = circumstances | {"workload": unfused}
    layout = megatron_layout(
        graph, tensor_parallel_size=size, microbatch_size=2, sequence_parallel=sequence_parallel,
        **fixed,
    )  # fmt: skip
    terms = priced(graph, layout, fixed, 2)[block_of(graph)]
    tokens, hidden, heads, length = 2 * 2048, 2048, 16, 2048
    whole = 10 / size if sequence_parallel else 10
    core = 5 * heads * length / hidden / size
    expected = tokens * hidden * (whole + 24 / size + core)
    assert expected <= terms.saved_bytes <= 1.005 * expected
    assert terms.saved_bytes - terms.selective_saved_bytes == tokens * hidden * core


def test_block_flops_are_the_closed_form(traced, circumstances):
    graph = traced("gpt3-1.3b")
    layout = data_layout(graph, tensor_parallel_size=1, microbatch_size=2)
    terms = priced(graph, layout, circumstances, 2)[block_of(graph)]
    tokens, hidden, length = 2 * 2048, 2048, 2048
    products = 24 * tokens * hidden**2 + 4 * tokens * length * hidden
    assert terms.forward_flops == products
    assert terms.backward_flops == 2 * products


def test_alexnet_is_krizhevskys_hybrid(traced, builders, training, software):
    graph = traced("alexnet")
    layout = solve_layouts(
        graph, tensor_parallel_size=8, context_parallel_size=1, expert_parallel_size=1,
        microbatch_size=1024, num_microbatches=1, data_parallel_size=1,
        workload=replace(training, precision="fp32", sequence_length=1),
        cluster=builders["cluster"](12e9), software=software, memory_weights=(0.0,),
    )[0]  # fmt: skip
    for name, label in layout.choices.items():
        if graph.operator(name).kind == "convolution":
            assert label == "b"
        if graph.operator(name).kind == "matmul":
            assert label not in ("b", None)


def test_resnet_with_overlap_is_data_parallel(traced, builders, training, software):
    graph = traced("resnet50")
    layout = solve_layouts(
        graph, tensor_parallel_size=8, context_parallel_size=1, expert_parallel_size=1,
        microbatch_size=256, num_microbatches=1, data_parallel_size=1,
        workload=replace(training, sequence_length=1), cluster=builders["cluster"](300e9),
        software=replace(software, overlap_gradient_sync=0.9), memory_weights=(0.0,),
    )[0]  # fmt: skip
    assert layout.name == "data"
