"""Plans as values: canonical text, strict reading, what is in them."""

import json
from pathlib import Path

import pytest

from paraplan.planning import rank_strategy
from planner.errors import PlanError
from planner.make_plan import plan_of_strategy
from planner.plan import Plan, load_plan, plan_to_json
from tests.planner.problems import problem_of


def plan(strategy: str = "dp=2,tp=2,pp=2,microbatch=4") -> Plan:
    return plan_of_strategy(*rank_strategy(problem_of(), strategy))


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(plan()), encoding="utf-8")
    assert load_plan(path) == plan()
    assert plan_to_json(load_plan(path)) == path.read_text(encoding="utf-8")


def test_the_text_is_canonical_and_of_no_machine() -> None:
    text = plan_to_json(plan())
    assert text == plan_to_json(plan())
    assert text.endswith("}\n")
    data = json.loads(text)
    assert text == json.dumps(data, sort_keys=True, indent=2) + "\n"
    assert str(Path.home()) not in text
    assert "NaN" not in text
    assert "Infinity" not in text


@pytest.mark.parametrize("strategy", ["dp=8", "pp=4", "pp=4,schedule=interleaved,virtual_stages=3"])
def test_stages_hold_every_block_once(strategy: str) -> None:
    problem = problem_of()
    made = plan(strategy)
    held = [
        (units.unit, number)
        for stage in made.stages
        for units in stage.units
        for number in range(units.first, units.last)
    ]
    assert held == [
        (unit.name, number) for unit in problem.graph.units for number in range(unit.count)
    ]
    paths = [path for stage in made.stages for path in stage.module_paths]
    assert len(set(paths)) == len(paths)


def test_mesh_and_layouts_are_those_of_the_strategy() -> None:
    made = plan()
    assert made.mesh.axes == (("pp", 2), ("dp", 2), ("tp", 2))
    (layout,) = made.layouts
    assert (layout.axis, layout.size) == ("tp", 2)
    assert any(placement.startswith("S") for placement in layout.parameters.values())
    assert plan("dp=8").layouts == ()


def test_assumptions_name_what_has_no_source() -> None:
    lines = plan().assumptions
    device = problem_of().cluster.device
    assumed = [name for name, origin in device.provenance.items() if origin.kind == "assumed"]
    assert assumed
    assert all(any(name in line for line in lines) for name in assumed)
    assert any("software profile 'eager'" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON, line 1 column 2"),
        ("[]", "schema_version is None"),
        ('{"schema_version": 0}', "this paraplan reads 1"),
        ('{"schema_version": 1}', "Field required"),
    ],
)
def test_what_is_no_plan(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=message):
        load_plan(path)


def test_unknown_keys_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for where in ((), ("model",), ("mesh",), ("stages", 0), ("layouts", 0)):
        data = json.loads(plan_to_json(plan()))
        inner = data
        for key in where:
            inner = inner[key]
        inner["colour"] = "red"
        path.write_text(json.dumps(data), encoding="utf-8")
        with pytest.raises(PlanError, match="colour"):
            load_plan(path)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no such file"):
        load_plan(tmp_path / "plan.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "binary")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("strategy", "dp=2,pp=4,microbatch=4", "mesh: pp=2; the strategy has pp=4"),
        ("strategy", "dp=2,microbatch=4", "mesh: pp=2; the strategy has pp=1"),
        ("strategy", "dp=2,tpp=2", "unknown key 'tpp'"),
        ("mesh", {"axes": [["pp", 2], ["dp", 2]]}, "mesh: tp=1; the strategy has tp=2"),
        ("stages", None, "stages: 1 are listed; the strategy has 2"),
    ],
)
def test_parts_that_contradict_the_strategy(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = tmp_path / "plan.json"
    data = json.loads(plan_to_json(plan()))
    data[key] = data[key][:1] if value is None else value
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PlanError, match=message):
        load_plan(path)
