"""The one entry of the tracer: cached graph, or a fresh trace."""

from collections.abc import Callable
from pathlib import Path

from hardware_profiles.errors import ParaplanError
from planner.errors import ModelError
from planner.graph import ModelGraph
from planner.models.source import ModelSource
from planner.tracing.cache import content_key, default_cache_dir, load_graph, store_graph

MESSAGE_LENGTH = 300


def trace_model(
    source: ModelSource,
    *,
    sequence_length: int | None = None,
    cache_dir: Path | None = None,
    refresh: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ModelGraph:
    """Return the operators of a model over named indices, from the cache where possible.

    The model is built without weights and run once on fake tensors; repeated blocks run once.
    Reading a cached graph loads neither torch nor transformers.

    Parameters
    ----------
    source : ModelSource
        The model, see :func:`planner.models.resolve.resolve_model`.
    sequence_length : int, optional
        Tokens per sample; the model's default if left out [1].
    cache_dir : Path, optional
        Folder of cached graphs; ``graphs`` under paraplan's home if left out.
    refresh : bool
        Trace again even if the graph is cached.
    progress : callable, optional
        Told in one line what happens now.

    Raises
    ------
    ModelError
        If the model cannot be built or run.
    """
    length = sequence_length or source.default_sequence_length
    folder = cache_dir or default_cache_dir()
    key = content_key(source, sequence_length=length)
    cached = None if refresh else load_graph(folder, key)
    if cached is not None:
        return cached
    from planner.tracing.session import trace_source

    try:
        graph = trace_source(source, sequence_length=length, content_key=key, progress=progress)
    except ParaplanError:
        raise
    except Exception as error:
        raise ModelError(
            f"model {source.source}: expected it to build and run on fake tensors, found "
            f"{type(error).__name__}: {_one_line(error)}; {_next_step(error)}"
        ) from error
    store_graph(folder, key, graph)
    return graph


def _next_step(error: BaseException) -> str:
    if type(error).__name__ == "DynamicOutputShapeException":
        return "use operators whose shapes do not depend on values (topk and sort, no nonzero)"
    return "run its forward on CPU with a small batch to see where it fails"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= MESSAGE_LENGTH else f"{text[:MESSAGE_LENGTH]}..."
