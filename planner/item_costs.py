"""Per-item cost arrays of a model under one layout: what pipeline stages are made of.

An *item* is one repetition of one unit. Terms are computed once per unit and repeated, so 126 equal
blocks cost as much as one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.cluster import Cluster
from hardware_profiles.software import SoftwareProfile
from planner.graph import ModelGraph
from planner.host_time import block_times, framework_delay, num_parameter_tensors
from planner.layouts.terms import (
    CollectiveUse,
    GradientGroup,
    LayoutSolution,
    Phase,
    UnitTerms,
)
from planner.mesh import MeshShape
from planner.stages import item_units
from planner.workload import Workload
from simulator.collectives import collective_time

Floats = NDArray[np.float64]
GradientKey = tuple[tuple[str, ...], bool]
"""Axes over which gradients are partial, and whether the parameters are experts'."""
BACKWARD_OPERATORS = 2.0
"""Backward operators per forward operator: a gradient for the input and one for the weight [1]."""
BESIDE_WEIGHT_PRODUCTS = ("all_reduce", "reduce_scatter")
"""Collectives of input gradients, which nothing but the layer before waits for, so that the product
for the weight gradient may run beside them; an all-gather comes before both products (Korthikanti
et al. 2022, arXiv:2205.05198, section 4.2.2)."""
WEIGHT_PRODUCTS_SHARE = 0.5
"""Share of backward compute that the products for weight gradients take [1]."""
PHASES: tuple[Phase, ...] = ("forward", "backward")
CATEGORY_OF_AXIS = {"tp": "tensor", "cp": "context", "ep": "expert", "dp": "data"}


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemCosts:
    """Arrays over items, for one rank and one microbatch.

    Communication is the *exposed* part: what the software stack does not hide behind compute.
    """

    layout: LayoutSolution
    forward_s: Floats
    backward_s: Floats
    inputs_s: Floats
    """Gradients of inputs alone, where a schedule makes those of weights later [s]."""
    weights_s: Floats
    """Gradients of weights alone [s]."""
    beside_weights_s: Floats
    """Communication that hides beside products of weight gradients, which follow at once [s]."""
    selective_s: Floats
    op_s: Floats
    """Compute that op-level recomputation adds to backward, 0 for items it does not cover [s]."""
    recompute_s: Floats
    """Compute that full recomputation adds to backward, 0 for items it does not cover [s]."""
    forward_comm_s: Mapping[str, Floats]
    """Category (tensor, context, expert) -> exposed time in forward [s]."""
    backward_comm_s: Mapping[str, Floats]
    awaiting_bytes: Floats
    """Kept between the gradients of inputs and those of weights [B]."""
    selective_awaiting_bytes: Floats
    saved_bytes: Floats
    selective_saved_bytes: Floats
    op_saved_bytes: Floats
    op_flops: Floats
    boundary_bytes: Floats
    workspace_bytes: Floats
    """Most alive in backward beside ``saved_bytes`` [B]."""
    selective_workspace_bytes: Floats
    lazy_workspace_bytes: Floats
    """The same with the item's own gradients of parameters made on the way [B]."""
    lazy_selective_workspace_bytes: Floats
    after_loss_workspace_bytes: Floats
    """As ``lazy_workspace_bytes``, once the loss has run backward [B]."""
    output_bytes: Floats
    """Of ``saved_bytes``, what is held until the whole backward pass is through [B]."""
    parameter_tensors: Floats
    """Parameter tensors, whole or shards [1]."""
    weight_bytes: Floats
    """Weights of the item's products in the compute precision, of equal experts one [B]."""
    parameters: Mapping[GradientKey, Floats]
    """Elements held by one rank, by gradient group."""
    is_recomputed: Floats
    """1 for items that full recomputation covers, else 0: the repeated blocks, or all items of a
    model without repetition; embedding and head keep what they save, as in Megatron-LM [1]."""
    tied_parameters: Floats
    """Elements of weights that an earlier unit counts, held again on a later stage [1]."""
    forward_flops: Floats
    backward_flops: Floats
    selective_flops: Floats

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.forward_s)

    def total_parameters(self) -> Floats:
        """Return elements held by one rank per item."""
        return sum(self.parameters.values(), np.zeros(self.num_items))

    def comm_s(self, phase: str) -> Floats:
        """Return exposed communication per item over all categories [s]."""
        table = self.forward_comm_s if phase == "forward" else self.backward_comm_s
        return sum(table.values(), np.zeros(self.num_items))


def item_costs(
    graph: ModelGraph,
    terms: Mapping[str, UnitTerms],
    *,
    layout: LayoutSolution,
    mesh: MeshShape,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
) -> ItemCosts:
    """Return item arrays from unit terms."""
    units = [terms[unit.name] for unit in graph.units]
    repeat = item_units(graph)

    def spread(value: Callable[[UnitTerms], float]) -> Floats:
        return np.array([value(unit) for unit in units], dtype=np.float64)[repeat]

    is_recomputed = _recomputed(graph)[repeat]
    dispatch_s = software.sharded_operator_overhead_s if mesh.tp > 1 else 0.0
    dispatch = dispatch_s * np.array([len(unit.operators) for unit in graph.units])[repeat]
    exposed = {
        phase: _exposed(units, phase, mesh=mesh, cluster=cluster, software=software)
        for phase in PHASES
    }
    host = block_times(
        graph, units, mesh=mesh, workload=workload, cluster=cluster, software=software,
        comm_s={
            phase: sum(table.values(), np.zeros(len(units))) for phase, table in exposed.items()
        },
    )  # fmt: skip
    keys = sorted({_gradient_key(group) for unit in units for group in unit.gradient_groups})
    return ItemCosts(
        layout=layout,
        forward_s=host.forward_s[repeat] + dispatch,
        backward_s=host.backward_s[repeat] + BACKWARD_OPERATORS * dispatch,
        inputs_s=host.inputs_s[repeat] + dispatch,
        weights_s=host.weights_s[repeat] + (BACKWARD_OPERATORS - 1.0) * dispatch,
        beside_weights_s=np.array(
            [
                _beside_weights_s(unit, mesh=mesh, cluster=cluster, software=software)
                for unit in units
            ]
        )[repeat],
        awaiting_bytes=spread(lambda unit: unit.awaiting_bytes),
        selective_awaiting_bytes=spread(lambda unit: unit.selective_awaiting_bytes),
        recompute_s=(host.recompute_s[repeat] + dispatch) * is_recomputed,
        selective_s=spread(lambda unit: unit.selective_recompute_s),
        op_s=spread(lambda unit: unit.op_recompute_s) * is_recomputed,
        forward_comm_s={name: each[repeat] for name, each in exposed["forward"].items()},
        backward_comm_s={name: each[repeat] for name, each in exposed["backward"].items()},
        saved_bytes=spread(lambda unit: unit.saved_bytes),
        selective_saved_bytes=spread(lambda unit: unit.selective_saved_bytes),
        op_saved_bytes=spread(lambda unit: unit.op_saved_bytes),
        op_flops=spread(lambda unit: unit.op_recompute_flops) * is_recomputed,
        boundary_bytes=spread(lambda unit: unit.boundary_bytes),
        workspace_bytes=spread(lambda unit: unit.workspace_bytes),
        selective_workspace_bytes=spread(lambda unit: unit.selective_workspace_bytes),
        lazy_workspace_bytes=spread(lambda unit: unit.lazy_workspace_bytes),
        lazy_selective_workspace_bytes=spread(lambda unit: unit.lazy_selective_workspace_bytes),
        after_loss_workspace_bytes=spread(lambda unit: unit.after_loss_workspace_bytes),
        output_bytes=spread(lambda unit: unit.output_bytes),
        parameter_tensors=np.array([num_parameter_tensors(graph, u) for u in graph.units])[repeat],
        weight_bytes=spread(lambda unit: unit.weight_bytes),
        parameters={
            key: spread(
                lambda unit, key=key: sum(  # type: ignore[misc]
                    group.num_parameters
                    for group in unit.gradient_groups
                    if _gradient_key(group) == key
                )
            )
            for key in keys
        },
        is_recomputed=is_recomputed,
        tied_parameters=spread(lambda unit: unit.tied_parameters),
        forward_flops=spread(lambda unit: unit.forward_flops),
        backward_flops=spread(lambda unit: unit.backward_flops),
        selective_flops=spread(lambda unit: unit.selective_recompute_flops),
    )


def _recomputed(graph: ModelGraph) -> Floats:
    counts = np.array([unit.count for unit in graph.units])
    return (counts > 1).astype(np.float64) if counts.max() > 1 else np.ones(len(counts))


def _gradient_key(group: GradientGroup) -> GradientKey:
    return tuple(group.axes), group.is_expert


def _exposed(
    units: Sequence[UnitTerms],
    phase: Phase,
    *,
    mesh: MeshShape,
    cluster: Cluster,
    software: SoftwareProfile,
) -> dict[str, Floats]:
    """Return category -> exposed communication of each unit in one phase [s]."""
    categories = {CATEGORY_OF_AXIS[use.axis] for unit in units for use in unit.communication}
    return {
        category: np.array(
            [
                _exposed_s(unit, phase, category, mesh=mesh, cluster=cluster, software=software)
                for unit in units
            ]
        )
        for category in sorted(categories)
    }


def _exposed_s(
    unit: UnitTerms,
    phase: Phase,
    category: str,
    *,
    mesh: MeshShape,
    cluster: Cluster,
    software: SoftwareProfile,
) -> float:
    """Return the time of a unit's collectives of one category that compute does not hide [s]."""
    uses = _timed_uses(unit, phase, category, mesh=mesh, cluster=cluster, software=software)
    total_s = sum(seconds for _, seconds in uses)
    if category != "tensor":
        return total_s
    exposed_s = (1.0 - software.overlap_tensor_parallel) * total_s
    if phase == "forward":
        return exposed_s
    hidden_s = _beside_weights_s(unit, mesh=mesh, cluster=cluster, software=software)
    return max(0.0, exposed_s - hidden_s)


def _timed_uses(
    unit: UnitTerms,
    phase: Phase,
    category: str,
    *,
    mesh: MeshShape,
    cluster: Cluster,
    software: SoftwareProfile,
) -> list[tuple[str, float]]:
    """Return kind and time of a unit's collectives of one category [s]."""
    return [
        (
            use.kind,
            use.count
            * (
                collective_use_time(use, mesh=mesh, cluster=cluster)
                + framework_delay(mesh.group(use.axis), software=software)
            ),
        )
        for use in unit.communication
        if use.phase == phase and CATEGORY_OF_AXIS[use.axis] == category
    ]


def _beside_weights_s(
    unit: UnitTerms, *, mesh: MeshShape, cluster: Cluster, software: SoftwareProfile
) -> float:
    """Return the tensor communication that runs beside products of weight gradients [s]."""
    if software.overlap_tensor_backward == 0.0:
        return 0.0
    uses = _timed_uses(unit, "backward", "tensor", mesh=mesh, cluster=cluster, software=software)
    total_s = sum(seconds for _, seconds in uses)
    beside_s = sum(seconds for kind, seconds in uses if kind in BESIDE_WEIGHT_PRODUCTS)
    return min(
        software.overlap_tensor_backward * beside_s,
        WEIGHT_PRODUCTS_SHARE * unit.backward_s,
        (1.0 - software.overlap_tensor_parallel) * total_s,
    )


def collective_use_time(use: CollectiveUse, *, mesh: MeshShape, cluster: Cluster) -> float:
    """Return the time of one collective of a unit [s]."""
    return collective_time(use.kind, use.message_bytes, group=mesh.group(use.axis), cluster=cluster)


def slowest(costs: list[ItemCosts]) -> ItemCosts:
    """Return the element-wise slowest of the same layout on several devices (a mixed group)."""
    first = costs[0]
    if len(costs) == 1:
        return first

    def worst(pick: Callable[[ItemCosts], Floats]) -> Floats:
        slow: Floats = np.maximum.reduce([pick(cost) for cost in costs])
        return slow

    return replace(
        first,
        forward_s=worst(lambda c: c.forward_s),
        backward_s=worst(lambda c: c.backward_s),
        inputs_s=worst(lambda c: c.inputs_s),
        weights_s=worst(lambda c: c.weights_s),
        selective_s=worst(lambda c: c.selective_s),
        op_s=worst(lambda c: c.op_s),
        recompute_s=worst(lambda c: c.recompute_s),
    )
