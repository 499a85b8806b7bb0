"""Run as a program: a trainer's own package reads a file that was handed over.

Apart from the tests, because these packages warn on import and change the process they are in.
Prints one JSON object of what the package understood.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def torchtitan(path: str, num_devices: int) -> dict[str, Any]:
    from torchtitan.config.manager import ConfigManager
    from torchtitan.distributed.parallel_dims import ParallelDims

    read = ConfigManager().parse_args(["--job.config_file", path])
    chosen = read.parallelism
    ParallelDims(
        dp_replicate=chosen.data_parallel_replicate_degree,
        dp_shard=chosen.data_parallel_shard_degree,
        cp=chosen.context_parallel_degree,
        tp=chosen.tensor_parallel_degree,
        pp=chosen.pipeline_parallel_degree,
        ep=chosen.expert_parallel_degree,
        etp=chosen.expert_tensor_parallel_degree,
        world_size=num_devices,
    )
    return {"flavor": read.model.flavor, "local_batch_size": read.training.local_batch_size}


def torchtitan_flavors(path: str, num_devices: int) -> dict[str, Any]:
    from torchtitan.models.llama3 import llama3_args
    from torchtitan.models.qwen3 import qwen3_args

    found = {}
    for name, a in llama3_args.items():
        width = int(int(2 * 4 * a.dim / 3) * (a.ffn_dim_multiplier or 1))
        width = a.multiple_of * -(-width // a.multiple_of)
        sizes = (a.n_layers, a.dim, a.n_heads, a.n_kv_heads, width, a.vocab_size, 0)
        found[f"llama3 {name}"] = [*sizes, False]
    for name, a in qwen3_args.items():
        experts = a.moe_args.num_experts if a.moe_enabled else 0
        width = a.moe_inter_dim if a.moe_enabled else a.hidden_dim
        sizes = (a.n_layers, a.dim, a.n_heads, a.n_kv_heads, width, a.vocab_size, experts)
        found[f"qwen3 {name}"] = [*sizes, a.enable_weight_tying]
    return found


def accelerate(path: str, num_devices: int) -> dict[str, Any]:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(["--config_file", path, "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    os.environ.update(prepare_multi_gpu_env(arguments))
    found: dict[str, Any] = {"num_processes": arguments.num_processes}
    if arguments.use_fsdp:
        plugin = FullyShardedDataParallelPlugin()
        found |= {
            "version": plugin.fsdp_version,
            "reshard": plugin.reshard_after_forward,
            "classes": plugin.transformer_cls_names_to_wrap,
            "recompute": plugin.activation_checkpointing,
        }
    if arguments.use_parallelism_config:
        from accelerate.parallelism_config import ParallelismConfig

        found["mesh"] = ParallelismConfig().total_size
    return found


def deepspeed(path: str, num_devices: int) -> dict[str, Any]:
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    settings["train_batch_size"] //= num_devices  # its check counts the processes there are: one
    read = DeepSpeedConfig(settings)
    return {
        "stage": read.zero_config.stage,
        "accumulation": read.gradient_accumulation_steps,
        "bf16": read.bfloat16_config.enabled,
        "optimizer": read.optimizer_name,
    }


def megatron(path: str, num_devices: int) -> dict[str, Any]:
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.pipeline_parallel_layer_layout import (
        PipelineParallelLayerLayout,
    )

    given = json.loads(Path(path).read_text(encoding="utf-8"))
    pipeline = int(given["--pipeline-model-parallel-size"])
    number = {
        "num_layers": "--num-layers",
        "hidden_size": "--hidden-size",
        "ffn_hidden_size": "--ffn-hidden-size",
        "num_attention_heads": "--num-attention-heads",
        "kv_channels": "--kv-channels",
        "tensor_model_parallel_size": "--tensor-model-parallel-size",
        "context_parallel_size": "--context-parallel-size",
    }
    config = TransformerConfig(
        **{key: int(given[flag]) for key, flag in number.items()},
        num_query_groups=int(given.get("--num-query-groups", given["--num-attention-heads"])),
        sequence_parallel="--sequence-parallel" in given,
        recompute_granularity=given.get("--recompute-granularity"),
        recompute_method=given.get("--recompute-method"),
        recompute_num_layers=int(given["--recompute-num-layers"])
        if "--recompute-num-layers" in given
        else None,
        recompute_modules=[given.get("--recompute-modules", "core_attn")],
    )
    layout = given.get("--pipeline-model-parallel-layout")
    if layout:
        read = PipelineParallelLayerLayout(layout, pipeline)
        read.validate_layer_layout(config.num_layers, None)
    return {"layers": config.num_layers, "stages": len(read.layout) if layout else 0}


if __name__ == "__main__":
    reader, file, count = sys.argv[1:4]
    print("\n" + json.dumps(globals()[reader](file, int(count))))
