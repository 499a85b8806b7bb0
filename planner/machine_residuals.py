"""How far predictions for this machine were off, as ``paraplan compare --matrix`` found and keeps.

Residuals only widen and shift the range told with later predictions; no prediction is fitted to
them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hardware_profiles import paraplan_home
from planner.whole_file import write_whole

RESIDUALS_FILE = "measured-residuals.json"
LEAST_STEPS = 5
"""Fewer measured steps say nothing on a spread [1]."""
_SCHEMA = 1
_TAIL = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineResidual:
    """One step measured on this machine."""

    model: str
    strategy: str
    log_ratio: float
    """Logarithm of measured over predicted step time [1]."""
    date: str
    profile: str
    """Source of the profile that predicted it; a new calibration makes old residuals void."""


def residuals_path() -> Path:
    """Return where this machine's residuals are kept."""
    return paraplan_home() / RESIDUALS_FILE


def save_residuals(residuals: Sequence[MachineResidual], *, path: Path | None = None) -> Path:
    """Write the residuals of a matrix in place of the former ones."""
    from planner.errors import PlanError

    target = path or residuals_path()
    data = {"schema_version": _SCHEMA, "residuals": [asdict(entry) for entry in residuals]}
    write_whole(target, json.dumps(data, indent=1) + "\n", error=PlanError, makes_folders=True)
    return target


def load_residuals(*, profile: str, path: Path | None = None) -> tuple[MachineResidual, ...]:
    """Return the residuals of one profile of this machine; none where nothing is known."""
    try:
        data = json.loads((path or residuals_path()).read_text(encoding="utf-8"))
        entries = data["residuals"] if data["schema_version"] == _SCHEMA else ()
        found = tuple(MachineResidual(**entry) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(entry for entry in found if entry.profile == profile)


def profile_of(provenance: Mapping[str, object]) -> str:
    """Return the source that a calibrated profile names; "" where none was calibrated."""
    origin = provenance.get("intra.bandwidth_bytes_per_s")
    return str(getattr(origin, "source", ""))


def residual_range(residuals: Sequence[MachineResidual]) -> tuple[float, float] | None:
    """Return the logarithms between which 80 % of the residuals lie, None for too few.

    Widened by ``1 + 1/n``, for a step not among them.

    Examples
    --------
    >>> many = [MachineResidual(model="m", strategy="s", log_ratio=i / 100, date="", profile="")
    ...         for i in range(11)]
    >>> [round(edge, 3) for edge in residual_range(many)]
    [0.006, 0.094]
    """
    logs = sorted(entry.log_ratio for entry in residuals if math.isfinite(entry.log_ratio))
    if len(logs) < LEAST_STEPS:
        return None
    low, high = (_quantile(logs, share) for share in (_TAIL, 1.0 - _TAIL))
    middle, half = (low + high) / 2, (high - low) / 2 * (1.0 + 1.0 / len(logs))
    return middle - half, middle + half


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
