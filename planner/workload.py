"""What is to be computed: batch, sequence, precision, optimizer, training or inference."""

from dataclasses import dataclass
from typing import Literal

from hardware_profiles.device import Precision

OptimizerName = Literal["sgd", "momentum", "adam", "adamw", "adafactor", "adam8bit"]
Mode = Literal["train", "infer"]
AttentionChoice = Literal["auto", "unfused", "flash"]

OPTIMIZER_STATE_BYTES: dict[str, float] = {
    "sgd": 0.0,
    "momentum": 4.0,
    "adam": 8.0,
    "adamw": 8.0,
    "adafactor": 0.05,
    "adam8bit": 2.0,
}
"""Optimizer state per parameter beside any fp32 master copy [B]; fp32 moments, ZeRO
(arXiv:1910.02054) section 3.1; adafactor's factored second moment is O(rows + columns)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One training step or one forward pass over a global batch."""

    global_batch_size: int
    sequence_length: int
    precision: Precision
    optimizer: OptimizerName = "adam"
    mode: Mode = "train"
    attention: AttentionChoice = "auto"

    @property
    def is_training(self) -> bool:
        """Whether there is a backward pass and an update."""
        return self.mode == "train"

    @property
    def compute_bytes(self) -> int:
        """Item size of the compute precision [B]."""
        return {"fp64": 8, "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 2, "int8": 1}[
            self.precision
        ]
