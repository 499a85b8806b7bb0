"""Why each layer splits what it splits: what every alternative would cost."""

from functools import lru_cache
from typing import Any

import numpy as np

from hardware_profiles.cluster import Cluster
from hardware_profiles.software import SoftwareProfile
from planner.graph import ModelGraph
from planner.layouts.costs import setting_of
from planner.layouts.elimination import min_marginals
from planner.layouts.problem import build_problem
from planner.layouts.sizes import position_labels
from planner.layouts.solve import weighted_factors
from planner.layouts.terms import LayoutSolution
from planner.mesh import MeshShape
from planner.workload import Workload

_NUM_OVERLAP_PRICES = 5
_HEAVY_KINDS = frozenset({"matmul", "convolution", "attention", "embedding", "recurrent", "loss"})
_WORDS = {
    "expert": "expert parallel",
    "heads": "model parallel (heads)",
    "kv_heads": "model parallel (heads)",
    "vocab": "model parallel (vocabulary)",
    "classes": "model parallel (vocabulary)",
}
_OWN_WORDS = {
    "n": "model parallel (columns)",
    "k": "model parallel (rows)",
    "filters": "model parallel (output channels)",
    "channels": "model parallel (input channels)",
    "hidden": "model parallel (width)",
    "gate": "model parallel (columns)",
}


def name_choice(graph: ModelGraph, operator: str, label: str | None) -> str:
    """Return words for a choice that people know.

    Parameters
    ----------
    graph : ModelGraph
        The model.
    operator : str
        Operator that makes the choice.
    label : str or None
        Label it splits.

    Returns
    -------
    str
        ``data parallel``, ``model parallel (columns)``, ``replicated`` and so on.
    """
    if label is None:
        return "replicated"
    if label == graph.batch_label:
        return "data parallel"
    if label in position_labels(graph):
        return "sequence parallel"
    everywhere = _roles(graph).get(label, frozenset())
    for role, words in _WORDS.items():
        if role in everywhere:
            return words
    own = {index.role for index in graph.operator(operator).indices if index.label == label}
    for role, words in _OWN_WORDS.items():
        if role in own:
            return words
    return f"model parallel ({label})"


def layer_regrets(
    graph: ModelGraph,
    layout: LayoutSolution,
    *,
    context_parallel_size: int,
    expert_parallel_size: int,
    microbatch_size: int,
    num_microbatches: int,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
    data_parallel_size: int = 1,
) -> list[dict[str, Any]]:
    """Return what each heavy operator splits, and what the alternatives would add to a step.

    Parameters
    ----------
    graph : ModelGraph
        The model.
    layout : LayoutSolution
        The layout to explain.
    context_parallel_size, expert_parallel_size, data_parallel_size : int
        Sizes of the other axes [1].
    microbatch_size, num_microbatches : int
        Samples per microbatch, and microbatches per step [1].
    workload, cluster, software
        Circumstances.

    Returns
    -------
    list of dict
        ``operator``, ``module``, ``repetitions``, ``choice``, ``words``, ``extra_s`` (above 0 where
        memory or an option, not time, decided for this choice), and ``alternatives``: ``choice``,
        ``words``, ``extra_s``, the least first [s per step, all repetitions].

    Notes
    -----
    Min-marginals: the operator is held, all others choose anew. Under overlap the least time is
    bounded from below over prices of exposed gradient sums; the regrets are then such bounds.
    """
    setting = setting_of(
        graph,
        mesh=MeshShape(
            pp=1, dp=data_parallel_size, cp=context_parallel_size, tp=layout.size,
            ep=expert_parallel_size, devices_per_node=cluster.devices_per_node,
        ),
        microbatch_size=microbatch_size, workload=workload, cluster=cluster, software=software,
    )  # fmt: skip
    problem = build_problem(setting, sequence_parallel=None, allow_batch=True)
    is_hidden = software.overlap_gradient_sync > 0
    mu = np.linspace(0, 1, _NUM_OVERLAP_PRICES) if is_hidden else np.ones(1)
    factors = weighted_factors(problem, weights=np.zeros_like(mu), mu=mu / num_microbatches)
    found = []
    for unit in graph.units:
        for name in unit.operators:
            operator = graph.operator(name)
            labels = problem.labels[name]
            if operator.kind not in _HEAVY_KINDS or layout.choices[name] not in labels:
                continue
            values = min_marginals(factors, domains=problem.domains, variable=name).max(axis=0)
            extra = (values - values.min()) * num_microbatches
            rows: list[dict[str, Any]] = [
                {
                    "choice": label,
                    "words": name_choice(graph, name, label),
                    "extra_s": float(seconds),
                }
                for label, seconds in zip(labels, extra, strict=True)
            ]
            chosen = next(row for row in rows if row["choice"] == layout.choices[name])
            found.append(
                {
                    "operator": name,
                    "module": operator.module_path,
                    "repetitions": unit.count,
                    **chosen,
                    "alternatives": sorted(
                        (row for row in rows if row is not chosen), key=lambda row: row["extra_s"]
                    ),
                }
            )
    return found


@lru_cache(maxsize=64)
def _roles(graph: ModelGraph) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for _, operator in graph.graph.nodes(data="operator"):
        for index in operator.indices:
            found.setdefault(index.label, set()).add(index.role)
    return {label: frozenset(roles) for label, roles in found.items()}
