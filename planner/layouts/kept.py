"""What each operator of a unit keeps for the backward pass on one rank."""

from collections.abc import Mapping
from functools import lru_cache

from planner.graph import ModelGraph, Unit
from planner.layouts.costs import OperatorCost, Setting
from planner.layouts.exchanges import producer_exchange, reader_bytes, reader_exchange
from planner.layouts.flows import Flow, TensorState, tensor_flows
from planner.layouts.liveness import held_bytes
from planner.layouts.reshard import shard_label
from planner.layouts.terms import LayoutSolution

_LOSS = "loss:"
"""How names of operators begin that run after the model, on its output."""


def kept_bytes(
    setting: Setting,
    unit: Unit,
    layout: LayoutSolution,
    costs: Mapping[str, OperatorCost],
    states: Mapping[str, TensorState],
) -> dict[str, float]:
    """Return operator -> bytes kept for backward, without scores of attention [B].

    A tensor is kept as its producer holds it. Where a product reads it gathered, Megatron-LM keeps
    the shard and gathers again (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2); torch's
    layers keep what they read.
    """
    kept = {
        name: cost.saved_bytes + _partial_bytes(setting, name, cost, states)
        for name, cost in costs.items()
    }
    software = setting.software
    if software.keeps_gathered and setting.mesh.tp > 1:
        for flow in _products_inputs(setting.graph, unit):
            extra = _gathered_bytes(setting, unit, flow, layout, states)
            for name, num_bytes in extra.items():
                kept[name] += num_bytes
    return kept


def output_bytes(setting: Setting, unit: Unit, states: Mapping[str, TensorState]) -> float:
    """Return the model's output, where the unit has it and the loop that trains holds it [B].

    Nothing else keeps it; it is there until the backward pass is through.
    """
    if not (setting.software.keeps_output and setting.workload.is_training):
        return 0.0
    return sum(held_bytes(setting, name, states) for name in _model_outputs(setting.graph, unit))


def _partial_bytes(
    setting: Setting, name: str, cost: OperatorCost, states: Mapping[str, TensorState]
) -> float:
    if cost.partial_saved_bytes == 0:
        return 0.0
    outputs = setting.graph.operator(name).outputs
    is_cut = any(
        shard_label(states[tensor].value) is not None for tensor in outputs if tensor in states
    )
    return cost.partial_saved_bytes / setting.mesh.tp if is_cut else cost.partial_saved_bytes


@lru_cache(maxsize=1024)
def _products_inputs(graph: ModelGraph, unit: Unit) -> tuple[Flow, ...]:
    """Return activations that a product with a weight reads in the unit."""
    names = set(unit.operators)
    return tuple(
        flow
        for flow in tensor_flows(graph).values()
        if flow.producer is not None
        and flow.has_gradient
        and any(
            reader.operator in names
            and graph.operator(reader.operator).kind == "matmul"
            and graph.operator(reader.operator).parameters
            for reader in flow.readers
        )
    )


def _gathered_bytes(
    setting: Setting,
    unit: Unit,
    flow: Flow,
    layout: LayoutSolution,
    states: Mapping[str, TensorState],
) -> dict[str, float]:
    """Return what the first product that gathers a tensor keeps beyond the shard [B]."""
    graph, state = setting.graph, states[flow.tensor]
    written, _ = producer_exchange(graph, flow, layout.choices[flow.producer or ""], state)
    for reader in flow.readers:
        if graph.operator(reader.operator).unit != unit.name:
            continue
        read, _ = reader_exchange(graph, flow, reader, layout.choices[reader.operator], state)
        if "all_gather" in (written, read):
            whole = reader_bytes(setting, flow, reader)
            return {reader.operator: whole * (1.0 - 1.0 / setting.mesh.tp)}
    return {}


@lru_cache(maxsize=1024)
def _model_outputs(graph: ModelGraph, unit: Unit) -> tuple[str, ...]:
    """Return the tensors that the loss reads, the model wrote and nothing keeps."""
    found: dict[str, None] = {}
    for name in unit.operators:
        if not name.startswith(_LOSS):
            continue
        for operand in graph.operator(name).inputs:
            producer = graph.tensors[operand.tensor].producer
            if producer is None or producer.startswith(_LOSS):
                continue
            if not graph.operator(producer).saved:
                found.setdefault(operand.tensor)
    return tuple(found)
