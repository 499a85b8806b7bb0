"""Which modules and parameters of a model belong to a rank."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from executor.errors import RunError
from executor.settings import RunSettings
from executor.shape import stage_starts
from planner.models.source import ModelSource


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelParts:
    """A whole model and this rank's share of its modules."""

    model: nn.Module
    stage_paths: dict[int, tuple[str, ...]]
    """Stage index -> chain paths, of this rank; ``{0: ("",)}`` without a pipeline."""
    blocks: dict[int, tuple[nn.Module, ...]]
    """Stage index -> modules to recompute or gather one at a time."""
    owned: tuple[tuple[str, nn.Module], ...]
    """Path and module of everything inside this rank's stages."""
    names_of: dict[int, tuple[str, ...]]
    """Identity of a parameter -> all its names in the model; the first is canonical."""
    tied_stages: dict[str, tuple[int, ...]]
    """Canonical name of a parameter held by several stages -> those stages."""
    slots: dict[str, tuple[nn.Module, str]]
    """Canonical parameter name -> owner and attribute."""

    @property
    def tied_ids(self) -> frozenset[int]:
        """Identities of parameters that have several names."""
        return frozenset(key for key, names in self.names_of.items() if len(names) > 1)


def build_model(source: ModelSource, *, seed: int) -> nn.Module:
    """Return the model with the weights that a seed gives on any rank."""
    torch.manual_seed(seed)
    return source.build().float()


def parts_of(
    model: nn.Module, *, source: ModelSource, settings: RunSettings, pipeline_rank: int
) -> ModelParts:
    """Divide a model; without a pipeline a rank holds all of it.

    Raises
    ------
    RunError
        If a pipeline is wanted of a model that is no chain of modules.
    """
    chain = source.chain(model)
    stages = all_stages(chain, settings)
    rank_of = settings.shape.rank_of_stage
    own = {index: paths for index, paths in enumerate(stages) if rank_of(index) == pipeline_rank}
    inside = tuple(itertools.chain.from_iterable(own.values()))
    owned = tuple((path, part) for path, part in model.named_modules() if _within(path, inside))
    names_of = _names_by_identity(model)
    return ModelParts(
        model=model,
        stage_paths=own,
        blocks={index: _blocks(model, chain, paths) for index, paths in own.items()},
        owned=owned,
        names_of=names_of,
        tied_stages=_tied_stages(stages, names_of),
        slots=_slots(owned, names_of),
    )


def all_stages(chain: Sequence[str] | None, settings: RunSettings) -> tuple[tuple[str, ...], ...]:
    """Return the chain paths of every stage; one stage of ``""`` without a pipeline."""
    shape = settings.shape
    if shape.num_stages == 1:
        return (("",),)
    if chain is None:
        raise RunError(
            f"{settings.model}: pp={shape.size('pp')} needs a model that is a chain of modules; "
            "its forward pass is not one; use pp=1"
        )
    paths = settings.stage_paths
    if len(paths) == shape.num_stages and all(path in chain for path in paths):
        starts = tuple(chain.index(path) for path in paths)
        starts = (0, *starts[1:])
    else:
        starts = stage_starts(
            settings.stage_items, num_items=len(chain), num_stages=shape.num_stages
        )
    return tuple(tuple(chain[low:high]) for low, high in itertools.pairwise((*starts, len(chain))))


def _within(path: str, parents: Sequence[str]) -> bool:
    return any(not p or path == p or path.startswith(f"{p}.") for p in parents)


def _blocks(
    model: nn.Module, chain: Sequence[str] | None, paths: Sequence[str]
) -> tuple[nn.Module, ...]:
    """Return the chain items of a stage, else the entries of the model's module lists."""
    if paths != ("",):
        return tuple(model.get_submodule(path) for path in paths)
    if chain is not None:
        return tuple(model.get_submodule(path) for path in chain)
    lists = (part for part in model.modules() if isinstance(part, nn.ModuleList))
    return tuple(next(lists, nn.ModuleList()))


def _names_by_identity(model: nn.Module) -> dict[int, tuple[str, ...]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {key: tuple(found) for key, found in names.items()}


def _tied_stages(
    stages: Sequence[Sequence[str]], names_of: dict[int, tuple[str, ...]]
) -> dict[str, tuple[int, ...]]:
    tied = {}
    for names in names_of.values():
        holders = tuple(
            index for index, paths in enumerate(stages)
            if any(_within(name, paths) for name in names)
        )  # fmt: skip
        if len(holders) > 1:
            tied[names[0]] = holders
    return tied


def _slots(
    owned: Sequence[tuple[str, nn.Module]], names_of: dict[int, tuple[str, ...]]
) -> dict[str, tuple[nn.Module, str]]:
    slots: dict[str, tuple[nn.Module, str]] = {}
    for _, module in owned:
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                slots.setdefault(names_of[id(parameter)][0], (module, key))
    return slots
