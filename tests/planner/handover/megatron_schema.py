"""Arguments of Megatron-LM as its source declares them, for what hand-over may write.

Re-expressed from ``megatron/training/arguments.py`` of NVIDIA/Megatron-LM, commit
000c4ac24f61159c138b0975def722c65245983c: ``_add_network_size_args``, ``_add_regularization_args``,
``_add_training_args``, ``_add_mixed_precision_args``, ``_add_distributed_args``,
``_add_checkpointing_args``, ``_add_data_args``, ``_add_tokenizer_args``, ``_add_vision_args`` (home
of ``--qk-layernorm``), ``_add_moe_args``, ``_add_transformer_engine_args`` and the rules of
``validate_args``. Its parser has ``allow_abbrev=False``.
"""

import argparse

WHOLE_NUMBERS = (
    "num-layers", "hidden-size", "ffn-hidden-size", "num-attention-heads", "kv-channels",
    "num-query-groups", "max-position-embeddings", "rotary-base", "make-vocab-size-divisible-by",
    "seq-length", "vocab-size", "micro-batch-size", "global-batch-size", "recompute-num-layers",
    "tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size",
    "expert-model-parallel-size", "expert-tensor-parallel-size", "num-experts",
    "moe-ffn-hidden-size", "moe-router-topk", "num-layers-per-virtual-pipeline-stage",
    "num-distributed-optimizer-instances",
)  # fmt: skip
NUMBERS = (
    "rotary-percent", "norm-epsilon", "attention-dropout", "hidden-dropout", "weight-decay",
    "sgd-momentum",
)  # fmt: skip
FLAGS = (
    "group-query-attention", "apply-layernorm-1p", "squared-relu", "swiglu",
    "untie-embeddings-and-output-weights", "disable-bias-linear", "add-qkv-bias", "qk-layernorm",
    "sequence-parallel", "no-gradient-accumulation-fusion", "fp16", "bf16",
    "use-distributed-optimizer", "use-megatron-fsdp", "moe-grouped-gemm", "moe-router-pre-softmax",
)  # fmt: skip
WORDS = {
    "position-embedding-type": ("learned_absolute", "rope", "mrope", "relative", "none"),
    "normalization": ("LayerNorm", "RMSNorm"),
    "recompute-granularity": ("full", "selective"),
    "recompute-method": ("uniform", "block"),
    "optimizer": ("adam", "sgd", "muon", "dist_muon"),
    "data-parallel-sharding-strategy": ("no_shard", "optim", "optim_grads", "optim_grads_params"),
    "ckpt-format": ("torch", "torch_dist", "zarr", "torch_dcp", "fsdp_dtensor"),
    "moe-token-dispatcher-type": ("allgather", "alltoall", "flex"),
    "fp8-format": ("e4m3", "hybrid"),
    "attention-backend": ("flash", "fused", "unfused", "local", "auto"),
}
RECOMPUTED = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")


def parse(words: list[str]) -> argparse.Namespace:
    """Parse as Megatron-LM does, and keep the rules that it checks afterwards."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in WHOLE_NUMBERS:
        parser.add_argument(f"--{name}", type=int)
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=float)
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    for name, choices in WORDS.items():
        parser.add_argument(f"--{name}", choices=choices)
    parser.add_argument("--recompute-modules", nargs="*", choices=RECOMPUTED)
    parser.add_argument("--cp-comm-type", nargs="+", default=["p2p"])
    parser.add_argument("--pipeline-model-parallel-layout")
    return parser.parse_args(words)


def check(args: argparse.Namespace, *, world_size: int) -> int:
    """Return the data-parallel size, if ``validate_args`` would let the arguments pass."""
    model = (
        args.tensor_model_parallel_size
        * args.pipeline_model_parallel_size
        * args.context_parallel_size
    )
    assert world_size % model == 0
    replicas = world_size // model
    assert args.global_batch_size % (args.micro_batch_size * replicas) == 0
    assert not (args.fp16 and args.bf16)
    assert args.max_position_embeddings >= args.seq_length
    assert (
        args.context_parallel_size == 1 or args.seq_length % (2 * args.context_parallel_size) == 0
    )
    assert not (args.num_layers_per_virtual_pipeline_stage and args.pipeline_model_parallel_layout)
    if args.pipeline_model_parallel_layout is None:
        per_stage, rest = divmod(args.num_layers, args.pipeline_model_parallel_size)
        assert rest == 0
        assert per_stage % (args.num_layers_per_virtual_pipeline_stage or 1) == 0
    assert args.recompute_granularity != "selective" or args.recompute_method is None
    assert args.tensor_model_parallel_size > 1 or not args.sequence_parallel
    instances = args.num_distributed_optimizer_instances or 1
    assert instances == 1 or args.use_distributed_optimizer
    assert replicas * args.context_parallel_size % instances == 0
    if args.use_megatron_fsdp:
        assert args.ckpt_format == "fsdp_dtensor"
    if (args.expert_model_parallel_size or 1) > 1:
        assert args.num_experts % args.expert_model_parallel_size == 0
        assert not args.fp16
    assert not args.moe_grouped_gemm or args.bf16
    return replicas
