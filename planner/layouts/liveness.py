"""What is alive beside saved tensors while a unit runs backward: gradients on their way, copies."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from planner.graph import ModelGraph, Operator, Unit
from planner.layouts.costs import OperatorCost, Setting
from planner.layouts.flows import TensorState, tensor_flows
from planner.layouts.reshard import shard_label
from planner.layouts.sizes import flat_labels, item_bytes, num_elements

_SUMS = {"aten.add", "aten.add_", "aten.add_bias"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Transients:
    """The most that one repetition of a unit needs in backward beside what it keeps [B].

    Relative to all that the unit keeps for backward, and may be below 0 where the peak comes when
    the first saved tensors are gone.
    """

    plain: float
    """Nothing recomputed; gradients of parameters have their place already."""
    selective: float
    """Attention cores computed again, relative to what is kept without their scores."""
    lazy: float
    """As ``plain``, with the gradients of the unit's parameters made on the way, counted here."""
    lazy_selective: float
    after_loss: float
    """As ``lazy``, from where a sharded unit's weights are gathered: without the loss."""

    @classmethod
    def always(cls, num_bytes: float) -> Self:
        """Return the same in every case [B]."""
        return cls(
            plain=num_bytes, selective=num_bytes, lazy=num_bytes, lazy_selective=num_bytes,
            after_loss=num_bytes,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flows:
    """Which tensors with a gradient enter and leave each operator of a unit, and the unit."""

    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]
    leaving: tuple[str, ...]
    handed_on: tuple[frozenset[str], ...]
    """Inputs whose gradient is the output's, without a copy (terms of a sum)."""


@lru_cache(maxsize=1024)
def _unit_flows(graph: ModelGraph, unit: Unit) -> _Flows:
    flows = tensor_flows(graph)
    names = set(unit.operators)
    carried = {exit_ for _, exit_ in unit.carried}

    def has_gradient(name: str) -> bool:
        if name in flows:
            return flows[name].has_gradient
        return name in carried

    place = {
        out: at for at, name in enumerate(unit.operators) for out in graph.operator(name).outputs
    }
    inputs, outputs, leaving, handed_on = [], [], [], []
    for name in unit.operators:
        operator = graph.operator(name)
        read = dict.fromkeys(op.tensor for op in operator.inputs if has_gradient(op.tensor))
        oldest_first = sorted(read, key=lambda one: place.get(one, -1))
        inputs.append(tuple(oldest_first))
        outputs.append(tuple(out for out in operator.outputs if has_gradient(out)))
        leaving += [
            out
            for out in operator.outputs
            if out in carried
            or (
                has_gradient(out)
                and any(reader.operator not in names for reader in flows[out].readers)
            )
        ]
        handed_on.append(_handed_on(operator, oldest_first))
    return _Flows(
        inputs=tuple(inputs), outputs=tuple(outputs), leaving=tuple(dict.fromkeys(leaving)),
        handed_on=tuple(handed_on),
    )  # fmt: skip


def _handed_on(operator: Operator, inputs: list[str]) -> frozenset[str]:
    """Return the inputs, oldest first, that share their gradient with the output.

    A sum gives all its terms one gradient; terms before the last sum of a chain with dropout or
    another function between get their own.
    """
    kernels = operator.target.split("+")
    if operator.kind != "elementwise" or kernels[-1] not in _SUMS or not inputs:
        return frozenset()
    return frozenset(inputs if set(kernels) <= _SUMS else inputs[:1])


def held_bytes(setting: Setting, tensor: str, states: Mapping[str, TensorState]) -> float:
    """Return a tensor as one rank holds it between operators [B]."""
    found = setting.graph.tensors[tensor]
    whole = num_elements(flat_labels(found.dims), setting.sizes)
    whole *= item_bytes(found.dtype, setting.workload)
    state = states.get(tensor)
    is_cut = state is not None and shard_label(state.value) is not None
    return whole / setting.mesh.tp if is_cut else whole


def backward_transients(
    setting: Setting,
    unit: Unit,
    *,
    costs: Mapping[str, OperatorCost],
    kept: Mapping[str, float],
    states: Mapping[str, TensorState],
    gradient_bytes: float,
) -> Transients:
    """Return the most that is alive in a unit's backward pass beside what it keeps.

    Operators run backward in reverse. An operator finds the gradients of its outputs, makes those
    of its inputs (a sum hands its own on), its copies and the gradient of its weight; then its
    outputs' gradients and what it kept are gone. A residual branch keeps its gradient alive until
    both ways have met.

    Parameters
    ----------
    setting : Setting
        Circumstances.
    unit : Unit
        One of the model's units.
    costs : mapping
        Operator -> price.
    kept : mapping
        Operator -> bytes it keeps for backward, without scores of attention [B].
    states : mapping
        Tensor -> layout between operators.
    gradient_bytes : float
        Bytes of one element of a parameter's gradient [B].

    Returns
    -------
    Transients
        Bytes beside what is kept [B].

    Notes
    -----
    Not modelled: the order of independent branches, and saved tensors that are gone before the
    operator that wrote them runs backward.
    """
    flows = _unit_flows(setting.graph, unit)
    size = {
        name: held_bytes(setting, name, states)
        for names in (*flows.inputs, *flows.outputs, flows.leaving)
        for name in names
    }
    live = {name: size[name] for name in flows.leaving}
    order = [costs[name] for name in unit.operators]
    saved = [kept[name] for name in unit.operators]
    total = sum(saved)
    scores = sum(cost.score_bytes for cost in order)
    left, left_scores, made = total, scores, 0.0
    peak = Transients.always(-total)
    for at in range(len(order) - 1, -1, -1):
        cost = order[at]
        now = sum(live.values()) + cost.workspace_bytes
        now += sum(size[name] for name in flows.outputs[at] if name not in live)
        now += _new_gradients(flows, at, live, dict(cost.read_bytes), size)
        plain = left + left_scores - total - scores + now
        selective = left - total + now + cost.score_bytes
        weight = cost.weight_gradient_bytes
        made += gradient_bytes * cost.num_parameters
        is_loss = setting.graph.operator(unit.operators[at]).kind == "loss"
        peak = Transients(
            plain=max(peak.plain, plain + weight),
            selective=max(peak.selective, selective + weight),
            lazy=max(peak.lazy, plain + made),
            lazy_selective=max(peak.lazy_selective, selective + made),
            after_loss=peak.after_loss if is_loss else max(peak.after_loss, plain + made),
        )
        for name in flows.outputs[at]:
            live.pop(name, None)
        shared = flows.handed_on[at]
        oldest = next((name for name in flows.inputs[at] if name in shared), None)
        for name in flows.inputs[at]:
            if name in shared and name != oldest:
                live.setdefault(name, 0.0)
            else:
                live[name] = size[name]
        left -= saved[at]
        left_scores -= cost.score_bytes
    return peak


def _new_gradients(
    flows: _Flows,
    at: int,
    live: Mapping[str, float],
    read: Mapping[str, float],
    size: Mapping[str, float],
) -> float:
    """Return the gradients that an operator makes, and the gathered inputs it reads again [B]."""
    total = 0.0
    for name in flows.inputs[at]:
        seen = read.get(name, size[name])
        if name in flows.handed_on[at] and live.get(name, 0.0) == 0.0:
            continue
        total += seen if seen <= size[name] else 2.0 * seen
    return total
