"""What one device is: peak rates, memory, and how much of them kernels reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hardware_profiles.provenance import Provenance

Precision = Literal["fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
FlashVersion = Literal[1, 2, 3]
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
    operand_cost: float = 13.5
    """How much a small tile loses to loading operands: a tile of ``a x b`` reaches
    ``1 / (1 + cost (1/a + 1/b))`` of the rate of an endless one [elements]."""
    kernel_time_s: float = 0.0
    """Prologue, first loads, epilogue and drain of one product kernel, beside its launch [s]."""
    sustained_clock: float = 1.0
    """Share of the rate in short measurements that minutes of products under the power limit leave;
    contained in :attr:`sustained_efficiency` [1]."""
    misaligned_share: float = 1.0
    """Share of the rate left when rows do not start at multiples of 16 B [1]."""
    precision_shares: Mapping[Precision, float] = field(default_factory=dict)
    """Factor on :attr:`sustained_efficiency` per precision, 1 where absent [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionEfficiency:
    """How much of the peak one fused attention kernel reaches on long, wide heads."""

    forward: float
    """Share of peak forward, at a head width of 128 [1]."""
    backward: float
    """Share of peak backward, at a head width of 128 [1]."""
    half_width: float = 0.0
    """Head width at which exponentials take as long as products [elements]."""


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
    convolution_share: float = 1.0
    """Share of the rate of a plain product that a convolution reaches as one [1]."""
    convolution_time_s: float = 0.0
    """Transforms of filters and layouts, and partly filled units, of one convolution kernel, beside
    its launch, arithmetic and traffic [s]."""
    recurrent_step_s: float = 0.0
    """Time of one dependent step of a recurrent layer beside its arithmetic and traffic [s]."""
    attention_half_width: float = 0.0
    """Head width at which exponentials take as long as products [elements]."""
    attention_kernels: Mapping[FlashVersion, AttentionEfficiency] = field(default_factory=dict)
    """Other versions of the fused attention kernel; the fields above stand for version 2 and for
    versions that are absent."""
    element_times_s: Mapping[str, float] = field(default_factory=dict)
    """Time per element of memory-bound kernels whose arithmetic counts, by name (``gelu``,
    ``gelu.backward``), traffic included: CPUs compute exponentials slower than they move bytes [s].
    """
    price_usd_per_hour: float | None = None
    """On-demand price of one device [USD/h]; None where nobody rents it."""
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    """Source per quantity, keyed by field name (``peak_flops_per_s.bf16`` for one precision)."""
