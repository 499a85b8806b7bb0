"""Trace a torch model into a :class:`planner.graph.ModelGraph`, once, and keep it on disk."""

from planner.tracing.entry import trace_model
from planner.tracing.graph_json import graph_from_json, graph_to_json

__all__ = ["graph_from_json", "graph_to_json", "trace_model"]
