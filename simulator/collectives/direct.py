"""Messages that go straight to their receivers: sends, all-to-alls, and NCCL's aggregated trees."""

from math import log2

from hardware_profiles.collective_costs import TransferCosts
from simulator.collectives.switched import pipelined
from simulator.collectives.wires import Wires

_PAT_LEVEL, _PAT_RANK, _PAT_SHARE = 14 / 3.5 / 5, 2.8 / 5, 0.75
"""PAT: cost of a level and of a rank in network hops, and share of the ring rate: NCCL [1]."""


def all_to_all_time(message_bytes: float, *, wires: Wires, small: bool = False) -> float:
    """Return the time of a direct all-to-all, all messages posted at once.

    Parameters
    ----------
    message_bytes : float
        Whole buffer on one rank, one block per rank [B].
    wires : Wires
        The group.
    small : bool
        By the protocol of small messages.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    Of the buffer, ``(n - g) / n`` leaves the node through the NICs that ``g`` ranks share and
    ``(g - 1) / n`` stays inside; the slower of the two counts. NCCL and RCCL post the peers in
    rounds, those outside wait for those inside, so the NICs carry as if all ``n - 1`` blocks passed
    them: the bus bandwidth of 8 x 8 GPUs is one NIC's (48 GB/s on 400 Gb/s over four nodes, NVIDIA
    GTC 2025, S72583; 45 to 50 GB/s over two, AMD's acceptance limits). Pairs and quads in a node
    reach less than the whole node does, as ``1 - few / g**2``.
    """
    near, far = _exchange(wires, small=small)
    ranks, inside = wires.num_ranks, wires.ranks_per_node
    latency_s = wires.latency_s(near, far, hops=1, crossings=min(1, wires.num_nodes - 1))
    posted_s = wires.intra.costs.message * wires.intra.hop_s * max(0, inside - 2)
    posted_s += wires.inter.costs.message * wires.inter.hop_s * max(0, wires.num_nodes - 2)
    share = near.share * (1 - wires.intra.costs.few_exchanging / max(2, inside) ** 2)
    in_rounds = len(wires.protocols) > 1
    outside = ranks - (1 if in_rounds else inside)
    block_bytes = message_bytes / ranks
    transfer_s = max(
        (inside - 1) * block_bytes / (share * wires.intra.bytes_per_s),
        outside * inside * block_bytes / (far.share * wires.inter.bytes_per_s),
    )
    ramp = far.ramp if wires.num_nodes > 1 else near.ramp
    return pipelined(latency_s + posted_s, transfer_s, ramp=ramp)


def _exchange(wires: Wires, *, small: bool) -> tuple[TransferCosts, TransferCosts]:
    """Return the costs inside and between nodes."""
    if small:
        return wires.intra.costs.exchange_small, wires.inter.costs.exchange_small
    return wires.intra.costs.exchange, wires.inter.costs.exchange


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
    side = wires.outer
    costs = side.costs.send
    latency_s = (wires.intra.base_s + wires.inter.base_s) * costs.base + side.hop_s * costs.hop
    return pipelined(latency_s, message_bytes / (costs.share * side.bytes_per_s), ramp=costs.ramp)


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
    nodes, side = wires.num_nodes, wires.inter
    costs = side.costs.ring["simple"]
    latency_s = side.base_s + side.hop_s * (_PAT_LEVEL * log2(nodes) + _PAT_RANK * nodes)
    rate = _PAT_SHARE * costs.share * side.bytes_per_s
    return pipelined(latency_s, (nodes - 1) / nodes * message_bytes / rate, ramp=costs.ramp)
