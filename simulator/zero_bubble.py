"""Schedules that split the backward pass: weight gradients wait and fill what would be bubble."""

from simulator.actions import Action, ActionKind, Schedule
from simulator.errors import ScheduleError

SPLIT_SCHEDULES = ("zero_bubble", "zbv")
"""Schedules that run gradients of inputs (I) and of weights (W) as actions of their own."""
ZBV_STAGES = 2
"""Stages per rank of a V: one on the way down, one on the way up [1]."""


def splits_backward(schedule: str) -> bool:
    """Return whether a schedule runs gradients of inputs and of weights apart."""
    return schedule in SPLIT_SCHEDULES


def microbatches_per_round(*, num_ranks: int, num_microbatches: int) -> int | None:
    """Return how many microbatches go through a virtual stage in turn, or None if none divides.

    Torch's rule (``ScheduleInterleavedZeroBubble``): as many rounds as the ranks fit into the
    microbatches, and equal ones.

    Examples
    --------
    >>> microbatches_per_round(num_ranks=4, num_microbatches=10)
    5
    >>> microbatches_per_round(num_ranks=4, num_microbatches=9) is None
    True
    """
    rounds = max(1, num_microbatches // num_ranks)
    return None if num_microbatches % rounds else num_microbatches // rounds


def zero_bubble(*, num_ranks: int, num_microbatches: int, virtual_stages: int = 1) -> Schedule:
    r"""Return the zero-bubble schedule H1: 1F1B whose weight gradients wait.

    Parameters
    ----------
    num_ranks : int
        Pipeline ranks :math:`p` [1].
    num_microbatches : int
        Microbatches :math:`m`, a multiple of :math:`\max(1, \lfloor m / p \rfloor)` [1].
    virtual_stages : int
        Stages per rank :math:`v`; stage ``i`` runs on rank ``i % num_ranks`` [1].

    Returns
    -------
    tuple of tuple of Action
        Per rank, its actions in order.

    Raises
    ------
    ScheduleError
        If the microbatches do not divide into equal rounds.

    Notes
    -----
    Rank :math:`r` runs the gradients of weights :math:`r` microbatches behind those of inputs, so
    that every rank holds what 1F1B's first rank holds [1]_. The order is that of torch's
    ``ScheduleInterleavedZeroBubble``, which tests compare.

    References
    ----------
    .. [1] P. Qi et al., "Zero bubble pipeline parallelism", ICLR 2024, section 2.1, schedule ZB-H1.
       arXiv:2401.10241.

    Examples
    --------
    >>> for actions in zero_bubble(num_ranks=2, num_microbatches=3):
    ...     print(*actions)
    0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2
    1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2
    """
    per_round = microbatches_per_round(num_ranks=num_ranks, num_microbatches=num_microbatches)
    if per_round is None:
        msg = (
            f"schedule zero_bubble: {num_microbatches} microbatches over {num_ranks} pipeline "
            f"ranks do not divide into {num_microbatches // num_ranks} equal rounds; expected a "
            "multiple of the ranks; change the microbatch size or use 1f1b"
        )
        raise ScheduleError(msg)
    ranks = []
    for rank in range(num_ranks):
        forwards = [
            (chunk * num_ranks + rank, first + offset)
            for first in range(0, num_microbatches, per_round)
            for chunk in range(virtual_stages)
            for offset in range(per_round)
        ]
        backwards = [
            ((virtual_stages - 1 - stage // num_ranks) * num_ranks + rank, microbatch)
            for stage, microbatch in forwards
        ]
        num_warmup = (virtual_stages - 1) * per_round + num_ranks - 1 - rank
        ranks.append(_with_late_weights(forwards, backwards, num_warmup=num_warmup, lag=rank))
    return tuple(ranks)


def _with_late_weights(
    forwards: list[tuple[int, int]],
    backwards: list[tuple[int, int]],
    *,
    num_warmup: int,
    lag: int,
) -> tuple[Action, ...]:
    """Return forwards and input gradients in turn, weight gradients ``lag`` passes behind."""
    actions = [_action("F", *place) for place in forwards[:num_warmup]]
    waiting = iter(forwards[num_warmup:])
    for number, place in enumerate(backwards):
        actions.extend(_action("F", *ahead) for ahead in (next(waiting, None),) if ahead)
        actions.append(_action("I", *place))
        if number >= lag:
            actions.append(_action("W", *backwards[number - lag]))
    actions.extend(_action("W", *place) for place in backwards[max(0, len(backwards) - lag) :])
    return tuple(actions)


def _action(kind: ActionKind, stage: int, microbatch: int) -> Action:
    return Action(stage=stage, kind=kind, microbatch=microbatch)


def zbv(*, num_ranks: int, num_microbatches: int, virtual_stages: int = ZBV_STAGES) -> Schedule:
    r"""Return the schedule ZB-V: two stages per rank, placed down the ranks and up again.

    Parameters
    ----------
    num_ranks : int
        Pipeline ranks :math:`p`; rank :math:`r` holds stages :math:`r` and :math:`2p-1-r` [1].
    num_microbatches : int
        Microbatches of one optimizer step [1].
    virtual_stages : int
        Stages per rank, must be 2.

    Returns
    -------
    tuple of tuple of Action
        Per rank, its actions in order.

    Raises
    ------
    ScheduleError
        If ``virtual_stages`` is not 2.

    Notes
    -----
    Without bubble where forward, input gradients and weight gradients take the same time and there
    are at least :math:`2p` microbatches; every rank holds what 1F1B's first rank holds [1]_. The
    order is that of torch's ``ScheduleZBVZeroBubble``, which tests compare.

    References
    ----------
    .. [1] P. Qi et al., "Zero bubble pipeline parallelism", ICLR 2024, section 6.
       arXiv:2401.10241; "Pipeline parallelism with controllable memory", 2024. arXiv:2405.15362.

    Examples
    --------
    >>> for actions in zbv(num_ranks=2, num_microbatches=2):
    ...     print(*actions)
    0F0 0F1 3F0 3I0 3W0 3F1 3I1 3W1 0I0 0W0 0I1 0W1
    1F0 2F0 1F1 2F1 2I0 2W0 1I0 1W0 2I1 2W1 1I1 1W1
    """
    if virtual_stages != ZBV_STAGES:
        msg = f"schedule zbv: virtual_stages is {virtual_stages}, expected {ZBV_STAGES}; leave out"
        raise ScheduleError(msg)
    return tuple(
        tuple(
            action
            for action in _zbv_rank(rank, num_ranks, max(2 * num_ranks - 1, num_microbatches))
            if action.microbatch < num_microbatches
        )
        for rank in range(num_ranks)
    )


def _zbv_rank(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    """Return one rank's order with at least as many microbatches as fill the V."""
    down, up = rank, 2 * num_ranks - 1 - rank
    done: dict[tuple[int, ActionKind], int] = {}
    actions: list[Action] = []

    def run(stage: int, kinds: tuple[ActionKind, ...], *, times: int = 1) -> None:
        for kind in kinds * times:
            microbatch = done.get((stage, kind), 0)
            actions.append(_action(kind, stage, microbatch))
            done[stage, kind] = microbatch + 1

    run(down, ("F",), times=2 * (num_ranks - rank) - 1)
    for _ in range(rank):
        run(up, ("F",))
        run(down, ("F",))
    run(up, ("F", "I", "W"), times=num_ranks - rank)
    while done.get((up, "F"), 0) < num_microbatches:
        if done[down, "F"] < num_microbatches:
            run(down, ("F",))
        run(down, ("I", "W"))
        run(up, ("F", "I", "W"))
    for _ in range(rank):
        run(down, ("I",))
        run(up, ("I",))
    run(down, ("I", "W"), times=num_ranks - rank)
    for stage in (up, down):
        run(stage, ("W",), times=done[stage, "I"] - done.get((stage, "W"), 0))
    return actions
