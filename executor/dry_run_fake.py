"""One rank of a world that is not there: torch's fake process group, and what it lacks.

The fake group finishes every collective at once and moves nothing. Where torch itself reads what a
peer sent (DDP's futures, shapes that pipeline stages tell each other), the answer is put in here.
All private names of torch that a dry run depends on are in this file.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import stage as torch_stage

from executor import expert_parallel
from executor.errors import RunError

_STAGE_METHODS = (
    "_warmup_forward_vote",
    "_warmup_backward_result",
    "_recv_meta",
    "_send_meta",
)
_STAGE_NAMES = (
    "_StageForwardMeta",
    "_StageBackwardMeta",
    "_derive_grad_metas",
    "extract_tensor_metas",
)


def check_torch_can_fake() -> None:
    """Refuse a torch that lacks what a dry run stands on.

    Raises
    ------
    RunError
        With the first name that is missing.
    """
    missing = [name for name in _STAGE_METHODS if not hasattr(PipelineStage, name)]
    missing += [name for name in _STAGE_NAMES if not hasattr(torch_stage, name)]
    try:
        from torch.testing._internal.distributed import fake_pg

        if not hasattr(fake_pg, "FakeStore"):
            missing.insert(0, "fake_pg.FakeStore")
    except ImportError:
        missing.insert(0, "torch.testing._internal.distributed.fake_pg")
    if missing:
        raise RunError(
            f"torch {torch.__version__} lacks {missing[0]}, which a dry run needs; "
            "expected torch 2.13; use that version, or run without --dry-run"
        )


def join_fake_world(*, rank: int, world_size: int) -> None:
    """Join a process group in which only this rank exists."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


@contextmanager
def pretended_peers(entering: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Answer what a rank would be told by others.

    Parameters
    ----------
    entering : mapping of int to Tensor
        Pipeline stage -> an activation like those that enter it; the last key is what leaves the
        last stage.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(dist, "all_reduce", _with_future(dist.all_reduce)))
        told = _even_counts(expert_parallel.counts_from_peers)
        stack.enter_context(mock.patch.object(expert_parallel, "counts_from_peers", told))
        for name, answer in _stage_answers(entering).items():
            stack.enter_context(mock.patch.object(PipelineStage, name, answer))
        yield


class _Done:
    """A finished all-reduce; unlike the fake group's, its future holds the tensor."""

    def __init__(self, work: Any, tensor: torch.Tensor) -> None:
        self._work = work
        self._tensor = tensor

    def get_future(self) -> torch.futures.Future[Any]:
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result([self._tensor])
        return future

    def wait(self, *args: Any) -> bool:
        return bool(self._work.wait(*args))


def _with_future(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        work = original(tensor, *args, **kwargs)
        return None if work is None else _Done(work, tensor)

    return call


def _even_counts(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return an exchange of token counts after which as many come as go, evenly from all."""

    def call(sent: torch.Tensor, **keywords: Any) -> torch.Tensor:
        original(sent, **keywords)
        total, places = int(sent.sum()), sent.numel()
        even = torch.full((places,), total // places, dtype=sent.dtype)
        even[: total % places] += 1
        return even.view(sent.shape)

    return call


def _stage_answers(entering: Mapping[int, torch.Tensor]) -> dict[str, Callable[..., Any]]:
    """Return methods of a pipeline stage that know what neighbours would send.

    The vote says that shapes are found by a first forward and backward, as in a real run.
    """
    names: Any = torch_stage

    def vote(stage: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int32)

    def receive(stage: Any, source: int) -> Any:
        if source < stage.stage_index:
            metas = names.extract_tensor_metas((entering[stage.stage_index],))
            return names._StageForwardMeta(forward_metas=metas)
        metas = names._derive_grad_metas(stage._stage_meta.outputs)
        return names._StageBackwardMeta(backward_metas=metas)

    def send(stage: Any, meta: Any, destination: int) -> None:
        del stage, meta, destination

    return dict(zip(_STAGE_METHODS, (vote, vote, receive, send), strict=True))
