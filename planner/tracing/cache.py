"""Traced graphs on disk, one compressed JSON file per content key."""

import gzip
import hashlib
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs

from planner.graph import ModelGraph
from planner.models.source import ModelSource
from planner.tracing.graph_json import GRAPH_SCHEMA, graph_from_json, graph_to_json

TRACER_VERSION = 1
"""Raised whenever the same model would give another graph."""


def default_cache_dir() -> Path:
    """Return ``graphs`` in paraplan's home: ``PARAPLAN_HOME`` or the user's cache folder."""
    home = os.environ.get("PARAPLAN_HOME")
    return Path(home or platformdirs.user_cache_dir("paraplan")) / "graphs"


def content_key(source: ModelSource, *, sequence_length: int) -> str:
    """Return the hash of what decides a graph: source, versions, sequence length."""
    parts = (
        source.source,
        source.key,
        str(sequence_length),
        str(TRACER_VERSION),
        str(GRAPH_SCHEMA),
        *(f"{name}={_version(name)}" for name in ("torch", "transformers")),
        _code_fingerprint(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _code_fingerprint() -> str:
    """Hash the tracer's and the presets' files: changed code never meets an old graph."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for folder in (here, here.parent / "models"):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def load_graph(folder: Path, key: str) -> ModelGraph | None:
    """Return the cached graph, None if there is none or its file is damaged."""
    path = folder / f"{key}.json.gz"
    try:
        return graph_from_json(gzip.decompress(path.read_bytes()).decode())
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def store_graph(folder: Path, key: str, graph: ModelGraph) -> None:
    """Write a graph beside its final name, then rename; a read-only folder is no error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
            file.write(gzip.compress(graph_to_json(graph).encode(), compresslevel=4, mtime=0))
        Path(file.name).replace(folder / f"{key}.json.gz")
    except OSError:
        return
