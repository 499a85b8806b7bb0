"""How much of this machine other programs use while we measure."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE_FIELDS = (3, 4)
"""Idle and iowait of the ``cpu`` line, proc(5)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadMark:
    """Clocks at one moment."""

    wall_s: float
    busy_s: float | None
    """CPU time of the whole machine that was not idle; None where the system does not tell [s]."""
    own_s: float
    """CPU time of this process and its finished children [s]."""


def mark_load() -> LoadMark:
    """Read the clocks."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return LoadMark(wall_s=time.monotonic(), busy_s=_busy_s(), own_s=own)


def foreign_cores(before: LoadMark, after: LoadMark, *, own_s: float | None = None) -> float:
    """Return the mean number of cores that others used between two marks [1].

    Parameters
    ----------
    before, after : LoadMark
        Marks of one process.
    own_s : float, optional
        CPU time of all processes of ours [s]; that of the marking process where left out.

    Examples
    --------
    >>> first = LoadMark(wall_s=0.0, busy_s=10.0, own_s=1.0)
    >>> foreign_cores(first, LoadMark(wall_s=2.0, busy_s=13.0, own_s=2.0))
    1.0
    """
    wall = after.wall_s - before.wall_s
    if before.busy_s is None or after.busy_s is None or wall <= 0:
        return 0.0
    ours = after.own_s - before.own_s if own_s is None else own_s
    return max(0.0, (after.busy_s - before.busy_s - ours) / wall)


def _busy_s() -> float | None:
    try:
        fields = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    return (sum(ticks) - sum(ticks[i] for i in _IDLE_FIELDS)) / os.sysconf("SC_CLK_TCK")
