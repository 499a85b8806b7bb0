"""What a group sees of a cluster: one effective wire inside a node and one between nodes."""

from dataclasses import dataclass
from math import log2

from hardware_profiles.cluster import Cluster
from hardware_profiles.collective_costs import (
    NCCL_COSTS,
    NCCL_NETWORK_COSTS,
    PLAIN_COSTS,
    PROTOCOLS,
    CollectiveCosts,
    Protocol,
    TransferCosts,
)
from hardware_profiles.errors import ProfileError
from hardware_profiles.interconnect import Fabric, LinkKind
from simulator.groups import Group

NCCL_LINKS: frozenset[LinkKind] = frozenset(
    {"nvlink", "nvswitch", "pcie", "infiniband", "ethernet", "xgmi"}
)
"""Links on which a library with NCCL's protocols runs; the others move plain messages."""
_CUBE_MESH_PAIR = 1 / 3
_CUBE_MESH_QUAD = 2 / 3
"""Share of a DGX-1's links that stay in a pair (2 of 6) or a quad (4 of 6): NVIDIA, "DGX-1 with
Tesla V100 system architecture", WP-08437-002, figure 4."""
_PAIR, _QUAD = 2, 4
_ONE_PROTOCOL: tuple[Protocol, ...] = ("simple",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What a group sees of the links inside its nodes, or of those between them."""

    bytes_per_s: float
    """What one rank inside its node, or the group in one node's NICs, reaches, one way [B/s]."""
    hop_s: float
    base_s: float
    """Fixed cost of one collective [s]."""
    costs: CollectiveCosts


NO_SIDE = Side(bytes_per_s=float("inf"), hop_s=0.0, base_s=0.0, costs=NCCL_COSTS)
"""No such links: one rank per node, or one node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wires:
    """A group on a cluster, reduced to the numbers that collectives need."""

    num_ranks: int
    ranks_per_node: int
    num_nodes: int
    intra: Side
    inter: Side
    protocols: tuple[Protocol, ...]
    """Wire protocols that exist on every link of the group."""
    in_switch: bool
    """Whether the switch inside the node adds."""
    in_network: bool
    """Whether the switches between nodes add as well."""

    @property
    def outer(self) -> Side:
        """The links that the slowest bytes pass: between nodes where there are several."""
        return self.intra if self.num_nodes == 1 else self.inter

    def latency_s(
        self, intra: TransferCosts, inter: TransferCosts, *, hops: float, crossings: float
    ) -> float:
        """Return the time of the empty collective of so many hops inside and between [s]."""
        near, far = self.intra, self.inter
        return (
            near.base_s * intra.base
            + far.base_s * inter.base
            + hops * near.hop_s * intra.hop
            + crossings * far.hop_s * inter.hop
        )


_KNOWN: dict[tuple[int, Group], tuple[Cluster, Wires]] = {}
"""Wires worked out before, with the cluster they are of, by its identity: a search asks for the
same few groups thousands of times."""
_MOST_KNOWN = 1024


def group_wires(group: Group, *, cluster: Cluster) -> Wires:
    """Return the wires of a group.

    Parameters
    ----------
    group : Group
        The group as a shape.
    cluster : Cluster
        The cluster it sits on.

    Returns
    -------
    Wires
        Bandwidths [B/s] and latencies [s] of its hops.

    Raises
    ------
    ProfileError
        If the group spans nodes and the cluster has no network.

    Notes
    -----
    A node's NICs are shared by ``concurrent`` groups; a group of few ranks per node reaches only
    the NICs next to them. ``oversubscription`` divides the network bandwidth whole, as if every
    message crossed the spine: placement inside leaves is not modelled. Each doubling of nodes
    beyond two adds the network's ``congestion`` to the transfer time.
    """
    key = (id(cluster), group)
    known = _KNOWN.get(key)
    if known is not None and known[0] is cluster:
        return known[1]
    if len(_KNOWN) >= _MOST_KNOWN:
        _KNOWN.clear()
    wires = _wires(group, cluster)
    _KNOWN[key] = (cluster, wires)
    return wires


def _wires(group: Group, cluster: Cluster) -> Wires:
    """Return the wires of a group, worked out anew."""
    intra, inter = cluster.intra, cluster.inter
    if group.num_nodes > 1 and inter is None:
        msg = (
            f"cluster {cluster.name!r}: a group of {group.num_ranks} ranks spans "
            f"{group.num_nodes} nodes but the cluster has no network between nodes; "
            "use groups within a node or give the cluster an inter-node fabric"
        )
        raise ProfileError(msg)
    several = group.num_nodes > 1 and inter is not None
    alone = group.ranks_per_node == 1
    fabrics = [
        fabric for fabric in (None if alone else intra, inter if several else None) if fabric
    ]
    by_nccl = cluster.device.kind != "cpu" and all(
        fabric.link.kind in NCCL_LINKS for fabric in fabrics
    )
    near = far = NO_SIDE
    if not alone:
        usual = NCCL_COSTS if by_nccl else None
        near = _side(intra, _intra_bandwidth(group, cluster), usual=usual)
    if several and inter is not None:
        usual = NCCL_NETWORK_COSTS if by_nccl else None
        far = _side(inter, _inter_bandwidth(group, cluster, inter), usual=usual)
    return Wires(
        num_ranks=group.num_ranks,
        ranks_per_node=group.ranks_per_node,
        num_nodes=group.num_nodes,
        intra=near,
        inter=far,
        protocols=PROTOCOLS if by_nccl else _ONE_PROTOCOL,
        in_switch=not alone and intra.in_network_reduction,
        in_network=several and inter is not None and inter.in_network_reduction,
    )


def _side(fabric: Fabric, bytes_per_s: float, *, usual: CollectiveCosts | None) -> Side:
    """Return a fabric as one side of a group; ``usual`` are NCCL's constants where it runs."""
    return Side(
        bytes_per_s=bytes_per_s,
        hop_s=fabric.latency_s,
        base_s=fabric.base_latency_s,
        costs=PLAIN_COSTS if usual is None else fabric.link.costs or usual,
    )


def _intra_bandwidth(group: Group, cluster: Cluster) -> float:
    """Return what one rank reaches inside its node [B/s]."""
    intra, ranks = cluster.intra, group.ranks_per_node
    match intra.topology:
        case "full_mesh":  # one link per peer, so few peers means few links
            return intra.bandwidth_bytes_per_s * (ranks - 1) / max(1, cluster.devices_per_node - 1)
        case "cube_mesh" if ranks < cluster.devices_per_node:
            if ranks <= _PAIR:
                return intra.bandwidth_bytes_per_s * _CUBE_MESH_PAIR
            if ranks <= _QUAD:
                return intra.bandwidth_bytes_per_s * _CUBE_MESH_QUAD
            return intra.bandwidth_bytes_per_s
        case "pcie_tree":
            return _tree_bandwidth(ranks * group.concurrent, cluster)
        case _:
            return intra.bandwidth_bytes_per_s


def _tree_bandwidth(ranks: int, cluster: Cluster) -> float:
    """Return what one rank reaches in a tree of PCIe switches [B/s].

    The fabric may state what groups of few neighbours reach. Where it does not, two of them share a
    switch and reach their link's rate; all devices together pass the root and reach the fabric's.
    In between the rate falls by equal factors per doubling: 8 L40S measure 20, 5.2 and 1.8 GB/s on
    2, 4 and 8 (all-reduce of 512 MiB, aiconfigurator tables, 2026).
    """
    fabric, whole = cluster.intra, cluster.devices_per_node
    pair = max(1.0, fabric.link.achievable_bandwidth_bytes_per_s / fabric.bandwidth_bytes_per_s)
    shares = {_PAIR: pair, whole: 1.0, **fabric.group_share}
    ranks = max(_PAIR, ranks)
    above = min((size for size in shares if size >= ranks), default=max(shares))
    below = max((size for size in shares if size <= ranks), default=above)
    if below == above:
        return fabric.bandwidth_bytes_per_s * shares[above]
    part = log2(ranks / below) / log2(above / below)
    share = shares[below] ** (1 - part) * shares[above] ** part
    return float(fabric.bandwidth_bytes_per_s * share)


def _inter_bandwidth(group: Group, cluster: Cluster, inter: Fabric) -> float:
    """Return a group's share of one node's NICs [B/s]."""
    nics_per_rank = max(1.0, cluster.nics_per_node / cluster.devices_per_node)
    nics = min(cluster.nics_per_node / group.concurrent, group.ranks_per_node * nics_per_rank)
    costs = inter.link.costs
    spread = log2(max(1.0, group.num_nodes / _PAIR))
    slower = cluster.oversubscription * (1 + (costs.congestion if costs else 0.0) * spread)
    return inter.bandwidth_bytes_per_s * nics / slower
