"""Save and restore a training with torch.distributed.checkpoint, whole or not at all."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from executor.checkpoint_files import (
    drop_unfinished,
    file_record,
    finish,
    first_damage,
    folder_of,
    read_manifest,
    saved_steps,
    set_aside,
    thin_out,
    unfinished_of,
)
from executor.checkpoint_state import State
from executor.errors import RunError

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobIdentity:
    """What must be the same for a training to go on from a checkpoint."""

    model: str
    optimizer: str
    seed: int
    global_batch_size: int
    sequence_length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """From where a training goes on."""

    step: int
    """Steps done, 0 for a new one [1]."""
    damaged: tuple[str, ...] = ()
    """Newer checkpoints that were passed over, each with the reason."""


def save_checkpoint(
    state: State, *, directory: Path, step: int, identity: JobIdentity, strategy: str, keep: int
) -> None:
    """Save a training after ``step`` steps; all ranks take part.

    Parameters
    ----------
    state : dict
        From :func:`executor.checkpoint_state.training_state`.
    directory : Path
        Folder of the checkpoints, which all ranks see.
    step : int
        Steps done [1].
    identity : JobIdentity
        Compared when a training is to go on.
    strategy : str
        The plan's, for the reader.
    keep : int
        Checkpoints to keep; older ones go after this one is whole [1].

    Raises
    ------
    RunError
        If the disk refuses, on all ranks alike. Older checkpoints are as before.
    """
    folder = folder_of(directory, step)
    unfinished = unfinished_of(folder)
    _together(lambda: _fresh(folder), folder=folder)
    try:
        writer = FileSystemWriter(unfinished, sync_files=True)
        save(state, storage_writer=writer)
    except CheckpointException as error:
        _give_up(folder, _first_failure(error))
    own = f"__{dist.get_rank()}_*"
    records = _everywhere(
        lambda: {path.name: file_record(path) for path in unfinished.glob(own)}, folder=folder
    )
    about = {**asdict(identity), "step": step, "strategy": strategy, "num_ranks": len(records)}

    def conclude() -> None:
        files = {name: entry for record in records for name, entry in record.items()}
        files[".metadata"] = file_record(unfinished / ".metadata")
        finish(folder, files=files, about=about)
        thin_out(directory, keep=keep)

    _together(conclude, folder=folder)


def restore_checkpoint(state: State, *, directory: Path, identity: JobIdentity) -> Restored:
    """Read the newest whole checkpoint into a training, whatever plan wrote it.

    Damaged ones are renamed, not deleted. Where there is none at all the training is left as it is.

    Raises
    ------
    RunError
        If all checkpoints are damaged, or the newest whole one belongs to another training.
    """
    steps = _from_first(lambda: saved_steps(directory))
    damaged: list[str] = []
    for step in reversed(steps):
        folder = folder_of(directory, step)
        problem, manifest = _verified(folder)
        if not problem:
            _check_identity(manifest["about"], identity, folder=folder)
            _load(state, folder)
            return Restored(step=step, damaged=tuple(damaged))
        damaged.append(f"{folder.name} is damaged: {problem}")
    if damaged:
        raise RunError(
            f"{directory}: no whole checkpoint: {'; '.join(damaged)}; bring one back from a copy, "
            "or begin again without --resume in another --checkpoint-dir"
        )
    return Restored(step=0)


def put_damaged_aside(directory: Path, *, newer_than: int) -> None:
    """Rename the checkpoints that were passed over, on the first rank."""
    if dist.get_rank() == 0:
        for step in saved_steps(directory):
            if step > newer_than:
                set_aside(folder_of(directory, step))


def _fresh(folder: Path) -> None:
    drop_unfinished(folder)
    unfinished_of(folder).mkdir(parents=True)


def _verified(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return what is wrong with a checkpoint and its manifest; ranks share the reading."""
    manifest: dict[str, Any] = {}
    try:
        manifest = read_manifest(folder)
        files: dict[str, dict[str, int]] = manifest["files"]
        names = sorted(files)[dist.get_rank() :: dist.get_world_size()]
        problem = first_damage(folder, names, files)
    except RunError as error:
        problem = str(error)
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next(filter(None, problems), ""), manifest


def _check_identity(about: dict[str, Any], identity: JobIdentity, *, folder: Path) -> None:
    for key, wanted in asdict(identity).items():
        if about.get(key) != wanted:
            raise RunError(
                f"{folder}: it was saved with {key}={about.get(key)!r}, this run has {wanted!r}; "
                "run with the same, or start anew in another --checkpoint-dir"
            )


def _load(state: State, folder: Path) -> None:
    try:
        load(state, storage_reader=FileSystemReader(folder))
    except CheckpointException as error:
        raise RunError(
            f"{folder}: does not fit this model ({_first_failure(error)}); resume the model "
            "that saved it, or give another --checkpoint-dir"
        ) from None


def _first_failure(error: CheckpointException) -> str:
    """Return the cause on the first rank that failed, in one line."""
    cause: BaseException = error.failures[min(error.failures)][0]
    return _reason(cause)


def _reason(cause: BaseException) -> str:
    """Return the operating system's words where it has some, else the first line."""
    seen: BaseException | None = cause
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    words = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {words[0]}"


def _give_up(folder: Path, reason: str) -> None:
    """Drop what was written and end, on all ranks with the same words."""
    if dist.get_rank() == 0:
        drop_unfinished(folder)
    older = [
        step for step in saved_steps(folder.parent) if folder_of(folder.parent, step) != folder
    ]
    rest = (
        f"{folder_of(folder.parent, older[-1]).name} is whole; make room and use --resume"
        if older
        else "none is saved yet; make room and begin again"
    )
    raise RunError(f"checkpoint {folder}: cannot be written ({reason}); {rest}")


def _together(action: Callable[[], object], *, folder: Path) -> None:
    """Act on the first rank; all ranks fail if it fails, and none goes on before it is done."""
    reasons = [""]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            reasons = [_reason(error)]
    dist.broadcast_object_list(reasons, src=0)
    if reasons[0]:
        _give_up(folder, reasons[0])


def _everywhere(action: Callable[[], _T], *, folder: Path) -> Sequence[_T]:
    """Act on every rank and return what all got; all fail if one fails."""
    found: tuple[str, _T | None]
    try:
        found = ("", action())
    except OSError as error:
        found = (_reason(error), None)
    gathered: list[tuple[str, Any]] = [("", None)] * dist.get_world_size()
    dist.all_gather_object(gathered, found)
    reason = next((reason for reason, _ in gathered if reason), "")
    if reason:
        _give_up(folder, reason)
    return [value for _, value in gathered]


def _from_first(action: Callable[[], _T]) -> _T:
    """Return what the first rank finds, on all ranks."""
    found = [action() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]
