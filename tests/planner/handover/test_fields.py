"""Every field of a strategy is written or refused, by every trainer."""

from dataclasses import fields, replace
from typing import Any, get_args

import pytest

from planner.handover import TRAINERS, HandoverError, hand_over
from planner.handover.job import UNDERSTOOD, check_understood
from planner.plan import Plan
from planner.strategy import Recompute, Schedule, Strategy, parse_strategy
from tests.planner.handover.plans import LLAMA, plan_of

ONE = "dp=2,microbatch=4,sharding=parameters"
PIPE = "dp=2,pp=4,microbatch=1,sharding=optimizer"
SPLIT = "dp=2,tp=2,microbatch=4,sharding=parameters,sequence_parallel=on"
EXPERTS = "dp=2,microbatch=1,sharding=parameters,recompute=full"
"""Of a model with experts."""
CHANGES = {
    "data_parallel_size": (ONE, "dp=4,microbatch=4,sharding=parameters"),
    "tensor_parallel_size": (ONE, SPLIT),
    "pipeline_parallel_size": (ONE, "dp=2,pp=2,microbatch=4,sharding=parameters"),
    "context_parallel_size": (ONE, f"{ONE},cp=2"),
    "expert_parallel_size": (EXPERTS, f"{EXPERTS},ep=2"),
    "microbatch_size": (ONE, "dp=2,microbatch=2,sharding=parameters"),
    "schedule": (f"{PIPE},schedule=1f1b", f"{PIPE},schedule=gpipe"),
    "virtual_stages": (
        f"{PIPE},schedule=interleaved,virtual_stages=2",
        f"{PIPE},schedule=interleaved,virtual_stages=4",
    ),
    "sharding": (ONE, "dp=2,microbatch=4"),
    "sharding_replicas": (
        "dp=4,microbatch=4,sharding=parameters",
        "dp=4,microbatch=4,sharding=parameters,replicas=2",
    ),
    "recompute": (ONE, f"{ONE},recompute=full"),
    "sequence_parallel": (SPLIT, "dp=2,tp=2,microbatch=4,sharding=parameters"),
    "layout": (SPLIT, "dp=2,tp=2,microbatch=4,sharding=parameters,layout=mixed"),
}
"""Field -> two strategies that differ in it."""


NOT_THEIRS = {"schedule", "virtual_stages", "sequence_parallel", "layout"}
"""Fields that mean something under tp or pp only, which these two refuse."""


def answer(strategy: str, trainer: str) -> str:
    """Return the settings without comments, with what the file cannot hold, or the refusal."""
    model = "qwen3-30b-a3b" if strategy.startswith(EXPERTS) else LLAMA
    return answer_of(plan_of(strategy, model), trainer)


def answer_of(plan: Plan, trainer: str) -> str:
    try:
        handed = hand_over(plan, trainer=trainer)
    except HandoverError as error:
        return f"refused: {error}"
    lines = [line for line in handed.text.splitlines() if not line.startswith("#")]
    return "\n".join([*lines, *handed.notes])


def test_the_walk_knows_all_understood_fields() -> None:
    assert set(CHANGES) == UNDERSTOOD
    assert {field.name for field in fields(Strategy)} >= UNDERSTOOD


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_changes_the_settings_or_is_refused(field: str, trainer: str) -> None:
    before, after = (answer(strategy, trainer) for strategy in CHANGES[field])
    if before.startswith("refused"):
        assert trainer in ("deepspeed", "accelerate")
        assert field in NOT_THEIRS
        assert after.startswith("refused")
    else:
        assert before != after


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("key", "base", "words"),
    [
        ("recompute", ONE, get_args(Recompute)),
        ("schedule", "dp=2,pp=4,microbatch=1", get_args(Schedule)),
    ],
)
def test_every_word_is_told_apart_or_refused(
    key: str, base: str, words: tuple[str, ...], trainer: str
) -> None:
    """Words are taken from the strategy, so that a new one cannot be dropped in silence."""
    chunks = {"interleaved": ",virtual_stages=2"}
    plan = plan_of(base)
    given = []
    for word in words:
        text = f"{base},{key}={word}{chunks.get(word, '')}"
        changed = plan.model_copy(update={"strategy": str(parse_strategy(text))})
        found = answer_of(changed, trainer)
        if not found.startswith("refused"):
            given.append(found)
    assert len(given) == len(set(given))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_shardings_are_told_apart(trainer: str) -> None:
    strategies = [f"dp=2,microbatch=32,sharding={kind}" for kind in ("none", "optimizer")]
    strategies += [f"dp=2,microbatch=4,sharding={kind}" for kind in ("gradients", "parameters")]
    answers = {answer(strategy, trainer) for strategy in strategies}
    assert len(answers) == len(strategies)


def other_value(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return "another" if isinstance(value, str) else (1,)


def test_a_field_that_hand_over_does_not_know_is_refused() -> None:
    default = Strategy()
    unknown = [field.name for field in fields(Strategy) if field.name not in UNDERSTOOD]
    for name in unknown:
        changed = replace(default, **{name: other_value(getattr(default, name))})
        with pytest.raises(HandoverError, match=name):
            check_understood(changed, trainer="any")
    with pytest.raises(HandoverError, match="schedule"):
        check_understood(
            replace(default, schedule="gpipe"), trainer="any", words=UNDERSTOOD - {"schedule"}
        )
