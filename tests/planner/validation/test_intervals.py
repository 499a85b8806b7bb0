"""Residuals near a setting, their quantiles, and whether intervals hold what they claim."""

import math
import random

import pytest

from planner.validation.coverage import judge_intervals, widening
from planner.validation.outcome import Outcome
from planner.validation.residual_file import (
    ResidualTable,
    shipped_table,
    table_from_json,
    table_to_json,
)
from planner.validation.residuals import (
    MIN_GROUPS,
    MIN_STEPS,
    Residual,
    residuals_of,
    spread_of,
    weighted_quantiles,
)
from planner.validation.results import results_of
from planner.validation.settings import Setting
from tests.planner.validation.outcomes import group_of, outcome, setting

NEAR = setting()


def residuals(number: int, ratio: float, *, at: Setting = NEAR, sources: int = 3) -> list[Residual]:
    return [
        Residual(source=f"{at.software} {n % sources}", setting=at, log_ratio=ratio)
        for n in range(number)
    ]


def test_the_nearest_family_with_enough_steps_is_taken() -> None:
    many = setting(num_devices=512)
    other_stack = setting(software="eager")
    other_device = setting(generation="Hopper", software="eager")
    other_model = setting(model_class="convolutional network")
    far = [
        *residuals(20, 0.5, at=other_model),
        *residuals(20, 0.4, at=other_device),
    ]
    nearer = [*far, *residuals(20, 0.3, at=other_stack)]
    nearest = [*nearer, *residuals(20, 0.2, at=many)]
    here = [*nearest, *residuals(20, 0.1)]
    for known, high, words in (
        (here, 0.1, "transformers on Ampere with megatron-2021, 8 devices"),
        (nearest, 0.2, "transformers on Ampere with megatron-2021, 512 devices"),
        (nearer, 0.3, "transformers on Ampere, 8 devices"),
        (far, 0.4, "transformers on any GPU, 8 devices"),
        (far[:20], 0.5, "any GPU, 8 devices"),
    ):
        spread = spread_of(known, NEAR)
        assert spread is not None
        assert spread.high == pytest.approx(high)
        assert words in spread.basis
        assert "20 published steps" in spread.basis
    assert spread_of(here, setting(device_kind="fpga")) is None


def test_few_steps_or_sources_are_not_enough() -> None:
    wide = residuals(30, 0.4, at=setting(software="eager"))
    for few in (residuals(MIN_STEPS - 1, 0.1), residuals(30, 0.1, sources=MIN_GROUPS - 1)):
        spread = spread_of([*wide, *few], NEAR)
        assert spread is not None
        assert "megatron-2021" not in spread.basis


def test_the_interval_holds_the_prediction_even_where_all_err_to_one_side() -> None:
    spread = spread_of(residuals(20, 0.3), NEAR)
    assert spread is not None
    assert spread.low < 0 < spread.high


def test_quantiles_leave_a_tenth_on_either_side() -> None:
    found = [Residual(source="s", setting=NEAR, log_ratio=n / 100) for n in range(101)]
    assert weighted_quantiles(found) == (pytest.approx(0.10), pytest.approx(0.90))


def test_a_large_source_does_not_drown_the_others() -> None:
    grid = [Residual(source="grid", setting=NEAR, log_ratio=0.0) for _ in range(900)]
    others = [Residual(source=f"s{n}", setting=NEAR, log_ratio=0.2) for n in range(10)]
    assert weighted_quantiles([*grid, *others])[1] == pytest.approx(0.2)


def made_up(rng: random.Random, *, num_sources: int = 40, spread: float = 0.1) -> list[Outcome]:
    """Return sources that each err by something of their own, and their runs by a little more."""
    found = []
    for number in range(num_sources):
        group = group_of(f"g{number}")
        shift = rng.gauss(0.0, spread)
        found += [
            outcome(f"{n}", group=group, published=math.exp(shift + rng.gauss(0.0, 0.02)))
            for n in range(6)
        ]
    return found


def test_a_source_does_not_judge_itself() -> None:
    cases = made_up(random.Random(1), num_sources=6)
    known = residuals_of(cases)
    for judged in judge_intervals(cases, known):
        others = [r for r in known if r.source != judged.outcome.group.source]
        assert judged.spread == spread_of(others, NEAR)


def test_intervals_hold_the_share_they_claim_for_a_new_source() -> None:
    """A known truth: intervals from some sources, judged on as many new ones."""
    rng = random.Random(7)
    inside = total = 0
    for _ in range(20):
        old, new = made_up(rng, num_sources=12), made_up(rng, num_sources=12)
        known = residuals_of(old)
        factor = widening(judge_intervals(old, known))
        spread = spread_of(known, NEAR)
        assert spread is not None
        ratios = [o.log_residual or 0.0 for o in new]
        inside += sum(spread.low * factor <= ratio <= spread.high * factor for ratio in ratios)
        total += len(ratios)
    assert inside / total == pytest.approx(0.8, abs=0.05)


def test_coverage_of_a_whole_validation() -> None:
    found = results_of(made_up(random.Random(3)))
    assert found.coverage[0].name == "all cases"
    assert found.coverage[0].inside == pytest.approx(0.8, abs=0.05)


def test_the_residual_file_keeps_what_it_is_given() -> None:
    known = residuals_of(
        [*made_up(random.Random(5), num_sources=3), outcome(at=setting(num_devices=64))]
    )
    table = ResidualTable(residuals=known, widening=1.25)
    again = table_from_json(table_to_json(table))
    assert again.widening == 1.25
    assert sorted(map(str, again.residuals)) == sorted(map(str, known))
    assert table_to_json(again) == table_to_json(table)


def test_fitted_and_incomplete_cases_leave_no_residual() -> None:
    assert residuals_of([outcome(role="calibrate"), outcome(is_complete=False)]) == ()


def test_residuals_are_shipped() -> None:
    table = shipped_table()
    assert len(table.residuals) >= 120
    assert 0.5 < table.widening < 3
