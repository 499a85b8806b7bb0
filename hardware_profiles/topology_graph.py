"""A cluster as a networkx graph: devices, switches, hosts and NICs joined by links."""

from __future__ import annotations

from itertools import combinations, product
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import networkx as nx

    from hardware_profiles.cluster import Cluster
    from hardware_profiles.interconnect import Fabric

_MAX_RAILS = 32
"""A node with more NICs than this (a slice of many hosts) hangs on one leaf."""
_DEVICES_PER_PCIE_SWITCH = 4
_DOUBLED_LANES = 6
_CUBE_MESH = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2,
    (2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip
"""NVLinks between the GPUs of a DGX-1V, as ``nvidia-smi topo -m`` prints them; six per GPU."""


def cluster_graph(cluster: Cluster, *, max_nodes: int = 100_000) -> nx.Graph[str]:
    """Return the topology of a cluster.

    Vertices are named ``device:RANK``, ``switch:NODE``, ``host:NODE``, ``nic:NODE.INDEX``,
    ``leaf:RAIL`` and ``spine:0`` and carry ``kind`` (``device``, ``switch``, ``host``, ``nic``),
    and for a device ``rank``, ``node`` and ``device``. Edges carry ``bandwidth_bytes_per_s``,
    ``latency_s`` and ``link``. NIC i of every node hangs on leaf i (rail-optimised).

    Parameters
    ----------
    cluster : Cluster
        Cluster of any topology.
    max_nodes : int
        Largest number of vertices; whole machines beyond it are left out, the first never.

    Returns
    -------
    networkx.Graph
        Connected graph; ``graph.graph["num_nodes_drawn"]`` counts the machines it holds.

    Notes
    -----
    The latency of a hop is spread over its two edges. Not modelled: sockets and PCIe switches
    between a device and its NIC, and the tiers above the spine.

    Examples
    --------
    >>> from hardware_profiles.clusters import load_cluster
    >>> graph = cluster_graph(load_cluster("dgx-1v-32g"))
    >>> graph.number_of_nodes(), graph.degree["device:0"]
    (8, 4)
    >>> graph.edges["device:0", "device:3"]["bandwidth_bytes_per_s"] / 1e9
    40.66
    """
    import networkx as nx

    graph: nx.Graph[str] = nx.Graph(name=cluster.name)
    ranks = _add_machines(graph, cluster, max_nodes=max_nodes)
    if len(ranks) > 1:
        _add_network(graph, cluster, ranks)
    graph.graph["num_nodes_drawn"] = len(ranks)
    return graph


def _add_machines(graph: nx.Graph[str], cluster: Cluster, *, max_nodes: int) -> list[list[int]]:
    """Add machine after machine while there is room; return the ranks of each."""
    ranks: list[list[int]] = []
    rank = 0
    for group in cluster.node_groups:
        for _ in range(group.num_nodes):
            members = list(range(rank, rank + group.devices_per_node))
            if ranks and _num_vertices(cluster, num_nodes=len(ranks) + 1) > max_nodes:
                return ranks
            for member in members:
                graph.add_node(
                    f"device:{member}",
                    kind="device",
                    rank=member,
                    node=len(ranks),
                    device=group.device.name,
                )
            _add_fabric(graph, cluster.intra, members, node=len(ranks))
            ranks.append(members)
            rank += group.devices_per_node
    return ranks


def _num_vertices(cluster: Cluster, *, num_nodes: int) -> int:
    """Return the most vertices that a number of machines can take."""
    devices, nics = cluster.devices_per_node, cluster.nics_per_node
    switches = 1 + -(-devices // _DEVICES_PER_PCIE_SWITCH)
    return num_nodes * (devices + nics + switches) + min(nics, _MAX_RAILS) + 1


def _add_fabric(graph: nx.Graph[str], fabric: Fabric, ranks: list[int], *, node: int) -> None:
    """Join the devices of one machine."""
    names = [f"device:{rank}" for rank in ranks]
    match fabric.topology:
        case "switch":
            _add_star(graph, fabric, names, centre=f"switch:{node}", kind="switch")
        case "host":
            _add_star(graph, fabric, names, centre=f"host:{node}", kind="host")
        case "pcie_tree":
            _add_pcie_tree(graph, fabric, names, node=node)
        case _:
            for first, second, share in _direct_pairs(fabric, num_devices=len(names)):
                _join(
                    graph,
                    names[first],
                    names[second],
                    fabric,
                    bandwidth=fabric.bandwidth_bytes_per_s * share,
                )


def _direct_pairs(fabric: Fabric, *, num_devices: int) -> Iterator[tuple[int, int, float]]:
    """Yield the devices joined without a switch and the share of bandwidth of each pair."""
    match fabric.topology:
        case "full_mesh":
            share = 1.0 / max(num_devices - 1, 1)
            yield from ((*pair, share) for pair in combinations(range(num_devices), 2))
        case "cube_mesh":
            yield from _cube_mesh(fabric, num_devices=num_devices)
        case "ring":
            yield from ((index, (index + 1) % num_devices, 1.0) for index in range(num_devices))
        case "torus":
            yield from ((*pair, 1.0) for pair in _torus_edges(fabric))


def _join(
    graph: nx.Graph[str],
    first: str,
    second: str,
    fabric: Fabric,
    *,
    bandwidth: float | None = None,
    latency: float | None = None,
) -> None:
    """Add one edge of a fabric; a vertex is not joined to itself."""
    if first != second:
        graph.add_edge(
            first,
            second,
            bandwidth_bytes_per_s=fabric.bandwidth_bytes_per_s if bandwidth is None else bandwidth,
            latency_s=fabric.latency_s if latency is None else latency,
            link=fabric.link.name,
        )


def _add_star(
    graph: nx.Graph[str], fabric: Fabric, names: list[str], *, centre: str, kind: str
) -> None:
    """Join all devices to one switch or host."""
    graph.add_node(centre, kind=kind)
    for name in names:
        _join(graph, name, centre, fabric, latency=fabric.latency_s / 2)


def _add_pcie_tree(graph: nx.Graph[str], fabric: Fabric, names: list[str], *, node: int) -> None:
    """Join devices to PCIe switches of four, and those to the host."""
    host = f"host:{node}"
    graph.add_node(host, kind="host")
    rate = fabric.link.achievable_bandwidth_bytes_per_s
    for start in range(0, len(names), _DEVICES_PER_PCIE_SWITCH):
        switch = f"switch:{node}.{start // _DEVICES_PER_PCIE_SWITCH}"
        graph.add_node(switch, kind="switch")
        _join(graph, switch, host, fabric, bandwidth=rate, latency=fabric.latency_s / 2)
        for name in names[start : start + _DEVICES_PER_PCIE_SWITCH]:
            _join(graph, name, switch, fabric, bandwidth=rate, latency=fabric.latency_s / 2)


def _cube_mesh(fabric: Fabric, *, num_devices: int) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of a hybrid cube mesh and the share of a device's links each has."""
    digits = fabric.link.name.rpartition("-x")[2]
    doubled = digits.isdigit() and int(digits) >= _DOUBLED_LANES
    lanes = {pair: (count if doubled else 1) for pair, count in _CUBE_MESH.items()}
    per_device = sum(count for pair, count in lanes.items() if 0 in pair)
    for (first, second), count in lanes.items():
        if second < num_devices:
            yield first, second, count / per_device


def _torus_edges(fabric: Fabric) -> Iterator[tuple[int, int]]:
    """Yield the neighbours of a torus, devices counted with the last axis fastest."""
    shape = fabric.torus_shape
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    for place in product(*map(range, shape)):
        here = sum(step * stride for step, stride in zip(place, strides, strict=True))
        for axis, extent in enumerate(shape):
            if place[axis] + 1 < extent:
                yield here, here + strides[axis]
            elif fabric.torus_wraps[axis] and extent > 1:
                yield here, here - strides[axis] * (extent - 1)


def _add_network(graph: nx.Graph[str], cluster: Cluster, ranks: list[list[int]]) -> None:
    """Join the machines: NICs to the leaf of their rail, leaves to a spine."""
    inter = cluster.inter
    if inter is None:
        raise RuntimeError(f"{cluster.name} has several nodes and no network")
    nics = cluster.nics_per_node
    num_rails = nics if nics <= _MAX_RAILS else 1
    for node, members in enumerate(ranks):
        for index in range(nics):
            nic, leaf = f"nic:{node}.{index}", f"leaf:{index % num_rails}"
            graph.add_node(nic, kind="nic", node=node)
            graph.add_node(leaf, kind="switch")
            _join(graph, nic, leaf, inter, latency=inter.latency_s / 2)
        for nic_index, member in _attachments(len(members), nics):
            _join(graph, f"device:{members[member]}", f"nic:{node}.{nic_index}", inter, latency=0.0)
    if num_rails > 1:
        graph.add_node("spine:0", kind="switch")
        uplink = inter.bandwidth_bytes_per_s * len(ranks) / cluster.oversubscription
        for rail in range(num_rails):
            _join(
                graph,
                f"leaf:{rail}",
                "spine:0",
                inter,
                bandwidth=uplink,
                latency=inter.latency_s / 2,
            )


def _attachments(num_devices: int, num_nics: int) -> set[tuple[int, int]]:
    """Return which NIC serves which device, spread evenly; each of both occurs.

    Examples
    --------
    >>> sorted(_attachments(4, 2))
    [(0, 0), (0, 1), (1, 2), (1, 3)]
    >>> sorted(_attachments(1, 2))
    [(0, 0), (1, 0)]
    """
    if num_nics <= num_devices:
        return {(device * num_nics // num_devices, device) for device in range(num_devices)}
    return {(nic, nic * num_devices // num_nics) for nic in range(num_nics)}
