"""One rank's part of a plan: its modules under layouts, sharding, recomputation and a schedule."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication

from executor.checks import check_same_model
from executor.context_parallel import Context, make_context
from executor.data_parallel import replicate, shard_parameters, sharding_blocks
from executor.errors import RunError
from executor.expert_parallel import shard_experts, spread_experts
from executor.gradient_averages import GradientAverage, needs_own_average, own_averages
from executor.layouts import LayoutBoundary, apply_layout, pattern_of, placement_of
from executor.local_shards import LocalShards
from executor.model_parts import ModelParts, build_model, parts_of
from executor.pipeline import ChainStage, make_schedule
from executor.precision import Numerics, cast_at_edges, lower_weights, numerics_of
from executor.rank_mesh import EXPERT_COPIES, RankMesh
from executor.recompute import recompute_blocks, repeated_patterns
from executor.recording import Recorder
from executor.settings import RunSettings
from executor.shape import RunShape
from executor.split_loss import Loss, split_loss
from planner.models.source import ModelSource
from planner.plan import Plan, PlannedLayout

Modes = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """What a rank runs."""

    module: nn.Module | None
    """The whole model under its splits; None under a pipeline."""
    schedule: Any
    """torch's pipeline schedule; None without a pipeline."""
    has_first: bool
    has_last: bool
    slots: dict[str, tuple[nn.Module, str]]
    """Canonical parameter name -> owner and attribute, tied ones once."""
    owned: tuple[tuple[str, nn.Module], ...]
    """Path and module of everything inside this rank's stages."""
    tied: dict[str, dist.ProcessGroup]
    """Parameters held by several pipeline ranks -> the group that sums their gradients."""
    modes: Modes
    """Context of a forward and backward pass."""
    loss: Loss
    """Loss of what the last module hands out."""
    context: Context | None
    """This rank's positions of each sample, where they are cut."""
    averages: tuple[GradientAverage, ...]
    """Gradients that no library layer averages."""
    numerics: Numerics

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return this rank's parameters (possibly shards) by name."""
        found: dict[str, nn.Parameter] = {}
        for name, (owner, key) in self.slots.items():
            parameter = owner._parameters[key]
            if parameter is not None:
                found[name] = parameter
        return found


def assemble(
    plan: Plan,
    settings: RunSettings,
    *,
    source: ModelSource,
    ranks: RankMesh,
    device: torch.device,
    recorder: Recorder,
) -> Assembly:
    """Build the model by seed and keep this rank's part of it, split as the plan says."""
    shape = settings.shape
    model = build_model(source, seed=settings.seed).to(device)
    if settings.scale_down == 1:
        check_same_model(
            plan,
            parameters={name for name, _ in model.named_parameters(remove_duplicate=False)},
            modules={path for path, _ in model.named_modules()},
        )
    parts = parts_of(model, source=source, settings=settings, pipeline_rank=ranks.coordinate("pp"))
    layout = plan.layouts[0] if plan.layouts and shape.size("tp") > 1 else None
    numerics = numerics_of(settings.precision, software=plan.software)
    context = make_context(model, mesh=ranks.axis("cp"), shape=shape, recorder=recorder)
    modes = partial(
        run_modes, shape=shape, has_layout=layout is not None, check=settings.check,
        autocast=numerics.autocast_on(device), context=context, seen=SeenDropout(),
    )  # fmt: skip
    experts = _spread(parts, ranks)
    _lower_all(parts, experts, numerics=numerics, ranks=ranks)
    shardable = _shardable(parts)
    tensor_mesh = ranks.axis("tp")
    if layout is not None and tensor_mesh is not None:
        apply_layout(parts.owned, layout, mesh=tensor_mesh, names_of=parts.names_of)
    if shape.recompute in ("full", "selective_op"):
        for blocks in _recomputed(parts, plan):
            recompute_blocks(blocks, mode=modes, keeps_products=shape.recompute == "selective_op")
    stages = {}
    for index in parts.stage_paths:
        inner = _inner_module(parts, index, layout=layout, mesh=tensor_mesh, shape=shape)
        cast_at_edges(inner, numerics, is_first=index == 0, is_last=index == shape.num_stages - 1)
        stages[index] = _data_parallel(
            inner, shardable[index], experts=experts, ranks=ranks, recorder=recorder,
            numerics=numerics,
        )  # fmt: skip
    first = next(iter(stages.values()))
    loss = source.loss
    if layout is not None and tensor_mesh is not None:
        loss = split_loss(loss, placement=placement_of(layout.model_output), mesh=tensor_mesh)
    schedule = _schedule(stages, loss=loss, ranks=ranks, device=device, recorder=recorder)
    return Assembly(
        module=first if schedule is None else None,
        schedule=schedule,
        has_first=0 in stages,
        has_last=shape.num_stages - 1 in stages,
        slots=parts.slots,
        owned=parts.owned,
        tied=_tied_groups(parts, ranks),
        modes=modes,
        loss=loss,
        context=context,
        averages=own_averages(parts.slots, expert_names=_names_in(experts, parts), ranks=ranks),
        numerics=numerics,
    )


@dataclass(kw_only=True, slots=True)
class SeenDropout:
    """Whether a model drops anything, which its first pass tells."""

    found: bool | None = None
    """None before the first pass."""


@contextmanager
def run_modes(
    *, shape: RunShape, has_layout: bool, check: bool, autocast: Modes = nullcontext,
    context: Context | None = None, seen: SeenDropout | None = None,
) -> Iterator[None]:  # fmt: skip
    """Enter what a forward and backward pass needs: local shards, plain tensors as replicated.

    Looking at every call of torch costs some 2 % of a small model's step: a check that is the only
    reason to look, and that found no dropout in a pass before (``seen``), looks no more.
    """
    seen = seen or SeenDropout()
    ring = None if context is None else context.ring
    with ExitStack() as stack:
        stack.enter_context(autocast())
        if has_layout and not DTensor._op_dispatcher._allow_implicit_replication:
            stack.enter_context(implicit_replication())  # recomputation enters a second time
        selective = shape.recompute == "selective"
        if context is not None:
            stack.enter_context(context.entered())
        looks = check and seen.found is not False
        shards = LocalShards(recompute_attention=selective, drop_dropout=check, ring=ring)
        if has_layout or selective or looks or ring is not None:
            stack.enter_context(shards)
        yield
        if looks:
            seen.found = shards.has_dropped or bool(seen.found)


def _recomputed(parts: ModelParts, plan: Plan) -> Iterator[list[nn.Module]]:
    """Yield the blocks of each stage that recomputation covers: the repeated ones, if any are."""
    patterns = repeated_patterns(plan.stages)
    repeated = {
        id(module) for path, module in parts.model.named_modules() if pattern_of(path) in patterns
    }
    for blocks in parts.blocks.values():
        yield [block for block in blocks if not repeated or id(block) in repeated]


def _shardable(parts: ModelParts) -> dict[int, list[nn.Module]]:
    """Return the blocks to gather one at a time, judged before layouts replace parameters."""
    return {
        index: sharding_blocks(blocks, tied=parts.tied_ids)
        for index, blocks in parts.blocks.items()
    }


def _inner_module(
    parts: ModelParts,
    index: int,
    *,
    layout: PlannedLayout | None,
    mesh: DeviceMesh | None,
    shape: RunShape,
) -> nn.Module:
    inner = parts.model
    if parts.stage_paths[index] != ("",):
        inner = ChainStage([inner.get_submodule(path) for path in parts.stage_paths[index]])
    if layout is None or mesh is None:
        return inner
    between = "S1" if shape.sequence_parallel else "R"
    return LayoutBoundary(
        inner, mesh=mesh,
        input_placement=layout.model_input if index == 0 else "R",
        carries_from=between if index > 0 else "R",
        carries_to=between if index < shape.num_stages - 1 else "R",
        output_placement=layout.model_output if index == shape.num_stages - 1 else "R",
    )  # fmt: skip


def _data_parallel(
    inner: nn.Module, blocks: list[nn.Module], *, experts: tuple[nn.Module, ...],
    ranks: RankMesh, recorder: Recorder, numerics: Numerics,
) -> nn.Module:  # fmt: skip
    mesh, shape = ranks.data(), ranks.shape
    if mesh is None:
        return inner
    if shape.is_sharded:
        policy = numerics.sharding_policy
        whole = shard_experts(
            experts, copies=ranks.axis(EXPERT_COPIES), sharding=shape.sharding,
            num_losses=mesh.size(), policy=policy,
        )  # fmt: skip
        shard_parameters(
            inner, blocks, mesh=mesh, sharding=shape.sharding, policy=policy, leaving=whole
        )
        return inner
    if shape.mode != "train" or needs_own_average(shape):
        return inner
    return replicate(
        inner, group=mesh.get_group(), axis=ranks.data_label, recorder=recorder,
        travels_as=numerics.reduce, leaving=experts,
    )  # fmt: skip


def _spread(parts: ModelParts, ranks: RankMesh) -> tuple[nn.Module, ...]:
    """Keep this rank's experts where a plan spreads them; return their layers."""
    mesh = ranks.axis("ep")
    return () if mesh is None else spread_experts(parts.owned, mesh=mesh)


def _lower_all(
    parts: ModelParts, experts: tuple[nn.Module, ...], *, numerics: Numerics, ranks: RankMesh
) -> None:
    """Make all modules read their weights in the run's precision."""
    shape = ranks.shape
    is_training, leaves = shape.mode == "train", ranks.axis(EXPERT_COPIES) is None
    for _, module in parts.owned:
        is_sharded = shape.is_sharded and not (leaves and module in experts)
        lower_weights([module], numerics, is_training=is_training, is_sharded=is_sharded)


def _names_in(layers: tuple[nn.Module, ...], parts: ModelParts) -> Iterator[str]:
    """Yield the names of the parameters that some layers own."""
    return (name for name, (owner, _) in parts.slots.items() if owner in layers)


def _schedule(
    stages: Mapping[int, nn.Module],
    *,
    loss: Loss,
    ranks: RankMesh,
    device: torch.device,
    recorder: Recorder,
) -> Any:
    mesh = ranks.axis("pp")
    if mesh is None:
        return None
    shape = ranks.shape
    return make_schedule(
        stages, num_stages=shape.num_stages, schedule=shape.schedule,
        num_microbatches=shape.num_microbatches, loss=loss, device=device,
        group=mesh.get_group(), recorder=recorder,
    )  # fmt: skip


def _tied_groups(parts: ModelParts, ranks: RankMesh) -> dict[str, dist.ProcessGroup]:
    """Make the groups that sum gradients of parameters held by several pipeline ranks.

    Every rank takes part in making every group, in one order.
    """
    mesh, pp = ranks.mesh, ranks.shape.size("pp")
    groups: dict[str, dist.ProcessGroup] = {}
    if mesh is None or pp == 1:
        return groups
    columns = mesh.mesh.reshape(pp, -1).t().tolist()
    for name, holders in sorted(parts.tied_stages.items()):
        positions = sorted({ranks.shape.rank_of_stage(stage) for stage in holders})
        if len(positions) == 1:
            _check_whole(name, ranks.shape)
            continue
        for column in columns:
            members = [column[position] for position in positions]
            group = dist.new_group(members)
            if dist.get_rank() in members:
                groups[name] = group
    return groups


def _check_whole(name: str, shape: RunShape) -> None:
    """Refuse to shard a parameter that two stages of one rank share."""
    if shape.sharding != "none":
        raise RunError(
            f"schedule={shape.schedule} with sharding={shape.sharding}: stages of one rank share "
            f"{name}, and FSDP shards stages apart; use sharding=none or another schedule"
        )
