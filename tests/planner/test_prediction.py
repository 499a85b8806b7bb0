"""Headline numbers and their range, against hand arithmetic."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.provenance import Provenance
from paraplan.planning import rank_strategy
from planner import interval
from planner.prediction import fitted_breakdown, prediction
from planner.step_time import BREAKDOWN_TERMS
from planner.term_sources import TRUST, worst_kind
from planner.validation.residual_file import shipped_table
from tests.planner.problems import problem_of


def predicted(strategy: str, **options: Any) -> dict[str, Any]:
    problem = problem_of(**options)
    _, ranked = rank_strategy(problem, strategy)
    return prediction(problem, ranked.evaluation, step_time_s=ranked.step_time_s)


def test_gpt2_flops_are_six_per_parameter_and_token() -> None:
    """6 N per token and attention, N without the positions (arXiv:2001.08361, section 2.1)."""
    found = predicted("dp=8")
    matrices = 124_439_808 - 1024 * 768  # the tied embedding multiplies once, as the head
    tokens = 32 * 128
    attention = 12 * 12 * 768 * 128 * tokens  # layers x width x keys, forward and backward
    assert found["model_flops_per_step"] == pytest.approx(
        6 * matrices * tokens + attention, rel=0.02
    )


def test_rates_follow_from_the_step() -> None:
    found = predicted("dp=2,tp=2,pp=2,microbatch=4")
    step = found["step_time_s"]
    assert found["samples_per_s"] == pytest.approx(32 / step)
    assert found["tokens_per_s"] == pytest.approx(32 * 128 / step)
    assert found["model_flops_per_s_per_device"] == pytest.approx(
        found["model_flops_per_step"] / step / 8
    )
    assert found["bubble_fraction"] == pytest.approx(found["breakdown_s"]["bubble"] / step)
    assert found["cost_usd_per_step"] == pytest.approx(found["cost_usd_per_hour"] * step / 3600)
    assert 0 < found["mfu"] <= found["hfu"] < 1


def test_inference_is_a_third_of_training() -> None:
    train, infer = predicted("dp=8"), predicted("dp=8", mode="infer")
    assert train["model_flops_per_step"] == pytest.approx(
        3 * infer["model_flops_per_step"], rel=0.02
    )
    assert infer["memory_breakdown_bytes"]["optimizer"] == 0
    assert infer["memory_breakdown_bytes"]["gradients"] == 0
    assert infer["breakdown_s"]["optimizer"] == 0
    assert infer["step_time_s"] < train["step_time_s"]


def test_the_largest_rank_counts() -> None:
    found = predicted("pp=4,microbatch=4")
    assert len(found["peak_memory_bytes_per_stage"]) == 4
    assert found["peak_memory_bytes"] == max(found["peak_memory_bytes_per_stage"])
    assert found["fits"] == (found["peak_memory_bytes"] <= found["memory_capacity_bytes"])


def test_what_does_not_fit_says_so() -> None:
    found = predicted("dp=8", cluster="dgx-a100-80g:1?memory=1GB")
    assert found["fits"] is False
    assert found["memory_capacity_bytes"] == pytest.approx(1e9)


@given(
    parts=st.lists(st.floats(0, 10), min_size=len(BREAKDOWN_TERMS), max_size=len(BREAKDOWN_TERMS)),
    factor=st.floats(0.1, 3.0),
)
def test_fitted_parts_add_up(parts: list[float], factor: float) -> None:
    before = dict(zip(BREAKDOWN_TERMS, parts, strict=True))
    step = sum(parts) * factor
    after = fitted_breakdown(before, step_time_s=step)
    assert sum(after.values()) == pytest.approx(step, rel=1e-8, abs=1e-12)
    assert min(after.values()) >= 0
    if factor >= 1:
        assert {k: v for k, v in after.items() if k != "bubble"} == {
            k: v for k, v in before.items() if k != "bubble"
        }


def test_the_range_holds_the_prediction() -> None:
    for strategy in ("dp=1", "dp=8", "dp=2,tp=4"):
        found = predicted(strategy)
        low, high = found["step_time_interval_s"]
        step = found["step_time_s"]
        assert 0 < low < step < high
        assert found["step_time_interval_basis"]


def test_without_published_steps_the_range_is_a_factor_of_two_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = shipped_table()
    gpus = tuple(one for one in known.residuals if one.setting.device_kind == "gpu")
    monkeypatch.setattr(interval, "shipped_table", lambda: replace(known, residuals=gpus))
    found = predicted("dp=1", model="mlp", cluster="alveo-u250", global_batch=8)
    low, high = found["step_time_interval_s"]
    assert (low, high) == pytest.approx((found["step_time_s"] / 2, found["step_time_s"] * 2))
    assert "no published step on FPGA devices" in found["step_time_interval_basis"]


def test_the_report_says_where_the_parts_come_from() -> None:
    found = predicted("dp=2,tp=4")
    assert set(found["term_sources"]) >= {"matrix products", "attention", "tensor", "overlap"}
    assert set(found["term_sources"].values()) <= set(TRUST)
    assert "overlap" not in predicted("dp=1")["term_sources"]


def test_the_weakest_source_counts() -> None:
    sources = {
        "matmul.tile_m": Provenance(source="a", kind="measured"),
        "matmul.half_k": Provenance(source="b", kind="assumed"),
        "other": Provenance(source="c", kind="datasheet"),
    }
    assert worst_kind(sources, ("matmul.",)) == "assumed"
    assert worst_kind(sources, ("matmul.tile",)) == "measured"
    assert worst_kind(sources, ("nothing",)) == "assumed"
