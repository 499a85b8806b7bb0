"""What lowering needs about one candidate, and the program under construction."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from planner.mesh import MeshShape
from planner.stage_costs import StageCosts
from planner.step_time import ActionTimes, EndTimes
from planner.strategy import Recompute, Schedule
from simulator.program import Task

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCosts:
    """Everything lowering needs about one candidate."""

    stages: StageCosts
    actions: ActionTimes
    end: EndTimes
    schedule: Schedule
    recompute: Recompute
    mesh: MeshShape
    num_microbatches: int
    tail_s: Floats
    """Part of each stage's last backward under which gradient reduction may run [s]."""
    sync_slowdown: float
    """Extra compute per second of hidden reduction [1]."""
    is_training: bool
    resting_memory_bytes: tuple[float, ...]
    """Per pipeline rank [B]."""


def merged(costs: StepCosts) -> StepCosts:
    """Return the costs with exposed communication counted as compute: fewer tasks, same time."""
    actions = costs.actions

    def add(compute: Floats, comm: Mapping[str, Floats]) -> Floats:
        return sum((v for k, v in comm.items() if k != "pipeline"), compute)

    def keep(comm: Mapping[str, Floats]) -> dict[str, Floats]:
        return {k: v for k, v in comm.items() if k == "pipeline"}

    return replace(
        costs,
        actions=replace(
            actions,
            forward_compute_s=add(actions.forward_compute_s, actions.forward_comm_s),
            backward_compute_s=add(actions.backward_compute_s, actions.backward_comm_s),
            forward_comm_s=keep(actions.forward_comm_s),
            backward_comm_s=keep(actions.backward_comm_s),
        ),
    )


@dataclass(kw_only=True)
class ProgramBuilder:
    """Tasks under construction; positions are task numbers."""

    costs: StepCosts
    replicas: int
    tasks: list[Task] = field(default_factory=list)
    ready: dict[tuple[str, int, int, int], int] = field(default_factory=dict)
    """(kind, stage, microbatch, replica) -> task after which the neighbour may use the result."""
    gate: dict[int, int] = field(default_factory=dict)
    """Rank -> communication that its next compute must await."""
    last_compute: dict[int, int] = field(default_factory=dict)

    def add(self, task: Task) -> int:
        """Append a task and return its number."""
        self.tasks.append(task)
        return len(self.tasks) - 1

    def rank(self, stage: int, replica: int) -> int:
        """Return the rank that runs a stage in one replica."""
        return self.costs.mesh.rank_of_stage(stage) * self.replicas + replica

    def peers(self, category: str, replica: int) -> list[int]:
        """Return the replicas that a collective of a category joins with this one."""
        if self.replicas == 1:
            return [0]
        mesh = self.costs.mesh
        tp, cp = mesh.tp, mesh.cp
        if category == "tensor":
            return [replica // tp * tp + i for i in range(tp)]
        if category == "context":
            base = replica // (tp * cp) * tp * cp + replica % tp
            return [base + i * tp for i in range(cp)]
        if category in ("data", "expert"):
            return [replica % tp + i * tp for i in range(mesh.dp * cp)]
        return [replica]
