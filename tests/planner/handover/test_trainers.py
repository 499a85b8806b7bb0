"""What each trainer is given: degrees, batches, stages, precision, and one line where it cannot."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.handover import TRAINERS, HandoverError, hand_over, make_job
from planner.handover.decoder import decoder_of_configuration
from planner.handover.stages import stage_layers
from planner.models.resolve import resolve_model
from planner.plan import Plan
from planner.strategy import parse_strategy
from tests.planner.handover.plans import plan_of, with_changes
from tests.planner.handover.reading import (
    read_json,
    read_shell,
    read_toml,
    read_yaml,
    settings_of,
)

PIPED = (
    "dp=4,tp=2,pp=4,microbatch=2,schedule=interleaved,virtual_stages=2,sharding=parameters,"
    "recompute=full,sequence_parallel=on"
)
UNEVEN = "dp=2,tp=2,pp=6,microbatch=2,sharding=optimizer,sequence_parallel=on"
SHARDED = "dp=8,microbatch=4,sharding=parameters"


def titan(strategy: str, **options: Any) -> dict[str, Any]:
    return read_toml(hand_over(plan_of(strategy, **options), trainer="torchtitan").text)


def megatron(plan: Plan, folder: Path) -> dict[str, str]:
    return settings_of(read_shell(hand_over(plan, trainer="megatron").text, folder))


@pytest.mark.parametrize(
    "strategy", [PIPED, UNEVEN, SHARDED, "dp=8", f"{SHARDED},cp=2", f"{SHARDED},replicas=2"]
)
def test_torchtitan_degrees_multiply_to_the_devices(strategy: str) -> None:
    parallel = titan(strategy)["parallelism"]
    degrees = [
        parallel[key] for key in parallel if re.match("(data|tensor|pipe|context).*_degree$", key)
    ]
    product = 1
    for degree in degrees:
        product *= degree
    assert len(degrees) == 5
    assert product == parse_strategy(strategy).num_devices


@pytest.mark.parametrize("strategy", [PIPED, UNEVEN, SHARDED, "dp=8,microbatch=2"])
def test_torchtitan_batches(strategy: str) -> None:
    settings, parsed = titan(strategy), parse_strategy(strategy)
    training, parallel = settings["training"], settings["parallelism"]
    replicas = parallel["data_parallel_replicate_degree"] * parallel["data_parallel_shard_degree"]
    accumulation, rest = divmod(
        training["global_batch_size"], training["local_batch_size"] * replicas
    )
    assert rest == 0
    piped = parsed.pipeline_parallel_size > 1
    microbatch = (
        parallel["pipeline_parallel_microbatch_size"] if piped else training["local_batch_size"]
    )
    microbatches = training["local_batch_size"] // microbatch * accumulation
    assert microbatch == parsed.microbatch_size
    assert microbatches * microbatch * replicas == 64
    assert accumulation == 1 or not piped


@pytest.mark.parametrize("strategy", [PIPED, UNEVEN])
def test_torchtitan_stages_are_the_plans(strategy: str) -> None:
    parts = titan(strategy)["parallelism"]["module_fqns_per_model_part"]
    planned = plan_of(strategy).stages
    assert [sum(name.startswith("layers.") for name in part) for part in parts] == [
        sum(path.startswith("blocks.") for path in stage.module_paths) for stage in planned
    ]
    names = [name for part in parts for name in part]
    assert names == ["tok_embeddings", *(f"layers.{n}" for n in range(32)), "norm", "output"]


@pytest.mark.parametrize(
    ("sharding", "expected"),
    [("optimizer", "never"), ("gradients", "never"), ("parameters", "always")],
)
def test_torchtitan_shardings(sharding: str, expected: str) -> None:
    parallel = titan(f"dp=8,microbatch=8,sharding={sharding}")["parallelism"]
    assert parallel["fsdp_reshard_after_forward"] == expected
    assert parallel["data_parallel_shard_degree"] == 8


def test_megatron_arguments_of_a_piped_plan(tmp_path: Path) -> None:
    strategy = PIPED.replace("parameters", "optimizer")
    found = megatron(plan_of(strategy), tmp_path)
    world = 1
    for axis in ("tensor-model", "pipeline-model", "context"):
        world *= int(found[f"--{axis}-parallel-size"])
    replicas = 32 // world
    assert 32 % world == 0
    assert replicas == 4
    assert int(found["--global-batch-size"]) % (int(found["--micro-batch-size"]) * replicas) == 0
    assert int(found["--num-layers-per-virtual-pipeline-stage"]) * 4 * 2 == int(
        found["--num-layers"]
    )
    assert found.keys() >= {"--sequence-parallel", "--use-distributed-optimizer", "--bf16"}
    assert found["--recompute-granularity"] == "full"
    assert "--pipeline-model-parallel-layout" not in found


def unrolled(layout: str) -> list[str]:
    """Read a layout as Megatron-LM does: ``x*n`` stands for n times x, ``|`` ends a stage."""
    return re.sub(r"(.)\*(\d+)", lambda x: x[1] * int(x[2]), layout).split("|")


def test_megatron_writes_uneven_stages_out(tmp_path: Path) -> None:
    plan = plan_of(UNEVEN)
    found = megatron(plan, tmp_path)
    stages = unrolled(found["--pipeline-model-parallel-layout"])
    assert len(stages) == 6
    assert [stage.count("t") for stage in stages] == [
        len(stage.layers) for stage in stage_layers(plan)
    ]
    assert stages[0].startswith("E")
    assert stages[-1].endswith("L")
    assert "".join(stages).strip("t") == "E" + "t" * 32 + "L"
    assert "--num-layers-per-virtual-pipeline-stage" not in found


@pytest.mark.parametrize("model", ["gpt3-1.3b", "llama3-8b", "hf:qwen3?num_hidden_layers=4"])
def test_megatron_sizes_count_the_plans_parameters(model: str, tmp_path: Path) -> None:
    plan = plan_of("dp=8", model)
    found = megatron(plan, tmp_path)
    layers, hidden, ffn, heads, head, vocab = (
        int(found[f"--{name}"])
        for name in (
            "num-layers", "hidden-size", "ffn-hidden-size", "num-attention-heads", "kv-channels",
            "vocab-size",
        )
    )  # fmt: skip
    kv_heads = int(found.get("--num-query-groups", heads))
    norm = 1 if found.get("--normalization") == "RMSNorm" else 2
    products = hidden * head * (2 * heads + 2 * kv_heads)
    products += hidden * ffn * (3 if "--swiglu" in found else 2)
    block = products + 2 * norm * hidden + ("--qk-layernorm" in found) * 2 * head
    if "--disable-bias-linear" not in found:
        block += head * (heads + 2 * kv_heads) + hidden + ffn + hidden
    tables = vocab * hidden * (2 if "--untie-embeddings-and-output-weights" in found else 1)
    if "--position-embedding-type" not in found:
        tables += int(found["--max-position-embeddings"]) * hidden
    assert layers * block + tables + norm * hidden == plan.model.num_parameters


def test_megatron_experts_take_the_tensor_ranks(tmp_path: Path) -> None:
    strategy = "dp=8,tp=4,ep=8,microbatch=1,sharding=optimizer,sequence_parallel=on"
    found = megatron(plan_of(strategy, "qwen3-30b-a3b"), tmp_path)
    experts, groups = int(found["--num-experts"]), int(found["--expert-model-parallel-size"])
    assert experts == 128
    assert groups * int(found["--expert-tensor-parallel-size"]) == 32
    assert experts % groups == 0


@pytest.mark.parametrize(
    ("strategy", "stage"),
    [
        ("dp=16,microbatch=2", 0),
        ("dp=16,microbatch=2,sharding=optimizer", 1),
        ("dp=16,microbatch=2,sharding=gradients", 2),
        ("dp=16,microbatch=2,sharding=parameters", 3),
    ],
)
def test_deepspeed_batches_and_stages(strategy: str, stage: int) -> None:
    found = read_json(hand_over(plan_of(strategy), trainer="deepspeed").text)
    assert found["zero_optimization"] == {"stage": stage}
    assert (
        found["train_batch_size"]
        == found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * 16
        == 64
    )
    assert found["bf16"]["enabled"] is True


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_deepspeed_asks_for_untested_optimizers_under_zero(name: str) -> None:
    plan = with_changes(plan_of(SHARDED), "workload", optimizer=name)
    found = read_json(hand_over(plan, trainer="deepspeed").text)
    assert found["zero_allow_untested_optimizer"] is True
    assert found["optimizer"]["params"]["momentum"] == (0.9 if name == "momentum" else 0.0)


@pytest.mark.parametrize(
    ("strategy", "model", "block"),
    [
        (SHARDED, "llama3-8b", "LlamaBlock"),
        (SHARDED, "hf:llama?num_hidden_layers=4", "LlamaDecoderLayer"),
        ("dp=8,microbatch=8,sharding=optimizer,recompute=full", "gpt3-1.3b", "GptBlock"),
    ],
)
def test_accelerate_wraps_the_repeated_block(strategy: str, model: str, block: str) -> None:
    handed = hand_over(plan_of(strategy, model), trainer="accelerate")
    found = read_yaml(handed.text)
    parsed = parse_strategy(strategy)
    assert found["distributed_type"] == "FSDP"
    assert found["num_processes"] == parsed.num_devices
    assert found["fsdp_config"]["fsdp_version"] == 2
    assert found["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"] == block
    assert found["fsdp_config"]["fsdp_reshard_after_forward"] is (parsed.sharding == "parameters")
    assert found["fsdp_config"]["fsdp_activation_checkpointing"] is (parsed.recompute == "full")
    accumulation = 64 // parsed.data_parallel_size // parsed.microbatch_size
    assert f"batch size {parsed.microbatch_size} per device" in handed.notes[0]
    assert f"gradient_accumulation_steps={accumulation} " in handed.notes[0]


@pytest.mark.parametrize("more", ["cp=2", "replicas=2", "replicas=4,cp=2"])
def test_accelerate_mesh_multiplies_to_the_processes(more: str) -> None:
    plan = plan_of(f"{SHARDED},{more}")
    found = read_yaml(hand_over(plan, trainer="accelerate").text)
    mesh = found["parallelism_config"]
    product = 1
    for key, value in mesh.items():
        product *= value if key.endswith("_size") else 1
    assert product == found["num_processes"] == parse_strategy(plan.strategy).num_devices


def test_copies_of_the_shards() -> None:
    strategy = f"{SHARDED},replicas=2"
    parallel = titan(strategy)["parallelism"]
    assert parallel["data_parallel_replicate_degree"] == 2
    assert parallel["data_parallel_shard_degree"] == 4
    mesh = read_yaml(hand_over(plan_of(strategy), trainer="accelerate").text)["parallelism_config"]
    assert mesh["parallelism_config_dp_replicate_size"] == 2


def test_torchtitans_operator_recomputation() -> None:
    settings = titan(f"{SHARDED},recompute=selective_op")
    assert settings["activation_checkpoint"] == {"mode": "selective", "selective_ac_option": "op"}


def test_plain_data_parallelism_wraps_nothing() -> None:
    plan = plan_of("dp=16,microbatch=4", "bert-large")
    found = read_yaml(hand_over(plan, trainer="accelerate").text)
    assert found["distributed_type"] == "MULTI_GPU"
    assert (found["num_machines"], found["num_processes"]) == (2, 16)
    assert "fsdp_config" not in found


REFUSALS = [
    ("torchtitan", SHARDED, "workload", {"optimizer": "sgd"}, "AdamW"),
    ("torchtitan", SHARDED, "workload", {"precision": "fp16"}, "bf16"),
    ("torchtitan", SHARDED, "workload", {"attention": "unfused"}, "flash"),
    ("torchtitan", f"{SHARDED},recompute=selective", "workload", {}, "recompute"),
    ("torchtitan", "dp=2,tp=2,microbatch=4", "workload", {}, "sharding=none"),
    ("torchtitan", "tp=2,sequence_parallel=on", "workload", {}, "mixes precisions"),
    ("torchtitan", "dp=2,tp=2,sharding=parameters", "workload", {}, "sequence_parallel=on"),
    ("torchtitan", "dp=8,sharding=optimizer", "workload", {}, "sharding=gradients"),
    ("megatron", SHARDED, "workload", {"optimizer": "adafactor"}, "sgd"),
    ("megatron", SHARDED, "workload", {"precision": "tf32"}, "bf16"),
    ("megatron", "dp=2,pp=2,schedule=gpipe", "workload", {}, "1f1b"),
    ("megatron", "dp=2,pp=2,sharding=parameters", "workload", {}, "pp=1"),
    ("megatron", f"{SHARDED},recompute=selective_op", "workload", {}, "selective"),
    ("deepspeed", f"{SHARDED},replicas=2", "workload", {}, "MiCS"),
    ("deepspeed", "dp=2,tp=2", "workload", {}, "AutoTP"),
    ("deepspeed", "dp=2,pp=2", "workload", {}, "PipelineModule"),
    ("deepspeed", "dp=2,cp=2", "workload", {}, "Ulysses"),
    ("deepspeed", SHARDED, "workload", {"precision": "fp8"}, "bf16"),
    ("deepspeed", SHARDED, "workload", {"optimizer": "adam8bit"}, "adamw"),
    ("deepspeed", f"{SHARDED},recompute=selective", "workload", {}, "recompute=full"),
    ("accelerate", "dp=2,tp=2", "workload", {}, "tp=1"),
    ("accelerate", "dp=2,pp=2", "workload", {}, "pipeline"),
    ("accelerate", "dp=8,sharding=gradients", "workload", {}, "sharding=optimizer"),
    ("accelerate", "dp=8,recompute=full", "workload", {}, "sharding=parameters"),
    ("accelerate", f"{SHARDED},recompute=selective", "workload", {}, "recompute=none"),
    ("accelerate", "dp=8,cp=2", "workload", {}, "sharding=parameters"),
]


@pytest.mark.parametrize(("trainer", "strategy", "part", "changes", "hint"), REFUSALS)
def test_what_a_trainer_lacks_is_one_line(
    trainer: str, strategy: str, part: str, changes: dict[str, Any], hint: str
) -> None:
    plan = with_changes(plan_of(strategy), part, **changes)
    with pytest.raises(HandoverError) as caught:
        hand_over(plan, trainer=trainer)
    message = str(caught.value)
    assert message.startswith(f"{TRAINERS[trainer].title} cannot express ")
    assert "\n" not in message
    assert hint in message


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("part", "changes", "hint"),
    [
        ("workload", {"mode": "infer"}, "--mode train"),
        ("cluster", {"device_kind": "tpu", "device": "tpu-v4-chip"}, "tpu-v4-chip"),
        ("cluster", {"device_kind": "cpu"}, "GPUs"),
    ],
)
def test_no_trainer_takes_these(
    trainer: str, part: str, changes: dict[str, Any], hint: str
) -> None:
    with pytest.raises(HandoverError, match=hint):
        hand_over(with_changes(plan_of(SHARDED), part, **changes), trainer=trainer)


@pytest.mark.parametrize("trainer", ["torchtitan", "megatron"])
def test_a_block_that_is_split_otherwise_is_refused(trainer: str) -> None:
    plan = plan_of("dp=2,tp=2,microbatch=4,sharding=parameters,sequence_parallel=on")
    layout = plan.layouts[0]
    placements = {**layout.parameters, "blocks.7.ffn.up.weight": "S1"}
    changed = layout.model_copy(update={"parameters": placements})
    hand_over(plan, trainer=trainer)
    with pytest.raises(HandoverError, match=r"blocks\.7\.ffn\.up\.weight"):
        hand_over(plan.model_copy(update={"layouts": (changed,)}), trainer=trainer)
    del placements["blocks.7.ffn.up.weight"]
    whole = layout.model_copy(update={"parameters": placements})
    with pytest.raises(HandoverError, match=r"\(R on tp\)"):
        hand_over(plan.model_copy(update={"layouts": (whole,)}), trainer=trainer)


@pytest.mark.parametrize(
    ("trainer", "model"),
    [
        ("torchtitan", "llama3-8b?num_layers=8"),
        ("torchtitan", "gpt3-1.3b"),
        ("megatron", "bert-large"),
        ("megatron", "resnet50"),
    ],
)
def test_models_that_a_trainer_cannot_build(trainer: str, model: str) -> None:
    options = {"seq_len": None} if model in ("resnet50", "bert-large") else {}
    with pytest.raises(HandoverError, match="the model"):
        hand_over(plan_of("dp=8", model, **options), trainer=trainer)


def test_a_model_without_one_kind_of_block_is_not_wrapped() -> None:
    plan = plan_of("dp=8,sharding=parameters", "alexnet", seq_len=None)
    with pytest.raises(HandoverError, match="repeated block"):
        hand_over(plan, trainer="accelerate")


def test_a_broken_batch_is_refused() -> None:
    plan = with_changes(plan_of(SHARDED), "workload", global_batch_size=65)
    with pytest.raises(HandoverError, match="65"):
        make_job(plan, trainer="x", source=resolve_model("llama3-8b"))


def test_irregular_layers_are_no_decoder_here() -> None:
    fields = {
        "model_type": "llama", "hidden_act": "silu", "num_attention_heads": 8,
        "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 256,
        "rms_norm_eps": 1e-6,
    }  # fmt: skip
    found = decoder_of_configuration(fields)
    assert found is not None
    assert found == replace(found, num_kv_heads=8, head_size=8)
    irregular: list[dict[str, Any]] = [
        {"sliding_window": 64},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"mlp_only_layers": [0]},
        {"hidden_act": "relu"},
        {"model_type": "t5"},
    ]
    for more in irregular:
        assert decoder_of_configuration({**fields, **more}) is None


@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_text_of_a_plan_reaches_a_shell_or_another_line(trainer: str, tmp_path: Path) -> None:
    plan = with_changes(plan_of(SHARDED), "cluster", device="h100\nexit 7")
    handed = hand_over(plan, trainer=trainer)
    assert not any(line.startswith("exit") for line in handed.text.splitlines())
    if trainer == "megatron":
        assert read_shell(handed.text, tmp_path)
    odd = with_changes(plan_of(SHARDED), "workload", attention="auto; exit 7")
    with pytest.raises(HandoverError, match="attention"):
        hand_over(odd, trainer=trainer)
