"""Writing a file so that readers see all of it or none."""

import os
from pathlib import Path

from hardware_profiles.errors import ParaplanError
from planner.errors import PlanError


def write_whole(
    path: str | Path,
    text: str,
    *,
    error: type[ParaplanError] = PlanError,
    makes_folders: bool = False,
) -> None:
    """Write a text file to a hidden neighbour, then rename it; nothing is left where that fails.

    Raises
    ------
    ParaplanError
        Of the kind ``error``, if the place cannot be written; the message names it and the reason.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if makes_folders:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as failure:
        reason = failure.strerror or type(failure).__name__
        raise error(f"{path}: cannot be written ({reason}); choose another place") from None
