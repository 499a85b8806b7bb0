"""Canonical JSON of a model graph, without pickles and without torch."""

import json
import types
import typing
from collections.abc import Callable, Hashable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, cast

import networkx as nx

from planner.graph import (
    FlopTerm,
    Index,
    ModelGraph,
    Operand,
    Operator,
    OperatorIndex,
    Tensor,
    TensorTerm,
    TraceWarning,
    Unit,
)

GRAPH_SCHEMA = 1
_Value = TypeVar("_Value")
_NESTED: dict[tuple[type, str], type] = {
    (Operator, "indices"): OperatorIndex,
    (Operator, "inputs"): Operand,
    (Operator, "parameters"): Operand,
    (Operator, "flops_forward"): FlopTerm,
    (Operator, "flops_backward"): FlopTerm,
    (Operator, "traffic_forward"): TensorTerm,
    (Operator, "traffic_backward"): TensorTerm,
    (Operator, "saved"): TensorTerm,
    (Operator, "saved_fused"): TensorTerm,
}
_SCALARS = (
    "name", "batch_label", "sequence_length", "num_parameters", "sequence_labels",
    "active_parameters", "source", "content_key",
)  # fmt: skip


def graph_to_json(graph: ModelGraph) -> str:
    """Write a graph as canonical JSON: the same graph gives the same bytes."""
    data = {
        "schema": GRAPH_SCHEMA,
        **{name: getattr(graph, name) for name in _SCALARS},
        "operators": [_row(graph.operator(name)) for name in graph.graph],
        "edges": [[a, b, list(data["tensors"])] for a, b, data in graph.graph.edges(data=True)],
        "tensors": [_row(tensor) for tensor in graph.tensors.values()],
        "indices": [_row(index) for index in graph.indices.values()],
        "units": [_row(unit) for unit in graph.units],
        "warnings": [_row(warning) for warning in graph.warnings],
        "parameter_names": dict(graph.parameter_names),
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def graph_from_json(text: str) -> ModelGraph:
    """Read a graph written by :func:`graph_to_json`.

    Raises
    ------
    ValueError
        If the text is of another schema version.
    """
    data = json.loads(text)
    if data.get("schema") != GRAPH_SCHEMA:
        raise ValueError(f"graph of schema {data.get('schema')!r}, expected {GRAPH_SCHEMA}")
    graph = nx.DiGraph()
    for row in data["operators"]:
        operator = _build(Operator, row)
        graph.add_node(operator.name, operator=operator)
    for start, end, tensors in data["edges"]:
        graph.add_edge(start, end, tensors=tuple(tensors))
    scalars = {name: _frozen(data[name]) for name in _SCALARS}
    return ModelGraph(
        graph=graph,
        tensors={row["name"]: _build(Tensor, row) for row in data["tensors"]},
        indices={row["label"]: _build(Index, row) for row in data["indices"]},
        units=tuple(_build(Unit, row) for row in data["units"]),
        warnings=tuple(_build(TraceWarning, row) for row in data["warnings"]),
        parameter_names={name: tuple(names) for name, names in data["parameter_names"].items()},
        **scalars,
    )


def _row(value: Any) -> dict[str, Any]:
    """Return the fields of a value object; nested ones become rows too."""
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _row(value) if hasattr(value, "__dataclass_fields__") else value


@cache
def _readers(kind: Any) -> dict[str, Callable[[Any], Any]]:
    """Return how to read each field of a value object back from JSON."""
    hints = typing.get_type_hints(kind)
    readers: dict[str, Callable[[Any], Any]] = {}
    for name, hint in hints.items():
        nested = _NESTED.get((kind, name))
        if nested is not None:
            readers[name] = _row_reader(nested)
        elif typing.get_origin(hint) in (tuple, types.UnionType):
            readers[name] = _frozen
        else:
            readers[name] = _same
    return readers


def _row_reader(kind: type) -> Callable[[Any], Any]:
    return lambda rows: tuple(_build(kind, row) for row in rows)


def _same(value: Any) -> Any:
    return value


def _build(kind: type[_Value], row: dict[str, Any]) -> _Value:
    readers = _readers(cast("Hashable", kind))
    return kind(**{name: readers[name](value) for name, value in row.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
