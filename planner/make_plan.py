"""From a search or one evaluated strategy to the plan file."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from planner.baselines import Baseline
from planner.evaluation import Evaluation
from planner.explanation import explain
from planner.graph import ModelGraph
from planner.layouts.evaluate import tensor_layouts
from planner.layouts.placements import planned_layout
from planner.layouts.solve import setting_for
from planner.mesh import mesh_axes
from planner.plan import (
    Plan,
    PlannedCluster,
    PlannedLayout,
    PlannedMesh,
    PlannedModel,
    PlannedStage,
    PlannedUnits,
    PlannedWorkload,
)
from planner.prediction import prediction
from planner.problem import PriceBook, Problem
from planner.search import Ranked, SearchResult

VERSION = "0.1.0"
NUM_SHOWN = 20
"""Runners-up kept in a plan file."""
_HEADLINE = (
    "strategy",
    "layout",
    "step_time_s",
    "step_time_interval_s",
    "tokens_per_s",
    "samples_per_s",
    "mfu",
    "peak_memory_bytes",
    "memory_capacity_bytes",
    "fits",
    "bubble_fraction",
    "num_devices",
    "cost_usd_per_hour",
    "cost_usd_per_step",
    "breakdown_s",
)


def plan_of_search(result: SearchResult) -> Plan:
    """Return the plan of a finished search."""
    problem = result.book.problem
    return _plan(
        problem,
        result.best,
        candidates=tuple(_headline(problem, ranked) for ranked in result.ranked[:NUM_SHOWN]),
        baselines=tuple(_baseline(problem, baseline) for baseline in result.baselines),
        rejected=result.rejected,
        explanation=explain(result),
    )


def plan_of_strategy(book: PriceBook, ranked: Ranked) -> Plan:
    """Return the plan of one strategy that the user chose whole."""
    return _plan(book.problem, ranked, candidates=(), baselines=(), rejected={}, explanation={})


def _plan(
    problem: Problem,
    ranked: Ranked,
    *,
    candidates: Sequence[dict[str, Any]],
    baselines: Sequence[dict[str, Any]],
    rejected: dict[str, int],
    explanation: dict[str, Any],
) -> Plan:
    evaluation, graph = ranked.evaluation, problem.graph
    workload, cluster = problem.workload, problem.cluster
    layouts: tuple[PlannedLayout, ...] = ()
    if evaluation.mesh.tp > 1:
        setting = setting_for(
            graph, layout=evaluation.layout, context_parallel_size=evaluation.mesh.cp,
            expert_parallel_size=evaluation.mesh.ep,
            microbatch_size=evaluation.strategy.microbatch_size, workload=problem.workload,
            cluster=problem.cluster, software=problem.software,
        )  # fmt: skip
        states = tensor_layouts(setting, evaluation.layout)
        layouts = (planned_layout(graph, evaluation.layout, states=states),)
    return Plan(
        paraplan_version=VERSION,
        model=PlannedModel(
            source=graph.source,
            name=graph.name,
            num_parameters=graph.num_parameters,
            content_key=graph.content_key,
        ),
        workload=PlannedWorkload(
            global_batch_size=workload.global_batch_size,
            sequence_length=workload.sequence_length,
            precision=workload.precision,
            optimizer=workload.optimizer,
            mode=workload.mode,
            attention=workload.attention,
        ),
        cluster=PlannedCluster(
            name=cluster.name,
            device=cluster.device.name,
            device_kind=cluster.device.kind,
            num_devices=cluster.num_devices,
            devices_per_node=cluster.devices_per_node,
        ),
        software=problem.software.name,
        strategy=str(evaluation.strategy),
        mesh=PlannedMesh(axes=mesh_axes(evaluation.strategy)),
        stages=planned_stages(graph, evaluation),
        layouts=layouts,
        prediction=prediction(problem, evaluation, step_time_s=ranked.step_time_s),
        candidates=tuple(candidates),
        baselines=tuple(baselines),
        rejected=rejected,
        explanation=explanation,
        assumptions=assumptions(problem, evaluation),
    )


def _headline(problem: Problem, ranked: Ranked) -> dict[str, Any]:
    full = prediction(problem, ranked.evaluation, step_time_s=ranked.step_time_s)
    return {key: full[key] for key in _HEADLINE} | {"replayed": ranked.replayed}


def _baseline(problem: Problem, baseline: Baseline) -> dict[str, Any]:
    if baseline.evaluation is None or baseline.step_time_s is None:
        return {"name": baseline.name, "fits": None, "reason": f"not possible: {baseline.reason}"}
    full = prediction(problem, baseline.evaluation, step_time_s=baseline.step_time_s)
    return {"name": baseline.name, "reason": baseline.reason} | {
        key: full[key] for key in _HEADLINE
    }


def planned_stages(graph: ModelGraph, evaluation: Evaluation) -> tuple[PlannedStage, ...]:
    """Return units and module paths of every virtual stage."""
    items = [(unit, repetition) for unit in graph.units for repetition in range(unit.count)]
    starts = [*evaluation.stages.starts.tolist(), len(items)]
    stages = []
    for first, last in pairwise(starts):
        units: list[PlannedUnits] = []
        paths: list[str] = []
        for unit, repetition in items[first:last]:
            if units and units[-1].unit == unit.name:
                units[-1] = PlannedUnits(unit=unit.name, first=units[-1].first, last=repetition + 1)
            else:
                units.append(PlannedUnits(unit=unit.name, first=repetition, last=repetition + 1))
            if repetition < len(unit.module_paths):
                paths.append(unit.module_paths[repetition])
        stages.append(PlannedStage(units=tuple(units), module_paths=tuple(paths)))
    return tuple(stages)


def assumptions(problem: Problem, evaluation: Evaluation) -> tuple[str, ...]:
    """Return what a reader must know to judge the numbers, one line each."""
    device = problem.cluster.device
    assumed = [
        name for name, source in sorted(device.provenance.items()) if source.kind == "assumed"
    ]
    lines = [
        f"{device.name}: {', '.join(assumed) or 'nothing'} (its other figures have sources)",
        f"software profile '{problem.software.name}': {problem.software.title}",
        f"precision {problem.workload.precision}, optimizer {problem.workload.optimizer}, "
        f"{problem.state.total:g} B per parameter before sharding",
        "pipeline transfers, collectives and compute of symmetric ranks take equal time; "
        "groups share NICs evenly, transfers beside collectives do not slow each other",
    ]
    if evaluation.stages.num_stages > 1:
        lines.append("stages hold equal numbers of repeated blocks where they divide")
    lines += [f"{warning.subject}: {warning.message}" for warning in problem.graph.warnings]
    return tuple(lines)
