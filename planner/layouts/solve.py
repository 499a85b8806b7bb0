"""Which index every operator splits: the least time under a price on memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hardware_profiles.cluster import Cluster
from hardware_profiles.software import SoftwareProfile
from planner.errors import StrategyError
from planner.graph import ModelGraph
from planner.layouts.costs import Setting, setting_of
from planner.layouts.elimination import Factor, minimise
from planner.layouts.problem import Costs, Problem, Quantity, build_problem
from planner.layouts.terms import LayoutSolution
from planner.mesh import MeshShape
from planner.workload import Workload

Table = npt.NDArray[np.float64]
_NUM_OVERLAP_PRICES = 11
"""Values of mu between 0 and 1 for ``max(0, z) = max over mu of mu z`` (notes, search.md A)."""
_MEGATRON_MEMORY_WEIGHT = 1e-9
"""A second per GB: enough that no weight stays whole where it can be cut [s/B]."""


def solve_layouts(
    graph: ModelGraph,
    *,
    tensor_parallel_size: int,
    context_parallel_size: int,
    expert_parallel_size: int,
    microbatch_size: int,
    num_microbatches: int,
    data_parallel_size: int,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
    sequence_parallel: bool | None = None,
    allow_batch: bool = True,
    memory_weights: Sequence[float] = (0.0, 1e-13, 1e-12, 1e-11),
) -> tuple[LayoutSolution, ...]:
    r"""Return the best layouts of the tensor axis, one per price of memory, without duplicates.

    Every operator splits one of its indices or none. The sum of compute, of reshards between
    operators and of the exposed part of gradient sums is minimised exactly by variable
    elimination; repeated units are one set of variables whose entry and exit agree.

    Parameters
    ----------
    graph : ModelGraph
        The model.
    tensor_parallel_size, context_parallel_size, expert_parallel_size, data_parallel_size : int
        Sizes of the mesh axes [1].
    microbatch_size : int
        Samples of one microbatch on one tensor group [1].
    num_microbatches : int
        Microbatches between two gradient sums [1].
    workload : Workload
        Precision, optimizer, training or inference.
    cluster : Cluster
        The machine.
    software : SoftwareProfile
        Fusion and overlap.
    sequence_parallel : bool, optional
        Force or forbid the split of positions between products; None lets the costs decide.
    allow_batch : bool
        Whether operators may split the samples of a microbatch on this axis.
    memory_weights : sequence of float
        Prices of parameters, optimizer state and saved activations [s/B].

    Returns
    -------
    tuple of LayoutSolution
        In the order of the weights.

    Notes
    -----
    Per microbatch, with :math:`m` microbatches, gradient sums :math:`G`, backward :math:`B` and
    overlap share :math:`\phi`: :math:`T + \max(0, G - \phi B) / m + \lambda M`. The maximum is
    replaced by :math:`\mu (G - \phi B)` for 11 values of :math:`\mu`, and the best of the
    solutions under the true objective is kept. Not modelled: microbatches in flight, which the
    weights stand for.
    """
    if tensor_parallel_size == 1:
        return (_named(graph, dict.fromkeys(_operators(graph)), 1),)
    setting = setting_of(
        graph,
        mesh=MeshShape(
            pp=1, dp=data_parallel_size, cp=context_parallel_size, tp=tensor_parallel_size,
            ep=expert_parallel_size, devices_per_node=cluster.devices_per_node,
        ),
        microbatch_size=microbatch_size, workload=workload, cluster=cluster, software=software,
    )  # fmt: skip
    problem = build_problem(setting, sequence_parallel=sequence_parallel, allow_batch=allow_batch)
    found: dict[tuple[str | None, ...], LayoutSolution] = {}
    for choices in best_choices(
        problem, num_microbatches=num_microbatches, memory_weights=memory_weights
    ):
        solution = _named(graph, choices, tensor_parallel_size)
        found.setdefault(tuple(choices.values()), solution)
    return tuple(found.values())


def data_layout(
    graph: ModelGraph, *, tensor_parallel_size: int, microbatch_size: int
) -> LayoutSolution:
    """Return the layout that splits the samples in every operator that has them.

    Raises
    ------
    StrategyError
        If the microbatch is not divisible.
    """
    if microbatch_size % tensor_parallel_size:
        raise StrategyError(
            f"microbatch={microbatch_size} samples cannot be split over tp={tensor_parallel_size} "
            "ranks; use a microbatch that is a multiple, or data parallelism over dp"
        )
    batch = graph.batch_label
    label = batch if tensor_parallel_size > 1 else None
    choices: dict[str, str | None] = dict.fromkeys(_operators(graph), label)
    return _named(graph, choices, tensor_parallel_size)


def megatron_layout(
    graph: ModelGraph,
    *,
    tensor_parallel_size: int,
    context_parallel_size: int = 1,
    expert_parallel_size: int = 1,
    microbatch_size: int,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
    sequence_parallel: bool = False,
) -> LayoutSolution:
    """Return the layout that cuts every weight it can, without splitting samples.

    It is solved for, not listed: with samples whole and memory dear, products alternate between
    columns and rows as in Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053, section 3).

    Raises
    ------
    StrategyError
        If no weight of the model can be cut into this many parts.
    """
    solution = solve_layouts(
        graph,
        tensor_parallel_size=tensor_parallel_size, context_parallel_size=context_parallel_size,
        expert_parallel_size=expert_parallel_size, microbatch_size=microbatch_size,
        num_microbatches=1, data_parallel_size=1, workload=workload, cluster=cluster,
        software=software, sequence_parallel=sequence_parallel, allow_batch=False,
        memory_weights=(_MEGATRON_MEMORY_WEIGHT,),
    )[0]  # fmt: skip
    if tensor_parallel_size > 1 and all(
        solution.choices[name] is None
        for name in _operators(graph)
        if graph.operator(name).kind in ("matmul", "convolution", "recurrent")
    ):
        raise StrategyError(
            f"tp={tensor_parallel_size} divides no width of {graph.name}; use a divisor of its "
            "heads, channels or feed-forward width"
        )
    return solution


def best_choices(
    problem: Problem, *, num_microbatches: int, memory_weights: Sequence[float]
) -> list[dict[str, str | None]]:
    """Return the best label per operator for each memory weight."""
    software = problem.setting.software
    overlap = software.overlap_gradient_sync
    prices = np.linspace(0, 1, _NUM_OVERLAP_PRICES) if overlap > 0 else np.ones(1)
    weights = np.repeat(np.array(memory_weights, dtype=np.float64), len(prices))
    mu = np.tile(prices, len(memory_weights)) / num_microbatches
    factors = weighted_factors(problem, weights=weights, mu=mu)
    minimum = minimise(factors, domains=problem.domains)
    excess = _excess(problem, minimum.choices)
    true = minimum.values - mu * excess + np.maximum(0, excess) / num_microbatches
    results = []
    for first in range(0, len(weights), len(prices)):
        row = first + int(np.argmin(np.round(true[first : first + len(prices)], 15)))
        results.append(
            {
                name: labels[int(minimum.choices[name][row])]
                for name, labels in problem.labels.items()
            }
        )
    return results


def weighted_factors(problem: Problem, *, weights: Table, mu: Table) -> list[Factor]:
    """Return one table per factor and pair of memory weight [s/B] and price of exposed sums [1]."""
    overlap = problem.setting.software.overlap_gradient_sync
    scales: dict[Quantity, Table] = {
        "time": np.ones_like(mu), "memory": weights, "sync": mu, "backward": -overlap * mu,
    }  # fmt: skip
    factors = []
    for costs in problem.costs:
        total: Any = 0.0
        for quantity, table in costs.tables.items():
            total = total + np.multiply.outer(scales[quantity], table)
        factors.append(Factor(variables=costs.variables, table=total))
    return factors


def _excess(problem: Problem, choices: Any) -> Table:
    """Return gradient sums minus the backward time they can hide under, per objective [s]."""
    overlap = problem.setting.software.overlap_gradient_sync
    total: Any = 0.0
    for costs in problem.costs:
        index = tuple(choices[name] for name in costs.variables)
        total = total + _picked(costs, "sync", index) - overlap * _picked(costs, "backward", index)
    result: Table = total
    return result


def _picked(costs: Costs, quantity: Quantity, index: tuple[Any, ...]) -> Any:
    table = costs.tables.get(quantity)
    return 0.0 if table is None else table[index]


def _operators(graph: ModelGraph) -> tuple[str, ...]:
    return tuple(name for unit in graph.units for name in unit.operators)


def _named(graph: ModelGraph, choices: dict[str, str | None], size: int) -> LayoutSolution:
    used = {label for label in choices.values() if label is not None}
    if not used:
        name = "replicated"
    elif used == {graph.batch_label}:
        name = "data"
    else:
        name = "hybrid" if graph.batch_label in used else "tensor"
    return LayoutSolution(name=name, choices=choices, size=size)


def setting_for(
    graph: ModelGraph,
    *,
    layout: LayoutSolution,
    context_parallel_size: int,
    expert_parallel_size: int,
    microbatch_size: int,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
) -> Setting:
    """Return the setting in which a given layout is priced (no data axis)."""
    return setting_of(
        graph,
        mesh=MeshShape(
            pp=1, dp=1, cp=context_parallel_size, tp=layout.size, ep=expert_parallel_size,
            devices_per_node=cluster.devices_per_node,
        ),
        microbatch_size=microbatch_size, workload=workload, cluster=cluster, software=software,
    )  # fmt: skip
