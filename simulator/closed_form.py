"""Pipeline step times and in-flight counts as formulas over arrays, to score many candidates."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.errors import ScheduleError
from simulator.schedules import SCHEDULES
from simulator.zero_bubble import splits_backward

FloatArray = NDArray[np.float64]


def pipeline_time_s(
    schedule: str,
    *,
    forward_s: ArrayLike,
    backward_s: ArrayLike,
    num_stages: ArrayLike,
    num_microbatches: ArrayLike,
    virtual_stages: ArrayLike = 1,
    send_s: ArrayLike = 0.0,
    total_s: ArrayLike | None = None,
) -> FloatArray:
    r"""Return the time of one pipelined step, broadcast over arrays.

    The slowest rank works through all microbatches without a break; the other ranks add the time
    in which the pipeline fills and drains, and the sends that nothing hides.

    Parameters
    ----------
    schedule : str
        ``gpipe``, ``1f1b`` or ``interleaved``.
    forward_s, backward_s : array_like
        Time of one microbatch on the slowest rank, all its virtual stages together [s].
    num_stages : array_like
        Pipeline ranks :math:`p` [1].
    num_microbatches : array_like
        Microbatches :math:`m` [1].
    virtual_stages : array_like
        Stages per rank :math:`v` [1].
    send_s : array_like
        Time of one send between neighbours [s].
    total_s : array_like, optional
        Forward plus backward of one microbatch summed over all ranks [s]; left out, all ranks are
        as slow as the slowest.

    Returns
    -------
    ndarray
        Duration of the step [s].

    Raises
    ------
    ScheduleError
        If the schedule is unknown or splits its backward pass.

    Notes
    -----
    With :math:`t = t_F + t_B` on the slowest rank and :math:`T` the sum over ranks,

    .. math:: m \, t + (T - t) / v + s \, c

    for sends of length :math:`s`, which is :math:`(m + p - 1) \, t` for equal ranks without
    interleaving [1]_. The count of exposed sends :math:`c` is :math:`2 (p v - 1)`, the way there
    and back, for GPipe and interleaved; under 1F1B a rank has no more microbatches in flight than
    stages behind it, every round trip is waited for, and :math:`c` is
    :math:`\max(2 (p - 1), 2 (p - 2) + 2 (p - 1) m / p)`. Held to the engine by the tests: exact for
    equal ranks (with sends: for :math:`m` a multiple of :math:`p`); the error for ranks that differ
    by up to a half stands in ``tests/simulator/test_closed_form.py`` by class.

    References
    ----------
    .. [1] D. Narayanan et al., SC 2021, section 2.2. arXiv:2104.04473.

    Examples
    --------
    >>> pipeline_time_s("1f1b", forward_s=1, backward_s=2, num_stages=4, num_microbatches=8)
    array(33.)
    >>> pipeline_time_s("interleaved", forward_s=1, backward_s=2, num_stages=4,
    ...                 num_microbatches=[8, 16], virtual_stages=3)
    array([27., 51.])
    >>> pipeline_time_s("gpipe", forward_s=1, backward_s=2, num_stages=4, num_microbatches=8,
    ...                 send_s=0.5, total_s=9)
    array(33.)
    """
    _check_whole(schedule, instead="zero_bubble_time_s")
    ranks = np.asarray(num_stages, dtype=np.float64)
    microbatches = np.asarray(num_microbatches, dtype=np.float64)
    virtual = np.asarray(virtual_stages, dtype=np.float64)
    slowest_s = np.asarray(forward_s, dtype=np.float64) + np.asarray(backward_s, dtype=np.float64)
    all_s = ranks * slowest_s if total_s is None else np.asarray(total_s, dtype=np.float64)
    num_sends = 2 * (ranks * virtual - 1)
    if schedule == "1f1b":
        round_trips = 2 * (ranks - 2) + 2 * (ranks - 1) * microbatches / ranks
        num_sends = np.maximum(num_sends, round_trips)
    fill_s = np.maximum(all_s - slowest_s, 0.0) / virtual
    time_s = microbatches * slowest_s + fill_s + num_sends * np.asarray(send_s, dtype=np.float64)
    return np.asarray(time_s, dtype=np.float64)


def in_flight_microbatches(
    schedule: str,
    stage: ArrayLike,
    *,
    num_stages: ArrayLike,
    num_microbatches: ArrayLike,
    virtual_stages: ArrayLike = 1,
) -> FloatArray:
    r"""Return how many microbatches a rank holds activations of at the peak.

    Parameters
    ----------
    schedule : str
        ``gpipe``, ``1f1b`` or ``interleaved``.
    stage : array_like
        Pipeline rank :math:`s`, from 0 [1].
    num_stages : array_like
        Pipeline ranks :math:`p` [1].
    num_microbatches : array_like
        Microbatches :math:`m` [1].
    virtual_stages : array_like
        Stages per rank :math:`v` [1].

    Returns
    -------
    ndarray
        Peak count, each microbatch on each *virtual* stage counting one; divide by
        ``virtual_stages`` for whole ranks [1].

    Raises
    ------
    ScheduleError
        If the schedule is unknown or splits its backward pass.

    Notes
    -----
    GPipe :math:`m`; 1F1B :math:`\min(m, p - s)`; interleaved
    :math:`\min(m v, 2 (p - s - 1) + (v - 1) p + 1)`, all :math:`m v` when :math:`m = p` (Narayanan
    et al., SC 2021, section 2.2; Megatron-LM ``schedules.py``).

    Examples
    --------
    >>> in_flight_microbatches("1f1b", [0, 1, 2, 3], num_stages=4, num_microbatches=8)
    array([4., 3., 2., 1.])
    >>> in_flight_microbatches("interleaved", 0, num_stages=4, num_microbatches=8, virtual_stages=2)
    array(11.)
    """
    _check_whole(schedule, instead="held_moments")
    rank = np.asarray(stage, dtype=np.float64)
    ranks = np.asarray(num_stages, dtype=np.float64)
    microbatches = np.asarray(num_microbatches, dtype=np.float64)
    virtual = np.asarray(virtual_stages, dtype=np.float64)
    plain = np.minimum(microbatches, ranks - rank)
    if schedule == "gpipe":
        count = microbatches + 0 * plain
    elif schedule == "1f1b":
        count = plain
    else:
        warmup = 2 * (ranks - rank - 1) + (virtual - 1) * ranks
        warmup = np.where(microbatches == ranks, microbatches * virtual, warmup)
        count = np.where(virtual == 1, plain, np.minimum(microbatches * virtual, warmup + 1))
    return np.asarray(count, dtype=np.float64)


def in_flight_per_chunk(
    schedule: str, *, num_stages: int, num_microbatches: int, virtual_stages: int = 1
) -> FloatArray:
    """Return how many microbatches each virtual stage of each rank holds at the rank's peak.

    Warm-up goes through the virtual stages in turn, ``num_stages`` microbatches each, and round
    again: what exceeds one round falls on the first virtual stages (Narayanan et al., SC 2021,
    section 2.2; Megatron-LM ``schedules.py``). So the last virtual stage, which has the loss, holds
    one microbatch, and the first of all nearly two rounds.

    Parameters
    ----------
    schedule : str
        ``gpipe``, ``1f1b`` or ``interleaved``.
    num_stages : int
        Pipeline ranks [1].
    num_microbatches : int
        Microbatches [1].
    virtual_stages : int
        Stages per rank [1].

    Returns
    -------
    ndarray
        Counts over (virtual stage of the rank, rank); a column adds up to
        :func:`in_flight_microbatches` [1].

    Examples
    --------
    >>> in_flight_per_chunk("1f1b", num_stages=3, num_microbatches=8)
    array([[3., 2., 1.]])
    >>> in_flight_per_chunk("interleaved", num_stages=4, num_microbatches=8, virtual_stages=2)
    array([[7., 5., 4., 4.],
           [4., 4., 3., 1.]])
    """
    total = in_flight_microbatches(
        schedule, np.arange(num_stages), num_stages=num_stages,
        num_microbatches=num_microbatches, virtual_stages=virtual_stages,
    )  # fmt: skip
    if virtual_stages == 1:
        return total[np.newaxis, :]
    chunk = np.arange(virtual_stages)[:, np.newaxis]
    rounds, rest = np.divmod(total, num_stages * virtual_stages)
    count = rounds * num_stages + np.clip(rest - chunk * num_stages, 0, num_stages)
    return np.asarray(count, dtype=np.float64)


def _check_whole(schedule: str, *, instead: str) -> None:
    """Raise if there is no such schedule, or it splits its backward pass."""
    if schedule not in SCHEDULES:
        msg = f"schedule: {schedule!r} is unknown; expected one of {', '.join(SCHEDULES)}"
        raise ScheduleError(msg)
    if splits_backward(schedule):
        msg = f"schedule: {schedule!r} splits its backward pass; use {instead}"
        raise ScheduleError(msg)
