"""Run a model on fake tensors while two modes write down what runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from planner.tracing import rules_kernel as kernels
from planner.tracing import rules_reorder as reorder
from planner.tracing.rules_composite import COMPOSITES, DISPATCHED
from planner.tracing.rules_product import PRODUCT_RULES
from planner.tracing.rules_view import VIEW_RULES
from planner.tracing.tracer import Tracer

RULES = {
    **VIEW_RULES,
    **PRODUCT_RULES,
    **DISPATCHED,
    **kernels.KERNEL_RULES,
    **reorder.REORDER_RULES,
}
Observer = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]


class Switch:
    """Turns recording off while a composite call runs inside."""

    def __init__(self) -> None:
        self.is_on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Pause recording."""
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before


class KernelMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of every dispatched operator."""

    def __init__(self, tracer: Tracer, switch: Switch, observer: Observer | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer, self.switch, self.observer = tracer, switch, observer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then write it down."""
        del types
        kwargs = kwargs or {}
        name = str(func._schema.name).split("::")[1]
        if name == "_local_scalar_dense":
            return self._scalar(func, args, kwargs)
        out = func(*args, **kwargs)
        if self.switch.is_on:
            apply_rule(self.tracer, func, name, args, kwargs, out)
            if self.observer is not None:
                with self.switch.off():
                    self.observer(func, args, kwargs, out)
        return out

    def _scalar(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except DataDependentOutputException:
            dtype = args[0].dtype
            answer = True if dtype == torch.bool else 1 if not dtype.is_floating_point else 1.0
            self.tracer.warn(
                f"branch in {self.tracer.path or 'model'}",
                f"a value decides what runs next; traced as if it were {answer}",
            )
            return answer


def apply_rule(
    tracer: Tracer, func: Any, name: str, args: Any, kwargs: dict[str, Any], out: Any
) -> None:
    """Find the rule of an operator by name, then by torch's own ``pointwise`` tag."""
    target = f"aten.{name}"
    if name in kernels.CONSTANTS:
        kernels.constant(tracer, args, kwargs, out)
    elif name in RULES:
        RULES[name](tracer, args, kwargs, out)
    elif name in kernels.REDUCTIONS and (name not in ("max", "min") or not _is_binary(args)):
        kernels.reduce(tracer, target, args, kwargs, out)
    elif name in reorder.ROW_WISE:
        reorder.row_wise(tracer, target, args, kwargs, out)
    elif name in reorder.SCATTERS:
        reorder.scatter(tracer, target, args, kwargs, out)
    elif name in kernels.POOLINGS:
        kernels.pooling(tracer, target, args, kwargs, out)
    elif name in kernels.POINTWISE or torch.Tag.pointwise in func.tags:
        kernels.pointwise(tracer, target, args, kwargs, out)
    elif func.is_view and isinstance(out, torch.Tensor):
        VIEW_RULES["as_strided"](tracer, args, kwargs, out)
    elif kernels.tensors_in(out) and kernels.tensors_in([args, kwargs]):
        kernels.unknown(tracer, target, args, kwargs, out)


def _is_binary(args: Any) -> bool:
    return len(args) > 1 and isinstance(args[1], torch.Tensor)


class ScalarAnswers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers values that a constructor asks of fake tensors (drop rates) with zero."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.warnings: list[tuple[str, str]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator; a value that is not known is zero."""
        del types
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if "_local_scalar_dense" not in str(func):
                raise
            self.warnings.append(
                ("construction", "the model reads a value while it is built; taken as 0")
            )
            dtype = args[0].dtype
            return False if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0


class CallMode(TorchFunctionMode):
    """Records attention, norms, losses and recurrence as one kernel each."""

    def __init__(self, tracer: Tracer, switch: Switch, observer: Observer | None = None) -> None:
        super().__init__()
        self.tracer, self.switch, self.observer = tracer, switch, observer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run composite calls unrecorded inside, then write them down whole."""
        del types
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":
            return self._inside_attention(func, args, kwargs)
        rule = COMPOSITES.get(name)
        if rule is None or not self.switch.is_on or not _is_composite(name, args, kwargs):
            return func(*args, **kwargs)
        needs_grad = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in kernels.tensors_in([args, kwargs])
        )
        run_kwargs = {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
        with self.switch.off(), torch.no_grad():
            out = func(*args, **run_kwargs)
            out = tree_map_only(torch.Tensor, _separate, out)
            if needs_grad:
                out = tree_map_only(torch.Tensor, grown, out)
        with self.switch.off():
            rule(self.tracer, args, kwargs, out)
        if self.observer is not None:
            with self.switch.off():
                self.observer(func, args, kwargs, out)
        return out

    def _inside_attention(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Record the parts of torch's own attention function.

        A mode is off while it handles a call, so its inner calls would go unseen; the function's
        own check for modes must then be silent, or it would come back here.
        """
        check = torch.nn.functional.has_torch_function  # type: ignore[attr-defined]
        torch.nn.functional.has_torch_function = _no  # type: ignore[attr-defined]
        try:
            with self:
                return func(*args, **kwargs)
        finally:
            torch.nn.functional.has_torch_function = check  # type: ignore[attr-defined]


def _no(_: Any) -> bool:
    return False


def _is_composite(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Tell whether a call is one the rule describes (dropout may be the identity)."""
    if name == "dropout":
        given = {**dict(zip(("input", "p", "training", "inplace"), args, strict=False)), **kwargs}
        return bool(given.get("training", True)) and float(given.get("p", 0.5)) > 0
    if name == "linear":
        return len(args) > 1 and args[1].dim() == 2  # noqa: PLR2004
    return True


def _separate(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach()


def grown(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that needs a gradient and is no leaf (in-place operators refuse leaves)."""
    if not tensor.is_floating_point():
        return tensor
    with torch.enable_grad():
        return tensor.requires_grad_().clone()


@contextmanager
def recording(tracer: Tracer, *, observer: Observer | None = None) -> Iterator[Switch]:
    """Record everything that runs inside into ``tracer``."""
    switch = Switch()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if switch.is_on:
            tracer.saved(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        KernelMode(tracer, switch, observer),
        CallMode(tracer, switch, observer),
    ):
        yield switch
