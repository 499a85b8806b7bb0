"""Batch norms move their tensors more often than layer norms, and take in what follows them."""

from dataclasses import replace

import pytest

from hardware_profiles import load_software
from planner.layouts.norm_traffic import is_batch_norm, norm_before
from planner.layouts.sizes import local_sizes
from planner.layouts.work import Cut, backward_work, forward_work
from planner.models.resolve import resolve_model
from planner.tracing import trace_model
from planner.workload import Workload

BATCH = 16


def cut_of(*, fuses: bool, mode: str = "train") -> Cut:
    graph = trace_model(resolve_model("resnet50?depths=[1,1]"), sequence_length=None)
    sizes = local_sizes(graph, microbatch_size=BATCH, context_parallel_size=1)
    workload = Workload(
        global_batch_size=BATCH, sequence_length=1, precision="fp16", mode=mode
    )  # fmt: skip
    software = replace(load_software("eager"), fuses_norm_activation=fuses)
    return Cut(
        graph=graph, sizes=sizes, choice=None, size=1, expert_size=1, workload=workload,
        software=software,
    )  # fmt: skip


def operator_at(cut: Cut, path: str, kind: str):
    operators = [cut.graph.operator(name) for name in cut.graph.graph.nodes]
    return next(op for op in operators if op.module_path == path and op.kind == kind)


def moved(cut: Cut, path: str, kind: str, *, backward: bool = False) -> float:
    operator = operator_at(cut, path, kind)
    works = backward_work(operator, cut) if backward else forward_work(operator, cut)
    return sum(work.memory_bytes for work in works)


STEM_BYTES = BATCH * 64 * 112 * 112 * 2
"""The stem's output in 16 bits [B]."""


@pytest.mark.parametrize(
    ("mode", "backward", "passes"),
    [("train", False, 3), ("train", True, 5), ("infer", False, 2)],
)
def test_a_batch_norm_reads_twice_for_statistics_and_once_with_given_ones(mode, backward, passes):
    measured = moved(cut_of(fuses=False, mode=mode), "bn1", "normalization", backward=backward)
    assert measured == pytest.approx(passes * STEM_BYTES, rel=1e-4)


def test_an_activation_after_a_norm_costs_nothing_where_it_is_fused():
    assert moved(cut_of(fuses=False), "relu", "elementwise") == pytest.approx(2 * STEM_BYTES)
    assert moved(cut_of(fuses=True), "relu", "elementwise") == 0
    assert moved(cut_of(fuses=True), "relu", "elementwise", backward=True) == 0


def test_a_shortcut_is_still_read_and_its_gradient_written():
    cut = cut_of(fuses=True)
    names = [name for name in cut.graph.graph.nodes if norm_before(
        cut.graph, cut.graph.operator(name), cut.software)]  # fmt: skip
    sums = [cut.graph.operator(name) for name in names if "add" in name or "add" in
            cut.graph.operator(name).target]  # fmt: skip
    shortcut_bytes = BATCH * 256 * 56 * 56 * 2
    works = forward_work(sums[0], cut), backward_work(sums[0], cut)
    assert [work[0].memory_bytes for work in works] == [shortcut_bytes, shortcut_bytes]


def test_layer_norms_are_no_batch_norms():
    graph = trace_model(resolve_model("gpt2?num_layers=4"), sequence_length=64)
    operators = [graph.operator(name) for name in graph.graph.nodes]
    assert not any(is_batch_norm(operator) for operator in operators)
