"""Predicted beside measured for a matrix of models and strategies on this machine."""

import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import combinations
from pathlib import Path

from executor.calibration_data import NOISY_CORES
from executor.launch import Progress, launch
from executor.matrix_cases import MatrixCase
from executor.matrix_server import FAILURE_FILE
from executor.matrix_worker import MEASURED_FILE, MeasuredCase, measured_from_json
from executor.run import settings_of_run
from executor.settings import SETTINGS_FILE, settings_to_json
from hardware_profiles.errors import ParaplanError
from planner.machine_residuals import MachineResidual
from planner.plan import Plan

PlanMaker = Callable[[MatrixCase], Plan]
STEPS = 24
TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixRow:
    """One case, predicted and measured."""

    case: MatrixCase
    predicted_s: float
    measured_s: float
    """Median step of the slowest rank, by the clock [s]."""
    least_s: float
    """CPU time of the busiest rank's main thread, which no step can fall below [s]."""
    spread: float
    """90th percentile of the steps over their median [1]."""
    predicted_bytes: float
    """All of the memory on the fullest rank, libraries and the allocator's slack included [B]."""
    measured_bytes: float
    """Growth of the resident set on the fullest rank [B]."""
    predicted_tensor_bytes: float
    measured_tensor_bytes: float | None
    """Peak of live tensors on the fullest rank; None where torch does not tell [B]."""
    predicted_parts_s: dict[str, float]
    measured_parts_s: dict[str, float]
    """Parts of one recorded step by the clock, mean over ranks [s]."""
    foreign_load_cores: float

    @property
    def log_ratio(self) -> float:
        """Logarithm of measured over predicted step time [1]."""
        return math.log(self.measured_s / self.predicted_s)

    @property
    def resident_error(self) -> float:
        """Predicted memory over the resident set's growth, less 1 [1]."""
        return self.predicted_bytes / self.measured_bytes - 1.0

    @property
    def tensor_error(self) -> float | None:
        """Predicted over measured peak of live tensors, less 1 [1]."""
        measured = self.measured_tensor_bytes
        return None if measured is None else self.predicted_tensor_bytes / measured - 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixResult:
    """All rows, and the cases that could not run with their reasons."""

    rows: tuple[MatrixRow, ...]
    refused: tuple[tuple[MatrixCase, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixSummary:
    """How good the predictions of a matrix were."""

    median_error: float
    """Median of the absolute relative errors of step times [1]."""
    bias: float
    """Median of predicted over measured step time, less 1 [1]."""
    taus: dict[str, float]
    """Model -> Kendall's tau between predicted and measured order of its strategies [1]."""
    median_tau: float
    median_memory_error: float | None
    """Of live tensors at their peak; None where torch does not tell [1]."""
    lowest_memory_error: float | None
    """Most that their peak was predicted too low [1]."""
    median_resident_error: float
    lowest_resident_error: float
    foreign_load_cores: float
    """Median over the cases [1]."""
    disturbed: int
    """Cases beside which other programs ran: their steps are too long [1]."""


def run_matrix(
    cases: Sequence[MatrixCase],
    *,
    plan_of: PlanMaker,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> MatrixResult:
    """Plan and measure every case; what cannot be planned or run is told, not dropped.

    Parameters
    ----------
    cases : sequence of MatrixCase
        What to compare.
    plan_of : callable
        Makes the plan of a case.
    steps : int
        Timed steps per case [1].
    progress : callable, optional
        Told ``(what, done, total)`` before each case.
    """
    planned: list[tuple[MatrixCase, Plan, Path]] = []
    rows: list[MatrixRow] = []
    refused: list[tuple[MatrixCase, str]] = []
    with tempfile.TemporaryDirectory(prefix="paraplan-matrix-") as folder:
        for number, case in enumerate(cases):
            if progress is not None:
                progress(f"planning {case.model}", number, 2 * len(cases))
            run_dir = Path(folder) / f"case-{number:03d}"
            try:
                plan = plan_of(case)
                _prepare(plan, run_dir, steps=steps)
                planned.append((case, plan, run_dir))
            except ParaplanError as error:
                refused.append((case, str(error)))
                shutil.rmtree(run_dir, ignore_errors=True)
        _serve(Path(folder), progress, skipped=len(cases))
        for case, plan, run_dir in planned:
            found = run_dir / MEASURED_FILE
            if found.exists():
                measured = measured_from_json(found.read_text(encoding="utf-8"))
                rows.append(row_of(case, plan=plan, measured=measured))
            else:
                refused.append((case, _failure(run_dir)))
    return MatrixResult(rows=tuple(rows), refused=tuple(refused))


def _prepare(plan: Plan, run_dir: Path, *, steps: int) -> None:
    """Write what the ranks of a plan read."""
    run_dir.mkdir()
    settings = settings_of_run(
        plan, run_dir=run_dir, world=None, scale_down=1, steps=steps, num_processes=None,
        timeout_s=TIMEOUT_S, learning_rate=1e-3, seed=0, check=False,
    )  # fmt: skip
    settings = replace(settings, threads_per_process=1)  # as the profile's devices
    (run_dir / SETTINGS_FILE).write_text(settings_to_json(settings), encoding="utf-8")


def _serve(folder: Path, progress: Progress | None, *, skipped: int) -> None:
    """Run all prepared cases."""

    def told(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(what, skipped + done * skipped // max(1, total), 2 * skipped)

    launch("executor.matrix_server:serve_cases", folder, num_processes=1, threads_per_process=1,
           progress=told)  # fmt: skip


def _failure(run_dir: Path) -> str:
    path = run_dir / FAILURE_FILE
    return path.read_text(encoding="utf-8") if path.exists() else "a rank ended without a word"


def row_of(case: MatrixCase, *, plan: Plan, measured: MeasuredCase) -> MatrixRow:
    """Set a plan's prediction beside what was measured."""
    keys = sorted({key for parts in measured.parts_s for key in parts})
    times = [max(step.wall_s) for step in measured.steps]
    return MatrixRow(
        case=case,
        predicted_s=float(plan.prediction["step_time_s"]),
        measured_s=statistics.median(times),
        least_s=min(max(step.cpu_s) for step in measured.steps),
        spread=_percentile_90(times) / statistics.median(times),
        predicted_bytes=float(plan.prediction["peak_memory_bytes"]),
        measured_bytes=max(measured.peak_bytes),
        predicted_tensor_bytes=float(plan.prediction["peak_tensor_bytes"]),
        measured_tensor_bytes=_largest(measured.tensor_bytes),
        predicted_parts_s=dict(plan.prediction.get("breakdown_s") or {}),
        measured_parts_s={
            key: statistics.fmean(parts.get(key, 0.0) for parts in measured.parts_s) for key in keys
        },
        foreign_load_cores=measured.foreign_load_cores,
    )


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _percentile_90(times: Sequence[float]) -> float:
    """Return the time that one step in ten exceeds [s]."""
    return sorted(times)[len(times) * 9 // 10]


def summarize(rows: Sequence[MatrixRow]) -> MatrixSummary:
    """Return errors of step time and memory, and how well strategies are ranked."""
    ratios = [row.predicted_s / row.measured_s for row in rows]
    resident = [row.resident_error for row in rows]
    memory = [row.tensor_error for row in rows if row.tensor_error is not None]
    taus = {}
    for model in dict.fromkeys(row.case.model for row in rows):
        own = [row for row in rows if row.case.model == model]
        if len(own) > 1:
            taus[model] = kendall_tau([(row.predicted_s, row.measured_s) for row in own])
    return MatrixSummary(
        median_error=statistics.median(abs(ratio - 1.0) for ratio in ratios),
        bias=statistics.median(ratios) - 1.0,
        taus=taus,
        median_tau=statistics.median(taus.values()) if taus else 1.0,
        median_memory_error=statistics.median(map(abs, memory)) if memory else None,
        lowest_memory_error=min(memory, default=None),
        median_resident_error=statistics.median(map(abs, resident)),
        lowest_resident_error=min(resident),
        foreign_load_cores=statistics.median(row.foreign_load_cores for row in rows),
        disturbed=sum(row.foreign_load_cores > NOISY_CORES for row in rows),
    )


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the share of pairs in the same order less that in the other [1].

    Examples
    --------
    >>> kendall_tau([(1, 10), (2, 20), (3, 15)])
    0.3333333333333333
    """
    signs = [
        math.copysign(1.0, (a - c) * (b - d)) if (a - c) * (b - d) else 0.0
        for (a, b), (c, d) in combinations(pairs, 2)
    ]
    return statistics.fmean(signs)


def residuals_of(rows: Sequence[MatrixRow], *, profile: str) -> tuple[MachineResidual, ...]:
    """Return what later predictions for this machine are told with: undisturbed steps."""
    return tuple(
        MachineResidual(model=row.case.model, strategy=row.case.strategy, log_ratio=row.log_ratio,
                        date=str(date.today()), profile=profile)
        for row in rows
        if row.foreign_load_cores <= NOISY_CORES
    )  # fmt: skip
