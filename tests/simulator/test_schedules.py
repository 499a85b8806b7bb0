"""Schedules: golden traces, in-flight laws, the independent checker, text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.closed_form import in_flight_microbatches
from simulator.errors import ScheduleError
from simulator.schedules import (
    SCHEDULES,
    check_schedule,
    from_csv,
    gpipe,
    in_flight,
    one_f_one_b,
    parse_action,
    schedule_actions,
    to_csv,
)
from simulator.zero_bubble import SPLIT_SCHEDULES

SIZES = st.tuples(
    st.sampled_from(sorted(SCHEDULES)), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4)
)


def build(sizes):
    """A schedule of any name with sizes that are legal for it."""
    name, num_ranks, rounds, virtual = sizes
    virtual = {"interleaved": virtual, "zero_bubble": virtual, "zbv": 2}.get(name, 1)
    in_rounds = name in ("interleaved", "zero_bubble")
    num_microbatches = rounds * num_ranks if in_rounds else 3 * rounds - 2
    arguments = {
        "num_ranks": num_ranks,
        "num_microbatches": num_microbatches,
        "virtual_stages": virtual,
    }
    return schedule_actions(name, **arguments), arguments


def text(actions):
    return " ".join(str(action) for action in actions)


def test_golden_gpipe():
    """Huang et al. 2019, figure 2(c), with the backward in the order of the forwards."""
    schedule = schedule_actions("gpipe", num_ranks=2, num_microbatches=3)
    assert [text(row) for row in schedule] == ["0F0 0F1 0F2 0B0 0B1 0B2", "1F0 1F1 1F2 1B0 1B1 1B2"]


def test_golden_one_f_one_b():
    """Narayanan et al. 2021, figure 4 top, the first five of eight microbatches."""
    schedule = schedule_actions("1f1b", num_ranks=4, num_microbatches=5)
    assert [text(row) for row in schedule] == [
        "0F0 0F1 0F2 0F3 0B0 0F4 0B1 0B2 0B3 0B4",
        "1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1B3 1B4",
        "2F0 2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3 2B4",
        "3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4",
    ]


def test_golden_interleaved():
    """Narayanan et al. 2021, figure 4 bottom: first and last device, counted from 0."""
    schedule = schedule_actions("interleaved", num_ranks=4, num_microbatches=8, virtual_stages=2)
    assert text(schedule[0]) == (
        "0F0 0F1 0F2 0F3 4F0 4F1 4F2 4F3 0F4 0F5 "
        "0F6 4B0 0F7 4B1 4F4 4B2 4F5 4B3 4F6 0B0 4F7 0B1 "
        "0B2 0B3 4B4 4B5 4B6 4B7 0B4 0B5 0B6 0B7"
    )
    assert text(schedule[3]) == (
        "3F0 3F1 3F2 3F3 "
        "7F0 7B0 7F1 7B1 7F2 7B2 7F3 7B3 3F4 3B0 3F5 3B1 3F6 3B2 3F7 3B3 "
        "7F4 7B4 7F5 7B5 7F6 7B6 7F7 7B7 "
        "3B4 3B5 3B6 3B7"
    )


@given(SIZES)
def test_every_schedule_passes_the_independent_check(sizes):
    schedule, arguments = build(sizes)
    check_schedule(
        schedule,
        num_microbatches=arguments["num_microbatches"],
        virtual_stages=arguments["virtual_stages"],
        v_shaped=sizes[0] == "zbv",
    )


@given(SIZES.filter(lambda sizes: sizes[0] not in SPLIT_SCHEDULES))
def test_in_flight_follows_the_closed_form(sizes):
    schedule, arguments = build(sizes)
    expected = in_flight_microbatches(
        sizes[0],
        range(arguments["num_ranks"]),
        num_stages=arguments["num_ranks"],
        num_microbatches=arguments["num_microbatches"],
        virtual_stages=arguments["virtual_stages"],
    )
    assert list(in_flight(schedule)) == expected.tolist()


@given(SIZES)
def test_text_and_back(sizes):
    schedule, _ = build(sizes)
    assert from_csv(to_csv(schedule)) == schedule


def test_interleaved_with_one_chunk_is_one_f_one_b():
    sizes = {"num_ranks": 4, "num_microbatches": 8}
    assert schedule_actions("interleaved", **sizes) == schedule_actions("1f1b", **sizes)


@pytest.mark.parametrize(
    ("csv", "fault"),
    [
        ("0F0,0B0\n1B0,1F0", r"1B0 stands before 1F0.*\nrank 0: 0F0 0B0\nrank 1: 1B0<-- 1F0"),
        ("0F0,0F0", "0F0 stands twice"),
        ("0F0", "rank 0 has 1 actions, expected 2"),
        ("1F0,1B0\n0F0,0B0", "1F0 is no stage of rank 0"),
        ("0F1,0B1", "0F1 exceeds the 1 microbatches"),
        ("0F0,0W0,0I0", "0W0 stands before 0I0; weight gradients follow"),
        ("0F0,0I0,0B0", "0B0 stands twice"),
        ("0F0,0I0", "rank 0 has 1.5 actions, expected 2"),
    ],
)
def test_broken_schedules_are_told_with_a_grid(csv, fault):
    with pytest.raises(ScheduleError, match=fault):
        check_schedule(from_csv(csv), num_microbatches=1)


def test_deadlock_is_found():
    """Rank 1 wants microbatch 1 first and sends nothing back, which rank 0 waits for."""
    broken = from_csv("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0")
    with pytest.raises(ScheduleError, match="0B0 waits for 1B0, which never comes"):
        check_schedule(broken, num_microbatches=2)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("pipedream", {}, "'pipedream' is unknown; expected one of gpipe, 1f1b, interleaved"),
        ("1f1b", {"virtual_stages": 2}, "virtual_stages is 2, expected 1; use schedule=interl"),
        ("gpipe", {"num_microbatches": 0}, "0 microbatches, expected at least 1"),
        ("interleaved", {"num_microbatches": 6}, "6 microbatches over 4 .* a multiple"),
        ("zero_bubble", {"num_microbatches": 9}, "9 microbatches over 4 .* 2 equal rounds"),
        ("zbv", {"virtual_stages": 3}, "virtual_stages is 3, expected 2"),
    ],
)
def test_impossible_schedules_are_refused(name, sizes, message):
    arguments = {"num_ranks": 4, "num_microbatches": 8, **sizes}
    with pytest.raises(ScheduleError, match=message):
        schedule_actions(name, **arguments)


@pytest.mark.parametrize("cell", ["F0", "0X1", "0F", "x"])
def test_no_action(cell):
    with pytest.raises(ScheduleError, match="is no action"):
        parse_action(cell)


def test_same_memory_law_for_gpipe_and_one_f_one_b_only_when_short():
    assert in_flight(gpipe(num_ranks=3, num_microbatches=2)) == (2, 2, 2)
    assert in_flight(one_f_one_b(num_ranks=3, num_microbatches=2)) == (2, 2, 1)
