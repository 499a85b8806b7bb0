"""Where torch and the simulator differ by design: each difference with its size and its reason.

Every entry follows from the graph, the strategy and how libraries cut messages, never from what was
counted: what the simulator says plus these must be exactly what torch issues.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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
    reader_exchange,
)
from planner.layouts.flows import Flow, TensorState, output_layout, tensor_flows
from planner.layouts.placements import model_output
from planner.layouts.reshard import REPLICATED, reshard_kind
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
        _whole_logits, _sharded_units, _tied_shards, _buckets, _partial_gradients, _early_stop,
        _no_all_to_all, _token_counts,
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
    for reader in flow.readers:
        read = reader_exchange(graph, flow, reader, choices[reader.operator], state)
        uses += exchange_uses(setting, read, whole=reader_bytes(setting, flow, reader))
    return uses


def _sharded_units(rank: _Rank) -> Iterator[KnownDifference]:
    """FSDP sends one message per wrapped unit, pads it, and gathers once more in a pipeline."""
    step, facts = rank.step, rank.facts
    if not facts.units:
        return
    sharding, pp, count = step.strategy.sharding, step.mesh.pp, rank.per_microbatch
    times = {"all_gather": 1, "reduce_scatter": 1 if rank.is_training else 0}
    if sharding == "parameters":
        times["all_gather"] = count * (2 if pp == 1 and rank.is_training else 1)
    if pp == 1 and rank.is_training and sharding != "optimizer":
        times["reduce_scatter"] = count
    shards = step.mesh.data_shard_group().num_ranks
    if step.mesh.replicas > 1 and rank.is_training:
        times["all_reduce"] = 1
    for kind, often in times.items():
        listed = rank.simulated.get(("dp", kind), Count(count=0, num_bytes=0.0))
        problem = step.problem
        item = problem.state.gathered if kind == "all_gather" else problem.gradient_bytes
        padding = facts.padding_elements * item
        yield _difference(
            ("dp", kind), facts.units * often - listed.count, 0.0,
            f"FSDP sends its {facts.units} units one by one; the model fills buckets",
        )  # fmt: skip
        yield _difference(
            ("dp", kind), 0.0,
            padding * often / (shards if kind == "all_reduce" else 1),
            "FSDP pads first dimensions that the data ranks do not divide",
        )  # fmt: skip
        if kind == "all_gather" and sharding == "parameters" and pp > 1 and rank.is_training:
            once = listed.num_bytes / often + padding
            yield _difference(
                ("dp", kind), facts.units, once,
                "in a pipeline torch gathers once more, for the first backward",
            )  # fmt: skip


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
    axis = "dp"
    listed = rank.simulated.get((axis, "all_reduce"))
    if rank.facts.buckets and listed is not None:
        yield _difference(
            (axis, "all_reduce"), rank.facts.buckets - listed.count, 0.0,
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
    graph = step.problem.graph
    units = {unit.name: unit for unit in graph.units}
    shared = tensor_flows(graph)
    found = []
    for stage in rank.stages:
        for item in items_of(step, stage):
            for name in units[step.units[item].unit].operators:
                cost = operator_cost(setting, name, choices[name])
                found += [
                    _PartialParameter(
                        num_bytes=share.num_parameters * step.problem.gradient_bytes,
                        is_summed_by_torch=_follows_product(rank, name),
                    )
                    for share in cost.parameters
                    if share.is_partial and share.tensor not in shared
                ]
    return found


def _follows_product(rank: _Rank, name: str) -> bool:
    """Whether an operator is the bias of a product that is summed: torch adds both at once."""
    graph, choices = rank.step.problem.graph, rank.step.layout.choices
    operator = graph.operator(name)
    if not operator.target.startswith(_BIAS):
        return False
    producers = [graph.tensors[operand.tensor].producer for operand in operator.inputs]
    return any(
        producer is not None
        and graph.operator(producer).module_path == operator.module_path
        and choices[producer] != choices[name]
        for producer in producers
    )


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
        narrower = 1.0 - step.problem.workload.compute_bytes / step.problem.gradient_bytes
        yield _difference(
            key, 0.0, -sum(kept) * often * narrower,
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
            tail = _after_last_saved(rank, units[step.units[item].unit].operators)
            for flow in tensor_flows(step.problem.graph).values():
                if flow.producer not in tail:
                    continue
                for use in _flow_uses(setting, flow, states[flow.tensor], step.layout.choices):
                    if use.phase == "forward":
                        count = use.count * rank.per_microbatch
                        yield _difference(
                            (use.axis, use.kind), -count, -count * use.message_bytes,
                            "recomputation stops before a block's last exchange, whose result "
                            "backward does not need",
                        )  # fmt: skip


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
    is_full = step.strategy.recompute == "full" and rank.is_training
    for stage in rank.stages:
        for item in items_of(step, stage):
            uses = [use for use in step.units[item].communication if use.axis == "ep"]
            ways = sum(use.count for use in uses if use.phase == "forward")
            passes = 2 if is_full and step.items.is_recomputed[item] else 1
            count = ways / _WAYS * passes * rank.per_microbatch
            yield _difference(
                ("ep", "all_to_all"), count, count * experts * _COUNT_BYTES,
                "ranks tell each other how many tokens come for each expert",
            )  # fmt: skip


def _no_all_to_all(rank: _Rank) -> Iterator[KnownDifference]:
    """On CPU meshes torch gathers and cuts in place of an all-to-all."""
    listed = rank.simulated.get(("tp", "all_to_all"))
    if listed is not None:
        reason = "on the CPU torch gathers and cuts in place of an all-to-all"
        yield _difference(("tp", "all_to_all"), -listed.count, -listed.num_bytes, reason)
        whole = listed.num_bytes * rank.step.mesh.tp
        yield _difference(("tp", "all_gather"), listed.count, whole, reason)
