"""Pipeline schedules: the order of work of every rank, as data."""

from collections.abc import Callable, Sequence

from simulator.actions import Action, ActionKind, Schedule, from_csv, parse_action, to_csv
from simulator.errors import ScheduleError
from simulator.schedule_check import check_schedule
from simulator.zero_bubble import zbv, zero_bubble

__all__ = [
    "SCHEDULES", "Action", "ActionKind", "Schedule", "check_schedule", "from_csv", "gpipe",
    "in_flight", "interleaved", "one_f_one_b", "parse_action", "schedule_actions", "to_csv", "zbv",
    "zero_bubble",
]  # fmt: skip


def gpipe(*, num_ranks: int, num_microbatches: int, virtual_stages: int = 1) -> Schedule:
    """Return GPipe's schedule: all forwards, then all backwards.

    Parameters
    ----------
    num_ranks : int
        Pipeline ranks, one stage each [1].
    num_microbatches : int
        Microbatches of one optimizer step [1].
    virtual_stages : int
        Stages per rank, must be 1.

    Returns
    -------
    tuple of tuple of Action
        Per rank, its actions in order.

    Raises
    ------
    ScheduleError
        If ``virtual_stages`` is not 1.

    References
    ----------
    .. [1] Y. Huang et al., "GPipe", NeurIPS 2019, figure 2(c). arXiv:1811.06965.

    Examples
    --------
    >>> print(*gpipe(num_ranks=2, num_microbatches=2)[1])
    1F0 1F1 1B0 1B1
    """
    _one_stage_per_rank("gpipe", virtual_stages)
    return tuple(
        tuple(
            Action(stage=rank, kind=kind, microbatch=microbatch)
            for kind in ("F", "B")
            for microbatch in range(num_microbatches)
        )
        for rank in range(num_ranks)
    )


def one_f_one_b(*, num_ranks: int, num_microbatches: int, virtual_stages: int = 1) -> Schedule:
    r"""Return the 1F1B schedule: warm up, then one forward and one backward in turn, then drain.

    Parameters
    ----------
    num_ranks : int
        Pipeline ranks :math:`p`, one stage each [1].
    num_microbatches : int
        Microbatches :math:`m` of one optimizer step [1].
    virtual_stages : int
        Stages per rank, must be 1.

    Returns
    -------
    tuple of tuple of Action
        Per rank, its actions in order.

    Raises
    ------
    ScheduleError
        If ``virtual_stages`` is not 1.

    Notes
    -----
    At most :math:`\min(m, p - s)` microbatches are in flight on stage :math:`s`; with equal stages
    and free communication the step takes :math:`(m + p - 1)(t_F + t_B)` [1]_.

    References
    ----------
    .. [1] D. Narayanan et al., "Efficient large-scale language model training on GPU clusters
       using Megatron-LM", SC 2021, section 2.2. arXiv:2104.04473.

    Examples
    --------
    >>> for actions in one_f_one_b(num_ranks=2, num_microbatches=3):
    ...     print(*actions)
    0F0 0F1 0B0 0F2 0B1 0B2
    1F0 1B0 1F1 1B1 1F2 1B2
    """
    _one_stage_per_rank("1f1b", virtual_stages)
    ranks = []
    for rank in range(num_ranks):
        order = [(rank, microbatch) for microbatch in range(num_microbatches)]
        ranks.append(
            _alternate(order, order, num_warmup=min(num_microbatches, num_ranks - rank - 1))
        )
    return tuple(ranks)


def interleaved(*, num_ranks: int, num_microbatches: int, virtual_stages: int = 1) -> Schedule:
    r"""Return Megatron's interleaved 1F1B: several stages per rank.

    Parameters
    ----------
    num_ranks : int
        Pipeline ranks :math:`p` [1].
    num_microbatches : int
        Microbatches :math:`m`, a multiple of ``num_ranks`` [1].
    virtual_stages : int
        Stages per rank :math:`v`; stage ``i`` runs on rank ``i % num_ranks`` [1].

    Returns
    -------
    tuple of tuple of Action
        Per rank, its actions in order.

    Raises
    ------
    ScheduleError
        If the microbatches are no multiple of the ranks.

    Notes
    -----
    Rank :math:`r` warms up with :math:`2 (p - r - 1) + (v - 1) p` forwards, all of them when
    :math:`m = p` [1]_. The bubble is :math:`(p - 1) / (v m)` of the ideal time [1]_.

    References
    ----------
    .. [1] D. Narayanan et al., SC 2021, section 2.2 and figure 4. arXiv:2104.04473; order as in
       Megatron-LM, ``core/pipeline_parallel/schedules.py``,
       ``forward_backward_pipelining_with_interleaving``.

    Examples
    --------
    >>> print(*interleaved(num_ranks=2, num_microbatches=2, virtual_stages=2)[0])
    0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1
    """
    if num_microbatches % num_ranks:
        msg = (
            f"schedule interleaved: {num_microbatches} microbatches over {num_ranks} pipeline "
            "ranks; expected a multiple of the ranks; change the microbatch size or use 1f1b"
        )
        raise ScheduleError(msg)
    ranks = []
    for rank in range(num_ranks):
        order = [
            (chunk * num_ranks + rank, first + offset)
            for first in range(0, num_microbatches, num_ranks)
            for chunk in range(virtual_stages)
            for offset in range(num_ranks)
        ]
        last = virtual_stages - 1
        backward_order = [
            ((last - stage // num_ranks) * num_ranks + rank, microbatch)
            for stage, microbatch in order
        ]
        num_warmup = 2 * (num_ranks - rank - 1) + last * num_ranks
        if virtual_stages == 1:
            num_warmup = num_ranks - rank - 1
        elif num_microbatches == num_ranks:
            num_warmup = len(order)
        ranks.append(_alternate(order, backward_order, num_warmup=min(num_warmup, len(order))))
    return tuple(ranks)


def _one_stage_per_rank(name: str, virtual_stages: int) -> None:
    """Refuse virtual stages where the schedule has none."""
    if virtual_stages != 1:
        msg = (
            f"schedule {name}: virtual_stages is {virtual_stages}, expected 1; "
            "use schedule=interleaved for several stages per rank"
        )
        raise ScheduleError(msg)


def _alternate(
    forwards: Sequence[tuple[int, int]], backwards: Sequence[tuple[int, int]], *, num_warmup: int
) -> tuple[Action, ...]:
    """Return ``num_warmup`` forwards, then one forward and one backward in turn, then the rest."""
    actions = [Action(stage=s, kind="F", microbatch=m) for s, m in forwards[:num_warmup]]
    pending = iter(backwards)
    for s, m in forwards[num_warmup:]:
        actions.append(Action(stage=s, kind="F", microbatch=m))
        stage, microbatch = next(pending)
        actions.append(Action(stage=stage, kind="B", microbatch=microbatch))
    actions.extend(Action(stage=s, kind="B", microbatch=m) for s, m in pending)
    return tuple(actions)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zero_bubble": zero_bubble,
    "zbv": zbv,
}
"""Every schedule by name; a new one is a new row."""


def schedule_actions(
    name: str, *, num_ranks: int, num_microbatches: int, virtual_stages: int = 1
) -> Schedule:
    """Return the actions of every rank under a named schedule.

    Parameters
    ----------
    name : str
        One of :data:`SCHEDULES`.
    num_ranks : int
        Pipeline ranks, at least 1 [1].
    num_microbatches : int
        Microbatches of one optimizer step, at least 1 [1].
    virtual_stages : int
        Stages per rank, at least 1; on which rank a stage runs says
        :func:`simulator.placement.rank_of_stage` [1].

    Returns
    -------
    tuple of tuple of Action
        Per rank, its actions in order. Waiting is no action: it follows from dependencies.

    Raises
    ------
    ScheduleError
        If the name is unknown or the schedule does not exist for these sizes.

    Examples
    --------
    >>> print(*schedule_actions("1f1b", num_ranks=2, num_microbatches=2)[0])
    0F0 0F1 0B0 0B1
    """
    if name not in SCHEDULES:
        msg = f"schedule: {name!r} is unknown; expected one of {', '.join(SCHEDULES)}"
        raise ScheduleError(msg)
    for what, value in (
        ("pipeline ranks", num_ranks),
        ("microbatches", num_microbatches),
        ("virtual stages", virtual_stages),
    ):
        if value < 1:
            msg = f"schedule {name}: {value} {what}, expected at least 1"
            raise ScheduleError(msg)
    return SCHEDULES[name](
        num_ranks=num_ranks, num_microbatches=num_microbatches, virtual_stages=virtual_stages
    )


def in_flight(schedule: Schedule) -> tuple[int, ...]:
    """Return the most microbatches that each rank holds activations of at once.

    Parameters
    ----------
    schedule : tuple of tuple of Action
        Per rank, its actions in order.

    Returns
    -------
    tuple of int
        Per rank, forwards not yet followed by their backward, or by their weight gradients where
        these run apart; each virtual stage counts one [1].

    Examples
    --------
    >>> in_flight(one_f_one_b(num_ranks=3, num_microbatches=8))
    (3, 2, 1)
    """
    peaks = []
    for actions in schedule:
        held = peak = 0
        for action in actions:
            held += {"F": 1, "I": 0, "B": -1, "W": -1}[action.kind]
            peak = max(peak, held)
        peaks.append(peak)
    return tuple(peaks)
