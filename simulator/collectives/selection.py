"""Which algorithm a library would pick, and how long that takes."""

from collections.abc import Iterator
from typing import assert_never

from hardware_profiles.cluster import Cluster
from simulator.collectives.direct import (
    all_to_all_time,
    parallel_aggregated_tree_time,
    send_time,
)
from simulator.collectives.gloo import gloo_candidates
from simulator.collectives.switched import (
    IN_SWITCH_RANKS,
    broadcast_time,
    in_switch_all_reduce_time,
    ring_time,
    tree_all_reduce_time,
)
from simulator.collectives.torus import (
    sub_torus,
    torus_all_to_all_time,
    torus_broadcast_time,
    torus_ring_time,
    torus_send_time,
)
from simulator.collectives.wires import Wires, group_wires
from simulator.groups import CollectiveKind, Group

_PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
"""Times the buffer goes round a ring."""


def collective_time(
    kind: CollectiveKind, message_bytes: float, *, group: Group, cluster: Cluster
) -> float:
    r"""Return the time of one collective, by the fastest algorithm the library has.

    Candidates are rings and double binary trees in each wire protocol, switches that add, direct
    exchange, and torus rings; a library's tuner picks the fastest, so does this.

    Parameters
    ----------
    kind : str
        ``all_reduce``, ``reduce_scatter``, ``all_gather``, ``all_to_all``, ``broadcast`` or
        ``send``.
    message_bytes : float
        Size by nccl-tests' convention [B]: the buffer of one rank for ``all_reduce`` and
        ``broadcast``; the *gathered* output for ``all_gather``; the *whole* input of one rank for
        ``reduce_scatter`` and ``all_to_all``; the message for ``send``.
    group : Group
        Shape of the group on the cluster, with the equal groups that use its NICs at once.
    cluster : Cluster
        The machine.

    Returns
    -------
    float
        Duration [s]; 0 for a group of one rank. Never less for more bytes.

    Raises
    ------
    ProfileError
        If the group spans nodes and the cluster has no network between them.
    ValueError
        If ``message_bytes`` is negative.

    Notes
    -----
    On an idealised link (no latency, full efficiency) an all-reduce of :math:`S` bytes over
    :math:`n` ranks takes :math:`2 (n - 1) / n \, S / B`, an all-gather or reduce-scatter half of
    that. Not modelled: contention with other traffic (the engine does that), and the cost of the
    addition itself.

    References
    ----------
    .. [1] NVIDIA, "nccl-tests", doc/PERFORMANCE.md (sizes and bus bandwidth).
    .. [2] NVIDIA, NCCL 2.30, src/graph/tuning.cc (algorithms, protocols, constants).
    """
    return _fastest(kind, message_bytes, group, cluster)[1]


def collective_algorithm(
    kind: CollectiveKind, message_bytes: float, *, group: Group, cluster: Cluster
) -> str:
    """Return the name of the fastest algorithm, such as ``ring/simple``.

    Parameters
    ----------
    kind : str
        As in :func:`collective_time`.
    message_bytes : float
        As in :func:`collective_time` [B].
    group : Group
        Shape of the group.
    cluster : Cluster
        The machine.

    Returns
    -------
    str
        Algorithm and, where there is a choice, protocol; ``none`` for a group of one rank.

    Raises
    ------
    ProfileError
        If the group spans nodes and the cluster has no network between them.
    ValueError
        If ``message_bytes`` is negative.
    """
    return _fastest(kind, message_bytes, group, cluster)[0]


def collective_candidates(
    kind: CollectiveKind, message_bytes: float, *, group: Group, cluster: Cluster
) -> tuple[tuple[str, float], ...]:
    """Return name and time [s] of all algorithms that exist for a group of several ranks.

    Parameters
    ----------
    kind : str
        As in :func:`collective_time`.
    message_bytes : float
        As in :func:`collective_time` [B].
    group : Group
        Shape of the group, of more than one rank.
    cluster : Cluster
        The machine.

    Returns
    -------
    tuple of tuple
        Name and duration [s] of each.

    Raises
    ------
    ProfileError
        If the group spans nodes and the cluster has no network between them.
    """
    wires = group_wires(group, cluster=cluster)
    if cluster.intra.topology == "torus" and group.ranks_per_node > 1:
        return tuple(_torus_candidates(kind, message_bytes, wires, cluster))
    if cluster.device.kind == "cpu":
        return tuple(gloo_candidates(kind, message_bytes, wires=wires))
    return tuple(_switched_candidates(kind, message_bytes, wires))


def _fastest(
    kind: CollectiveKind, message_bytes: float, group: Group, cluster: Cluster
) -> tuple[str, float]:
    """Return name and time [s] of the fastest candidate; the first wins a tie."""
    if message_bytes < 0:
        msg = f"{kind}: message_bytes is {message_bytes}, expected 0 or more"
        raise ValueError(msg)
    if group.num_ranks <= 1:
        return "none", 0.0
    candidates = collective_candidates(kind, message_bytes, group=group, cluster=cluster)
    return min(candidates, key=lambda candidate: candidate[1])


def _switched_candidates(
    kind: CollectiveKind, message_bytes: float, wires: Wires
) -> Iterator[tuple[str, float]]:
    """Yield name and time [s] of the algorithms over switches and NICs."""
    match kind:
        case "all_reduce" | "all_gather" | "reduce_scatter":
            for protocol in wires.protocols:
                yield (
                    f"ring/{protocol}",
                    ring_time(message_bytes, wires=wires, passes=_PASSES[kind], protocol=protocol),
                )
            if kind == "all_reduce":
                yield from _other_all_reduces(message_bytes, wires)
            elif wires.ranks_per_node == 1 and len(wires.protocols) > 1:
                yield "pat", parallel_aggregated_tree_time(message_bytes, wires=wires)
        case "all_to_all":
            yield "direct", all_to_all_time(message_bytes, wires=wires)
            yield "direct/ll", all_to_all_time(message_bytes, wires=wires, small=True)
        case "broadcast":
            for protocol in wires.protocols:
                yield (
                    f"ring/{protocol}",
                    broadcast_time(message_bytes, wires=wires, protocol=protocol),
                )
        case "send":
            yield "direct", send_time(message_bytes, wires=wires)
        case _:
            assert_never(kind)


def _other_all_reduces(message_bytes: float, wires: Wires) -> Iterator[tuple[str, float]]:
    """Yield the all-reduces that are not rings; trees span nodes, as in NCCL."""
    if wires.num_nodes > 1:
        for protocol in wires.protocols:
            yield (
                f"tree/{protocol}",
                tree_all_reduce_time(message_bytes, wires=wires, protocol=protocol),
            )
    if wires.in_switch and wires.ranks_per_node >= IN_SWITCH_RANKS:
        yield "in-switch", in_switch_all_reduce_time(message_bytes, wires=wires)


def _torus_candidates(
    kind: CollectiveKind, message_bytes: float, wires: Wires, cluster: Cluster
) -> Iterator[tuple[str, float]]:
    """Yield the torus algorithm; several slices add a ring over the data-centre network."""
    fabric = cluster.intra
    axes = sub_torus(wires.ranks_per_node, fabric=fabric)
    nodes = wires.num_nodes
    name = "torus" if nodes == 1 else "torus, then network"
    crossing_s = message_bytes / wires.inter.bytes_per_s
    match kind:
        case "all_reduce" | "all_gather" | "reduce_scatter":
            passes = _PASSES[kind]
            inside_s = torus_ring_time(message_bytes, axes=axes, fabric=fabric, passes=passes)
            outside_s = passes * (nodes - 1) * (wires.inter.hop_s + crossing_s / nodes)
        case "all_to_all":
            inside_s = torus_all_to_all_time(message_bytes, axes=axes, fabric=fabric)
            share = wires.ranks_per_node * (nodes - 1) / nodes
            outside_s = (nodes - 1) * wires.inter.hop_s + share * crossing_s
        case "broadcast":
            inside_s = torus_broadcast_time(message_bytes, axes=axes, fabric=fabric)
            outside_s = (nodes - 1) * wires.inter.hop_s + (crossing_s if nodes > 1 else 0.0)
        case "send":
            inside_s = torus_send_time(message_bytes, fabric=fabric)
            outside_s = wires.inter.hop_s + (crossing_s if nodes > 1 else 0.0)
        case _:
            assert_never(kind)
    yield name, inside_s + outside_s
