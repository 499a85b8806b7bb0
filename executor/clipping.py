"""The norm of all gradients, whatever their split, and clipping by it."""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from executor.assemble import RankMesh
from executor.gradients import local_of

_AXES = ("dp", "tp")
_EPSILON = 1e-6
"""As torch.nn.utils.clip_grad_norm_ has it [1]."""


def clip_gradients(
    parameters: Mapping[str, nn.Parameter],
    *,
    ranks: RankMesh,
    stages_holding: Mapping[str, int],
    max_norm: float,
) -> float:
    """Scale all gradients so that their common norm is at most ``max_norm``; return it as found.

    Each rank sums the squares of what it holds, divided by the number of ranks that hold the same
    piece, so that one sum over all ranks counts every entry once.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        This rank's parameters with whole, averaged gradients.
    ranks : RankMesh
        The mesh.
    stages_holding : mapping of str to int
        Pipeline ranks that hold a parameter, for the tied ones [1].
    max_norm : float
        Largest norm to leave [1].

    Returns
    -------
    float
        The norm before clipping [1].
    """
    held = [(name, p, local_of(p.grad)) for name, p in parameters.items() if p.grad is not None]
    device = held[0][2].device if held else torch.device("cpu")
    total = torch.zeros((), dtype=torch.float64, device=device)
    for name, parameter, grad in held:
        copies = _copies(parameter, ranks) * stages_holding.get(name, 1)
        total += grad.detach().float().square().sum().double() / copies
    dist.all_reduce(total)
    norm = math.sqrt(float(total))
    if norm > max_norm:
        for _, _, grad in held:
            grad.mul_(max_norm / (norm + _EPSILON))
    return norm


def _copies(parameter: nn.Parameter, ranks: RankMesh) -> int:
    """Return how many ranks of a stage hold this rank's piece."""
    copies = 1
    for axis in _AXES:
        if not _is_sharded(parameter, axis):
            copies *= ranks.shape.size(axis)
    return copies


def _is_sharded(parameter: nn.Parameter, axis: str) -> bool:
    if not isinstance(parameter, DTensor):
        return False
    names = parameter.device_mesh.mesh_dim_names or ()
    if axis not in names:
        return False
    return not parameter.placements[names.index(axis)].is_replicate()
