"""Plots of a plan as matplotlib figures, one palette for all; import this only to draw."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from planner.report.quantities import bytes_text, duration_text, duration_unit, percent_text
from planner.report.summary import Option, Summary
from planner.report.words import term_label
from simulator.exports.phases import PHASE_COLORS

INK = "#000000"
"""Text and axes; pages replace it by their own text colour."""
GRID = "#DDDDDD"
"""Grid lines; pages replace it by their own rule colour."""
BEST_COLOR, OTHER_COLOR, BASELINE_COLOR = "#4C78A8", "#9ECAE9", "#BAB0AC"
LIMIT_COLOR = "#C0392B"
TERM_COLORS = {
    **PHASE_COLORS, "compute": "#4C78A8", "bubble": "#BAB0AC",
    "parameters": "#4C78A8", "gradients": "#E45756", "optimizer_state": "#8E6C8A",
    "activations": "#72B7B2", "logits": "#EECA3B", "workspace": "#BAB0AC",
}  # fmt: skip
_SPARE_COLORS = ("#F58518", "#B279A2", "#9D755D", "#54A24B", "#FF9DA6", "#9ECAE9", "#D6A5C9")
_WIDTH_INCHES = 8.0
_FONT, _SMALL_FONT = 9, 8
_GIB = 2**30
_MOST_OPTIONS, _MOST_STAGE_LABELS = 10, 32
_ROOM = 1.22
"""Room right of the longest bar for its label, in bars [1]."""


def term_colors(terms: Sequence[str]) -> dict[str, str]:
    """Return one colour per term, the same for the same term in every plot.

    Examples
    --------
    >>> term_colors(["activations", "something"])
    {'activations': '#72B7B2', 'something': '#F58518'}
    """
    unknown = [term for term in terms if term not in TERM_COLORS]
    taken = {TERM_COLORS[term] for term in terms if term in TERM_COLORS}
    spare = [color for color in _SPARE_COLORS if color not in taken] or list(_SPARE_COLORS)
    extra = {term: spare[index % len(spare)] for index, term in enumerate(unknown)}
    return {term: TERM_COLORS.get(term) or extra[term] for term in terms}


def plans_figure(summary: Summary) -> Figure | None:
    """Draw the step time of the plan, its runners-up and the baselines that fit, with intervals.

    Returns
    -------
    Figure or None
        None where no option has a step time.
    """
    ranked = [option for option in summary.options if option.is_usable][:_MOST_OPTIONS]
    usable = [*ranked, *(option for option in summary.baselines if option.is_usable)]
    if not usable:
        return None
    usable.sort(key=lambda option: option.step_time_s or 0.0)
    figure, axes = _bars_figure(len(usable), row_inches=0.4)
    tops = [_top(option) for option in usable]
    scale_s, unit = duration_unit(max(tops))
    for row, option in enumerate(usable):
        _option_bar(axes, row, option, scale_s=scale_s)
        axes.text(
            (tops[row] + 0.01 * max(tops)) / scale_s, row, duration_text(option.step_time_s or 0.0),
            va="center", fontsize=_FONT, fontweight="bold" if option.is_best else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(usable)), [_option_label(option) for option in usable])
    axes.set_xlim(0, max(tops) / scale_s * 1.12)
    axes.set_xlabel(f"step time [{unit}], whiskers: likely interval", fontsize=_SMALL_FONT)
    return figure


def _top(option: Option) -> float:
    high = option.step_time_interval_s[1] if option.step_time_interval_s else 0.0
    return max(high, option.step_time_s or 0.0)


def _option_bar(axes: Axes, row: int, option: Option, *, scale_s: float) -> None:
    is_baseline = option.name not in ("", "this plan")
    color = BEST_COLOR if option.is_best else BASELINE_COLOR if is_baseline else OTHER_COLOR
    length = (option.step_time_s or 0.0) / scale_s
    axes.barh(row, length, height=0.62, color=color)
    if option.step_time_interval_s is not None:
        low, high = (end_s / scale_s for end_s in option.step_time_interval_s)
        axes.errorbar(
            length, row, xerr=[[max(0.0, length - low)], [max(0.0, high - length)]],
            fmt="none", ecolor=INK, elinewidth=0.9, capsize=2.5, capthick=0.9,
        )  # fmt: skip


def _option_label(option: Option) -> str:
    short = short_strategy(option.strategy)
    if option.name and not option.is_best:
        label = f"{option.name}\n{short}" if short else option.name
    else:
        label = short or option.name
    return label.replace("$", r"\$")


def short_strategy(text: str) -> str:
    """Return a strategy in few characters for labels.

    Examples
    --------
    >>> short_strategy("dp=8,tp=8,pp=16,microbatch=1,schedule=1f1b,sequence_parallel=on")
    'dp8 tp8 pp16 mb1 sp'
    >>> short_strategy("dp=64,microbatch=2,sharding=parameters,recompute=full")
    'dp64 mb2 zero3 full recompute'
    """
    parts = []
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if part not in _UNSAID:
            parts.append(_SHORT.get(part) or _SHORT.get(key, key) + value)
    return " ".join(parts)


_UNSAID = ("schedule=1f1b", "layout=tensor", "sequence_parallel=off")
_SHORT = {
    "sequence_parallel=on": "sp", "sharding=optimizer": "zero1", "sharding=gradients": "zero2",
    "sharding=parameters": "zero3", "recompute=full": "full recompute",
    "recompute=selective_op": "op recompute", "recompute=selective": "selective recompute",
    "microbatch": "mb", "virtual_stages": "v", "schedule": "", "layout": "layout ",
}  # fmt: skip


def time_figure(summary: Summary) -> Figure | None:
    """Draw where the step time goes, one bar per term, the largest on top; None where unknown."""
    if not summary.time_s:
        return None
    ranked = sorted(summary.time_s.items(), key=lambda item: -item[1])
    colors = term_colors([term for term, _ in ranked])
    total = sum(summary.time_s.values())
    longest_s = ranked[0][1]
    scale_s, unit = duration_unit(longest_s)
    figure, axes = _bars_figure(len(ranked), row_inches=0.3)
    for row, (term, seconds) in enumerate(ranked):
        axes.barh(row, seconds / scale_s, height=0.66, color=colors[term])
        axes.text(
            (seconds + 0.01 * longest_s) / scale_s, row,
            f"{duration_text(seconds)} · {percent_text(seconds / total)}",
            va="center", fontsize=_FONT,
        )  # fmt: skip
    axes.set_yticks(range(len(ranked)), [term_label(term) for term, _ in ranked])
    axes.set_xlim(0, longest_s / scale_s * _ROOM)
    axes.set_xlabel(f"part of one step [{unit}]", fontsize=_SMALL_FONT)
    return figure


def _bars_figure(num_rows: int, *, row_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_INCHES, 0.7 + row_inches * num_rows), layout="constrained")
    axes = figure.add_subplot()
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, labelsize=_FONT)
    axes.tick_params(axis="x", labelsize=_SMALL_FONT)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return figure, axes


def memory_figure(summary: Summary) -> Figure | None:
    """Draw peak memory per pipeline stage against the capacity of a device.

    Bars are stacked by what the memory holds where that is known: for every stage, or for the
    fullest one alone.

    Returns
    -------
    Figure or None
        None where the plan holds no memory figures.
    """
    stages = _stage_terms(summary)
    if not stages:
        return None
    names = list(dict.fromkeys(term for stage in stages for term in stage))
    terms = [term for term in names if term != _UNDIVIDED]
    colors = {**term_colors(terms), _UNDIVIDED: OTHER_COLOR}
    figure = Figure(figsize=(_WIDTH_INCHES, 3.1), layout="constrained")
    axes = figure.add_subplot()
    bottoms = [0.0] * len(stages)
    for term in [*terms, *([_UNDIVIDED] if _UNDIVIDED in names else [])]:
        heights = [stage.get(term, 0.0) / _GIB for stage in stages]
        axes.bar(
            range(len(stages)), heights, bottom=bottoms, width=_bar_width(len(stages)),
            color=colors[term], label=term_label(term) if term != _UNDIVIDED else "total",
        )  # fmt: skip
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    _capacity_line(axes, summary.capacity_bytes, tallest=max(bottoms))
    _dress_memory(axes, len(stages))
    return figure


_UNDIVIDED = "total of the stage"


def _bar_width(num_bars: int) -> float:
    return 0.3 if num_bars == 1 else 0.5 if num_bars <= 3 else 0.78  # noqa: PLR2004 (looks)


def _stage_terms(summary: Summary) -> list[dict[str, float]]:
    if summary.memory_terms_per_stage_bytes:
        return list(summary.memory_terms_per_stage_bytes)
    totals = list(summary.memory_per_stage_bytes)
    if not totals and summary.best.peak_memory_bytes is not None:
        totals = [summary.best.peak_memory_bytes]
    stages = [{_UNDIVIDED: total} for total in totals]
    if summary.memory_bytes:
        fullest = totals.index(max(totals)) if totals else 0
        stages = stages or [{}]
        stages[fullest] = summary.memory_bytes
    return stages


def _capacity_line(axes: Axes, capacity_bytes: float | None, *, tallest: float) -> None:
    limit = 0.0 if capacity_bytes is None else capacity_bytes / _GIB
    axes.set_ylim(0, 1.12 * max(limit, tallest))
    if capacity_bytes is None:
        return
    axes.axhline(limit, color=LIMIT_COLOR, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"capacity {bytes_text(capacity_bytes)}", (1.0, limit), xytext=(0, 3),
        xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", va="bottom", fontsize=_SMALL_FONT, color=LIMIT_COLOR,
    )  # fmt: skip


def _dress_memory(axes: Axes, num_stages: int) -> None:
    if num_stages == 1:
        axes.set_xticks([])
        axes.set_xlim(-1, 1)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(min(num_stages, _MOST_STAGE_LABELS), integer=True))
        axes.set_xlim(-0.6, num_stages - 0.4)
        axes.set_xlabel("pipeline stage", fontsize=_SMALL_FONT)
    axes.set_ylabel("peak memory [GiB]", fontsize=_SMALL_FONT)
    axes.tick_params(labelsize=_SMALL_FONT, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=_SMALL_FONT,
        reverse=True,
    )  # fmt: skip
