"""Predicted beside measured, part by part."""

from collections.abc import Sequence
from typing import Any

from executor.errors import RunError
from executor.result import RunResult
from planner.plan import Plan

_PARTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("compute", ("compute",), ("compute",)),
    ("tensor communication", ("tensor",), ("tensor",)),
    ("data communication", ("data",), ("data",)),
    ("context communication", ("context",), ("context",)),
    ("expert communication", ("expert",), ("expert",)),
    ("pipeline, bubble and idle", ("pipeline", "bubble"), ("pipeline", "idle")),
    ("optimizer", ("optimizer",), ("optimizer",)),
)
"""Row, keys of the prediction's breakdown, keys of the measured one. A rank that waits for a peer
cannot tell a transfer from a bubble, so these are compared together."""
_RARE = ("context communication", "expert communication")
"""Rows left out where neither side has them."""
_PARTS_TOLERANCE = 0.1


def compare(plan: Plan, run: RunResult) -> tuple[dict[str, Any], ...]:
    """Set a plan's prediction beside a run of it.

    Parameters
    ----------
    plan : Plan
        The plan with its prediction.
    run : RunResult
        A run of this plan at its own size.

    Returns
    -------
    tuple of dict
        Rows with ``quantity``, ``unit``, ``predicted``, ``measured``, ``ratio`` (predicted over
        measured, None where one is missing or zero) and ``error`` (ratio - 1).

    Raises
    ------
    RunError
        If the run is of another plan or of another size.
    """
    if run.strategy != plan.strategy:
        raise RunError(
            f"the run is of strategy {run.strategy}, the plan of {plan.strategy}; "
            "give the run of this plan"
        )
    if plan.cluster.device_kind == "gpu" and run.device == "cpu":
        raise RunError(
            f"the plan is for {plan.cluster.device}, the run was on this machine's CPU: times do "
            "not compare; plan with --cluster local"
        )
    if run.predicted_step_time_s is None:
        reason = run.notes[0] if run.notes else "the plan has no prediction"
        raise RunError(
            f"the run does not compare with the plan: {reason}; "
            "run the plan at its own size, without --scale-down"
        )
    predicted = plan.prediction
    breakdown = predicted.get("breakdown_s") or {}
    rows = [
        comparison_row("step time", "s", predicted.get("step_time_s"), run.measured_step_time_s)
    ]
    for name, of_plan, of_run in _PARTS:
        expected = sum(breakdown.get(key, 0.0) for key in of_plan) if breakdown else None
        spent = sum(run.breakdown_s.get(key, 0.0) for key in of_run)
        if not expected and not spent and name in _RARE:
            continue
        rows.append(comparison_row(name, "s", expected, spent))
    peak = predicted.get("peak_memory_bytes")
    rows.append(comparison_row("peak memory", "B", peak, run.peak_memory_bytes))
    return tuple(rows)


def comparison_notes(plan: Plan, run: RunResult) -> list[str]:
    """Return what to say beside the rows: notes of the run, the range, parts that do not add up."""
    notes = [f"note: {note}" for note in run.notes]
    spent_s, step_s = sum(run.breakdown_s.values()), run.measured_step_time_s
    low_s, high_s = plan.prediction.get("step_time_interval_s") or (step_s, step_s)
    if not low_s <= step_s <= high_s:
        notes.append(
            f"note: the measured step is outside the predicted range, {low_s:.4f} to {high_s:.4f} s"
        )
    if not spent_s or abs(spent_s - step_s) <= _PARTS_TOLERANCE * step_s:
        return notes
    return [
        *notes,
        f"note: measured parts add up to {spent_s:.4f} s: they are of one instrumented step, the "
        "step time is the median of the others",
    ]


def comparison_row(
    quantity: str, unit: str, predicted: float | None, measured: float
) -> dict[str, Any]:
    """Return one row of a comparison; amounts are in ``unit``."""
    ratio = predicted / measured if predicted is not None and measured > 0 else None
    return {
        "quantity": quantity, "unit": unit, "predicted": predicted, "measured": measured,
        "ratio": ratio, "error": None if ratio is None else ratio - 1.0,
    }  # fmt: skip


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as aligned text.

    Examples
    --------
    >>> rows = [
    ...     comparison_row("step time", "s", 0.5, 0.4), comparison_row("optimizer", "s", None, 0.1)
    ... ]
    >>> print(comparison_table(rows))
    quantity   predicted  measured  ratio
    step time   0.5000 s  0.4000 s   1.25
    optimizer          -  0.1000 s      -
    """
    texts = [("quantity", "predicted", "measured", "ratio")]
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        texts.append((
            row["quantity"], _amount(row["predicted"], row["unit"]),
            _amount(row["measured"], row["unit"]), ratio,
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in texts) for column in range(4)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(
            cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in texts
    )  # fmt: skip


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "B":
        return f"{value / 1e6:.1f} MB"
    if unit == "tokens/s":
        return f"{value:,.0f} tokens/s"
    return f"{value:.4f} s"
