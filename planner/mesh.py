"""The logical grid of ranks and where its groups sit on the machine."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.strategy import Strategy
from simulator.groups import Group, axis_group
from simulator.placement import is_v_shaped, rank_of_stage, stages_of_ranks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AXIS_ORDER = ("pp", "dp", "cp", "tp")
"""Outermost to innermost: tensor groups sit closest, pipeline neighbours farthest, as in
Megatron-LM (arXiv:2104.04473, section 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshShape:
    """Sizes of the mesh axes on nodes of ``devices_per_node``; ``ep`` reuses ``dp * cp`` ranks."""

    pp: int
    dp: int
    cp: int
    tp: int
    ep: int
    devices_per_node: int
    replicas: int = 1
    """Copies of what is sharded over data ranks."""
    v_shaped: bool = False
    """Stages go down the pipeline ranks and up again, else round and round."""

    @property
    def stage_ranks(self) -> int:
        """Ranks of one pipeline stage."""
        return self.dp * self.cp * self.tp

    def rank_of_stage(self, stage: int) -> int:
        """Return the pipeline rank that holds a virtual stage."""
        return rank_of_stage(stage, num_ranks=self.pp, v_shaped=self.v_shaped)

    def ranks_of_stages(self, stages: Ints) -> Ints:
        """Return the pipeline rank of each of some virtual stages."""
        place = stages % self.pp
        if not self.v_shaped:
            return place
        turned: Ints = np.where(stages // self.pp % 2, self.pp - 1 - place, place)
        return turned

    def by_rank(self, values: Floats) -> Floats:
        """Return values of virtual stages by (virtual stage of the rank, rank)."""
        table = values.reshape(-1, self.pp)
        if not self.v_shaped:
            return table
        return table.ravel()[
            stages_of_ranks(num_ranks=self.pp, num_stages=len(values), v_shaped=True)
        ]

    def by_stage(self, table: Floats) -> Floats:
        """Return values by (virtual stage of the rank, rank) in the order of the stages."""
        if not self.v_shaped:
            return table.ravel()
        values = np.empty(table.size)
        stages = stages_of_ranks(num_ranks=self.pp, num_stages=table.size, v_shaped=True)
        values[stages] = table
        return values

    def crossings(self, num_stages: int) -> NDArray[np.bool_]:
        """Return whether what each stage but the last hands on goes to another rank."""
        ranks = self.ranks_of_stages(np.arange(num_stages, dtype=np.int64))
        crossed: NDArray[np.bool_] = ranks[1:] != ranks[:-1]
        return crossed

    def group(self, *axes: str) -> Group:
        """Return the group that spans some axes.

        Examples
        --------
        >>> mesh = MeshShape(pp=2, dp=4, cp=1, tp=8, ep=1, devices_per_node=8)
        >>> mesh.group("tp").num_nodes, mesh.group("dp", "cp").num_nodes
        (1, 4)
        """
        sizes = {"pp": self.pp, "dp": self.dp, "cp": self.cp, "tp": self.tp, "ep": self.ep}
        strides = {"tp": 1, "cp": self.tp, "ep": self.tp, "dp": self.tp * self.cp,
                   "pp": self.stage_ranks}  # fmt: skip
        size = 1
        for axis in axes:
            size *= sizes[axis]
        used = [axis for axis in axes if sizes[axis] > 1]
        stride = min((strides[axis] for axis in used), default=1)
        return axis_group(size=size, stride=stride, devices_per_node=self.devices_per_node)

    def data_shard_group(self) -> Group:
        """Return the ranks that share one copy of the sharded state: neighbouring data ranks.

        Examples
        --------
        >>> mesh = MeshShape(pp=1, dp=16, cp=1, tp=1, ep=1, devices_per_node=8, replicas=2)
        >>> mesh.data_shard_group().num_nodes, mesh.data_replica_group().num_nodes
        (1, 2)
        """
        return axis_group(
            size=self.dp * self.cp // self.replicas,
            stride=self.tp,
            devices_per_node=self.devices_per_node,
        )

    def data_replica_group(self) -> Group:
        """Return the ranks that hold the same shard."""
        shards = self.dp * self.cp // self.replicas
        return axis_group(
            size=self.replicas, stride=self.tp * shards, devices_per_node=self.devices_per_node
        )

    def expert_data_group(self) -> Group:
        """Return the ranks that hold the same experts."""
        size = max(1, self.dp * self.cp // self.ep)
        return axis_group(
            size=size, stride=self.tp * self.ep, devices_per_node=self.devices_per_node
        )

    def neighbour_group(self) -> Group:
        """Return the slowest pair of neighbouring pipeline stages.

        Where the pipeline leaves a node, some stage sends to another node, and all its ranks do so
        at once over that node's NICs.

        Examples
        --------
        >>> mesh = MeshShape(pp=4, dp=1, cp=1, tp=4, ep=1, devices_per_node=8)
        >>> mesh.neighbour_group()
        Group(num_ranks=2, ranks_per_node=1, num_nodes=2, concurrent=4)
        """
        if self.pp * self.stage_ranks <= self.devices_per_node:
            return Group(num_ranks=2, ranks_per_node=2, num_nodes=1)
        return Group(
            num_ranks=2,
            ranks_per_node=1,
            num_nodes=2,
            concurrent=min(self.stage_ranks, self.devices_per_node),
        )


def mesh_of(strategy: Strategy, *, devices_per_node: int) -> MeshShape:
    """Return the mesh of a strategy."""
    return MeshShape(
        pp=strategy.pipeline_parallel_size,
        dp=strategy.data_parallel_size,
        cp=strategy.context_parallel_size,
        tp=strategy.tensor_parallel_size,
        ep=strategy.expert_parallel_size,
        devices_per_node=devices_per_node,
        replicas=strategy.sharding_replicas,
        v_shaped=is_v_shaped(strategy.schedule),
    )


def mesh_axes(strategy: Strategy) -> tuple[tuple[str, int], ...]:
    """Return the axes of a strategy that are larger than 1, outermost first.

    Examples
    --------
    >>> mesh_axes(Strategy(data_parallel_size=2, tensor_parallel_size=4))
    (('dp', 2), ('tp', 4))
    """
    mesh = mesh_of(strategy, devices_per_node=1)
    sizes = {"pp": mesh.pp, "dp": mesh.dp, "cp": mesh.cp, "tp": mesh.tp}
    return tuple((axis, sizes[axis]) for axis in AXIS_ORDER if sizes[axis] > 1)
