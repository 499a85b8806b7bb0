"""A plan on the terminal: what to do, how fast, does it fit, and why not otherwise."""

import io

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planner.plan import Plan
from planner.report.quantities import (
    bytes_text,
    duration_text,
    interval_text,
    money_text,
    number_text,
    percent_text,
    ratio_text,
    signed_percent_text,
)
from planner.report.summary import Option, Summary, summarise
from planner.report.words import term_label

_MUTED = "bright_black"
_GOOD, _BAD, _STRONG = "green", "bright_red", "bold"
_NARROW, _WIDE = 60, 96
_BAR_CELLS = 32
_TIGHT = 0.95
"""Share of memory from which the bar warns [1]."""
_MOST_TERMS, _MOST_WHAT_IF, _MOST_ASSUMPTIONS = 5, 2, 3
_GLYPHS = "█▓▒░▚▞"
_STRATEGY = "\ue001"
"""Stands for the strategy until the text is laid out: rich would fold or crop it."""
_UNBROKEN = "\ue000"
"""Stands for a space that must not end a line; rich breaks at no-break spaces as well."""
_COLORS = ("bright_blue", "yellow", "green", "magenta", "cyan", "red")


def render_plan(plan: Plan, *, width: int, color: bool) -> str:
    """Return a plan as terminal text of some 35 lines.

    Parameters
    ----------
    plan : Plan
        Any keys of its dictionaries may be absent.
    width : int
        Columns; fewer than 60 count as 60.
    color : bool
        Whether to use ANSI escape codes; without, the text is plain.

    Returns
    -------
    str
        Ends with one newline.
    """
    summary = summarise(plan)
    columns = max(width, _NARROW)
    out = io.StringIO()
    console = Console(
        file=out, width=columns, force_terminal=color, no_color=not color, highlight=False,
        color_system="standard" if color else None, legacy_windows=False, emoji=False, markup=False,
    )  # fmt: skip
    parts: list[RenderableType] = [
        _heading(summary), "", _answer(summary), Text(_STRATEGY), "",
        _figures(summary, bar_cells(columns)),
    ]  # fmt: skip
    why = _why(summary)
    if why is not None:
        parts += ["", why]
    if summary.baselines:
        parts += ["", _baselines(summary, with_strategies=columns >= _WIDE)]
    notes = [note for note in (_sources(summary), _assumptions(summary)) if note is not None]
    if notes:
        parts += ["", *notes]
    console.print(Padding(Group(*parts), (0, 1)))
    text = out.getvalue().replace(_UNBROKEN, " ")
    text = text.replace(_STRATEGY, _strategy(summary, color=color))
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(lines).rstrip() + "\n"


def bar_cells(columns: int) -> int:
    """Return the length of bars for a terminal width [characters]."""
    return min(_BAR_CELLS, columns // 3)


def _heading(summary: Summary) -> Text:
    heading = Text().append(summary.title, style=_STRONG)
    return heading.append(f"\n{summary.devices} · {summary.workload}", style=_MUTED)


def _answer(summary: Summary) -> Text:
    return Text(summary.sentence)


def _strategy(summary: Summary, *, color: bool) -> str:
    """Return the strategy on one line, however long: it is there to be copied."""
    text = f"--strategy {summary.strategy}"
    return f"\x1b[36m{text}\x1b[0m" if color else text


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=_MUTED, no_wrap=True, min_width=10)
    grid.add_column(overflow="fold")
    return grid


def _figures(summary: Summary, cells: int) -> Table:
    grid = _grid()
    best = summary.best
    if best.step_time_s is not None:
        grid.add_row("Step time", _step_time(best))
        if summary.interval_basis:
            grid.add_row("", Text(f"interval from {summary.interval_basis}", style=_MUTED))
    speed = _throughput(summary) + _efficiency(summary)
    if speed:
        grid.add_row("Speed", "   ".join(speed))
    memory = _memory(summary, cells)
    if memory is not None:
        grid.add_row("Memory", memory)
    cost = _cost(summary)
    if cost:
        grid.add_row("Cost", cost)
    if summary.time_s:
        grid.add_row("Time goes", _time_bar(summary.time_s, cells))
    return grid


def _step_time(option: Option) -> Text:
    seconds = option.step_time_s or 0.0
    text = Text().append(duration_text(seconds), style=_STRONG)
    if option.step_time_interval_s is not None:
        low, high = option.step_time_interval_s
        text.append(f"   likely {interval_text(low, high, like_s=seconds)}")
    return text


def _throughput(summary: Summary) -> list[str]:
    parts = []
    if summary.tokens_per_s is not None:
        parts.append(f"{number_text(summary.tokens_per_s)} tokens/s")
    if summary.samples_per_s is not None:
        parts.append(f"{number_text(summary.samples_per_s)} samples/s")
    return parts


def _efficiency(summary: Summary) -> list[str]:
    parts = []
    if summary.best.mfu is not None:
        parts.append(f"MFU {percent_text(summary.best.mfu)}")
    if summary.hfu is not None and summary.hfu != summary.best.mfu:
        parts.append(f"HFU {percent_text(summary.hfu)}")
    if summary.best.bubble_fraction is not None:
        parts.append(f"bubble {percent_text(summary.best.bubble_fraction)}")
    return parts


def _cost(summary: Summary) -> str:
    parts = []
    if summary.best.cost_usd_per_hour is not None:
        parts.append(f"{money_text(summary.best.cost_usd_per_hour)}/h")
    if summary.cost_per_billion_tokens_usd is not None:
        parts.append(f"{money_text(summary.cost_per_billion_tokens_usd)} per 10⁹ tokens")
    if summary.cost_per_million_samples_usd is not None:
        parts.append(f"{money_text(summary.cost_per_million_samples_usd)} per 10⁶ samples")
    return "   ".join(parts)


def _memory(summary: Summary, cells: int) -> Text | None:
    used, capacity = summary.best.peak_memory_bytes, summary.capacity_bytes
    if used is None:
        return None
    verdict = {True: "fits", False: "does not fit", None: ""}[summary.best.fits]
    style = _GOOD if summary.best.fits else _BAD
    if not capacity:
        return Text(f"{bytes_text(used)}   ").append(verdict, style=style)
    share = used / capacity
    filled = min(cells, max(1, round(share * cells)))
    shade = _BAD if share > 1 else "yellow" if share > _TIGHT else _GOOD
    bar = Text().append("█" * filled, style=shade).append("░" * (cells - filled), style=_MUTED)
    bar.append(f" {bytes_text(used)} of {bytes_text(capacity)}   ")
    return bar.append(verdict, style=style)


def _time_bar(times_s: dict[str, float], cells: int) -> Text:
    """One stacked bar and its legend; the smallest terms are summed as "other"."""
    total = sum(times_s.values())
    ranked = sorted(times_s.items(), key=lambda item: -item[1])
    shown = [(term_label(term), value / total) for term, value in ranked[:_MOST_TERMS]]
    rest = 1 - sum(share for _, share in shown)
    if len(ranked) > _MOST_TERMS:
        shown.append(("other", rest))
    bar, legend = Text(), Text()
    filled = 0
    upto = 0.0
    for index, (label, share) in enumerate(shown):
        upto += share
        length = round(upto * cells) - filled
        filled += length
        bar.append(_GLYPHS[index] * length, style=_COLORS[index])
        legend.append("   " if index else "")
        legend.append(f"{_GLYPHS[index]}{_UNBROKEN}", style=_COLORS[index])
        legend.append(f"{label} {percent_text(share)}".replace(" ", _UNBROKEN))
    return bar.append("\n").append_text(legend)


def _why(summary: Summary) -> Table | None:
    grid = _grid()
    if summary.bottleneck:
        grid.add_row("Bottleneck", summary.bottleneck)
    if summary.binding_constraint:
        grid.add_row("Limited by", summary.binding_constraint)
    if summary.runner_up:
        margin = summary.runner_up_margin
        told = "" if margin is None else f"   {signed_percent_text(margin)} step time"
        grid.add_row("Runner-up", Text(summary.runner_up).append(told))
    for index, what_if in enumerate(summary.what_if[:_MOST_WHAT_IF]):
        told = what_if.change
        if what_if.step_time_s is not None:
            told += f" → {duration_text(what_if.step_time_s)}"
        if what_if.gain is not None:
            told += f" ({percent_text(what_if.gain)} less)"
        grid.add_row("" if index else "What if", Text(told))
    return grid if grid.row_count else None


def _baselines(summary: Summary, *, with_strategies: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Compared", no_wrap=True)
    for heading in ("step time", "", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    best_s = summary.best.step_time_s
    for option in (summary.best, *summary.baselines):
        table.add_row(*_baseline_row(option, best_s, with_strategies=with_strategies))
    return table


def _baseline_row(
    option: Option, best_s: float | None, *, with_strategies: bool
) -> tuple[Text | str, ...]:
    seconds = option.step_time_s if option.is_usable else None
    ratio = seconds / best_s if seconds is not None and best_s else None
    verdict: Text | str = option.strategy.replace(",", ", ") if with_strategies else ""
    if option.fits is False:
        verdict = Text().append(
            f"does not fit: {option.reason}" if option.reason else "does not fit", style=_BAD
        )
    elif option.reason:
        verdict = Text().append(option.reason, style=_BAD if seconds is None else "")
    return (
        Text(option.name, style=_STRONG if option.is_best else ""),
        "—" if seconds is None else duration_text(seconds),
        "" if ratio is None else ratio_text(ratio),
        "—" if option.peak_memory_bytes is None else bytes_text(option.peak_memory_bytes),
        "" if option.is_best else verdict,
    )


def _sources(summary: Summary) -> Text | None:
    if not summary.term_sources:
        return None
    return Text(f"Sources of the parts: {summary.term_sources}", style=_MUTED)


def _assumptions(summary: Summary) -> Text | None:
    if not summary.assumptions:
        return None
    text = Text(style=_MUTED)
    shown = summary.assumptions[:_MOST_ASSUMPTIONS]
    text.append("Assumed: " + "; ".join(shown))
    more = len(summary.assumptions) - len(shown)
    return text.append(f"; and {more} more in the report" if more else "")
