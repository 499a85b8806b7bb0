"""Figures of the validation page; import this only to draw."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from planner.validation.outcome import Outcome
from planner.validation.results import Results, family_name
from planner.validation.summaries import SweepSummary

BAND = 0.10
"""Half-width of the band around equality [1]."""
FAMILY_COLORS = {
    "gpu-transformer": "#4C78A8", "gpu-moe": "#E45756", "gpu-cnn": "#54A24B",
    "gpu-bert": "#B279A2", "tpu": "#F58518", "cpu": "#9D755D", "fpga": "#EECA3B",
}  # fmt: skip
GRID_COLOR = "#B8C4D6"
INK, MUTED, RULE = "#222222", "#777777", "#E3E3E3"
_PREDICTED, _PICK = "#E45756", "#222222"
_GIB = 2.0**30
_FONT = 9
_MOST_SWEEPS, _SWEEPS_PER_ROW = 6, 3
_ERROR_LIMIT = 0.5
_PERCENT = 100.0


def step_time_figure(results: Results) -> Figure | None:
    """Draw predicted over published step times, and below them the errors.

    Returns
    -------
    Figure or None
        None where no case of the headline has a step time.
    """
    shown = [o for o in results.outcomes if o.is_headline and o.step_error is not None]
    if not shown:
        return None
    figure = Figure(figsize=(8.0, 8.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1.0])
    for name, members in _by_family(results, shown):
        published = [o.case.step_time_s or 0.0 for o in members]
        predicted = [o.predicted.step_time_s if o.predicted else 0.0 for o in members]
        errors = [_PERCENT * (o.step_error or 0.0) for o in members]
        limit = _PERCENT * _ERROR_LIMIT
        kept = [max(-limit, min(limit, error)) for error in errors]
        style = _style(name)
        upper.scatter(published, predicted, label=f"{name} ({len(members)})", **style)
        lower.scatter(published, kept, clip_on=False, **style)
    _equality(upper, [o.case.step_time_s or 1.0 for o in shown])
    upper.set_ylabel("predicted step time [s]", fontsize=_FONT)
    upper.legend(loc="upper left", frameon=False, fontsize=_FONT)
    _error_panel(lower)
    lower.set_xlabel("published step time [s]", fontsize=_FONT)
    return figure


def _error_panel(axes: Axes) -> None:
    limit, band = _PERCENT * _ERROR_LIMIT, _PERCENT * BAND
    axes.axhspan(-band, band, color=RULE, linewidth=0, zorder=0)
    axes.axhline(0.0, color=MUTED, linewidth=0.8, zorder=1)
    axes.set_ylim(-limit, limit)
    axes.set_yticks([-50, -25, -10, 0, 10, 25, 50])
    axes.set_ylabel("error [%], cut at ±50", fontsize=_FONT)
    _dress(axes)


def memory_figure(results: Results) -> Figure | None:
    """Draw predicted over published peak memory, None where no case of the headline has one."""
    shown = [o for o in results.outcomes if o.is_headline and o.memory_error is not None]
    if not shown:
        return None
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    for name, members in _by_family(results, shown):
        published = [(o.case.memory_bytes or 0.0) / _GIB for o in members]
        predicted = [o.predicted.memory_bytes / _GIB if o.predicted else 0.0 for o in members]
        axes.scatter(published, predicted, label=f"{name} ({len(members)})", **_style(name))
    _equality(axes, [(o.case.memory_bytes or _GIB) / _GIB for o in shown])
    axes.set_xlabel("published peak memory [GiB]", fontsize=_FONT)
    axes.set_ylabel("predicted peak memory [GiB]", fontsize=_FONT)
    axes.legend(loc="upper left", frameon=False, fontsize=_FONT)
    return figure


def sweep_figure(results: Results) -> Figure | None:
    """Draw the largest sweeps in the order of their measured times, None where there is none."""
    chosen = _chosen_sweeps(results.sweeps)
    if not chosen:
        return None
    columns = min(_SWEEPS_PER_ROW, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, sweep in zip(panels.flat, chosen, strict=False):
        members = [
            o
            for o in results.outcomes
            if o.is_headline and (o.case.group, o.case.sweep) == (sweep.group, sweep.sweep)
        ]
        _sweep_panel(axes, sweep, members)
    for axes in list(panels.flat)[len(chosen) :]:
        axes.set_axis_off()
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _chosen_sweeps(sweeps: Sequence[SweepSummary]) -> list[SweepSummary]:
    """Return the largest sweep of each group, then the largest of the rest."""
    ordered = sorted(sweeps, key=lambda sweep: (-sweep.number, sweep.group, sweep.sweep))
    first = {sweep.group: sweep for sweep in reversed(ordered)}
    leading = sorted(first.values(), key=lambda sweep: (-sweep.number, sweep.group))
    rest = [sweep for sweep in ordered if sweep not in leading]
    return (leading + rest)[:_MOST_SWEEPS]


def _sweep_panel(axes: Axes, sweep: SweepSummary, members: Sequence[Outcome]) -> None:
    timed = [o for o in members if o.case.step_time_s is not None and o.predicted is not None]
    timed.sort(key=lambda o: (o.case.step_time_s or 0.0, o.case.id))
    ranks = range(1, len(timed) + 1)
    measured = [o.case.step_time_s or 0.0 for o in timed]
    predicted = [o.predicted.step_time_s if o.predicted else 0.0 for o in timed]
    axes.plot(ranks, measured, color=FAMILY_COLORS["gpu-transformer"], marker="o", markersize=3.5,
              linewidth=1.0, label="measured")  # fmt: skip
    axes.scatter(ranks, predicted, color=_PREDICTED, s=14, marker="x", label="predicted", zorder=3)
    picks = [rank for rank, o in zip(ranks, timed, strict=True) if o.case.id == sweep.pick]
    if picks:
        axes.scatter(picks, [predicted[picks[0] - 1]], s=70, facecolors="none", edgecolors=_PICK,
                     linewidths=1.0, label="our pick", zorder=4)  # fmt: skip
    tau = "" if sweep.kendall_tau is None else f", τ = {sweep.kendall_tau:.2f}"
    axes.set_title(f"{sweep.group}\n{sweep.sweep}{tau}", fontsize=_FONT - 1, color=INK)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(_few_labels)
    axes.tick_params(which="minor", labelsize=_FONT - 1, length=2)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("measured rank", fontsize=_FONT - 1)
    axes.set_ylabel("step time [s]", fontsize=_FONT - 1)
    _dress(axes)


def _few_labels(value: float, _: float) -> str:
    """Label twos and fives of a decade."""
    leading = f"{value:.0e}"[0]
    return f"{value:g}" if leading in "25" else ""


def _by_family(results: Results, shown: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """Return cases by family, grids first, so that they lie under the rest."""
    named: dict[str, list[Outcome]] = {}
    for outcome in shown:
        named.setdefault(family_name(outcome, results.grids), []).append(outcome)
    return sorted(named.items(), key=lambda item: (not item[0].endswith("grids"), item[0]))


def _style(name: str) -> dict[str, Any]:
    if name.endswith("grids"):
        return {"s": 5, "color": GRID_COLOR, "linewidths": 0, "zorder": 2, "rasterized": True}
    return {
        "s": 22, "color": FAMILY_COLORS[name], "linewidths": 0.4, "edgecolors": "white",
        "alpha": 0.9, "zorder": 3,
    }  # fmt: skip


def _equality(axes: Axes, published: Sequence[float]) -> None:
    """Draw equality and its band over the decades of the published values."""
    low, high = min(published) / 1.6, max(published) * 1.6
    line = [low, high]
    axes.fill_between(
        line, [end * (1.0 - BAND) for end in line], [end * (1.0 + BAND) for end in line],
        color=RULE, linewidth=0, zorder=0, label=f"±{BAND:.0%}",
    )  # fmt: skip
    axes.plot(line, line, color=MUTED, linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        if math.log10(high / low) < 2.0:  # noqa: PLR2004 (few decades need labels between)
            axis.set_minor_formatter(_few_labels)
    axes.tick_params(which="minor", labelsize=_FONT - 1)
    _dress(axes)


def _dress(axes: Axes) -> None:
    axes.grid(color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_FONT - 1, colors=INK, length=2)
    axes.spines[["top", "right"]].set_visible(False)
