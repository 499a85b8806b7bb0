"""The norm of all gradients, whatever their split, and clipping by it."""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from executor.gradients import local_of
from executor.rank_mesh import RankMesh

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
    pieces = 1
    if isinstance(parameter, DTensor):
        for axis, placement in enumerate(parameter.placements):
            pieces *= 1 if placement.is_replicate() else parameter.device_mesh.size(axis)
    return ranks.shape.num_processes // ranks.shape.size("pp") // pieces
