"""The folders of checkpoints: whole or not there, listed, verified, thinned out.

``DIR/step-00000050`` is whole: it was written as ``step-00000050.tmp`` and renamed after its
manifest, which holds size and CRC-32 of every file, had reached the disk.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from executor.errors import RunError

MANIFEST = "paraplan.json"
CHECKPOINT_SCHEMA_VERSION = 1
_STEP = re.compile(r"step-(\d{8,})")
_UNFINISHED = ".tmp"
_DAMAGED = ".damaged"
_BLOCK_BYTES = 1 << 22


def folder_of(directory: Path, step: int) -> Path:
    """Return the folder of a checkpoint.

    Examples
    --------
    >>> folder_of(Path("out"), 50).as_posix()
    'out/step-00000050'
    """
    return directory / f"step-{step:08d}"


def unfinished_of(folder: Path) -> Path:
    """Return the folder in which a checkpoint is written before it is whole."""
    return folder.with_name(folder.name + _UNFINISHED)


def saved_steps(directory: Path) -> tuple[int, ...]:
    """Return the steps that have a checkpoint, whole or damaged, ascending."""
    if not directory.is_dir():
        return ()
    found = (_STEP.fullmatch(entry.name) for entry in directory.iterdir())
    return tuple(sorted(int(match.group(1)) for match in found if match))


def prepare_directory(directory: Path) -> None:
    """Make the folder of checkpoints and see that it can be written.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(
            f"--checkpoint-dir {directory}: cannot be written ({reason}); choose another folder"
        ) from None


def clear_unfinished(directory: Path) -> None:
    """Clear away what a broken run left half written."""
    for entry in directory.glob(f"step-*{_UNFINISHED}"):
        shutil.rmtree(entry, ignore_errors=True)


def file_record(path: Path) -> dict[str, int]:
    """Return size [B] and CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return {"bytes": path.stat().st_size, "crc32": checksum}


def finish(folder: Path, *, files: dict[str, dict[str, int]], about: dict[str, Any]) -> None:
    """Write the manifest into the unfinished folder and give it its name, durably.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    unfinished = unfinished_of(folder)
    manifest = {"schema_version": CHECKPOINT_SCHEMA_VERSION, "about": about, "files": files}
    with (unfinished / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    _sync_folder(unfinished)
    if folder.exists():
        set_aside(folder)
    unfinished.rename(folder)
    _sync_folder(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises
    ------
    RunError
        If it is missing or not one of ours: the reason alone, the caller names the folder.
    """
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"it has no {MANIFEST}") from None
    except (OSError, ValueError):
        raise RunError(f"its {MANIFEST} cannot be read") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != CHECKPOINT_SCHEMA_VERSION or not {"about", "files"} <= data.keys():
        raise RunError(
            f"its {MANIFEST} has schema_version {version!r}, not {CHECKPOINT_SCHEMA_VERSION}"
        )
    return dict(data)


def first_damage(folder: Path, names: Iterable[str], files: dict[str, dict[str, int]]) -> str:
    """Return in words what is wrong with one of the named files, "" where all are as written."""
    for name in names:
        path, wanted = folder / name, files[name]
        try:
            size = path.stat().st_size
            if size != wanted["bytes"]:
                return f"{name} has {size} of {wanted['bytes']} bytes"
            if file_record(path) != wanted:
                return f"the content of {name} changed after it was written"
        except OSError as error:
            return f"{name}: {error.strerror or type(error).__name__}"
    return ""


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it is neither lost nor in the way."""
    number = 0
    while True:
        suffix = _DAMAGED if number == 0 else f"{_DAMAGED}-{number}"
        aside = folder.with_name(folder.name + suffix)
        if not aside.exists():
            folder.rename(aside)
            return
        number += 1


def thin_out(directory: Path, *, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints; what cannot be deleted stays."""
    for step in saved_steps(directory)[:-keep]:
        folder = folder_of(directory, step)
        going = unfinished_of(folder)  # a broken deletion must not look like a checkpoint
        try:
            folder.rename(going)
        except OSError:
            continue
        shutil.rmtree(going, ignore_errors=True)


def drop_unfinished(folder: Path) -> None:
    """Delete what was written of a checkpoint that failed, to give its room back."""
    shutil.rmtree(unfinished_of(folder), ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
