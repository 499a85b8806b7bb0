"""The layout problem of one setting as tables over choices: time, memory, gradient sums."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from planner.layouts.choices import candidate_labels
from planner.layouts.costs import (
    OperatorCost,
    Setting,
    bytes_per_parameter,
    collective_seconds,
    gradient_item_bytes,
    operator_cost,
)
from planner.layouts.exchanges import (
    FlowClass,
    class_states,
    exchange_seconds,
    expert_exchange,
    flow_classes,
    producer_bytes,
    producer_exchange,
    reader_bytes,
    reader_exchange,
)
from planner.layouts.flows import TensorState, tensor_flows, unit_counts
from planner.layouts.reshard import PARTIAL, shard_label
from planner.layouts.sizes import divided_sizes

if TYPE_CHECKING:
    from planner.layouts.terms import Axis

Quantity = Literal["time", "memory", "sync", "backward"]
Table = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Costs:
    """Tables of one factor by quantity; a quantity left out is zero."""

    variables: tuple[str, ...]
    tables: dict[Quantity, Table]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problem:
    """Variables are operators and tensors; the objective is a weighted sum of their factors."""

    setting: Setting
    labels: dict[str, tuple[str | None, ...]]
    """Operator -> the labels it may split."""
    states: dict[str, tuple[TensorState, ...]]
    """Tensor variable -> the states it may be held in."""
    costs: tuple[Costs, ...]

    @property
    def domains(self) -> dict[str, int]:
        """Variable -> number of choices; operators first, in execution order."""
        sizes = {name: len(labels) for name, labels in self.labels.items()}
        return sizes | {name: len(states) for name, states in self.states.items()}


def tensor_variable(group: FlowClass) -> str:
    """Return the name of a tensor's variable, apart from operators' names."""
    return f"tensor:{group.name}"


def build_problem(
    setting: Setting,
    *,
    sequence_parallel: bool | None,
    allow_batch: bool,
) -> Problem:
    """Return the tables of one setting.

    Parameters
    ----------
    setting : Setting
        Graph, mesh, microbatch, workload and machine.
    sequence_parallel : bool, optional
        See :func:`planner.layouts.choices.candidate_labels`.
    allow_batch : bool
        Whether samples may be split on the tensor axis.

    Returns
    -------
    Problem
        Per microbatch and rank, all repetitions counted: time and sync [s], memory [B].
    """
    graph = setting.graph
    counts = unit_counts(graph)
    divided = divided_sizes(graph, setting.sizes, expert_parallel_size=setting.mesh.ep)
    labels = {
        name: candidate_labels(
            graph, graph.operator(name), axis_size=setting.mesh.tp, sizes=divided,
            allow_batch=allow_batch, sequence_parallel=sequence_parallel,
        )
        for unit in graph.units
        for name in unit.operators
    }  # fmt: skip
    splittable = frozenset(
        label for offered in labels.values() for label in offered if label is not None
    )
    groups = flow_classes(graph)
    states = {
        tensor_variable(group): _offered_states(setting, group, labels, splittable)
        for group in groups
    }
    costs = [
        _operator_costs(setting, name, offered, counts[name]) for name, offered in labels.items()
    ]
    for group in groups:
        costs.extend(_class_costs(setting, group, labels, states[tensor_variable(group)]))
    return Problem(setting=setting, labels=labels, states=states, costs=tuple(costs))


def _offered_states(
    setting: Setting,
    group: FlowClass,
    labels: dict[str, tuple[str | None, ...]],
    splittable: frozenset[str],
) -> tuple[TensorState, ...]:
    """Return the states of a tensor; a shared weight is cut where all its readers must cut it."""
    states = class_states(setting.graph, group, splittable)
    is_weight = all(flow.producer is None for flow in group.flows)
    must_cut = all(
        None not in labels[reader.operator] for flow in group.flows for reader in flow.readers
    )
    if is_weight and must_cut:
        cut = tuple(state for state in states if shard_label(state.value) is not None)
        return cut or states
    return states


def sync_seconds(setting: Setting, num_parameters: float, *, is_partial: bool) -> float:
    """Return the time to sum gradients of parameters held by one rank, once per step [s].

    Gradients travel in buckets, so that a small tensor pays its share of a bucket's latency.
    """
    if not setting.workload.is_training or num_parameters == 0:
        return 0.0
    axes: tuple[Axis, ...] = ("dp", "cp", "tp") if is_partial else ("dp", "cp")
    item = gradient_item_bytes(setting)
    all_bytes = setting.graph.num_parameters * item
    bucket_bytes = min(setting.software.gradient_bucket_bytes, all_bytes) or all_bytes
    seconds = collective_seconds(setting, "all_reduce", bucket_bytes, *axes)
    return seconds * num_parameters * item / bucket_bytes


def is_shared(setting: Setting, tensor: str) -> bool:
    """Whether several operators read a parameter, which makes it a tensor variable."""
    return tensor in tensor_flows(setting.graph)


def use_seconds(setting: Setting, cost: OperatorCost) -> float:
    """Return the time of an operator's own collectives [s]."""
    return sum(
        use.count * collective_seconds(setting, use.kind, use.message_bytes, use.axis)
        for use in cost.uses
    )


def _operator_costs(
    setting: Setting, name: str, labels: tuple[str | None, ...], count: int
) -> Costs:
    rows: dict[Quantity, list[float]] = {"time": [], "memory": [], "sync": [], "backward": []}
    for label in labels:
        cost = operator_cost(setting, name, label)
        own = [share for share in cost.parameters if not is_shared(setting, share.tensor)]
        parameters = sum(share.num_parameters for share in own)
        rows["time"].append(cost.forward_s + cost.backward_s + use_seconds(setting, cost))
        rows["memory"].append(
            cost.saved_bytes + cost.score_bytes + parameters * bytes_per_parameter(setting)
        )
        rows["sync"].append(
            sum(
                sync_seconds(setting, share.num_parameters, is_partial=share.is_partial)
                for share in own
            )
        )
        rows["backward"].append(cost.backward_s)
    return Costs(
        variables=(name,),
        tables={quantity: count * np.array(row) for quantity, row in rows.items()},
    )


def _class_costs(
    setting: Setting,
    group: FlowClass,
    labels: dict[str, tuple[str | None, ...]],
    states: tuple[TensorState, ...],
) -> list[Costs]:
    names = {
        name
        for flow in group.flows
        for name in (flow.producer, *(reader.operator for reader in flow.readers))
        if name is not None
    }
    key = ("edges", group.name, states, tuple((name, labels[name]) for name in sorted(names)))
    edges: list[Costs] | None = setting.prices.get(key)
    if edges is None:
        edges = setting.prices[key] = _edge_costs(setting, group, labels, states)
    return [_state_costs(setting, group, states), *edges]


def _edge_costs(
    setting: Setting,
    group: FlowClass,
    labels: dict[str, tuple[str | None, ...]],
    states: tuple[TensorState, ...],
) -> list[Costs]:
    """Return what moves between a tensor and each operator that makes or reads it."""
    graph = setting.graph
    counts = unit_counts(graph)
    variable = tensor_variable(group)
    found = []
    for flow in group.flows:
        if flow.producer is not None:
            name, whole = flow.producer, producer_bytes(setting, flow)
            time = [
                [
                    exchange_seconds(
                        setting, producer_exchange(graph, flow, label, state), whole=whole
                    )
                    for state in states
                ]
                for label in labels[name]
            ]
            memory = [
                [_partial_saved(setting, name, label, state) for state in states]
                for label in labels[name]
            ]
            found.append(
                Costs(
                    variables=(name, variable),
                    tables={
                        "time": counts[name] * np.array(time),
                        "memory": counts[name] * np.array(memory),
                    },
                )
            )
        for reader in flow.readers:
            name, whole = reader.operator, reader_bytes(setting, flow, reader)
            time = [
                [
                    exchange_seconds(
                        setting, reader_exchange(graph, flow, reader, label, state), whole=whole
                    )
                    for state in states
                ]
                for label in labels[name]
            ]
            found.append(
                Costs(variables=(name, variable), tables={"time": counts[name] * np.array(time)})
            )
    return found


def _partial_saved(setting: Setting, name: str, label: str | None, state: TensorState) -> float:
    partial = operator_cost(setting, name, label).partial_saved_bytes
    return partial / setting.mesh.tp if shard_label(state.value) is not None else partial


def _state_costs(setting: Setting, group: FlowClass, states: tuple[TensorState, ...]) -> Costs:
    """Return what depends on a tensor's state alone: experts' tokens, and shared parameters."""
    counts = unit_counts(setting.graph)
    rows: dict[Quantity, list[float]] = {"time": [], "memory": [], "sync": []}
    for state in states:
        time = memory = sync = 0.0
        for flow in group.flows:
            reader, uses = expert_exchange(setting, flow, state)
            for use in uses:
                seconds = collective_seconds(setting, use.kind, use.message_bytes, use.axis)
                time += counts[reader] * seconds
            if flow.producer is None:
                held = shared_parameters(setting, flow.tensor, state)
                memory += held * bytes_per_parameter(setting)
                sync += sync_seconds(setting, held, is_partial=state.gradient == PARTIAL)
        rows["time"].append(time)
        rows["memory"].append(memory)
        rows["sync"].append(sync)
    return Costs(
        variables=(tensor_variable(group),),
        tables={quantity: np.array(row) for quantity, row in rows.items()},
    )


def shared_parameters(setting: Setting, tensor: str, state: TensorState) -> float:
    """Return the elements one rank holds of a parameter with several readers [1]."""
    whole = 1.0
    for dim in setting.graph.tensors[tensor].dims:
        for label in dim:
            whole *= setting.graph.indices[label].size
    return whole / setting.mesh.tp if shard_label(state.value) is not None else whole
