"""Collectives on a torus of chips: bidirectional rings along every axis."""

from dataclasses import dataclass
from math import gcd, prod

from hardware_profiles.interconnect import Fabric


@dataclass(frozen=True, kw_only=True, slots=True)
class TorusAxis:
    """One axis of a sub-torus."""

    size: int
    wraps: bool


def sub_torus(num_ranks: int, *, fabric: Fabric) -> tuple[TorusAxis, ...]:
    """Return the axes of the sub-torus that a group occupies.

    Whole axes are filled from the last, which keep their wrap; a part of an axis is a line.

    Parameters
    ----------
    num_ranks : int
        Chips of the group [1].
    fabric : Fabric
        The torus.

    Returns
    -------
    tuple of TorusAxis
        Axes longer than 1; their sizes multiply to ``num_ranks``.

    Examples
    --------
    >>> from hardware_profiles.interconnect import LinkProfile
    >>> link = LinkProfile(name="ici", title="", kind="ici", bandwidth_bytes_per_s=1e9,
    ...     achievable_bandwidth_bytes_per_s=1e9, latency_s=1e-6)
    >>> torus = Fabric(topology="torus", link=link, bandwidth_bytes_per_s=1e9, latency_s=1e-6,
    ...     torus_shape=(4, 4), torus_wraps=(True, True))
    >>> [(axis.size, axis.wraps) for axis in sub_torus(8, fabric=torus)]
    [(4, True), (2, False)]
    """
    axes, left = [], num_ranks
    wraps = fabric.torus_wraps or (True,) * len(fabric.torus_shape)
    for extent, wrap in zip(reversed(fabric.torus_shape), reversed(wraps), strict=True):
        size = gcd(left, extent)
        if size > 1:
            axes.append(TorusAxis(size=size, wraps=wrap and size == extent))
            left //= size
    if left > 1:  # no sub-torus of that size: walk through the chips in a line
        axes = [TorusAxis(size=left * prod(axis.size for axis in axes), wraps=False)]
    return tuple(axes)


_RELAY_SHARE = 0.83
"""Share of the rate that a line of more than two chips keeps, whose inner chips relay: 34 MB over
four v5e chips take 680 us where the links alone need 567 ("How to scale your model", 2025, section
3). Two chips relay nothing: 179 of 180 GB/s on Ironwood (tpu-recipes, all-gather) [1]."""
_PAIR = 2
_SEVERAL_RINGS_SHARE = 0.655
"""Share of their joint rate that rings along several axes keep at once: 607 MB are all-reduced on
a 16x16 slice of v6e at 236 GB/s, four directions of 90 GB/s would carry 360 (tpu-recipes,
microbenchmarks) [1]."""


def _num_directions(axes: tuple[TorusAxis, ...]) -> float:
    """Return the outgoing links that a ring pattern keeps busy on the least connected chip."""
    lines = (1.0 if axis.size <= _PAIR else _RELAY_SHARE for axis in axes if not axis.wraps)
    num_rings = sum(axis.wraps for axis in axes)
    share = _SEVERAL_RINGS_SHARE if num_rings > 1 else 1.0
    return sum(lines) + 2 * num_rings * share


def _num_hops(axes: tuple[TorusAxis, ...]) -> int:
    """Return the steps of one pass: half way round a ring, or to the end of a line."""
    return sum(axis.size // 2 if axis.wraps else axis.size - 1 for axis in axes)


def torus_ring_time(
    message_bytes: float, *, axes: tuple[TorusAxis, ...], fabric: Fabric, passes: int
) -> float:
    r"""Return the time of an all-gather (one pass) or an all-reduce (two) over a sub-torus.

    Parameters
    ----------
    message_bytes : float
        Whole buffer [B].
    axes : tuple of TorusAxis
        The sub-torus.
    fabric : Fabric
        The torus; its bandwidth is one link's, one direction.
    passes : int
        1 or 2.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    :math:`\sum h \alpha + (n - 1) / n \, V / (d W_1)` with :math:`d` busy directions: two on an
    axis that wraps, one on a line ([1]_, which drops the factor :math:`(n - 1) / n` and takes the
    maximum of the two terms).

    References
    ----------
    .. [1] J. Austin et al., "How to scale your model", 2025, section 3 (sharding).
    """
    num_ranks = prod(axis.size for axis in axes)
    rate = fabric.bandwidth_bytes_per_s * _num_directions(axes)
    transfer_s = (num_ranks - 1) / num_ranks * message_bytes / rate
    return fabric.base_latency_s + passes * (_num_hops(axes) * fabric.latency_s + transfer_s)


def torus_all_to_all_time(
    message_bytes: float, *, axes: tuple[TorusAxis, ...], fabric: Fabric
) -> float:
    """Return the time of an all-to-all over a sub-torus.

    Parameters
    ----------
    message_bytes : float
        Whole buffer on one chip [B].
    axes : tuple of TorusAxis
        The sub-torus.
    fabric : Fabric
        The torus.

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    The bisection of the worst axis bounds it: on a ring of ``X`` chips a block travels ``X / 4``
    hops over two directions, on a line the middle link carries ``X / 4`` buffers each way. This
    is a quarter of the all-gather of ``n`` such buffers on one ring ("How to scale your model",
    section 3).
    """
    worst = max(axis.size / (8 if axis.wraps else 4) for axis in axes)
    hops = _num_hops(axes)
    latency_s = fabric.base_latency_s + hops * fabric.latency_s
    return latency_s + worst * message_bytes / fabric.bandwidth_bytes_per_s


def torus_send_time(message_bytes: float, *, fabric: Fabric) -> float:
    """Return the time of a message to a neighbouring chip.

    Parameters
    ----------
    message_bytes : float
        The message [B].
    fabric : Fabric
        The torus.

    Returns
    -------
    float
        Duration [s].
    """
    return fabric.latency_s + message_bytes / fabric.bandwidth_bytes_per_s


def torus_broadcast_time(
    message_bytes: float, *, axes: tuple[TorusAxis, ...], fabric: Fabric
) -> float:
    """Return the time of a pipelined broadcast over a sub-torus.

    Parameters
    ----------
    message_bytes : float
        The buffer [B].
    axes : tuple of TorusAxis
        The sub-torus.
    fabric : Fabric
        The torus.

    Returns
    -------
    float
        Duration [s].
    """
    rate = fabric.bandwidth_bytes_per_s * _num_directions(axes)
    return fabric.base_latency_s + _num_hops(axes) * fabric.latency_s + message_bytes / rate
