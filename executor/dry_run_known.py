"""Where torch and the simulator differ by design: each difference with its size and its reason.

Every entry follows from the graph, the strategy and how libraries cut messages, never from what was
counted: what the simulator says plus these must be exactly what torch issues.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from executor.dry_run_counts import Count, Counts
from executor.dry_run_facts import Facts
from executor.dry_run_partial import divided_weights, partial_gradients, whole_biases
from executor.dry_run_position import (
    KnownDifference,
    Position,
    circumstances,
    difference,
    reductions,
)
from executor.dry_run_simulated import SimulatedStep, items_of, simulated_calls
from planner.feasibility import num_experts
from planner.gradient_sync import tied_shards
from planner.layouts.costs import Setting, operator_cost
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
    output_layout,
    tensor_flows,
)
from planner.layouts.placements import model_output
from planner.layouts.reshard import REPLICATED, reshard_kind
from planner.layouts.terms import CollectiveUse

_LOSS = "loss:"
_HEAVY = ("matmul", "convolution", "attention", "normalization", "embedding")
"""Operators that save something for backward, so that recomputation has to reach them."""
_WAYS = 2
"""Tokens travel to an expert layer and back [1]."""
_COUNT_BYTES = 8
"""Of a number of tokens, an int64 [B]."""


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
    rank = Position(step=step, simulated=simulated, facts=facts, pipeline_rank=pipeline_rank)
    rules: tuple[Callable[[Position], Iterator[KnownDifference]], ...] = (
        _whole_logits, _sharded_units, _tied_shards, _buckets, partial_gradients, whole_biases,
        divided_weights, _early_stop, _no_all_to_all, _token_counts, _ring,
    )  # fmt: skip
    nothing = Count(count=0, num_bytes=0.0)
    return [found for rule in rules for found in rule(rank) if found.change != nothing]


def _whole_logits(rank: Position) -> Iterator[KnownDifference]:
    """Yield what changes as the output is made whole before the loss, which exchanges nothing."""
    step = rank.step
    if step.mesh.tp == 1 or step.stages.num_stages - 1 not in rank.stages:
        return
    if model_output(step.problem.graph, step.layout.choices) != REPLICATED:
        return
    setting, states = circumstances(step)
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
                yield difference(("tp", kind), count, count * whole, reason)
    for use in saved:
        count = use.count * rank.per_microbatch
        yield difference((use.axis, use.kind), -count, -count * use.message_bytes, reason)


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


def _data_axes(rank: Position) -> str:
    """Return the mesh axes among whose ranks gradients are averaged, as counts name them."""
    mesh = rank.step.mesh
    return "+".join(axis for axis, size in (("dp", mesh.dp), ("cp", mesh.cp)) if size > 1)


def _state_listed(rank: Position, kind: str) -> Count:
    """Return what the simulator lists of a kind for gradients and weights, per step."""
    found = Count(count=0, num_bytes=0.0)
    for call in simulated_calls(rank.step):
        is_own = call.source == "state" and call.stage in rank.stages
        if is_own and call.kind == kind and "+".join(call.axes) == _data_axes(rank):
            times = call.count * (1 if call.when == "step" else rank.per_microbatch)
            found += Count(count=times, num_bytes=times * call.message_bytes)
    return found


def _sharded_units(rank: Position) -> Iterator[KnownDifference]:
    """FSDP sends one message per wrapped unit, pads it, and gathers once more in a pipeline."""
    step, facts = rank.step, rank.facts
    if not facts.units:
        return
    sharding, pp, count = step.strategy.sharding, step.mesh.pp, rank.per_microbatch
    times = {"all_gather": 1, "reduce_scatter": 1 if rank.is_training else 0}
    if sharding == "parameters":
        times["all_gather"] = count * (2 if pp == 1 and rank.is_training else 1)
    if rank.is_training:
        times["reduce_scatter"] = reductions(rank)
    shards = step.mesh.data_shard_group().num_ranks
    if step.mesh.replicas > 1 and rank.is_training:
        times["all_reduce"] = 1
    for kind, often in times.items():
        listed = _state_listed(rank, kind)
        problem = step.problem
        item = problem.state.gathered if kind == "all_gather" else problem.gradient_bytes
        padding = facts.padding_elements * item
        yield difference(
            (_data_axes(rank), kind), facts.units * often - listed.count, 0.0,
            f"FSDP sends its {facts.units} units one by one; the model fills buckets",
        )  # fmt: skip
        yield difference(
            (_data_axes(rank), kind), 0.0,
            padding * often / (shards if kind == "all_reduce" else 1),
            "FSDP pads first dimensions that the data ranks do not divide",
        )  # fmt: skip
        if kind == "all_gather" and sharding == "parameters" and pp > 1 and rank.is_training:
            once = listed.num_bytes / often + padding
            yield difference(
                (_data_axes(rank), kind), facts.units, once,
                "in a pipeline torch gathers once more, for the first backward",
            )  # fmt: skip


def _tied_shards(rank: Position) -> Iterator[KnownDifference]:
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
    yield difference(
        ("pp", "all_reduce"), 0.0, whole / mesh.data_shard_group().num_ranks - whole / priced,
        "FSDP has stages sum shards of tied gradients; the plan's stack sums them whole",
    )  # fmt: skip


def _buckets(rank: Position) -> Iterator[KnownDifference]:
    """DDP and our own average fill buckets across stages, by rules of their own."""
    listed = _state_listed(rank, "all_reduce")
    if rank.facts.buckets and listed.count:
        yield difference(
            (_data_axes(rank), "all_reduce"), rank.facts.buckets - listed.count, 0.0,
            f"gradients fill {rank.facts.buckets} buckets on this rank",
        )  # fmt: skip


def _early_stop(rank: Position) -> Iterator[KnownDifference]:
    """Recomputation in torch ends with the last result that backward needs."""
    step = rank.step
    if step.strategy.recompute != "full" or step.mesh.tp == 1 or not rank.is_training:
        return
    setting, states = circumstances(step)
    units = {unit.name: unit for unit in step.problem.graph.units}
    for stage in rank.stages:
        for item in items_of(step, stage):
            if not step.items.is_recomputed[item]:
                continue
            operators = units[step.units[item].unit].operators
            for use in _tail_uses(rank, operators, setting, states):
                count = use.count * rank.per_microbatch
                yield difference(
                    (use.axis, use.kind), -count, -count * use.message_bytes,
                    "recomputation stops before a block's last exchange, whose result backward "
                    "does not need",
                )  # fmt: skip


def _tail_uses(
    rank: Position, operators: tuple[str, ...], setting: Setting, states: Mapping[str, TensorState]
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


def _after_last_saved(rank: Position, operators: tuple[str, ...]) -> frozenset[str]:
    """Return a unit's last operator that saves something, and all after it."""
    graph = rank.step.problem.graph
    heavy = [i for i, name in enumerate(operators) if graph.operator(name).kind in _HEAVY]
    return frozenset(operators[max(heavy, default=len(operators)) :])


def _token_counts(rank: Position) -> Iterator[KnownDifference]:
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
            yield difference(
                ("ep", "all_to_all"), count, count * experts * _COUNT_BYTES,
                "ranks tell each other how many tokens come for each expert",
            )  # fmt: skip


def _ring(rank: Position) -> Iterator[KnownDifference]:
    """Keys and values, and their gradients, go round a ring of sends in place of one collective."""
    step, cp = rank.step, rank.step.mesh.cp
    reason = "keys and values go round a ring of sends, each of one rank's part"
    for stage in rank.stages:
        for item in items_of(step, stage):
            for use in (use for use in step.units[item].communication if use.axis == "cp"):
                again = _runs_again(rank, item) and use.phase == "forward"
                listed = use.count * rank.per_microbatch
                listed *= 2 if again and step.strategy.recompute == "full" else 1
                yield difference(("cp", use.kind), -listed, -listed * use.message_bytes, reason)
                sent = use.count * rank.per_microbatch * (2 if again else 1) * (cp - 1)
                for way in ("send", "recv"):
                    yield difference(("cp", way), sent, sent * use.message_bytes / cp, reason)


def _runs_again(rank: Position, item: int) -> bool:
    """Whether torch runs a block's forward pass once more, with what it sends."""
    recomputed = rank.step.strategy.recompute in ("full", "selective_op")
    return recomputed and rank.is_training and bool(rank.step.items.is_recomputed[item])


def _no_all_to_all(rank: Position) -> Iterator[KnownDifference]:
    """On CPU meshes torch gathers and cuts in place of an all-to-all."""
    listed = rank.simulated.get(("tp", "all_to_all"))
    if listed is not None:
        reason = "on the CPU torch gathers and cuts in place of an all-to-all"
        yield difference(("tp", "all_to_all"), -listed.count, -listed.num_bytes, reason)
        whole = listed.num_bytes * rank.step.mesh.tp
        yield difference(("tp", "all_gather"), listed.count, whole, reason)
