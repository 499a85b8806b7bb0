"""Verbs that plan: plan, simulate, report."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hardware_profiles.errors import ParaplanError
from paraplan.console import one_line, print_json, print_text, progress_bar
from planner.errors import StrategyError

if TYPE_CHECKING:
    from planner.search import Objective

REQUIRED = {"model": "MODEL", "cluster": "--cluster", "global_batch": "--global-batch"}
WHOLE_NUMBERS = ("global_batch", "seq_len")
OBJECTIVES = ("time", "cost", "devices")


def _make_options(values: dict[str, Any]) -> Any:
    from paraplan.planning import Options

    for key, flag in REQUIRED.items():
        if values.get(key) is None:
            raise StrategyError(f"{flag} is missing; give one, see --help of the verb")
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        wanted = int if key in WHOLE_NUMBERS else str
        if type(value) is not wanted:
            what = "a whole number" if wanted is int else "text"
            raise StrategyError(f"{key} is {value!r}; expected {what}")
    return Options(**given)


def plan_verb(values: dict[str, Any], *, objective: str, out: Path, as_json: bool) -> None:
    """Search, print the answer, write plan.json, report.html and trace.json."""
    from paraplan.planning import plan

    if objective not in OBJECTIVES:
        raise StrategyError(
            f"--objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}"
        )
    options = _make_options(values)
    with progress_bar(quiet=as_json) as progress:
        made, result = plan(options, objective=cast("Objective", objective), progress=progress)
        progress("writing the report", 1, 1)
        written = _write_all(made, result.best.evaluation, result.book.problem.cluster, out)
    if as_json:
        print_json(
            {
                "best": made.prediction,
                "candidates": list(made.candidates),
                "baselines": list(made.baselines),
                "num_candidates": result.num_candidates,
                "num_rejected": result.rejected,
                "search_time_s": result.search_time_s,
                "explanation": made.explanation,
                "files": written,
            }
        )
        return
    _print_plan(made)
    print_text(
        f"{result.num_candidates} candidates in {result.search_time_s:.1f} s. "
        f"Written: {', '.join(written)}"
    )


def _write_all(plan: Any, evaluation: Any, cluster: Any, out: Path) -> list[str]:
    from planner.plan import plan_to_json
    from planner.replay import shown_timeline
    from planner.report.html import write_html_report
    from planner.whole_file import write_whole
    from simulator.exports.chrome import chrome_json

    timeline, _ = shown_timeline(evaluation)
    paths = [out / name for name in ("plan.json", "report.html", "trace.json")]
    write_whole(paths[0], plan_to_json(plan), makes_folders=True)
    write_html_report(plan, timeline, paths[1], cluster=cluster)
    write_whole(paths[2], chrome_json(timeline), makes_folders=True)
    return [str(path) for path in paths]


def _print_plan(plan: Any) -> None:
    import os
    import shutil

    from planner.report.terminal import render_plan

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = min(100, shutil.get_terminal_size((96, 24)).columns)
    print_text(render_plan(plan, width=width, color=color))


def simulate_verb(values: dict[str, Any], *, detail: str, out: Path | None, as_json: bool) -> None:
    """Score exactly one strategy."""
    from paraplan.planning import is_plan_file, simulate, simulate_plan
    from planner.plan import plan_to_json

    if detail not in ("folded", "full"):
        raise StrategyError(f"--detail is {detail!r}; expected folded or full")
    model = values["model"]
    if model is None:
        raise StrategyError("MODEL is missing; give a model, a plan file or --cases FILE")
    if is_plan_file(model):
        changes = {key: value for key, value in values.items() if key != "model"}
        made, timeline = simulate_plan(model, changes=changes, detail=detail)
    else:
        made, timeline = simulate(_make_options(values), detail=detail)
    if out is not None:
        from planner.whole_file import write_whole
        from simulator.exports.chrome import chrome_json

        write_whole(out / "plan.json", plan_to_json(made), makes_folders=True)
        write_whole(out / "trace.json", chrome_json(timeline), makes_folders=True)
    if as_json:
        print_json(made.prediction)
    else:
        _print_plan(made)


def cases_verb(path: Path) -> None:
    """Score many cases in one process: JSON lines in, JSON lines out, in order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise StrategyError(
            f"{path}: cannot be read ({reason}); expected JSON lines, one case each"
        ) from None
    for line in lines:
        if line.strip():
            sys.stdout.write(json.dumps(_case(line), sort_keys=True) + "\n")
            sys.stdout.flush()


def _case(line: str) -> dict[str, Any]:
    from paraplan.planning import OPTION_NAMES, Options, make_problem, rank_strategy
    from planner.prediction import prediction

    case: Any = None
    try:
        case = json.loads(line)
        if not isinstance(case, dict):
            raise StrategyError(
                f"a case is {type(case).__name__}; expected an object of option names and values"
            )
        unknown = sorted(set(case) - set(OPTION_NAMES) - {"id"})
        if unknown:
            raise StrategyError(
                f"unknown key '{unknown[0]}'; expected {', '.join(OPTION_NAMES)} or id"
            )
        options: Options = _make_options({k: v for k, v in case.items() if k != "id"})
        problem = make_problem(options)
        _, ranked = rank_strategy(problem, options.strategy)
        answer = prediction(problem, ranked.evaluation, step_time_s=ranked.step_time_s)
    except json.JSONDecodeError as error:
        answer = {"error": f"not JSON: {error.msg}; expected an object per line"}
    except ParaplanError as error:
        answer = {"error": one_line(str(error))}
    if isinstance(case, dict) and "id" in case:
        answer["id"] = case["id"]
    return answer


def report_verb(
    plan_file: Path, *, cluster: str | None, out: Path | None, as_json: bool = False
) -> None:
    """Write the report of a plan file again."""
    from hardware_profiles import load_cluster
    from paraplan.planning import timeline_of_plan
    from planner.report.html import write_html_report
    from planner.report.markdown import write_markdown_report

    target = out or plan_file.with_name("report.html")
    if target.suffix not in (".html", ".md"):
        raise StrategyError(f"--out is {target}; expected a name ending in .html or .md")
    plan, timeline = timeline_of_plan(plan_file, cluster=cluster)
    if target.suffix == ".md":
        write_markdown_report(plan, target)
    else:
        write_html_report(
            plan, timeline, target, cluster=load_cluster(cluster or plan.cluster.name)
        )
    if as_json:
        print_json({"files": [str(target)]})
    else:
        print_text(f"Written: {target}")
