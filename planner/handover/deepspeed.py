"""DeepSpeed: the JSON file given to ``deepspeed.initialize``.

Keys as read by ``deepspeed/runtime/config.py``, ``deepspeed/runtime/zero/config.py`` and
``deepspeed/runtime/activation_checkpointing/config.py`` of DeepSpeed 0.19.8 (PyPI).
"""

import json
from typing import Any

from planner.handover.job import Handed, Job
from planner.handover.limits import check_unsplit, word_of
from planner.handover.refusals import refusal
from planner.handover.remarks import software_remarks

NAME = "DeepSpeed"
_STAGES = {"none": 0, "optimizer": 1, "gradients": 2, "parameters": 3}
_UNSPLIT = {
    "tp": "its AutoTP splits by rules of its own and keeps embeddings and sequence whole",
    "pp": "its pipelines are written in code (PipelineModule), not in the file",
    "cp": "it splits sequences over attention heads (Ulysses), the plan by rings",
    "ep": "its expert groups are set up in code, for its own expert layers",
}
_PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "loss_scale": 0}},
    "fp32": {"bf16": {"enabled": False}, "fp16": {"enabled": False}},
}
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"type": "Adam", "params": {"adam_w_mode": False}},
    "adamw": {"type": "AdamW", "params": {}},
    "sgd": {"type": "SGD", "params": {"momentum": 0.0}},
    "momentum": {"type": "SGD", "params": {"momentum": 0.9}},
}
"""Names outside its own list are looked up in ``torch.optim``."""


def export_deepspeed(job: Job) -> Handed:
    """Return the JSON file of a plan.

    Raises
    ------
    HandoverError
        If the file cannot say something in the plan.
    """
    strategy = job.strategy
    check_unsplit(strategy, because=_UNSPLIT, trainer=NAME, others="Megatron-LM")
    notes = [
        f"start {job.num_devices} processes: {job.launch} your_script.py",
        "model, data, learning rate and its schedule are your script's",
    ]
    settings: dict[str, Any] = {
        "train_batch_size": job.plan.workload.global_batch_size,
        "train_micro_batch_size_per_gpu": strategy.microbatch_size,
        "gradient_accumulation_steps": job.num_microbatches,
        "zero_optimization": _zero(job),
        **_precision(job),
        "optimizer": _optimizer(job),
        **_untested(job),
        **_recompute(job, notes),
    }
    notes += software_remarks(job, known=("deepspeed",), best="deepspeed")
    if job.plan.workload.attention != "auto":
        notes.append(f"attention={job.plan.workload.attention} is your model's to choose")
    return Handed(text=json.dumps(settings, indent=2) + "\n", notes=tuple(notes))


def _zero(job: Job) -> dict[str, Any]:
    strategy = job.strategy
    if strategy.sharding_replicas > 1:
        raise refusal(
            NAME,
            found=f"replicas={strategy.sharding_replicas}",
            because="it no longer shards within groups (MiCS was removed), and the groups of its "
            "ZeRO++ hold weights only",
            instead="plan with replicas=1, or hand over to torchtitan, Accelerate or Megatron-LM",
        )
    return {"stage": _STAGES[strategy.sharding]}


def _precision(job: Job) -> dict[str, Any]:
    return word_of(
        job.plan.workload.precision,
        known=_PRECISIONS,
        trainer=NAME,
        key="precision",
        because="the file knows bf16, fp16 and fp32",
        instead="plan with --precision bf16",
    )


def _optimizer(job: Job) -> dict[str, Any]:
    return word_of(
        job.plan.workload.optimizer,
        known=_OPTIMIZERS,
        trainer=NAME,
        key="optimizer",
        because="it flattens weights before an optimizer sees them and has no such one itself",
        instead="plan with --optimizer adam, adamw, sgd or momentum",
    )


def _untested(job: Job) -> dict[str, Any]:
    """Return the word that lets ZeRO take an optimizer outside its own list."""
    own = job.plan.workload.optimizer in ("adam", "adamw")
    return {} if own or job.strategy.sharding == "none" else {"zero_allow_untested_optimizer": True}


def _recompute(job: Job, notes: list[str]) -> dict[str, Any]:
    mode = job.strategy.recompute
    if mode == "none":
        return {}
    if mode != "full":
        raise refusal(
            NAME,
            found=f"recompute={mode}",
            because="which layers are recomputed is written in the model",
            instead="plan with recompute=none or recompute=full",
        )
    notes.append(
        "recompute=full: call model.gradient_checkpointing_enable() (transformers) or "
        "deepspeed.checkpointing.checkpoint around each block; the file only tunes it"
    )
    return {
        "activation_checkpointing": {
            "partition_activations": False,
            "contiguous_memory_optimization": False,
            "cpu_checkpointing": False,
        }
    }
