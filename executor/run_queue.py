"""How long our threads were ready to run and did not: what other programs cost us.

A rank's step minus this time is the step as it would be on an idle machine, but for the caches that
others used.
"""

from pathlib import Path

_TASKS = Path("/proc/self/task")
_OWN = Path("/proc/self/schedstat")
_NANOSECOND = 1e-9


def waited_s() -> float:
    """Return how long the main thread has stood in the run queue so far; 0 where not told [s].

    Second field of ``schedstat`` (kernel documentation, scheduler/sched-stats).
    """
    return _field(_OWN, 1)


def helpers_cpu_s() -> float:
    """Return the CPU time of this process's other threads, which share its cores [s]."""
    try:
        tasks = [task / "schedstat" for task in _TASKS.iterdir()]
    except OSError:
        return 0.0
    return max(0.0, sum(_field(task, 0) for task in tasks) - _field(_OWN, 0))


def _field(path: Path, place: int) -> float:
    try:
        return int(path.read_text(encoding="ascii").split()[place]) * _NANOSECOND
    except (OSError, IndexError, ValueError):
        return 0.0
