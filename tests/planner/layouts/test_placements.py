"""What the executor is told: placements, boundaries, and why a layout cannot run."""

from dataclasses import replace

import pytest

from planner.graph import Operand
from planner.layouts.placement_words import placement_of
from planner.layouts.placements import planned_layout
from planner.layouts.solve import data_layout, megatron_layout, solve_layouts
from planner.layouts.terms import LayoutSolution
from planner.models.resolve import resolve_model
from planner.plan import Boundary, ModuleBoundary
from planner.tracing import trace_model


def megatron(builders, training, software, **options):
    graph = builders["gpt"](num_layers=3, tied=True)
    layout = megatron_layout(
        graph, tensor_parallel_size=4, microbatch_size=2, workload=training,
        cluster=builders["cluster"](300e9), software=software, **options,
    )  # fmt: skip
    return planned_layout(graph, layout)


def change(have, want):
    return Boundary(have=have, want=want)


def test_columns_then_rows(builders, training, software):
    plan = megatron(builders, training, software)
    assert (plan.axis, plan.size, plan.model_input, plan.executable) == ("tp", 4, "R", True)
    expected = {
        **dict.fromkeys(("q", "k", "v", "fc1", "embedding"), "S0"), "proj": "S1", "fc2": "S1",
    }  # fmt: skip
    assert {name: plan.parameters[f"{name}.weight"] for name in expected} == expected
    assert plan.parameters["fc1.bias"] == "S0"
    assert "proj.bias" not in plan.parameters
    assert plan.modules["proj"] == ModuleBoundary(output=change("P", "R"))
    assert plan.modules["fc2"] == ModuleBoundary(output=change("P", "R"))
    assert plan.modules["norm1"] == ModuleBoundary(output=change("R", "R"))


def test_sequence_parallel_boundaries(builders, training, software):
    plan = megatron(builders, training, software, sequence_parallel=True)
    assert plan.executable
    assert plan.modules["proj"] == ModuleBoundary(output=change("P", "S1"))
    assert plan.modules["norm2"] == ModuleBoundary(output=change("S1", "R"))
    assert plan.modules["embedding"] == ModuleBoundary(output=change("P", "S1"))


def test_hybrid_gathers_samples_before_the_classifier(builders, training, software):
    graph = builders["alexnet"]()
    layout = solve_layouts(
        graph, tensor_parallel_size=4, context_parallel_size=1, expert_parallel_size=1,
        microbatch_size=256, num_microbatches=1, data_parallel_size=1,
        workload=replace(training, precision="fp32"), cluster=builders["cluster"](12e9),
        software=software, memory_weights=(0.0,),
    )[0]  # fmt: skip
    plan = planned_layout(graph, layout)
    assert plan.executable
    assert plan.model_input == "S0"
    assert not any(name.startswith("conv") for name in plan.parameters)
    changed = plan.modules.get("pool") or plan.modules["fc6"]
    first = changed.output or changed.input
    assert first is not None
    assert first.have == "S0"
    assert first.want in ("R", "S1")


def test_data_parallel_layout_changes_nothing(builders):
    graph = builders["alexnet"]()
    plan = planned_layout(graph, data_layout(graph, tensor_parallel_size=4, microbatch_size=8))
    assert (plan.parameters, plan.modules, plan.model_input) == ({}, {}, "S0")


def test_all_repetitions_are_named(builders):
    graph = builders["gpt"](num_layers=2)
    repeated = replace(
        graph,
        units=tuple(
            replace(unit, module_paths=("blocks.0", "blocks.1")) if unit.count == 2 else unit
            for unit in graph.units
        ),
    )
    for name, data in repeated.graph.nodes(data=True):
        if data["operator"].unit == "block":
            data["operator"] = replace(data["operator"], module_path=f"blocks.0.{name}")
    repeated.parameter_names["fc1.weight"] = ("blocks.0.fc1.weight", "blocks.1.fc1.weight")
    choices = dict.fromkeys(repeated.graph.nodes) | dict.fromkeys(("fc1", "gelu", "fc2"), "ffn")
    plan = planned_layout(repeated, LayoutSolution(name="tensor", choices=choices, size=4))
    assert plan.parameters["blocks.0.fc1.weight"] == plan.parameters["blocks.1.fc1.weight"] == "S0"
    assert plan.modules["blocks.1.fc2"] == ModuleBoundary(output=change("P", "R"))


def test_change_between_two_functions_is_not_executable(builders):
    graph = builders["gpt"]()
    choices = dict.fromkeys(graph.graph.nodes) | {"position": "s"}
    plan = planned_layout(graph, LayoutSolution(name="tensor", choices=choices, size=4))
    assert not plan.executable
    assert "add1: reads position.out as R, which arrives as S:s" in plan.not_executable_because


def test_split_of_positions_inside_attention_is_not_executable(builders):
    graph = builders["gpt"]()
    choices = dict.fromkeys(graph.graph.nodes, "s") | {"loss": None}
    plan = planned_layout(graph, LayoutSolution(name="tensor", choices=choices, size=4))
    assert not plan.executable
    assert "splits positions inside attention" in plan.not_executable_because


def test_inner_factor_of_a_dimension_is_not_executable(builders):
    graph = builders["gpt"]()
    fused = (("d", "heads"), ("h",))
    graph.tensors["q.weight"] = replace(graph.tensors["q.weight"], dims=fused)
    node = graph.graph.nodes["q"]
    node["operator"] = replace(
        node["operator"], parameters=(Operand(tensor="q.weight", dims=fused),)
    )
    choices = dict.fromkeys(graph.graph.nodes) | {"q": "heads"}
    plan = planned_layout(graph, LayoutSolution(name="tensor", choices=choices, size=4))
    assert not plan.executable
    assert "heads is not the leading factor" in plan.not_executable_because


@pytest.mark.parametrize(
    ("layout", "expected"), [("R", "R"), ("P", "P"), ("S:s", "S1"), ("S:d", None), ("S:h", "S2")]
)
def test_placement_of_a_layout(layout, expected):
    assert placement_of(layout, (("b",), ("s",), ("h", "d"))) == expected


def test_a_copy_that_post_norm_blocks_share_is_made_where_their_attention_begins(
    builders, training, software
):
    graph = trace_model(resolve_model("bert-base?num_layers=2&hidden_size=48"), sequence_length=16)
    layout = megatron_layout(
        graph, tensor_parallel_size=2, microbatch_size=2, workload=training,
        cluster=builders["cluster"](300e9), software=software, sequence_parallel=True,
    )  # fmt: skip
    plan = planned_layout(graph, layout)
    for block in ("blocks.0", "blocks.1"):
        assert plan.modules[f"{block}.attention"] == ModuleBoundary(input=change("S1", "R"))
        assert f"{block}.attention.query" not in plan.modules
    assert plan.model_output == "S2"
