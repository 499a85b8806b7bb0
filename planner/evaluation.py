"""One candidate priced: step time by the closed form, memory by stage."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.layouts.terms import LayoutSolution
from planner.mesh import MeshShape, mesh_of
from planner.problem import PriceBook
from planner.stage_costs import StageCosts
from planner.stage_memory import (
    MEMORY_TERMS,
    Moment,
    StageMemory,
    inference_memory,
    overhead_memory,
    state_memory,
    step_memory,
)
from planner.step_costs import StepCosts
from planner.step_time import StepTime, action_times, end_times, step_time, transfer_time
from planner.strategy import Strategy
from simulator.held import held_moments
from simulator.zero_bubble import splits_backward

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A strategy with a layout, its predicted step and memory."""

    strategy: Strategy
    layout: LayoutSolution
    mesh: MeshShape
    stages: StageCosts
    step: StepTime
    memory: StageMemory
    capacity_bytes: tuple[float, ...]
    """Device memory per pipeline rank [B]."""
    costs: StepCosts
    straggler_factor: float

    @property
    def fits(self) -> bool:
        """Whether every rank stays within its device memory."""
        return bool(np.all(self.memory.peak_bytes <= np.array(self.capacity_bytes)))

    @property
    def peak_bytes(self) -> float:
        """Memory of the fullest rank [B]."""
        return float(self.memory.peak_bytes.max())

    @property
    def overflow_bytes(self) -> float:
        """How much the fullest rank exceeds its device, negative where it fits [B]."""
        return float((self.memory.peak_bytes - np.array(self.capacity_bytes)).max())

    @property
    def num_microbatches(self) -> int:
        """Microbatches per step."""
        return self.costs.num_microbatches


def evaluate(book: PriceBook, strategy: Strategy, layout: LayoutSolution) -> Evaluation:
    """Return the closed-form prediction of one candidate.

    The strategy must have passed :func:`planner.feasibility.find_rejection`.
    """
    problem = book.problem
    workload, software, cluster = problem.workload, problem.software, problem.cluster
    mesh = mesh_of(strategy, devices_per_node=cluster.devices_per_node)
    stages = book.stages(strategy, layout, mesh=mesh)
    sync = book.sync(strategy, layout, mesh=mesh, sharding=strategy.sharding)
    num_microbatches = workload.global_batch_size // (mesh.dp * strategy.microbatch_size)
    actions = action_times(
        stages, sync, recompute=strategy.recompute, sharding=strategy.sharding, mesh=mesh,
        splits=splits_backward(strategy.schedule),
        transfer_s=transfer_time(
            stages, mesh=mesh, cluster=cluster, software=software,
            is_replicated=not strategy.sequence_parallel and strategy.layout == "tensor",
        ), software=software,
        is_training=workload.is_training,
    )  # fmt: skip
    end = end_times(
        stages, sync, actions, sharding=strategy.sharding, mesh=mesh, state=problem.state,
        workload=workload, cluster=cluster, software=software,
    )  # fmt: skip
    num_nodes = -(-strategy.num_devices // cluster.devices_per_node)
    step = step_time(
        actions, end, schedule=strategy.schedule, mesh=mesh, num_microbatches=num_microbatches,
        num_nodes=num_nodes, software=software,
    )  # fmt: skip
    memory, _ = evaluate_memory(book, strategy, layout)
    resting = tuple(
        float(bytes_)
        for bytes_ in sum(
            (v for k, v in memory.terms.items() if k not in ("activations", "workspace")),
            np.zeros(mesh.pp),
        )
    )
    return Evaluation(
        strategy=strategy,
        layout=layout,
        mesh=mesh,
        stages=stages,
        step=step,
        memory=memory,
        capacity_bytes=tuple(book.capacity_bytes(mesh)),
        costs=StepCosts(
            stages=stages,
            actions=actions,
            end=end,
            schedule=strategy.schedule,
            recompute=strategy.recompute,
            mesh=mesh,
            num_microbatches=num_microbatches,
            tail_s=software.overlap_gradient_sync * actions.last_compute_s,
            sync_slowdown=software.compute_slowdown - 1.0,
            is_training=workload.is_training,
            resting_memory_bytes=resting,
        ),
        straggler_factor=1.0 + software.straggler_share * float(np.log2(max(1, num_nodes))),
    )


def evaluate_memory(
    book: PriceBook, strategy: Strategy, layout: LayoutSolution
) -> tuple[StageMemory, float]:
    """Return memory per pipeline rank and by how much the fullest exceeds its device [B].

    Cheaper than :func:`evaluate`; most candidates fail here.
    """
    problem = book.problem
    mesh = mesh_of(strategy, devices_per_node=problem.cluster.devices_per_node)
    num_microbatches = problem.workload.global_batch_size // (mesh.dp * strategy.microbatch_size)
    stages = book.stages(strategy, layout, mesh=mesh)
    terms = _state_part(book, strategy, stages, mesh=mesh)
    terms = terms | _step_part(
        book, strategy, stages, terms, mesh=mesh, num_microbatches=num_microbatches
    )
    terms |= overhead_memory(
        terms, stages=stages, mesh=mesh, sharding=strategy.sharding, software=problem.software,
        device_kind=problem.cluster.device.kind, gradient_bytes=problem.state.gradients,
        num_microbatches=num_microbatches,
    )  # fmt: skip
    terms = {term: terms[term] for term in MEMORY_TERMS}
    memory = StageMemory(terms=terms)
    overflow = (memory.peak_bytes - np.array(book.capacity_bytes(mesh))).max()
    return memory, float(overflow)


def _stays_gathered(book: PriceBook, strategy: Strategy) -> bool:
    """Whether a rank of torch's pipeline keeps gathered weights and whole gradients."""
    is_sharded = strategy.sharding in ("gradients", "parameters")
    has_pipeline = strategy.pipeline_parallel_size > 1
    return is_sharded and has_pipeline and book.problem.workload.is_training


def _state_part(
    book: PriceBook, strategy: Strategy, stages: StageCosts, *, mesh: MeshShape
) -> dict[str, Floats]:
    key = (id(stages), mesh, strategy.sharding)
    if key not in book.memory_parts:
        book.memory_parts[key] = state_memory(
            stages,
            mesh=mesh,
            sharding=strategy.sharding,
            state=book.problem.state,
            software=book.problem.software,
            keeps_whole_gradients=_stays_gathered(book, strategy),
        )
    return book.memory_parts[key]


def _step_part(
    book: PriceBook,
    strategy: Strategy,
    stages: StageCosts,
    state_terms: dict[str, Floats],
    *,
    mesh: MeshShape,
    num_microbatches: int,
) -> dict[str, Floats]:
    problem = book.problem
    if not problem.workload.is_training:
        return inference_memory(stages, mesh=mesh)
    flags = (strategy.schedule, strategy.virtual_stages, strategy.recompute, strategy.sharding)
    key = (id(stages), mesh, num_microbatches, flags)
    if key not in book.memory_parts:
        book.memory_parts[key] = step_memory(
            stages,
            state_terms,
            mesh=mesh,
            recompute=strategy.recompute,
            held=held_moments(
                strategy.schedule, num_stages=mesh.pp, num_microbatches=num_microbatches,
                virtual_stages=strategy.virtual_stages,
            ),
            moment=Moment(
                sharding=strategy.sharding, state=problem.state, software=problem.software,
                stays_gathered=_stays_gathered(book, strategy),
                num_microbatches=num_microbatches,
            ),
        )  # fmt: skip
    return book.memory_parts[key]
