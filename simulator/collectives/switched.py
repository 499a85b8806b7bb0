"""Collectives over switches and NICs: rings, trees and switches that add, as NCCL does them.

A fabric states hop and base latencies of tiny messages, hence of the low-latency protocol:
a ring hop inside a node, a tree hop between nodes. The other protocols and algorithms scale them by
the ratios of NCCL 2.30 (``src/graph/tuning.cc``: ``baseLat``, ``hwLat``, ``llMaxBws``,
``nvlsEfficiency``). Two ratios are measured instead. A hop of the Simple protocol inside a node is
3.2 low-latency hops, since profiles hold measured slopes (1.05 us on A100 against NCCL's 0.6). A
doubling of nodes adds 2 x 21 us to a 1 MiB all-reduce of 32 to 4096 H100 (NVIDIA DGX H100 SuperPOD
tables), which NCCL's tree hops (8.5 us for LL128, 14 us for Simple) would not.
"""

from dataclasses import dataclass
from math import log2, sqrt

from simulator.collectives.wires import Wires


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """One wire protocol, relative to the latencies of a fabric and to its bandwidth."""

    name: str
    base: float
    ring_intra: float
    ring_inter: float
    tree_intra: float
    tree_inter: float
    share_one_node: float
    """Share of the bandwidth it reaches inside one node [1]."""
    share: float
    """Share of the bandwidth it reaches over several nodes [1]."""


PLAIN = Protocol(
    name="plain", base=1.0, ring_intra=1.0, ring_inter=1.0, tree_intra=1.0, tree_inter=1.0,
    share_one_node=1.0, share=1.0,
)  # fmt: skip
"""Messages without protocols: TPU, FPGA, gloo."""
SIMPLE = Protocol(
    name="simple", base=8.4 / 6.6, ring_intra=3.2, ring_inter=14 / 5, tree_intra=3.8,
    tree_inter=20.9 / 5, share_one_node=1.0, share=1.0,
)  # fmt: skip
LOW_LATENCY_128 = Protocol(
    name="ll128", base=14 / 6.6, ring_intra=1.8, ring_inter=4 / 5, tree_intra=1.2,
    tree_inter=20.9 / 5, share_one_node=0.92, share=0.92,
)  # fmt: skip
LOW_LATENCY = Protocol(
    name="ll", base=1.0, ring_intra=1.0, ring_inter=2.7 / 5, tree_intra=1.0, tree_inter=1.0,
    share_one_node=0.38, share=0.08,
)  # fmt: skip
NCCL_PROTOCOLS = (SIMPLE, LOW_LATENCY_128, LOW_LATENCY)

_PIPELINE = 0.7
"""Weight of the pipelining term, see :func:`pipelined` [1]."""
_TREE_SHARE = 0.92
"""Bandwidth of a tree relative to a ring: NCCL ``tuning.cc``, tree/Simple [1]."""
_IN_SWITCH_SHARE = 0.72
"""Rate of an all-reduce in the switch over the ring rate of the same links: 265 of 370 GB/s on
Hopper, 475 of 682 on Blackwell (nccl-tests tables of the ml-engineering book) [1]."""
IN_SWITCH_RANKS = 8
"""Fewest ranks that gain from it: with 4 of 8 GPUs the rings still win [1]."""
_IN_SWITCH_HOPS = 16.0
"""NVLS latency in ring hops: NCCL's 25 us less the base, on Hopper [1]."""
_IN_NETWORK_HOPS = 18 / 5
_IN_SWITCH_TREE_HOPS = 20.9 / 5
"""Latency per level of a tree of switches that add, in network hops: NCCL ``hwLat`` [1]."""
_ALL_TO_ALL_SHARE, _FEW_EXCHANGING = 0.92, 0.6
"""All-to-all over ring rate in one switch: 210 of 235, 320 of 370, 640 of 682 GB/s on A100, H100,
B200 (NVIDIA GTC 2025, S72583, NCCL session); what pairs and quads lose, as ``c / g**2``
(aiconfigurator tables at 512 MiB, 2026) [1]."""
_MESSAGE_SHARE = 0.1
"""Cost of posting one more message of an all-to-all, in hops [1]."""
_PAT_LEVEL, _PAT_RANK, _PAT_SHARE = 14 / 3.5 / 5, 2.8 / 5, 0.75
"""PAT: cost of a level and of a rank in network hops, and share of the ring rate: NCCL [1]."""
_TWO_NODES = 2
_FEW_RANKS = {2: 0.5, 1: 1.1}
"""Loss of a one-node ring of ``n`` ranks, as ``c / n**2``, by passes: two ranks reach 0.87 of the
rate of eight in an all-reduce and 0.73 in an all-gather, four 0.97 and 0.93, alike on A100, H100
and B200 (nccl-tests at 512 MiB in NVIDIA aiconfigurator, 2026) [1]."""


def pipelined(latency_s: float, transfer_s: float) -> float:
    r"""Return the time of a pipelined transfer.

    Parameters
    ----------
    latency_s : float
        Time of the empty collective [s].
    transfer_s : float
        Time of the bytes at the full rate [s].

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    A message cut into :math:`c` chunks over hops of total latency :math:`A` takes
    :math:`(A / c + \ldots)(c + \ldots)`; at the best :math:`c` this is
    :math:`A + T + 2 \sqrt{A T}` [1]_. Libraries do better than one chunk size at a time, and the
    published all-reduces of 32 to 8192 H100 follow :math:`A + T + 0.7 \sqrt{A T}` within a few
    percent at half of the peak rate. NCCL's own model has the same dip as a table
    (``treeCorrectionFactor``). Without latency the term is zero.

    References
    ----------
    .. [1] P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth broadcast,
       reduction and scan", Parallel Computing 35, 2009, section 2.

    Examples
    --------
    >>> pipelined(0.0, 2.0)
    2.0
    >>> pipelined(1.0, 4.0)
    6.4
    """
    return latency_s + transfer_s + _PIPELINE * sqrt(latency_s * transfer_s)


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
    protocol : Protocol
        Wire protocol.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    :math:`p (n - 1) \alpha + p (n - 1) / n \, S / B` (Patarasuk and Yuan 2009), where over several
    nodes :math:`p (N - 1)` of the hops cross the network and :math:`B` is the lesser of the rate
    inside the node and the NICs' (rings are spread over all NICs).
    """
    crossings = passes * (wires.num_nodes - 1)
    hops = passes * (wires.num_ranks - 1) - crossings
    latency_s = (
        wires.base_s * protocol.base
        + hops * wires.intra_hop_s * protocol.ring_intra
        + crossings * wires.inter_hop_s * protocol.ring_inter
    )
    share = protocol.share if wires.num_nodes > 1 else protocol.share_one_node
    if wires.has_protocols and wires.num_nodes == 1:
        share *= 1 - _FEW_RANKS[passes] / wires.num_ranks**2
    rate = share * min(wires.intra_bytes_per_s, wires.inter_bytes_per_s)
    return pipelined(
        latency_s, passes * (wires.num_ranks - 1) / wires.num_ranks * message_bytes / rate
    )


def tree_all_reduce_time(message_bytes: float, *, wires: Wires, protocol: Protocol) -> float:
    """Return the time of a double binary tree over nodes with a chain inside each node.

    Parameters
    ----------
    message_bytes : float
        Buffer on one rank [B].
    wires : Wires
        The group.
    protocol : Protocol
        Wire protocol.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    Up and down: ``2 ((g - 1) intra + log2(N) inter)`` of latency and twice the buffer over every
    link; with two nodes each is the root of one tree and the NICs carry the buffer once (Sanders,
    Speck, Träff 2009; NCCL ``tuning.cc``).
    """
    levels = log2(wires.num_nodes)
    latency_s = (
        wires.base_s * protocol.base
        + 2 * (wires.ranks_per_node - 1) * wires.intra_hop_s * protocol.tree_intra
        + 2 * levels * wires.inter_hop_s * protocol.tree_inter
    )
    share = protocol.share if wires.num_nodes > 1 else protocol.share_one_node
    crossings = 1 if wires.num_nodes == _TWO_NODES else 2
    slowest_s = max(2 / wires.intra_bytes_per_s, crossings / wires.inter_bytes_per_s)
    return pipelined(latency_s, message_bytes * slowest_s / (share * _TREE_SHARE))


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
    network adds too (SHARP).
    """
    hop_s = wires.inter_hop_s
    levels_s = 2 * log2(wires.num_nodes) * hop_s * _IN_SWITCH_TREE_HOPS
    if wires.in_network:
        levels_s = min(levels_s, hop_s * _IN_NETWORK_HOPS)
    once = wires.in_network or wires.num_nodes == _TWO_NODES
    slowest_s = max(
        1 / (_IN_SWITCH_SHARE * wires.intra_bytes_per_s),
        (1 if once else 2) / wires.inter_bytes_per_s,
    )
    latency_s = wires.base_s + _IN_SWITCH_HOPS * wires.intra_hop_s + levels_s
    return pipelined(latency_s, message_bytes * slowest_s)


def all_to_all_time(message_bytes: float, *, wires: Wires) -> float:
    """Return the time of a direct all-to-all, all messages posted at once.

    Parameters
    ----------
    message_bytes : float
        Whole buffer on one rank, one block per rank [B].
    wires : Wires
        The group.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    Of the buffer, ``(n - g) / n`` leaves the node through the NICs that ``g`` ranks share and
    ``(g - 1) / n`` stays inside; the slower of the two counts.
    """
    outside = wires.num_ranks - wires.ranks_per_node
    protocol = SIMPLE if wires.has_protocols else PLAIN
    hop_s = max(wires.intra_hop_s * protocol.ring_intra, wires.inter_hop_s * protocol.ring_inter)
    latency_s = wires.base_s + hop_s * (1 + _MESSAGE_SHARE * (wires.num_ranks - 2))
    share = 1.0
    if wires.has_protocols:
        share = _ALL_TO_ALL_SHARE - _FEW_EXCHANGING / wires.ranks_per_node**2
    block_bytes = message_bytes / wires.num_ranks
    transfer_s = max(
        (wires.ranks_per_node - 1) * block_bytes / (share * wires.intra_bytes_per_s),
        outside * wires.ranks_per_node * block_bytes / wires.inter_bytes_per_s,
    )
    return pipelined(latency_s, transfer_s)


def broadcast_time(message_bytes: float, *, wires: Wires, protocol: Protocol) -> float:
    """Return the time of a pipelined ring broadcast.

    Parameters
    ----------
    message_bytes : float
        Buffer [B].
    wires : Wires
        The group.
    protocol : Protocol
        Wire protocol.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    ``(n - 1)`` hops fill the pipeline, then the buffer passes every link once.
    """
    crossings = wires.num_nodes - 1
    latency_s = (
        wires.base_s * protocol.base
        + (wires.num_ranks - 1 - crossings) * wires.intra_hop_s * protocol.ring_intra
        + crossings * wires.inter_hop_s * protocol.ring_inter
    )
    share = protocol.share if wires.num_nodes > 1 else protocol.share_one_node
    rate = share * min(wires.intra_bytes_per_s, wires.inter_bytes_per_s)
    return pipelined(latency_s, message_bytes / rate)


def send_time(message_bytes: float, *, wires: Wires) -> float:
    """Return the time of a message from one rank to the next.

    Parameters
    ----------
    message_bytes : float
        The message [B].
    wires : Wires
        The pair; between nodes if ``num_nodes`` exceeds 1.

    Returns
    -------
    float
        Duration [s].
    """
    if wires.num_nodes > 1:
        hop_s, rate = wires.inter_hop_s, wires.inter_bytes_per_s
    else:
        hop_s, rate = wires.intra_hop_s, wires.intra_bytes_per_s
    return pipelined(wires.base_s + hop_s, message_bytes / rate)


def parallel_aggregated_tree_time(message_bytes: float, *, wires: Wires) -> float:
    """Return the time of NCCL's PAT, all-gather or reduce-scatter with one rank per node.

    Parameters
    ----------
    message_bytes : float
        Whole buffer [B].
    wires : Wires
        The group, one rank per node.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    ``base + log2(N) inter / 3.5 + 2.8 us n`` at three quarters of the ring rate (NCCL 2.30,
    ``tuning.cc``, where a hop is 14 us).
    """
    nodes = wires.num_nodes
    latency_s = wires.base_s + wires.inter_hop_s * (_PAT_LEVEL * log2(nodes) + _PAT_RANK * nodes)
    rate = _PAT_SHARE * wires.inter_bytes_per_s
    return pipelined(latency_s, (nodes - 1) / nodes * message_bytes / rate)
