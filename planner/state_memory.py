"""Bytes per parameter that a rank keeps between microbatches: weights, gradients, optimizer."""

from dataclasses import dataclass

from hardware_profiles.software import SoftwareProfile
from planner.strategy import Sharding
from planner.workload import OPTIMIZER_STATE_BYTES, Workload

FP32_BYTES = 4.0
_MIXED = ("fp16", "bf16", "fp8")
_FP32_MOMENTS = ("momentum", "adam", "adamw")
"""Optimizers whose moments follow the weights' precision; others have a format of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateBytes:
    """Bytes per parameter before any sharding [B]."""

    parameters: float
    """Weights that the kernels read."""
    gradients: float
    optimizer: float
    """Moments and, in mixed precision with master weights, the fp32 copy."""
    gathered: float
    """One gathered weight under sharded data parallelism."""
    cast: float = 0.0
    """A 16-bit copy of a weight that lives from its forward to its backward pass: what autocast
    casts, where weights are fp32 and not gathered."""

    @property
    def total(self) -> float:
        """Sum of what is kept between steps."""
        return self.parameters + self.gradients + self.optimizer


def state_bytes(workload: Workload, *, software: SoftwareProfile) -> StateBytes:
    """Return what one parameter costs under a precision recipe and an optimizer.

    With master weights a mixed-precision parameter costs 2 B, its gradient 2 or 4 B, the fp32 copy
    4 B and the moments 8 B for Adam: 16 or 18 B (ZeRO, arXiv:1910.02054, section 3.1; Megatron-LM
    keeps fp32 gradients). Without master weights (torch autocast, FSDP2 mixed precision) weights,
    gradients and moments stay in fp32: 16 B, and the 16-bit copy lives while a step needs it. Pure
    16-bit training keeps weights, gradients and moments in 16 bit: 8 B, with fp32 gradients 10 B.

    Examples
    --------
    >>> from hardware_profiles import load_software
    >>> adam = Workload(global_batch_size=8, sequence_length=8, precision="bf16")
    >>> state_bytes(adam, software=load_software("megatron-core")).total
    18.0
    """
    item = float(workload.compute_bytes)
    if not workload.is_training:
        return StateBytes(parameters=item, gradients=0.0, optimizer=0.0, gathered=item)
    moments = OPTIMIZER_STATE_BYTES[workload.optimizer]
    if workload.precision not in _MIXED:
        return StateBytes(parameters=item, gradients=item, optimizer=moments, gathered=item)
    gradient = FP32_BYTES if software.gradient_precision == "fp32" else item
    if software.pure_low_precision:
        is_fp32 = workload.optimizer in _FP32_MOMENTS
        low = moments * item / FP32_BYTES if is_fp32 else moments
        return StateBytes(parameters=item, gradients=gradient, optimizer=low, gathered=item)
    if not software.master_weights:
        return StateBytes(
            parameters=FP32_BYTES, gradients=FP32_BYTES, optimizer=moments, gathered=item, cast=item
        )
    return StateBytes(
        parameters=item, gradients=gradient, optimizer=moments + FP32_BYTES, gathered=item
    )


def sharded_state_bytes(
    state: StateBytes, *, sharding: Sharding, shard_size: int, fully_shards: bool = False
) -> tuple[float, float, float]:
    """Return (weights, gradients, optimizer) bytes per parameter on one rank.

    ZeRO-1, 2 and 3 (arXiv:1910.02054, section 5) shard the optimizer, then also gradients, then
    also weights over ``shard_size`` ranks. Where ``fully_shards``, weights are shards in all three
    (torch's ``fully_shard`` without resharding), and gathered for the step.

    Examples
    --------
    >>> state = StateBytes(parameters=2, gradients=2, optimizer=12, gathered=2)
    >>> sharded_state_bytes(state, sharding="optimizer", shard_size=4)
    (2, 2, 3.0)
    >>> sum(sharded_state_bytes(state, sharding="parameters", shard_size=4))
    4.0
    """
    weights = state.parameters
    gradients = state.gradients
    optimizer = state.optimizer
    if sharding != "none":
        optimizer = optimizer / shard_size
    if sharding in ("gradients", "parameters"):
        gradients = gradients / shard_size
    if sharding == "parameters" or (fully_shards and sharding != "none"):
        weights = weights / shard_size
    return weights, gradients, optimizer
