"""Run the cases of a matrix one after another, each in ranks forked from one warm process.

Libraries are imported once; a case that fails takes none of the others with it.
"""

import os
import signal
import traceback
from pathlib import Path

import torch

from executor.death import die_with_parent
from executor.matrix_worker import MEASURED_FILE, run_matrix_rank
from executor.settings import SETTINGS_FILE, load_settings
from planner.models.resolve import resolve_model

CASE_FOLDERS = "case-*"
FAILURE_FILE = "why.txt"


def serve_cases(run_dir: Path) -> None:
    """Run every case folder; print a line of progress before each."""
    folders = sorted(run_dir.glob(CASE_FOLDERS))
    for number, folder in enumerate(folders):
        settings = load_settings(folder / SETTINGS_FILE)
        with torch.device("meta"):
            resolve_model(settings.model).build()  # imports what all ranks need
        print(f'["{settings.model} {number + 1}", {number}, {len(folders)}]', flush=True)  # noqa: T201
        if not _run_case(folder, settings.shape.num_processes):
            (folder / MEASURED_FILE).unlink(missing_ok=True)


def _run_case(folder: Path, num_processes: int) -> bool:
    """Fork the ranks of one case; when one fails the others are killed."""
    own = os.getpid()
    ranks = []
    for rank in range(num_processes):
        pid = os.fork()
        if pid == 0:
            die_with_parent(own)
            _be_rank(folder, rank, num_processes)
        ranks.append(pid)
    alive, succeeded = set(ranks), True
    while alive:
        pid, status = os.wait()
        alive.discard(pid)
        if status != 0 and succeeded:
            succeeded = False
            for other in alive:
                os.kill(other, signal.SIGKILL)
    return succeeded


def _be_rank(folder: Path, rank: int, num_processes: int) -> None:
    """Run one rank and leave without returning."""
    status = 1
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_processes))
    try:
        run_matrix_rank(folder)
        status = 0
    except BaseException as error:  # the process ends here, whatever it was
        traceback.print_exception(error)
        words = str(error).strip().splitlines() or [""]
        (folder / FAILURE_FILE).write_text(f"{type(error).__name__}: {words[0]}", encoding="utf-8")
    finally:
        os._exit(status)
