"""A plan as Markdown, for pull requests and wikis."""

from pathlib import Path

import jinja2

from planner.plan import Plan
from planner.report.html import report_filters
from planner.report.summary import summarise
from planner.whole_file import write_whole

_TEMPLATES = Path(__file__).parent / "templates"


def markdown_report(plan: Plan) -> str:
    """Return a plan as Markdown; any keys of its dictionaries may be absent.

    Parameters
    ----------
    plan : Plan
        The plan to tell.

    Returns
    -------
    str
        GitHub-flavoured Markdown, ends with one newline.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False,
    )  # fmt: skip
    environment.filters.update(report_filters() | {"cell": cell})
    text = environment.get_template("report.md.j2").render(plan=plan, summary=summarise(plan))
    return text.strip() + "\n"


def write_markdown_report(plan: Plan, path: str | Path) -> None:
    """Write :func:`markdown_report` to a file, whole or not at all.

    Raises
    ------
    PlanError
        If the file cannot be written.
    """
    write_whole(path, markdown_report(plan))


def cell(text: str) -> str:
    r"""Return a text that cannot break a table.

    Examples
    --------
    >>> cell("a|b *c* <i>")
    'a\\|b \\*c\\* &lt;i>'
    """
    for mark in "|*_`":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("<", "&lt;")
