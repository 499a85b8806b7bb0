"""Validation cases: published numbers with citation, tolerance and its reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal[
    "gpu-transformer", "gpu-moe", "gpu-cnn", "gpu-bert", "tpu", "cpu", "fpga"
]  # fmt: skip
"""The summary table that a group counts in."""
Role = Literal["judge", "calibrate"]
MemoryKind = Literal["allocated", "reserved", "device"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseGroup:
    """Cases of one source: a file of ``planner/validation/cases``."""

    name: str
    family: Family
    source: str
    tolerance: float
    """Largest accepted relative error of a step time [1]."""
    memory_tolerance: float | None
    """Largest accepted relative error of a peak memory; None where it is only reported [1]."""
    why: str
    cases: tuple["ValidationCase", ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationCase:
    """One published run and the options that reproduce its set-up."""

    id: str
    group: str
    role: Role
    """``judge``, or ``calibrate`` for a row that profiles may be fitted on."""
    is_complete: bool
    """Whether the source states every input."""
    options: Mapping[str, Any]
    """Options of ``paraplan simulate``."""
    step_time_s: float | None
    """Published, or by arithmetic from what is published [s]."""
    derived: str
    """How the step time follows from the published figure."""
    memory_bytes: float | None
    """Published peak on the fullest device [B]."""
    memory_kind: MemoryKind | None
    """``allocated``: tensors; ``reserved``: with the allocator's slack; ``device``: all in use."""
    fits: bool | None
    """Whether the run was within its memory; a published step says so, too."""
    sweep: str | None
    """Cases of one group and sweep differ in strategy and are ranked against each other."""
    free: tuple[str, ...]
    """Keys of the strategy that the source does not state and the planner chooses."""
    outlier: str
    """Why the case is known to leave its tolerance; empty where it must keep it."""
    note: str

    @property
    def name(self) -> str:
        """Group and id."""
        return f"{self.group}:{self.id}"
