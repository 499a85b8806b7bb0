"""The shape of one run: mesh, stages, microbatches, after shrinking a plan to what is at hand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import gcd, prod
from typing import Literal

from executor.errors import RunError
from planner.plan import Plan
from planner.strategy import Recompute, Schedule, Sharding, Strategy, parse_strategy
from simulator.placement import is_v_shaped, rank_of_stage
from simulator.zero_bubble import microbatches_per_round

MAX_LOCAL_PROCESSES = 8
_GROWTH_ORDER = ("tp", "pp", "cp", "dp")
"""Axes take the processes at hand in this order, one prime factor each in turn."""
_SCALED_MICROBATCHES_PER_STAGE = 2
RING_PIECES = 2
"""Pieces of each sample that a context rank holds, one from either end [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunShape:
    """What a run keeps of a strategy; all sizes are those of the run, not of the plan."""

    axes: tuple[tuple[str, int], ...]
    """Mesh axes larger than 1, outermost first."""
    global_batch_size: int
    microbatch_size: int
    sequence_length: int
    schedule: Schedule
    virtual_stages: int
    sharding: Sharding
    recompute: Recompute
    sequence_parallel: bool
    optimizer: str
    mode: Literal["train", "infer"]
    replicas: int = 1
    """Copies of what is sharded over data ranks."""
    expert_size: int = 1
    """Data and context ranks among which experts are spread."""
    notes: tuple[str, ...] = ()
    """In what the run differs from the plan."""

    def size(self, axis: str) -> int:
        """Return the size of an axis, 1 where the mesh lacks it."""
        return dict(self.axes).get(axis, 1)

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP holds the weights: in inference only ``parameters`` shards anything."""
        return self.sharding == "parameters" or (self.mode == "train" and self.sharding != "none")

    @property
    def num_processes(self) -> int:
        """Ranks of the run."""
        return prod(size for _, size in self.axes)

    @property
    def data_ranks(self) -> int:
        """Ranks of a stage that hold the same weights: data and context ranks."""
        return self.size("dp") * self.size("cp")

    @property
    def num_stages(self) -> int:
        """Pipeline stages, virtual ones counted."""
        return self.size("pp") * self.virtual_stages

    def rank_of_stage(self, stage: int) -> int:
        """Return the pipeline rank that holds a stage."""
        v_shaped = is_v_shaped(self.schedule)
        return rank_of_stage(stage, num_ranks=self.size("pp"), v_shaped=v_shaped)

    @property
    def num_microbatches(self) -> int:
        """Microbatches that one data-parallel rank runs per step."""
        return self.global_batch_size // self.size("dp") // self.microbatch_size


def shrink_axes(
    axes: Sequence[tuple[str, int]], *, num_processes: int, tensor_limits: Sequence[int] = ()
) -> tuple[tuple[str, int], ...]:
    """Shrink mesh axes until at most ``num_processes`` ranks remain, keeping as many axes as fit.

    Axes start at 1 and take one prime factor each in turn, in the order tp, pp, cp, dp.

    Parameters
    ----------
    axes : sequence of (str, int)
        Axes of the plan, outermost first.
    num_processes : int
        Processes at hand [1].
    tensor_limits : sequence of int
        Counts (heads) that the size of ``tp`` must divide.

    Examples
    --------
    >>> shrink_axes([("pp", 16), ("dp", 64), ("tp", 8)], num_processes=8)
    (('pp', 2), ('dp', 2), ('tp', 2))
    >>> shrink_axes([("dp", 6)], num_processes=8)
    (('dp', 6),)
    """
    wanted, found = dict(axes), dict.fromkeys(dict(axes), 1)
    order = [axis for axis in _GROWTH_ORDER if axis in wanted]
    grew = True
    while grew:
        grew = False
        for axis in order:
            rest = wanted[axis] // found[axis]
            factor = next((n for n in range(2, rest + 1) if rest % n == 0), 1)
            larger = found[axis] * factor
            if factor == 1 or prod(found.values()) * factor > num_processes:
                continue
            if axis == "tp" and any(limit % larger for limit in tensor_limits):
                continue
            found[axis] = larger
            grew = True
    return tuple((axis, found[axis]) for axis, _ in axes)


def shape_of_run(
    plan: Plan,
    *,
    num_processes: int,
    scale_down: int = 1,
    sequence_length: int,
    global_batch_size: int | None = None,
    tensor_limits: Sequence[int] = (),
) -> RunShape:
    """Return the shape in which a plan runs on ``num_processes`` processes.

    Raises
    ------
    RunError
        If batch, microbatch and mesh do not divide.
    """
    strategy = parse_strategy(plan.strategy)
    axes = tuple((axis, size) for axis, size in plan.mesh.axes if size > 1)
    shrunk = shrink_axes(axes, num_processes=num_processes, tensor_limits=tensor_limits)
    notes = [
        f"axis {axis} shrunk from {size} to {new}"
        for (axis, size), (_, new) in zip(axes, shrunk, strict=True)
        if new != size
    ]
    sizes = dict(shrunk)
    shrunk = tuple((axis, size) for axis, size in shrunk if size > 1)
    pp, tp = sizes.get("pp", 1), sizes.get("tp", 1)
    data_ranks = sizes.get("dp", 1) * sizes.get("cp", 1)
    shape = RunShape(
        axes=shrunk,
        global_batch_size=plan.workload.global_batch_size,
        microbatch_size=strategy.microbatch_size,
        sequence_length=sequence_length,
        schedule=strategy.schedule,
        virtual_stages=strategy.virtual_stages if pp > 1 else 1,
        sharding=strategy.sharding if data_ranks > 1 else "none",
        recompute=strategy.recompute,
        sequence_parallel=strategy.sequence_parallel and tp > 1,
        optimizer=plan.workload.optimizer,
        mode=plan.workload.mode,
        replicas=_copies(strategy, data_ranks),
        expert_size=gcd(strategy.expert_parallel_size, data_ranks),
    )
    if shape.replicas != strategy.sharding_replicas:
        notes.append(f"one copy of the shards in place of {strategy.sharding_replicas}")
    if shape.expert_size != strategy.expert_parallel_size:
        notes.append(
            f"experts spread over {shape.expert_size} ranks in place of "
            f"{strategy.expert_parallel_size}"
        )
    batch = global_batch_size
    if batch is None and (scale_down > 1 or shrunk != axes):
        batch = _scaled_batch(strategy, shape)
    return _with_batch(shape, batch, notes=notes, planned=plan.workload.global_batch_size)


def fitted_to_chain(shape: RunShape, *, num_items: int) -> RunShape:
    """Return the shape with no more virtual stages than a shorter chain can fill.

    Examples
    --------
    >>> shape = RunShape(axes=(("pp", 2),), global_batch_size=4, microbatch_size=1,
    ...     sequence_length=8, schedule="interleaved", virtual_stages=6, sharding="none",
    ...     recompute="none", sequence_parallel=False, optimizer="adam", mode="train")
    >>> fitted = fitted_to_chain(shape, num_items=6)
    >>> fitted.virtual_stages, fitted.schedule, fitted.notes
    (3, 'interleaved', ('virtual stages shrunk from 6 to 3: the chain has 6 modules',))
    """
    pp, planned = shape.size("pp"), shape.virtual_stages
    fits = max(1, min(planned, num_items // pp))
    if fits == planned:
        return shape
    note = f"virtual stages shrunk from {planned} to {fits}: the chain has {num_items} modules"
    schedule = shape.schedule
    if fits == 1 and schedule != "zero_bubble":
        schedule = "1f1b"
    return replace(shape, virtual_stages=fits, schedule=schedule, notes=(*shape.notes, note))


def _copies(strategy: Strategy, num_ranks: int) -> int:
    """Return the copies of what is sharded, one where the data ranks at hand cannot be grouped."""
    copies = strategy.sharding_replicas
    return copies if num_ranks % copies == 0 and num_ranks > copies else 1


def _scaled_batch(strategy: Strategy, shape: RunShape) -> int:
    """Return a batch with the plan's microbatch, and microbatches enough to fill the pipeline."""
    per_step = strategy.data_parallel_size * strategy.microbatch_size
    planned = max(1, shape.global_batch_size // per_step)
    pp = shape.size("pp")
    microbatches = min(planned, _SCALED_MICROBATCHES_PER_STAGE * pp)
    if shape.virtual_stages > 1:
        microbatches = max(pp, microbatches // pp * pp)
    return microbatches * shape.microbatch_size * shape.size("dp")


def _with_batch(shape: RunShape, batch: int | None, *, notes: list[str], planned: int) -> RunShape:
    batch = planned if batch is None else batch
    if batch != planned:
        notes.append(f"global batch {batch} in place of {planned}")
    ranks = shape.size("dp")
    if batch % (ranks * shape.microbatch_size):
        raise RunError(
            f"global batch {batch} does not divide into dp={ranks} ranks of microbatches of "
            f"{shape.microbatch_size}; choose a multiple of {ranks * shape.microbatch_size}"
        )
    pieces = RING_PIECES * shape.size("cp")
    if shape.size("cp") > 1 and shape.sequence_length % pieces:
        raise RunError(
            f"cp={shape.size('cp')}: sequence of {shape.sequence_length} does not divide into "
            f"{pieces} pieces, two per rank; choose a multiple of {pieces}"
        )
    return _checked_schedule(replace(shape, global_batch_size=batch, notes=tuple(notes)))


def _checked_schedule(shape: RunShape) -> RunShape:
    """Refuse a schedule that torch cannot deal out in equal rounds."""
    count, pp = shape.num_microbatches, shape.size("pp")
    in_rounds = shape.schedule in ("interleaved", "zero_bubble")
    per_round = microbatches_per_round(num_ranks=pp, num_microbatches=count)
    if in_rounds and pp > 1 and per_round is None:
        raise RunError(
            f"schedule={shape.schedule} with {count} microbatches on pp={pp}: they do not divide "
            f"into equal rounds; choose a global batch with {count // pp * pp} microbatches"
        )
    return shape


def stage_starts(plan_items: Sequence[int], *, num_items: int, num_stages: int) -> tuple[int, ...]:
    """Re-divide a chain in the proportions of the plan's stages.

    Parameters
    ----------
    plan_items : sequence of int
        Items of each stage of the plan.
    num_items : int
        Items of the chain that runs.
    num_stages : int
        Stages to make.

    Raises
    ------
    RunError
        If there are more stages than items.

    Examples
    --------
    >>> stage_starts([7, 7], num_items=6, num_stages=2)
    (0, 3)
    >>> stage_starts([2, 2, 2, 2], num_items=8, num_stages=2)
    (0, 4)
    """
    if num_stages > num_items:
        raise RunError(
            f"{num_stages} pipeline stages for a chain of {num_items} modules; "
            "use fewer stages or a smaller --scale-down"
        )
    edges = [0, *accumulate(plan_items)]
    starts: list[int] = []
    for stage in range(num_stages):
        at = stage * len(plan_items) / num_stages
        low = int(at)
        edge = edges[low] + plan_items[low] * (at - low)
        start = round(edge / edges[-1] * num_items)
        smallest = starts[-1] + 1 if starts else 0
        starts.append(min(max(start, smallest), num_items - (num_stages - stage)))
    return tuple(starts)
