"""A layout as the executor reads it: parameter placements and changes at module boundaries."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from planner.graph import ModelGraph, Operator, Unit
from planner.layouts.exchanges import (
    Exchange,
    cheapest_states,
)
from planner.layouts.flows import (
    Flow,
    Reader,
    TensorState,
    output_layout,
    tensor_flows,
    tied_tensors,
    wanted_gradient,
    wanted_layout,
)
from planner.layouts.placement_words import as_read, placement_of
from planner.layouts.reshard import PARTIAL, REPLICATED, Layout, reshard_kind, shard_label
from planner.layouts.shared_copies import is_under, shared_copy
from planner.layouts.sizes import flat_labels, position_labels, read_labels
from planner.layouts.terms import LayoutSolution
from planner.plan import Boundary, ModuleBoundary, Placement, PlannedLayout

_VOLUME = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}
"""Share of a tensor that a rank sends, times its ranks over ranks minus one [1]."""
_BIAS = "aten.add_bias"
_CROSS_ENTROPY = "aten.cross_entropy"


@dataclass(kw_only=True, slots=True)
class _Draft:
    """What has been found so far; paths are those of first repetitions."""

    inputs: dict[str, Boundary] = field(default_factory=dict)
    outputs: dict[str, Boundary] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def planned_layout(
    graph: ModelGraph, solution: LayoutSolution, *, states: Mapping[str, TensorState] | None = None
) -> PlannedLayout:
    """Return parameter placements and module boundaries of a layout.

    A change of layout is put at the exit of the module that writes a tensor, else at the entry of
    the modules that read it. Where neither is possible, because both sides are plain functions
    inside one module, the layout is marked as not executable, with the reason.

    Parameters
    ----------
    graph : ModelGraph
        The model.
    solution : LayoutSolution
        What each operator splits.
    states : mapping, optional
        How tensors are held between operators; if left out, so that least is sent.

    Returns
    -------
    PlannedLayout
        With names and paths of all repetitions.
    """
    draft = _Draft()
    if states is None:
        price = _price_of(graph, solution.size)
        states = cheapest_states(graph, solution.choices, price=price)
    parameters = _parameters(graph, solution, states, draft)
    whole = {name for names in graph.parameter_names.values() for name in names} - set(parameters)
    parameters |= dict.fromkeys(_like(parameters, whole), REPLICATED)
    model_input = _model_input(graph, solution)
    _place_inputs(graph, solution, model_input, draft)
    for flow in tensor_flows(graph).values():
        if flow.producer is not None:
            _place(graph, solution, flow, states[flow.tensor], draft)
    _check_attention(graph, solution, draft)
    return PlannedLayout(
        axis="tp",
        size=solution.size,
        operators=dict(solution.choices),
        parameters=dict(sorted(parameters.items())),
        tensors={name: (state.value, state.gradient) for name, state in states.items()},
        modules=_expanded(graph, draft),
        model_input=model_input,
        model_output=model_output(graph, solution.choices),
        executable=not draft.problems,
        not_executable_because=draft.problems[0] if draft.problems else "",
    )


def _price_of(graph: ModelGraph, size: int) -> Callable[[Exchange, str, tuple[str, ...]], float]:
    """Return a price in elements sent, for lack of a machine."""

    def price(exchange: Exchange, tensor: str, labels: tuple[str, ...]) -> float:
        del tensor
        elements = 1.0
        for label in labels:
            elements *= graph.indices[label].size
        return sum(
            elements * _VOLUME.get(kind, 1.0 / size) for kind in exchange if kind is not None
        )

    return price


def _parameters(
    graph: ModelGraph,
    solution: LayoutSolution,
    states: Mapping[str, TensorState],
    draft: _Draft,
) -> dict[str, Placement]:
    found: dict[str, Placement] = {}
    for name, choice in solution.choices.items():
        operator = graph.operator(name)
        for operand in operator.parameters:
            layout = wanted_layout(graph, operator, operand, choice)
            if operand.tensor in states:
                layout = states[operand.tensor].value
            placement = placement_of(layout, graph.tensors[operand.tensor].dims)
            if placement is None:
                draft.problems.append(
                    f"{operand.tensor}: {shard_label(layout)} is not the leading factor of its "
                    "dimension, so that a contiguous shard would mix it with others"
                )
            elif placement != REPLICATED:
                for full_name in graph.parameter_names.get(operand.tensor, (operand.tensor,)):
                    found.setdefault(full_name, placement)
    return found


def _like(entries: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return names that differ from an entry in positions only (``features.3``, ``features.6``).

    The executor reads an entry for all positions of a name unless others of the pattern are listed,
    so that a scaled-down model with fewer layers finds its layout.
    """
    patterns = {_pattern(name) for name in entries}
    return [name for name in others if _pattern(name) in patterns]


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _model_input(graph: ModelGraph, solution: LayoutSolution) -> Placement:
    readers = [name for name, _, _ in _input_readers(graph)]
    choices = {solution.choices[name] for name in readers}
    return "S0" if choices == {graph.batch_label} else "R"


def model_output(graph: ModelGraph, choices: Mapping[str, str | None]) -> Placement:
    """Return the layout in which the loss reads the model's output, ``R`` if it needs the whole.

    Classes may be split under a cross-entropy, samples under any loss, positions under a
    cross-entropy; all operators of the loss must split the same label.
    """
    losses = [
        op for unit in graph.units for n in unit.operators if _is_loss(op := graph.operator(n))
    ]
    split = {choices[operator.name] for operator in losses}
    if len(split) != 1 or None in split:
        return REPLICATED
    label = next(iter(split))
    ends = {operator.target for operator in losses if operator.kind == "loss"}
    if label != graph.batch_label and ends != {_CROSS_ENTROPY}:
        return REPLICATED
    found = {
        placement_of(
            wanted_layout(graph, operator, operand, label), graph.tensors[operand.tensor].dims
        )
        for operator in losses
        for operand in operator.inputs
        if _comes_from_model(graph, operand.tensor)
    }
    return (found.pop() if len(found) == 1 else None) or REPLICATED


def _comes_from_model(graph: ModelGraph, tensor: str) -> bool:
    producer = graph.tensors[tensor].producer
    return producer is not None and not _is_loss(graph.operator(producer))


def _input_readers(graph: ModelGraph) -> list[tuple[str, Operator, int]]:
    """Return operators that read samples of the model's input, and which operand; no losses."""
    found = []
    for unit in graph.units:
        for name in unit.operators:
            operator = graph.operator(name)
            for place, operand in enumerate(operator.inputs):
                is_input = graph.tensors[operand.tensor].kind == "input"
                has_samples = any(graph.batch_label in dim for dim in operand.dims)
                if is_input and has_samples and not _is_loss(operator):
                    found.append((name, operator, place))
    return found


def _place_inputs(
    graph: ModelGraph, solution: LayoutSolution, model_input: Placement, draft: _Draft
) -> None:
    if model_input != "R":
        return
    for name, operator, place in _input_readers(graph):
        operand = operator.inputs[place]
        wanted = wanted_layout(graph, operator, operand, solution.choices[name])
        placement = placement_of(wanted, operand.dims)
        if wanted != REPLICATED and placement is not None and _begins(graph, name, place):
            draft.inputs[operator.module_path] = Boundary(have="R", want=placement)


def _place(
    graph: ModelGraph,
    solution: LayoutSolution,
    flow: Flow,
    state: TensorState,
    draft: _Draft,
) -> None:
    """Put the changes of one tensor at its producer's exit, else at its readers' entries.

    Where all readers agree, the exit hands out what they want; a whole tensor is handed out anew
    even as it is, if that sums the partial gradients of its readers once.
    """
    if flow.producer is None:
        return
    producer = graph.operator(flow.producer)
    have = output_layout(graph, producer, flow.tensor, solution.choices[flow.producer])
    wants = {
        wanted_layout(
            graph,
            graph.operator(reader.operator),
            reader.operand,
            solution.choices[reader.operator],
        )
        for reader in flow.readers
        if not _is_loss(graph.operator(reader.operator))
    }
    is_carried = any(flow.tensor == exit_ for _, exit_ in tied_tensors(graph))
    held = next(iter(wants)) if len(wants) == 1 and not is_carried else state.value
    choice = solution.choices[flow.producer]
    takes_whole = wanted_gradient(graph, producer, flow.tensor, choice) == REPLICATED
    sums_gradient = have == held == REPLICATED and state.gradient == PARTIAL and takes_whole
    is_sliced = any(_reads_slice(graph, reader) for reader in flow.readers)
    if wants and not is_sliced and _ends(graph, flow) and (have != held or sums_gradient):
        dims = graph.tensors[flow.tensor].dims
        before, after = placement_of(have, dims), placement_of(held, dims)
        if before is not None and after is not None:
            draft.outputs[producer.module_path] = Boundary(have=before, want=after)
            have = held
    container, change, shared = shared_copy(graph, solution, flow, state, have)
    if change is None or container in draft.inputs:
        shared = ()
    else:
        draft.inputs[container] = change
    for reader in flow.readers:
        if reader not in shared and not _is_inside_module(graph, flow, reader):
            _place_at_reader(graph, solution, reader, have, draft)


def _reads_slice(graph: ModelGraph, reader: Reader) -> bool:
    """Whether a reader takes a part of a tensor only (the class token)."""
    labels = read_labels(graph, reader.operand)
    return len(labels) < len(flat_labels(graph.tensors[reader.operand.tensor].dims))


def _place_at_reader(
    graph: ModelGraph, solution: LayoutSolution, reader: Reader, have: Layout, draft: _Draft
) -> None:
    operator = graph.operator(reader.operator)
    wanted = wanted_layout(graph, operator, reader.operand, solution.choices[reader.operator])
    if wanted == have or _is_loss(operator):
        return
    place = operator.inputs.index(reader.operand)
    before = placement_of(as_read(have, reader), reader.operand.dims)
    after = placement_of(as_read(wanted, reader), reader.operand.dims)
    if _begins(graph, reader.operator, place) and before is not None and after is not None:
        draft.inputs[operator.module_path] = Boundary(have=before, want=after)
    elif reshard_kind(have, wanted) is not None:
        draft.problems.append(
            f"{reader.operator}: reads {reader.operand.tensor} as {wanted}, which arrives as "
            f"{have}, and no module begins or ends between the two"
        )


def _check_attention(graph: ModelGraph, solution: LayoutSolution, draft: _Draft) -> None:
    """Refuse what the executor's attention cannot run: a split of the queries' positions."""
    for name, choice in solution.choices.items():
        operator = graph.operator(name)
        if operator.kind == "attention" and choice in position_labels(graph):
            draft.problems.append(
                f"{name}: splits positions inside attention, which needs context parallelism"
            )


def _is_loss(operator: Operator) -> bool:
    """Whether an operator runs after the model, on outputs that the executor gathers."""
    return operator.kind == "loss" or operator.name.startswith("loss:")


@lru_cache(maxsize=64)
def _module_order(graph: ModelGraph) -> dict[str, tuple[str, ...]]:
    """Return the operators of every module path, in execution order."""
    found: dict[str, list[str]] = {}
    for unit in graph.units:
        for name in unit.operators:
            found.setdefault(graph.operator(name).module_path, []).append(name)
    return {path: tuple(names) for path, names in found.items()}


def _begins(graph: ModelGraph, name: str, place: int) -> bool:
    """Whether an operator's operand is the first input of the module it runs in."""
    operator = graph.operator(name)
    if not operator.module_path or operator.kind == "elementwise":
        return False
    return place == 0 and _module_order(graph)[operator.module_path][0] == name


def _ends(graph: ModelGraph, flow: Flow) -> bool:
    """Whether a tensor is what its producer's module returns (up to the bias of a product)."""
    if flow.producer is None:
        return False
    producer = graph.operator(flow.producer)
    if not producer.module_path or producer.kind in ("attention", "elementwise"):
        return False
    names = _module_order(graph)[producer.module_path]
    later = names[names.index(flow.producer) + 1 :]
    return all(
        graph.operator(name).target.startswith(_BIAS)
        and any(operand.tensor == flow.tensor for operand in graph.operator(name).inputs)
        for name in later
    )


def _is_inside_module(graph: ModelGraph, flow: Flow, reader: Reader) -> bool:
    """Whether producer and reader are a product and its own bias, without a change between."""
    operator = graph.operator(reader.operator)
    return (
        flow.producer is not None
        and operator.target == _BIAS
        and operator.module_path == graph.operator(flow.producer).module_path
    )


def _paths_of(graph: ModelGraph, unit: Unit, draft: _Draft) -> tuple[str, ...]:
    """Return the modules of a unit's operators, and those around them that change a layout."""
    own = dict.fromkeys(graph.operator(name).module_path for name in unit.operators)
    around = (
        path for path in draft.inputs if any(is_under(graph, name, path) for name in unit.operators)
    )
    return tuple(own | dict.fromkeys(around))


def _expanded(graph: ModelGraph, draft: _Draft) -> dict[str, ModuleBoundary]:
    """Return boundaries by the paths of all repetitions."""
    paths: dict[str, str] = {}
    for unit in graph.units:
        first = unit.module_paths[0]
        for path in _paths_of(graph, unit, draft):
            is_inside = path == first or path.startswith(f"{first}.")
            for here in unit.module_paths:
                paths[here + path[len(first) :] if is_inside else path] = path
    found = {
        full: ModuleBoundary(input=draft.inputs.get(path), output=draft.outputs.get(path))
        for full, path in paths.items()
        if path in draft.inputs or path in draft.outputs
    }
    found |= dict.fromkeys(_like(found, paths.keys() - found.keys()), ModuleBoundary())
    return dict(sorted(found.items()))
