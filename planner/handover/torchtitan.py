"""torchtitan: a TOML file for ``torchtitan/train.py`` of the 0.2 releases.

Keys as in ``torchtitan/config/job_config.py`` of torchtitan 0.2.2 (PyPI), the last release that
reads TOML; 0.3 takes the same names of ``[parallelism]`` from Python. What the keys do is read from
``distributed/parallel_dims.py``, ``distributed/pipeline_parallel.py``, ``train.py`` and
``models/*/infra/parallelize.py`` of that release.
"""

from dataclasses import dataclass

from planner.handover.decoder import Decoder, find_decoder
from planner.handover.job import Handed, Job
from planner.handover.layout import check_layout, splits_whole_experts
from planner.handover.limits import has_experts, ranks_per_copy, word_of
from planner.handover.refusals import refusal
from planner.handover.remarks import gather_remark, software_remarks
from planner.handover.stages import StageLayers, checked_stages
from planner.handover.toml_text import Tables, toml_text

NAME = "torchtitan"
RING_HALVES = 2
"""It deals each context rank two pieces of the sequence, and asks so without context ranks too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavor:
    """One model that torchtitan builds by name; its pipeline splitter knows some families only."""

    model: str
    name: str
    can_pipeline: bool
    sizes: tuple[int, ...]
    """Layers, hidden, heads, key-value heads, feed-forward, vocabulary, experts [1]."""
    tied: bool = False
    """Whether the head is the embedding."""


def _llama3(name: str, *sizes: int) -> Flavor:
    return Flavor(model="llama3", name=name, can_pipeline=True, sizes=(*sizes, 128256, 0))


def _qwen3(name: str, *sizes: int, experts: int = 0, tied: bool = False) -> Flavor:
    return Flavor(
        model="qwen3", name=name, can_pipeline=False, sizes=(*sizes, 151936, experts), tied=tied
    )


FLAVORS = (
    _llama3("8B", 32, 4096, 32, 8, 14336),
    _llama3("70B", 80, 8192, 64, 8, 28672),
    _llama3("405B", 126, 16384, 128, 8, 53248),
    _qwen3("0.6B", 28, 1024, 16, 8, 3072, tied=True),
    _qwen3("1.7B", 28, 2048, 16, 8, 6144, tied=True),
    _qwen3("4B", 36, 2560, 32, 8, 9728, tied=True),
    _qwen3("8B", 36, 4096, 32, 8, 12288),
    _qwen3("14B", 40, 5120, 40, 8, 17408),
    _qwen3("32B", 64, 5120, 64, 8, 25600),
    _qwen3("30B-A3B", 48, 2048, 32, 4, 768, experts=128),
    _qwen3("235B-A22B", 94, 4096, 64, 4, 1536, experts=128),
)
"""``models/llama3/__init__.py`` and ``models/qwen3/__init__.py`` of torchtitan 0.2.2."""
_MODEL_OF_FAMILY = {"llama": "llama3", "qwen3": "qwen3", "qwen3_moe": "qwen3"}


def export_torchtitan(job: Job) -> Handed:
    """Return the TOML file of a plan.

    Raises
    ------
    HandoverError
        If torchtitan has no model of these sizes or no key for something in the plan.
    """
    decoder = find_decoder(job.source)
    flavor = _find_flavor(job, decoder)
    notes = list(check_layout(job, decoder, trainer=NAME)) if decoder else []
    parallelism = {
        **_data(job, notes),
        **_tensor(job),
        **_pipeline(job, flavor),
        "context_parallel_degree": job.strategy.context_parallel_size,
        **({"context_parallel_rotate_method": "allgather"} if _uses_context(job) else {}),
        **_expert(job, decoder),
    }
    tables: Tables = {
        "model": {"name": flavor.model, "flavor": flavor.name},
        "training": _training(job, notes),
        "optimizer": {"name": _optimizer(job)},
        "parallelism": parallelism,
        "activation_checkpoint": _recompute(job),
        "compile": {"enable": job.software == "compiled"},
    }
    if job.plan.workload.precision == "fp8":
        tables["model"]["converters"] = ["float8"]
        notes.append("fp8 needs torchao, and compile.enable to be fast")
    notes.append("dataset, tokenizer (hf_assets_path), learning rate and steps are yours to set")
    notes += software_remarks(job, known=("eager", "compiled"), best="eager or compiled")
    head = [
        *job.heading,
        f"{job.launch} -m torchtitan.train --job.config_file THIS_FILE",
        *(f"note: {note}" for note in notes),
    ]
    return Handed(text=toml_text(tables, head=head), notes=tuple(notes))


def _find_flavor(job: Job, decoder: Decoder | None) -> Flavor:
    if decoder is not None:
        sizes = (
            decoder.num_layers, decoder.hidden_size, decoder.num_heads, decoder.num_kv_heads,
            decoder.ffn_size, decoder.vocab_size, decoder.num_experts,
        )  # fmt: skip
        model = _MODEL_OF_FAMILY.get(decoder.family)
        for flavor in FLAVORS:
            if (flavor.model, flavor.sizes, flavor.tied) == (model, sizes, decoder.tied):
                return flavor
    raise refusal(
        NAME,
        found=f"the model {job.plan.model.source}",
        because="it has no flavor of these sizes",
        instead="plan llama3-8b, llama3-70b, llama3-405b or a Qwen3 of published sizes",
    )


def _uses_fsdp(job: Job) -> bool:
    return job.strategy.sharding != "none"


def _uses_context(job: Job) -> bool:
    return job.strategy.context_parallel_size > 1


def _data(job: Job, notes: list[str]) -> dict[str, int | str]:
    """Return how replicas keep their weights; torchtitan's DDP stands alone, beside nothing."""
    strategy = job.strategy
    replicas = strategy.data_parallel_size
    if not _uses_fsdp(job):
        if _uses_context(job) or (replicas > 1 and strategy.num_devices > replicas):
            raise refusal(
                NAME,
                found="sharding=none beside tp, pp or cp",
                because="its replicated data parallelism works alone, and cp always shards",
                instead="plan with sharding=optimizer, gradients or parameters",
            )
        return {"data_parallel_replicate_degree": replicas, "data_parallel_shard_degree": 1}
    accumulates = job.num_microbatches > 1 and strategy.pipeline_parallel_size == 1
    if strategy.sharding == "optimizer" and accumulates:
        raise refusal(
            NAME,
            found=f"sharding=optimizer over {job.num_microbatches} microbatches without a pipeline",
            because="it reduces gradients after every microbatch, which is sharding=gradients",
            instead="plan with sharding=gradients, or with one microbatch per step",
        )
    if strategy.sharding == "gradients" and accumulates:
        notes.append(gather_remark(job, trainer=NAME))
    reshard = "always" if strategy.sharding == "parameters" else "never"
    return {
        "data_parallel_replicate_degree": strategy.sharding_replicas,
        "data_parallel_shard_degree": ranks_per_copy(job, trainer=NAME),
        "fsdp_reshard_after_forward": reshard,
    }


def _tensor(job: Job) -> dict[str, int]:
    strategy = job.strategy
    if strategy.tensor_parallel_size > 1 and not strategy.sequence_parallel:
        raise refusal(
            NAME,
            found=f"tp={strategy.tensor_parallel_size} without sequence parallelism",
            because="its tensor parallelism always splits the sequence between blocks",
            instead="plan with sequence_parallel=on",
        )
    pieces = RING_HALVES * strategy.tensor_parallel_size * strategy.context_parallel_size
    if job.plan.workload.sequence_length % pieces:
        raise refusal(
            NAME,
            found=f"sequence length {job.plan.workload.sequence_length}",
            because=f"it wants a multiple of 2*tp*cp = {pieces}",
            instead="plan with another --seq-len",
        )
    return {"tensor_parallel_degree": strategy.tensor_parallel_size}


_SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zero_bubble": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
}
"""Names of ``torch.distributed.pipelining.schedules.get_schedule_class``."""


def _pipeline(job: Job, flavor: Flavor) -> dict[str, object]:
    strategy = job.strategy
    if strategy.pipeline_parallel_size == 1:
        return {"pipeline_parallel_degree": 1}
    if not flavor.can_pipeline:
        raise refusal(
            NAME,
            found=f"pp={strategy.pipeline_parallel_size} for {flavor.model}",
            because="it has no pipeline for that family",
            instead="plan with pp=1",
        )
    schedule = word_of(
        strategy.schedule,
        known=_SCHEDULES,
        trainer=NAME,
        key="schedule",
        because="hand-over does not know how its ranks hold the stages of that schedule",
        instead=f"plan with schedule={', '.join(_SCHEDULES)}",
    )
    stages = checked_stages(job, num_layers=flavor.sizes[0], trainer=NAME)
    return {
        "pipeline_parallel_degree": strategy.pipeline_parallel_size,
        "pipeline_parallel_schedule": schedule,
        "pipeline_parallel_microbatch_size": strategy.microbatch_size,
        "module_fqns_per_model_part": [_modules(stage) for stage in stages],
    }


def _modules(stage: StageLayers) -> list[str]:
    return [
        *(["tok_embeddings"] if stage.has_embedding else []),
        *(f"layers.{number}" for number in stage.layers),
        *(["norm", "output"] if stage.has_head else []),
    ]


def _expert(job: Job, decoder: Decoder | None) -> dict[str, int]:
    strategy = job.strategy
    if not has_experts(job, decoder, trainer=NAME):
        return {"expert_parallel_degree": 1}
    tp, whole = strategy.tensor_parallel_size, splits_whole_experts(job)
    degree = strategy.expert_parallel_size * (tp if whole else 1)
    if degree > 1 and not _uses_fsdp(job):
        raise refusal(
            NAME,
            found=f"ep={degree} with sharding=none",
            because="its expert parallelism reuses sharded data-parallel ranks",
            instead="plan with sharding=parameters",
        )
    return {
        "expert_parallel_degree": degree,
        "expert_tensor_parallel_degree": 1 if whole else tp,
    }


def _training(job: Job, notes: list[str]) -> dict[str, int | str]:
    workload, strategy = job.plan.workload, job.strategy
    if workload.attention == "unfused":
        raise refusal(
            NAME,
            found="attention=unfused",
            because="it always calls fused attention",
            instead="plan with --attention flash",
        )
    piped = strategy.pipeline_parallel_size > 1
    if not piped and job.num_microbatches > 1:
        notes.append(f"gradients accumulate over {job.num_microbatches} microbatches")
    return {
        "local_batch_size": job.samples_per_replica if piped else strategy.microbatch_size,
        "global_batch_size": workload.global_batch_size,
        "seq_len": workload.sequence_length,
        "mixed_precision_param": _mixed_precision(job),
        "mixed_precision_reduce": "float32",
    }


_MIXED_PRECISIONS = {"bf16": "bfloat16", "fp8": "bfloat16", "fp32": "float32"}


def _mixed_precision(job: Job) -> str:
    precision, strategy = job.plan.workload.precision, job.strategy
    mixed = word_of(
        precision,
        known=_MIXED_PRECISIONS,
        trainer=NAME,
        key="precision",
        because="it trains in bf16, fp8 and fp32",
        instead="plan with --precision bf16",
    )
    alone = strategy.tensor_parallel_size == strategy.pipeline_parallel_size == 1
    if precision != "fp32" and not _is_sharded_by_it(job) and not alone:
        raise refusal(
            NAME,
            found=f"precision={precision} with tp or pp and no sharded data parallelism",
            because="it mixes precisions through FSDP or, alone, through autocast",
            instead="plan with dp=2 or more and sharding=parameters, or --precision fp32",
        )
    return mixed


def _is_sharded_by_it(job: Job) -> bool:
    """Whether torchtitan turns FSDP on: more than one rank to shard over."""
    return _uses_fsdp(job) and job.strategy.data_parallel_size * (
        job.strategy.context_parallel_size
    ) > 1  # fmt: skip


_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW"}


def _optimizer(job: Job) -> str:
    return word_of(
        job.plan.workload.optimizer,
        known=_OPTIMIZERS,
        trainer=NAME,
        key="optimizer",
        because="it knows Adam and AdamW",
        instead="plan with --optimizer adamw",
    )


_RECOMPUTE = {
    "none": {"mode": "none"},
    "full": {"mode": "full"},
    "selective_op": {"mode": "selective", "selective_ac_option": "op"},
}


def _recompute(job: Job) -> dict[str, str]:
    return word_of(
        job.strategy.recompute,
        known=_RECOMPUTE,
        trainer=NAME,
        key="recompute",
        because="it recomputes whole layers, or all but attention and every second product",
        instead="plan with recompute=none, selective_op or full",
    )
