"""Step times of schedules that split the backward pass, as formulas, to score many candidates."""

import numpy as np
from numpy.typing import ArrayLike

from simulator.errors import ScheduleError
from simulator.zero_bubble import SPLIT_SCHEDULES


def zero_bubble_time_s(
    schedule: str,
    *,
    forward_s: ArrayLike,
    input_s: ArrayLike,
    weight_s: ArrayLike,
    num_microbatches: int,
    virtual_stages: int = 1,
    send_s: float = 0.0,
) -> float:
    r"""Return the time of one step whose weight gradients fill bubbles.

    Parameters
    ----------
    schedule : str
        ``zero_bubble`` or ``zbv``.
    forward_s, input_s, weight_s : array_like
        Per pipeline rank, one microbatch, all virtual stages of the rank: forward, gradients of
        inputs, gradients of weights [s].
    num_microbatches : int
        Microbatches :math:`m` [1].
    virtual_stages : int
        Stages per rank :math:`v` [1].
    send_s : float
        Time of one send between neighbours [s].

    Returns
    -------
    float
        Duration of the step [s].

    Raises
    ------
    ScheduleError
        If the schedule does not split its backward pass.

    Notes
    -----
    The largest of three. (a) The slowest rank works without a break, the others add their bubble:
    :math:`F + \max(I - W, 0)` over :math:`v` for ``zero_bubble`` [1]_, half of
    :math:`\max(F, I, F + I - 2W)` for ``zbv``. (b) With few microbatches the first one goes all the
    way down and up, and the first rank has its backward work left. (c) For ``zero_bubble``, all
    microbatches follow each other along that way. Held to the engine by the tests: exact for equal
    ranks with :math:`W \le I` and at least :math:`p` (``zbv``: :math:`2p`) microbatches.

    References
    ----------
    .. [1] P. Qi et al., "Zero bubble pipeline parallelism", ICLR 2024, table 1. arXiv:2401.10241.

    Examples
    --------
    >>> times = {"forward_s": [1.0] * 4, "input_s": [1.0] * 4, "weight_s": [1.0] * 4}
    >>> zero_bubble_time_s("zero_bubble", num_microbatches=8, **times)
    27.0
    >>> zero_bubble_time_s("zbv", num_microbatches=8, virtual_stages=2, **times)
    25.5
    """
    if schedule not in SPLIT_SCHEDULES:
        expected = " or ".join(SPLIT_SCHEDULES)
        msg = f"schedule: {schedule!r} splits no backward pass; expected {expected}"
        raise ScheduleError(msg)
    forward, inputs, weights = (
        np.atleast_1d(np.asarray(each, dtype=np.float64)) for each in (forward_s, input_s, weight_s)
    )
    ranks, count = len(forward), num_microbatches
    whole = forward + inputs + weights
    slowest = int(np.argmax(whole))
    if schedule == "zbv":
        bubble = np.maximum(np.maximum(forward, inputs), forward + inputs - 2 * weights) / 2
    else:
        bubble = (forward + np.maximum(inputs - weights, 0.0)) / virtual_stages
    steady = count * whole[slowest] + bubble.sum() - bubble[slowest]
    there_and_back = float((forward + inputs).sum())
    if schedule == "zbv":
        few = there_and_back + (count - 1) * inputs[0] + count * weights[0]
        chain = few
    else:
        back = float(inputs.sum() - inputs[0]) / virtual_stages
        few = forward.sum() + back + count * (inputs[0] + weights[0])
        pair = float((forward + inputs)[slowest])
        chain = there_and_back + ((count - 1) * pair + weights[0]) / virtual_stages
    num_sends = 2 * (ranks * virtual_stages - 1 - (schedule == "zbv"))
    return float(max(steady, few, chain)) + max(0, num_sends) * send_s
