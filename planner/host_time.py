"""What a block costs beside its kernels: the host that issues them, and gradients accumulated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.cluster import Cluster
from hardware_profiles.software import SoftwareProfile
from planner.graph import ModelGraph, Unit
from planner.layouts.terms import Phase, UnitTerms
from planner.mesh import MeshShape
from planner.workload import Workload
from simulator.groups import Group
from simulator.operators import operator_time
from simulator.work import Work

Floats = NDArray[np.float64]
CALLS_PER_COLLECTIVE = 2.0
"""Framework calls per collective and phase: the collective itself, and the identity on the other
side of the layer whose gradient is a collective (f and g of arXiv:1909.08053, section 3) [1]."""
RECOMPUTE_CALLS = 12.0
"""Framework calls of one activation checkpoint: random-number states are read forward, and read,
set and set back around the recomputation (CPU, device and model-parallel state each) [1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockTimes:
    """Time of one repetition of each unit apart from communication, in the order of the units."""

    forward_s: Floats
    backward_s: Floats
    """With the accumulation of gradients [s]."""
    inputs_s: Floats
    """Gradients of inputs alone, where a schedule makes those of weights later [s]."""
    weights_s: Floats
    """Gradients of weights alone, with their accumulation [s]."""
    recompute_s: Floats
    """The forward pass run again from a checkpoint [s]."""


def block_times(
    graph: ModelGraph,
    units: Sequence[UnitTerms],
    *,
    comm_s: Mapping[Phase, Floats],
    mesh: MeshShape,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
) -> BlockTimes:
    """Return the longer of device and host for each unit.

    The host runs ahead of the device, so a block takes the longer of the two: small microbatches
    and many tensor ranks leave the device idle.

    Parameters
    ----------
    graph : ModelGraph
        The model.
    units : sequence of UnitTerms
        Its units under a layout, in order.
    comm_s : mapping
        Phase -> exposed communication per unit [s].
    mesh : MeshShape
        Sizes of the axes: nobody calls a collective of one rank.
    workload, cluster, software
        Circumstances; ``software.host_call_s`` is the price of one call of the framework and
        ``software.gradient_accumulation_bytes`` that of a gradient.
    """
    forward = np.array([unit.forward_s for unit in units])
    accumulation = np.array(
        [
            accumulation_s(unit, workload=workload, cluster=cluster, software=software)
            for unit in units
        ]
    )
    backward = np.array([unit.backward_s for unit in units]) + accumulation
    tensors = np.array([num_parameter_tensors(graph, unit) for unit in graph.units])
    again = _calls(units, "forward", mesh=mesh)
    backward_calls = _calls(units, "backward", mesh=mesh)
    weights = np.array([unit.weight_s for unit in units]) + accumulation
    weight_calls = np.array([unit.weight_calls for unit in units]) + tensors * (accumulation > 0)

    def longer(device_s: Floats, calls: Floats, phase: Phase) -> Floats:
        waiting = software.host_call_s * calls - device_s - comm_s[phase]
        longest: Floats = device_s + np.maximum(waiting, 0.0)
        return longest

    return BlockTimes(
        forward_s=longer(forward, again, "forward"),
        backward_s=longer(backward, backward_calls + tensors * (accumulation > 0), "backward"),
        inputs_s=longer(
            backward - weights,
            backward_calls - np.array([unit.weight_calls for unit in units]),
            "backward",
        ),
        weights_s=np.maximum(weights, software.host_call_s * weight_calls),
        recompute_s=longer(forward, again + RECOMPUTE_CALLS, "forward") + software.checkpoint_s,
    )


def _calls(units: Sequence[UnitTerms], phase: Phase, *, mesh: MeshShape) -> Floats:
    """Return kernels and collectives that the host issues for each unit [1]."""
    return np.array(
        [
            (unit.forward_calls if phase == "forward" else unit.backward_calls)
            + CALLS_PER_COLLECTIVE
            * sum(
                use.count
                for use in unit.communication
                if use.phase == phase and mesh.group(use.axis).num_ranks > 1
            )
            for unit in units
        ]
    )


def accumulation_s(
    unit: UnitTerms, *, workload: Workload, cluster: Cluster, software: SoftwareProfile
) -> float:
    """Return the time to bring a microbatch's gradients of a unit into their buffer [s]."""
    num_bytes = software.gradient_accumulation_bytes * unit.num_parameters
    if not workload.is_training or num_bytes == 0:
        return 0.0
    work = Work(kind="memory", precision=workload.precision, memory_bytes=num_bytes)
    return operator_time(work, device=cluster.device, software=software)


def num_parameter_tensors(graph: ModelGraph, unit: Unit) -> float:
    """Return how many parameter tensors a unit has: calls to accumulate their gradients [1]."""
    return float(
        len({item.tensor for name in unit.operators for item in graph.operator(name).parameters})
    )


def framework_delay(group: Group, *, software: SoftwareProfile) -> float:
    """Return what a blocking collective takes through the framework beyond the library's own [s].

    All-reduces timed in PyTorch on 2, 4 and 8 A100 (Galvatron's shipped profile) take 25, 36 and
    50 us longer than in nccl-tests (vTrain's), whatever their size: linear in the logarithm.

    Examples
    --------
    >>> from hardware_profiles import load_software
    >>> group = Group(num_ranks=8, ranks_per_node=8, num_nodes=1)
    >>> round(framework_delay(group, software=load_software("eager")) * 1e6)
    50
    """
    if group.num_ranks == 1:
        return 0.0
    return software.collective_call_s * (1.0 + math.log2(group.num_ranks))
