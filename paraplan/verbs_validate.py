"""The verb that holds predictions against published results."""

from typing import Any

from paraplan.console import EXIT_FAILED, print_json, print_text, progress_bar
from paraplan.validation import predict_groups
from paraplan.validation_text import as_text
from planner.validation.case_file import load_groups
from planner.validation.outcome import Outcome
from planner.validation.results import Results, Row, results_of


def validate_verb(
    *,
    group: str | None,
    family: str | None,
    jobs: int,
    as_json: bool,
    summary_only: bool,
) -> None:
    """Print published results, predicted beside measured; fail where a tolerance is missed."""
    groups = load_groups(group=group, family=family)
    with progress_bar(quiet=as_json) as progress:
        results = results_of(predict_groups(groups, jobs=jobs, progress=progress))
    if as_json:
        print_json(as_object(results))
    else:
        print_text(as_text(results, shows_cases=not summary_only))
    if results.failures:
        raise SystemExit(EXIT_FAILED)


def as_object(results: Results) -> dict[str, Any]:
    """Return the ``validate --json`` object (DESIGN section 7)."""
    overall = results.overall
    return {
        "cases": [_case_object(outcome) for outcome in results.outcomes],
        "mean_absolute_error": None if overall is None else overall.mean_absolute_error,
        "bias": None if overall is None else overall.bias,
        "groups": {row.name: _row_object(row) for row in results.groups},
        "families": {row.name: _row_object(row) for row in results.families},
    }


def _case_object(outcome: Outcome) -> dict[str, Any]:
    case, predicted = outcome.case, outcome.predicted
    return {
        "id": case.id,
        "group": case.group,
        "family": outcome.group.family,
        "source": outcome.group.source,
        "role": case.role,
        "complete": case.is_complete,
        "quantity": "step_time_s",
        "published": case.step_time_s,
        "predicted": None if predicted is None else predicted.step_time_s,
        "error": outcome.step_error,
        "tolerance": outcome.group.tolerance,
        "passed": not outcome.failure,
        "failure": outcome.failure,
        "strategy": None if predicted is None else predicted.strategy,
        "sweep": case.sweep,
        "published_memory_bytes": case.memory_bytes,
        "predicted_memory_bytes": None if predicted is None else predicted.memory_bytes,
        "memory_kind": case.memory_kind,
        "memory_error": outcome.memory_error,
        "predicted_fits": None if predicted is None else predicted.fits,
        "measured_fits": outcome.measured_fits,
        "note": case.note,
    }


def _row_object(row: Row) -> dict[str, Any]:
    steps, memory = row.steps, row.memory
    return {
        "num_cases": 0 if steps is None else steps.number,
        "mean_absolute_error": None if steps is None else steps.mean_absolute_error,
        "bias": None if steps is None else steps.bias,
        "worst": None if steps is None else steps.worst,
        "worst_case": None if steps is None else steps.worst_name,
        "num_memory_cases": 0 if memory is None else memory.number,
        "memory_mean_absolute_error": None if memory is None else memory.mean_absolute_error,
        "memory_bias": None if memory is None else memory.bias,
    }
