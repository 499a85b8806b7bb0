"""Gradients that are partial sums or shards over the tensor axis, and how torch sums them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from executor.dry_run_position import (
    KnownDifference,
    Position,
    circumstances,
    difference,
    operators_of,
    reductions,
)
from executor.dry_run_simulated import simulated_calls, simulated_setting
from executor.gradients import BUCKET_BYTES
from planner.layouts.costs import operator_cost
from planner.layouts.flows import (
    gradient_layout,
    tensor_flows,
)
from planner.layouts.problem import shared_parameters
from planner.layouts.reshard import PARTIAL, shard_label
from planner.layouts.sizes import flat_labels, num_elements

_BIAS = "aten.add_bias"


@dataclass(frozen=True, kw_only=True, slots=True)
class _PartialParameter:
    """A parameter that is whole on every tensor rank, with a partial gradient."""

    num_bytes: float
    is_summed_by_torch: bool


def _partial_parameters(rank: Position) -> list[_PartialParameter]:
    step = rank.step
    setting, choices = simulated_setting(step), step.layout.choices
    shared = tensor_flows(step.problem.graph)
    weights = [
        _PartialParameter(num_bytes=num_bytes, is_summed_by_torch=PARTIAL not in left)
        for num_bytes, left, is_listed in _shared_weights(rank)
        if is_listed
    ]
    return weights + [
        _PartialParameter(
            num_bytes=share.num_parameters * step.problem.gradient_bytes,
            is_summed_by_torch=_follows_product(rank, name),
        )
        for name in operators_of(rank)
        for share in operator_cost(setting, name, choices[name]).parameters
        if share.is_partial and share.tensor not in shared
    ]


def _shared_weights(rank: Position) -> Iterator[tuple[float, set[str], bool]]:
    """Yield weights that several operators read, whole, with partial sums as gradients.

    Bytes of the gradient, layouts in which readers of this position leave it, and whether the
    simulator's sum is listed here: where the first reader is.
    """
    setting, states = circumstances(rank.step)
    graph, choices = rank.step.problem.graph, rank.step.layout.choices
    here = set(operators_of(rank))
    for flow in tensor_flows(graph).values():
        if flow.producer is not None or states[flow.tensor].gradient != PARTIAL:
            continue
        elements = shared_parameters(setting, flow.tensor, states[flow.tensor])
        left = {
            gradient_layout(graph, graph.operator(r.operator), r.operand, choices[r.operator])
            for r in flow.readers
            if r.operator in here
        }
        is_listed = flow.readers[0].operator in here
        yield elements * rank.step.problem.gradient_bytes, left, is_listed


def divided_weights(rank: Position) -> Iterator[KnownDifference]:
    """Yield gathers of gradients of whole shared weights, which torch finds in shards."""
    if rank.step.mesh.tp == 1 or not rank.is_training:
        return
    often, narrower = reductions(rank), _reduced_share(rank)
    for num_bytes, left, _ in _shared_weights(rank):
        if PARTIAL not in left and any(shard_label(layout) for layout in left):
            yield difference(
                ("tp", "all_gather"), often, often * num_bytes * narrower,
                "torch gathers the gradient of a shared weight, which it finds in shards; the "
                "model sums it",
            )  # fmt: skip


def _reduced_share(rank: Position) -> float:
    """Return the bytes of a gradient that FSDP reduces over those of one that is held [1].

    What accumulated over microbatches has the precision of what is held.
    """
    problem = rank.step.problem
    if not rank.facts.units or reductions(rank) < rank.per_microbatch:
        return 1.0
    return problem.workload.compute_bytes / problem.gradient_bytes


def _follows_product(rank: Position, name: str) -> bool:
    """Whether an operator is the bias of a product that splits otherwise: torch adds both at once.

    The bias' gradient then follows from what the product hands out, and nothing is summed.
    """
    product = _product_before(rank, name)
    choices = rank.step.layout.choices
    return product is not None and choices[product] != choices[name]


def _product_before(rank: Position, name: str) -> str | None:
    """Return the product whose bias an operator adds, in the same module."""
    graph = rank.step.problem.graph
    operator = graph.operator(name)
    if not operator.target.startswith(_BIAS):
        return None
    producers = [graph.tensors[operand.tensor].producer for operand in operator.inputs]
    near = (p for p in producers if p and graph.operator(p).module_path == operator.module_path)
    return next(near, None)


def whole_biases(rank: Position) -> Iterator[KnownDifference]:
    """Yield gathers of gradients of biases whose product is split: torch finds these in shards."""
    step = rank.step
    if step.mesh.tp == 1 or not rank.is_training:
        return
    setting, choices = simulated_setting(step), step.layout.choices
    often = reductions(rank)
    item_bytes = step.problem.gradient_bytes * _reduced_share(rank)
    for name in operators_of(rank):
        product = _product_before(rank, name)
        if product is None or choices[product] in (None, choices[name]):
            continue
        for operand in step.problem.graph.operator(name).parameters:
            if choices[product] not in flat_labels(operand.dims):
                continue
            elements = num_elements(flat_labels(operand.dims), setting.sizes)
            yield difference(
                ("tp", "all_gather"), often, often * elements * item_bytes,
                "torch finds the gradient of a whole bias in shards, as its product is split",
            )  # fmt: skip


def partial_gradients(rank: Position) -> Iterator[KnownDifference]:
    """Partial gradients over the tensor axis: which ones there are, and in how many messages."""
    step = rank.step
    if step.mesh.tp == 1 or not rank.is_training:
        return
    partial = _partial_parameters(rank)
    if not partial:
        return
    kept = [p.num_bytes for p in partial if not p.is_summed_by_torch]
    whole = sum(p.num_bytes for p in partial if p.is_summed_by_torch)
    calls = [
        call
        for call in simulated_calls(step)
        if call.stage in rank.stages and call.source == "state" and call.axes == ("tp",)
    ]
    often = rank.per_microbatch if any(call.when == "backward" for call in calls) else 1
    listed = sum(call.count for call in calls)
    key = ("tp", "all_reduce")
    if rank.facts.units:
        yield difference(
            key, 0.0, -sum(kept) * often * (1.0 - _reduced_share(rank)),
            "FSDP sums partial gradients in the precision of the kernels",
        )  # fmt: skip
    yield difference(
        key, 0.0, -whole * often,
        "torch finds the gradient of a row-split product's bias from whole outputs; "
        "the model sums it",
    )  # fmt: skip
    if rank.facts.units:
        messages, reason = len(kept), "FSDP sums partial gradients parameter by parameter"
    else:
        messages = math.ceil(sum(kept) / BUCKET_BYTES)
        reason = "partial gradients of all stages of a rank fill common buckets"
    yield difference(key, (messages - listed) * often, 0.0, reason)
