"""The page: self-contained, well-formed, reproducible, written whole."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hardware_profiles.clusters import load_cluster
from planner.errors import PlanError
from planner.plan import Plan
from planner.report.html import cluster_sources, html_report, write_html_report
from planner.report.markdown import markdown_report, write_markdown_report
from simulator.timeline import Span, Timeline

VOID = {"meta", "br", "img", "wbr", "link", "hr", "input"}


class Balance(HTMLParser):
    """Collects ids, headings and references, and checks that every element closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("src", "href", "xlink:href", "action", "data"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Balance:
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert len(balance.ids) == len(set(balance.ids))
    for reference in balance.references:
        assert reference.startswith(("#", "data:")), reference
    for reference in (x for x in balance.references if x.startswith("#")):
        assert reference[1:] in balance.ids
    assert "<script" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    return balance


def timeline(num_microbatches: int = 4, num_ranks: int = 2) -> Timeline:
    spans = [
        Span(
            name=f"{rank}F{index}", rank=rank, stream="compute", kind="compute",
            category="compute", start_s=index + rank, end_s=index + rank + 0.9, stage=rank,
            microbatch=index,
        )
        for rank in range(num_ranks) for index in range(num_microbatches)
    ]  # fmt: skip
    memory = tuple(((0.0, 1e9), (1.0 + rank, 3e9)) for rank in range(num_ranks))
    return Timeline(spans=tuple(spans), num_ranks=num_ranks, memory=memory)


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_full_page(full_plan: Plan) -> None:
    page = html_report(full_plan, timeline(), cluster=load_cluster("dgx-a100-80g:128"))
    checked(page)
    assert headings(page) == [
        "Where the time goes", "One step, simulated", "Memory", "Ranked plans", "What would help",
        "Layer by layer", "The machine", "Rejected", "Assumptions and sources",
    ]  # fmt: skip
    assert page.count("<svg") == 6
    text = re.sub(r"<wbr>", "", page)
    for told in (
        full_plan.strategy, "32.1 s", "29.8 – 35.0 s", "98,000", "48.9 %", "61.2 GiB",
        "width: 76.5%",
        "$5,950 per 10⁹ tokens", "needs 2.73 TiB of 80.0 GiB", "blocks.*.attention.query", "+83.0",
        "1,893", "prices are list prices of 2024", "128 × 8 devices",
    ):  # fmt: skip
        assert told in text, told


def test_an_empty_page(bare_plan: Plan) -> None:
    page = html_report(bare_plan, None, cluster=None)
    checked(page)
    assert headings(page) == []
    assert "<svg" not in page
    assert "Cut every layer over 8 devices" in page


def test_the_same_input_gives_the_same_page(full_plan: Plan) -> None:
    cluster = load_cluster("dgx-a100-80g:2")
    pages = {html_report(full_plan, timeline(), cluster=cluster) for _ in range(2)}
    assert len(pages) == 1


def test_long_timelines_become_a_raster_image(full_plan: Plan) -> None:
    page = html_report(full_plan, timeline(num_microbatches=800), cluster=None)
    checked(page)
    assert page.count('src="data:image/png;base64,') == 1


def test_markup_in_a_plan_is_text(full_plan: Plan) -> None:
    told = full_plan.explanation | {"sentence": "<script>alert(1)</script>"}
    hostile = {"name": "<b>$x$ & co", "step_time_s": 50.0, "reason": "<img src=x>", "fits": True}
    plan = full_plan.model_copy(update={"explanation": told, "baselines": (hostile,)})
    page = html_report(plan, None, cluster=None)
    checked(page)
    assert "&lt;script&gt;" in page
    assert "<b>$" not in page
    assert "&lt;b>" in markdown_report(plan)


def test_inline_figures_take_the_colours_of_the_page(full_plan: Plan) -> None:
    page = html_report(full_plan, None, cluster=None)
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "currentColor" in figures
    assert "var(--rule)" in figures
    assert "#000000" not in figures
    assert "#ffffff" not in figures


def test_assumed_figures_lead_the_sources() -> None:
    rows = cluster_sources(load_cluster("dgx-a100-80g:2"))
    kinds = [kind for _, _, kind, _, _ in rows]
    order = ["assumed", "derived", "measured", "datasheet"]
    assert kinds == sorted(kinds, key=order.index)
    assert len(rows) == len(set(rows)) > 5


def test_files_appear_whole_and_replace_old_ones(full_plan: Plan, tmp_path: Path) -> None:
    page, text = tmp_path / "report.html", tmp_path / "report.md"
    page.write_text("old", encoding="utf-8")
    write_html_report(full_plan, None, page, cluster=None)
    write_markdown_report(full_plan, text)
    assert page.read_text(encoding="utf-8") == html_report(full_plan, None, cluster=None)
    assert text.read_text(encoding="utf-8") == markdown_report(full_plan)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md"}


def test_a_missing_folder_is_told(full_plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere/report\.html: cannot be written \(No such file"):
        write_html_report(full_plan, None, tmp_path / "nowhere" / "report.html", cluster=None)


def test_markdown_tables_are_rectangular(full_plan: Plan) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", markdown_report(full_plan), re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1
