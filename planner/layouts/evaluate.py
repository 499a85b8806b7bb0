"""What every unit costs under a given layout: the terms that the scorer composes."""

from collections.abc import Iterable
from functools import lru_cache

from hardware_profiles.cluster import Cluster
from hardware_profiles.software import SoftwareProfile
from planner.errors import StrategyError
from planner.graph import ModelGraph, Unit
from planner.layouts.awaiting import awaiting_bytes, keeps_graph
from planner.layouts.costs import (
    OperatorCost,
    Setting,
    gradient_item_bytes,
    operator_cost,
    whole_bytes,
)
from planner.layouts.exchanges import (
    Exchange,
    cheapest_states,
    exchange_seconds,
    exchange_uses,
    expert_exchange,
    producer_bytes,
    producer_exchange,
    reader_bytes,
    reader_exchanges,
)
from planner.layouts.flows import Flow, TensorState, tensor_flows
from planner.layouts.kept import kept_bytes, output_bytes
from planner.layouts.liveness import Transients, backward_transients, held_bytes
from planner.layouts.problem import shared_parameters
from planner.layouts.reshard import PARTIAL
from planner.layouts.sizes import divided_sizes, expert_labels, num_elements
from planner.layouts.solve import setting_for
from planner.layouts.terms import Axis, CollectiveUse, GradientGroup, LayoutSolution, UnitTerms
from planner.workload import Workload


def unit_terms(
    graph: ModelGraph,
    unit: Unit,
    *,
    layout: LayoutSolution,
    context_parallel_size: int,
    expert_parallel_size: int,
    microbatch_size: int,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
) -> UnitTerms:
    """Return the costs of one repetition of one unit, one microbatch, one rank.

    Parameters
    ----------
    graph : ModelGraph
        The model.
    unit : Unit
        One of its units.
    layout : LayoutSolution
        What each operator splits over the tensor axis.
    context_parallel_size, expert_parallel_size : int
        Sizes of these axes [1].
    microbatch_size : int
        Samples of one microbatch [1].
    workload, cluster, software
        Circumstances.

    Returns
    -------
    UnitTerms
        Times [s], FLOPs [FLOP], bytes [B] and collectives.

    Raises
    ------
    StrategyError
        If the layout splits an index that is not divisible here.

    Notes
    -----
    A tensor kept for backward is kept as its producer holds it. Where a product reads it gathered,
    the shard is kept and gathered again before the weight gradient; that second gather runs beside
    the product for the input gradient (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2)
    and is not listed among the collectives. Torch's own layers keep the gathered tensor instead.
    """
    terms = all_unit_terms(
        graph, layout=layout, context_parallel_size=context_parallel_size,
        expert_parallel_size=expert_parallel_size, microbatch_size=microbatch_size,
        workload=workload, cluster=cluster, software=software,
    )  # fmt: skip
    return terms[unit.name]


def all_unit_terms(
    graph: ModelGraph,
    *,
    layout: LayoutSolution,
    context_parallel_size: int,
    expert_parallel_size: int,
    microbatch_size: int,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
) -> dict[str, UnitTerms]:
    """Return :func:`unit_terms` of all units, by unit name."""
    setting = setting_for(
        graph, layout=layout, context_parallel_size=context_parallel_size,
        expert_parallel_size=expert_parallel_size, microbatch_size=microbatch_size,
        workload=workload, cluster=cluster, software=software,
    )  # fmt: skip
    held = None if layout.states is None else tuple(layout.states.items())
    key = ("terms", tuple(layout.choices.items()), held)
    terms: dict[str, UnitTerms] | None = setting.prices.get(key)
    if terms is None:
        check_divisible(setting, layout)
        states = tensor_layouts(setting, layout)
        terms = {unit.name: _terms(setting, unit, layout, states) for unit in graph.units}
        setting.prices[key] = terms
    return terms


def check_divisible(setting: Setting, layout: LayoutSolution) -> None:
    """Refuse a layout that splits an index into unequal parts.

    Raises
    ------
    StrategyError
        With the first operator, its index and the sizes.
    """
    sizes = divided_sizes(setting.graph, setting.sizes, expert_parallel_size=setting.mesh.ep)
    for index in setting.graph.indices.values():
        if sizes[index.label] != int(sizes[index.label]):
            raise StrategyError(
                f"index {index.label} of size {index.size} is not divisible by "
                f"cp={setting.mesh.cp} or ep={setting.mesh.ep}; choose divisors"
            )
    for name, label in layout.choices.items():
        if label is None:
            continue
        size = sizes.get(label, 1.0)
        if size % layout.size:
            raise StrategyError(
                f"operator {name}: tp={layout.size} does not divide {label}={size:g}; "
                "choose a divisor, or another microbatch or context size"
            )


def tensor_layouts(setting: Setting, layout: LayoutSolution) -> dict[str, TensorState]:
    """Return the state in which each tensor is held: the given, else the one of least time."""
    if layout.states is not None:
        return dict(layout.states)

    def price(exchange: Exchange, tensor: str, labels: tuple[str, ...]) -> float:
        if exchange == (None, None):
            return 0.0
        return exchange_seconds(setting, exchange, whole=whole_bytes(setting, tensor, labels))

    return cheapest_states(setting.graph, layout.choices, price=price)


def _terms(
    setting: Setting, unit: Unit, layout: LayoutSolution, states: dict[str, TensorState]
) -> UnitTerms:
    costs = {name: operator_cost(setting, name, layout.choices[name]) for name in unit.operators}
    kept = kept_bytes(setting, unit, layout, costs, states)
    output = output_bytes(setting, unit, states)
    saved = sum(kept.values()) + output
    scores = sum(cost.score_bytes for cost in costs.values())
    awaiting = awaiting_bytes(setting, costs, kept)
    boundary_bytes = _boundary_bytes(setting, unit, states)
    if setting.workload.is_training:
        transients = backward_transients(
            setting, unit, costs=costs, kept=kept, states=states,
            gradient_bytes=gradient_item_bytes(setting),
        )  # fmt: skip
    else:
        largest = max((cost.workspace_bytes for cost in costs.values()), default=0.0)
        transients = Transients.always(largest + boundary_bytes)
    return UnitTerms(
        unit=unit.name,
        forward_s=sum(cost.forward_s for cost in costs.values()),
        backward_s=sum(cost.backward_s for cost in costs.values()),
        weight_s=sum(cost.weight_s for cost in costs.values()),
        selective_recompute_s=sum(cost.recompute_s for cost in costs.values()),
        communication=_merged(_uses(setting, unit, layout, costs, states)),
        gradient_groups=_gradient_groups(setting, unit, costs, states),
        op_recompute_s=sum(cost.forward_s - cost.kept_s for cost in costs.values()),
        op_recompute_flops=sum(cost.forward_flops - cost.kept_flops for cost in costs.values()),
        op_saved_bytes=boundary_bytes + sum(cost.kept_bytes for cost in costs.values()),
        forward_calls=sum(cost.forward_calls for cost in costs.values()),
        backward_calls=sum(cost.backward_calls for cost in costs.values()),
        weight_calls=sum(cost.weight_calls for cost in costs.values()),
        awaiting_bytes=awaiting + (scores if keeps_graph(setting.software) else 0.0),
        selective_awaiting_bytes=awaiting,
        forward_flops=sum(cost.forward_flops for cost in costs.values()),
        backward_flops=sum(cost.backward_flops for cost in costs.values()),
        selective_recompute_flops=sum(cost.recompute_flops for cost in costs.values()),
        saved_bytes=saved + scores,
        selective_saved_bytes=saved,
        boundary_bytes=boundary_bytes,
        workspace_bytes=transients.plain,
        selective_workspace_bytes=transients.selective,
        lazy_workspace_bytes=transients.lazy,
        lazy_selective_workspace_bytes=transients.lazy_selective,
        after_loss_workspace_bytes=transients.after_loss,
        output_bytes=output,
        weight_bytes=_weight_bytes(setting, unit, costs),
        tied_parameters=_tied_parameters(setting, unit, states),
    )


def _uses(
    setting: Setting,
    unit: Unit,
    layout: LayoutSolution,
    costs: dict[str, OperatorCost],
    states: dict[str, TensorState],
) -> list[CollectiveUse]:
    """Return all collectives of a unit: each is issued where the operator that needs it is."""
    graph, names = setting.graph, set(unit.operators)
    uses = [use for cost in costs.values() for use in cost.uses]
    for flow in _flows_of(graph, unit):
        state = states[flow.tensor]
        if flow.producer in names:
            exchange = producer_exchange(graph, flow, layout.choices[flow.producer], state)
            uses += exchange_uses(setting, exchange, whole=producer_bytes(setting, flow))
        for reader, exchange in reader_exchanges(graph, flow, layout.choices, state):
            if reader.operator in names:
                whole = reader_bytes(setting, flow, reader)
                uses += exchange_uses(setting, exchange, whole=whole)
        waiting, moved = expert_exchange(setting, flow, state)
        if waiting in names:
            uses += moved
    return uses


@lru_cache(maxsize=1024)
def _flows_of(graph: ModelGraph, unit: Unit) -> tuple[Flow, ...]:
    names = set(unit.operators)
    return tuple(
        flow
        for flow in tensor_flows(graph).values()
        if flow.producer in names or any(reader.operator in names for reader in flow.readers)
    )


def _merged(uses: Iterable[CollectiveUse]) -> tuple[CollectiveUse, ...]:
    """Return equal collectives once, with the sum of their counts."""
    counts: dict[tuple[object, ...], float] = {}
    first: dict[tuple[object, ...], CollectiveUse] = {}
    for use in uses:
        key = (use.kind, use.axis, use.phase, use.message_bytes)
        counts[key] = counts.get(key, 0.0) + use.count
        first.setdefault(key, use)
    return tuple(
        CollectiveUse(
            kind=use.kind, axis=use.axis, phase=use.phase, message_bytes=use.message_bytes,
            count=counts[key],
        )
        for key, use in first.items()
    )  # fmt: skip


def _gradient_groups(
    setting: Setting,
    unit: Unit,
    costs: dict[str, OperatorCost],
    states: dict[str, TensorState],
) -> tuple[GradientGroup, ...]:
    counts: dict[tuple[tuple[Axis, ...], bool], float] = {}
    seen: set[str] = set()
    for name, cost in costs.items():
        for share in cost.parameters:
            if share.tensor in seen or not _is_first_reader(setting.graph, share.tensor, name):
                continue
            seen.add(share.tensor)
            num_parameters, is_partial = share.num_parameters, share.is_partial
            if share.tensor in states:
                state = states[share.tensor]
                num_parameters = shared_parameters(setting, share.tensor, state)
                is_partial = state.gradient == PARTIAL
            axes: tuple[Axis, ...] = ("dp", "cp", "tp") if is_partial else ("dp", "cp")
            key = (axes, share.is_expert)
            counts[key] = counts.get(key, 0.0) + num_parameters
    return tuple(
        GradientGroup(axes=axes, num_parameters=number, is_expert=is_expert)
        for (axes, is_expert), number in sorted(counts.items())
    )


def _is_first_reader(graph: ModelGraph, tensor: str, operator: str) -> bool:
    flow = tensor_flows(graph).get(tensor)
    return flow is None or flow.readers[0].operator == operator


def _weight_bytes(setting: Setting, unit: Unit, costs: dict[str, OperatorCost]) -> float:
    """Return the weights of a unit's products, one expert for all [B]."""
    elements = 0.0
    for name in unit.operators:
        operator = setting.graph.operator(name)
        if operator.kind == "matmul":
            experts = num_elements(expert_labels(operator), setting.sizes) / setting.mesh.ep
            own = costs[name].num_parameters
            elements += own / experts if expert_labels(operator) else own
    return elements * setting.workload.compute_bytes


def _tied_parameters(setting: Setting, unit: Unit, states: dict[str, TensorState]) -> float:
    """Return elements of parameters that another unit counts already [1]."""
    names = set(unit.operators)
    return sum(
        shared_parameters(setting, flow.tensor, states[flow.tensor])
        for flow in _flows_of(setting.graph, unit)
        if flow.producer is None
        and setting.graph.tensors[flow.tensor].kind == "parameter"
        and flow.readers[0].operator not in names
    )


def _boundary_bytes(setting: Setting, unit: Unit, states: dict[str, TensorState]) -> float:
    """Return activations that enter the unit, as one rank holds them [B]."""
    return sum(held_bytes(setting, name, states) for name in _entering(setting.graph, unit))


@lru_cache(maxsize=1024)
def _entering(graph: ModelGraph, unit: Unit) -> tuple[str, ...]:
    """Return the tensors that enter a unit: activations with a gradient, else the inputs."""
    if unit.carried:
        return tuple(entry for entry, _ in unit.carried)
    names = set(unit.operators)
    read = dict.fromkeys(
        operand.tensor for name in unit.operators for operand in graph.operator(name).inputs
    )
    outside = [name for name in read if graph.tensors[name].producer not in names]
    activations = [
        name
        for name in outside
        if graph.tensors[name].kind == "activation" and graph.tensors[name].requires_grad
    ]
    return tuple(activations or [n for n in outside if graph.tensors[n].kind == "input"])
