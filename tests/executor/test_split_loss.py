"""A cross-entropy whose classes or positions two processes share is that of one process."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional

from executor import split_loss
from executor.local_shards import LocalShards

pytestmark = pytest.mark.distributed
SAMPLES, POSITIONS, CLASSES = 2, 4, 6


def rows_loss(output, targets, **options):
    return functional.cross_entropy(output.flatten(0, 1), targets.flatten(), **options)


def gap(mesh, loss, *, dim):
    """Return how far a rank's loss and gradient are from those of one process."""
    torch.manual_seed(0)
    logits = torch.randn(SAMPLES, POSITIONS, CLASSES).requires_grad_()
    targets = torch.randint(CLASSES, (SAMPLES, POSITIONS))
    targets[:, -2:] = -100  # no position of the second rank counts
    whole = loss(logits, targets)
    (gradient,) = torch.autograd.grad(whole, logits)
    shards = distribute_tensor(logits.detach(), mesh, [Shard(dim)]).requires_grad_()
    split = split_loss.split_loss(loss, placement=Shard(dim), mesh=mesh)
    with LocalShards(recompute_attention=False, drop_dropout=False):
        found = split(shards, targets)
    (found * 3).backward()
    own = gradient.tensor_split(2, dim)[mesh.get_local_rank()] * 3
    mean = found.detach().clone()
    dist.all_reduce(mean)
    differences = mean / 2 - whole.detach(), shards.grad.to_local() - own
    return max(float(difference.abs().max()) for difference in differences)


def rank_gaps(rank, folder):
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2,
        timeout=timedelta(seconds=20),
    )  # fmt: skip
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    gaps = {
        "classes": gap(mesh, rows_loss, dim=2),
        "positions": gap(mesh, rows_loss, dim=1),
        "smoothed": gap(mesh, lambda o, t: rows_loss(o, t, label_smoothing=0.1), dim=2),
    }
    real = split_loss._summed
    split_loss._summed = lambda rows, how, group: rows if how == "max" else real(rows, how, group)
    gaps["without the common maximum"] = gap(mesh, rows_loss, dim=2)
    torch.save(gaps, f"{folder}/gaps-{rank}")
    dist.destroy_process_group()


def test_loss_and_gradients_are_those_of_one_process(tmp_path):
    mp.start_processes(rank_gaps, args=(str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        gaps = torch.load(tmp_path / f"gaps-{rank}")
        assert gaps.pop("without the common maximum") > 1e-2
        assert max(gaps.values()) < 1e-6, gaps
