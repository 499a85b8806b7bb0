"""What ``paraplan run`` is told beside the options of a job, and whether that can be done."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from planner.errors import StrategyError

NUM_STEPS = 3
"""Steps of a run that is checked against one process, where none are asked for [1]."""
_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """One execution of a plan."""

    plan_file: Path
    scale_down: int = 1
    """Divisor of width and depth [1]."""
    steps: int = NUM_STEPS
    processes: int | None = None
    timeout_s: float = _TIMEOUT_S
    """How long a rank may be silent [s]."""
    check: bool | None = None
    """Whether to compare with one process; None is the verb's own habit."""
    precision: str | None = None
    """``fp32``, ``tf32``, ``bf16`` or ``plan``; None is the verb's own habit."""
    out: Path | None = None
    as_json: bool = False


_ANY_RUN = ("plan_file", "timeout_s", "as_json")


def check_run_options(options: RunOptions) -> None:
    """Refuse counts below 1 and a timeout that is none.

    Raises
    ------
    StrategyError
        With the first such option.
    """
    if not 0 < options.timeout_s < float("inf"):
        raise StrategyError(
            f"--timeout is {options.timeout_s:g}; expected a number of seconds above 0"
        )
    counts = (
        ("--scale-down", options.scale_down),
        ("--steps", options.steps),
        ("--processes", options.processes),
    )
    for flag, value in counts:
        if value is not None and value < 1:
            raise StrategyError(f"{flag} is {value}; expected at least 1")


def check_dry_run_options(options: RunOptions, *, is_job: bool) -> None:
    """Refuse options that a dry run would ignore.

    Raises
    ------
    StrategyError
        If any is given.
    """
    plain = RunOptions(plan_file=options.plan_file)
    ignored = (field.name for field in fields(RunOptions) if field.name not in _ANY_RUN)
    if is_job or any(getattr(options, name) != getattr(plain, name) for name in ignored):
        raise StrategyError(
            "--dry-run counts at the plan's own size and precision and writes nothing; leave out "
            "--scale-down, --steps, --processes, --check, --precision, --out and the options of a "
            "job"
        )


def job_wanted(given: dict[str, Any]) -> bool:
    """Return whether any option of a job was given.

    Examples
    --------
    >>> job_wanted({"dataset": None, "resume": False}), job_wanted({"seed": 0, "resume": False})
    (False, True)
    """
    return any(value is not None and value is not False for value in given.values())
