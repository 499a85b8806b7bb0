"""Accelerate: the YAML file of ``accelerate launch``, for DDP or FSDP2.

Keys as accepted by ``ClusterConfig`` in ``accelerate/commands/config/config_args.py`` and read by
``accelerate/utils/launch.py`` and ``accelerate/utils/dataclasses.py`` of Accelerate 1.15.0 (PyPI).
"""

import json
from collections.abc import Mapping
from typing import Any

from planner.handover.job import Handed, Job
from planner.handover.limits import check_unsplit, ranks_per_copy, word_of
from planner.handover.refusals import HandoverError, refusal
from planner.handover.remarks import gather_remark, software_remarks
from planner.handover.stages import block_paths
from planner.models.inspected import inspect_model

NAME = "Accelerate"
_UNSPLIT = {
    "tp": "it follows the model class's own tensor plan, not this one",
    "pp": "its FSDP file has no pipeline for training",
    "ep": "it has no expert parallelism",
}
_PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "fp32": "no"}


def export_accelerate(job: Job) -> Handed:
    """Return the YAML file of a plan.

    Raises
    ------
    HandoverError
        If Accelerate has no key for something in the plan.
    """
    strategy = job.strategy
    check_unsplit(strategy, because=_UNSPLIT, trainer=NAME, others="torchtitan or Megatron-LM")
    if strategy.context_parallel_size > 1 and strategy.sharding == "none":
        raise refusal(
            NAME,
            found=f"cp={strategy.context_parallel_size} with sharding=none",
            because="its context parallelism works under FSDP2 only",
            instead="plan with sharding=parameters",
        )
    sharded = strategy.sharding != "none" and job.num_devices > 1
    settings: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": _kind(job, sharded=sharded),
        "num_machines": job.num_nodes,
        "num_processes": job.num_devices,
        "machine_rank": 0,
        "mixed_precision": _precision(job),
        "use_cpu": False,
        "main_training_function": "main",
    }
    if job.num_nodes > 1:
        settings["rdzv_backend"] = "c10d"
    if sharded:
        settings["fsdp_config"] = _fsdp(job)
        settings |= _mesh(job)
    elif job.strategy.recompute != "none":
        raise _recompute_refusal(job)
    if job.software == "compiled":
        settings["dynamo_config"] = {"dynamo_backend": "INDUCTOR"}
    notes = _notes(job, sharded=sharded)
    head = [
        *job.heading,
        "accelerate launch --config_file THIS_FILE your_script.py",
        *(f"note: {note}" for note in notes),
    ]
    return Handed(text=yaml_text(settings, head=head), notes=tuple(notes))


def _kind(job: Job, *, sharded: bool) -> str:
    if job.num_devices == 1:
        return "NO"
    return "FSDP" if sharded else "MULTI_GPU"


def _precision(job: Job) -> str:
    return word_of(
        job.plan.workload.precision,
        known=_PRECISIONS,
        trainer=NAME,
        key="precision",
        because="it mixes bf16, fp16 and fp8 with fp32, or none",
        instead="plan with --precision bf16",
    )


def _fsdp(job: Job) -> dict[str, Any]:
    strategy = job.strategy
    if strategy.recompute not in ("none", "full"):
        raise _recompute_refusal(job)
    if strategy.sharding == "gradients" and job.num_microbatches > 1:
        raise refusal(
            NAME,
            found=f"sharding=gradients over {job.num_microbatches} microbatches",
            because="it reduces gradients after the last one, which is sharding=optimizer",
            instead="plan with sharding=optimizer or with one microbatch per step",
        )
    blocks = block_paths(job.plan)
    classes = inspect_model(job.source, block_paths=blocks).block_classes
    if len(classes) != 1:
        raise refusal(
            NAME,
            found=f"sharding={strategy.sharding} of {job.plan.model.source}",
            because="it wraps by the class of the repeated block, and this model has no one such",
            instead="plan with sharding=none",
        )
    return {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": strategy.sharding == "parameters",
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": classes[0],
        "fsdp_activation_checkpointing": strategy.recompute == "full",
        "fsdp_offload_params": False,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": False,
    }


def _mesh(job: Job) -> dict[str, Any]:
    """Return the mesh of FSDP2 where it is no plain one: copies of the shards, context ranks."""
    strategy = job.strategy
    copies = strategy.sharding_replicas
    if strategy.context_parallel_size == copies == 1:
        return {}
    prefix = "parallelism_config_"
    return {
        "parallelism_config": {
            f"{prefix}dp_replicate_size": copies,
            f"{prefix}dp_shard_size": ranks_per_copy(job, trainer=NAME),
            f"{prefix}tp_size": 1,
            f"{prefix}cp_size": strategy.context_parallel_size,
            f"{prefix}cp_comm_strategy": "allgather",
        }
    }


def _recompute_refusal(job: Job) -> HandoverError:
    return refusal(
        NAME,
        found=f"recompute={job.strategy.recompute} with sharding={job.strategy.sharding}",
        because="it recomputes whole wrapped blocks, under FSDP only",
        instead="plan with recompute=none, or recompute=full and sharding=parameters",
    )


def _notes(job: Job, *, sharded: bool) -> list[str]:
    workload = job.plan.workload
    notes = [
        f"the script sets: batch size {job.strategy.microbatch_size} per device, "
        f"gradient_accumulation_steps={job.num_microbatches} (global batch "
        f"{workload.global_batch_size}), sequence length {workload.sequence_length}, "
        f"optimizer {workload.optimizer}, attention {workload.attention}",
    ]
    if job.num_nodes > 1:
        notes.append("give main_process_ip, main_process_port and each node's machine_rank")
    if sharded and job.strategy.sharding == "parameters" and job.num_microbatches > 1:
        notes.append(
            "gradients stay whole between microbatches unless the script passes "
            "GradientAccumulationPlugin(sync_each_batch=True), as the plan counts"
        )
    if sharded and job.strategy.sharding == "optimizer" and job.num_microbatches > 1:
        notes.append(gather_remark(job, trainer=NAME))
    if job.strategy.context_parallel_size > 1:
        notes.append(
            "context parallelism needs attention without a mask (sdpa) and the script's training "
            "step inside accelerator.maybe_context_parallel"
        )
    return notes + software_remarks(job, known=("eager", "compiled"), best="eager or compiled")


def yaml_text(settings: Mapping[str, Any], *, head: list[str]) -> str:
    """Return a mapping of scalars, or of such mappings, as YAML.

    Examples
    --------
    >>> print(yaml_text({"kind": "NO", "more": {"on": True}}, head=["what"]), end="")
    # what
    kind: "NO"
    more:
      on: true
    """
    lines = [f"# {line}" for line in head]
    for key, value in settings.items():
        if isinstance(value, Mapping):
            lines.append(f"{key}:")
            lines += [f"  {name}: {json.dumps(item)}" for name, item in value.items()]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"
