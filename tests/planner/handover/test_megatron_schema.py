"""All that is written for Megatron-LM is in its declared arguments and keeps its rules."""

from pathlib import Path
from typing import Any

import pytest

from planner.handover import hand_over
from planner.strategy import parse_strategy
from tests.planner.handover.megatron_schema import check, parse
from tests.planner.handover.plans import plan_of, with_changes
from tests.planner.handover.reading import read_shell

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("dp=8,microbatch=4", "llama3-8b", {}),
    ("dp=8,cp=2,microbatch=4,sharding=parameters,recompute=full", "llama3-8b", {}),
    ("dp=8,microbatch=4,sharding=gradients,recompute=selective", "llama3-8b", {}),
    ("dp=8,microbatch=4,sharding=optimizer,replicas=2", "llama3-8b", {}),
    ("dp=8,microbatch=4,sharding=parameters,replicas=4", "llama3-8b", {}),
    ("dp=2,tp=2,pp=6,microbatch=2,sharding=optimizer,sequence_parallel=on", "llama3-8b", {}),
    ("dp=4,tp=2,pp=4,microbatch=2,schedule=interleaved,virtual_stages=2", "llama3-8b", {}),
    ("dp=8,microbatch=4", "llama3-8b", {"precision": "fp16", "optimizer": "momentum"}),
    ("dp=8,microbatch=4", "llama3-8b", {"precision": "fp32", "optimizer": "sgd"}),
    ("dp=8,microbatch=4", "llama3-8b", {"precision": "fp8", "attention": "flash"}),
    ("dp=2,tp=4,pp=2,microbatch=1,sequence_parallel=on", "gpt3-1.3b", {}),
    ("dp=8,tp=4,ep=8,microbatch=1,sharding=optimizer,sequence_parallel=on", "qwen3-30b-a3b", {}),
    ("dp=8,ep=8,microbatch=1", "hf:mixtral?num_hidden_layers=2", {"precision": "fp32"}),
    ("dp=8,microbatch=1", "hf:qwen2?num_hidden_layers=2", {}),
    ("dp=8,microbatch=1", "hf:nemotron?num_hidden_layers=2&num_key_value_heads=8", {}),
]


@pytest.mark.parametrize(("strategy", "model", "workload"), CASES)
def test_arguments_parse_and_keep_the_rules(
    strategy: str, model: str, workload: dict[str, Any], tmp_path: Path
) -> None:
    plan = with_changes(plan_of(strategy, model), "workload", **workload)
    parsed = parse_strategy(strategy)
    args = parse(read_shell(hand_over(plan, trainer="megatron").text, tmp_path))
    assert check(args, world_size=parsed.num_devices) == parsed.data_parallel_size
    assert args.sequence_parallel is parsed.sequence_parallel
    assert args.global_batch_size == 64
    assert args.seq_length == 2048


def test_the_rules_can_fail(tmp_path: Path) -> None:
    words = read_shell(hand_over(plan_of("dp=8,microbatch=4"), trainer="megatron").text, tmp_path)
    at = words.index("--micro-batch-size") + 1
    with pytest.raises(AssertionError):
        check(parse([*words[:at], "3", *words[at + 1 :]]), world_size=8)
    with pytest.raises(SystemExit):
        parse([*words, "--tensor-parallel", "2"])


def test_a_vocabulary_that_does_not_divide_is_told(tmp_path: Path) -> None:
    plan = plan_of("dp=2,tp=4,microbatch=1", "gpt2?num_layers=2", seq_len=128)
    handed = hand_over(plan, trainer="megatron")
    args = parse(read_shell(handed.text, tmp_path))
    assert args.vocab_size == 50257
    assert args.make_vocab_size_divisible_by is None
    assert any("50257 to 50688" in note for note in handed.notes)  # 99 x 128 x 4
