"""Plots of a timeline: a Gantt chart of the streams and the memory of the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10
from typing import TYPE_CHECKING

from simulator.errors import ProgramError
from simulator.exports.phases import PHASE_COLORS, span_phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from simulator.timeline import Span, Timeline

_WIDTH_INCHES = 12.0
_POINTS_PER_INCH = 72.0
_DIGIT_SHARE = 0.62
"""Width of a digit over its height [1]."""
_SMALLEST_FONT, _LARGEST_FONT = 5.0, 9.0
"""Fonts that can be read, and that do not shout [pt]."""
_COMM_SHARE = 0.28
"""Height of the strip for communication below a rank's compute [1]."""
_ROW_SHARE = 0.86
"""Height of the boxes of a rank, the rest is air [1]."""
_AXES_SHARE = 0.8
"""Width of the axes within the figure, the rest is labels and legend [1]."""
_EDGE, _WIDE = 0.4, 3.0
"""White edge of a box, and the mean width from which boxes have one [pt]."""
_MANY_RANKS = 24
"""Above this not every rank gets a tick [1]."""
_LUMINANCE = 0.55
_GIB = 2**30
_TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_MAX_LABELLED_RANKS = 8
"""Curves that a memory legend names one by one [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chart:
    """Where things stand in a Gantt chart."""

    row_of: dict[int, int]
    start_s: float
    whole_s: float
    scale: float
    """Seconds per unit of the axis."""
    row_inches: float
    has_communication: bool

    @property
    def points_per_s(self) -> float:
        """Width of a second on the page [pt]."""
        return _AXES_SHARE * _WIDTH_INCHES * _POINTS_PER_INCH / self.whole_s

    @property
    def compute_share(self) -> float:
        """Height of the compute boxes within a row of height one."""
        return _ROW_SHARE - (_COMM_SHARE if self.has_communication else 0.0)


def gantt_figure(
    timeline: Timeline, *, title: str = "", ranks: Sequence[int] | None = None
) -> Figure:
    """Return a Gantt chart: one row per rank, compute above, communication in a strip below.

    Colours tell forward, backward, optimizer and each kind of communication; microbatch numbers
    stand in the boxes where they fit; white is idle.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.
    title : str
        Heading.
    ranks : sequence of int, optional
        Ranks to show, top to bottom; all when left out.

    Returns
    -------
    matplotlib.figure.Figure
        A figure of its own (no global state): save it with ``savefig``.

    Raises
    ------
    ProgramError
        If the timeline has no span on the chosen ranks.

    """
    from matplotlib.figure import Figure

    shown = list(range(timeline.num_ranks)) if ranks is None else list(ranks)
    row_of = {rank: row for row, rank in enumerate(shown)}
    spans = [span for span in timeline.spans if span.rank in row_of and span.end_s > span.start_s]
    if not spans:
        msg = "gantt: no span on the chosen ranks, expected at least one; choose other ranks"
        raise ProgramError(msg)
    start_s = min(span.start_s for span in spans)
    whole_s = max(span.end_s for span in spans) - start_s
    scale, unit = _time_unit(whole_s)
    row_inches = min(0.55, max(0.16, 9.0 / len(shown)))
    chart = _Chart(
        row_of=row_of,
        start_s=start_s,
        whole_s=whole_s,
        scale=scale,
        row_inches=row_inches,
        has_communication=any(span.stream != "compute" for span in spans),
    )
    figure = Figure(
        figsize=(_WIDTH_INCHES, 1.5 + row_inches * len(shown)), layout="constrained", dpi=120
    )
    axes = figure.add_subplot()
    _draw_boxes(axes, spans, chart)
    _label_boxes(axes, spans, chart)
    _dress(axes, shown, title, unit)
    _add_legend(axes, spans)
    return figure


def memory_figure(
    timeline: Timeline,
    *,
    title: str = "",
    capacity_bytes: float | None = None,
    ranks: Sequence[int] | None = None,
) -> Figure:
    """Return the memory of each rank over time, with the capacity as a line.

    Parameters
    ----------
    timeline : Timeline
        With memory curves.
    title : str
        Heading.
    capacity_bytes : float, optional
        Memory of one device [B].
    ranks : sequence of int, optional
        Ranks to show; all when left out.

    Returns
    -------
    matplotlib.figure.Figure
        A figure of its own.

    Raises
    ------
    ProgramError
        If the timeline holds no memory curves.

    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = list(range(timeline.num_ranks)) if ranks is None else list(ranks)
    if not timeline.memory:
        msg = "memory plot: the timeline holds no memory curves; simulate a program with memory"
        raise ProgramError(msg)
    end_s = max((span.end_s for span in timeline.spans), default=0.0)
    scale, unit = _time_unit(end_s)
    figure = Figure(figsize=(_WIDTH_INCHES, 4.2), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    shades = colormaps["viridis"]
    for row, rank in enumerate(shown):
        points = [*timeline.memory[rank], (end_s, timeline.memory[rank][-1][1])]
        named = len(shown) <= _MAX_LABELLED_RANKS or row in {0, len(shown) - 1}
        axes.step(
            [time_s / scale for time_s, _ in points], [value / _GIB for _, value in points],
            where="post", linewidth=1.2, color=shades(0.92 * row / max(1, len(shown) - 1)),
            label=f"rank {rank}" if named else None,
        )  # fmt: skip
    if capacity_bytes is not None:
        axes.axhline(
            capacity_bytes / _GIB, color="#C0392B", linestyle="--", linewidth=1.2, label="capacity"
        )
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.set_xlabel(f"time [{unit}]")
    axes.set_ylabel("memory [GiB]")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.0), frameon=False, fontsize=9)
    return figure


def _time_unit(duration_s: float) -> tuple[float, str]:
    """Return the unit in which a duration reads well."""
    for scale, unit in _TIME_UNITS:
        if duration_s >= scale:
            return scale, unit
    return _TIME_UNITS[-1]


def _draw_boxes(axes: Axes, spans: Sequence[Span], chart: _Chart) -> None:
    """Draw all boxes of one phase, row and strip as one collection, which stays fast."""
    boxes: dict[tuple[str, int, bool], list[tuple[float, float]]] = {}
    mean_s = sum(span.end_s - span.start_s for span in spans) / len(spans)
    edge = _EDGE if mean_s * chart.points_per_s > _WIDE else 0.0
    for span in spans:
        key = (span_phase(span), chart.row_of[span.rank], span.stream == "compute")
        box = (
            (span.start_s - chart.start_s) / chart.scale,
            (span.end_s - span.start_s) / chart.scale,
        )
        boxes.setdefault(key, []).append(box)
    for (phase, row, is_compute), found in boxes.items():
        top = row - _ROW_SHARE / 2
        place = (
            (top, chart.compute_share) if is_compute else (top + chart.compute_share, _COMM_SHARE)
        )
        axes.broken_barh(
            found, place, facecolors=PHASE_COLORS[phase], edgecolors="white", linewidth=edge
        )


def _label_boxes(axes: Axes, spans: Sequence[Span], chart: _Chart) -> None:
    """Write microbatch numbers into the compute boxes that have room for them."""
    tallest = 0.8 * chart.row_inches * chart.compute_share * _POINTS_PER_INCH
    for span in spans:
        if span.stream != "compute" or span.microbatch is None:
            continue
        text = str(span.microbatch)
        widest = 0.9 * (span.end_s - span.start_s) * chart.points_per_s / (len(text) * _DIGIT_SHARE)
        size = min(_LARGEST_FONT, tallest, widest)
        if size < _SMALLEST_FONT:
            continue
        axes.text(
            ((span.start_s + span.end_s) / 2 - chart.start_s) / chart.scale,
            chart.row_of[span.rank] - _ROW_SHARE / 2 + chart.compute_share / 2,
            text, ha="center", va="center", fontsize=size, color=_ink(span_phase(span)),
            clip_on=True,
        )  # fmt: skip


def _ink(phase: str) -> str:
    """Return black or white, whichever reads on the phase's colour."""
    color = PHASE_COLORS[phase]
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#1A1A1A" if 0.299 * red + 0.587 * green + 0.114 * blue > _LUMINANCE else "white"


def _dress(axes: Axes, shown: Sequence[int], title: str, unit: str) -> None:
    """Set rows, labels and heading."""
    step = 1 if len(shown) <= _MANY_RANKS else 10 ** floor(log10(len(shown) / 2))
    ticks = list(range(0, len(shown), max(1, step)))
    axes.set_yticks(ticks, [f"rank {shown[row]}" for row in ticks])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.margins(x=0)
    axes.set_xlabel(f"time [{unit}]")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _add_legend(axes: Axes, spans: Sequence[Span]) -> None:
    """Name the phases that occur, outside the chart."""
    from matplotlib.patches import Patch

    present = {span_phase(span) for span in spans}
    handles = [
        Patch(facecolor=color, label=phase if phase in {"forward", "backward"} else _legend(phase))
        for phase, color in PHASE_COLORS.items()
        if phase in present
    ]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.005, 1.0), frameon=False, fontsize=9
    )


def _legend(phase: str) -> str:
    """Return how a legend names a phase."""
    communication = {"tensor", "data", "pipeline", "context", "expert"}
    return f"{phase} communication" if phase in communication else phase.replace("_", " ")
