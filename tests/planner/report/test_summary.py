"""Reading plans: whatever is absent or malformed is left out, the rest is told."""

from typing import Any

import pytest

from planner.plan import Plan
from planner.report.html import html_report
from planner.report.markdown import markdown_report
from planner.report.summary import summarise
from planner.report.terminal import render_plan
from planner.report.words import strategy_in_words


def every_report(plan: Plan, *, with_page: bool = True) -> list[str]:
    texts = [render_plan(plan, width=90, color=False), markdown_report(plan)]
    return [*texts, html_report(plan, None, cluster=None)] if with_page else texts


PREDICTION_KEYS = (
    "step_time_s", "step_time_interval_s", "tokens_per_s", "samples_per_s", "mfu", "hfu",
    "peak_memory_bytes", "peak_memory_bytes_per_stage", "memory_breakdown_bytes",
    "memory_capacity_bytes", "fits", "breakdown_s", "bubble_fraction", "num_devices",
    "cost_usd_per_hour",
)  # fmt: skip


DRAWN_KEYS = ("step_time_s", "peak_memory_bytes_per_stage", "memory_breakdown_bytes")


@pytest.mark.parametrize("key", PREDICTION_KEYS)
def test_each_absent_key_only_takes_its_own_part_away(full_plan: Plan, key: str) -> None:
    prediction = {name: value for name, value in full_plan.prediction.items() if name != key}
    plan = full_plan.model_copy(update={"prediction": prediction})
    for text in every_report(plan, with_page=key in DRAWN_KEYS):
        assert "gpt3-175b on dgx-a100-80g:128" in text
        assert "None" not in text
        assert "Megatron-style" in text


@pytest.mark.parametrize("junk", [None, "text", float("nan"), float("inf"), [], {}, [None, "x"]])
def test_malformed_values_are_left_out(full_plan: Plan, junk: Any) -> None:
    plan = full_plan.model_copy(
        update={
            "prediction": dict.fromkeys(PREDICTION_KEYS, junk),
            "candidates": ({"strategy": junk, "step_time_s": junk, "fits": junk},),
            "baselines": ({"name": junk, "reason": junk},),
            "explanation": dict.fromkeys(full_plan.explanation, junk),
        }
    )
    for text in every_report(plan):
        assert "gpt3-175b on dgx-a100-80g:128" in text
        assert "nan" not in text
        assert "inf " not in text


@pytest.mark.parametrize("items", [[{}], [{"change": 3}], ["x"], [{"alternatives": 3}]])
def test_malformed_lists_are_left_out(full_plan: Plan, items: Any) -> None:
    told = full_plan.explanation | {"what_if": items, "layers": items, "runner_up": items}
    for text in every_report(full_plan.model_copy(update={"explanation": told})):
        assert "gpt3-175b" in text


def test_the_plan_itself_is_not_its_own_runner_up(full_plan: Plan) -> None:
    own = {"strategy": full_plan.strategy, "step_time_s": 32.1}
    plan = full_plan.model_copy(update={"candidates": (own, *full_plan.candidates)})
    options = summarise(plan).options
    assert [option.strategy for option in options].count(full_plan.strategy) == 1
    assert options[0].is_best


def test_cost_follows_from_price_and_rate(full_plan: Plan) -> None:
    summary = summarise(full_plan)
    seconds = 1e9 / (1536 * 2048 / 32.1)
    assert summary.cost_per_billion_tokens_usd == pytest.approx(2100 / 3600 * seconds)
    assert summary.cost_per_million_samples_usd is None


def test_a_model_without_sequence_is_told_in_samples(full_plan: Plan) -> None:
    work = full_plan.workload.model_copy(update={"sequence_length": 1})
    summary = summarise(full_plan.model_copy(update={"workload": work}))
    assert summary.tokens_per_s is None
    assert summary.cost_per_billion_tokens_usd is None
    assert summary.cost_per_million_samples_usd == pytest.approx(2100 / 3600 * 1e6 * 32.1 / 1536)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dp=2,tp=2,microbatch=1,layout=mixed", "Cut each layer its own way over 2 devices, in 2"),
        ("dp=1,cp=4,microbatch=1", "Cut the sequence over 4."),
        ("dp=8,ep=4,microbatch=1", "Cut the experts over 4, in 8 copies over the batch."),
        ("dp=4,microbatch=1,recompute=full", "Every block is recomputed in the backward pass."),
        ("what is this", "what is this"),
    ],
)
def test_strategies_in_words(text: str, expected: str) -> None:
    assert expected in strategy_in_words(text)


def test_sources_of_the_parts_are_told_best_first(bare_plan: Plan) -> None:
    sources = {"overlap": "assumed", "attention": "measured", "data": "derived"}
    basis = "9 published steps"
    told = summarise(
        bare_plan.model_copy(
            update={"prediction": {"term_sources": sources, "step_time_interval_basis": basis}}
        )
    )
    assert told.term_sources == (
        "measured: attention; derived: gradient and weight exchange; assumed: overlap"
    )
    assert told.interval_basis == basis
    assert summarise(bare_plan).term_sources == ""
