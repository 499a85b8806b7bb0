"""One pipeline position of a dry run under comparison, and a difference there."""

from collections.abc import Iterator
from dataclasses import dataclass

from executor.dry_run_counts import Count, Counts, Key
from executor.dry_run_facts import Facts
from executor.dry_run_simulated import SimulatedStep, items_of, simulated_setting
from planner.layouts.costs import Setting
from planner.layouts.evaluate import tensor_layouts
from planner.layouts.flows import (
    TensorState,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDifference:
    """What torch issues beyond (or short of) the simulator's list, per rank and step."""

    axis: str
    kind: str
    change: Count
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Position:
    """A pipeline position under comparison."""

    step: SimulatedStep
    simulated: Counts
    facts: Facts
    pipeline_rank: int

    @property
    def stages(self) -> list[int]:
        """Virtual stages there."""
        mesh, count = self.step.mesh, self.step.stages.num_stages
        return [s for s in range(count) if mesh.rank_of_stage(s) == self.pipeline_rank]

    @property
    def is_training(self) -> bool:
        """Whether there is a backward pass."""
        return self.step.problem.workload.is_training

    @property
    def per_microbatch(self) -> int:
        """How often per step something of every microbatch happens [1]."""
        return self.step.num_microbatches


def difference(key: Key, count: float, num_bytes: float, reason: str) -> KnownDifference:
    """Return a difference of one axis and kind, in messages [1] and bytes [B]."""
    return KnownDifference(
        axis=key[0], kind=key[1], change=Count(count=count, num_bytes=num_bytes), reason=reason
    )


def circumstances(step: SimulatedStep) -> tuple[Setting, dict[str, TensorState]]:
    """Return the setting of a step's prices, and how tensors are held."""
    setting = simulated_setting(step)
    return setting, tensor_layouts(setting, step.layout)


def operators_of(rank: Position) -> Iterator[str]:
    """Yield the operators of a pipeline position, repetitions as often as they are there."""
    units = {unit.name: unit for unit in rank.step.problem.graph.units}
    for stage in rank.stages:
        for item in items_of(rank.step, stage):
            yield from units[rank.step.units[item].unit].operators


def reductions(rank: Position) -> int:
    """Return how often per step FSDP reduces gradients: for each microbatch, or once."""
    step = rank.step
    each_time = step.mesh.pp == 1 and step.strategy.sharding in ("gradients", "parameters")
    each_time = each_time and bool(rank.facts.units)
    return rank.per_microbatch if each_time else 1
