"""Which layers each pipeline stage holds, by number."""

import re
from dataclasses import dataclass

from planner.handover.job import Job
from planner.handover.refusals import refusal
from planner.plan import Plan

_BLOCK = re.compile(r"^(?P<prefix>.*\.|)(?P<number>\d+)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLayers:
    """Layers of one (virtual) stage, in pipeline order."""

    has_embedding: bool
    layers: tuple[int, ...]
    """Numbers of the repeated blocks, counted through the model."""
    has_head: bool


def block_paths(plan: Plan) -> tuple[str, ...]:
    """Return the module paths of the repeated blocks in order: ``blocks.0``, ``blocks.1``, ...

    They are the numbered modules of the most frequent parent; a model without any gives none.
    """
    found: dict[str, list[str]] = {}
    for stage in plan.stages:
        for path in stage.module_paths:
            match = _BLOCK.match(path)
            if match:
                found.setdefault(match["prefix"], []).append(path)
    longest: list[str] = []
    for paths in found.values():
        longest = paths if len(paths) > len(longest) else longest
    return tuple(longest)


def stage_layers(plan: Plan) -> tuple[StageLayers, ...]:
    """Return the layers of every stage.

    What precedes the blocks counts as embedding, what follows them as head.
    """
    paths = block_paths(plan)
    number = {path: position for position, path in enumerate(paths)}
    stages, seen = [], False
    for stage in plan.stages:
        before, after, layers = False, False, []
        for path in stage.module_paths:
            if path in number:
                layers.append(number[path])
                seen = True
            elif seen:
                after = True
            else:
                before = True
        stages.append(StageLayers(has_embedding=before, layers=tuple(layers), has_head=after))
    return tuple(stages)


def checked_stages(job: Job, *, num_layers: int, trainer: str) -> tuple[StageLayers, ...]:
    """Return the layers of every stage, if a trainer that counts layers can build them.

    Raises
    ------
    HandoverError
        If a stage is cut anywhere but before or behind a block.
    """
    stages = stage_layers(job.plan)
    layers = [number for stage in stages for number in stage.layers]
    ends = sum(stage.has_embedding for stage in stages), sum(stage.has_head for stage in stages)
    expected = job.strategy.pipeline_parallel_size * job.strategy.virtual_stages
    if layers != list(range(num_layers)) or ends != (1, 1) or len(stages) != expected:
        raise refusal(
            trainer,
            found=f"the cuts of {len(stages)} stages",
            because=f"its stages are runs of {num_layers} layers, with embedding and head whole",
            instead="plan with a smaller pp",
        )
    return stages


def is_even(stages: tuple[StageLayers, ...]) -> bool:
    """Return whether all stages hold as many layers, embedding first and head last."""
    counts = {len(stage.layers) for stage in stages}
    return len(counts) == 1 and stages[0].has_embedding and stages[-1].has_head
