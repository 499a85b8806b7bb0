"""Figures: lengths, order and colours follow the plan."""

import pytest
from matplotlib.collections import LineCollection

from hardware_profiles.clusters import load_cluster
from planner.plan import Plan
from planner.report.network import network_facts, network_figure
from planner.report.plots import memory_figure, plans_figure, term_colors, time_figure
from planner.report.summary import summarise


def test_plans_are_bars_by_step_time_with_intervals(full_plan: Plan) -> None:
    figure = plans_figure(summarise(full_plan))
    (axes,) = figure.axes
    lengths = [bar.get_width() for bar in axes.patches]
    assert lengths == pytest.approx([32.1, 33.4, 34.9, 36.2, 39.0, 41.9, 58.7])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "dp8 tp8 pp16 mb1 sp"
    assert labels[-1].startswith("FSDP\n")
    whiskers = [line for line in axes.collections if isinstance(line, LineCollection)]
    (low, _), (high, _) = whiskers[0].get_segments()[0]
    assert (low, high) == pytest.approx((29.8, 35.0))


def test_small_times_have_a_small_unit(full_plan: Plan) -> None:
    fast = full_plan.prediction | {"step_time_s": 0.0123, "step_time_interval_s": [0.011, 0.014]}
    plan = full_plan.model_copy(update={"prediction": fast, "candidates": (), "baselines": ()})
    (axes,) = plans_figure(summarise(plan)).axes
    assert "[ms]" in axes.get_xlabel()
    assert axes.patches[0].get_width() == pytest.approx(12.3)


def test_time_terms_are_bars_from_long_to_short(full_plan: Plan) -> None:
    (axes,) = time_figure(summarise(full_plan)).axes
    lengths = [bar.get_width() for bar in axes.patches]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(lengths) == pytest.approx(32.1, rel=1e-3)
    assert "23.9 s · 74.5 %" in [text.get_text() for text in axes.texts]


def test_memory_of_the_fullest_stage_is_divided_and_the_limit_is_drawn(full_plan: Plan) -> None:
    (axes,) = memory_figure(summarise(full_plan)).axes
    tops = {}
    for bar in axes.patches:
        stage = round(bar.get_x() + bar.get_width() / 2)
        tops[stage] = max(tops.get(stage, 0.0), bar.get_y() + bar.get_height())
    assert tops[0] == pytest.approx(61.2)
    assert tops[15] == pytest.approx(61.2 - 1.4 * 15)
    assert axes.lines[0].get_ydata()[0] == pytest.approx(80)
    assert axes.get_ylim()[1] > 80


def test_memory_per_stage_is_stacked_where_it_is_known(full_plan: Plan) -> None:
    gib = 2**30
    stages = [{"parameters": 2 * gib, "activations": gib}, {"parameters": gib, "logits": gib}]
    prediction = full_plan.prediction | {"memory_breakdown_bytes_per_stage": stages}
    (axes,) = memory_figure(summarise(full_plan.model_copy(update={"prediction": prediction}))).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(labels) == {"parameters", "activations", "logits"}
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(5)


def test_nothing_to_draw_is_no_figure(bare_plan: Plan) -> None:
    summary = summarise(bare_plan)
    assert plans_figure(summary) is time_figure(summary) is memory_figure(summary) is None


def test_terms_have_colours_of_their_own() -> None:
    colors = term_colors(["compute", "tensor", "data", "pipeline", "bubble", "optimizer", "x", "y"])
    assert len(set(colors.values())) == len(colors)


@pytest.mark.parametrize(
    "name",
    ["dgx-a100-80g:128", "dgx-1v-32g", "pcie-v100-8:2", "tpu-v4:64", "tpu-v5e:16",
     "gb200-nvl72:2", "mi300x-8", "brainwave-s10:4", "mixed-a100-v100"],
)  # fmt: skip
def test_networks_of_every_topology_are_drawn_apart(name: str) -> None:
    cluster = load_cluster(name)
    figure = network_figure(cluster)
    points = [
        tuple(point.round(3)) for dots in figure.axes[0].collections[1:]
        for point in dots.get_offsets()
    ]  # fmt: skip
    assert len(points) >= min(cluster.num_devices, 8)
    assert len(points) == len(set(points))
    figure.canvas.draw()


def test_a_slice_too_large_to_tell_apart_is_told_in_words_only() -> None:
    cluster = load_cluster("tpu-v5p:512")
    assert network_figure(cluster) is None
    assert "8 × 8 × 8" in dict(network_facts(cluster))["inside"]
