"""What a software stack does with a device: fusion, attention kernel, overlap, memory overhead."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hardware_profiles.device import FlashVersion, Precision
from hardware_profiles.provenance import Provenance

AttentionKernel = Literal["unfused", "flash"]
SplitBackward = Literal["none", "graph"]
"""Whether pipelines run gradients of weights apart from those of inputs (zero bubble), and what
stays in between: all that backward saved."""
GradientBuckets = Literal["none", "views", "copies", "two"]
"""Where replicas reduce gradients: where they lie; in buckets that stay and hold them; in buckets
that hold a second copy of all; in two buckets that are filled in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftwareProfile:
    """One training or serving stack; shares are between 0 and 1."""

    name: str
    title: str
    fuses_elementwise: bool
    """Chains of element-wise operators run as one kernel (and save only the chain's inputs)."""
    fuses_normalization: bool
    """Layer and RMS norms run as one kernel."""
    fuses_norm_activation: bool = False
    """What follows a batch norm element by element (activation, sum with a shortcut) runs in the
    norm's kernel."""
    attention: AttentionKernel
    """Attention kernel when the workload says ``auto``."""
    flash_version: FlashVersion = 2
    """Version of the fused attention kernel, where the device's profile tells versions apart."""
    fuses_attention_softmax: bool
    """With unfused attention: scale, mask, softmax and dropout are one kernel."""
    kernel_overhead_s: float
    """Host time per kernel that is not hidden behind the device [s]."""
    overlap_gradient_sync: float
    """Share of the backward pass under which gradient collectives can hide [1]."""
    overlap_parameter_gather: float
    """Share of compute under which parameter all-gathers of sharded data parallelism hide [1]."""
    overlap_tensor_parallel: float
    """Share of tensor-parallel communication hidden by chunked overlap [1]."""
    overlap_tensor_backward: float = 0.0
    """Share of the tensor-parallel communication of the backward pass that runs beside the products
    for weight gradients, in addition to ``overlap_tensor_parallel`` [1]."""
    overlap_pipeline: float
    """Share of pipeline sends hidden beside compute [1]."""
    compute_slowdown: float
    """Factor on compute while a collective runs beside it, at least 1 [1]."""
    gradient_bucket_bytes: float
    """Bytes per bucket of the gradient collective [B]."""
    gradient_precision: Literal["compute", "fp32"]
    """Precision of accumulated gradients and of their collective, in mixed precision."""
    master_weights: bool
    """Mixed precision keeps fp32 master weights beside the 16-bit ones."""
    sharded_operator_overhead_s: float = 0.0
    """Host time that one operator on sharded tensors costs beyond the plain one, not hidden behind
    the device (DTensor's dispatch on a CPU) [s]."""
    host_call_s: float = 0.0
    """Time the host needs to issue one kernel or collective through the framework; the host runs
    ahead, so that a block takes the longer of host and device [s]."""
    collective_call_s: float = 0.0
    """Time that a blocking collective takes through the framework beyond the library's own, per
    doubling of the ranks and once more: events between streams, ranks that arrive apart [s]."""
    gradient_bucket_per_rank_bytes: float = 0.0
    """The bucket grows with the data-parallel group to at least this many bytes per rank, so that a
    large group does not spend its time on latency [B]."""
    gradient_accumulation_bytes: float = 0.0
    """Bytes moved per parameter and microbatch to bring a gradient into its buffer, beside what the
    product writes: casts, copies into buckets, read and write of the buffer [B]."""
    split_backward: SplitBackward = "none"
    scatters_pipeline: bool = False
    """Stages send each tensor rank's piece and gather it on arrival (arXiv:2104.04473, 4.1)."""
    keeps_gathered: bool = False
    """Products keep the input they gathered over sequence-parallel ranks, not its shard."""
    keeps_output: bool = False
    """The training loop holds the model's output through the backward pass."""
    autocasts: bool = False
    """16-bit training runs under torch's autocast: norms, softmax, residual stream in fp32."""
    frees_gradients: bool = False
    """Gradients are made anew in every step and gone after the update; else they have a buffer."""
    fully_shards: bool = False
    """Weights rest as shards whatever is sharded, and are gathered for a step (torch's FSDP2)."""
    keeps_dummy_gradients: bool = False
    """Products that add into the gradient buffer still hand autograd a 16-bit tensor of the
    weight's shape, one per shape, kept for good (Transformer Engine, ``get_dummy_wgrad``)."""
    pure_low_precision: bool = False
    """Mixed precision without any fp32 copy: 16-bit weights and moments, and 16-bit gradients
    unless ``gradient_precision`` says fp32."""
    copies_messages: bool = False
    """Gathers and reductions of sharded data parallelism run in a copy of the whole (gloo)."""
    fuses_split_loss: bool = False
    """The loss of classes that ranks share makes the gradient of the logits alone, from the
    probabilities it kept (``executor/split_loss.py``)."""
    fuses_cross_entropy: bool = False
    """The loss makes its gradient in the place of the probabilities it kept (Megatron Core,
    ``cross_entropy_loss_fusion``)."""
    gradient_buckets: GradientBuckets = "none"
    optimizer_temporary_bytes: float = 0.0
    """Copies per parameter while the optimizer runs [B]."""
    optimizer_tensor_s: float = 0.0
    """Time of an update per parameter tensor, beside that per element [s]."""
    sharded_unit_s: float = 0.0
    """Time of one gathering of a sharded unit's weights, or one reduction of its gradients, beside
    the bytes it moves: hooks, copies, the latency of the collective [s]."""
    checkpoint_s: float = 0.0
    """Host time of one activation checkpoint beside the forward pass that it repeats, not hidden
    behind the device [s]."""
    first_bucket_bytes: float = 0.0
    """The first bucket of gradients that torch's DDP reduces, so that it may start early [B]."""
    product_share: float = 1.0
    """How the stack's matrix products run as compared with the device's, which are measured with a
    later library [1]."""
    convolution_shares: Mapping[Precision, float] = field(default_factory=dict)
    """Per precision, how the stack's convolutions run as products compare with the device's, which
    are measured with the best algorithm of a later library; 1 where absent [1]."""
    fixed_memory_bytes: float
    """Context, library and communicator memory per device [B]."""
    allocator_overhead: float
    """Fragmentation as a share of the planned bytes [1]."""
    straggler_share: float
    """Step time lost to jitter between ranks, per doubling of nodes [1]."""
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
