"""One self-contained page on a plan: no script, no font, no request to anywhere."""  # noqa: A005

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from hardware_profiles.cluster import Cluster
from planner.plan import Plan
from planner.report import quantities
from planner.report.network import network_facts, network_figure
from planner.report.summary import Summary, summarise
from planner.report.words import term_label
from planner.whole_file import write_whole
from simulator.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.figure import Figure

_MOST_VECTOR_SPANS = 1500
"""Above this a Gantt chart is embedded as a raster image [1]."""
_MOST_GANTT_RANKS = 32
_TEMPLATES = Path(__file__).parent / "templates"


def write_html_report(
    plan: Plan, timeline: Timeline | None, path: str | Path, *, cluster: Cluster | None
) -> None:
    """Write a plan as one HTML file.

    Parameters
    ----------
    plan : Plan
        Any keys of its dictionaries may be absent; the page then lacks that part.
    timeline : Timeline or None
        Simulated or measured step, for the Gantt chart and memory over time.
    path : str or Path
        File to write; it appears whole or not at all.
    cluster : Cluster or None
        For the network picture and the sources of its figures.

    Raises
    ------
    PlanError
        If the file cannot be written.
    """
    write_whole(path, html_report(plan, timeline, cluster=cluster))


def html_report(plan: Plan, timeline: Timeline | None, *, cluster: Cluster | None) -> str:
    """Return the page of :func:`write_html_report` as text; the same input gives the same text."""
    summary = summarise(plan)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(report_filters())
    page: str = environment.get_template("report.html.j2").render(
        plan=plan, summary=summary, figures=_figures(summary, timeline, cluster),
        sources=() if cluster is None else cluster_sources(cluster),
        network=() if cluster is None else network_facts(cluster),
        meter=_meter(summary), origin=None if timeline is None else timeline.origin,
    )  # fmt: skip
    return page


def report_filters() -> dict[str, Any]:
    """Return the functions by which templates print quantities; None prints as a dash."""
    filters = {
        "duration": quantities.duration_text,
        "memory": quantities.bytes_text,
        "percent": quantities.percent_text,
        "money": quantities.money_text,
        "ratio": quantities.ratio_text,
        "number": quantities.number_text,
        "signed_percent": quantities.signed_percent_text,
        "extra": quantities.extra_text,
        "term": term_label,
    }
    return {name: _or_dash(function) for name, function in filters.items()} | {
        "interval": _interval, "breakable": breakable,
    }  # fmt: skip


def _or_dash(function: Any) -> Any:
    def filtered(value: Any) -> str:
        return "–" if value is None else str(function(value))

    return filtered


def breakable(text: str) -> Markup:
    """Return a text that a browser may break after commas, dots and underscores.

    Examples
    --------
    >>> breakable("dp=8,tp=2")
    Markup('dp=8,<wbr>tp=2')
    """
    escaped = str(Markup.escape(text))
    for mark in ",._":
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return Markup(escaped)


def _interval(ends_s: tuple[float, float] | None, like_s: float | None) -> str:
    if ends_s is None or like_s is None:
        return ""
    return quantities.interval_text(ends_s[0], ends_s[1], like_s=like_s)


def cluster_sources(cluster: Cluster) -> tuple[tuple[str, str, str, str, str], ...]:
    """Return (of what, quantity, kind, source, note) for each figure of a cluster with a source.

    Assumed figures come first, for they are the ones to doubt.
    """
    owners: list[tuple[str, Any]] = [(cluster.name, cluster.provenance)]
    owners += [(group.device.name, group.device.provenance) for group in cluster.node_groups]
    fabrics = [fabric for fabric in (cluster.intra, cluster.inter) if fabric is not None]
    owners += [(fabric.link.name, fabric.link.provenance) for fabric in fabrics]
    order = {"assumed": 0, "derived": 1, "measured": 2, "datasheet": 3}
    rows = {
        (order[item.kind], owner, quantity, item.kind, item.source, item.note)
        for owner, provenance in owners
        for quantity, item in provenance.items()
    }
    return tuple(row[1:] for row in sorted(rows))


def _meter(summary: Summary) -> float | None:
    """Share of a device's memory that is used, in percent; None where unknown."""
    used, capacity = summary.best.peak_memory_bytes, summary.capacity_bytes
    return None if used is None or not capacity else round(100 * used / capacity, 1)


def _figures(
    summary: Summary, timeline: Timeline | None, cluster: Cluster | None
) -> dict[str, str]:
    from planner.report.plots import memory_figure, plans_figure, time_figure
    from planner.report.svg import inline_svg

    drawn: Iterable[tuple[str, str, Figure | None]] = (
        ("plans", "Step time of ranked plans and baselines", plans_figure(summary)),
        ("time", "Where the step time goes", time_figure(summary)),
        ("memory", "Peak memory per pipeline stage", memory_figure(summary)),
    )
    figures = {
        name: inline_svg(figure, name=name, label=label)
        for name, label, figure in drawn
        if figure is not None
    }
    picture = None if cluster is None else network_figure(cluster)
    if picture is not None:
        figures["network"] = inline_svg(picture, name="network", label="Network of the cluster")
    if timeline is not None and timeline.spans:
        figures |= _timeline_figures(summary, timeline)
    return figures


def _timeline_figures(summary: Summary, timeline: Timeline) -> dict[str, str]:
    from planner.report.svg import inline_png, inline_svg
    from simulator.exports.gantt import gantt_figure, memory_figure

    ranks = shown_ranks(timeline.num_ranks)
    chart = gantt_figure(timeline, ranks=ranks)
    label = escape(f"Gantt chart of one {timeline.origin} step")
    num_spans = sum(span.rank in set(ranks) for span in timeline.spans)
    if num_spans > _MOST_VECTOR_SPANS:
        figures = {"gantt": inline_png(chart, label=label)}
    else:
        figures = {"gantt": inline_svg(chart, name="gantt", label=label)}
    if any(timeline.memory):
        curves = memory_figure(
            timeline, ranks=[rank for rank in ranks if timeline.memory[rank]],
            capacity_bytes=summary.capacity_bytes,
        )  # fmt: skip
        figures["curves"] = inline_svg(curves, name="curves", label="Memory over one step")
    return figures


def shown_ranks(num_ranks: int) -> list[int]:
    """Return at most 32 ranks, evenly spread, the first and the last among them.

    Examples
    --------
    >>> shown_ranks(3), len(shown_ranks(1024)), shown_ranks(1024)[-1]
    ([0, 1, 2], 32, 1023)
    """
    if num_ranks <= _MOST_GANTT_RANKS:
        return list(range(num_ranks))
    last = _MOST_GANTT_RANKS - 1
    return [round(index * (num_ranks - 1) / last) for index in range(_MOST_GANTT_RANKS)]
