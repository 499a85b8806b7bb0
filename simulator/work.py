"""What one operator asks of one device: the only thing the simulator knows about a model."""

from dataclasses import dataclass
from typing import Literal

from hardware_profiles.device import Precision

WorkKind = Literal["matmul", "convolution", "attention", "memory", "recurrent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Local work of one operator on one device, after all splits.

    ``matmul`` and ``convolution`` state the equivalent product ``batch x (m x k) @ (k x n)``;
    ``attention`` states ``batch`` = sequences x heads, ``m`` = query length, ``n`` = key length,
    ``k`` = head width. ``memory`` counts only bytes.
    """

    kind: WorkKind
    precision: Precision
    num_flops: float = 0.0
    """[FLOP]."""
    memory_bytes: float = 0.0
    """Read plus written in device memory [B]."""
    batch: float = 1.0
    m: float = 1.0
    n: float = 1.0
    k: float = 1.0
    num_kernels: float = 1.0
    """Launches [1]."""
    filter_area: int = 1
    """Convolutions: height times width of the filter [1]."""
    aligned: bool = True
    """Rows of all operands start at multiples of 16 B, as fast matrix instructions want."""
    backward: bool = False
    weight_gradient: bool = False
    """Backward products and convolutions: the gradient of the weight, not of the input."""
    sequential_steps: int = 1
    """Recurrent layers: dependent steps [1]."""
    function: str = ""
    """Memory-bound kernels: what they compute, names joined by ``+`` (``aten.add+aten.gelu``)."""
    num_elements: float = 0.0
    """Memory-bound kernels: elements they go through [1]."""
