"""Play probed ranks in forks of this process: many dry runs one after the other, torch loaded once.

For sweeps and tests. A program that has threads of its own plays them in fresh processes
(:func:`executor.dry_run.play_in_processes`).
"""

import json
import os
import sys
import traceback
from pathlib import Path

from executor.dry_run_rank import PROBES_FILE, Issued, load_issued, run_probe
from executor.errors import RunError
from executor.launch import Progress
from hardware_profiles.errors import ParaplanError

_REASON_FILE = "refused.txt"


def play_in_forks(probes: tuple[int, ...], run_dir: Path, progress: Progress) -> list[Issued]:
    """Play each rank in a fork, one after the other.

    Parameters
    ----------
    probes : tuple of int
        Ranks of the pretended world.
    run_dir : Path
        Where the settings are.
    progress : callable
        Told ``(what, done, total)``.

    Raises
    ------
    RunError
        With what the rank refused; for any other error with its last line, after its traceback.
    """
    (run_dir / PROBES_FILE).write_text(json.dumps(probes), encoding="utf-8")
    for number, rank in enumerate(probes):
        progress(f"playing rank {rank}", number, len(probes))
        pid = os.fork()
        if pid == 0:
            _child(number, run_dir)
        _, status = os.waitpid(pid, 0)
        if status:
            reason = run_dir / _REASON_FILE
            told = reason.read_text(encoding="utf-8") if reason.exists() else f"status {status}"
            raise RunError(f"rank {rank} of the dry run: {told}")
    return [load_issued(run_dir, number) for number in range(len(probes))]


def _child(number: int, run_dir: Path) -> None:
    """Play one probe and end the process, whatever happens."""
    status = 1
    try:
        os.environ["RANK"] = str(number)
        run_probe(run_dir)
        status = 0
    except BaseException as error:
        if not isinstance(error, ParaplanError):
            traceback.print_exc()
        lines = str(error).splitlines() or [type(error).__name__]
        (run_dir / _REASON_FILE).write_text(lines[0], encoding="utf-8")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
