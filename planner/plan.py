"""The plan file: a strategy made concrete, canonical and versioned.

``plan.json`` is what ``paraplan run`` and others read. It holds no date, no duration of the search
and no path of this machine, so that the same input gives a byte-identical plan.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.errors import PlanError, StrategyError
from planner.strategy import parse_strategy

SCHEMA_VERSION = 1
Placement = str
"""``R`` replicated, ``S<dim>`` shard along a tensor dimension, ``P`` partial sum, ``-`` none."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedModel(_Frozen):
    """The model a plan is for."""

    source: str
    """As the user named it: preset, ``hf:...`` or ``file.py:factory``."""
    name: str
    num_parameters: int
    content_key: str
    """Hash of the model's source and of the versions that traced it."""


class PlannedWorkload(_Frozen):
    """The workload a plan is for; see :class:`planner.workload.Workload`."""

    global_batch_size: int
    sequence_length: int
    precision: str
    optimizer: str
    mode: Literal["train", "infer"]
    attention: str


class PlannedCluster(_Frozen):
    """The cluster a plan is for."""

    name: str
    device: str
    device_kind: str
    num_devices: int
    devices_per_node: int


class PlannedMesh(_Frozen):
    """Axes, outermost first; rank = row-major position, device = rank in cluster order."""

    axes: tuple[tuple[str, int], ...]


class PlannedUnits(_Frozen):
    """Repetitions ``first`` up to and without ``last`` of one unit of the graph."""

    unit: str
    first: int
    last: int


class PlannedStage(_Frozen):
    """One (virtual) pipeline stage; stage ``i`` lives on pipeline rank ``i % pp``.

    Under ``schedule=zbv`` stages ``r`` and ``2 * pp - 1 - r`` live on rank ``r``.
    """

    units: tuple[PlannedUnits, ...]
    module_paths: tuple[str, ...]
    """Modules of the stage in execution order, as far as a unit is one module."""


class Boundary(_Frozen):
    """What happens to an activation at the entry or exit of a module: ``have`` becomes ``want``."""

    have: Placement
    want: Placement


class ModuleBoundary(_Frozen):
    """Layout changes of one module's first tensor input and of its output, on one mesh axis."""

    input: Boundary | None = None
    output: Boundary | None = None


class PlannedLayout(_Frozen):
    """Layouts on one mesh axis (``tp``); axes not listed split the batch (dp) or positions (cp)."""

    axis: str
    size: int
    operators: dict[str, str | None]
    """Operator -> label it splits, or null for replicated."""
    parameters: dict[str, Placement]
    """Module parameter name -> placement; parameters not listed are replicated."""
    tensors: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """Tensor -> layouts in which its value and its gradient are held between operators."""
    modules: dict[str, ModuleBoundary]
    """Module path -> layout changes at its entry and exit."""
    model_input: Placement = "R"
    """Layout in which every rank is handed its inputs (``S0``: its slice of the batch)."""
    model_output: Placement = "R"
    """Layout in which the model's output goes to the loss (``S<last>``: classes split)."""
    executable: bool = True
    not_executable_because: str = ""


class Plan(_Frozen):
    """A strategy with mesh, stages, layouts and predicted numbers."""

    schema_version: int = SCHEMA_VERSION
    paraplan_version: str
    model: PlannedModel
    workload: PlannedWorkload
    cluster: PlannedCluster
    software: str
    strategy: str
    """Canonical text, see :mod:`planner.strategy`."""
    mesh: PlannedMesh
    stages: tuple[PlannedStage, ...]
    layouts: tuple[PlannedLayout, ...] = ()
    prediction: dict[str, Any] = Field(default_factory=dict)
    """The ``simulate --json`` object of this plan."""
    candidates: tuple[dict[str, Any], ...] = ()
    """Ranked runners-up, each with strategy and headline numbers."""
    baselines: tuple[dict[str, Any], ...] = ()
    rejected: dict[str, int] = Field(default_factory=dict)
    """Reason -> number of candidates."""
    explanation: dict[str, Any] = Field(default_factory=dict)
    assumptions: tuple[str, ...] = ()


def plan_to_json(plan: Plan) -> str:
    """Return the canonical text: sorted keys, two spaces, one final newline."""
    return json.dumps(plan.model_dump(mode="json"), sort_keys=True, indent=2) + "\n"


def load_plan(path: str | Path) -> Plan:
    """Read and check a plan file.

    Raises
    ------
    PlanError
        If the file is missing, no JSON, of another schema version, has missing or unknown keys, or
        its mesh, stages and layouts are not those of its strategy.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path}: no such file; make one with 'paraplan plan'") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise PlanError(
            f"{path}: cannot be read ({reason}); expected a plan written by 'paraplan plan'"
        ) from None
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{path}: not JSON, line {error.lineno} column {error.colno}: {error.msg}; "
            "expected a plan written by 'paraplan plan'"
        ) from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise PlanError(
            f"{path}: schema_version is {version!r}; this paraplan reads {SCHEMA_VERSION}; "
            "make the plan anew with 'paraplan plan'"
        )
    try:
        plan = Plan.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PlanError(
            f"{path}: {where}: {first['msg']}; make the plan anew with 'paraplan plan'"
        ) from None
    disagreement = _disagreement(plan)
    if disagreement:
        raise PlanError(f"{path}: {disagreement}; make the plan anew with 'paraplan plan'")
    return plan


def _disagreement(plan: Plan) -> str:
    """Return how mesh, stages or layouts contradict the strategy; empty where they agree."""
    try:
        strategy = parse_strategy(plan.strategy)
    except StrategyError as error:
        return str(error)
    axes = dict(plan.mesh.axes)
    sizes = {
        "pp": strategy.pipeline_parallel_size,
        "dp": strategy.data_parallel_size,
        "cp": strategy.context_parallel_size,
        "tp": strategy.tensor_parallel_size,
    }
    for axis, size in sizes.items():
        if axes.get(axis, 1) != size:
            return f"mesh: {axis}={axes.get(axis, 1)}; the strategy has {axis}={size}"
    num_stages = strategy.pipeline_parallel_size * strategy.virtual_stages
    if len(plan.stages) != num_stages:
        return f"stages: {len(plan.stages)} are listed; the strategy has {num_stages}"
    for layout in plan.layouts:
        if layout.size != axes.get(layout.axis, 1):
            return f"layouts: size {layout.size} on axis {layout.axis}; the mesh has another"
    return ""
