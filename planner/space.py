"""The strategy space: every way to factor the devices that a problem and the user allow."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from planner.feasibility import num_experts
from planner.problem import Problem
from planner.strategy import SPLIT_RECOMPUTE_MODES, Recompute, Schedule, Sharding, Strategy
from simulator.zero_bubble import ZBV_STAGES, splits_backward

MAX_TENSOR_NODES = 1
"""Tensor groups stay inside this many nodes unless the user fixes ``tp``: every layer waits for
them (arXiv:2104.04473, section 3.2, takeaway 1)."""
MAX_TENSOR_SIZE = 64
MAX_MICROBATCH = 512
MIN_CONTEXT_LENGTH = 8192
"""Context parallelism is tried from this sequence length on, or where the user fixes ``cp``."""
MAX_CONTEXT_SIZE = 16
MAX_VIRTUAL_STAGES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """The part of a strategy that decides layouts; cores are enumerated outside, flags inside."""

    tensor_parallel_size: int
    context_parallel_size: int
    expert_parallel_size: int
    sequence_parallel: bool
    layout: str


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number in increasing order.

    Examples
    --------
    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def cores(problem: Problem, *, num_devices: int, fixed: dict[str, Any]) -> Iterator[Core]:
    """Yield the cores for a number of devices, in a fixed order."""
    for tp in _tensor_sizes(problem, num_devices=num_devices, fixed=fixed):
        for cp in _context_sizes(problem, num_devices=num_devices // tp, fixed=fixed):
            for ep in _expert_sizes(problem, num_devices=num_devices // tp, fixed=fixed):
                for layout, parallel in _layouts(problem, tp=tp, fixed=fixed):
                    yield Core(
                        tensor_parallel_size=tp,
                        context_parallel_size=cp,
                        expert_parallel_size=ep,
                        sequence_parallel=parallel,
                        layout=layout,
                    )


def _tensor_sizes(problem: Problem, *, num_devices: int, fixed: dict[str, Any]) -> list[int]:
    if "tensor_parallel_size" in fixed:
        return [fixed["tensor_parallel_size"]]
    domain = min(problem.cluster.devices_per_node * MAX_TENSOR_NODES, MAX_TENSOR_SIZE)
    node = problem.cluster.devices_per_node
    sizes = [tp for tp in divisors(num_devices) if tp <= domain]
    return [tp for tp in sizes if packs_nodes(tp, num_devices=num_devices, devices_per_node=node)]


def packs_nodes(tensor_size: int, *, num_devices: int, devices_per_node: int) -> bool:
    """Whether no tensor group straddles two nodes, where groups lie densely one after the other.

    Groups are priced as if all were inside a node.

    Examples
    --------
    >>> [tp for tp in divisors(24) if packs_nodes(tp, num_devices=24, devices_per_node=8)]
    [1, 2, 4, 8]
    """
    return num_devices <= devices_per_node or devices_per_node % tensor_size == 0


def _context_sizes(problem: Problem, *, num_devices: int, fixed: dict[str, Any]) -> list[int]:
    if "context_parallel_size" in fixed:
        return [fixed["context_parallel_size"]]
    if not problem.graph.sequence_labels or problem.graph.sequence_length < MIN_CONTEXT_LENGTH:
        return [1]
    return [cp for cp in divisors(num_devices) if cp <= MAX_CONTEXT_SIZE]


def _expert_sizes(problem: Problem, *, num_devices: int, fixed: dict[str, Any]) -> list[int]:
    if "expert_parallel_size" in fixed:
        return [fixed["expert_parallel_size"]]
    experts = num_experts(problem)
    if experts is None:
        return [1]
    return [ep for ep in divisors(experts) if num_devices % ep == 0]


def _layouts(problem: Problem, *, tp: int, fixed: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return (layout, sequence parallel) worth trying.

    Norms on shards of the sequence cost no more communication and less memory and compute
    (arXiv:2205.05198, section 4.2.2), so sequence parallelism is left out only on request. What the
    user fixes is kept where it cannot be, so that the rejection says why.
    """
    if tp == 1:
        return [("tensor", fixed.get("sequence_parallel", False))]
    sequence = bool(problem.graph.sequence_labels) and problem.graph.sequence_length % tp == 0
    found = [("tensor", fixed.get("sequence_parallel", sequence)), ("mixed", False)]
    return [
        (layout, parallel)
        for layout, parallel in found
        if fixed.get("layout", layout) == layout
        and fixed.get("sequence_parallel", parallel) == parallel
    ]


def microbatch_sizes(problem: Problem, *, fixed: dict[str, Any]) -> list[int]:
    """Return the microbatch sizes worth trying, in increasing order."""
    if "microbatch_size" in fixed:
        return [fixed["microbatch_size"]]
    return [d for d in divisors(problem.workload.global_batch_size) if d <= MAX_MICROBATCH]


def pipeline_sizes(problem: Problem, *, num_devices: int, fixed: dict[str, Any]) -> list[int]:
    """Return the pipeline sizes that divide what the core leaves of the devices."""
    if "pipeline_parallel_size" in fixed:
        return [fixed["pipeline_parallel_size"]]
    items = sum(unit.count for unit in problem.graph.units)
    return [pp for pp in divisors(num_devices) if pp <= items]


def schedules(
    problem: Problem, *, pipeline_size: int, fixed: dict[str, Any]
) -> list[tuple[Schedule, int]]:
    """Return (schedule, virtual stages) worth trying for a pipeline size.

    ``gpipe`` takes as long as ``1f1b`` and holds more activations, so it is tried only where the
    user fixes it, as are schedules that split the backward pass: else :func:`split_variants` of the
    fastest are tried.
    """
    if pipeline_size == 1 or not problem.workload.is_training:
        return [(fixed.get("schedule", "1f1b"), fixed.get("virtual_stages", 1))]
    chunks = _virtual_stages(problem, pipeline_size=pipeline_size)
    if "virtual_stages" in fixed and fixed["virtual_stages"] > 1:
        chunks = [fixed["virtual_stages"]]
    wanted = fixed.get("schedule")
    found: list[tuple[Schedule, int]] = [("1f1b", 1), *(("interleaved", v) for v in chunks)]
    if wanted == "gpipe":
        found = [("gpipe", 1)]
    if splits_backward(wanted or ""):
        found = [("zero_bubble", 1), *(("zero_bubble", v) for v in chunks), ("zbv", ZBV_STAGES)]
    return [
        (schedule, v)
        for schedule, v in found
        if fixed.get("schedule", schedule) == schedule and fixed.get("virtual_stages", v) == v
    ]


def _virtual_stages(problem: Problem, *, pipeline_size: int) -> list[int]:
    """Return the numbers of stages per rank above 1 that deal the blocks evenly."""
    repeats = max(unit.count for unit in problem.graph.units)
    return [
        v
        for v in range(2, max(1, repeats // pipeline_size) + 1)
        if v <= MAX_VIRTUAL_STAGES and _deals_evenly(problem, pipeline_size * v)
    ]


def split_variants(problem: Problem, strategy: Strategy) -> list[Strategy]:
    """Return a strategy with the schedules that split the backward pass, where the stack can."""
    pp = strategy.pipeline_parallel_size
    if problem.software.split_backward == "none" or pp == 1:
        return []
    chunks = _virtual_stages(problem, pipeline_size=pp)
    variants: list[tuple[Schedule, int]] = [("zero_bubble", v) for v in (1, *chunks)]
    if _deals_evenly(problem, pp * ZBV_STAGES):
        variants.append(("zbv", ZBV_STAGES))
    plain = replace(strategy, recompute="none")
    return [replace(plain, schedule=name, virtual_stages=v) for name, v in variants]


def _deals_evenly(problem: Problem, num_stages: int) -> bool:
    """Whether blocks divide over stages, or do with embedding and head counted as one each.

    The second is how Llama 3 405B spreads 126 layers over 16 ranks (arXiv:2407.21783, section 3.3).
    """
    counts = [unit.count for unit in problem.graph.units]
    return max(counts) % num_stages == 0 or sum(counts) % num_stages == 0


def shardings(
    problem: Problem, *, replicas: int, pipeline_size: int, fixed: dict[str, Any]
) -> list[Sharding]:
    """Return the shardings worth trying for a number of replicas.

    Under a pipeline, gradients are accumulated whole and reduced once: sharded gradients then cost
    as much as a sharded optimizer alone and are tried only where the user fixes them.
    """
    if "sharding" in fixed:
        return [fixed["sharding"]]
    if replicas == 1:
        return ["none"]
    if not problem.workload.is_training:
        return ["none", "parameters"]
    if pipeline_size > 1:
        return ["none", "optimizer", "parameters"]
    return ["none", "optimizer", "gradients", "parameters"]


def sharding_replicas(
    problem: Problem,
    sharding: Sharding,
    *,
    ranks: int,
    stride: int,
    pipeline_size: int,
    fixed: dict[str, Any],
) -> list[int]:
    """Return the numbers of copies of sharded weights worth trying: one, and one per node.

    ``ranks`` data and context ranks lie ``stride`` apart. Weights sharded inside a node are
    gathered over its links, and only gradients of the shards leave it. Under a pipeline torch
    gathers once per microbatch already, and copies are tried only where the user fixes them.
    """
    if "sharding_replicas" in fixed:
        return [fixed["sharding_replicas"]]
    per_node = problem.cluster.devices_per_node // stride
    whole_nodes = 1 < per_node < ranks and ranks % per_node == 0 and pipeline_size == 1
    return [1, ranks // per_node] if sharding == "parameters" and whole_nodes else [1]


def recomputes(problem: Problem, *, fixed: dict[str, Any]) -> list[Recompute]:
    """Return recomputation modes, fastest first."""
    if "recompute" in fixed:
        return [fixed["recompute"]]
    if not problem.workload.is_training:
        return ["none"]
    return ["none", "selective", "selective_op", "full"]


def recomputes_of(strategy: Strategy, modes: list[Recompute]) -> list[Recompute]:
    """Return those modes that a strategy's schedule allows."""
    if not splits_backward(strategy.schedule):
        return modes
    return [mode for mode in modes if mode in SPLIT_RECOMPUTE_MODES]


def strategies_of(
    problem: Problem,
    core: Core,
    *,
    microbatch_size: int,
    num_devices: int,
    fixed: dict[str, Any],
) -> Iterator[Strategy]:
    """Yield strategies of a core, without recomputation, in a fixed order."""
    left = num_devices // (core.tensor_parallel_size * core.context_parallel_size)
    for pp in pipeline_sizes(problem, num_devices=left, fixed=fixed):
        dp = fixed.get("data_parallel_size", max(1, left // pp))
        for schedule, chunks in schedules(problem, pipeline_size=pp, fixed=fixed):
            for sharding in shardings(
                problem, replicas=dp * core.context_parallel_size, pipeline_size=pp, fixed=fixed
            ):
                for copies in sharding_replicas(
                    problem, sharding, ranks=dp * core.context_parallel_size,
                    stride=core.tensor_parallel_size, pipeline_size=pp, fixed=fixed,
                ):  # fmt: skip
                    base = Strategy(
                        data_parallel_size=dp,
                        pipeline_parallel_size=pp,
                        microbatch_size=microbatch_size,
                        schedule=schedule,
                        virtual_stages=chunks,
                        sharding=sharding,
                        sharding_replicas=copies,
                    )
                    yield replace(base, **{f.name: getattr(core, f.name) for f in fields(core)})
