"""Megatron-LM: a shell file with an array of arguments and one to launch ``pretrain_gpt.py``.

Arguments as declared and checked in ``megatron/training/arguments.py`` of NVIDIA/Megatron-LM at
commit 000c4ac24f61159c138b0975def722c65245983c; the layout text as read by
``megatron/core/transformer/pipeline_parallel_layer_layout.py`` at 00caa53af30912914981c86f39db123961678bbd.
"""  # noqa: E501

from planner.handover.decoder import Decoder, find_decoder
from planner.handover.job import Handed, Job
from planner.handover.layout import check_layout, splits_whole_experts
from planner.handover.limits import has_experts, word_of
from planner.handover.refusals import refusal
from planner.handover.remarks import software_remarks
from planner.handover.stages import StageLayers, checked_stages, is_even

NAME = "Megatron-LM"
_DEFAULT_VOCAB_MULTIPLE = 128
Arguments = list[tuple[str, ...]]


def export_megatron(job: Job) -> Handed:
    """Return the arguments of a plan.

    Raises
    ------
    HandoverError
        If Megatron-LM has no argument for something in the plan.
    """
    decoder = find_decoder(job.source)
    if decoder is None:
        raise refusal(
            NAME,
            found=f"the model {job.plan.model.source}",
            because="only decoders of its own kind are built from arguments",
            instead="plan a gpt or llama preset or hf:llama, mistral, qwen2, qwen3, mixtral, "
            "qwen3_moe, nemotron",
        )
    notes = list(check_layout(job, decoder, trainer=NAME))
    arguments = [
        *_model(job, decoder, notes),
        *_experts(job, decoder),
        *_split(job, decoder),
        *_stages(job, decoder),
        *_sharding(job),
        *_recompute(job),
        *_training(job),
    ]
    notes.append("data, tokenizer, learning rate and --train-iters are yours to add")
    notes += software_remarks(job, known=("megatron",), best="megatron-core")
    return Handed(text=_shell(job, arguments, notes), notes=tuple(notes))


def _model(job: Job, decoder: Decoder, notes: list[str]) -> Arguments:
    length = job.plan.workload.sequence_length
    found: Arguments = [
        ("--num-layers", str(decoder.num_layers)),
        ("--hidden-size", str(decoder.hidden_size)),
        ("--ffn-hidden-size", str(decoder.ffn_size)),
        ("--num-attention-heads", str(decoder.num_heads)),
        ("--kv-channels", str(decoder.head_size)),
        ("--seq-length", str(length)),
        ("--max-position-embeddings", str(max(length, decoder.max_positions))),
        *_vocabulary(job, decoder, notes),
        ("--attention-dropout", f"{decoder.dropout:g}"),
        ("--hidden-dropout", f"{decoder.dropout if decoder.max_positions else 0.0:g}"),
        ("--norm-epsilon", f"{decoder.norm_eps:g}"),
    ]
    if decoder.num_kv_heads != decoder.num_heads:
        found += [("--group-query-attention",), ("--num-query-groups", str(decoder.num_kv_heads))]
    if not decoder.max_positions:
        found += [
            ("--position-embedding-type", "rope"),
            ("--rotary-base", str(int(decoder.rope_theta))),
            ("--rotary-percent", f"{decoder.rotary_share:g}"),
        ]
    if decoder.rms_norm:
        found.append(("--normalization", "RMSNorm"))
    if decoder.family == "nemotron":
        found.append(("--apply-layernorm-1p",))
    flags = (
        ("--swiglu", decoder.activation == "swiglu"),
        ("--squared-relu", decoder.activation == "squared_relu"),
        ("--disable-bias-linear", not decoder.has_biases),
        ("--add-qkv-bias", decoder.has_query_biases and not decoder.has_biases),
        ("--qk-layernorm", decoder.norms_queries),
        ("--untie-embeddings-and-output-weights", not decoder.tied),
    )
    return found + [(flag,) for flag, is_set in flags if is_set]


def _vocabulary(job: Job, decoder: Decoder, notes: list[str]) -> Arguments:
    """Keep the plan's vocabulary where the tensor group divides it; else Megatron pads it."""
    tp = job.strategy.tensor_parallel_size
    found: Arguments = [("--vocab-size", str(decoder.vocab_size))]
    if decoder.vocab_size % tp == 0:
        return [*found, ("--make-vocab-size-divisible-by", "1")]
    multiple = _DEFAULT_VOCAB_MULTIPLE * tp
    padded = -(-decoder.vocab_size // multiple) * multiple
    notes.append(f"{NAME} pads the vocabulary from {decoder.vocab_size} to {padded}")
    return found


def _experts(job: Job, decoder: Decoder) -> Arguments:
    strategy = job.strategy
    if not has_experts(job, decoder, trainer=NAME):
        return []
    if strategy.expert_parallel_size > 1 and job.plan.workload.precision == "fp16":
        raise refusal(
            NAME,
            found=f"ep={strategy.expert_parallel_size} in fp16",
            because="its expert parallelism does not train in fp16",
            instead="plan with --precision bf16",
        )
    whole = splits_whole_experts(job)
    tp = strategy.tensor_parallel_size
    found: Arguments = [
        ("--num-experts", str(decoder.num_experts)),
        ("--moe-ffn-hidden-size", str(decoder.ffn_size)),
        ("--moe-router-topk", str(decoder.experts_per_token)),
        ("--moe-token-dispatcher-type", "alltoall"),
        ("--expert-model-parallel-size", str(strategy.expert_parallel_size * (tp if whole else 1))),
        ("--expert-tensor-parallel-size", str(1 if whole else tp)),
    ]
    flags = (
        ("--moe-grouped-gemm", job.plan.workload.precision == "bf16"),
        ("--moe-router-pre-softmax", not decoder.renormalises_routes),
    )
    return found + [(flag,) for flag, is_set in flags if is_set]


def _split(job: Job, decoder: Decoder) -> Arguments:
    strategy = job.strategy
    if decoder.num_experts and strategy.tensor_parallel_size > 1 and not strategy.sequence_parallel:
        raise refusal(
            NAME,
            found="experts on a tensor group without sequence parallelism",
            because="its expert layers need it during training",
            instead="plan with sequence_parallel=on",
        )
    found: Arguments = [
        ("--tensor-model-parallel-size", str(strategy.tensor_parallel_size)),
        ("--pipeline-model-parallel-size", str(strategy.pipeline_parallel_size)),
        ("--context-parallel-size", str(strategy.context_parallel_size)),
    ]
    if strategy.sequence_parallel:
        found.append(("--sequence-parallel",))
    if strategy.context_parallel_size > 1:
        found.append(("--cp-comm-type", "p2p"))
    return found


def _stages(job: Job, decoder: Decoder) -> Arguments:
    strategy = job.strategy
    if strategy.pipeline_parallel_size == 1:
        return []
    _check_schedule(job)
    stages = checked_stages(job, num_layers=decoder.num_layers, trainer=NAME)
    if not is_even(stages):
        return [("--pipeline-model-parallel-layout", "|".join(map(_layout_text, stages)))]
    if strategy.virtual_stages > 1:
        return [("--num-layers-per-virtual-pipeline-stage", str(len(stages[0].layers)))]
    return []


def _check_schedule(job: Job) -> None:
    strategy = job.strategy
    if strategy.schedule not in ("1f1b", "interleaved"):
        raise refusal(
            NAME,
            found=f"schedule={strategy.schedule}",
            because="its pipelines run 1f1b or interleaved 1f1b",
            instead="plan with schedule=1f1b or schedule=interleaved",
        )


def _layout_text(stage: StageLayers) -> str:
    layers = f"t*{len(stage.layers)}" if len(stage.layers) > 1 else "t" * len(stage.layers)
    return f"{'E' * stage.has_embedding}{layers}{'L' * stage.has_head}"


_SHARDED_STRATEGY = {"gradients": "optim_grads", "parameters": "optim_grads_params"}


def _sharding(job: Job) -> Arguments:
    strategy = job.strategy
    if strategy.sharding == "none":
        return []
    copies: Arguments = []
    if strategy.sharding_replicas > 1:
        copies = [("--num-distributed-optimizer-instances", str(strategy.sharding_replicas))]
    if strategy.sharding == "optimizer":
        return [("--use-distributed-optimizer",), *copies]
    if strategy.pipeline_parallel_size > 1:
        raise refusal(
            NAME,
            found=f"sharding={strategy.sharding} with pp={strategy.pipeline_parallel_size}",
            because="its pipelines keep weights and gradients whole",
            instead="plan with sharding=optimizer or pp=1",
        )
    return [
        ("--use-distributed-optimizer",),
        *copies,
        ("--use-megatron-fsdp",),
        ("--data-parallel-sharding-strategy", _SHARDED_STRATEGY[strategy.sharding]),
        ("--ckpt-format", "fsdp_dtensor"),
        ("--no-gradient-accumulation-fusion",),
    ]


_RECOMPUTE: dict[str, Arguments] = {
    "none": [],
    "selective": [("--recompute-granularity", "selective"), ("--recompute-modules", "core_attn")],
    "full": [
        ("--recompute-granularity", "full"),
        ("--recompute-method", "uniform"),
        ("--recompute-num-layers", "1"),
    ],
}


def _recompute(job: Job) -> Arguments:
    return word_of(
        job.strategy.recompute,
        known=_RECOMPUTE,
        trainer=NAME,
        key="recompute",
        because="it recomputes attention cores or whole layers, never every second product",
        instead=f"plan with recompute={', '.join(_RECOMPUTE)}",
    )


_OPTIMIZERS: dict[str, Arguments] = {
    "adam": [("--optimizer", "adam"), ("--weight-decay", "0.0")],
    "adamw": [("--optimizer", "adam")],
    "sgd": [("--optimizer", "sgd"), ("--sgd-momentum", "0.0")],
    "momentum": [("--optimizer", "sgd"), ("--sgd-momentum", "0.9")],
}
"""``adam`` there decouples the weight decay, as AdamW does; without decay the two are one."""
_PRECISIONS: dict[str, Arguments] = {
    "bf16": [("--bf16",)],
    "fp16": [("--fp16",)],
    "fp32": [],
    "fp8": [("--bf16",), ("--fp8-format", "hybrid")],
}


def _training(job: Job) -> Arguments:
    workload = job.plan.workload
    optimizer = word_of(
        workload.optimizer,
        known=_OPTIMIZERS,
        trainer=NAME,
        key="optimizer",
        because="it trains with adam (AdamW) and sgd",
        instead="plan with --optimizer adam, adamw, sgd or momentum",
    )
    precision = word_of(
        workload.precision,
        known=_PRECISIONS,
        trainer=NAME,
        key="precision",
        because="it trains in bf16, fp16, fp8 and fp32",
        instead="plan with --precision bf16",
    )
    return [
        ("--micro-batch-size", str(job.strategy.microbatch_size)),
        ("--global-batch-size", str(workload.global_batch_size)),
        *precision,
        *optimizer,
        ("--attention-backend", workload.attention),
    ]


def _shell(job: Job, arguments: Arguments, notes: list[str]) -> str:
    needs_order = max(job.strategy.tensor_parallel_size, job.strategy.context_parallel_size) > 1
    fsdp = ("--use-megatron-fsdp",) in arguments
    lines = [
        *(f"# {line}" for line in job.heading),
        *(f"# note: {note}" for note in notes),
        *(["export CUDA_DEVICE_MAX_CONNECTIONS=1"] if needs_order and not fsdp else []),
        "MEGATRON_ARGUMENTS=(",
        *(f"    {' '.join(_quoted(word) for word in argument)}" for argument in arguments),
        ")",
        f"LAUNCH=({job.launch})",
        "# source this file, then:",
        '#   "${LAUNCH[@]}" pretrain_gpt.py "${MEGATRON_ARGUMENTS[@]}"',
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    return f'"{word}"' if "|" in word or "*" in word else word
