"""The log of a job: one line of JSON per step, each appended whole."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from executor.errors import RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What a step was, over all ranks."""

    step: int
    """From 1."""
    loss: float
    """Mean over the global batch."""
    learning_rate: float
    gradient_norm: float | None
    """Before clipping; None without it."""
    step_time_s: float
    """Slowest rank, reading included, checkpoints not [s]."""
    data_time_s: float
    """Of that, reading the batch, slowest rank [s]."""
    tokens_per_s: float
    samples_per_s: float
    memory_bytes: float
    """Held after the step, largest rank [B]."""
    peak_memory_bytes: float
    """Peak so far, largest rank [B]."""
    attempt: int
    """How often the job had been restarted."""
    time: str
    """End of the step, UTC, ISO 8601."""


def append_record(path: str | Path, record: StepRecord) -> None:
    """Append a line in one write, so that readers and other lines never see half of it.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    _append(Path(path), json.dumps(asdict(record), allow_nan=False) + "\n")


def begin_log(path: str | Path, *, is_new: bool) -> None:
    """Make the log's folder; keep the log of an earlier job under another name.

    A line that a crash cut off is ended, so that the next one stands alone.

    Raises
    ------
    RunError
        If the place cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_new and path.exists() and path.stat().st_size:
            path.rename(_free_name(path))
        elif path.exists() and not _ends_a_line(path):
            _append(path, "\n")
        path.touch()
    except OSError as error:
        raise _refusal(path, error) from None


def read_log(path: str | Path) -> tuple[StepRecord, ...]:
    """Return the records of a log, in order; steps that ran again after a restart appear again.

    Raises
    ------
    RunError
        If the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; expected the log of a job") from None
    found = []
    for line in lines:
        try:
            found.append(StepRecord(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # a crash cut it off
    return tuple(found)


def _append(path: Path, line: str) -> None:
    data = line.encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refusal(path, error) from None
    if written != len(data):
        raise RunError(f"--log {path}: the disk took {written} of {len(data)} bytes; make room")


def _refusal(path: Path, error: OSError) -> RunError:
    reason = error.strerror or type(error).__name__
    return RunError(f"--log {path}: cannot be written ({reason}); make room or choose another file")


def _free_name(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
