"""Where torch and the simulator differ by design: each difference with its size and its reason.

Every entry follows from the graph, the strategy and how libraries cut messages, never from what was
counted: what the simulator says plus these must be exactly what torch issues.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from executor.dry_run_counts import Count, Counts, Key
from executor.dry_run_facts import Facts
from executor.dry_run_simulated import SimulatedStep, items_of, simulated_calls, simulated_setting
from executor.gradients import BUCKET_BYTES
from planner.feasibility import num_experts
from planner.gradient_sync import tied_shards
from planner.layouts.costs import Setting, operator_cost
from planner.layouts.evaluate import tensor_layouts
from planner.layouts.exchanges import (
    Exchange,
    exchange_uses,
    producer_bytes,
    producer_exchange,
    reader_bytes,
    reader_exchanges,
)
from planner.layouts.flows import (
    Flow,
    TensorState,
    gradient_layout,
    output_layout,
    tensor_flows,
)
from planner.layouts.placements import model_output
from planner.layouts.problem import shared_parameters
from planner.layouts.reshard import PARTIAL, REPLICATED, reshard_kind, shard_label
from planner.layouts.sizes import flat_labels, num_elements
from planner.layouts.terms import CollectiveUse

_LOSS = "loss:"
_BIAS = "aten.add_bias"
_HEAVY = ("matmul", "convolution", "attention", "normalization", "embedding")
"""Operators that save something for backward, so that recomputation has to reach them."""
_WAYS = 2
"""Tokens travel to an expert layer and back [1]."""
_COUNT_BYTES = 8
"""Of a number of tokens, an int64 [B]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDifference:
    """What torch issues beyond (or short of) the simulator's list, per rank and step."""

    axis: str
    kind: str
    change: Count
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rank:
    """A pipeline position under comparison."""

    step: SimulatedStep
    simulated: Counts
    facts: Facts
    pipeline_rank: int

    @property
    def stages(self) -> list[int]:
        mesh, count = self.step.mesh, self.step.stages.num_stages
        return [s for s in range(count) if mesh.rank_of_stage(s) == self.pipeline_rank]

    @property
    def is_training(self) -> bool:
        return self.step.problem.workload.is_training

    @property
    def per_microbatch(self) -> int:
        return self.step.num_microbatches


def known_differences(
    step: SimulatedStep, simulated: Counts, *, facts: Facts, pipeline_rank: int
) -> list[KnownDifference]:
    """Return all differences by design of one pipeline position.

    Parameters
    ----------
    step : SimulatedStep
        Strategy and costs.
    simulated : mapping
        What the simulator lists for this position.
    facts : Facts
        How libraries cut messages there.
    pipeline_rank : int
        Position on the pipeline axis.
    """
    rank = _Rank(step=step, simulated=simulated, facts=facts, pipeline_rank=pipeline_rank)
    rules: tuple[Callable[[_Rank], Iterator[KnownDifference]], ...] = (
        _whole_logits, _sharded_units, _tied_shards, _buckets, _partial_gradients, _whole_biases,
        _divided_weights, _early_stop, _no_all_to_all, _token_counts, _ring,
    )  # fmt: skip
    nothing = Count(count=0, num_bytes=0.0)
    return [found for rule in rules for found in rule(rank) if found.change != nothing]


def _difference(key: Key, count: float, num_bytes: float, reason: str) -> KnownDifference:
    return KnownDifference(
        axis=key[0], kind=key[1], change=Count(count=count, num_bytes=num_bytes), reason=reason
    )


def _whole_logits(rank: _Rank) -> Iterator[KnownDifference]:
    """Yield what changes as the output is made whole before the loss, which exchanges nothing."""
    step = rank.step
    if step.mesh.tp == 1 or step.stages.num_stages - 1 not in rank.stages:
        return
    if model_output(step.problem.graph, step.layout.choices) != REPLICATED:
        return
    setting, states = _circumstances(step)
    reason = "the output is gathered before the loss; the model splits the loss"
    graph, choices = step.problem.graph, step.layout.choices
    names = [name for name in choices if name.startswith(_LOSS)]
    saved = [use for name in names for use in operator_cost(setting, name, choices[name]).uses]
    for flow in tensor_flows(graph).values():
        if not any(reader.operator in names for reader in flow.readers):
            continue
        saved += _flow_uses(setting, flow, states[flow.tensor], choices)
        if flow.producer is not None and flow.producer not in names:
            have = output_layout(
                graph, graph.operator(flow.producer), flow.tensor, choices[flow.producer]
            )
            kind = reshard_kind(have, REPLICATED)
            if kind is not None:
                count = float(rank.per_microbatch)
                whole = producer_bytes(setting, flow)
                yield _difference(("tp", kind), count, count * whole, reason)
    for use in saved:
        count = use.count * rank.per_microbatch
        yield _difference((use.axis, use.kind), -count, -count * use.message_bytes, reason)


def _circumstances(step: SimulatedStep) -> tuple[Setting, dict[str, TensorState]]:
    setting = simulated_setting(step)
    return setting, tensor_layouts(setting, step.layout)


def _flow_uses(
    setting: Setting, flow: Flow, state: TensorState, choices: Mapping[str, str | None]
) -> list[CollectiveUse]:
    """Return all exchanges of a tensor, at its producer and its readers."""
    graph = setting.graph
    uses: list[CollectiveUse] = []
    if flow.producer is not None:
        made: Exchange = producer_exchange(graph, flow, choices[flow.producer], state)
        uses += exchange_uses(setting, made, whole=producer_bytes(setting, flow))
    for reader, read in reader_exchanges(graph, flow, choices, state):
        uses += exchange_uses(setting, read, whole=reader_bytes(setting, flow, reader))
    return uses


def _data_axes(rank: _Rank) -> str:
    """Return the mesh axes among whose ranks gradients are averaged, as counts name them."""
    mesh = rank.step.mesh
    return "+".join(axis for axis, size in (("dp", mesh.dp), ("cp", mesh.cp)) if size > 1)


def _state_listed(rank: _Rank, kind: str) -> Count:
    """Return what the simulator lists of a kind for gradients and weights, per step."""
    found = Count(count=0, num_bytes=0.0)
    for call in simulated_calls(rank.step):
        is_own = call.source == "state" and call.stage in rank.stages
        if is_own and call.kind == kind and "+".join(call.axes) == _data_axes(rank):
            times = call.count * (1 if call.when == "step" else rank.per_microbatch)
            found += Count(count=times, num_bytes=times * call.message_bytes)
    return found


def _sharded_units(rank: _Rank) -> Iterator[KnownDifference]:
    """FSDP sends one message per wrapped unit, pads it, and gathers once more in a pipeline."""
    step, facts = rank.step, rank.facts
    if not facts.units:
        return
    sharding, pp, count = step.strategy.sharding, step.mesh.pp, rank.per_microbatch
    times = {"all_gather": 1, "reduce_scatter": 1 if rank.is_training else 0}
    if sharding == "parameters":
        times["all_gather"] = count * (2 if pp == 1 and rank.is_training else 1)
    if rank.is_training:
        times["reduce_scatter"] = _reductions(rank)
    shards = step.mesh.data_shard_group().num_ranks
    if step.mesh.replicas > 1 and rank.is_training:
        times["all_reduce"] = 1
    for kind, often in times.items():
        listed = _state_listed(rank, kind)
        problem = step.problem
        item = problem.state.gathered if kind == "all_gather" else problem.gradient_bytes
        padding = facts.padding_elements * item
        yield _difference(
            (_data_axes(rank), kind), facts.units * often - listed.count, 0.0,
            f"FSDP sends its {facts.units} units one by one; the model fills buckets",
        )  # fmt: skip
        yield _difference(
            (_data_axes(rank), kind), 0.0,
            padding * often / (shards if kind == "all_reduce" else 1),
            "FSDP pads first dimensions that the data ranks do not divide",
        )  # fmt: skip
        if kind == "all_gather" and sharding == "parameters" and pp > 1 and rank.is_training:
            once = listed.num_bytes / often + padding
            yield _difference(
                (_data_axes(rank), kind), facts.units, once,
                "in a pipeline torch gathers once more, for the first backward",
            )  # fmt: skip


def _reductions(rank: _Rank) -> int:
    """Return how often per step FSDP reduces gradients: for each microbatch, or once."""
    step = rank.step
    each_time = step.mesh.pp == 1 and step.strategy.sharding in ("gradients", "parameters")
    each_time = each_time and bool(rank.facts.units)
    return rank.per_microbatch if each_time else 1


def _tied_shards(rank: _Rank) -> Iterator[KnownDifference]:
    """FSDP's gradients are shards when stages sum tied ones; other stacks sum them whole."""
    step, mesh = rank.step, rank.step.mesh
    if not rank.facts.units:
        return
    priced = tied_shards(mesh, sharding=step.strategy.sharding, software=step.problem.software)
    whole = sum(
        call.message_bytes * call.count * priced
        for call in simulated_calls(step)
        if call.source == "tied" and call.stage in rank.stages
    )
    yield _difference(
        ("pp", "all_reduce"), 0.0, whole / mesh.data_shard_group().num_ranks - whole / priced,
        "FSDP has stages sum shards of tied gradients; the plan's stack sums them whole",
    )  # fmt: skip


def _buckets(rank: _Rank) -> Iterator[KnownDifference]:
    """DDP and our own average fill buckets across stages, by rules of their own."""
    listed = _state_listed(rank, "all_reduce")
    if rank.facts.buckets and listed.count:
        yield _difference(
            (_data_axes(rank), "all_reduce"), rank.facts.buckets - listed.count, 0.0,
            f"gradients fill {rank.facts.buckets} buckets on this rank",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _PartialParameter:
    """A parameter that is whole on every tensor rank, with a partial gradient."""

    num_bytes: float
    is_summed_by_torch: bool


def _partial_parameters(rank: _Rank) -> list[_PartialParameter]:
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
        for name in _operators_of(rank)
        for share in operator_cost(setting, name, choices[name]).parameters
        if share.is_partial and share.tensor not in shared
    ]


def _shared_weights(rank: _Rank) -> Iterator[tuple[float, set[str], bool]]:
    """Yield weights that several operators read, whole, with partial sums as gradients.

    Bytes of the gradient, layouts in which readers of this position leave it, and whether the
    simulator's sum is listed here: where the first reader is.
    """
    setting, states = _circumstances(rank.step)
    graph, choices = rank.step.problem.graph, rank.step.layout.choices
    here = set(_operators_of(rank))
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


def _divided_weights(rank: _Rank) -> Iterator[KnownDifference]:
    """Yield gathers of gradients of whole shared weights, which torch finds in shards."""
    if rank.step.mesh.tp == 1 or not rank.is_training:
        return
    often, narrower = _reductions(rank), _reduced_share(rank)
    for num_bytes, left, _ in _shared_weights(rank):
        if PARTIAL not in left and any(shard_label(layout) for layout in left):
            yield _difference(
                ("tp", "all_gather"), often, often * num_bytes * narrower,
                "torch gathers the gradient of a shared weight, which it finds in shards; the "
                "model sums it",
            )  # fmt: skip


def _reduced_share(rank: _Rank) -> float:
    """Return the bytes of a gradient that FSDP reduces over those of one that is held [1].

    What accumulated over microbatches has the precision of what is held.
    """
    problem = rank.step.problem
    if not rank.facts.units or _reductions(rank) < rank.per_microbatch:
        return 1.0
    return problem.workload.compute_bytes / problem.gradient_bytes


def _follows_product(rank: _Rank, name: str) -> bool:
    """Whether an operator is the bias of a product that splits otherwise: torch adds both at once.

    The bias' gradient then follows from what the product hands out, and nothing is summed.
    """
    product = _product_before(rank, name)
    choices = rank.step.layout.choices
    return product is not None and choices[product] != choices[name]


def _product_before(rank: _Rank, name: str) -> str | None:
    """Return the product whose bias an operator adds, in the same module."""
    graph = rank.step.problem.graph
    operator = graph.operator(name)
    if not operator.target.startswith(_BIAS):
        return None
    producers = [graph.tensors[operand.tensor].producer for operand in operator.inputs]
    near = (p for p in producers if p and graph.operator(p).module_path == operator.module_path)
    return next(near, None)


def _whole_biases(rank: _Rank) -> Iterator[KnownDifference]:
    """Yield gathers of gradients of biases whose product is split: torch finds these in shards."""
    step = rank.step
    if step.mesh.tp == 1 or not rank.is_training:
        return
    setting, choices = simulated_setting(step), step.layout.choices
    often = _reductions(rank)
    item_bytes = step.problem.gradient_bytes * _reduced_share(rank)
    for name in _operators_of(rank):
        product = _product_before(rank, name)
        if product is None or choices[product] in (None, choices[name]):
            continue
        for operand in step.problem.graph.operator(name).parameters:
            if choices[product] not in flat_labels(operand.dims):
                continue
            elements = num_elements(flat_labels(operand.dims), setting.sizes)
            yield _difference(
                ("tp", "all_gather"), often, often * elements * item_bytes,
                "torch finds the gradient of a whole bias in shards, as its product is split",
            )  # fmt: skip


def _operators_of(rank: _Rank) -> Iterator[str]:
    """Yield the operators of a pipeline position, repetitions as often as they are there."""
    units = {unit.name: unit for unit in rank.step.problem.graph.units}
    for stage in rank.stages:
        for item in items_of(rank.step, stage):
            yield from units[rank.step.units[item].unit].operators


def _partial_gradients(rank: _Rank) -> Iterator[KnownDifference]:
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
        yield _difference(
            key, 0.0, -sum(kept) * often * (1.0 - _reduced_share(rank)),
            "FSDP sums partial gradients in the precision of the kernels",
        )  # fmt: skip
    yield _difference(
        key, 0.0, -whole * often,
        "torch finds the gradient of a row-split product's bias from whole outputs; "
        "the model sums it",
    )  # fmt: skip
    if rank.facts.units:
        messages, reason = len(kept), "FSDP sums partial gradients parameter by parameter"
    else:
        messages = math.ceil(sum(kept) / BUCKET_BYTES)
        reason = "partial gradients of all stages of a rank fill common buckets"
    yield _difference(key, (messages - listed) * often, 0.0, reason)


def _early_stop(rank: _Rank) -> Iterator[KnownDifference]:
    """Recomputation in torch ends with the last result that backward needs."""
    step = rank.step
    if step.strategy.recompute != "full" or step.mesh.tp == 1 or not rank.is_training:
        return
    setting, states = _circumstances(step)
    units = {unit.name: unit for unit in step.problem.graph.units}
    for stage in rank.stages:
        for item in items_of(step, stage):
            if not step.items.is_recomputed[item]:
                continue
            operators = units[step.units[item].unit].operators
            for use in _tail_uses(rank, operators, setting, states):
                count = use.count * rank.per_microbatch
                yield _difference(
                    (use.axis, use.kind), -count, -count * use.message_bytes,
                    "recomputation stops before a block's last exchange, whose result backward "
                    "does not need",
                )  # fmt: skip


def _tail_uses(
    rank: _Rank, operators: tuple[str, ...], setting: Setting, states: Mapping[str, TensorState]
) -> Iterator[CollectiveUse]:
    """Yield a unit's forward exchanges after its last operator that saves something."""
    graph, choices = rank.step.problem.graph, rank.step.layout.choices
    tail = _after_last_saved(rank, operators)
    for flow in tensor_flows(graph).values():
        if flow.producer not in tail:
            continue
        own = replace(flow, readers=tuple(r for r in flow.readers if r.operator in operators))
        for use in _flow_uses(setting, own, states[flow.tensor], choices):
            if use.phase == "forward":
                yield use


def _after_last_saved(rank: _Rank, operators: tuple[str, ...]) -> frozenset[str]:
    """Return a unit's last operator that saves something, and all after it."""
    graph = rank.step.problem.graph
    heavy = [i for i, name in enumerate(operators) if graph.operator(name).kind in _HEAVY]
    return frozenset(operators[max(heavy, default=len(operators)) :])


def _token_counts(rank: _Rank) -> Iterator[KnownDifference]:
    """Before tokens travel to their experts, ranks tell each other how many come."""
    step = rank.step
    experts = num_experts(step.problem)
    if step.mesh.ep == 1 or experts is None:
        return
    for stage in rank.stages:
        for item in items_of(step, stage):
            uses = step.units[item].communication
            ways = sum(u.count for u in uses if (u.axis, u.phase) == ("ep", "forward"))
            again = _runs_again(rank, item) and step.strategy.recompute == "full"
            count = ways / _WAYS * (2 if again else 1) * rank.per_microbatch
            yield _difference(
                ("ep", "all_to_all"), count, count * experts * _COUNT_BYTES,
                "ranks tell each other how many tokens come for each expert",
            )  # fmt: skip


def _ring(rank: _Rank) -> Iterator[KnownDifference]:
    """Keys and values, and their gradients, go round a ring of sends in place of one collective."""
    step, cp = rank.step, rank.step.mesh.cp
    reason = "keys and values go round a ring of sends, each of one rank's part"
    for stage in rank.stages:
        for item in items_of(step, stage):
            for use in (use for use in step.units[item].communication if use.axis == "cp"):
                again = _runs_again(rank, item) and use.phase == "forward"
                listed = use.count * rank.per_microbatch
                listed *= 2 if again and step.strategy.recompute == "full" else 1
                yield _difference(("cp", use.kind), -listed, -listed * use.message_bytes, reason)
                sent = use.count * rank.per_microbatch * (2 if again else 1) * (cp - 1)
                for way in ("send", "recv"):
                    yield _difference(("cp", way), sent, sent * use.message_bytes / cp, reason)


def _runs_again(rank: _Rank, item: int) -> bool:
    """Whether torch runs a block's forward pass once more, with what it sends."""
    recomputed = rank.step.strategy.recompute in ("full", "selective_op")
    return recomputed and rank.is_training and bool(rank.step.items.is_recomputed[item])


def _no_all_to_all(rank: _Rank) -> Iterator[KnownDifference]:
    """On CPU meshes torch gathers and cuts in place of an all-to-all."""
    listed = rank.simulated.get(("tp", "all_to_all"))
    if listed is not None:
        reason = "on the CPU torch gathers and cuts in place of an all-to-all"
        yield _difference(("tp", "all_to_all"), -listed.count, -listed.num_bytes, reason)
        whole = listed.num_bytes * rank.step.mesh.tp
        yield _difference(("tp", "all_gather"), listed.count, whole, reason)
