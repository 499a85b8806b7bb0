"""The device mesh of a run: mesh axes of the plan, and the groups that share their ranks."""

import itertools
from dataclasses import dataclass, field

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from executor.errors import RunError
from executor.shape import RunShape

DATA = "data"
"""All ranks of a stage that hold the same weights: data and context ranks."""
COPIES_AND_SHARDS = ("dp_replicate", "dp_shard")
"""The data ranks in two, outermost first: copies of what is sharded, and its shards."""
EXPERT_COPIES = "dp_expert"
"""Ranks that hold the same experts: the data ranks without ``ep``."""
_Span = tuple[int, int]
"""Inner stride and outer end of an axis among the data ranks of a stage, in ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMesh:
    """The device mesh of a run and where this rank sits in it."""

    mesh: DeviceMesh | None
    """All ranks; None for a single process."""
    shape: RunShape
    axes: dict[str, DeviceMesh] = field(default_factory=dict)
    """One-dimensional meshes by name; those of size 1 are left out."""

    def axis(self, name: str) -> DeviceMesh | None:
        """Return the one-dimensional mesh of an axis, None where its size is 1."""
        return self.axes.get(name)

    def data(self) -> DeviceMesh | None:
        """Return the mesh to shard over: two-dimensional where shards have copies."""
        if self.shape.replicas > 1:
            return DeviceMesh._concatenate([self.axes[name] for name in COPIES_AND_SHARDS])
        return self.axis(DATA)

    def coordinate(self, name: str) -> int:
        """Return this rank's position on an axis."""
        axis = self.axis(name)
        return 0 if axis is None else axis.get_local_rank()

    @property
    def data_label(self) -> str:
        """What results call the ranks among which gradients are averaged."""
        return "+".join(axis for axis in ("dp", "cp") if self.shape.size(axis) > 1) or "dp"

    def groups(self) -> dict[str, str]:
        """Return process group name -> axis."""
        shared = {DATA, EXPERT_COPIES, *COPIES_AND_SHARDS}
        # plain axes last: where one is all data ranks its own name wins
        ordered = sorted(self.axes.items(), key=lambda entry: entry[0] not in shared)
        return {
            axis.get_group().group_name: self.data_label if name in shared else name
            for name, axis in ordered
        }


def make_mesh(shape: RunShape, *, device_type: str) -> RankMesh:
    """Build the device mesh of a run.

    Raises
    ------
    RunError
        If axes that share ranks cut them at places that do not nest.
    """
    if shape.num_processes == 1:
        return RankMesh(mesh=None, shape=shape)
    spans = _data_spans(shape)
    cuts = _nested_cuts(spans, shape)
    pieces = list(itertools.pairwise(cuts))[::-1]
    names = {piece: _name_of(piece, spans) for piece in pieces}
    dims = [("pp", shape.size("pp")), *((names[p], p[1] // p[0]) for p in pieces),
            ("tp", shape.size("tp"))]  # fmt: skip
    kept = [(name, size) for name, size in dims if size > 1]
    mesh = init_device_mesh(
        device_type, tuple(size for _, size in kept), mesh_dim_names=tuple(name for name, _ in kept)
    )
    axes = {name: mesh[name] for name, _ in kept if name in {"pp", "tp", *spans}}
    for name, span in spans.items():
        inside = tuple(names[p] for p in pieces if span[0] <= p[0] and p[1] <= span[1])
        same = next((other for other in axes if spans.get(other) == span), None)
        if name == DATA and same is not None:
            axes[name] = axes[same]
        elif name not in axes:
            # a group of its own, even over ranks that another axis has: results count by group
            axes[name] = mesh[inside]._flatten(name, backend_override=dist.get_backend())
    return RankMesh(mesh=mesh, shape=shape, axes=axes)


def _data_spans(shape: RunShape) -> dict[str, _Span]:
    """Return the axes among the data ranks of a stage, those of size 1 left out."""
    cp, ep = shape.size("cp"), shape.expert_size
    ranks = shape.size("dp") * cp
    spans = {"dp": (cp, ranks), "cp": (1, cp), DATA: (1, ranks)}
    if shape.replicas > 1:
        shards = ranks // shape.replicas
        spans |= dict(zip(COPIES_AND_SHARDS, ((shards, ranks), (1, shards)), strict=True))
    if ep > 1:
        spans |= {EXPERT_COPIES: (ep, ranks), "ep": (1, ep)}
    return {name: span for name, span in spans.items() if span[1] > span[0]}


def _nested_cuts(spans: dict[str, _Span], shape: RunShape) -> list[int]:
    cuts = sorted({1, *(edge for span in spans.values() for edge in span)})
    if any(outer % inner for inner, outer in itertools.pairwise(cuts)):
        raise RunError(
            f"cp={shape.size('cp')}, ep={shape.expert_size}, replicas={shape.replicas}: groups "
            "that do not nest among the data ranks; choose sizes of which one divides the next"
        )
    return cuts


def _name_of(piece: _Span, spans: dict[str, _Span]) -> str:
    """Return the first axis that is just this piece, else a name of its own."""
    return next((name for name, span in spans.items() if span == piece), f"data_{piece[0]}")
