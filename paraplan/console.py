"""The boundary between program and person: one line for a mistake, JSON on demand, progress."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_INTERRUPTED = 130


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def print_text(text: str, *, to_stderr: bool = False) -> None:
    """Print text with a final newline."""
    stream = sys.stderr if to_stderr else sys.stdout
    stream.write(text.rstrip("\n") + "\n")


def one_line(message: str) -> str:
    r"""Return a message without line breaks.

    Examples
    --------
    >>> one_line("no such file;\n  make one")
    'no such file; make one'
    """
    return " ".join(message.split())


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on standard error while it is a terminal; else do nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=None)

        def update(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update
