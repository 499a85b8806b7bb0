"""The folder that the processes of a run share; it is gone whatever ends the run."""

import fcntl
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PREFIX = "paraplan-run-"
_LOCK = "owner.lock"
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_SETTLED_S = 60.0
"""Age from which a folder without an owner is no folder that is just being made [s]."""


@contextmanager
def run_folder() -> Iterator[Path]:
    """Make a folder and remove it at the end.

    SIGTERM and SIGHUP end this process in good order, so that the folder and the run's processes
    go with it. What a SIGKILL left behind, the next run removes: nobody holds its lock any more.
    """
    _remove_orphans()
    with (
        _ended_in_order(),
        tempfile.TemporaryDirectory(prefix=_PREFIX) as folder,
        (Path(folder) / _LOCK).open("w", encoding="utf-8") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def _remove_orphans() -> None:
    for lock_path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            if time.time() - lock_path.stat().st_mtime < _SETTLED_S:
                continue
            with lock_path.open("r+", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.parent, ignore_errors=True)
        except OSError:
            continue  # at work, another user's, or gone by now


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Turn signals that would end this process at once into an exit that cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = [n for n in _ENDING if signal.getsignal(n) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)
