"""The verb that holds predictions against published results."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paraplan.console import EXIT_FAILED, print_json, print_text, progress_bar
from paraplan.validation import predict_groups
from paraplan.validation_files import (
    ValidationFileError,
    case_object,
    check_checkout,
    write_csv,
    write_documents,
    write_residuals,
)
from paraplan.validation_speed import candidate_time
from paraplan.validation_text import as_text
from planner.validation.aims import aims
from planner.validation.case_file import load_groups
from planner.validation.residual_file import shipped_table
from planner.validation.results import Results, Row, results_of


def validate_verb(
    *,
    group: str | None,
    family: str | None,
    folder: Path | None,
    jobs: int | None,
    as_json: bool,
    summary_only: bool,
    csv_file: Path | None,
    write_docs: bool,
) -> None:
    """Print published results, predicted beside measured; fail where a tolerance is missed."""
    is_whole = group is None and family is None and folder is None
    if write_docs:
        _check_docs(is_whole=is_whole)
    groups = load_groups(folder, group=group, family=family)
    with progress_bar(quiet=as_json) as progress:
        outcomes = predict_groups(groups, jobs=jobs, progress=progress)
    results = results_of(outcomes, shipped=None if is_whole else shipped_table())
    candidate_s = candidate_time() if is_whole else None
    if csv_file is not None:
        write_csv(results, csv_file)
    if write_docs:
        write_residuals(results, folder=Path())
        for path in write_documents(results, folder=Path(), candidate_s=candidate_s):
            print_text(f"wrote {path}", to_stderr=True)
    if as_json:
        print_json(as_object(results, candidate_s=candidate_s, is_whole=is_whole))
    else:
        text = as_text(
            results, shows_cases=not summary_only, candidate_s=candidate_s, is_whole=is_whole
        )
        print_text(text)
    if results.failures:
        raise SystemExit(EXIT_FAILED)


def _check_docs(*, is_whole: bool) -> None:
    if not is_whole:
        raise ValidationFileError(
            "--write-docs is for all shipped cases; leave --group, --family and --cases out"
        )
    check_checkout(Path())


def as_object(
    results: Results, *, candidate_s: float | None = None, is_whole: bool = True
) -> dict[str, Any]:
    """Return the ``validate --json`` object (DESIGN section 7).

    Aims are set for all cases; ``is_whole`` tells whether these are all.
    """
    overall = results.overall
    return {
        "cases": [case_object(outcome) for outcome in results.outcomes],
        "mean_absolute_error": None if overall is None else overall.mean_absolute_error,
        "bias": None if overall is None else overall.bias,
        "groups": {row.name: _row_object(row) for row in results.groups},
        "families": {row.name: _row_object(row) for row in results.families},
        "sweeps": [asdict(sweep) | {"regret": _finite(sweep.regret)} for sweep in results.sweeps],
        "fits": asdict(results.fit_table),
        "known_outliers": len(results.known),
        "covers_all_cases": is_whole,
        "aims": [asdict(aim) for aim in aims(results, candidate_s=candidate_s)],
        "intervals": {one.name: asdict(one) for one in results.coverage},
    }


def _finite(value: float) -> float | None:
    """Return a number, None for an infinite one, which JSON cannot hold."""
    return value if math.isfinite(value) else None


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
