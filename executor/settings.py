"""What a run is asked for, as it travels from the launcher to its ranks."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from executor.shape import RunShape

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """Everything a rank needs besides the plan file."""

    plan_path: str
    model: str
    """Source text of the model that runs (already scaled down)."""
    scale_down: int
    shape: RunShape
    stage_items: tuple[int, ...]
    """Chain items of each stage of the plan."""
    stage_paths: tuple[str, ...]
    """Module path that starts each stage of the plan; "" where the plan does not say."""
    steps: int
    learning_rate: float
    seed: int
    check: bool
    timeout_s: float
    """Longest silence of a rank before its peers give up [s]."""
    threads_per_process: int
    result_path: str
    local: bool
    """Whether the ranks are processes of this machine started by us."""
    fault: str = ""
    """For tests: a planted error, ``kind@rank``."""


def progress_total(settings: RunSettings) -> int:
    """Return how many events a run tells: its steps, the instrumented one, the comparison."""
    return settings.steps + 1 + int(settings.check)


def settings_to_json(settings: RunSettings) -> str:
    """Return the text that :func:`settings_from_json` reads."""
    return json.dumps(asdict(settings))


def load_settings(path: str | Path) -> RunSettings:
    """Read settings written by :func:`settings_to_json`."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    shape = data.pop("shape")
    shape["axes"] = tuple((axis, size) for axis, size in shape["axes"])
    shape["notes"] = tuple(shape["notes"])
    for key in ("stage_items", "stage_paths"):
        data[key] = tuple(data[key])
    return RunSettings(shape=RunShape(**shape), **data)
