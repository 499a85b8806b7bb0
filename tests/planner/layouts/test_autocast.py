"""Autocast keeps norms, softmax and the residual stream in fp32."""

from dataclasses import replace

import pytest

from hardware_profiles import load_software
from paraplan.planning import Options, make_problem
from planner.layouts.autocast import autocasts, cast_bytes, widened
from planner.layouts.cut import Cut
from planner.layouts.sizes import local_sizes
from planner.layouts.work import forward_work, score_bytes


def cut_of(*, precision: str, software: str) -> Cut:
    problem = make_problem(
        Options(model="bert-large?num_layers=2", cluster="dgx-a100-80g:1", global_batch=8,
                seq_len=128, precision=precision, software=software)
    )  # fmt: skip
    return Cut(
        graph=problem.graph, choice=None, size=1, expert_size=1, workload=problem.workload,
        software=problem.software,
        sizes=local_sizes(problem.graph, microbatch_size=2, context_parallel_size=1),
    )  # fmt: skip


def block_operators(cut: Cut) -> list[str]:
    return list(next(unit for unit in cut.graph.units if unit.count > 1).operators)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_full_precision_is_left_alone(precision: str) -> None:
    cut = cut_of(precision=precision, software="pytorch-2020-amp")
    assert not autocasts(cut)
    for name in block_operators(cut):
        assert widened(cut.graph.operator(name), cut) == 1.0
        assert cast_bytes(cut.graph.operator(name), cut) == 0.0


def test_products_behind_norms_cast_and_others_do_not() -> None:
    cut = cut_of(precision="fp16", software="pytorch-2020-amp")
    products = [name for name in block_operators(cut) if cut.graph.operator(name).kind == "matmul"]
    casting = {name for name in products if cast_bytes(cut.graph.operator(name), cut) > 0}
    assert casting
    assert casting < set(products)
    for name in casting:
        assert len(forward_work(cut.graph.operator(name), cut)) == 2


def test_scores_move_and_keep_more_than_without_autocast() -> None:
    cut = cut_of(precision="fp16", software="pytorch-2020-amp")
    plain = replace(cut, software=replace(load_software("pytorch-2020-amp"), autocasts=False))
    name = next(n for n in block_operators(cut) if cut.graph.operator(n).kind == "attention")
    core = cut.graph.operator(name)
    assert score_bytes(core, cut) == pytest.approx(7 / 5 * score_bytes(core, plain))
    moved = [sum(work.memory_bytes for work in forward_work(core, c)) for c in (cut, plain)]
    assert moved[0] > 1.5 * moved[1]
