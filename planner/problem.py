"""What a search is about, and the prices that candidates share."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.cluster import Cluster
from hardware_profiles.device import DeviceProfile
from hardware_profiles.software import SoftwareProfile
from planner.gradient_sync import SyncTimes, sync_times
from planner.graph import ModelGraph
from planner.item_costs import ItemCosts, item_costs, slowest
from planner.layouts.evaluate import all_unit_terms
from planner.layouts.norm_traffic import is_batch_norm
from planner.layouts.solve import data_layout, solve_layouts
from planner.layouts.terms import LayoutSolution
from planner.mesh import MeshShape
from planner.stage_costs import StageCosts, stage_costs
from planner.stages import stage_cuts
from planner.state_memory import StateBytes, state_bytes
from planner.strategy import Sharding, Strategy
from planner.workload import Workload

Floats = NDArray[np.float64]
MEMORY_WEIGHTS_S_PER_BYTE = (0.0, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)
"""Lagrange weights on memory that give one layout each [s/B]; duplicates are dropped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A model, a workload, a machine and a software stack."""

    graph: ModelGraph
    workload: Workload
    cluster: Cluster
    software: SoftwareProfile
    limits: tuple[tuple[str, int], ...] = ()
    """Counts that tensor parallelism must divide: (``num_attention_heads``, 32), ..."""

    @property
    def state(self) -> StateBytes:
        """Bytes per parameter of this workload."""
        return state_bytes(self.workload, software=self.software)

    @property
    def gradient_bytes(self) -> float:
        """Bytes per gradient element on the wire [B]."""
        return self.state.gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutKey:
    """What a layout on the tensor axis depends on."""

    tp: int
    cp: int
    ep: int
    microbatch_size: int
    sequence_parallel: bool
    mixed: bool
    dp: int
    """Replicas where the layout may mix, 0 where it may not. They decide what gradient sums cost
    and how many microbatches share one: what Krizhevsky's mix is about, and next to nothing for
    weights that are all cut, which are solved for as many replicas as the cluster allows."""


def layout_key(strategy: Strategy) -> LayoutKey:
    """Return the part of a strategy that layouts depend on."""
    return LayoutKey(
        tp=strategy.tensor_parallel_size,
        cp=strategy.context_parallel_size,
        ep=strategy.expert_parallel_size,
        microbatch_size=strategy.microbatch_size,
        sequence_parallel=strategy.sequence_parallel,
        mixed=strategy.layout == "mixed",
        dp=strategy.data_parallel_size if strategy.layout == "mixed" else 0,
    )


@dataclass(kw_only=True)
class PriceBook:
    """Prices computed once in a search; lives as long as the search does."""

    problem: Problem
    _layouts: dict[LayoutKey, tuple[LayoutSolution, ...]] = field(default_factory=dict)
    _solutions: dict[tuple[object, ...], LayoutSolution] = field(default_factory=dict)
    """One object per layout, so that strategies with equal layouts share prices."""
    _items: dict[tuple[object, ...], ItemCosts] = field(default_factory=dict)
    _stages: dict[tuple[object, ...], StageCosts] = field(default_factory=dict)
    _syncs: dict[tuple[object, ...], SyncTimes] = field(default_factory=dict)
    memory_parts: dict[tuple[object, ...], dict[str, Floats]] = field(default_factory=dict)
    """Memory terms that candidates share, kept by :mod:`planner.evaluation`."""

    def layouts(self, strategy: Strategy) -> tuple[LayoutSolution, ...]:
        """Return the layouts worth trying for a strategy, cheapest in time first."""
        key = layout_key(strategy)
        if key not in self._layouts:
            problem = self.problem
            samples = problem.workload.global_batch_size
            most = min(
                problem.cluster.num_devices // (key.tp * key.cp), samples // key.microbatch_size
            )
            replicas = key.dp or max(1, most)
            local = key.microbatch_size * replicas
            solved = solve_layouts(
                problem.graph,
                tensor_parallel_size=key.tp,
                context_parallel_size=key.cp,
                expert_parallel_size=key.ep,
                microbatch_size=key.microbatch_size,
                num_microbatches=max(1, samples // local),
                data_parallel_size=replicas,
                workload=problem.workload,
                cluster=problem.cluster,
                software=problem.software,
                sequence_parallel=key.sequence_parallel,
                allow_batch=key.mixed,
                memory_weights=MEMORY_WEIGHTS_S_PER_BYTE if key.tp > 1 else (0.0,),
            )
            self._layouts[key] = tuple(
                self._solutions.setdefault(
                    (replace(key, dp=0), tuple(layout.choices.values())), layout
                )
                for layout in solved
                if not mixes_batch_statistics(problem.graph, layout)
            )
            if not self._layouts[key]:
                self._layouts[key] = (
                    data_layout(
                        problem.graph,
                        tensor_parallel_size=key.tp,
                        microbatch_size=key.microbatch_size,
                    ),
                )
        return self._layouts[key]

    def items(
        self, strategy: Strategy, layout: LayoutSolution, *, mesh: MeshShape, device: DeviceProfile
    ) -> ItemCosts:
        """Return item costs on one kind of device."""
        key = (replace(layout_key(strategy), dp=0), id(layout), device.name)
        if key not in self._items:
            problem = self.problem
            cluster = _as_if_all(problem.cluster, device)
            terms = all_unit_terms(
                problem.graph,
                layout=layout,
                context_parallel_size=mesh.cp,
                expert_parallel_size=mesh.ep,
                microbatch_size=strategy.microbatch_size,
                workload=problem.workload,
                cluster=cluster,
                software=problem.software,
            )
            self._items[key] = item_costs(
                problem.graph, terms, layout=layout, mesh=mesh, workload=problem.workload,
                cluster=cluster, software=problem.software,
            )  # fmt: skip
        return self._items[key]

    def stages(self, strategy: Strategy, layout: LayoutSolution, *, mesh: MeshShape) -> StageCosts:
        """Return stage costs; on mixed clusters each stage runs on the devices it is placed on."""
        number = self.layouts(strategy).index(layout)
        num_stages = mesh.pp * strategy.virtual_stages
        key = (layout_key(strategy), number, num_stages, mesh.pp, mesh.stage_ranks, mesh.v_shaped)
        if key not in self._stages:
            per_rank = [
                slowest([self.items(strategy, layout, mesh=mesh, device=d) for d in devices])
                for devices in self._devices_of_stages(mesh)
            ]
            self._stages[key] = _assemble(
                self.problem.graph, per_rank, num_stages=num_stages, mesh=mesh
            )
        return self._stages[key]

    def _devices_of_stages(self, mesh: MeshShape) -> list[list[DeviceProfile]]:
        """Return the kinds of device per pipeline rank, or once where all ranks have the same."""
        cluster = self.problem.cluster
        if not cluster.is_mixed:
            return [[cluster.device]]
        size = mesh.stage_ranks
        return [
            list(
                {
                    d.name: d for d in map(cluster.device_of, range(r * size, r * size + size))
                }.values()
            )
            for r in range(mesh.pp)
        ]

    def capacity_bytes(self, mesh: MeshShape) -> list[float]:
        """Return the smallest device memory of each pipeline rank [B]."""
        least = [
            min(device.memory_bytes for device in devices)
            for devices in self._devices_of_stages(mesh)
        ]
        return least * mesh.pp if len(least) == 1 else least

    def sync(
        self, strategy: Strategy, layout: LayoutSolution, *, mesh: MeshShape, sharding: Sharding
    ) -> SyncTimes:
        """Return gradient synchronisation per stage."""
        number = self.layouts(strategy).index(layout)
        num_stages = mesh.pp * strategy.virtual_stages
        key = (layout_key(strategy), number, num_stages, mesh, sharding)
        if key not in self._syncs:
            problem = self.problem
            self._syncs[key] = sync_times(
                self.stages(strategy, layout, mesh=mesh),
                mesh=mesh,
                sharding=sharding,
                state=problem.state,
                gradient_bytes=problem.gradient_bytes,
                cluster=problem.cluster,
                software=problem.software,
            )
        return self._syncs[key]


def mixes_batch_statistics(graph: ModelGraph, layout: LayoutSolution) -> bool:
    """Return whether some batch norms would see slices of the batch and others all of it.

    Such a network computes another function than either a split or a whole batch gives.
    """
    splits = {
        layout.choices.get(name) == graph.batch_label
        for name, operator in graph.graph.nodes(data="operator")
        if is_batch_norm(operator)
    }
    return len(splits) > 1


def _as_if_all(cluster: Cluster, device: DeviceProfile) -> Cluster:
    """Return the cluster with one kind of device everywhere."""
    if not cluster.is_mixed:
        return cluster
    groups = tuple(replace(group, device=device) for group in cluster.node_groups)
    return replace(cluster, node_groups=groups)


def _assemble(
    graph: ModelGraph, per_rank: list[ItemCosts], *, num_stages: int, mesh: MeshShape
) -> StageCosts:
    """Return stage costs where each stage takes its times from the rank that holds it."""
    first = per_rank[0]
    total = first.forward_s + first.backward_s + first.comm_s("forward") + first.comm_s("backward")
    if len(per_rank) == 1:
        return stage_costs(first, stage_cuts(graph, total, num_stages=num_stages), mesh=mesh)
    speeds = np.array([1.0 / (c.forward_s.sum() + c.backward_s.sum()) for c in per_rank])
    picks = mesh.ranks_of_stages(np.arange(num_stages, dtype=np.int64))
    speeds = (speeds / speeds.max())[picks]
    cuts = stage_cuts(graph, total, num_stages=num_stages, stage_speed=speeds)
    variants = [stage_costs(costs, cuts, mesh=mesh) for costs in per_rank]

    def choose(values: list[Floats]) -> Floats:
        return np.array([values[rank][stage] for stage, rank in enumerate(picks)])

    base = variants[0]
    return replace(
        base,
        forward_s=choose([v.forward_s for v in variants]),
        forward_compute_s=choose([v.forward_compute_s for v in variants]),
        backward_s={m: choose([v.backward_s[m] for v in variants]) for m in base.backward_s},
        backward_compute_s={
            m: choose([v.backward_compute_s[m] for v in variants]) for m in base.backward_compute_s
        },
        inputs_compute_s={
            m: choose([v.inputs_compute_s[m] for v in variants]) for m in base.inputs_compute_s
        },
        weights_compute_s=choose([v.weights_compute_s for v in variants]),
    )
