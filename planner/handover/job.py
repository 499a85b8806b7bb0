"""A plan in plain numbers: what every trainer asks for."""

from dataclasses import dataclass, fields
from typing import get_args

from planner.handover.refusals import HandoverError, refusal
from planner.models.source import ModelSource
from planner.plan import Plan
from planner.strategy import Strategy, parse_strategy
from planner.workload import AttentionChoice

UNDERSTOOD = frozenset(
    {
        "data_parallel_size",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "context_parallel_size",
        "expert_parallel_size",
        "microbatch_size",
        "schedule",
        "virtual_stages",
        "sharding",
        "sharding_replicas",
        "recompute",
        "sequence_parallel",
        "layout",
    }
)
"""Fields of a strategy that every trainer here writes or refuses; another one is refused for all
unless it stands at its default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training job as a plan describes it."""

    plan: Plan
    strategy: Strategy
    source: ModelSource
    num_microbatches: int
    """Microbatches per optimizer step of one data-parallel rank."""
    num_nodes: int
    devices_per_node: int
    """Processes that one node starts."""

    @property
    def num_devices(self) -> int:
        """Processes in all."""
        return self.strategy.num_devices

    @property
    def samples_per_replica(self) -> int:
        """Samples per optimizer step of one data-parallel rank."""
        return self.strategy.microbatch_size * self.num_microbatches

    @property
    def software(self) -> str:
        """Name of the software profile that the plan was predicted with, without its changes."""
        return self.plan.software.partition("?")[0]

    @property
    def heading(self) -> tuple[str, str]:
        """What a file says of its origin, in lines that hold no line breaks."""
        plan = self.plan
        return (
            " ".join(f"{plan.model.source} as {plan.strategy}".split()),
            " ".join(f"{self.num_devices} x {plan.cluster.device}; written by paraplan".split()),
        )

    @property
    def launch(self) -> str:
        """How torchrun starts it."""
        nodes = f"--nnodes {self.num_nodes} " if self.num_nodes > 1 else ""
        return f"torchrun {nodes}--nproc-per-node {self.devices_per_node}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Handed:
    """What a trainer gets."""

    text: str
    """The configuration file."""
    notes: tuple[str, ...]
    """What the file cannot hold or the trainer does a little differently, a sentence each."""


def make_job(plan: Plan, *, trainer: str, source: ModelSource) -> Job:
    """Read a plan for a trainer, and refuse what no trainer here can express.

    Raises
    ------
    HandoverError
        If the plan is for inference, for devices that are no GPUs, has a mixed layout or strategy
        fields that hand-over does not know, or if its batch does not divide.
    """
    strategy = parse_strategy(plan.strategy)
    check_understood(strategy, trainer=trainer)
    _check_kind(plan, strategy, trainer=trainer)
    replica = strategy.data_parallel_size * strategy.microbatch_size
    batch = plan.workload.global_batch_size
    if batch % replica:
        raise HandoverError(
            f"{trainer}: the plan's global batch {batch} is not a multiple of dp*microbatch = "
            f"{replica}; make the plan anew with 'paraplan plan'"
        )
    per_node = min(plan.cluster.devices_per_node, strategy.num_devices)
    if strategy.num_devices % per_node:
        raise HandoverError(
            f"{trainer}: {strategy.num_devices} devices do not fill nodes of {per_node}, and "
            "launchers start equal nodes; plan for whole nodes"
        )
    return Job(
        plan=plan,
        strategy=strategy,
        source=source,
        num_microbatches=batch // replica,
        num_nodes=strategy.num_devices // per_node,
        devices_per_node=per_node,
    )


def check_understood(
    strategy: Strategy, *, trainer: str, words: frozenset[str] = UNDERSTOOD
) -> None:
    """Refuse a strategy with a field that hand-over has no word for, unless it is at its default.

    Raises
    ------
    HandoverError
        With the first such field.
    """
    default = Strategy()
    for field in fields(Strategy):
        value = getattr(strategy, field.name)
        if field.name not in words and value != getattr(default, field.name):
            raise refusal(
                trainer,
                found=f"{field.name}={value}",
                because="hand-over has no word for it",
                instead="plan without it, or run the plan with 'paraplan run'",
            )


def _check_kind(plan: Plan, strategy: Strategy, *, trainer: str) -> None:
    if plan.workload.mode != "train":
        raise refusal(
            trainer,
            found=f"mode={plan.workload.mode}",
            because="it is a trainer",
            instead="plan with --mode train",
        )
    if plan.cluster.device_kind != "gpu":
        raise refusal(
            trainer,
            found=f"{plan.cluster.device_kind} devices ({plan.cluster.device})",
            because="plans are handed over for GPUs only",
            instead="plan for a cluster of GPUs, or use 'paraplan run'",
        )
    if plan.workload.attention not in get_args(AttentionChoice):
        raise HandoverError(
            f"{trainer}: the plan's attention is {plan.workload.attention!r}; expected one of "
            f"{', '.join(get_args(AttentionChoice))}; make the plan anew with 'paraplan plan'"
        )
    if strategy.layout == "mixed":
        raise refusal(
            trainer,
            found="layout=mixed",
            because="it splits all blocks in one way, and here each operator has its own",
            instead="plan with --strategy layout=tensor, or use 'paraplan run'",
        )
