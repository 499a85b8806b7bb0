"""Bytes per parameter by precision recipe, optimizer and sharding."""

from typing import Any, get_args

import pytest

from hardware_profiles import load_software
from hardware_profiles.software import SoftwareProfile
from planner.state_memory import StateBytes, sharded_state_bytes, state_bytes
from planner.strategy import Sharding
from planner.workload import Workload

RECIPE = ("master_weights", "gradient_precision", "pure_low_precision")


def software(**fields: Any) -> SoftwareProfile:
    from dataclasses import replace

    return replace(load_software("eager"), **fields)


def state(*, precision: Any = "bf16", **fields: Any) -> StateBytes:
    recipe = {k: fields.pop(k) for k in RECIPE if k in fields}
    workload = Workload(global_batch_size=1, sequence_length=1, precision=precision, **fields)
    return state_bytes(workload, software=software(**recipe))


@pytest.mark.parametrize(
    ("fields", "total"),
    [
        # 2 weights + 2 gradients + 4 copy + 8 moments: ZeRO, arXiv:1910.02054, section 3.1.
        ({"master_weights": True, "gradient_precision": "compute"}, 16),
        # Megatron-LM accumulates gradients in fp32.
        ({"master_weights": True, "gradient_precision": "fp32"}, 18),
        # torch autocast: everything kept is fp32.
        ({"master_weights": False, "gradient_precision": "fp32"}, 16),
        # everything in 16 bit; with fp32 gradients; with an 8-bit optimizer
        ({"pure_low_precision": True, "gradient_precision": "compute"}, 8),
        ({"pure_low_precision": True, "gradient_precision": "fp32"}, 10),
        (
            {"pure_low_precision": True, "gradient_precision": "compute", "optimizer": "adam8bit"},
            6,
        ),
        ({"precision": "fp32"}, 16),
        ({"precision": "fp32", "optimizer": "sgd"}, 8),
        ({"precision": "fp32", "optimizer": "momentum"}, 12),
        ({"precision": "fp32", "optimizer": "adam8bit"}, 10),
        ({"mode": "infer"}, 2),
        ({"mode": "infer", "precision": "fp32"}, 4),
    ],
)
def test_recipes(fields: dict[str, Any], total: float) -> None:
    assert state(**fields).total == total


@pytest.mark.parametrize("size", [1, 2, 64])
def test_sharding_takes_from_optimizer_then_gradients_then_weights(size: int) -> None:
    whole = StateBytes(parameters=2, gradients=2, optimizer=12, gathered=2)
    totals = [
        sum(sharded_state_bytes(whole, sharding=sharding, shard_size=size))
        for sharding in get_args(Sharding)
    ]
    assert totals == pytest.approx([16, 4 + 12 / size, 2 + 14 / size, 16 / size])


def test_autocast_holds_a_16_bit_copy_and_fully_shard_its_weights_as_shards() -> None:
    found = state(master_weights=False)
    assert (found.parameters, found.cast, found.gathered) == (4, 2, 2)
    kept = sharded_state_bytes(found, sharding="optimizer", shard_size=4, fully_shards=True)
    assert kept == (1, 4, 2)
    plain = sharded_state_bytes(found, sharding="optimizer", shard_size=4)
    assert plain == (4, 4, 2)
