"""The comparison matrix as text: for the terminal and for docs/measured-here.md."""

from collections.abc import Sequence
from datetime import date

from executor.calibration_data import NOISY_CORES
from executor.matrix import MatrixResult, MatrixRow, summarize

_HEAD = ("model", "strategy", "predicted", "CPU time", "measured", "error", "p90/p50",
         "tensors predicted", "measured", "error", "process predicted", "measured", "error",
         "load")  # fmt: skip
_WORDS = 2
"""Columns of words [1]."""
_PARTS = (
    ("compute", ("compute",), ("compute",)),
    ("communication", ("tensor", "data", "pipeline", "bubble"),
     ("tensor", "data", "pipeline", "idle")),
    ("optimizer", ("optimizer",), ("optimizer",)),
)  # fmt: skip


def matrix_text(result: MatrixResult) -> str:
    """Return the table, aligned, and what it comes to."""
    lines = [_HEAD, *(_cells(row) for row in result.rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(_HEAD))]
    table = [
        "  ".join(cell.ljust(width) if place < _WORDS else cell.rjust(width)
                  for place, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    return "\n".join([*table, "", *summary_lines(result)])


def summary_lines(result: MatrixResult) -> list[str]:
    """Return the figures that the table comes to, one a line."""
    if not result.rows:
        return ["no case ran"] + [f"refused: {_named(case)}: {why}" for case, why in result.refused]
    found = summarize(result.rows)
    calm = [row for row in result.rows if row.foreign_load_cores <= NOISY_CORES]
    taus = ", ".join(f"{model} {tau:.2f}" for model, tau in found.taus.items())
    return [
        f"step time: median error {found.median_error:.1%}, bias {found.bias:+.1%} "
        f"over {len(result.rows)} cases",
        *([_calm_line(calm)] if calm and found.disturbed else []),
        f"order of strategies: Kendall's tau {found.median_tau:.2f} (median over models: {taus})",
        _memory_line(
            "peak memory, live tensors", found.median_memory_error, found.lowest_memory_error
        ),
        _memory_line(
            "peak memory, resident set of the process",
            found.median_resident_error,
            found.lowest_resident_error,
        ),
        f"other programs used {found.foreign_load_cores:.2f} cores meanwhile (median), more than "
        f"{NOISY_CORES} beside {found.disturbed} cases, whose steps are then too long",
        *(f"refused: {_named(case)}: {why}" for case, why in result.refused),
    ]


def _calm_line(calm: Sequence[MatrixRow]) -> str:
    found = summarize(calm)
    return (
        f"beside no other program: median error {found.median_error:.1%}, bias {found.bias:+.1%} "
        f"over {len(calm)} cases"
    )


def _memory_line(what: str, median: float | None, lowest: float | None) -> str:
    if median is None or lowest is None:
        return f"{what}: this build of torch does not tell"
    return f"{what}: median error {median:.1%}, lowest {lowest:+.1%}"


def matrix_document(result: MatrixResult, *, command: str, profile: str) -> str:
    """Return docs/measured-here.md."""
    lines = [
        "# Measured here", "",
        f"Written by `{command}` on {date.today()}; do not edit. Profile: {profile}.", "",
        "Predicted from kernels and messages alone (`paraplan calibrate`); no step took part in "
        "the fit. `measured` is the median step of the slowest rank by the clock, `CPU time` that "
        "of the busiest rank's main thread, which no step falls below.", "",
        *(f"- {line}" for line in summary_lines(result)), "",
        "| " + " | ".join(_HEAD) + " |", "|---|---|" + "---:|" * (len(_HEAD) - 2),
        *("| " + " | ".join(_cells(row)) + " |" for row in result.rows), "",
        "Parts of a step in ms, predicted / measured in one recorded step:", "",
        "| model | strategy | " + " | ".join(name for name, _, _ in _PARTS) + " |",
        "|---|---|" + "---:|" * len(_PARTS),
        *("| " + " | ".join((row.case.model, row.case.strategy, *_part_cells(row))) + " |"
          for row in result.rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cells(row: MatrixRow) -> tuple[str, ...]:
    tensors, error = row.measured_tensor_bytes, row.tensor_error
    return (
        row.case.model, row.case.strategy, _ms(row.predicted_s), _ms(row.least_s),
        _ms(row.measured_s), f"{row.predicted_s / row.measured_s - 1.0:+.0%}", f"{row.spread:.2f}",
        _mb(row.predicted_tensor_bytes), "-" if tensors is None else _mb(tensors),
        "-" if error is None else f"{error:+.1%}", _mb(row.predicted_bytes),
        _mb(row.measured_bytes), f"{row.resident_error:+.0%}",
        f"{row.foreign_load_cores:.1f}",
    )  # fmt: skip


def _part_cells(row: MatrixRow) -> Sequence[str]:
    return [
        f"{1e3 * sum(row.predicted_parts_s.get(key, 0.0) for key in of_plan):.1f} / "
        f"{1e3 * sum(row.measured_parts_s.get(key, 0.0) for key in of_run):.1f}"
        for _, of_plan, of_run in _PARTS
    ]


def _named(case: object) -> str:
    return f"{getattr(case, 'model', '')} {getattr(case, 'strategy', '')}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
