"""Learning rate over the steps of a job: warm-up, then constant, linear or cosine."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from executor.errors import RunError

ScheduleKind = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRate:
    """A learning rate as a function of the step."""

    peak: float
    """After the warm-up [1]."""
    kind: ScheduleKind = "constant"
    warmup_steps: int = 0
    """Steps in which the rate rises from 0 to its peak [1]."""
    final_fraction: float = 0.0
    """Where ``linear`` and ``cosine`` end, as a share of the peak [1]."""


def check_learning_rate(rate: LearningRate, *, steps: int) -> None:
    """Refuse a learning rate that cannot be meant.

    Raises
    ------
    RunError
        With the flag, what was found and what is expected.
    """
    if not (math.isfinite(rate.peak) and rate.peak > 0):
        raise RunError(f"--learning-rate is {rate.peak}; expected a number above 0")
    if rate.kind not in SCHEDULES:
        raise RunError(f"--lr-schedule is {rate.kind!r}; expected {', '.join(SCHEDULES)}")
    if not 0 <= rate.warmup_steps <= steps:
        raise RunError(
            f"--warmup-steps is {rate.warmup_steps}; expected 0 to the job's {steps} steps"
        )
    if not 0 <= rate.final_fraction <= 1:
        raise RunError(f"--final-lr-fraction is {rate.final_fraction}; expected 0 to 1")


def learning_rate_at(step: int, *, rate: LearningRate, steps: int) -> float:
    r"""Return the learning rate of a step.

    Parameters
    ----------
    step : int
        The step, from 0 [1].
    rate : LearningRate
        Peak, kind and warm-up.
    steps : int
        Steps of the whole job; a resumed one that is made longer bends to the new end [1].

    Returns
    -------
    float
        The rate [1].

    Notes
    -----
    Step :math:`i` of :math:`w` warm-up steps has :math:`(i + 1) / w` of the peak. After it, with
    :math:`x` the share of the remaining steps that is done and :math:`f` the final fraction,
    ``linear`` has :math:`1 - (1 - f) x` and ``cosine``
    :math:`f + (1 - f) (1 + \cos \pi x) / 2` [1]_.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "SGDR: Stochastic gradient descent with warm restarts",
       ICLR 2017, equation 5, arXiv:1608.03983.

    Examples
    --------
    >>> rate = LearningRate(peak=1.0, kind="cosine", warmup_steps=2, final_fraction=0.1)
    >>> [round(learning_rate_at(step, rate=rate, steps=6), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.868, 0.55, 0.232]
    """
    if step < rate.warmup_steps:
        return rate.peak * (step + 1) / rate.warmup_steps
    if rate.kind == "constant":
        return rate.peak
    done = min(1.0, (step - rate.warmup_steps) / max(1, steps - rate.warmup_steps))
    share = 1.0 - done if rate.kind == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
    return rate.peak * (rate.final_fraction + (1.0 - rate.final_fraction) * share)
