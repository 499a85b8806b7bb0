"""What is predicted for a case, beside what was published."""

import math
from dataclasses import dataclass

from planner.validation.cases import CaseGroup, ValidationCase
from planner.validation.settings import Setting

DEFECT = "defect: "
"""How a refusal begins that is our mistake and not one of the case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """The numbers of one case."""

    strategy: str
    """With what the planner chose where the source does not state it."""
    setting: Setting
    step_time_s: float
    """By the engine, as ``paraplan simulate`` tells it [s]."""
    memory_bytes: float
    """Peak on the fullest device, counted as the case's memory kind counts [B]."""
    peak_bytes: float
    """Peak on the fullest device, all in use [B]."""
    capacity_bytes: float
    """Device memory [B]."""
    fits: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A case with its prediction, or with the reason why there is none."""

    case: ValidationCase
    group: CaseGroup
    predicted: Predicted | None
    refusal: str
    """Why the case cannot be predicted, in one line; empty where it is."""

    @property
    def step_error(self) -> float | None:
        """Predicted over published step time, minus 1."""
        if self.predicted is None or self.case.step_time_s is None:
            return None
        return self.predicted.step_time_s / self.case.step_time_s - 1.0

    @property
    def log_residual(self) -> float | None:
        """Natural logarithm of published over predicted step time."""
        error = self.step_error
        return None if error is None else -math.log1p(error)

    @property
    def memory_error(self) -> float | None:
        """Predicted over published peak memory, minus 1."""
        if self.predicted is None or self.case.memory_bytes is None:
            return None
        return self.predicted.memory_bytes / self.case.memory_bytes - 1.0

    @property
    def measured_fits(self) -> bool:
        """Whether the run was within memory; one with a step time or a peak was."""
        if self.case.fits is not None:
            return self.case.fits
        return True

    @property
    def is_headline(self) -> bool:
        """Whether the case judges: complete, and not one that profiles may be fitted on."""
        return self.case.is_complete and self.case.role == "judge"

    @property
    def is_known(self) -> bool:
        """Whether the case is outside what its file tolerates, and its cause is written there.

        A defect of the planner is no cause.
        """
        is_defect = self.refusal.startswith(DEFECT)
        return bool(self.case.outlier and self.deviation) and not is_defect

    @property
    def failure(self) -> str:
        """Why the case fails the validation, empty where it does not.

        Marks are strict: one on a case that keeps its tolerance fails, too.
        """
        if self.is_known:
            return ""
        if self.case.outlier and not self.deviation:
            return "stale outlier mark: the case keeps its tolerance, remove it"
        return self.deviation

    @property
    def deviation(self) -> str:
        """Why the case is outside what its file tolerates, empty where it is not.

        A case without a prediction always is. The step time and the memory of a complete case
        must be within the tolerance of its group; whether it fits is wrong only where the predicted
        peak is off the device memory by more than that tolerance.
        """
        if self.predicted is None:
            return f"no prediction: {self.refusal}"
        if not self.case.is_complete:
            return ""
        tolerance = self.group.tolerance
        if self.step_error is not None and abs(self.step_error) > tolerance:
            return f"step time {self.step_error:+.1%}, tolerated {tolerance:.0%}"
        allowed = self.group.memory_tolerance
        off = self.memory_error
        if allowed is not None and off is not None and abs(off) > allowed:
            return f"memory {off:+.1%}, tolerated {allowed:.0%}"
        return self._wrong_fit(self.predicted, tolerance=tolerance)

    def _wrong_fit(self, predicted: Predicted, *, tolerance: float) -> str:
        used = predicted.peak_bytes / predicted.capacity_bytes
        if self.case.fits is True and used > 1.0 + tolerance:
            return f"fits, predicted {used:.0%} of device memory"
        if self.case.fits is False and used * (1.0 + tolerance) < 1.0:
            return f"out of memory, predicted {used:.0%} of device memory"
        return ""
