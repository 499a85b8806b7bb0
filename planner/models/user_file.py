"""A user's own model: ``path/to/file.py:factory``, see docs/models.md."""

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from planner.errors import ModelError
from planner.models.data import generator, integers, normals
from planner.models.options import nearest, parse_value, split_options
from planner.models.source import Batch, ModelSource

_RECIPE = (
    "define 'def inputs(batch_size, sequence_length)' in the same file, "
    "or set 'example_inputs' on the module"
)


def resolve_file(text: str) -> ModelSource:
    """Load a user's file and describe the model that its factory makes.

    Raises
    ------
    ModelError
        If the file or the function is missing, or the file itself fails.
    """
    location, options = split_options(text)
    path_text, _, factory_name = location.rpartition(":")
    path = Path(path_text)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(f"{path}: {reason}; expected a Python file with a model") from None
    digest = hashlib.sha256(content).hexdigest()
    module = _load(path, digest=digest)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        own = _own_functions(module)
        hint = "the file defines no function; add one that returns a Module"
        raise ModelError(
            f"{path}: no function {factory_name!r}; {nearest(factory_name, own) if own else hint}"
        )
    arguments = {key: parse_value(value) for key, value in options.items()}
    _check_arguments(text, factory_name, factory, arguments)
    return _source(
        text, path=path, module=module, factory_name=factory_name,
        factory=partial(factory, **arguments),
        key=f"{path.stem}:{factory_name}:{arguments!r}:{digest}",
    )  # fmt: skip


def _check_arguments(
    text: str, name: str, factory: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    """Refuse options that are no arguments of the factory, and arguments left out."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # it does not tell what it takes
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{text}: {name}{signature}: {error}; give arguments as in {name}?KEY=VALUE"
        ) from None


def _source(
    text: str,
    *,
    path: Path,
    module: ModuleType,
    factory_name: str,
    factory: Callable[[], Any],
    key: str,
) -> ModelSource:

    def build() -> nn.Module:
        made = _call(path, f"{factory_name}()", factory)
        if not isinstance(made, nn.Module):
            raise ModelError(
                f"{path}: {factory_name}() returned {type(made).__name__}; "
                "expected a torch.nn.Module"
            )
        return made

    def make_batch(batch_size: int, sequence_length: int, seed: int) -> Batch:
        return _make_batch(
            path, module, build=build, sizes=(batch_size, sequence_length), seed=seed
        )

    own_loss = getattr(module, "loss", None)

    def loss(output: Any, targets: torch.Tensor | None) -> torch.Tensor:
        if own_loss is None:
            return default_loss(output)
        scalar = _call(path, "loss()", lambda: own_loss(output, targets))
        if not isinstance(scalar, torch.Tensor) or scalar.numel() != 1:
            raise ModelError(f"{path}: loss() returned {_shape(scalar)}; expected a scalar tensor")
        return scalar

    length = getattr(module, "sequence_length", 1)
    if not isinstance(length, int) or length < 1:
        raise ModelError(f"{path}: sequence_length = {length!r}; expected a whole number from 1 up")
    return ModelSource(
        source=text,
        name=f"{path.stem}:{factory_name}",
        default_sequence_length=length,
        build=build,
        make_batch=make_batch,
        loss=loss,
        chain=sequential_chain,
        key=key,
    )


def sequential_chain(model: nn.Module) -> tuple[str, ...] | None:
    """Return the children of a Sequential in order; None for any other module."""
    if isinstance(model, nn.Sequential) and len(model):
        return tuple(name for name, _ in model.named_children())
    return None


def default_loss(output: Any) -> torch.Tensor:
    """Return the mean square of all floating-point outputs, in fp32: any scalar to derive from."""
    found = [x for x in _tensors(output) if x.is_floating_point()]
    if not found:
        raise ModelError(
            f"the model's output is {_shape(output)}, from which no loss follows; "
            "define 'def loss(output, targets)' in the model's file"
        )
    return torch.stack([x.float().square().mean() for x in found]).sum()


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _make_batch(
    path: Path,
    module: ModuleType,
    *,
    build: Callable[[], nn.Module],
    sizes: tuple[int, int],
    seed: int,
) -> Batch:
    own_inputs = getattr(module, "inputs", None)
    own_targets = getattr(module, "targets", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if own_inputs is not None:
            made = _call(path, "inputs()", lambda: own_inputs(*sizes))
        else:
            made = _from_example(path, build, batch_size=sizes[0], seed=seed)
        targets = None
        if own_targets is not None:
            targets = _call(path, "targets()", lambda: own_targets(*sizes))
    return Batch(inputs=_checked_inputs(path, made, sizes[0]), keywords={}, targets=targets)


def _checked_inputs(path: Path, made: Any, batch_size: int) -> tuple[torch.Tensor, ...]:
    inputs = made if isinstance(made, tuple) else (made,)
    for tensor in inputs:
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(
                f"{path}: inputs() returned {_shape(tensor)}; expected a tensor or tuple of tensors"
            )
        if tensor.dim() == 0 or tensor.shape[0] != batch_size:
            raise ModelError(
                f"{path}: inputs() returned {_shape(tensor)}; expected {batch_size} samples first"
            )
    return inputs


def _from_example(
    path: Path, build: Callable[[], nn.Module], *, batch_size: int, seed: int
) -> tuple[torch.Tensor, ...]:
    """Random tensors of the shapes and dtypes of ``example_inputs``, read from a meta build."""
    with torch.device("meta"):
        example = getattr(build(), "example_inputs", None)
    if example is None:
        raise ModelError(f"{path}: nothing tells what the model takes; {_RECIPE}")
    source = generator(seed)
    made = []
    for tensor in _tensors(example):
        shape = (batch_size, *tensor.shape[1:])
        if tensor.is_floating_point():
            made.append(normals(shape, source=source).to(tensor.dtype))
        else:
            made.append(integers(shape, below=2, source=source).to(tensor.dtype))
    return tuple(made)


def _load(path: Path, *, digest: str) -> ModuleType:
    name = f"paraplan_user_model_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: cannot be imported; expected a Python file ending in .py")
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    sys.modules[name] = module
    neighbours = str(path.resolve().parent)
    sys.path.insert(0, neighbours)
    try:
        _call(path, "importing it", lambda: loader.exec_module(module))
    except ModelError:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(neighbours)
    return module


def _call(path: Path, what: str, function: Callable[[], Any]) -> Any:
    """Call the user's code; its exception becomes one line with the line in the user's file."""
    try:
        return function()
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        where, tail = _where(error, path), ""
        if isinstance(error, ModuleNotFoundError):
            tail = "; install it beside paraplan, or import it where it is used"
        raise ModelError(
            f"{where}: {what} raised {type(error).__name__}: {_first(error)}{tail}"
        ) from error


def _where(error: BaseException, path: Path) -> str:
    """Return the user's file with the line that failed, where the failure passed through it."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{path}:{error.lineno}"
    own = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == path.name and frame.lineno is not None
    ]
    return f"{path}:{own[-1]}" if own else str(path)


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _own_functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
