"""One rank's part of a plan: its modules under layouts, sharding, recomputation and a schedule."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication

from executor.checks import check_same_model
from executor.data_parallel import replicate, shard_parameters, sharding_blocks
from executor.errors import RunError
from executor.layouts import LayoutBoundary, apply_layout, pattern_of
from executor.local_shards import LocalShards
from executor.model_parts import ModelParts, build_model, parts_of
from executor.pipeline import ChainStage, make_schedule
from executor.recompute import recompute_blocks, repeated_patterns
from executor.recording import Recorder
from executor.settings import RunSettings
from executor.shape import RunShape
from planner.models.source import ModelSource
from planner.plan import Plan, PlannedLayout

Modes = Callable[[], AbstractContextManager[Any]]


COPIES_AND_SHARDS = ("dp_replicate", "dp_shard")
"""The data axis in two, outermost first: copies of what is sharded, and its shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMesh:
    """The device mesh of a run and where this rank sits in it."""

    mesh: DeviceMesh | None
    """None for a single process."""
    shape: RunShape

    def axis(self, name: str) -> DeviceMesh | None:
        """Return the one-dimensional mesh of an axis, None where its size is 1."""
        return None if self.mesh is None or self.shape.size(name) == 1 else self.mesh[name]

    def data(self) -> DeviceMesh | None:
        """Return the mesh to shard over: two-dimensional where shards have copies."""
        if self.mesh is not None and self.shape.replicas > 1:
            return self.mesh[COPIES_AND_SHARDS]
        return self.axis("dp")

    def coordinate(self, name: str) -> int:
        """Return this rank's position on an axis."""
        axis = self.axis(name)
        return 0 if axis is None else axis.get_local_rank()

    def groups(self) -> dict[str, str]:
        """Return process group name -> axis."""
        axes = ((name, self.axis(name)) for name, _ in self.shape.axes)
        found: dict[str, str] = {
            axis.get_group().group_name: name for name, axis in axes if axis is not None
        }
        if self.mesh is not None and self.shape.replicas > 1:
            found |= {self.mesh[n].get_group().group_name: "dp" for n in COPIES_AND_SHARDS}
        return found


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
    averages_over: dist.ProcessGroup | None
    """Data-parallel group whose gradients no library layer averages."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return this rank's parameters (possibly shards) by name."""
        found: dict[str, nn.Parameter] = {}
        for name, (owner, key) in self.slots.items():
            parameter = owner._parameters[key]
            if parameter is not None:
                found[name] = parameter
        return found


def make_mesh(shape: RunShape, *, device_type: str) -> RankMesh:
    """Build the device mesh of a run."""
    if shape.num_processes == 1:
        return RankMesh(mesh=None, shape=shape)
    names, sizes = zip(*_mesh_axes(shape), strict=True)
    mesh = init_device_mesh(device_type, sizes, mesh_dim_names=names)
    if shape.replicas > 1:
        mesh[COPIES_AND_SHARDS]._flatten("dp")
    return RankMesh(mesh=mesh, shape=shape)


def _mesh_axes(shape: RunShape) -> Iterator[tuple[str, int]]:
    """Yield the mesh axes, the data axis in two where shards have copies."""
    for name, size in shape.axes:
        if name == "dp" and shape.replicas > 1:
            yield from zip(COPIES_AND_SHARDS, (shape.replicas, size // shape.replicas), strict=True)
        else:
            yield name, size


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
    modes = partial(run_modes, shape=shape, has_layout=layout is not None, check=settings.check)
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
        stages[index] = _data_parallel(inner, shardable[index], ranks=ranks, recorder=recorder)
    first = next(iter(stages.values()))
    schedule = _schedule(stages, source=source, ranks=ranks, device=device, recorder=recorder)
    return Assembly(
        module=first if schedule is None else None,
        schedule=schedule,
        has_first=0 in stages,
        has_last=shape.num_stages - 1 in stages,
        slots=parts.slots,
        owned=parts.owned,
        tied=_tied_groups(parts, ranks),
        modes=modes,
        averages_over=_own_average(ranks),
    )


@contextmanager
def run_modes(*, shape: RunShape, has_layout: bool, check: bool) -> Iterator[None]:
    """Enter what a forward and backward pass needs: local shards, plain tensors as replicated."""
    with ExitStack() as stack:
        if has_layout and not DTensor._op_dispatcher._allow_implicit_replication:
            stack.enter_context(implicit_replication())  # recomputation enters a second time
        selective = shape.recompute == "selective"
        if has_layout or selective or check:
            stack.enter_context(LocalShards(recompute_attention=selective, drop_dropout=check))
        yield


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
    )  # fmt: skip


def _data_parallel(
    inner: nn.Module, blocks: list[nn.Module], *, ranks: RankMesh, recorder: Recorder
) -> nn.Module:
    mesh = ranks.axis("dp")
    is_training, sharding = ranks.shape.mode == "train", ranks.shape.sharding
    if mesh is None:
        return inner
    if sharding == "parameters" or (is_training and sharding != "none"):
        shard_parameters(inner, blocks, mesh=ranks.data() or mesh, sharding=sharding)
        return inner
    if not is_training or _own_average(ranks) is not None:
        return inner
    return replicate(inner, group=mesh.get_group(), recorder=recorder)


def _own_average(ranks: RankMesh) -> dist.ProcessGroup | None:
    """Return the data-parallel group where neither DDP nor FSDP averages gradients.

    DDP flattens parameters and cannot hold distributed ones, and torch's pipeline calls backward in
    a way that its hooks do not follow for all schedules.
    """
    mesh = ranks.axis("dp")
    shape = ranks.shape
    is_plain = shape.size("tp") == 1 and shape.size("pp") == 1
    if mesh is None or shape.sharding != "none" or is_plain:
        return None
    return mesh.get_group()


def _schedule(
    stages: Mapping[int, nn.Module],
    *,
    source: ModelSource,
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
        num_microbatches=shape.num_microbatches, loss=source.loss, device=device,
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
