"""The collectives that the simulator prices for a strategy, listed per rank and step.

The program of :mod:`planner.lowering` holds their durations, summed by action; here are the calls
behind them, from the same terms: unit terms per repetition and microbatch, synchronisation per
stage, transfers per boundary. A test prices this list and compares it with the program's tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from executor.dry_run_counts import Count, Key, added
from executor.errors import RunError
from executor.settings import RunSettings
from hardware_profiles import load_cluster, load_software
from planner.gradient_sync import SyncRole, sync_messages, tied_shards
from planner.graph import ModelGraph
from planner.item_costs import ItemCosts, item_costs
from planner.layouts.costs import Setting
from planner.layouts.evaluate import all_unit_terms
from planner.layouts.flows import TensorState
from planner.layouts.solve import setting_for
from planner.layouts.terms import CollectiveUse, LayoutSolution, UnitTerms
from planner.mesh import MeshShape, mesh_of
from planner.plan import Plan
from planner.problem import PriceBook, Problem
from planner.stage_costs import StageCosts, stage_costs
from planner.stages import item_units
from planner.strategy import Strategy, parse_strategy
from planner.workload import Workload
from simulator.groups import CollectiveKind

When = Literal["forward", "backward", "step"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A collective of one stage: so many of one size, per microbatch or once per step."""

    stage: int
    when: When
    kind: CollectiveKind
    axes: tuple[str, ...]
    """Mesh axes that its group spans."""
    message_bytes: float
    """In the nccl-tests convention [B]."""
    count: float
    source: Literal["layout", "state", "tied"]
    """What needs it: activations, copies of weights, weights of two stages."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedStep:
    """A strategy as the simulator sees it, at the sizes of a dry run."""

    problem: Problem
    strategy: Strategy
    layout: LayoutSolution
    mesh: MeshShape
    num_microbatches: int
    stages: StageCosts
    units: tuple[UnitTerms, ...]
    """Of each item, in order."""
    items: ItemCosts


def simulated_step(plan: Plan, settings: RunSettings, *, graph: ModelGraph) -> SimulatedStep:
    """Return the costs of a plan's strategy and layouts for the model of a dry run.

    Parameters
    ----------
    plan : Plan
        Strategy, layouts, cluster and software.
    settings : RunSettings
        Model, batch and stages that the ranks play.
    graph : ModelGraph
        The traced model of the dry run.

    Raises
    ------
    RunError
        If the narrow model is not made of the plan's operators.
    """
    shape, strategy = settings.shape, parse_strategy(plan.strategy)
    cluster, software = load_cluster(plan.cluster.name), load_software(plan.software)
    workload = Workload(
        global_batch_size=shape.global_batch_size, sequence_length=graph.sequence_length,
        precision=settings.precision, optimizer=plan.workload.optimizer,  # type: ignore[arg-type]
        mode=plan.workload.mode, attention=plan.workload.attention,  # type: ignore[arg-type]
    )  # fmt: skip
    problem = Problem(graph=graph, workload=workload, cluster=cluster, software=software)
    return step_of(
        problem, strategy, _layout(plan, problem, strategy),
        starts=np.cumsum([0, *settings.stage_items[:-1]], dtype=np.int64),
        num_microbatches=shape.num_microbatches,
    )  # fmt: skip


def step_of(
    problem: Problem,
    strategy: Strategy,
    layout: LayoutSolution,
    *,
    starts: NDArray[np.int64],
    num_microbatches: int,
) -> SimulatedStep:
    """Return the costs of one strategy with one layout, cut before the items ``starts``."""
    graph, cluster, software = problem.graph, problem.cluster, problem.software
    mesh = mesh_of(strategy, devices_per_node=cluster.devices_per_node)
    terms = all_unit_terms(
        graph, layout=layout, context_parallel_size=mesh.cp, expert_parallel_size=mesh.ep,
        microbatch_size=strategy.microbatch_size, workload=problem.workload, cluster=cluster,
        software=software,
    )  # fmt: skip
    items = item_costs(
        graph, terms, layout=layout, mesh=mesh, workload=problem.workload, cluster=cluster,
        software=software,
    )  # fmt: skip
    return SimulatedStep(
        problem=problem, strategy=strategy, layout=layout, mesh=mesh,
        num_microbatches=num_microbatches, stages=stage_costs(items, starts, mesh=mesh),
        units=tuple(terms[graph.units[unit].name] for unit in item_units(graph)), items=items,
    )  # fmt: skip


def _layout(plan: Plan, problem: Problem, strategy: Strategy) -> LayoutSolution:
    """Return the plan's layout for the narrow model, whose operators must be the plan's."""
    if not plan.layouts:
        return PriceBook(problem=problem).layouts(strategy)[0]
    planned = plan.layouts[0]
    here = {name for unit in problem.graph.units for name in unit.operators}
    odd = sorted(here ^ set(planned.operators))
    if odd:
        raise RunError(
            f"{problem.graph.source}: operator {odd[0]!r} is not in both the plan and the narrow "
            "model of the dry run; expected the same operators; make the plan anew"
        )
    states = {
        name: TensorState(value=value, gradient=gradient)
        for name, (value, gradient) in planned.tensors.items()
    }
    return LayoutSolution(
        name="planned", choices=dict(planned.operators), size=planned.size, states=states or None
    )


def simulated_setting(step: SimulatedStep) -> Setting:
    """Return the setting in which the layout was priced."""
    problem = step.problem
    return setting_for(
        problem.graph, layout=step.layout, context_parallel_size=step.mesh.cp,
        expert_parallel_size=step.mesh.ep, microbatch_size=step.strategy.microbatch_size,
        workload=problem.workload, cluster=problem.cluster, software=problem.software,
    )  # fmt: skip


def simulated_calls(step: SimulatedStep) -> Iterator[Call]:
    """Yield all collectives of all stages; transfers between stages are :func:`transfers`."""
    for stage in range(step.stages.num_stages):
        yield from _layout_calls(step, stage)
        if step.mesh.dp * step.mesh.cp * step.mesh.tp > 1:
            yield from _state_calls(step, stage)
    yield from _tied_calls(step)


def items_of(step: SimulatedStep, stage: int) -> range:
    """Return the items of a virtual stage."""
    edges = [*step.stages.starts.tolist(), len(step.units)]
    return range(edges[stage], edges[stage + 1])


def _layout_calls(step: SimulatedStep, stage: int) -> Iterator[Call]:
    """Yield what layouts exchange; recomputed items exchange again in backward."""
    is_full = step.strategy.recompute == "full" and step.problem.workload.is_training
    for item in items_of(step, stage):
        for use in step.units[item].communication:
            if _size(step.mesh, use.axis) == 1:
                continue
            yield _call(use, stage, use.phase)
            if use.phase == "forward" and is_full and step.items.is_recomputed[item]:
                yield _call(use, stage, "backward")


def _call(use: CollectiveUse, stage: int, when: When) -> Call:
    return Call(stage=stage, when=when, kind=use.kind, axes=(use.axis,),
                message_bytes=use.message_bytes, count=use.count, source="layout")  # fmt: skip


def _state_calls(step: SimulatedStep, stage: int) -> Iterator[Call]:
    """Yield reductions of gradients and gathers of weights, as they are priced.

    When they happen is what :func:`planner.step_time.action_times` says.
    """
    problem = step.problem
    trains = problem.workload.is_training
    for message in sync_messages(
        step.stages, mesh=step.mesh, sharding=step.strategy.sharding, state=problem.state,
        gradient_bytes=problem.gradient_bytes, software=problem.software,
    ):  # fmt: skip
        count = float(message.num_pieces[stage])
        for when in _moments(step.strategy, message.role, pp=step.mesh.pp, trains=trains):
            if count:
                yield Call(
                    stage=stage, when=when, kind=message.kind, axes=message.axes, count=count,
                    message_bytes=float(message.message_bytes[stage]) / count, source="state",
                )  # fmt: skip


def _moments(strategy: Strategy, role: SyncRole, *, pp: int, trains: bool) -> tuple[When, ...]:
    """Return when a rank reduces gradients or gathers weights."""
    sharding = strategy.sharding
    if role == "copies":
        return ("step",) if trains else ()
    if role == "reduce":
        each_time = pp == 1 and sharding in ("gradients", "parameters")
        found: tuple[When, ...] = ("backward",) if each_time else ("step",)
        return found if trains else ()
    if sharding != "parameters":
        return ("step",) if trains else ()
    return ("forward", "backward") if trains and pp == 1 else ("forward",)


def _size(mesh: MeshShape, axis: str) -> int:
    return {"dp": mesh.dp, "cp": mesh.cp, "tp": mesh.tp, "ep": mesh.ep}[axis]


def _tied_calls(step: SimulatedStep) -> Iterator[Call]:
    """Yield the sums of gradients of weights that two stages hold, on both of them."""
    if step.mesh.pp == 1 or not step.problem.workload.is_training:
        return
    shards = tied_shards(step.mesh, sharding=step.strategy.sharding, software=step.problem.software)
    for stage, elements in enumerate(step.stages.tied_parameters):
        if elements > 0:
            for holder in (0, stage):
                yield Call(
                    stage=holder, when="step", kind="all_reduce", axes=("pp",), count=1.0,
                    source="tied",
                    message_bytes=float(elements) * step.problem.gradient_bytes / shards,
                )  # fmt: skip


def simulated_on(step: SimulatedStep, *, pipeline_rank: int) -> dict[Key, Count]:
    """Return what the simulator has one rank of a pipeline position do in one step."""
    parts: list[tuple[str, str, float, float]] = [
        ("+".join(call.axes), call.kind, call.message_bytes,
         call.count * (1 if call.when == "step" else step.num_microbatches))
        for call in simulated_calls(step)
        if step.mesh.rank_of_stage(call.stage) == pipeline_rank
    ]  # fmt: skip
    parts += transfers(step, pipeline_rank=pipeline_rank)
    return added(
        ((axis, kind), Count(count=count, num_bytes=count * message_bytes))
        for axis, kind, message_bytes, count in parts
    )


def transfers(step: SimulatedStep, *, pipeline_rank: int) -> list[tuple[str, str, float, float]]:
    """Return sends and receives of a pipeline rank: axis, kind, bytes of one, count.

    The program has one task per transfer, on the sender; a receive is its other end.
    """
    last = step.stages.num_stages - 1
    if step.mesh.pp == 1:
        return []
    found = []
    for boundary in range(1, last + 1):
        sender, receiver = (step.mesh.rank_of_stage(stage) for stage in (boundary - 1, boundary))
        if sender == receiver:
            continue
        num_bytes = float(step.stages.entry_bytes[boundary])
        ways = [("send", "recv")]
        if step.problem.workload.is_training:
            ways.append(("recv", "send"))
        for before, after in ways:
            if sender == pipeline_rank:
                found.append(("pp", before, num_bytes, float(step.num_microbatches)))
            if receiver == pipeline_rank:
                found.append(("pp", after, num_bytes, float(step.num_microbatches)))
    return found
