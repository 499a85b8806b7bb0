"""Made-up outcomes: a published step, and a prediction off by a known factor."""

from typing import Any

from planner.validation.cases import CaseGroup, ValidationCase
from planner.validation.outcome import Outcome, Predicted
from planner.validation.settings import Setting

GIB = 2.0**30


def setting(**changes: Any) -> Setting:
    fields: dict[str, Any] = {
        "model_class": "transformer", "device_kind": "gpu", "generation": "Ampere",
        "software": "megatron-2021", "num_devices": 8,
    }  # fmt: skip
    return Setting(**(fields | changes))


def group_of(name: str = "paper", **changes: Any) -> CaseGroup:
    fields: dict[str, Any] = {
        "name": name, "family": "gpu-transformer", "source": f"the {name}", "tolerance": 0.1,
        "memory_tolerance": None, "why": "a test", "cases": (),
    }  # fmt: skip
    return CaseGroup(**(fields | changes))


def outcome(
    id_: str = "one",
    *,
    group: CaseGroup | None = None,
    published: float | None = 1.0,
    predicted: float | None = 1.0,
    used: float = 0.5,
    at: Setting | None = None,
    **changes: Any,
) -> Outcome:
    """Return a case; ``predicted`` None is one that cannot be predicted."""
    group = group or group_of()
    fields: dict[str, Any] = {
        "id": id_, "group": group.name, "role": "judge", "is_complete": True, "options": {},
        "step_time_s": published, "derived": "", "memory_bytes": None, "memory_kind": None,
        "fits": None, "sweep": None, "free": (), "outlier": "", "note": "",
    }  # fmt: skip
    made = None
    if predicted is not None:
        made = Predicted(
            strategy="dp=8,microbatch=1",
            setting=at or setting(),
            step_time_s=predicted,
            memory_bytes=used * 80 * GIB,
            peak_bytes=used * 80 * GIB,
            capacity_bytes=80 * GIB,
            fits=used <= 1,
        )
    return Outcome(
        case=ValidationCase(**(fields | changes)),
        group=group,
        predicted=made,
        refusal="" if made else "it cannot be",
    )
