"""Why a strategy does not suit a model, workload or cluster, before anything is priced."""

from dataclasses import dataclass

from planner.layouts.flows import has_tied_weights
from planner.problem import Problem
from planner.strategy import Strategy
from simulator.zero_bubble import microbatches_per_round, splits_backward

RING_HALVES = 2
"""Context parallelism gives each rank two pieces of the causal triangle, to balance work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """One reason, as a word to count by and as a sentence to read."""

    reason: str
    message: str


def find_rejection(problem: Problem, strategy: Strategy) -> Rejection | None:
    """Return why a strategy is impossible here, or None.

    Memory is not looked at; that needs prices.
    """
    for check in (_devices, _batch, _tensor, _pipeline, _context, _expert):
        rejection = check(problem, strategy)
        if rejection is not None:
            return rejection
    return None


def _devices(problem: Problem, strategy: Strategy) -> Rejection | None:
    have = problem.cluster.num_devices
    if strategy.num_devices <= have:
        return None
    return Rejection(
        reason="devices",
        message=f"strategy '{strategy}' needs dp*tp*pp*cp = {strategy.num_devices} devices; "
        f"{problem.cluster.name} has {have}; use smaller sizes or more nodes",
    )


def _batch(problem: Problem, strategy: Strategy) -> Rejection | None:
    batch, dp = problem.workload.global_batch_size, strategy.data_parallel_size
    if batch % (dp * strategy.microbatch_size):
        return Rejection(
            reason="divisibility",
            message=f"global batch {batch} is not a multiple of dp*microbatch = "
            f"{dp}*{strategy.microbatch_size} = {dp * strategy.microbatch_size}; "
            "choose a divisor",
        )
    return None


def _tensor(problem: Problem, strategy: Strategy) -> Rejection | None:
    tp = strategy.tensor_parallel_size
    for name, limit in problem.limits:
        if limit % tp and strategy.layout == "tensor":
            divisors = [str(d) for d in range(1, limit + 1) if limit % d == 0]
            return Rejection(
                reason="divisibility",
                message=f"tp={tp} does not divide {name}={limit}; use {', '.join(divisors)}",
            )
    if strategy.layout == "mixed" and strategy.microbatch_size % tp:
        return Rejection(
            reason="divisibility",
            message=f"layout=mixed needs a microbatch that tp={tp} divides; "
            f"microbatch is {strategy.microbatch_size}",
        )
    length = problem.graph.sequence_length
    if strategy.sequence_parallel and not problem.graph.sequence_labels:
        return Rejection(
            reason="no sequence",
            message=f"sequence_parallel=on, but {problem.graph.name} has no sequence; leave it out",
        )
    if strategy.sequence_parallel and length % tp:
        return Rejection(
            reason="divisibility",
            message=f"sequence_parallel with tp={tp} does not divide seq-len {length}; "
            "turn it off or change --seq-len",
        )
    return None


def _pipeline(problem: Problem, strategy: Strategy) -> Rejection | None:
    pp, chunks = strategy.pipeline_parallel_size, strategy.virtual_stages
    items = sum(unit.count for unit in problem.graph.units)
    if pp * chunks > items:
        return Rejection(
            reason="stages",
            message=f"pp*virtual_stages = {pp * chunks} stages, but {problem.graph.name} can be "
            f"cut into at most {items}; use a smaller pp",
        )
    local = strategy.data_parallel_size * strategy.microbatch_size
    microbatches = problem.workload.global_batch_size // local
    if strategy.schedule == "interleaved" and microbatches % pp:
        return Rejection(
            reason="divisibility",
            message=f"schedule=interleaved needs microbatches ({microbatches}) to be a multiple of "
            f"pp={pp}; change microbatch or dp, or use schedule=1f1b",
        )
    if splits_backward(strategy.schedule):
        return _split_backward(problem, strategy, microbatches=microbatches)
    return None


def _split_backward(problem: Problem, strategy: Strategy, *, microbatches: int) -> Rejection | None:
    schedule, pp = strategy.schedule, strategy.pipeline_parallel_size
    if not problem.workload.is_training:
        return Rejection(
            reason="mode",
            message=f"schedule={schedule} splits the backward pass, which inference has not; "
            "use schedule=1f1b",
        )
    per_round = microbatches_per_round(num_ranks=pp, num_microbatches=microbatches)
    if schedule == "zero_bubble" and per_round is None:
        return Rejection(
            reason="divisibility",
            message=f"schedule=zero_bubble deals microbatches ({microbatches}) in "
            f"{microbatches // pp} equal rounds on pp={pp}, which do not divide; "
            "change microbatch or dp, or use schedule=1f1b",
        )
    is_sharded = strategy.sharding != "none" and problem.software.fully_shards
    if is_sharded and strategy.sharding == "parameters":
        return Rejection(
            reason="sharding",
            message=f"schedule={schedule} with sharding=parameters: FSDP frees weights between the "
            "gradients of inputs and those of weights; use sharding=optimizer",
        )
    if schedule == "zbv" and is_sharded and has_tied_weights(problem.graph):
        return Rejection(
            reason="tied weights",
            message=f"schedule=zbv with sharding={strategy.sharding}: {problem.graph.name}'s head "
            "shares the embedding's weight on one rank, and FSDP shards stages apart; "
            "use sharding=none or schedule=zero_bubble",
        )
    return None


def _context(problem: Problem, strategy: Strategy) -> Rejection | None:
    cp = strategy.context_parallel_size
    if cp == 1:
        return None
    length = problem.graph.sequence_length
    if not problem.graph.sequence_labels or length % (RING_HALVES * cp):
        return Rejection(
            reason="divisibility",
            message=f"cp={cp} needs a sequence that 2*cp = {RING_HALVES * cp} divides; "
            f"seq-len is {length}",
        )
    return None


def _expert(problem: Problem, strategy: Strategy) -> Rejection | None:
    ep = strategy.expert_parallel_size
    if ep == 1:
        return None
    experts = num_experts(problem)
    if experts is None:
        return Rejection(
            reason="no experts",
            message=f"ep={ep}, but {problem.graph.name} has no experts; use ep=1",
        )
    if experts % ep:
        return Rejection(
            reason="divisibility", message=f"ep={ep} does not divide num_experts={experts}"
        )
    return None


def num_experts(problem: Problem) -> int | None:
    """Return the number of experts of the model, or None for dense models."""
    graph = problem.graph
    sizes = {
        graph.indices[index.label].size
        for _, operator in graph.graph.nodes(data="operator")
        for index in operator.indices
        if index.role == "expert"
    }
    return max(sizes, default=None)
