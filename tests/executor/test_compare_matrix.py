"""The matrix: steps by the clock, order of strategies, refusals, residuals that widen the range."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from executor.errors import RunError
from executor.matrix import (
    MatrixResult,
    MatrixRow,
    kendall_tau,
    residuals_of,
    row_of,
    run_matrix,
    summarize,
)
from executor.matrix_cases import MatrixCase, matrix_cases
from executor.matrix_table import matrix_document, matrix_text
from executor.matrix_worker import MeasuredCase, MeasuredStep
from planner.machine_residuals import load_residuals, residual_range, save_residuals

CASE = MatrixCase(model="gpt2", global_batch_size=8, sequence_length=64, strategy="dp=2")
ROW = MatrixRow(
    case=CASE, predicted_s=1.0, measured_s=1.25, least_s=0.9, spread=1.1, predicted_bytes=90.0,
    measured_bytes=100.0, predicted_tensor_bytes=49.0, measured_tensor_bytes=50.0,
    predicted_parts_s={"compute": 0.8, "data": 0.2},
    measured_parts_s={"compute": 0.9, "data": 0.3, "idle": 0.1}, foreign_load_cores=0.1,
)  # fmt: skip


def test_a_step_is_the_median_of_the_slowest_ranks():
    steps = tuple(MeasuredStep(wall_s=(wall, 1.0), cpu_s=(0.5, 0.6)) for wall in (1.2, 0.9, 3.0))
    measured = MeasuredCase(steps=steps, peak_bytes=(8.0, 9.0), tensor_bytes=(None, None),
                            parts_s=({"compute": 1.0}, {"compute": 2.0}),
                            foreign_load_cores=0.0)  # fmt: skip
    prediction = dict.fromkeys(("step_time_s", "peak_memory_bytes", "peak_tensor_bytes"), 1.0)
    plan = SimpleNamespace(prediction=prediction)
    row = row_of(CASE, plan=plan, measured=measured)
    assert (row.measured_s, row.least_s, row.measured_bytes) == (1.2, 0.6, 9.0)
    assert row.spread == pytest.approx(3.0 / 1.2)


def test_summary_tells_errors_bias_and_order():
    slower = replace(ROW, case=replace(CASE, strategy="tp=2"), predicted_s=2.0, measured_s=1.0)
    found = summarize([ROW, slower])
    assert found.median_error == pytest.approx((0.2 + 1.0) / 2)
    assert found.bias == pytest.approx((0.8 + 2.0) / 2 - 1.0)
    assert found.taus == {"gpt2": -1.0}
    assert found.disturbed == 0
    assert summarize([replace(ROW, foreign_load_cores=0.5), slower]).disturbed == 1
    assert found.lowest_memory_error == pytest.approx(-0.02)
    assert found.lowest_resident_error == pytest.approx(-0.1)
    assert kendall_tau([(1, 1), (2, 2), (3, 3)]) == 1.0


def test_what_cannot_be_planned_is_told_and_not_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr("executor.matrix._serve", lambda *arguments, **options: None)

    def refuse(case):
        raise RunError("no such plan")

    result = run_matrix([CASE], plan_of=refuse)
    assert result.rows == ()
    assert result.refused == ((CASE, "no such plan"),)
    assert "refused: gpt2 dp=2: no such plan" in matrix_text(result)


def test_tables_show_every_row():
    result = MatrixResult(rows=(ROW,), refused=())
    text = matrix_text(result)
    assert "-20%" in text
    assert "-10%" in text
    document = matrix_document(result, command="paraplan compare --matrix", profile="here")
    assert "800.0 / 900.0" in document
    assert "200.0 / 400.0" in document


def test_cases_are_of_many_models_and_kinds():
    cases = matrix_cases()
    assert len({case.model for case in cases}) >= 6
    for word in ("dp=2", "sharding=parameters", "tp=2", "pp=2", "recompute=full"):
        assert any(word in case.strategy for case in cases), word
    assert len(set(cases)) == len(cases)


def test_residuals_are_kept_per_calibration(tmp_path):
    path = tmp_path / "residuals.json"
    rows = [replace(ROW, measured_s=1.0 + step / 10) for step in range(6)]
    save_residuals(residuals_of(rows, profile="first"), path=path)
    kept = load_residuals(profile="first", path=path)
    assert len(kept) == 6
    assert load_residuals(profile="second", path=path) == ()
    busy = [replace(row, foreign_load_cores=0.5) for row in rows]
    assert residuals_of(busy, profile="first") == ()
    low, high = residual_range(kept)
    assert low < math.log(1.1) < math.log(1.4) < high
    assert residual_range(kept[:4]) is None
    path.write_text("{", encoding="utf-8")
    assert load_residuals(profile="first", path=path) == ()
