"""Start the processes of a local job and make sure that none outlives it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import executor
from executor.errors import RankLostError, RunFailedError
from executor.host import FAILURE_FILE, JOB_FILE, LAUNCHER_PID

Progress = Callable[[str, int, int], None]
"""Told ``(what, done, total)``."""
_LOG_FILE = "host.log"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""Tensors below 32 MiB, glibc's own largest threshold, come from a heap that stays, larger ones get
pages of their own, both in huge pages. As glibc has it, a step pays for the pages of its tensors
anew, a fifth of the time of a small GPT-2 [B]."""


def launch(
    entry: str, run_dir: Path, *, num_processes: int, threads_per_process: int, progress: Progress
) -> None:
    """Run ``entry`` in new processes and wait; whatever happens, nothing is left running.

    Parameters
    ----------
    entry : str
        ``module:function``; called with ``run_dir`` in each process, with torchrun's environment
        variables set.
    run_dir : Path
        Folder that the processes share.
    num_processes : int
        Processes to start [1].
    threads_per_process : int
        Threads of torch in each [1].
    progress : callable
        Told ``(what, done, total)`` of each such JSON list that a process prints.

    Raises
    ------
    RunFailedError
        If a process failed: which one and why, in one line; a :class:`RankLostError` where it
        did not refuse but broke.
    """
    job = {"entry": entry, "num_processes": num_processes}
    (run_dir / JOB_FILE).write_text(json.dumps(job), encoding="utf-8")
    environment = {**_MEMORY, **os.environ, LAUNCHER_PID: str(os.getpid())}
    environment.update(dict.fromkeys(_THREAD_VARIABLES, str(threads_per_process)))
    root = str(Path(executor.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (root, os.environ.get("PYTHONPATH", "")))
    )
    with (run_dir / _LOG_FILE).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "executor.host", str(run_dir)],
            stdout=subprocess.PIPE, stderr=log, env=environment, text=True,
            start_new_session=True,
        )  # fmt: skip
    try:
        for line in process.stdout or ():
            _relay(line, progress)
        status = process.wait()
    finally:
        _end(process)
    if status != 0:
        raise _failure(run_dir, status)


def _relay(line: str, progress: Progress) -> None:
    try:
        what, done, total = json.loads(line)
        step = str(what), int(done), int(total)
    except (ValueError, TypeError):
        return  # not ours: a library or the user's model prints
    progress(*step)


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill the host's session, which holds all ranks, and reap the host."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _failure(run_dir: Path, status: int) -> RunFailedError:
    path = run_dir / FAILURE_FILE
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        kind = RunFailedError if record["is_refusal"] else RankLostError
        return kind(f"run failed: {record['message']}")
    if status < 0:  # killed from outside: what the log ends with is a warning, not the cause
        name = signal.Signals(-status).name
        return RankLostError(
            f"run failed: the process that starts the ranks was killed by signal {-status} ({name})"
        )
    lines = (run_dir / _LOG_FILE).read_text(encoding="utf-8").strip().splitlines()
    last = lines[-1] if lines else "no message"
    return RankLostError(
        f"run failed: the process that starts the ranks ended with {status}: {last}"
    )
