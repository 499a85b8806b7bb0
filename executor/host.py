"""Start and watch the ranks of a local job: ``python -m executor.host RUN_DIR``.

``job.json`` names a function ``module:name`` and a number of processes; the module (and torch with
it) is imported once, then each rank is forked and calls ``function(run_dir)``. When a rank dies,
the others are killed at once and the first cause is written to ``failure.json``.
"""

import faulthandler
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from executor.death import die_with_parent
from hardware_profiles.errors import ParaplanError

JOB_FILE = "job.json"
FAILURE_FILE = "failure.json"
LAUNCHER_PID = "PARAPLAN_LAUNCHER_PID"
_GRACE_S = 1.0
"""Time for other ranks to end after the first one failed, so that the first cause is known [s]."""
_POLL_S = 0.02
_ANSWER_S = 0.2
"""Time for a rank to write where it is [s]."""
_TIMED_OUT = "Timed out waiting"
"""In what gloo says when a peer is silent for longer than the timeout."""


def main(run_dir: Path) -> int:
    """Fork the ranks of ``job.json``, wait for them, return 0 if all ended well."""
    die_with_parent(int(os.environ[LAUNCHER_PID]))
    job = json.loads((run_dir / JOB_FILE).read_text(encoding="utf-8"))
    module, _, name = job["entry"].partition(":")
    entry: Callable[[Path], object] = getattr(importlib.import_module(module), name)
    world = int(job["num_processes"])
    host_pid = os.getpid()
    ranks: dict[int, int] = {}
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            die_with_parent(host_pid)
            _set_environment(rank, world)
            _tell_place_when_asked(run_dir, rank)
            _run_and_exit(entry, run_dir, rank)
        ranks[pid] = rank
    return _watch(ranks, run_dir)


def _set_environment(rank: int, world: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _tell_place_when_asked(run_dir: Path, rank: int) -> None:
    """Have a rank write where it is on SIGUSR1, even from within a call that does not return."""
    descriptor = os.open(_place_file(run_dir, rank), os.O_WRONLY | os.O_CREAT)
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=False)


def _place_file(run_dir: Path, rank: int) -> Path:
    return run_dir / f"place-{rank}.txt"


def _run_and_exit(entry: Callable[[Path], object], run_dir: Path, rank: int) -> None:
    """Run one rank and leave without returning to the host's code."""
    status = 1
    try:
        entry(run_dir)
        status = 0
    except BaseException as error:  # the process ends here, whatever it was
        _write_failure(run_dir / f"failure-{rank}.json", error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _write_failure(path: Path, error: BaseException) -> None:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    words = str(cause).strip().splitlines() or [""]
    name = "" if isinstance(cause, ParaplanError) else f"{type(cause).__name__}: "
    record = {
        "time_s": time.monotonic(), "message": f"{name}{words[0]}",
        "is_refusal": isinstance(cause, ParaplanError),
    }  # fmt: skip
    traceback.print_exception(error)
    path.write_text(json.dumps(record), encoding="utf-8")


def _watch(ranks: dict[int, int], run_dir: Path) -> int:
    """Wait for all ranks; on the first failure give the others a moment, then kill them."""
    signals: dict[int, int] = {}
    failed: dict[int, int] = {}
    silent: dict[int, str] = {}
    deadline = float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            if time.monotonic() > deadline:
                silent = _places(ranks, run_dir)
                _kill(ranks)
                break
            time.sleep(_POLL_S)
            continue
        rank = ranks.pop(pid)
        if status == 0:
            continue
        failed[rank] = os.waitstatus_to_exitcode(status)
        if os.WIFSIGNALED(status):
            signals[rank] = os.WTERMSIG(status)
        deadline = min(deadline, time.monotonic() + _GRACE_S)
    if not failed:
        return 0
    message, is_refusal = _first_cause(run_dir, failed, signals, silent)
    record = {"message": message, "is_refusal": is_refusal}
    (run_dir / FAILURE_FILE).write_text(json.dumps(record), encoding="utf-8")
    return 1


def _places(ranks: dict[int, int], run_dir: Path) -> dict[int, str]:
    """Return where each rank that is still alive stands: its innermost line of Python."""
    for pid in ranks:
        os.kill(pid, signal.SIGUSR1)
    time.sleep(_ANSWER_S)
    found = {}
    for rank in ranks.values():
        lines = _place_file(run_dir, rank).read_text(encoding="utf-8").splitlines()
        found[rank] = next((line.strip() for line in lines if "File" in line), "no Python line")
    return found


def _kill(ranks: dict[int, int]) -> None:
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    for pid in ranks:
        os.waitpid(pid, 0)


def _first_cause(
    run_dir: Path, failed: dict[int, int], signals: dict[int, int], silent: dict[int, str]
) -> tuple[str, bool]:
    """Return the line of the rank that failed first; a killed rank cannot speak and goes first.

    With it, whether the rank refused to go on: another attempt would meet the same.
    """
    if signals:
        rank, number = next(iter(signals.items()))
        name = signal.Signals(number).name
        return f"rank {rank} was killed by signal {number} ({name})", False
    records = []
    for rank in failed:
        path = run_dir / f"failure-{rank}.json"
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            records.append((record["time_s"], rank, record["message"], record["is_refusal"]))
    wordless = sorted(failed.keys() - {rank for _, rank, _, _ in records})
    if wordless:
        return f"rank {wordless[0]} ended with {failed[wordless[0]]} and without a word", False
    _, rank, message, is_refusal = min(records)
    if silent and _TIMED_OUT in message:
        places = "; ".join(f"rank {number} at {place}" for number, place in sorted(silent.items()))
        return f"rank {rank} waited in vain; silent were: {places}", False
    return f"rank {rank}: {message}", is_refusal


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
