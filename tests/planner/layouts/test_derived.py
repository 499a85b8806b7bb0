"""Layouts that must follow from costs alone, and refusals."""

from dataclasses import replace

import pytest

from planner.errors import StrategyError
from planner.layouts.evaluate import all_unit_terms
from planner.layouts.explain import layer_regrets, name_choice
from planner.layouts.solve import data_layout, megatron_layout, solve_layouts
from planner.layouts.terms import LayoutSolution

SLOW, FAST = 12e9, 300e9
CLASSIFIER = ("fc6", "fc7", "fc8")


@pytest.fixture
def solve(builders, training, software):
    def run(graph, *, bandwidth, microbatch_size, overlap=0.0, size=8, precision="fp32", **options):
        options = {"num_microbatches": 1, "memory_weights": (0.0,)} | options
        return solve_layouts(
            graph, tensor_parallel_size=size, context_parallel_size=1, expert_parallel_size=1,
            microbatch_size=microbatch_size, data_parallel_size=1,
            workload=replace(training, precision=precision),
            cluster=builders["cluster"](bandwidth),
            software=replace(software, overlap_gradient_sync=overlap), **options,
        )  # fmt: skip

    return run


def splits(solution, names):
    return [solution.choices[name] for name in names]


def test_alexnet_on_slow_links_is_krizhevskys_hybrid(builders, solve):
    graph = builders["alexnet"]()
    solution = solve(graph, bandwidth=SLOW, microbatch_size=1024)[0]
    assert solution.name == "hybrid"
    assert splits(solution, [f"conv{i}" for i in range(5)]) == ["b"] * 5
    assert "b" not in splits(solution, CLASSIFIER)
    assert None not in splits(solution, CLASSIFIER)


def test_alexnet_at_a_large_batch_is_data_parallel(builders, solve):
    solution = solve(builders["alexnet"](), bandwidth=SLOW, microbatch_size=32768)[0]
    assert solution.name == "data"


def test_alexnet_with_hidden_sums_is_data_parallel(builders, solve):
    graph = builders["alexnet"]()
    exposed = solve(graph, bandwidth=SLOW, microbatch_size=2048)[0]
    hidden = solve(graph, bandwidth=SLOW, microbatch_size=2048, overlap=1.0)[0]
    assert exposed.name == "hybrid"
    assert hidden.name == "data"


def test_resnet_is_data_parallel(builders, solve):
    solution = solve(builders["resnet"](), bandwidth=FAST, microbatch_size=256)[0]
    assert splits(solution, [f"conv{i}" for i in range(8)]) == ["b"] * 8


def test_single_sample_makes_tensor_parallel(builders, solve):
    graph = builders["gpt"](hidden=4096, heads=32)
    solution = solve(graph, bandwidth=FAST, microbatch_size=1, precision="bf16")[0]
    assert solution.name == "tensor"
    assert solution.choices["attention"] == "heads"
    assert splits(solution, ("fc1", "gelu", "fc2")) == ["ffn"] * 3


def test_dear_memory_makes_tensor_parallel(builders, solve):
    graph = builders["gpt"]()
    free, dear = solve(
        graph, bandwidth=FAST, microbatch_size=8, precision="bf16", num_microbatches=64,
        memory_weights=(0.0, 1e-10),
    )  # fmt: skip
    assert splits(free, ("q", "fc1")) == ["b", "b"]
    assert splits(dear, ("q", "attention", "fc1", "fc2")) == ["heads", "heads", "ffn", "ffn"]


def test_experts_are_split_over_the_axis(builders, solve):
    graph = builders["experts"]()
    solution = solve(graph, bandwidth=FAST, microbatch_size=8, precision="bf16")[0]
    assert splits(solution, ("up", "gelu", "down")) == ["e"] * 3
    assert splits(solution, ("norm", "router", "dispatch", "combine")) == ["b"] * 4
    assert name_choice(graph, "up", "e") == "expert parallel"


@pytest.mark.parametrize("microbatch_size", [8, 128])
def test_never_slower_than_a_named_layout(builders, solve, training, software, microbatch_size):
    graph = builders["alexnet"]()
    cluster = builders["cluster"](SLOW)
    workload = replace(training, precision="fp32")
    best = solve(graph, bandwidth=SLOW, microbatch_size=microbatch_size)[0]
    rows = layer_regrets(
        graph, best, context_parallel_size=1, expert_parallel_size=1,
        microbatch_size=microbatch_size, num_microbatches=1, workload=workload, cluster=cluster,
        software=software,
    )  # fmt: skip
    assert [row["operator"] for row in rows][:2] == ["conv0", "conv1"]
    for row in rows:
        assert row["extra_s"] == pytest.approx(0, abs=1e-12)
        assert all(other["extra_s"] >= -1e-12 for other in row["alternatives"])
    assert any(row["alternatives"][0]["extra_s"] > 1e-6 for row in rows)


def test_regret_of_data_parallel_classifier_is_about_its_gradient_sum(
    builders, solve, training, software
):
    graph = builders["alexnet"]()
    solution = solve(graph, bandwidth=SLOW, microbatch_size=128)[0]
    rows = layer_regrets(
        graph, solution, context_parallel_size=1, expert_parallel_size=1, microbatch_size=128,
        num_microbatches=1, workload=replace(training, precision="fp32"),
        cluster=builders["cluster"](SLOW), software=software,
    )  # fmt: skip
    row = next(row for row in rows if row["operator"] == "fc6")
    data = next(other for other in row["alternatives"] if other["words"] == "data parallel")
    ring_s = 2 * 7 / 8 * 9216 * 4096 * 4 / SLOW
    assert 0.5 * ring_s < data["extra_s"] < 1.5 * ring_s
    assert row["words"] == "model parallel (rows)"


def test_same_input_same_layout(builders, solve):
    def choices():
        found = solve(
            builders["alexnet"](), bandwidth=SLOW, microbatch_size=1024, overlap=0.5,
            memory_weights=(0.0, 1e-12),
        )  # fmt: skip
        return [tuple(solution.choices.items()) for solution in found]

    assert choices() == choices() == choices()


def test_overlap_never_makes_the_best_slower(builders, solve, training, software):
    graph = builders["alexnet"]()
    cluster = builders["cluster"](SLOW)
    workload = replace(training, precision="fp32")
    seconds = []
    for overlap in (0.0, 0.5, 1.0):
        stack = replace(software, overlap_gradient_sync=overlap)
        solution = solve(graph, bandwidth=SLOW, microbatch_size=1024, overlap=overlap)[0]
        seconds.append(step_seconds(graph, solution, workload, cluster, stack))
    assert seconds == sorted(seconds, reverse=True)


def step_seconds(graph, solution, workload, cluster, software):
    """Return compute, tensor communication and the exposed gradient sums of a step."""
    from planner.layouts.costs import collective_seconds, operator_cost
    from planner.layouts.problem import sync_seconds
    from planner.layouts.solve import setting_for

    where = {"context_parallel_size": 1, "expert_parallel_size": 1, "microbatch_size": 1024}
    fixed = {"workload": workload, "cluster": cluster, "software": software}
    setting = setting_for(graph, layout=solution, **where, **fixed)
    terms = all_unit_terms(graph, layout=solution, **where, **fixed)["model"]
    communication = sum(
        use.count * collective_seconds(setting, use.kind, use.message_bytes, use.axis)
        for use in terms.communication
    )
    sync = sum(
        sync_seconds(setting, share.num_parameters, is_partial=share.is_partial)
        for name, label in solution.choices.items()
        for share in operator_cost(setting, name, label).parameters
    )
    exposed = max(0.0, sync - software.overlap_gradient_sync * terms.backward_s)
    return terms.forward_s + terms.backward_s + communication + exposed


def test_indivisible_microbatch_is_refused(builders):
    with pytest.raises(StrategyError, match=r"microbatch=6 samples cannot be split over tp=4"):
        data_layout(builders["alexnet"](), tensor_parallel_size=4, microbatch_size=6)


def test_layout_that_does_not_divide_is_refused(builders, training, software):
    graph = builders["gpt"]()
    choices = dict.fromkeys(graph.graph.nodes) | {"attention": "heads"}
    layout = LayoutSolution(name="tensor", choices=choices, size=3)
    with pytest.raises(StrategyError, match=r"operator attention: tp=3 does not divide heads=16"):
        all_unit_terms(
            graph, layout=layout, context_parallel_size=1, expert_parallel_size=1,
            microbatch_size=1, workload=training, cluster=builders["cluster"](FAST),
            software=software,
        )  # fmt: skip


def test_tensor_size_that_divides_nothing_is_refused(builders, training, software):
    with pytest.raises(StrategyError, match=r"tp=7 divides no width of gpt"):
        megatron_layout(
            builders["gpt"](), tensor_parallel_size=7, microbatch_size=2, workload=training,
            cluster=builders["cluster"](FAST), software=software,
        )  # fmt: skip
