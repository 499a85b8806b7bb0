"""What decides how near a published run is to a prediction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hardware_profiles.device import DeviceKind, DeviceProfile
from planner.graph import ModelGraph
from planner.problem import Problem

ModelClass = Literal["transformer", "expert model", "convolutional network", "other network"]
_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "Kepler": ("k20", "k40", "k80"),
    "Pascal": ("p100", "p40"),
    "Volta": ("v100",),
    "Turing": ("t4",),
    "Ampere": ("a100", "a10", "a10g", "a30", "a40", "rtx-3090"),
    "Ada": ("l4", "l40s", "rtx-4090"),
    "Hopper": ("h100", "h200", "h800", "h20", "gh200"),
    "Blackwell": ("b200", "b300", "gb200", "gb300", "rtx-pro-6000"),
    "CDNA": ("mi100", "mi250x", "mi300x", "mi325x", "mi355x"),
    "Gaudi": ("gaudi2", "gaudi3"),
    "TPU": ("tpu-v2", "tpu-v3", "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The coordinates by which residuals of published runs are near or far."""

    model_class: ModelClass
    device_kind: DeviceKind
    generation: str
    """Of the device: ``Ampere``."""
    software: str
    """Name of the software profile, without what a user changed in it."""
    num_devices: int


def setting_of(problem: Problem, *, num_devices: int) -> Setting:
    """Return the setting of a prediction."""
    device = problem.cluster.device
    return Setting(
        model_class=model_class(problem.graph),
        device_kind=device.kind,
        generation=generation_of(device),
        software=problem.software.name.partition("?")[0],
        num_devices=num_devices,
    )


def generation_of(device: DeviceProfile) -> str:
    """Return the generation of a device; a device of no known one is called after its kind."""
    for generation, members in _MEMBERS.items():
        if any(device.name == name or device.name.startswith(f"{name}-") for name in members):
            return generation
    return device.kind.upper()


def model_class(graph: ModelGraph) -> ModelClass:
    """Return what kind of network a graph is, by its operators."""
    operators = [operator for _, operator in graph.graph.nodes(data="operator")]
    if any(index.role == "expert" for operator in operators for index in operator.indices):
        return "expert model"
    kinds = {operator.kind for operator in operators}
    if "attention" in kinds:
        return "transformer"
    return "convolutional network" if "convolution" in kinds else "other network"
