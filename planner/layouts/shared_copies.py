"""Where a copy of a tensor is made that several readers share."""

from itertools import takewhile

from planner.graph import ModelGraph, Operator
from planner.layouts.exchanges import is_shared_copy, reader_exchange
from planner.layouts.flows import Flow, Reader, TensorState, wanted_layout
from planner.layouts.placement_words import as_read, placement_of
from planner.layouts.reshard import Layout
from planner.layouts.terms import LayoutSolution
from planner.plan import Boundary


def shared_copy(
    graph: ModelGraph, solution: LayoutSolution, flow: Flow, state: TensorState, have: Layout
) -> tuple[str, Boundary | None, tuple[Reader, ...]]:
    """Return a change that several readers share: module, change at its entry, those readers.

    The module is the innermost that holds them; None where it does not begin with the tensor, or
    holds readers that take it as it is.
    """
    if have != state.value or not is_shared_copy(graph, flow, solution.choices, state):
        return "", None, ()
    sharing = tuple(
        reader
        for reader in flow.readers
        if reader_exchange(graph, flow, reader, solution.choices[reader.operator], state)
        != (None, None)
    )
    operators = [graph.operator(reader.operator) for reader in sharing]
    wants = {
        wanted_layout(graph, operator, reader.operand, solution.choices[operator.name])
        for operator, reader in zip(operators, sharing, strict=True)
    }
    container = _common_path([operator.module_path for operator in operators])
    inside = [n for n in _unit_operators(graph, operators[0]) if is_under(graph, n, container)]
    before = placement_of(as_read(have, sharing[0]), sharing[0].operand.dims)
    after = placement_of(as_read(min(wants), sharing[0]), sharing[0].operand.dims)
    begins = inside[0] == operators[0].name and operators[0].inputs[0] == sharing[0].operand
    others = {reader.operator for reader in flow.readers} - {op.name for op in operators}
    others -= {inside[-1]}  # a residual that was fused with what the module ends with
    if not container or len(wants) > 1 or not begins or others & set(inside):
        return "", None, ()
    if before is None or after is None:
        return "", None, ()
    return container, Boundary(have=before, want=after), sharing


def _common_path(paths: list[str]) -> str:
    """Return the innermost module that holds all of some modules.

    Examples
    --------
    >>> _common_path(["h.0.attention.query", "h.0.attention.key"])
    'h.0.attention'
    """
    parts = zip(*(path.split(".") for path in paths), strict=False)
    same = takewhile(lambda names: len(set(names)) == 1, parts)
    return ".".join(names[0] for names in same)


def _unit_operators(graph: ModelGraph, operator: Operator) -> tuple[str, ...]:
    return next(unit.operators for unit in graph.units if unit.name == operator.unit)


def is_under(graph: ModelGraph, name: str, container: str) -> bool:
    """Whether an operator runs in a module or in one of its parts."""
    path = graph.operator(name).module_path
    return path == container or path.startswith(f"{container}.")
