"""The search: never worse than what it knows, the same answer twice, the field's own answers."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from paraplan.planning import rank_strategy
from planner.errors import NoFeasiblePlanError
from planner.evaluation import Evaluation, evaluate
from planner.feasibility import find_rejection
from planner.make_plan import plan_of_search
from planner.problem import PriceBook, Problem
from planner.replay import replay_step_time
from planner.search import SearchResult, search
from planner.space import cores, microbatch_sizes, split_variants, strategies_of
from planner.strategy import Strategy, parse_partial_strategy
from tests.planner.problems import MACHINE, on, problem_of

TWO_NODES = "dgx-a100-80g:2"


@cache
def found(model: str, cluster: str, strategy: str = "", **options: Any) -> SearchResult:
    problem = problem_of(model, cluster, **options)
    return search(problem, fixed=parse_partial_strategy(strategy))


def role_of_choice(result: SearchResult, kind: str) -> set[str]:
    """Return the roles of the indices that operators of a kind split, ``whole`` for none."""
    graph, layout = result.book.problem.graph, result.best.evaluation.layout
    roles = set()
    for name, label in layout.choices.items():
        operator = graph.operator(name)
        if operator.kind == kind:
            own = [index.role for index in operator.indices if index.label == label]
            roles.add(own[0] if own else "whole")
    return roles


SMALL_SEARCHES = [
    ("gpt2", MACHINE, {}),
    ("gpt2", TWO_NODES, {"global_batch": 64}),
    ("gpt2", MACHINE, {"global_batch": 7}),
    ("gpt2", "dgx-a100-80g:1?memory=5GB", {}),
    ("mlp", "pcie-k20-8", {}),
    ("alexnet", "pcie-k20-8", {"global_batch": 128, "software": "no-overlap"}),
    ("lstm", "dgx-h100:1", {}),
]


@pytest.mark.parametrize(("model", "cluster", "options"), SMALL_SEARCHES)
def test_the_best_is_never_worse_than_a_baseline(
    model: str, cluster: str, options: dict[str, Any]
) -> None:
    result = found(model, cluster, **options)
    fitting = [
        baseline.step_time_s
        for baseline in result.baselines
        if baseline.evaluation is not None and baseline.evaluation.fits
    ]
    assert fitting
    assert all(result.best.step_time_s <= time_s * (1 + 1e-6) for time_s in fitting)
    assert result.best.evaluation.fits
    assert all(ranked.evaluation.fits for ranked in result.ranked)


@pytest.mark.parametrize(("model", "cluster", "options"), SMALL_SEARCHES)
def test_the_strategy_that_the_search_returns_scores_the_same(
    model: str, cluster: str, options: dict[str, Any]
) -> None:
    result = found(model, cluster, **options)
    best = result.best
    text = str(best.evaluation.strategy)
    _, alone = rank_strategy(result.book.problem, text)
    assert alone.step_time_s == pytest.approx(best.step_time_s, rel=1e-12)
    assert alone.evaluation.peak_bytes == best.evaluation.peak_bytes
    fixed = found(model, cluster, text, **options).best
    assert fixed.step_time_s == pytest.approx(best.step_time_s, rel=1e-12)


def test_more_memory_never_hurts() -> None:
    times, counts = [], []
    for memory in ("3GB", "4GB", "6GB", "80GB"):
        result = found("gpt2", f"{MACHINE}?memory={memory}", global_batch=64)
        times.append(result.best.step_time_s)
        counts.append(result.rejected.get("memory", 0))
    assert times == sorted(times, reverse=True)
    assert counts == sorted(counts, reverse=True)
    assert times[0] > times[-1]


def test_every_candidate_is_counted() -> None:
    result = found("gpt2", MACHINE)
    assert result.num_candidates >= len(result.ranked) + sum(result.rejected.values()) - 4
    assert all(count > 0 for count in result.rejected.values())


def test_a_fixed_part_is_kept() -> None:
    result = found("gpt2", MACHINE, "pp=4,recompute=full")
    assert all(
        (r.evaluation.strategy.pipeline_parallel_size, r.evaluation.strategy.recompute)
        == (4, "full")
        for r in result.ranked
    )


@pytest.mark.parametrize("objective", ["cost", "devices"])
def test_other_objectives(objective: Any) -> None:
    problem = problem_of(cluster=MACHINE)
    best = search(problem, objective=objective).best
    fastest = found("gpt2", MACHINE).best
    devices = best.evaluation.strategy.num_devices
    assert best.step_time_s >= fastest.step_time_s
    if objective == "devices":
        assert devices == 1
    else:
        cost = fastest.step_time_s * fastest.evaluation.strategy.num_devices
        assert best.step_time_s * devices <= cost * (1 + 1e-9)


def test_nothing_fits_names_the_nearest() -> None:
    with pytest.raises(NoFeasiblePlanError, match=r"memory.*the nearest, 'dp=.*of 0\.9 GiB"):
        found("gpt2", f"{MACHINE}?memory=1GB")


# The same answer twice.


PROGRAM = """
import sys
from paraplan.cli import run_command_line
sys.exit(run_command_line(sys.argv[1:]))
"""


@pytest.mark.parametrize("model", ["mlp", "gpt2"])
def test_two_processes_write_the_same_bytes(tmp_path: Any, model: str) -> None:
    texts = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        arguments = ["plan", model, "--cluster", MACHINE, "--global-batch", "16", "--out", out]
        length = ["--seq-len", "128", "--strategy", "pp=2"] if model == "gpt2" else []
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, arguments), *length],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        texts.append((out / "plan.json").read_bytes())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["strategy"].startswith("dp=")


# The closed form beside the engine.


def strategies(problem: Problem) -> Iterator[Strategy]:
    for core in cores(problem, num_devices=16, fixed={}):
        for size in microbatch_sizes(problem, fixed={}):
            yield from strategies_of(problem, core, microbatch_size=size, num_devices=16, fixed={})


def sample(problem: Problem, number: int) -> list[Evaluation]:
    plain = list(strategies(problem))
    split = [v for s in plain if s.schedule == "1f1b" for v in split_variants(problem, s)]
    possible = [s for s in plain + split if find_rejection(problem, s) is None]
    book = PriceBook(problem=problem)
    chosen = random.Random(7).sample(possible, min(number, len(possible)))
    return [evaluate(book, s, book.layouts(s)[0]) for s in chosen]


CEILINGS = {
    "no-overlap": {
        "1f1b": (0.98, 1.08),
        "interleaved": (0.93, 1.08),
        "zero_bubble": (0.88, 1.10),
        "zbv": (0.98, 1.12),
    },
    "eager": {
        "1f1b": (0.97, 1.08),
        "interleaved": (0.94, 1.02),
        "zero_bubble": (0.88, 1.08),
        "zbv": (0.98, 1.09),
    },
    "megatron-core": {"1f1b": (0.97, 1.08), "interleaved": (0.96, 1.02)},
}
"""Closed form over engine: the worst of all strategies of the problem (475, with split
backward passes 715 to 815) with 2 % to spare. Zero bubble is low where there are half as many
microbatches as ranks (0.90, virtual stages that wait for each other); with at least as many it is
within 2 % and 7 %.
Unlike stages are where they part: on 8 ranks 12 blocks cannot be dealt evenly, and the closed form
charges as if all waited for the slowest (over); weights that are gathered wait on every virtual
stage (under)."""


@pytest.mark.parametrize("software", list(CEILINGS))
def test_the_closed_form_agrees_with_the_engine(software: str) -> None:
    problem = problem_of(cluster=TWO_NODES, global_batch=64, software=software)
    ratios: dict[str, list[tuple[float, str]]] = {schedule: [] for schedule in CEILINGS[software]}
    for evaluation in sample(problem, 100):
        ratio = evaluation.step.step_time_s / replay_step_time(evaluation)
        ratios[evaluation.strategy.schedule].append((ratio, str(evaluation.strategy)))
    for schedule, pairs in ratios.items():
        low, high = CEILINGS[software][schedule]
        print(f"{software} {schedule}: lowest {min(pairs)}, highest {max(pairs)}")
        assert min(pairs)[0] >= low
        assert max(pairs)[0] <= high


# Answers of the field, derived.


def test_alexnet_is_krizhevskys_mix() -> None:
    """Batch in the convolutions, width in the fully connected layers (arXiv:1404.5997)."""
    result = found("alexnet", "pcie-k20-8", global_batch=128, software="no-overlap")
    assert result.best.evaluation.layout.name == "hybrid"
    assert role_of_choice(result, "convolution") == {"batch"}
    assert "batch" not in role_of_choice(result, "matmul")
    assert "whole" not in role_of_choice(result, "matmul")
    pure = {b.name: b.step_time_s for b in result.baselines}
    assert result.best.step_time_s < 0.6 * min(pure["data parallel"], pure["tensor parallel"])


def test_resnet_is_data_parallel() -> None:
    result = found("resnet50", "dgx-1v-32g:1", "pp=1", global_batch=256)
    strategy = result.best.evaluation.strategy
    assert (strategy.data_parallel_size, strategy.tensor_parallel_size) == (8, 1)


def test_gpt_under_a_memory_limit_is_megatron() -> None:
    """Heads in attention, columns then rows in the feed-forward (arXiv:1909.08053, section 3)."""
    result = found("gpt2", f"{MACHINE}?memory=3GB", "dp=1,tp=4,pp=1,layout=tensor", global_batch=8)
    assert role_of_choice(result, "attention") == {"heads"}
    products = role_of_choice(result, "matmul")
    assert {"n", "k"} <= products | {"heads"}
    assert "batch" not in products


@pytest.mark.parametrize("cluster", ["tpu-v4:16", "brainwave-s10:8", "alveo-u250:4"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_other_devices_have_plans(cluster: str, mode: str) -> None:
    result = found("gpt2", cluster, "pp=1", mode=mode)
    assert result.best.evaluation.fits
    plan = plan_of_search(result)
    assert plan.cluster.device_kind in ("tpu", "fpga")
    assert plan.prediction["mfu"] < 1


def test_a_mixed_cluster_gives_the_slower_devices_less() -> None:
    evaluation = found(
        "gpt2", "mixed-a100-v100", "dp=8,tp=1,pp=2,schedule=1f1b", precision="fp16", global_batch=64
    ).best.evaluation
    blocks = [evaluation.stages.starts[1], 14 - evaluation.stages.starts[1]]
    assert blocks[0] > blocks[1]


def test_what_is_bought_counts() -> None:
    problem = problem_of(cluster=TWO_NODES, global_batch=64)
    assert problem.cluster.inter is not None
    slow = replace(
        problem.cluster.inter,
        bandwidth_bytes_per_s=problem.cluster.inter.bandwidth_bytes_per_s / 100,
    )
    poor = search(on(problem, replace(problem.cluster, inter=slow))).best
    assert poor.step_time_s > found("gpt2", TWO_NODES, global_batch=64).best.step_time_s
