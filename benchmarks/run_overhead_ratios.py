"""Ratios of paired step times: their median and its confidence interval."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
_RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How long steps take beside a baseline's."""

    median: float
    low: float
    high: float
    """Ends of the interval that holds the median with probability :data:`CONFIDENCE` [1]."""


def ratio_of(times_s: Sequence[float], *, baseline_s: Sequence[float], seed: int = 0) -> Ratio:
    """Return the median of the ratios of steps that ran one after the other.

    Parameters
    ----------
    times_s, baseline_s : sequence of float
        Times of the two steps of each round [s].
    seed : int
        Of the bootstrap.

    Notes
    -----
    Percentile bootstrap of the median over rounds (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13).

    Examples
    --------
    >>> ratio_of([1.1, 2.2, 3.3], baseline_s=[1.0, 2.0, 3.0]).median
    1.1
    """
    ratios = [time / base for time, base in zip(times_s, baseline_s, strict=True)]
    source = random.Random(seed)
    medians = sorted(
        statistics.median(source.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES)
    )
    outside = int((1 - CONFIDENCE) / 2 * _RESAMPLES)
    return Ratio(median=statistics.median(ratios), low=medians[outside], high=medians[-1 - outside])
