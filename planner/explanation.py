"""Why this plan: bottleneck, binding constraint, runner-up, and what more hardware would buy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hardware_profiles import load_software
from hardware_profiles.cluster import Cluster, NodeGroup
from hardware_profiles.interconnect import Fabric
from planner.errors import NoFeasiblePlanError
from planner.evaluation import evaluate
from planner.layouts.explain import layer_regrets
from planner.mesh import MeshShape
from planner.prediction import fitted_breakdown
from planner.problem import PriceBook, Problem, layout_key
from planner.search import Ranked, SearchResult, search

NOISE = 0.03
"""Margins below this are ties: the closed form and the engine differ by as much [1]."""
FULL_SHARE = 0.9
"""Share of device memory from which memory counts as the binding constraint [1]."""
WORDS: Mapping[str, str] = {
    "compute": "compute",
    "tensor": "tensor-parallel communication",
    "data": "gradient and weight synchronisation",
    "pipeline": "pipeline transfers",
    "context": "context-parallel communication",
    "expert": "expert all-to-all",
    "bubble": "the pipeline bubble",
    "optimizer": "the optimizer step",
    "input": "input",
}


def explain(result: SearchResult) -> dict[str, Any]:
    """Return the explanation of a search, as stored in the plan."""
    best = result.best
    breakdown = fitted_breakdown(best.evaluation.step.breakdown_s, step_time_s=best.step_time_s)
    term = max(breakdown, key=lambda name: breakdown[name])
    losses = {k: v for k, v in breakdown.items() if k != "compute"}
    loss = max(losses, key=lambda name: losses[name])
    mixed = mix(result)
    answer = sentence(result.book.problem, best)
    if mixed is not None:
        answer = f"{answer} Beside data parallelism, {mixed['sentence']}."
    return {
        "sentence": answer,
        "bottleneck": f"{WORDS[term]} takes {breakdown[term] / best.step_time_s:.0%} of the step"
        + (
            f"; the largest loss is {WORDS[loss]} ({breakdown[loss] / best.step_time_s:.1%})"
            if breakdown[loss] > 0
            else ""
        ),
        "binding_constraint": _binding(result),
        "runner_up": _runner_up(result),
        "what_if": what_ifs(result.book, best),
        "layers": layers(result.book, best),
        "mix": mixed,
    }


def sentence(problem: Problem, ranked: Ranked) -> str:
    """Return what to do, in one sentence."""
    strategy = ranked.evaluation.strategy
    parts = []
    if strategy.data_parallel_size > 1:
        how = {
            "none": "data parallel",
            "optimizer": "data parallel with sharded optimizer (ZeRO-1)",
            "gradients": "data parallel with sharded gradients (ZeRO-2)",
            "parameters": "fully sharded data parallel (ZeRO-3)",
        }[strategy.sharding]
        if strategy.sharding_replicas > 1:
            how += f" in {strategy.sharding_replicas} copies"
        parts.append(f"{strategy.data_parallel_size}-way {how}")
    if strategy.tensor_parallel_size > 1:
        name = ranked.evaluation.layout.name
        kind = "per-layer mix of data and model parallel" if name == "hybrid" else "tensor parallel"
        suffix = " with sequence parallel" if strategy.sequence_parallel else ""
        parts.append(f"{strategy.tensor_parallel_size}-way {kind}{suffix}")
    if strategy.context_parallel_size > 1:
        parts.append(f"{strategy.context_parallel_size}-way context parallel")
    if strategy.expert_parallel_size > 1:
        parts.append(f"{strategy.expert_parallel_size}-way expert parallel")
    if strategy.pipeline_parallel_size > 1:
        parts.append(f"{strategy.pipeline_parallel_size} pipeline stages ({strategy.schedule})")
    if strategy.recompute != "none":
        parts.append(f"{strategy.recompute} recomputation")
    split = " x ".join(parts) or "one device, nothing split"
    return (
        f"Run {problem.graph.name} on {strategy.num_devices} of "
        f"{problem.cluster.num_devices} devices of {problem.cluster.name}: {split}."
    )


def _binding(result: SearchResult) -> str:
    best = result.best.evaluation
    share = best.peak_bytes / min(best.capacity_bytes)
    memory = result.rejected.get("memory", 0)
    if share >= FULL_SHARE:
        stage = int(best.memory.peak_bytes.argmax())
        return f"memory: stage {stage} uses {share:.0%} of its device"
    if memory:
        counted = f"{memory} of {result.num_candidates}"
        return f"memory rejected {counted} candidates; this one uses {share:.0%}"
    return f"none: memory is {share:.0%} full, time alone decides"


def _runner_up(result: SearchResult) -> dict[str, Any] | None:
    shape = _shape(result.best)
    others = [r for r in result.ranked[1:] if _shape(r) != shape and r.replayed]
    if not others:
        return None
    other = others[0]
    margin = other.step_time_s / result.best.step_time_s - 1.0
    return {
        "strategy": str(other.evaluation.strategy),
        "step_time_s": other.step_time_s,
        "margin": margin,
        "tie": margin < NOISE,
    }


def _shape(ranked: Ranked) -> MeshShape:
    """Return the sizes of the axes; how many copies of shards there are is no other shape."""
    return replace(ranked.evaluation.mesh, replicas=1)


def mix(result: SearchResult) -> dict[str, Any] | None:
    """Return what a per-layer mix gains over pure splits, here and with the other kind of overlap.

    Krizhevsky's mix saves gradient traffic; what a stack hides anyway cannot be saved again. None
    where the plan mixes nothing, or plain data parallelism does not fit.
    """
    best = result.best
    if best.evaluation.layout.name != "hybrid":
        return None
    problem = result.book.problem
    pure = {
        baseline.name: baseline.step_time_s
        for baseline in result.baselines
        if baseline.step_time_s is not None
        and not baseline.reason
        and baseline.name in ("data parallel", "tensor parallel")
    }
    data_here = pure.get("data parallel")
    if data_here is None:
        return None
    other = load_software("eager" if problem.software.overlap_gradient_sync == 0 else "no-overlap")
    strategy = best.evaluation.strategy
    fixed = {"layout": "mixed", "pipeline_parallel_size": 1, "sharding": strategy.sharding}
    try:
        there = search(replace(problem, software=other), fixed=fixed)
    except NoFeasiblePlanError:
        return None
    data_there = next(b.step_time_s for b in there.baselines if b.name == "data parallel")
    if data_there is None:
        return None
    gain = 1.0 - best.step_time_s / data_here
    if gain <= 0:
        return None
    gain_there = 1.0 - there.best.step_time_s / data_there
    return {
        "gain_over": {name: time_s / best.step_time_s - 1.0 for name, time_s in pure.items()},
        "gain": gain,
        "other_software": other.name,
        "gain_there": gain_there,
        "sentence": f"the mix saves {gain:.1%} of the data-parallel step; with '{other.name}' "
        + (f"the best mix saves {gain_there:.1%}" if gain_there > 0 else "nothing of that remains"),
    }


def layers(book: PriceBook, ranked: Ranked) -> list[dict[str, Any]]:
    """Return per operator what it splits and what each alternative would cost."""
    evaluation = ranked.evaluation
    if evaluation.mesh.tp == 1:
        return []
    problem = book.problem
    rows = layer_regrets(
        problem.graph,
        evaluation.layout,
        context_parallel_size=evaluation.mesh.cp,
        expert_parallel_size=evaluation.mesh.ep,
        microbatch_size=evaluation.strategy.microbatch_size,
        num_microbatches=evaluation.num_microbatches,
        data_parallel_size=evaluation.mesh.dp,
        workload=problem.workload,
        cluster=problem.cluster,
        software=problem.software,
    )
    return [
        row | {"alternatives": {_named(other): other["extra_s"] for other in row["alternatives"]}}
        for row in rows
    ]


def _named(alternative: Mapping[str, Any]) -> str:
    """Return an alternative in words, with the index it would split."""
    choice = alternative["choice"]
    return alternative["words"] if choice is None else f"{alternative['words']}: {choice}"


def what_ifs(book: PriceBook, ranked: Ranked) -> list[dict[str, Any]]:
    """Return the step time of the same strategy on a machine twice as good, most useful first.

    Layouts stay as planned. Stages of unlike devices are cut anew for the new speeds, and where
    that cut turns out worse the old one would be kept, so that no gain is below zero.
    """
    problem, evaluation = book.problem, ranked.evaluation
    planned = {layout_key(evaluation.strategy): (evaluation.layout,)}
    base = evaluation.step.step_time_s
    found = []
    for change, cluster in _better_clusters(problem.cluster):
        other = PriceBook(problem=replace(problem, cluster=cluster), _layouts=dict(planned))
        again = evaluate(other, evaluation.strategy, evaluation.layout)
        scaled = ranked.step_time_s * min(1.0, again.step.step_time_s / base)
        found.append(
            {"change": change, "step_time_s": scaled, "gain": 1.0 - scaled / ranked.step_time_s}
        )
    return sorted(found, key=lambda row: -row["gain"])


def _better_clusters(cluster: Cluster) -> list[tuple[str, Cluster]]:
    options = [
        ("2x peak FLOP/s", replace(cluster, node_groups=_devices(cluster, flops=2.0))),
        ("2x memory bandwidth", replace(cluster, node_groups=_devices(cluster, bandwidth=2.0))),
        ("2x bandwidth inside the node", replace(cluster, intra=_faster(cluster.intra))),
    ]
    if cluster.inter is not None and cluster.num_nodes > 1:
        options.append(
            ("2x bandwidth between nodes", replace(cluster, inter=_faster(cluster.inter)))
        )
    return options


def _devices(
    cluster: Cluster, *, flops: float = 1.0, bandwidth: float = 1.0
) -> tuple[NodeGroup, ...]:
    return tuple(
        replace(
            group,
            device=replace(
                group.device,
                peak_flops_per_s={k: v * flops for k, v in group.device.peak_flops_per_s.items()},
                memory_bandwidth_bytes_per_s=group.device.memory_bandwidth_bytes_per_s * bandwidth,
            ),
        )
        for group in cluster.node_groups
    )


def _faster(fabric: Fabric) -> Fabric:
    return replace(
        fabric,
        bandwidth_bytes_per_s=2.0 * fabric.bandwidth_bytes_per_s,
        link=replace(
            fabric.link,
            bandwidth_bytes_per_s=2.0 * fabric.link.bandwidth_bytes_per_s,
            achievable_bandwidth_bytes_per_s=2.0 * fabric.link.achievable_bandwidth_bytes_per_s,
        ),
    )
