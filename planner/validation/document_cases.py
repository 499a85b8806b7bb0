"""The part of the validation page that shows every case."""

import math
from collections.abc import Iterator, Sequence

from planner.validation.markdown import percent, signed, table
from planner.validation.outcome import Outcome
from planner.validation.results import Results
from planner.validation.summaries import step_error, summarise

GIB = 2.0**30


def all_cases(results: Results) -> Iterator[str]:
    """Yield a section per group; grids are told by sweep, their runs are in the CSV file."""
    yield (
        "## Every case\n\nIn brackets: *calibrate* for a case that profiles may be fitted on, "
        "*incomplete* where an input is not stated. All rows, grids included, are in "
        "[validation.csv](validation.csv).\n"
    )
    for name in dict.fromkeys(outcome.group.name for outcome in results.outcomes):
        members = [o for o in results.outcomes if o.group.name == name]
        group = members[0].group
        yield f"### {name}\n"
        yield f"{group.source}. Tolerance {group.tolerance:.0%}: {group.why}\n"
        if name in results.grids:
            yield _sweep_table(results, name)
            continue
        timed = [o for o in members if o.case.step_time_s is not None]
        sized = [o for o in members if o.case.memory_bytes is not None]
        tried = [o for o in members if o.case.fits is not None]
        if timed:
            yield _step_table(timed)
        if sized:
            yield _memory_table(sized)
        if tried:
            yield _fit_table(tried)


def _label(outcome: Outcome) -> str:
    case = outcome.case
    marks = ["calibrate"] * (case.role == "calibrate") + ["incomplete"] * (not case.is_complete)
    return f"{case.id} [{', '.join(marks)}]" if marks else case.id


def _remark(outcome: Outcome) -> str:
    chosen = ""
    if outcome.case.free and outcome.predicted is not None:
        chosen = f"chosen {', '.join(outcome.case.free)}: {outcome.predicted.strategy}"
    known = f"known outlier: {outcome.case.outlier}" if outcome.is_known else ""
    parts = (outcome.refusal, known, outcome.case.note, chosen)
    return "; ".join(part for part in parts if part)


def _step_table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        predicted = outcome.predicted
        error = outcome.step_error
        rows.append(
            (
                _label(outcome),
                f"{outcome.case.step_time_s:.4g}",
                "" if predicted is None else f"{predicted.step_time_s:.4g}",
                "" if error is None else f"{1.0 + error:.3f}",
                "" if error is None else signed(error),
                _remark(outcome),
            )
        )
    return table(("case", "published [s]", "predicted [s]", "ratio", "error", "remark"), rows)


def _memory_table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        predicted, error = outcome.predicted, outcome.memory_error
        rows.append(
            (
                _label(outcome),
                f"{(outcome.case.memory_bytes or 0.0) / GIB:.4g}",
                "" if predicted is None else f"{predicted.memory_bytes / GIB:.4g}",
                "" if error is None else f"{1.0 + error:.3f}",
                "" if error is None else signed(error),
                outcome.case.memory_kind or "",
            )
        )
    return table(
        ("case", "published [GiB]", "predicted [GiB]", "ratio", "error", "what is counted"), rows
    )


def _fit_table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        predicted = outcome.predicted
        used = "" if predicted is None else f"{predicted.peak_bytes / predicted.capacity_bytes:.0%}"
        says = "" if predicted is None else _fits(fits=predicted.fits)
        rows.append((_label(outcome), _fits(fits=outcome.measured_fits), says, used))
    return table(("case", "published", "predicted", "predicted peak of device memory"), rows)


def _fits(*, fits: bool) -> str:
    return "fits" if fits else "out of memory"


def _sweep_table(results: Results, group: str) -> str:
    rows = []
    for sweep in (found for found in results.sweeps if found.group == group):
        members = [
            o
            for o in results.outcomes
            if o.is_headline and o.group.name == group and o.case.sweep == sweep.sweep
        ]
        errors = summarise(members, measure=step_error)
        regret = percent(sweep.regret) if math.isfinite(sweep.regret) else "out of memory"
        rows.append(
            (
                sweep.sweep,
                f"{sweep.number}",
                "" if errors is None else percent(errors.mean_absolute_error),
                "" if errors is None else signed(errors.bias),
                "" if sweep.kendall_tau is None else f"{sweep.kendall_tau:.2f}",
                regret,
                sweep.pick,
                sweep.best if sweep.best != sweep.pick else "the same",
            )
        )
    return table(
        ("sweep", "runs", "mean error", "bias", "τ", "regret", "we would pick", "measured best"),
        rows,
    )
