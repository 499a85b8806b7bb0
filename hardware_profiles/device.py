"""What one device is: peak rates, memory, and how much of them kernels reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hardware_profiles.provenance import Provenance

Precision = Literal["fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
DeviceKind = Literal["gpu", "tpu", "fpga", "cpu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MatmulEfficiency:
    """How much of the peak a matrix product reaches, by shape.

    ``time = waves * tile_time``: the output is cut into tiles of ``tile_m x tile_n``, tiles are
    spread over the compute units in waves, and each tile's main loop over ``k`` ramps up.
    """

    sustained_efficiency: float
    """Share of the datasheet peak a large, aligned product reaches for minutes [1]."""
    tile_m: int
    """Rows of the output tile of one compute unit [elements]."""
    tile_n: int
    """Columns of the output tile of one compute unit [elements]."""
    half_k: float
    """Length of the inner dimension at which half of the sustained rate is reached [elements]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfile:
    """One device, in SI units; rates are dense and in one direction."""

    name: str
    title: str
    vendor: str
    kind: DeviceKind
    year: int
    peak_flops_per_s: Mapping[Precision, float]
    """Dense peak per precision [FLOP/s]; a precision the device lacks is absent."""
    vector_flops_per_s: float
    """Peak of the non-matrix units, for element-wise work [FLOP/s]."""
    memory_bytes: float
    """Device memory [B]."""
    memory_bandwidth_bytes_per_s: float
    """Datasheet memory bandwidth [B/s]."""
    num_compute_units: int
    """SMs, CUs, matrix units or cores over which tiles are spread [1]."""
    launch_latency_s: float
    """Time between two dependent small kernels in one stream [s]."""
    memory_efficiency: float
    """Share of the memory bandwidth that a large copy reaches [1]."""
    memory_half_bytes: float
    """Bytes at which a memory-bound kernel reaches half of that share [B]."""
    matmul: MatmulEfficiency
    attention_forward_efficiency: float
    """Share of peak that the fused attention kernel reaches forward [1]."""
    attention_backward_efficiency: float
    """Share of peak that the fused attention kernel reaches backward [1]."""
    convolution_gain: float
    """Factor by which fast algorithms beat the direct FLOP count of fp32 3x3, 5x5 filters [1]."""
    price_usd_per_hour: float | None = None
    """On-demand price of one device [USD/h]; None where nobody rents it."""
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    """Source per quantity, keyed by field name (``peak_flops_per_s.bf16`` for one precision)."""
