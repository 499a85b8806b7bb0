"""How far a prediction may be off, from how far published steps of near settings are.

The range holds the residuals of the nearest family of validation cases (model class, device
generation, software profile, scale) but for a tenth on either side, widened so that it holds as
many steps of a source not seen before. Where no published step of the
kind of device is known it is wide, and says so.
"""

import math
from dataclasses import dataclass

from planner.machine_residuals import load_residuals, profile_of, residual_range
from planner.problem import Problem
from planner.validation.residual_file import shipped_table
from planner.validation.residuals import spread_of
from planner.validation.settings import setting_of

UNKNOWN_OFF = math.log(2.0)
"""Assumed half-width where no published step is known: a factor of two. Steps on CPU processes took
1.5 to 1.8 times the prediction from calibrated kernels (``paraplan compare``) [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """The range in which a step is expected to lie with 80 % probability."""

    low_s: float
    high_s: float
    basis: str
    """Which published steps it comes from, or why it is wide."""


def step_time_interval(problem: Problem, *, num_devices: int, step_time_s: float) -> Interval:
    """Return the range of a predicted step time.

    Parameters
    ----------
    problem : Problem
        What is planned.
    num_devices : int
        Devices that the strategy uses.
    step_time_s : float
        The prediction [s].
    """
    own = _measured_here(problem, step_time_s=step_time_s)
    if own is not None:
        return own
    setting = setting_of(problem, num_devices=num_devices)
    table = shipped_table()
    spread = spread_of(table.residuals, setting)
    if spread is None:
        return Interval(
            low_s=step_time_s * math.exp(-UNKNOWN_OFF),
            high_s=step_time_s * math.exp(UNKNOWN_OFF),
            basis=f"an assumed factor of two: no published step on {setting.device_kind.upper()} "
            "devices is known",
        )
    return Interval(
        low_s=step_time_s * math.exp(spread.low * table.widening),
        high_s=step_time_s * math.exp(spread.high * table.widening),
        basis=spread.basis,
    )


def _measured_here(problem: Problem, *, step_time_s: float) -> Interval | None:
    """Return the range from steps measured on this machine, where there are enough of them."""
    profile = profile_of(problem.cluster.provenance)
    if problem.cluster.device.kind != "cpu" or not profile.startswith("paraplan calibrate"):
        return None
    residuals = load_residuals(profile=profile)
    edges = residual_range(residuals)
    if edges is None:
        return None
    return Interval(
        low_s=step_time_s * math.exp(min(0.0, edges[0])),
        high_s=step_time_s * math.exp(max(0.0, edges[1])),
        basis=f"{len(residuals)} steps measured on this machine ({residuals[0].date})",
    )
