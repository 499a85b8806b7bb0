"""Collectives between operators: reshards on edges and tokens on their way to experts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from planner.graph import ModelGraph
from planner.layouts.costs import Setting, collective_seconds, whole_bytes
from planner.layouts.flows import (
    Flow,
    Reader,
    TensorState,
    expert_operators,
    gradient_layout,
    output_layout,
    tensor_flows,
    tensor_states,
    tied_tensors,
    unit_counts,
    wanted_gradient,
    wanted_layout,
)
from planner.layouts.reshard import (
    PARTIAL,
    REPLICATED,
    Layout,
    message_bytes,
    reshard_kind,
    shard_label,
)
from planner.layouts.sizes import flat_labels, read_labels
from planner.layouts.terms import CollectiveUse, Phase
from simulator.groups import CollectiveKind

Exchange = tuple[CollectiveKind | None, CollectiveKind | None]
"""Collective forward, collective backward."""
_TIE = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowClass:
    """Tensors that share one state: one tensor, or entry and exit of repeated units."""

    flows: tuple[Flow, ...]

    @property
    def name(self) -> str:
        """Name of the first tensor."""
        return self.flows[0].tensor


@lru_cache(maxsize=64)
def flow_classes(graph: ModelGraph) -> tuple[FlowClass, ...]:
    """Return all tensors that flow, tied ones together."""
    flows = tensor_flows(graph)
    leader = {name: name for name in flows}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for entry, exit_ in tied_tensors(graph):
        if entry in flows and exit_ in flows:
            leader[find(exit_)] = find(entry)
    members: dict[str, list[Flow]] = {}
    for name, flow in flows.items():
        members.setdefault(find(name), []).append(flow)
    return tuple(FlowClass(flows=tuple(group)) for group in members.values())


@lru_cache(maxsize=256)
def class_states(
    graph: ModelGraph, group: FlowClass, splittable: frozenset[str]
) -> tuple[TensorState, ...]:
    """Return the states that all tensors of a class can have."""
    states = [tensor_states(graph, flow, splittable=splittable) for flow in group.flows]
    return tuple(state for state in states[0] if all(state in other for other in states[1:]))


def producer_exchange(
    graph: ModelGraph, flow: Flow, choice: str | None, state: TensorState
) -> Exchange:
    """Return what turns a producer's output into the state, and the gradient back."""
    if flow.producer is None:
        return None, None
    producer = graph.operator(flow.producer)
    written = output_layout(graph, producer, flow.tensor, choice)
    forward = reshard_kind(written, state.value)
    if not flow.has_gradient:
        return forward, None
    back = wanted_gradient(graph, producer, flow.tensor, choice)
    return forward, reshard_kind(state.gradient, back)


def reader_exchange(
    graph: ModelGraph, flow: Flow, reader: Reader, choice: str | None, state: TensorState
) -> Exchange:
    """Return what turns the state into what a reader wants, and its gradient back."""
    operator = graph.operator(reader.operator)
    forward = reshard_kind(state.value, wanted_layout(graph, operator, reader.operand, choice))
    if not flow.has_gradient:
        return forward, None
    return forward, reshard_kind(
        gradient_layout(graph, operator, reader.operand, choice), state.gradient
    )


def reader_exchanges(
    graph: ModelGraph, flow: Flow, choices: Mapping[str, str | None], state: TensorState
) -> list[tuple[Reader, Exchange]]:
    """Return what each reader of a tensor exchanges; those of one module share a copy.

    Where some readers take the tensor as it is held and others of the same unit do not, the latter
    read one gathered copy, and their gradients are summed before they go back (the queries, keys
    and values beside the residual of a post-norm block).
    """
    found = [
        (reader, reader_exchange(graph, flow, reader, choices[reader.operator], state))
        for reader in flow.readers
    ]
    if all(exchange != (None, None) for _, exchange in found):
        return found
    shared: set[tuple[object, ...]] = set()
    kept = []
    for reader, exchange in found:
        operator = graph.operator(reader.operator)
        wanted = wanted_layout(graph, operator, reader.operand, choices[reader.operator])
        key = (exchange, wanted, operator.unit, read_labels(graph, reader.operand))
        if exchange == (None, None) or key not in shared:
            kept.append((reader, exchange))
        shared.add(key)
    return kept


def is_shared_copy(
    graph: ModelGraph, flow: Flow, choices: Mapping[str, str | None], state: TensorState
) -> bool:
    """Whether several readers of a tensor share one exchange."""
    return len(reader_exchanges(graph, flow, choices, state)) < len(flow.readers)


def exchange_uses(
    setting: Setting, exchange: Exchange, *, whole: float
) -> tuple[CollectiveUse, ...]:
    """Return the collectives of an exchange over the tensor axis; ``whole`` bytes of tensor [B]."""
    phases: tuple[Phase, ...] = ("forward", "backward")
    return tuple(
        CollectiveUse(
            kind=kind, axis="tp", phase=phase,
            message_bytes=message_bytes(kind, whole_bytes=whole, axis_size=setting.mesh.tp),
        )
        for phase, kind in zip(phases, exchange, strict=True)
        if kind is not None and (phase == "forward" or setting.workload.is_training)
    )  # fmt: skip


def exchange_seconds(setting: Setting, exchange: Exchange, *, whole: float) -> float:
    """Return the exposed time of an exchange [s]."""
    if exchange == (None, None):
        return 0.0
    return sum(
        collective_seconds(setting, use.kind, use.message_bytes, use.axis)
        for use in exchange_uses(setting, exchange, whole=whole)
    )


def producer_bytes(setting: Setting, flow: Flow) -> float:
    """Return the bytes of a tensor as its producer writes it [B]."""
    return whole_bytes(setting, flow.tensor, flat_labels(setting.graph.tensors[flow.tensor].dims))


def reader_bytes(setting: Setting, flow: Flow, reader: Reader) -> float:
    """Return the bytes of the part of a tensor that a reader reads [B]."""
    return whole_bytes(setting, flow.tensor, read_labels(setting.graph, reader.operand))


def expert_exchange(
    setting: Setting, flow: Flow, state: TensorState
) -> tuple[str, tuple[CollectiveUse, ...]]:
    """Return the operator that waits for tokens, and the all-to-all that brings them.

    Tokens cross when producer and reader are on different sides of the experts' border.
    """
    graph = setting.graph
    if setting.mesh.ep == 1 or flow.producer is None or not flow.has_gradient:
        return "", ()
    inside = expert_operators(graph)
    crossing = [
        reader
        for reader in flow.readers
        if (reader.operator in inside) != (flow.producer in inside)
    ]
    if not crossing:
        return "", ()
    num_bytes = producer_bytes(setting, flow)
    if shard_label(state.value) is not None:
        num_bytes /= setting.mesh.tp
    phases: tuple[Phase, ...] = (
        ("forward", "backward") if setting.workload.is_training else ("forward",)
    )
    return crossing[0].operator, tuple(
        CollectiveUse(kind="all_to_all", axis="ep", phase=phase, message_bytes=num_bytes)
        for phase in phases
    )


def class_cost(
    graph: ModelGraph,
    group: FlowClass,
    choices: Mapping[str, str | None],
    state: TensorState,
    *,
    price: Callable[[Exchange, str, tuple[str, ...]], float],
) -> float:
    """Return what a class of tensors costs in one state, all repetitions.

    ``price`` values an exchange of the slice of a tensor that some labels span.
    """
    counts = unit_counts(graph)
    total = 0.0
    for flow in group.flows:
        if flow.producer is not None:
            exchange = producer_exchange(graph, flow, choices[flow.producer], state)
            labels = flat_labels(graph.tensors[flow.tensor].dims)
            total += counts[flow.producer] * price(exchange, flow.tensor, labels)
        for reader, exchange in reader_exchanges(graph, flow, choices, state):
            labels = read_labels(graph, reader.operand)
            total += counts[reader.operator] * price(exchange, flow.tensor, labels)
    return total


def cheapest_states(
    graph: ModelGraph,
    choices: Mapping[str, str | None],
    *,
    price: Callable[[Exchange, str, tuple[str, ...]], float],
) -> dict[str, TensorState]:
    """Return the state in which each tensor is held: the cheapest.

    Of equal ones one with a copy that readers share, else the first.
    """
    splittable = frozenset(label for label in choices.values() if label is not None)
    found = {}
    for group in flow_classes(graph):
        states = _useful(graph, group, choices, class_states(graph, group, splittable))
        costs = [class_cost(graph, group, choices, state, price=price) for state in states]
        limit = min(costs) * (1 + _TIE)
        best = [state for state, cost in zip(states, costs, strict=True) if cost <= limit]
        shared = [
            state
            for state in best
            if any(is_shared_copy(graph, flow, choices, state) for flow in group.flows)
        ]
        found.update({flow.tensor: (shared or best)[0] for flow in group.flows})
    return found


def _useful(
    graph: ModelGraph,
    group: FlowClass,
    choices: Mapping[str, str | None],
    states: tuple[TensorState, ...],
) -> tuple[TensorState, ...]:
    """Return the states in which somebody writes or reads the tensors: no detour by others.

    A shared weight's gradient is a partial sum only if some reader leaves it divided.
    """
    used: set[Layout] = set()
    leaves_partial = False
    for flow in group.flows:
        if flow.producer is not None:
            producer = graph.operator(flow.producer)
            used.add(output_layout(graph, producer, flow.tensor, choices[flow.producer]))
        for reader in flow.readers:
            operator = graph.operator(reader.operator)
            choice = choices[reader.operator]
            used.add(wanted_layout(graph, operator, reader.operand, choice))
            left = gradient_layout(graph, operator, reader.operand, choice)
            leaves_partial |= left != REPLICATED
    if all(flow.producer is None for flow in group.flows):  # slices of a whole weight are free
        useful = tuple(s for s in states if leaves_partial or s.gradient != PARTIAL)
    else:
        useful = tuple(state for state in states if state.value in used)
    return useful or states
