"""How tensors flow between operators: one node per tensor, so that a fan-out is resharded once."""

from dataclasses import dataclass
from functools import lru_cache

from planner.graph import ModelGraph, Operand, Operator
from planner.layouts.reshard import PARTIAL, REPLICATED, Layout, shard, shard_label
from planner.layouts.sizes import carries, expert_labels, flat_labels, held_labels, inverse_relabel


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """One operand of one operator."""

    operator: str
    operand: Operand


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """A tensor with its producer and readers; parameters flow only when several operators read."""

    tensor: str
    producer: str | None
    readers: tuple[Reader, ...]
    has_gradient: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorState:
    """Layout in which a tensor is held between operators, and in which its gradient is summed."""

    value: Layout
    gradient: Layout


@lru_cache(maxsize=64)
def tensor_flows(graph: ModelGraph) -> dict[str, Flow]:
    """Return the flows of a model: written activations and shared parameters, by tensor name."""
    readers: dict[str, list[Reader]] = {}
    order: list[str] = []
    for unit in graph.units:
        order.extend(unit.operators)
    for name in order:
        operator = graph.operator(name)
        for operand in (*operator.inputs, *operator.parameters):
            readers.setdefault(operand.tensor, []).append(Reader(operator=name, operand=operand))
    flows = {}
    for name, tensor in graph.tensors.items():
        reading = tuple(readers.get(name, ()))
        is_shared = tensor.kind == "parameter" and len({r.operator for r in reading}) > 1
        if is_shared or (tensor.producer is not None and reading):
            flows[name] = Flow(
                tensor=name,
                producer=tensor.producer,
                readers=reading,
                has_gradient=tensor.requires_grad
                and tensor.dtype in ("compute", "fp32")
                and _has_trained_source(graph, tensor.producer),
            )
    return flows


def _has_trained_source(graph: ModelGraph, producer: str | None) -> bool:
    return producer is None or bool(
        graph.operator(producer).parameters
        or any(graph.tensors[op.tensor].requires_grad for op in graph.operator(producer).inputs)
    )


@lru_cache(maxsize=64)
def has_tied_weights(graph: ModelGraph) -> bool:
    """Return whether units share a parameter, as a head and an embedding do."""
    return any(
        flow.producer is None
        and len({graph.operator(reader.operator).unit for reader in flow.readers}) > 1
        for flow in tensor_flows(graph).values()
    )


@lru_cache(maxsize=64)
def tied_tensors(graph: ModelGraph) -> tuple[tuple[str, str], ...]:
    """Return pairs of tensors that must keep one layout: entry and exit of repeated units."""
    return tuple(pair for unit in graph.units if unit.count > 1 for pair in unit.carried)


@lru_cache(maxsize=64)
def unit_counts(graph: ModelGraph) -> dict[str, int]:
    """Return how often each operator's unit is repeated."""
    return {name: unit.count for unit in graph.units for name in unit.operators}


def output_layout(graph: ModelGraph, operator: Operator, tensor: str, choice: str | None) -> Layout:
    """Return the layout in which an operator writes a tensor under its choice.

    A label that the operator does not have says that ranks run it whole.
    """
    if choice is None:
        return REPLICATED
    if carries(operator, flat_labels(graph.tensors[tensor].dims), choice):
        return shard(choice)
    kinds = {index.kind for index in operator.indices if index.label == choice}
    return PARTIAL if kinds - {"coupled"} else REPLICATED


def wanted_gradient(
    graph: ModelGraph, operator: Operator, tensor: str, choice: str | None
) -> Layout:
    """Return the layout in which an operator takes the gradient of what it wrote.

    A shard for a shard, the whole otherwise; where ranks run the operator whole on behalf of their
    own samples, partial sums pass through to its parameters.
    """
    written = output_layout(graph, operator, tensor, choice)
    if shard_label(written) is not None:
        return written
    is_own = any(index.label == choice for index in operator.indices)
    return REPLICATED if choice is None or is_own else PARTIAL


def wanted_layout(
    graph: ModelGraph, operator: Operator, operand: Operand, choice: str | None
) -> Layout:
    """Return the layout in which an operator reads an operand, in the tensor's own labels."""
    if choice is None or not carries(operator, held_labels(graph, operand), choice):
        return REPLICATED
    return shard(inverse_relabel(operand, choice))


def gradient_layout(
    graph: ModelGraph, operator: Operator, operand: Operand, choice: str | None
) -> Layout:
    """Return the layout in which an operator leaves the gradient of an operand.

    An operand that lacks the split label is read whole by every rank; each adds its share.
    """
    wanted = wanted_layout(graph, operator, operand, choice)
    return PARTIAL if choice is not None and wanted == REPLICATED else wanted


def tensor_states(
    graph: ModelGraph, flow: Flow, *, splittable: frozenset[str]
) -> tuple[TensorState, ...]:
    """Return the states a tensor may be held in, in the order that breaks ties.

    Cut along a label together with its gradient, whole with partial gradients (so that those of
    several readers are summed at once), or whole with summed gradients.
    """
    whole = [TensorState(value=REPLICATED, gradient=REPLICATED)]
    if flow.has_gradient:
        whole.insert(0, TensorState(value=REPLICATED, gradient=PARTIAL))
    labels = list(dict.fromkeys(flat_labels(graph.tensors[flow.tensor].dims)))
    if flow.producer is not None:
        producer = graph.operator(flow.producer)
        labels += [
            index.label
            for index in producer.indices
            if index.label not in labels and carries(producer, labels, index.label)
        ]
    for reader in flow.readers:
        operator = graph.operator(reader.operator)
        for index in operator.indices:
            if carries(operator, held_labels(graph, reader.operand), index.label):
                own = inverse_relabel(reader.operand, index.label)
                if own not in labels:
                    labels.append(own)
    cut = [shard(label) for label in labels if label in splittable]
    return (*(TensorState(value=layout, gradient=layout) for layout in cut), *whole)


@lru_cache(maxsize=64)
def expert_operators(graph: ModelGraph) -> frozenset[str]:
    """Return operators that run where the experts are.

    Those with expert weights, and element-wise ones on the way from one such to another.
    """
    experts = {
        name
        for name, operator in graph.graph.nodes(data="operator")
        if any(
            set(flat_labels(operand.dims)) & set(expert_labels(operator))
            for operand in operator.parameters
        )
    }
    below = _through_elementwise(graph, experts, forward=True)
    above = _through_elementwise(graph, experts, forward=False)
    return frozenset(experts | (below & above))


def _through_elementwise(graph: ModelGraph, start: set[str], *, forward: bool) -> set[str]:
    found: set[str] = set()
    left = list(start)
    while left:
        name = left.pop()
        near = graph.graph.successors(name) if forward else graph.graph.predecessors(name)
        for other in near:
            if other not in found and graph.operator(other).kind == "elementwise":
                found.add(other)
                left.append(other)
    return found
