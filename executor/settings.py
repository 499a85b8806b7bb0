"""What a run is asked for, as it travels from the launcher to its ranks."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from executor.errors import RunError
from executor.shape import RunShape

SETTINGS_FILE = "settings.json"
RunPrecision = Literal["fp32", "tf32", "bf16"]


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
    precision: RunPrecision = "fp32"
    fault: str = ""
    """For tests: a planted error, ``kind@rank``."""


def run_precision(planned: str, wanted: str | None) -> RunPrecision:
    """Return the precision of a run: the wanted one; the plan's for ``plan`` or None.

    Raises
    ------
    RunError
        If the executor cannot compute in it.

    Examples
    --------
    >>> run_precision("bf16", "plan"), run_precision("fp8", "fp32")
    ('bf16', 'fp32')
    """
    is_planned = wanted is None or wanted == "plan"
    name = planned if is_planned else wanted
    for known in get_args(RunPrecision):
        if name == known:
            return known  # type: ignore[no-any-return]
    where = f"the plan's precision is {name}" if is_planned else f"--precision is {name}"
    raise RunError(
        f"{where}; expected fp32, tf32 or bf16 (fp16 needs loss scaling, fp8 kernels that torch "
        "lacks on most devices); add --precision bf16 or fp32"
    )


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
