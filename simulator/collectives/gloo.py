"""Collectives of gloo among processes on CPUs, over TCP or shared memory.

Gloo has one algorithm per collective and no protocols: rings for all-reduce and all-gather, a
binomial tree for broadcast, direct messages for the rest. Torch has no reduce-scatter of gloo's: it
all-reduces the whole tensor and keeps a part.
"""

from collections.abc import Iterator
from math import ceil, log2

from simulator.collectives.direct import all_to_all_time, send_time
from simulator.collectives.switched import pipelined, ring_time
from simulator.collectives.wires import Wires
from simulator.groups import CollectiveKind


def gloo_candidates(
    kind: CollectiveKind, message_bytes: float, *, wires: Wires
) -> Iterator[tuple[str, float]]:
    """Yield name and time [s] of gloo's algorithm.

    Parameters
    ----------
    kind : str
        As in :func:`simulator.collectives.collective_time`.
    message_bytes : float
        As there [B].
    wires : Wires
        The group.

    Notes
    -----
    Two and four processes on one host need 1.4 times the time of an all-reduce for a
    reduce-scatter of 16 MiB, and 1.7 times longer for a broadcast among four than among two
    (torch 2.13, loopback); the copies around the transfers are not modelled.

    References
    ----------
    .. [1] gloo, ``docs/algorithms.md`` and ``gloo/allreduce.cc``, github.com/pytorch/gloo.
    .. [2] PyTorch, ``ProcessGroupGloo.cpp``: ``reduce_scatter_tensor_coalesced`` all-reduces.
    """
    match kind:
        case "all_reduce" | "reduce_scatter":
            yield "ring", ring_time(message_bytes, wires=wires, passes=2, protocol="simple")
        case "all_gather":
            yield "ring", ring_time(message_bytes, wires=wires, passes=1, protocol="simple")
        case "broadcast":
            yield "binomial tree", binomial_tree_time(message_bytes, wires=wires)
        case "all_to_all":
            yield "direct", all_to_all_time(message_bytes, wires=wires)
        case "send":
            yield "direct", send_time(message_bytes, wires=wires)


def binomial_tree_time(message_bytes: float, *, wires: Wires) -> float:
    """Return the time of a broadcast whose holders double every round, whole buffers at a time.

    Parameters
    ----------
    message_bytes : float
        Buffer [B].
    wires : Wires
        The group.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    ``ceil(log2 n)`` rounds of one hop and the whole buffer: those between nodes over a NIC's share
    of the group, those inside over the links there. Not modelled: the messages of one round that
    share a NIC beyond that.
    """
    near, far = wires.intra.costs.ring["simple"], wires.inter.costs.ring["simple"]
    across = ceil(log2(wires.num_nodes))
    inside = ceil(log2(wires.num_ranks)) - across
    latency_s = wires.latency_s(near, far, hops=inside, crossings=across)
    transfer_s = 0.0
    if across:
        transfer_s += across * message_bytes / wires.inter.bytes_per_s
    if inside:
        transfer_s += inside * message_bytes / wires.intra.bytes_per_s
    return pipelined(latency_s, transfer_s, ramp=near.ramp)
