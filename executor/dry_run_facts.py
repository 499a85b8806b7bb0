"""How a rank's libraries cut their messages: read off the assembled modules, before any is sent."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from executor.assemble import Assembly
from executor.gradients import gradient_buckets, local_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Pieces of the messages of one rank."""

    units: int
    """Modules that FSDP gathers and reduces one at a time, 0 without FSDP [1]."""
    padding_elements: float
    """What FSDP adds to one gather of all units so that first dimensions divide [1]."""
    buckets: int
    """Messages that average gradients over data-parallel ranks without FSDP, 0 if none do [1]."""


def facts_of(assembly: Assembly) -> Facts:
    """Return the facts of a rank; DDP's buckets are those of its last step."""
    modules = [assembly.module] if assembly.schedule is None else _stage_modules(assembly.schedule)
    units = [
        unit
        for module in modules
        if module is not None
        for unit in module.modules()
        if isinstance(unit, FSDPModule)
    ]
    groups = [group for unit in units if (group := unit._get_fsdp_state()._fsdp_param_group)]
    return Facts(
        units=len(groups),
        padding_elements=sum(_padding_elements(group) for group in groups),
        buckets=_num_buckets(assembly, modules),
    )


def _stage_modules(schedule: object) -> list[nn.Module | None]:
    stages = getattr(schedule, "_stages", None) or [getattr(schedule, "_stage", None)]
    return [stage.submod for stage in stages if stage is not None]


def _padding_elements(unit: Any) -> float:
    """Return gathered minus whole elements of the parameters of one unit [1]."""
    total = 0.0
    size = unit.mesh_info.shard_mesh_size
    for parameter in unit.fsdp_params:
        padded = parameter.padded_sharded_param_size.numel() * size
        whole = parameter._orig_size.numel()
        total += padded - whole
    return total


def _num_buckets(assembly: Assembly, modules: list[nn.Module | None]) -> int:
    """Return how many all-reduces average gradients, by DDP or by our own buckets."""
    buckets = 0
    replicated = next((m for m in modules if isinstance(m, DistributedDataParallel)), None)
    if replicated is not None:
        data = replicated._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        sizes = data.get("rebuilt_bucket_sizes") or data["bucket_sizes"]
        buckets = len(str(sizes).split(","))
    return buckets + sum(_own_buckets(assembly))


def _own_buckets(assembly: Assembly) -> Iterator[int]:
    """Yield the all-reduces of each average that no library makes."""
    parameters = assembly.parameters()
    for average in assembly.averages:
        if average.group is not None:
            held = [local_of(parameters[name].detach()) for name in average.names]
            yield len(gradient_buckets(held))
