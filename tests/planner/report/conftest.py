"""Made-up plans: one with everything, one with nothing."""

from typing import Any

import pytest

from planner.plan import Plan, PlannedCluster, PlannedMesh, PlannedModel, PlannedWorkload

GIB = 2**30


def make_plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "paraplan_version": "0.1.0",
        "model": PlannedModel(
            source="gpt3-175b", name="gpt3-175b", num_parameters=174_615_846_912, content_key="k"
        ),
        "workload": PlannedWorkload(
            global_batch_size=1536, sequence_length=2048, precision="bf16", optimizer="adam",
            mode="train", attention="auto",
        ),
        "cluster": PlannedCluster(
            name="dgx-a100-80g:128", device="a100-sxm4-80g", device_kind="gpu", num_devices=1024,
            devices_per_node=8,
        ),
        "software": "megatron-core",
        "strategy": "dp=8,tp=8,pp=16,microbatch=1,schedule=1f1b,sequence_parallel=on",
        "mesh": PlannedMesh(axes=(("pp", 16), ("dp", 8), ("tp", 8))),
        "stages": (),
    }  # fmt: skip
    return Plan(**{**fields, **changes})


def candidate(strategy: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "step_time_s": seconds,
        "step_time_interval_s": [seconds * 0.93, seconds * 1.08],
        "mfu": 0.489 * 32.1 / seconds,
        "peak_memory_bytes": 61.2 * GIB,
        "fits": True,
        "bubble_fraction": 0.09,
        **more,
    }


@pytest.fixture
def bare_plan() -> Plan:
    return make_plan()


@pytest.fixture
def full_plan() -> Plan:
    per_stage = [(61.2 - 1.4 * stage) * GIB for stage in range(16)]
    return make_plan(
        prediction={
            "step_time_s": 32.1,
            "step_time_interval_s": [29.8, 35.0],
            "tokens_per_s": 1536 * 2048 / 32.1,
            "samples_per_s": 1536 / 32.1,
            "mfu": 0.489,
            "hfu": 0.489,
            "peak_memory_bytes": 61.2 * GIB,
            "peak_memory_bytes_per_stage": per_stage,
            "memory_breakdown_bytes": {
                "parameters": 2.6 * GIB, "gradients": 5.2 * GIB, "optimizer_state": 15.6 * GIB,
                "activations": 33.0 * GIB, "workspace": 3.1 * GIB, "logits": 1.7 * GIB,
            },
            "memory_capacity_bytes": 80 * GIB,
            "fits": True,
            "breakdown_s": {
                "compute": 23.9, "tensor": 3.8, "data": 0.9, "pipeline": 0.35, "context": 0.0,
                "expert": 0.0, "bubble": 2.9, "optimizer": 0.21, "input": 0.04,
            },
            "bubble_fraction": 0.09,
            "num_devices": 1024,
            "cost_usd_per_hour": 2100.0,
        },
        candidates=(
            candidate("dp=16,tp=8,pp=8,microbatch=1,schedule=1f1b,recompute=full", 33.4),
            candidate("dp=8,tp=8,pp=16,microbatch=2,schedule=1f1b,recompute=selective", 34.9),
            candidate("dp=4,tp=8,pp=32,microbatch=1,schedule=1f1b", 36.2),
            candidate("dp=8,tp=4,pp=32,microbatch=1,schedule=1f1b", 39.0),
        ),
        baselines=(
            {"name": "data parallel", "strategy": "dp=1024,microbatch=1", "fits": False,
             "peak_memory_bytes": 2794 * GIB, "reason": "needs 2.73 TiB of 80.0 GiB"},
            candidate("dp=1024,microbatch=1,sharding=parameters,recompute=full", 58.7,
                      name="FSDP", peak_memory_bytes=44.0 * GIB),
            candidate("dp=8,tp=8,pp=16,microbatch=1,schedule=1f1b,recompute=full", 41.9,
                      name="Megatron-style", peak_memory_bytes=30.1 * GIB),
        ),
        rejected={"out of memory": 1893, "heads do not divide": 96, "batch does not divide": 412},
        explanation={
            "sentence": "Cut every layer over the 8 GPUs of a node, the depth into 16 stages, "
            "and keep 8 copies of the whole over the batch.",
            "bottleneck": "matrix products, 74 % of the step; then tensor-parallel all-gathers",
            "binding_constraint": "stage 0 is out of memory at pp=8 without recomputation",
            "runner_up": {
                "strategy": "dp=16,tp=8,pp=8,microbatch=1,schedule=1f1b,recompute=full",
                "margin": 0.0405,
            },
            "what_if": [
                {"change": "twice the network bandwidth", "step_time_s": 31.0, "gain": 0.034},
                {"change": "twice the memory per device", "step_time_s": 28.9, "gain": 0.0997},
                {"change": "twice the devices", "step_time_s": 17.2, "gain": 0.464},
            ],
            "layers": [
                {"operator": "linear", "module": "blocks.*.attention.query", "choice": "n",
                 "words": "split its output columns (heads)",
                 "alternatives": {"b": 0.41, "k": 0.083, "replicated": 1.9}},
                {"operator": "linear", "module": "blocks.*.attention.output", "choice": "k",
                 "words": "split its input rows; the sum is reduced",
                 "alternatives": {"b": 0.39, "n": 0.09}},
                {"operator": "layer_norm", "module": "blocks.*.ffn_norm", "choice": "s",
                 "words": "split the positions", "alternatives": {"replicated": 0.012}},
                {"operator": "embedding", "module": "embedding.token", "choice": "vocab",
                 "words": "split the vocabulary", "alternatives": {"replicated": 0.034}},
            ],
        },
        assumptions=(
            "expert load is balanced", "input data arrives in time",
            "network efficiency 0.88 of line rate (datasheet)", "prices are list prices of 2024",
        ),
    )  # fmt: skip
