"""What ``paraplan validate`` writes: the page, its figures, all rows, the residuals."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.errors import ParaplanError
from planner.validation.document import document
from planner.validation.outcome import Outcome
from planner.validation.residual_file import FILE_NAME, table_to_json
from planner.validation.results import Results, residual_table
from planner.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, ROWS = Path("docs/validation.md"), Path("docs/validation.csv")
RESIDUALS = Path("planner/validation") / FILE_NAME
IMAGES = "images"
_DIGITS = 6
_DPI = 200
"""Resolution of the points of grids, which are too many to be drawn one by one."""
_NOT_IN_CSV = ("source", "family", "quantity", "outlier", "note")
"""Found in the case file."""


class ValidationFileError(ParaplanError):
    """A file of the validation cannot be written here."""


def check_checkout(folder: Path) -> None:
    """Refuse to write documents anywhere but in a checkout."""
    for path in (PAGE.parent, RESIDUALS.parent):
        if not (folder / path).is_dir():
            raise ValidationFileError(
                f"--write-docs: {folder / path} is no folder; run it in the folder of a checkout"
            )


def write_residuals(results: Results, *, folder: Path) -> None:
    """Write the residuals that intervals come from."""
    text = table_to_json(residual_table(results.outcomes))
    write_whole(folder / RESIDUALS, text, error=ValidationFileError)


def write_documents(
    results: Results, *, folder: Path, candidate_s: float | None = None
) -> tuple[Path, ...]:
    """Write the page, its figures and the CSV file; return what was written."""
    from planner.validation.plots import memory_figure, step_time_figure, sweep_figure

    drawn = (
        ("Predicted over published step times", "validation-steps", step_time_figure(results)),
        ("Predicted over published peak memory", "validation-memory", memory_figure(results)),
        ("The largest sweeps, by measured rank", "validation-sweeps", sweep_figure(results)),
    )
    images, written = [], []
    for title, name, figure in drawn:
        if figure is not None:
            path = folder / PAGE.parent / IMAGES / f"{name}.svg"
            write_whole(path, _svg(figure, name), error=ValidationFileError, makes_folders=True)
            images.append((title, f"{IMAGES}/{name}.svg"))
            written.append(path)
    write_csv(results, folder / ROWS)
    page = folder / PAGE
    text = document(results, images=images, candidate_s=candidate_s)
    write_whole(page, text, error=ValidationFileError)
    return (page, folder / ROWS, *written)


def _svg(figure: "Figure", name: str) -> str:
    """Return a figure as SVG text, the same for the same figure."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", dpi=_DPI, facecolor="white", metadata={"Date": None})
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join(lines) + "\n"


def write_csv(results: Results, path: Path) -> None:
    """Write one row per case, rounded so that the same results give the same text."""
    out = io.StringIO()
    rows = [case_object(outcome) for outcome in results.outcomes]
    names = [name for name in rows[0] if name not in _NOT_IN_CSV]
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, out.getvalue(), error=ValidationFileError)


def case_object(outcome: Outcome) -> dict[str, Any]:
    """Return one case as a flat record, as ``--json`` and ``--csv`` show it."""
    case, predicted = outcome.case, outcome.predicted
    record = {
        "group": case.group,
        "id": case.id,
        "family": outcome.group.family,
        "source": outcome.group.source,
        "role": case.role,
        "complete": case.is_complete,
        "quantity": "step_time_s",
        "published": case.step_time_s,
        "predicted": None if predicted is None else predicted.step_time_s,
        "error": outcome.step_error,
        "tolerance": outcome.group.tolerance,
        "passed": not (outcome.failure or outcome.is_known),
        "failure": outcome.failure,
        "known_outlier": outcome.is_known,
        "deviation": outcome.deviation,
        "outlier": case.outlier,
        "strategy": None if predicted is None else predicted.strategy,
        "sweep": case.sweep,
        "published_memory_bytes": case.memory_bytes,
        "predicted_memory_bytes": None if predicted is None else predicted.memory_bytes,
        "memory_kind": case.memory_kind,
        "memory_error": outcome.memory_error,
        "measured_fits": outcome.measured_fits,
        "predicted_fits": None if predicted is None else predicted.fits,
        "note": case.note,
    }
    return {key: _rounded(value) for key, value in record.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
