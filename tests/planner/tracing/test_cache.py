"""The cache of graphs: round trip, speed of imports, damage, content key."""

import subprocess
import sys
from dataclasses import replace

import pytest

from planner.models.resolve import resolve_model
from planner.tracing import graph_from_json, graph_to_json, trace_model
from planner.tracing.cache import content_key

READ_ONLY_FROM_CACHE = """
import sys
from pathlib import Path
from planner.models.resolve import resolve_model
from planner.tracing import trace_model
from planner.graph_math import trace_summary
graph = trace_model(resolve_model("mlp"), cache_dir=Path(sys.argv[1]))
trace_summary(graph)
print(graph.num_parameters, "torch" in sys.modules, "transformers" in sys.modules)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def graph(folder):
    return trace_model(resolve_model("mlp"), cache_dir=folder)


def test_round_trip_is_exact(graph):
    again = graph_from_json(graph_to_json(graph))
    assert graph_to_json(again) == graph_to_json(graph)
    assert [again.operator(n) for n in again.graph] == [graph.operator(n) for n in graph.graph]
    assert again.tensors == graph.tensors
    assert again.units == graph.units
    assert list(again.graph.edges(data=True)) == list(graph.graph.edges(data=True))


def test_reading_the_cache_loads_no_torch(graph, folder):
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY_FROM_CACHE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(graph.num_parameters), "False", "False"]


def test_a_damaged_file_is_traced_again(graph, tmp_path):
    path = tmp_path / f"{graph.content_key}.json.gz"
    path.write_bytes(b"not a graph")
    again = trace_model(resolve_model("mlp"), cache_dir=tmp_path)
    assert graph_to_json(again) == graph_to_json(graph)
    assert path.read_bytes()[:2] == b"\x1f\x8b"


def test_the_cache_follows_paraplan_home(monkeypatch, tmp_path):
    monkeypatch.setenv("PARAPLAN_HOME", str(tmp_path))
    trace_model(resolve_model("mlp"))
    assert list((tmp_path / "graphs").glob("*.json.gz"))
    assert not list((tmp_path / "graphs").glob("*.part"))


def test_the_key_follows_model_and_sequence():
    source = resolve_model("gpt2")
    key = content_key(source, sequence_length=1024)
    assert key == content_key(source, sequence_length=1024)
    assert key != content_key(source, sequence_length=512)
    assert key != content_key(replace(source, key="changed"), sequence_length=1024)


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match="schema"):
        graph_from_json('{"schema": 0}')
