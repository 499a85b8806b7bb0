"""Which pipeline rank holds which stage: round and round, or down and up again (V)."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
V_SHAPED = ("zbv",)
"""Schedules whose stages go down the ranks and up again, so that the first rank holds both ends."""


def is_v_shaped(schedule: str) -> bool:
    """Return whether a schedule places its stages as a V."""
    return schedule in V_SHAPED


def rank_of_stage(stage: int, *, num_ranks: int, v_shaped: bool = False) -> int:
    """Return the pipeline rank that holds a virtual stage.

    Parameters
    ----------
    stage : int
        Virtual stage, from 0 [1].
    num_ranks : int
        Pipeline ranks [1].
    v_shaped : bool
        Every second round goes back over the ranks (Qi et al. 2024, arXiv:2405.15362, figure 2).

    Examples
    --------
    >>> [rank_of_stage(stage, num_ranks=3) for stage in range(6)]
    [0, 1, 2, 0, 1, 2]
    >>> [rank_of_stage(stage, num_ranks=3, v_shaped=True) for stage in range(6)]
    [0, 1, 2, 2, 1, 0]
    """
    chunk, place = divmod(stage, num_ranks)
    return num_ranks - 1 - place if v_shaped and chunk % 2 else place


def stages_of_ranks(*, num_ranks: int, num_stages: int, v_shaped: bool = False) -> Ints:
    """Return the stages by (virtual stage of the rank, rank).

    Examples
    --------
    >>> stages_of_ranks(num_ranks=3, num_stages=6, v_shaped=True)
    array([[0, 1, 2],
           [5, 4, 3]])
    """
    stages = np.arange(num_stages, dtype=np.int64).reshape(-1, num_ranks)
    if v_shaped:
        stages[1::2] = stages[1::2, ::-1].copy()
    return stages
