"""Workloads and what their optimizers keep."""

from dataclasses import FrozenInstanceError
from typing import get_args

import pytest

from hardware_profiles.device import Precision
from planner.workload import OPTIMIZER_STATE_BYTES, OptimizerName, Workload


def workload(precision: Precision = "bf16", **fields: str) -> Workload:
    return Workload(global_batch_size=8, sequence_length=16, precision=precision, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "bytes_"),
    [("fp64", 8), ("fp32", 4), ("tf32", 4), ("fp16", 2), ("bf16", 2), ("fp8", 2), ("int8", 1)],
)
def test_item_size(precision: Precision, bytes_: int) -> None:
    """Fp8 computes in 8 bits and keeps 16-bit tensors; tf32 is a way to multiply fp32."""
    assert workload(precision).compute_bytes == bytes_


def test_every_precision_has_an_item_size() -> None:
    assert all(workload(precision).compute_bytes > 0 for precision in get_args(Precision))


def test_every_optimizer_has_a_state() -> None:
    assert set(OPTIMIZER_STATE_BYTES) == set(get_args(OptimizerName))
    order = ["sgd", "adafactor", "adam8bit", "momentum", "adam"]
    sizes = [OPTIMIZER_STATE_BYTES[name] for name in order]
    assert sizes == sorted(sizes)


def test_inference_is_no_training() -> None:
    assert workload().is_training
    assert not workload(mode="infer").is_training


def test_a_workload_is_a_value() -> None:
    assert workload() == workload()
    with pytest.raises(FrozenInstanceError):
        workload().global_batch_size = 9  # type: ignore[misc]
