"""The text form of a strategy: read, written, refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import StrategyError
from planner.strategy import (
    STRATEGY_KEYS,
    Strategy,
    check_strategy,
    parse_partial_strategy,
    parse_strategy,
)

SIZES = st.integers(1, 64)


@st.composite
def consistent(draw: st.DrawFn) -> Strategy:
    """Draw a strategy that keeps its own invariants."""
    tp, pp = draw(SIZES), draw(SIZES)
    interleaved = pp > 1 and draw(st.booleans())
    dp, cp = draw(SIZES), draw(SIZES)
    return Strategy(
        data_parallel_size=dp,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        context_parallel_size=cp,
        expert_parallel_size=draw(st.sampled_from([d for d in range(1, 65) if dp * cp % d == 0])),
        microbatch_size=draw(SIZES),
        schedule="interleaved" if interleaved else draw(st.sampled_from(["1f1b", "gpipe"])),
        virtual_stages=draw(st.integers(2, 8)) if interleaved else 1,
        sharding=draw(st.sampled_from(["none", "optimizer", "gradients", "parameters"])),
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        sequence_parallel=tp > 1 and draw(st.booleans()),
        layout=draw(st.sampled_from(["tensor", "mixed"])),
    )


@given(consistent())
def test_the_text_names_the_strategy(strategy: Strategy) -> None:
    again = parse_strategy(str(strategy))
    assert str(again) == str(strategy)
    if strategy.pipeline_parallel_size > 1:
        assert again == strategy
    assert strategy.num_devices == (
        strategy.data_parallel_size
        * strategy.tensor_parallel_size
        * strategy.pipeline_parallel_size
        * strategy.context_parallel_size
    )


@given(st.text(alphabet="dptcei=,123 -x", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        strategy = parse_strategy(text)
    except StrategyError as error:
        message = str(error)
    else:
        message = ""
        assert check_strategy(strategy) is strategy
    assert "\n" not in message


def test_what_is_left_out_is_one_or_off() -> None:
    assert parse_strategy("") == Strategy()
    assert str(Strategy()) == "dp=1,microbatch=1"
    assert parse_strategy(" tp = 2 , dp=4 ,") == Strategy(
        tensor_parallel_size=2, data_parallel_size=4
    )


def test_a_part_fixes_only_its_fields() -> None:
    assert parse_partial_strategy("") == {}
    assert parse_partial_strategy("pp=4,sequence_parallel=off") == {
        "pipeline_parallel_size": 4,
        "sequence_parallel": False,
    }


def test_the_keys_are_the_promised_ones() -> None:
    promised = {
        "dp", "tp", "pp", "cp", "ep", "microbatch", "schedule", "virtual_stages", "sharding",
        "recompute", "sequence_parallel",
    }  # fmt: skip
    assert promised <= set(STRATEGY_KEYS)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy(virtual_stages=2), "only schedule=interleaved"),
        (Strategy(schedule="interleaved", pipeline_parallel_size=2), "virtual_stages=2 or more"),
        (Strategy(schedule="interleaved", virtual_stages=2), "with pp=1"),
        (Strategy(data_parallel_size=4, expert_parallel_size=3), "does not divide dp\\*cp=4"),
        (Strategy(sequence_parallel=True), "with tp=1"),
    ],
)
def test_contradictions(strategy: Strategy, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        check_strategy(strategy)
