"""A timeline as a pandas frame."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from simulator.timeline import Span, Timeline

if TYPE_CHECKING:
    import pandas as pd


def timeline_frame(timeline: Timeline) -> pd.DataFrame:
    """Return one row per span.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    pandas.DataFrame
        The fields of :class:`simulator.timeline.Span` plus ``duration_s`` [s], in program order;
        ``stage`` and ``microbatch`` are nullable integers.

    """
    import pandas as pd

    names = [field.name for field in fields(Span)]
    columns = {name: [getattr(span, name) for span in timeline.spans] for name in names}
    frame = pd.DataFrame(columns)
    for name in ("stage", "microbatch"):
        frame[name] = frame[name].astype("Int64")
    for name in ("start_s", "end_s", "num_bytes"):
        frame[name] = frame[name].astype("float64")
    frame["duration_s"] = frame["end_s"] - frame["start_s"]
    return frame


def memory_frame(timeline: Timeline) -> pd.DataFrame:
    """Return one row per change of a rank's memory.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    pandas.DataFrame
        ``rank``, ``time_s`` [s] and ``memory_bytes`` [B].

    """
    import pandas as pd

    rows = [
        (rank, float(time_s), float(value))
        for rank, points in enumerate(timeline.memory)
        for time_s, value in points
    ]
    return pd.DataFrame(rows, columns=["rank", "time_s", "memory_bytes"])
