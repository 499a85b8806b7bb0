"""DeepSpeed: the JSON file given to ``deepspeed.initialize``.

Keys as read by ``deepspeed/runtime/config.py``, ``deepspeed/runtime/zero/config.py`` and
``deepspeed/runtime/activation_checkpointing/config.py`` of DeepSpeed 0.19.8 (PyPI).
"""

import json
from typing import Any

from planner.handover.job import Handed, Job
from planner.handover.refusals import refusal

NAME = "DeepSpeed"
_STAGES = {"none": 0, "optimizer": 1, "gradients": 2, "parameters": 3}
_MOMENTUM = 0.9


def export_deepspeed(job: Job) -> Handed:
    """Return the JSON file of a plan.

    Raises
    ------
    HandoverError
        If the file cannot say something in the plan.
    """
    _check_axes(job)
    strategy = job.strategy
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
    if job.plan.software != "deepspeed":
        notes.append(
            f"predicted with software '{job.plan.software}'; plan with --software deepspeed for "
            "the times of its kernels and overlap"
        )
    if job.plan.workload.attention != "auto":
        notes.append(f"attention={job.plan.workload.attention} is your model's to choose")
    return Handed(text=json.dumps(settings, indent=2) + "\n", notes=tuple(notes))


def _check_axes(job: Job) -> None:
    strategy = job.strategy
    reasons = {
        "tp": (
            strategy.tensor_parallel_size,
            "its AutoTP splits by rules of its own and keeps embeddings and sequence whole",
        ),
        "pp": (
            strategy.pipeline_parallel_size,
            "its pipelines are written in code (PipelineModule), not in the file",
        ),
        "cp": (
            strategy.context_parallel_size,
            "it splits sequences over attention heads (Ulysses), the plan by rings",
        ),
        "ep": (
            strategy.expert_parallel_size,
            "its expert groups are set up in code, for its own expert layers",
        ),
    }
    for key, (size, because) in reasons.items():
        if size > 1:
            raise refusal(
                NAME,
                found=f"{key}={size}",
                because=because,
                instead=f"plan with {key}=1, or hand over to Megatron-LM",
            )


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
    precision = job.plan.workload.precision
    if precision == "bf16":
        return {"bf16": {"enabled": True}}
    if precision == "fp16":
        return {"fp16": {"enabled": True, "loss_scale": 0}}
    if precision == "fp32":
        return {"bf16": {"enabled": False}, "fp16": {"enabled": False}}
    raise refusal(
        NAME,
        found=f"precision={precision}",
        because="the file knows bf16, fp16 and fp32",
        instead="plan with --precision bf16",
    )


def _optimizer(job: Job) -> dict[str, Any]:
    """Return the optimizer; names outside its own list are looked up in ``torch.optim``."""
    name = job.plan.workload.optimizer
    if name == "adam":
        return {"type": "Adam", "params": {"adam_w_mode": False}}
    if name == "adamw":
        return {"type": "AdamW", "params": {}}
    if name in ("sgd", "momentum"):
        return {"type": "SGD", "params": {"momentum": _MOMENTUM if name == "momentum" else 0.0}}
    raise refusal(
        NAME,
        found=f"optimizer={name}",
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
