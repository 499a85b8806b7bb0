"""What a job trains on: ``path/to/file.py:dataset``, or made-up batches.

The position of a sample in the job follows from seed and step alone, whatever the plan; each rank
reads the samples of its own data-parallel share.
"""

import importlib.util
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from executor.dataset_items import Item, as_batch, item_kind
from executor.errors import RunError
from executor.job_settings import dataset_file
from executor.training import rows_of
from planner.models.source import Batch, ModelSource

_SEED_STRIDE = 1_000_003
"""A prime, so that seeds of neighbouring jobs and positions do not meet."""
_SEED_LIMIT = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which rows of each global batch a rank reads."""

    index: int
    """Data-parallel coordinate."""
    count: int
    """Data-parallel ranks [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchReader:
    """Reads this rank's rows of the batch of a step."""

    source: ModelSource
    global_batch_size: int
    sequence_length: int
    seed: int
    share: Share
    hook: Callable[[], Any] | None
    """Makes the dataset; None for made-up batches."""
    text: str
    """The hook as the user wrote it, for messages."""
    opened: dict[str, Any] = field(default_factory=dict)
    """The dataset, its iterator and position, once it was read from."""

    def read(self, step: int) -> Batch:
        """Return this rank's rows of the batch of a step, from 0.

        Raises
        ------
        RunError
            If the hook fails, is empty, or gives what the model does not take.
        """
        if self.hook is None:
            whole = self.source.make_batch(
                self.global_batch_size, self.sequence_length, self.seed + step
            )
            return rows_of(whole, self.share.index, self.share.count)
        if not self.opened:
            self._open()
        rows = self.global_batch_size
        template = self.opened["template"]
        if self.opened["kind"] == "batch":
            item = self._item(step)
            whole = as_batch([item], template=template, where=self.text, rows=rows)
            return rows_of(whole, self.share.index, self.share.count)
        first = step * rows + self.share.index * (rows // self.share.count)
        items = [self._item(first + row) for row in range(rows // self.share.count)]
        return as_batch(items, template=template, where=self.text)

    def _open(self) -> None:
        template = self.source.make_batch(1, self.sequence_length, self.seed)
        data = self._called("dataset()", self.hook)
        self.opened.update(data=data, template=template, position=0, iterator=None, order={})
        is_map = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        if not is_map and not hasattr(data, "__iter__"):
            raise RunError(
                f"{self.text}: returned a {type(data).__name__}; expected something with "
                "__len__ and __getitem__, or an iterable"
            )
        self.opened["is_map"] = is_map
        if is_map and len(data) == 0:
            raise RunError(f"{self.text}: the dataset is empty; expected at least one sample")
        probe = self._called("[0]", lambda: data[0]) if is_map else self._next()
        self.opened["kind"] = item_kind(probe, template=template, where=self.text)
        if not is_map:
            self._rewind()

    def _item(self, position: int) -> Item:
        """Return the item at a position of the job; random numbers follow from seed and position.

        Positions grow without end: a dataset starts again when it is through.
        """
        if not self.opened["is_map"]:
            if position < self.opened["position"]:
                self._rewind()
            while self.opened["position"] < position:
                self._next()
            return self._next()
        data = self.opened["data"]
        epoch, place = divmod(position, len(data))
        index = self._order(epoch, len(data))[place]
        seed_all(self.seed * _SEED_STRIDE + position)
        return self._called(f"[{index}]", lambda: data[index])

    def _order(self, epoch: int, count: int) -> list[int]:
        orders: dict[int, list[int]] = self.opened["order"]
        if epoch not in orders:
            orders.clear()
            source = torch.Generator().manual_seed((self.seed * _SEED_STRIDE + epoch) % _SEED_LIMIT)
            orders[epoch] = torch.randperm(count, generator=source).tolist()
        return orders[epoch]

    def _rewind(self) -> None:
        data = self._called("dataset()", self.hook)
        self.opened.update(data=data, iterator=None, position=0)

    def _next(self) -> Any:
        opened = self.opened
        if opened["iterator"] is None:
            opened["iterator"] = self._called("iter()", lambda: iter(opened["data"]))
        seed_all(self.seed * _SEED_STRIDE + opened["position"])
        iterator: Iterator[Any] = opened["iterator"]
        item = self._called("next()", lambda: next(iterator, _END))
        if item is _END:  # the next epoch: the hook makes the dataset anew
            opened["data"] = self._called("dataset()", self.hook)
            again = self._called("iter()", lambda: iter(opened["data"]))
            item = self._called("next()", lambda: next(again, _END))
            opened["iterator"] = again
            if item is _END:
                raise RunError(f"{self.text}: the dataset is empty; expected at least one sample")
        opened["position"] += 1
        return item

    def _called(self, what: str, function: Callable[[], Any] | None) -> Any:
        if function is None:
            raise RunError(f"{self.text}: no dataset to read; give --dataset FILE.py:function")
        try:
            return function()
        except Exception as error:
            words = (str(error).splitlines() or ["no message"])[0]
            raise RunError(f"{self.text}: {what} raised {type(error).__name__}: {words}") from None


_END = object()


def make_reader(
    text: str,
    *,
    source: ModelSource,
    global_batch_size: int,
    sequence_length: int,
    seed: int,
    share: Share,
) -> BatchReader:
    """Return the reader of a job; ``text`` is ``path/to/file.py:function``, "" for made-up data.

    Raises
    ------
    RunError
        If the file or the function is missing.
    """
    known = {
        "global_batch_size": global_batch_size, "sequence_length": sequence_length, "seed": seed,
    }  # fmt: skip
    return BatchReader(
        source=source, global_batch_size=global_batch_size, sequence_length=sequence_length,
        seed=seed, share=share, hook=_hook(text, known) if text else None, text=text,
    )  # fmt: skip


def _hook(text: str, known: dict[str, int]) -> Callable[[], Any]:
    """Return the user's function, given those of the known arguments that it has."""
    function = load_hook(text)
    asked = inspect.signature(function).parameters
    arguments = {name: value for name, value in known.items() if name in asked}

    def call() -> Any:
        seed_all(known["seed"] * _SEED_STRIDE)
        return function(**arguments)

    return call


def load_hook(text: str) -> Callable[..., Any]:
    """Return the function that ``path/to/file.py:function`` names.

    Raises
    ------
    RunError
        If the file cannot be imported or lacks the function.
    """
    path, name = dataset_file(text)
    spec = importlib.util.spec_from_file_location(f"paraplan_dataset_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RunError(f"--dataset {text}: {path} cannot be imported; expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        words = (str(error).splitlines() or ["no message"])[0]
        raise RunError(
            f"--dataset {text}: importing it raised {type(error).__name__}: {words}"
        ) from None
    finally:
        sys.path.remove(str(path.resolve().parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise RunError(f"--dataset {text}: {path} has no function {name}; add 'def {name}():'")
    return function  # type: ignore[no-any-return]


def seed_all(seed: int) -> None:
    """Seed every global source of random numbers that a dataset or a dropout may draw from."""
    seed %= _SEED_LIMIT
    torch.default_generator.manual_seed(seed)  # torch.manual_seed costs 0.2 ms without a GPU
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)
