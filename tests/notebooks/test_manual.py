"""What the manual shows runs as shown: commands, files and code, in an empty folder."""

import json
import re
import shlex
from pathlib import Path

import pytest

from paraplan.cli import run_command_line
from paraplan.planning import OPTION_NAMES
from planner.report.summary import TIME_TERMS
from planner.stage_memory import MEMORY_TERMS
from planner.strategy import STRATEGY_KEYS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("README.md", "strategies.md", "reading-a-report.md", "clusters-and-what-ifs.md")


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    return re.findall(r"^    (paraplan .*)$", text(page), flags=re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_commands_run_as_shown(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, language in (("ours.toml", "toml"), ("cases.jsonl", "json")):
        for block in blocks(page, language):
            Path(name).write_text(block, encoding="utf-8")
    shown = commands(page)
    assert shown
    for command in shown:
        assert run_command_line(shlex.split(command)[1:]) == 0, command
        printed = capsys.readouterr().out
        if "--json" in command:
            assert json.loads(printed)
        if "--cases" in command:
            lines = [json.loads(line) for line in printed.splitlines()]
            assert [line["id"] for line in lines] == [
                json.loads(case)["id"] for case in blocks(page, "json")[0].splitlines()
            ]
            assert ["error" in line for line in lines] == [False, False, False, True]


@pytest.mark.slow
def test_python_runs_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("clusters-and-what-ifs.md", "python")
    exec(compile(code, "clusters-and-what-ifs.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) > 1
    slow_s, fast_s = float(lines[0][-1]), float(lines[-1][-1])
    assert fast_s < slow_s


def test_pages_link_only_to_what_exists() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), f"{page.name} links to {target}"


def test_index_names_every_page() -> None:
    index = text("README.md")
    missing = [page.name for page in DOCS.glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("strategies.md", STRATEGY_KEYS),
        ("reading-a-report.md", (*TIME_TERMS, *MEMORY_TERMS)),
        ("clusters-and-what-ifs.md", OPTION_NAMES),
    ],
)
def test_pages_explain_every_name(page: str, names: tuple[str, ...]) -> None:
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    explained = " ".join(re.findall(r"`([^`]+)`", prose))
    for name in names:
        assert re.search(rf"\b{re.escape(name)}\b", explained), f"{page} says nothing of {name}"
