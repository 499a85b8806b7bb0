"""What pipeline ranks hold at their fullest: microbatches in flight, and awaiting weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.closed_form import FloatArray, in_flight_per_chunk
from simulator.zero_bubble import microbatches_per_round, splits_backward


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Held:
    """Counts over (virtual stage of the rank, rank), as a backward pass begins [1]."""

    in_flight: FloatArray
    """Microbatches between their forward and the end of their input gradients."""
    awaiting: FloatArray
    """Microbatches between their input gradients and their weight gradients."""


def held_moments(
    schedule: str, *, num_stages: int, num_microbatches: int, virtual_stages: int = 1
) -> tuple[Held, ...]:
    r"""Return what every rank holds at the moments at which it may hold most.

    Parameters
    ----------
    schedule : str
        Any of :data:`simulator.schedules.SCHEDULES`.
    num_stages : int
        Pipeline ranks :math:`p` [1].
    num_microbatches : int
        Microbatches :math:`m` [1].
    virtual_stages : int
        Stages per rank :math:`v` [1].

    Notes
    -----
    ``zero_bubble``: rank :math:`r` warms up with :math:`(v - 1) n + p - r` forwards in rounds of
    :math:`n`, and weight gradients lag :math:`r` behind. ``zbv``: in the steady state
    :math:`\min(m, 2p - 1 - r)` on the way down and :math:`\min(m, r + 1)` on the way up; while it
    drains, :math:`r` of each wait for their weight gradients. Tests count them in the orders.

    Examples
    --------
    >>> held, = held_moments("zero_bubble", num_stages=4, num_microbatches=8)
    >>> held.in_flight.tolist(), held.awaiting.tolist()
    ([[4.0, 3.0, 2.0, 1.0]], [[0.0, 1.0, 2.0, 3.0]])
    """
    if not splits_backward(schedule):
        in_flight = in_flight_per_chunk(
            schedule, num_stages=num_stages, num_microbatches=num_microbatches,
            virtual_stages=virtual_stages,
        )  # fmt: skip
        return (Held(in_flight=in_flight, awaiting=np.zeros_like(in_flight)),)
    rank = np.arange(num_stages, dtype=np.float64)
    if schedule == "zbv":
        return _zbv(rank, num_microbatches)
    return _zero_bubble(rank, num_microbatches, virtual_stages)


def _zero_bubble(rank: FloatArray, num_microbatches: int, virtual_stages: int) -> tuple[Held, ...]:
    ranks = len(rank)
    per_round = float(
        microbatches_per_round(num_ranks=ranks, num_microbatches=num_microbatches)
        or num_microbatches
    )
    most = float(num_microbatches * virtual_stages)
    ahead = np.minimum(most, (virtual_stages - 1) * per_round + ranks - rank)
    steady = np.minimum(rank, most - ahead)
    draining = np.minimum(rank, most - 1.0)
    chunk = np.arange(virtual_stages)[:, np.newaxis]

    def after(late: FloatArray) -> Held:
        forwards = _dealt(np.minimum(most, ahead + late), chunk, per_round, virtual_stages)
        backwards = _dealt(late, virtual_stages - 1 - chunk, per_round, virtual_stages)
        return Held(in_flight=forwards - backwards, awaiting=backwards)

    if np.array_equal(steady, draining):
        return (after(steady),)
    return after(steady), after(draining)


def _zbv(rank: FloatArray, num_microbatches: int) -> tuple[Held, ...]:
    ranks, count = len(rank), float(max(num_microbatches, 2 * len(rank) - 1))
    lacking = count - num_microbatches  # the last ones of a V that is not full are left out
    down = np.minimum(num_microbatches, 2 * ranks - 1 - rank)
    up = np.minimum(num_microbatches, rank + 1)
    late_down = np.clip(ranks - lacking, 0, rank)
    late_up = np.clip(rank - lacking, 0, rank)
    left = np.clip(ranks - lacking - rank, 0, ranks - rank)
    draining = Held(
        in_flight=np.stack((left, np.zeros(ranks))),
        awaiting=np.where(left > 0, np.stack((late_down, late_up)), 0.0),
    )
    steady = Held(in_flight=np.stack((down, up)), awaiting=np.zeros((2, ranks)))
    return steady, draining


def _dealt(
    count: FloatArray, place: NDArray[np.int64], per_round: float, virtual_stages: int
) -> FloatArray:
    """Return how many of ``count`` passes fall on a virtual stage, whose turn is ``place``."""
    rounds, rest = np.divmod(count, per_round * virtual_stages)
    return np.asarray(rounds * per_round + np.clip(rest - place * per_round, 0, per_round))
