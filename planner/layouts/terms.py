"""What one unit costs one rank for one microbatch under given layouts: the input of the scorer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from planner.layouts.flows import TensorState
from simulator.groups import CollectiveKind

Axis = Literal["dp", "cp", "ep", "tp"]
Phase = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectiveUse:
    """A collective of every rank of an axis, ``count`` times per microbatch and repetition."""

    kind: CollectiveKind
    axis: Axis
    phase: Phase
    message_bytes: float
    """In the nccl-tests convention for ``kind`` (all-gather: gathered size; ...) [B]."""
    count: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientGroup:
    """Parameters whose gradients are partial sums over the same axes."""

    axes: tuple[Axis, ...]
    """Axes to reduce over; ``("dp", "cp")`` for plain weights, ``("dp",)`` sub-axes for experts are
    expressed by leaving out ``"ep"``'s share, see ``is_expert``."""
    num_parameters: float
    """Elements held by one rank, one repetition [1]."""
    is_expert: bool = False
    """Expert parameters: already split over ``ep``, reduced over ``dp * cp / ep`` ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutSolution:
    """One choice per operator on the tensor axis: the label it splits, or None."""

    name: str
    """``data``, ``tensor``, ``hybrid``, ``replicated``: by what it splits, for people."""
    choices: Mapping[str, str | None]
    size: int
    states: Mapping[str, TensorState] | None = None
    """How tensors are held between operators; None for the cheapest way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitTerms:
    """Costs of one repetition of one unit for one microbatch on one rank."""

    unit: str
    forward_s: float
    """Compute, without communication [s]."""
    backward_s: float
    """Compute, without communication and recomputation [s]."""
    weight_s: float
    """Part of ``backward_s`` that makes gradients of weights [s]."""
    selective_recompute_s: float
    """Extra compute in backward when attention cores are recomputed [s]."""
    communication: tuple[CollectiveUse, ...]
    gradient_groups: tuple[GradientGroup, ...]
    forward_flops: float
    """Model FLOPs of this rank [FLOP]."""
    backward_flops: float
    selective_recompute_flops: float
    saved_bytes: float
    """Kept for backward per microbatch in flight [B]."""
    selective_saved_bytes: float
    """The same when attention cores are recomputed [B]."""
    boundary_bytes: float
    """Carried tensors at the entry: kept under full recomputation, sent between stages [B]."""
    workspace_bytes: float
    """Most that is alive in backward beside ``saved_bytes``, copies and gradients on their way [B].
    In inference the most that is alive at once."""
    selective_workspace_bytes: float = 0.0
    """The same beside ``selective_saved_bytes`` when attention cores are recomputed [B]."""
    lazy_workspace_bytes: float = 0.0
    """As ``workspace_bytes``, with the gradients of the unit's own parameters made so far [B]."""
    lazy_selective_workspace_bytes: float = 0.0
    after_loss_workspace_bytes: float = 0.0
    """As ``lazy_workspace_bytes``, once the loss has run backward [B]."""
    op_recompute_s: float = 0.0
    """Extra compute in backward under op-level recomputation [s]."""
    op_recompute_flops: float = 0.0
    op_saved_bytes: float = 0.0
    """Kept under op-level recomputation: what enters, and results of attention and of every second
    product [B]."""
    forward_calls: float = 0.0
    """Kernels that the host launches for the forward pass [1]."""
    backward_calls: float = 0.0
    output_bytes: float = 0.0
    """Of ``saved_bytes``, the model's output, held until the whole backward pass is through [B]."""
    weight_calls: float = 0.0
    """Those of the backward pass that make gradients of weights [1]."""
    awaiting_bytes: float = 0.0
    """Kept between the gradients of inputs and those of weights, where these run apart [B]."""
    selective_awaiting_bytes: float = 0.0
    """The same when attention cores are recomputed [B]."""
    weight_bytes: float = 0.0
    """Weights of products in the compute precision, of equal experts one [B]."""
    tied_parameters: float = 0.0
    """Elements of parameters that an earlier unit counts already (a head that shares an embedding's
    weight): held again where the two are on different stages [1]."""

    @property
    def num_parameters(self) -> float:
        """Elements held by one rank, one repetition."""
        return sum(group.num_parameters for group in self.gradient_groups)
