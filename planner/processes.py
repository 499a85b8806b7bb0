"""How many processes a search may share its work among."""

import multiprocessing
import os

MAX_WORKERS = 8


def num_workers(wanted: int) -> int:
    """Return how many processes to share work among, 1 where none may be forked from here."""
    forks = "fork" in multiprocessing.get_all_start_methods()
    if not forks or multiprocessing.current_process().daemon:
        return 1
    return max(1, min(os.cpu_count() or 1, MAX_WORKERS, wanted))
