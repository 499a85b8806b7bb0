"""Errors, ranks and confusion tables against hand counts and scipy."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from planner.validation.aims import aims
from planner.validation.results import residual_table, results_of
from planner.validation.summaries import (
    fit_table,
    kendall_tau,
    memory_error,
    misfits,
    summarise,
    summarise_sweeps,
)
from tests.planner.validation.outcomes import GIB, group_of, outcome, setting

RUNS = "all complete training steps, sweep grids excluded"


def test_errors_by_hand() -> None:
    cases = [
        outcome("a", predicted=1.04),
        outcome("b", predicted=0.92),
        outcome("c", predicted=1.3),
        outcome("d", predicted=None),
        outcome("e", published=None, fits=True),
    ]
    found = summarise(cases)
    assert found is not None
    assert found.number == 3
    assert found.mean_absolute_error == pytest.approx((0.04 + 0.08 + 0.30) / 3)
    assert found.bias == pytest.approx((0.04 - 0.08 + 0.30) / 3)
    assert (found.worst, found.worst_name) == (pytest.approx(0.30), "paper:c")
    assert found.within == pytest.approx((1 / 3, 2 / 3, 2 / 3))
    assert summarise([outcome(predicted=None)]) is None


def test_memory_is_a_measure_of_its_own() -> None:
    found = summarise(
        [outcome(memory_bytes=50 * GIB, memory_kind="device", used=0.5)], measure=memory_error
    )
    assert found is not None
    assert found.bias == pytest.approx(40 / 50 - 1)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=12).filter(
        lambda pairs: len({p for p, _ in pairs}) > 1 and len({m for _, m in pairs}) > 1
    )
)
def test_kendall_tau_is_scipys(pairs: list[tuple[int, int]]) -> None:
    predicted, measured = ([float(v) for v in column] for column in zip(*pairs, strict=True))
    expected = kendalltau(predicted, measured).statistic
    assert kendall_tau(predicted, measured) == pytest.approx(expected)


def test_the_regret_is_what_our_pick_costs() -> None:
    cases = [
        outcome("best", published=1.0, predicted=1.2, sweep="s"),
        outcome("pick", published=1.1, predicted=0.9, sweep="s"),
        outcome("slow", published=2.0, predicted=2.5, sweep="s"),
        outcome("alone", sweep="t"),
        outcome("in no sweep"),
    ]
    (sweep,) = summarise_sweeps(cases)
    assert (sweep.sweep, sweep.number, sweep.pick, sweep.best) == ("s", 3, "pick", "best")
    assert sweep.regret == pytest.approx(0.1)
    assert sweep.kendall_tau == pytest.approx(1 / 3)


def test_a_pick_must_fit_and_must_have_run() -> None:
    ran = [outcome("a", published=1.0, predicted=1.0, sweep="s"),
           outcome("b", published=1.5, predicted=1.1, sweep="s")]  # fmt: skip
    too_large = outcome("c", published=0.8, predicted=0.7, used=1.2, sweep="s")
    (sweep,) = summarise_sweeps([*ran, too_large])
    assert (sweep.pick, sweep.best) == ("a", "c")
    failed = outcome("d", published=None, fits=False, predicted=0.5, sweep="s")
    (sweep,) = summarise_sweeps([*ran, failed])
    assert sweep.pick == "d"
    assert math.isinf(sweep.regret)


def test_what_cannot_be_predicted_may_still_be_the_best() -> None:
    ran = [outcome("a", published=1.0, predicted=1.0, sweep="s"),
           outcome("b", published=1.5, predicted=1.1, sweep="s")]  # fmt: skip
    (sweep,) = summarise_sweeps([*ran, outcome("c", published=0.5, predicted=None, sweep="s")])
    assert (sweep.number, sweep.pick, sweep.best) == (2, "a", "c")
    assert sweep.regret == pytest.approx(1.0)
    assert summarise_sweeps([ran[0], outcome("c", predicted=None, sweep="s")]) == ()


def test_the_confusion_table_counts_runs_with_a_step_time_as_fitting() -> None:
    found = fit_table(
        [outcome(), outcome(used=1.1), outcome(published=None, fits=False),
         outcome(published=None, fits=False, used=1.1), outcome(published=None, fits=False, used=2),
         outcome(predicted=None)]
    )  # fmt: skip
    assert (found.true_fits, found.false_overflows) == (1, 1)
    assert (found.false_fits, found.true_overflows) == (1, 2)


def test_wrong_fits_are_told_by_group() -> None:
    found = misfits(
        [outcome(), outcome(used=1.1), outcome(used=1.5),
         outcome(published=None, fits=False, used=0.9, group=group_of("other"))]
    )  # fmt: skip
    assert [(one.group, one.ran, one.number) for one in found] == [
        ("paper", True, 2), ("other", False, 1)
    ]  # fmt: skip
    assert (found[0].least_used, found[0].most_used) == (1.1, 1.5)


def test_aims_are_met_or_not_by_their_numbers() -> None:
    cases = [outcome("a", predicted=1.05), outcome("b", predicted=1.02)]
    sized = {"memory_bytes": 41 * GIB, "memory_kind": "device", "published": None}
    low = outcome("m", used=0.5, **sized)  # type: ignore[arg-type]
    found = {aim.subject: aim for aim in aims(results_of([*cases, low]))}
    steps, memory = found[RUNS], found["peak memory of complete cases"]
    assert (steps.number, steps.is_met) == (2, False)
    assert steps.reached == "mean 3.5 %, bias +3.5 %"
    assert (memory.number, memory.is_met) == (1, False)
    assert memory.reached == "mean 2.4 %, lowest −2.4 %"
    better = aims(results_of([*cases, outcome("c", predicted=0.98)]))
    assert {aim.subject: aim.is_met for aim in better}[RUNS]
    assert "steps on TPUs" not in found


def test_grids_and_tpus_are_training_steps_and_fpgas_are_none() -> None:
    grid, tpu, fpga = group_of("grid"), group_of("t", family="tpu"), group_of("f", family="fpga")
    found = {
        aim.subject: aim.number
        for aim in aims(
            results_of(
                [outcome("a"), outcome("g", group=grid, sweep="s"), outcome("t", group=tpu),
                 outcome("f", group=fpga)]
            )
        )
    }  # fmt: skip
    assert (found[RUNS], found[RUNS.replace("excluded", "included")]) == (2, 3)
    assert found["steps on TPUs"] == 1


def test_rows_of_the_papers_are_told_apart() -> None:
    korthikanti, table_2 = group_of("korthikanti22"), group_of("sc21-table2")
    cases = [
        outcome("k", group=korthikanti, predicted=1.01),
        outcome("ptd", group=table_2, predicted=1.03, is_complete=False),
        outcome("zero3", group=table_2, predicted=0.5, outlier="latency"),
    ]
    found = {aim.subject.partition(" with ")[0]: aim for aim in aims(results_of(cases))}
    both = found["the same and SC'21 table 2, Megatron's rows"]
    assert (both.number, both.reached, both.is_met) == (2, "mean 2.0 %, worst +3.0 %", True)
    zero3 = found["SC'21 table 2, ZeRO-3's rows"]
    assert (zero3.number, zero3.reached, zero3.is_met) == (1, "mean 50.0 %, worst −50.0 %", False)


def test_a_measured_time_per_candidate_has_its_aim() -> None:
    results = results_of([outcome()])
    assert not any("candidate" in aim.subject for aim in aims(results))
    fast, slow = (aims(results, candidate_s=time_s)[-1] for time_s in (0.0002, 0.002))
    assert (fast.reached, fast.clocked, fast.is_met) == ("< 1 ms", "0.20 ms", True)
    assert (slow.reached, slow.clocked, slow.is_met) == ("≥ 1 ms", "2.00 ms", False)


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"predicted": 1.09}, ""),
        ({"predicted": 1.11}, "step time +11.0%, tolerated 10%"),
        ({"predicted": 0.85}, "step time -15.0%, tolerated 10%"),
        ({"predicted": 1.5, "role": "calibrate"}, "step time +50.0%, tolerated 10%"),
        ({"predicted": 1.5, "is_complete": False}, ""),
        ({"predicted": None, "is_complete": False}, "no prediction: it cannot be"),
        ({"published": None, "fits": False, "used": 0.95}, ""),
        ({"published": None, "fits": False, "used": 0.85}, "out of memory, predicted 85%"),
        ({"published": None, "fits": True, "used": 1.05}, ""),
        ({"published": None, "fits": True, "used": 1.2}, "fits, predicted 120%"),
    ],
)  # fmt: skip
def test_what_leaves_its_tolerance(changes: dict[str, object], failure: str) -> None:
    found = outcome(**changes).failure  # type: ignore[arg-type]
    assert found.startswith(failure) if failure else found == ""


@pytest.mark.parametrize(
    ("changes", "is_known", "failure"),
    [
        ({"predicted": 1.5}, True, ""),
        ({"predicted": 0.5, "role": "calibrate"}, True, ""),
        ({"predicted": 1.05}, False, "stale outlier mark"),
        ({"predicted": 1.5, "is_complete": False}, False, "stale outlier mark"),
        ({"predicted": None}, True, ""),
        ({"published": None, "fits": True, "used": 1.2}, True, ""),
        ({"published": None, "fits": True}, False, "stale outlier mark"),
    ],
)  # fmt: skip
def test_a_mark_is_strict(changes: dict[str, object], is_known: bool, failure: str) -> None:
    found = outcome(outlier="the cause", **changes)  # type: ignore[arg-type]
    assert found.is_known is is_known
    assert found.failure.startswith(failure) if failure else found.failure == ""
    assert not outcome(**changes).is_known  # type: ignore[arg-type]


def test_a_mark_excuses_no_defect() -> None:
    broken = replace(outcome(predicted=None, outlier="the cause"), refusal="defect: KeyError: 'x'")
    assert not broken.is_known
    assert broken.failure == "no prediction: defect: KeyError: 'x'"


def test_known_outliers_count_in_every_table() -> None:
    marked = [outcome("a"), outcome("far", predicted=1.5, outlier="the cause")]
    plain = [outcome("a"), outcome("far", predicted=1.5)]
    with_mark, without = results_of(marked), results_of(plain)
    assert [o.case.id for o in with_mark.known] == ["far"]
    assert (with_mark.failures, without.known) == ((), ())
    assert [o.case.id for o in without.failures] == ["far"]
    assert with_mark.overall == without.overall
    assert (with_mark.families, with_mark.groups) == (without.families, without.groups)
    assert [o.case.id for o in with_mark.worst] == [o.case.id for o in without.worst]
    assert residual_table(marked) == residual_table(plain)


def test_memory_is_judged_where_the_group_says_so() -> None:
    sized = {"memory_bytes": 50 * GIB, "memory_kind": "device", "used": 0.5}
    assert outcome(**sized).failure == ""  # type: ignore[arg-type]
    strict = group_of(memory_tolerance=0.05)
    assert outcome(group=strict, **sized).failure == "memory -20.0%, tolerated 5%"  # type: ignore[arg-type]


def test_tables_keep_fitted_and_incomplete_cases_and_grids_apart() -> None:
    grid = group_of("grid")
    found = results_of(
        [
            outcome("a", predicted=1.05),
            outcome("b", predicted=1.5, is_complete=False),
            outcome("c", predicted=1.4, role="calibrate"),
            outcome("d", group=grid, predicted=1.2, sweep="s"),
            outcome("e", group=grid, predicted=1.3, published=1.2, sweep="s"),
            outcome("f", predicted=1.0, at=setting(device_kind="fpga")),
        ]
    )
    assert found.overall is not None
    assert found.overall.number == 2
    assert found.overall.mean_absolute_error == pytest.approx(0.025)
    assert {row.name: row.steps and row.steps.number for row in found.families} == {
        "gpu-transformer": 2, "gpu-transformer, grids": 2
    }  # fmt: skip
    assert [row.steps and row.steps.worst for row in found.incomplete] == [pytest.approx(0.5)]
    assert [row.steps and row.steps.worst for row in found.calibrate] == [pytest.approx(0.4)]
    assert found.worst[0].case.id == "d"
    assert {o.case.id for o in found.failures} == {"c", "d"}
