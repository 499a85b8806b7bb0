"""Collectives over switches and NICs: rings, trees and switches that add, as NCCL does them.

Every way of moving bytes has a fixed cost, a cost per hop, a share of the bandwidth and a weight
of the pipelining term, all relative to the fabric it runs on: the form of NCCL's own model
(``src/graph/tuning.cc``) with the numbers of a link profile, fitted to measured collectives.
"""

from math import log2, sqrt

from hardware_profiles.collective_costs import Protocol
from simulator.collectives.wires import Wires

IN_SWITCH_RANKS = 5
"""Fewest ranks of a node for which NCCL lets the switch add: H200 and B200 take rings up to 4 of 8
GPUs whatever the size (NCCL 2.27 all-reduces of 8 GiB over 4 to 8 GPUs) [1]."""
_TWO_NODES = 2


def pipelined(latency_s: float, transfer_s: float, *, ramp: float) -> float:
    r"""Return the time of a pipelined transfer.

    Parameters
    ----------
    latency_s : float
        Time of the empty collective [s].
    transfer_s : float
        Time of the bytes at the full rate [s].
    ramp : float
        Weight of the pipelining term [1].

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    A message cut into :math:`c` chunks over hops of total latency :math:`A` takes
    :math:`(A / c + \ldots)(c + \ldots)`; at the best :math:`c` this is
    :math:`A + T + 2 \sqrt{A T}` [1]_, with another weight where the library's chunks are not the
    best. NCCL's own model has the same dip as a table (``treeCorrectionFactor``). Without latency
    the term is zero.

    References
    ----------
    .. [1] P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth broadcast,
       reduction and scan", Parallel Computing 35, 2009, section 2.

    Examples
    --------
    >>> pipelined(0.0, 2.0, ramp=0.7)
    2.0
    >>> pipelined(1.0, 4.0, ramp=0.7)
    6.4
    """
    return latency_s + transfer_s + ramp * sqrt(latency_s * transfer_s)


def ring_time(message_bytes: float, *, wires: Wires, passes: int, protocol: Protocol) -> float:
    r"""Return the time of a ring that goes round ``passes`` times.

    Two passes are an all-reduce, one is an all-gather or a reduce-scatter.

    Parameters
    ----------
    message_bytes : float
        Whole buffer, nccl-tests' size [B].
    wires : Wires
        The group.
    passes : int
        Rounds [1].
    protocol : str
        Wire protocol.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    :math:`p (n - 1) \alpha + p (n - 1) / n \, S / B` (Patarasuk and Yuan 2009), where over several
    nodes :math:`p (N - 1)` of the hops cross the network and :math:`B` is the lesser of the rate
    inside the node and the NICs' (rings are spread over all NICs). Few ranks in one node reach
    less: their pairs have fewer channels.
    """
    near, far = wires.intra.costs.ring[protocol], wires.inter.costs.ring[protocol]
    crossings = passes * (wires.num_nodes - 1)
    hops = passes * (wires.num_ranks - 1) - crossings
    latency_s = wires.latency_s(near, far, hops=hops, crossings=crossings)
    share = near.share
    if wires.num_nodes == 1:
        costs = wires.intra.costs
        few = costs.few_one_pass if passes == 1 else costs.few_two_passes
        share *= 1 - few / wires.num_ranks**2
    rate = min(share * wires.intra.bytes_per_s, far.share * wires.inter.bytes_per_s)
    transfer_s = passes * (wires.num_ranks - 1) / wires.num_ranks * message_bytes / rate
    return pipelined(latency_s, transfer_s, ramp=wires.outer.costs.ring[protocol].ramp)


def tree_all_reduce_time(message_bytes: float, *, wires: Wires, protocol: Protocol) -> float:
    """Return the time of a double binary tree over nodes with a chain inside each node.

    Parameters
    ----------
    message_bytes : float
        Buffer on one rank [B].
    wires : Wires
        The group, on several nodes.
    protocol : str
        Wire protocol.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    Up and down: ``2 ((g - 1) intra + log2(N) inter)`` of latency and twice the buffer over every
    link (Sanders, Speck, Träff 2009; NCCL ``tuning.cc``); over two nodes ``tree_crossings`` times.
    """
    near, far = wires.intra.costs.ring[protocol], wires.inter.costs.tree[protocol]
    latency_s = wires.latency_s(
        near, far, hops=2 * (wires.ranks_per_node - 1), crossings=2 * log2(wires.num_nodes)
    )
    crossings = wires.inter.costs.tree_crossings if wires.num_nodes == _TWO_NODES else 2.0
    slowest_s = max(2 / (near.share * wires.intra.bytes_per_s), crossings / wires.inter.bytes_per_s)
    return pipelined(latency_s, message_bytes * slowest_s / far.share, ramp=far.ramp)


def in_switch_all_reduce_time(message_bytes: float, *, wires: Wires) -> float:
    """Return the time of an all-reduce added by the switch (NVLink SHARP), over any nodes.

    Parameters
    ----------
    message_bytes : float
        Buffer on one rank [B].
    wires : Wires
        The group.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    Inside a node each rank sends and receives the buffer once. Between nodes the shards go up and
    down a tree of the NICs, twice the buffer over a node's NICs (NVLS-Tree), or once where the
    network adds too (SHARP) or there are but two nodes.
    """
    near, far = wires.intra.costs.in_switch, wires.inter.costs.in_switch
    levels = 2 * log2(wires.num_nodes)
    if wires.in_network:
        levels = min(levels, 1.0)
    latency_s = wires.latency_s(near, far, hops=1, crossings=levels)
    once = wires.in_network or wires.num_nodes == _TWO_NODES
    slowest_s = max(
        1 / (near.share * wires.intra.bytes_per_s),
        (1 if once else 2) / (far.share * wires.inter.bytes_per_s),
    )
    return pipelined(latency_s, message_bytes * slowest_s, ramp=wires.outer.costs.in_switch.ramp)


def broadcast_time(message_bytes: float, *, wires: Wires, protocol: Protocol) -> float:
    """Return the time of a pipelined ring broadcast.

    Parameters
    ----------
    message_bytes : float
        Buffer [B].
    wires : Wires
        The group.
    protocol : str
        Wire protocol.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    ``(n - 1)`` hops fill the pipeline, then the buffer passes every link once.
    """
    near, far = wires.intra.costs.ring[protocol], wires.inter.costs.ring[protocol]
    crossings = wires.num_nodes - 1
    latency_s = wires.latency_s(
        near, far, hops=wires.num_ranks - 1 - crossings, crossings=crossings
    )
    rate = min(near.share * wires.intra.bytes_per_s, far.share * wires.inter.bytes_per_s)
    ramp = wires.outer.costs.ring[protocol].ramp
    return pipelined(latency_s, message_bytes / rate, ramp=ramp)
