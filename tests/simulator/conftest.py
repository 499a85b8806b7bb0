"""Toy machines with round numbers."""

from dataclasses import replace

import pytest

from hardware_profiles.cluster import Cluster, NodeGroup
from hardware_profiles.device import DeviceProfile, MatmulEfficiency
from hardware_profiles.interconnect import Fabric, LinkProfile
from hardware_profiles.software import SoftwareProfile
from simulator.program import Program, Task
from simulator.schedules import schedule_actions

TOY_DEVICE = DeviceProfile(
    name="toy",
    title="Toy device",
    vendor="none",
    kind="gpu",
    year=2000,
    peak_flops_per_s={"fp32": 1e12, "bf16": 4e12},
    vector_flops_per_s=1e11,
    memory_bytes=1e9,
    memory_bandwidth_bytes_per_s=1e10,
    num_compute_units=10,
    launch_latency_s=1e-6,
    memory_efficiency=1.0,
    memory_half_bytes=1e3,
    matmul=MatmulEfficiency(sustained_efficiency=0.8, tile_m=128, tile_n=128, half_k=64),
    attention_forward_efficiency=0.5,
    attention_backward_efficiency=0.4,
    convolution_gain=2.0,
)
TOY_SOFTWARE = SoftwareProfile(
    name="toy",
    title="Toy stack",
    fuses_elementwise=False,
    fuses_normalization=True,
    attention="flash",
    fuses_attention_softmax=True,
    kernel_overhead_s=2e-6,
    overlap_gradient_sync=0.0,
    overlap_parameter_gather=0.0,
    overlap_tensor_parallel=0.0,
    overlap_pipeline=0.0,
    compute_slowdown=1.0,
    gradient_bucket_bytes=1e6,
    gradient_precision="fp32",
    master_weights=True,
    fixed_memory_bytes=0.0,
    allocator_overhead=0.0,
    straggler_share=0.0,
)


def toy_link(kind="nvswitch", bandwidth=1e9, latency=1e-6):
    return LinkProfile(
        name="toy-link",
        title="Toy link",
        kind=kind,
        bandwidth_bytes_per_s=bandwidth,
        achievable_bandwidth_bytes_per_s=bandwidth,
        latency_s=latency,
    )


def toy_fabric(topology="switch", *, kind="nvswitch", bandwidth=1e9, latency=1e-6, **more):
    return Fabric(
        topology=topology,
        link=toy_link(kind, bandwidth, latency),
        bandwidth_bytes_per_s=bandwidth,
        latency_s=latency,
        **more,
    )


def make_cluster(*, num_nodes=1, devices_per_node=8, intra=None, inter=None, **more):
    return Cluster(
        name="toy",
        title="Toy cluster",
        node_groups=(
            NodeGroup(device=TOY_DEVICE, devices_per_node=devices_per_node, num_nodes=num_nodes),
        ),
        intra=intra or toy_fabric(),
        inter=inter,
        **more,
    )


def make_pipeline(
    name,
    *,
    num_ranks,
    num_microbatches,
    virtual_stages=1,
    forward=1,
    backward=2,
    weight=0,
    send=0,
    factors=None,
):
    """One compute task per action, one send per boundary of ranks; factors scale the ranks.

    ``weight`` is the part of ``backward`` that a split backward pass leaves for later.
    """
    schedule = schedule_actions(
        name,
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        virtual_stages=virtual_stages,
    )
    num_stages = num_ranks * virtual_stages
    actions = [(rank, action) for rank, row in enumerate(schedule) for action in row]
    compute_at = {str(action): index for index, (_, action) in enumerate(actions)}
    steps = {"F": 1, "B": -1, "I": -1, "W": num_stages}  # weight gradients go nowhere
    durations = {"F": forward, "B": backward, "I": backward - weight, "W": weight}
    kept = {"F": (1, 0), "B": (0, -1), "I": (0, 0), "W": (0, -1)}
    home = {action.stage: rank for rank, action in actions}
    crossing = [
        (rank, action)
        for rank, action in actions
        if 0 <= action.stage + steps[action.kind] < num_stages
        and home[action.stage + steps[action.kind]] != rank
    ]
    send_at = {str(action): len(actions) + index for index, (_, action) in enumerate(crossing)}
    factors = factors or [1] * num_ranks
    tasks = []
    for rank, action in actions:
        source = f"{action.stage - steps[action.kind]}{action.kind}{action.microbatch}"
        depends_on = [at[source] for at in (send_at, compute_at) if source in at][:1]
        if action.kind in "BI":
            depends_on.append(compute_at[f"{action.stage}F{action.microbatch}"])
        starts, ends = kept[action.kind]
        tasks.append(
            Task(
                name=str(action),
                rank=rank,
                stream="compute",
                kind="compute",
                duration_s=durations[action.kind] * factors[rank],
                depends_on=tuple(depends_on),
                memory_at_start_bytes=starts,
                memory_at_end_bytes=ends,
                stage=action.stage,
                microbatch=action.microbatch,
                category="forward" if action.kind == "F" else "backward",
            )
        )
    for rank, action in crossing:
        tasks.append(
            Task(
                name=f"send {action}",
                rank=rank,
                stream="pipeline",
                kind="send",
                duration_s=send,
                depends_on=(compute_at[str(action)],),
                category="pipeline",
                stage=action.stage,
                microbatch=action.microbatch,
            )
        )
    return Program(tasks=tuple(tasks), num_ranks=num_ranks, resting_memory_bytes=(100,) * num_ranks)


@pytest.fixture(scope="session")
def pipeline_program():
    return make_pipeline


@pytest.fixture(scope="session")
def make_fabric():
    return toy_fabric


@pytest.fixture(scope="session")
def toy_cluster():
    """Factory of clusters of toy devices; eight of them behind one switch by default."""
    return make_cluster


@pytest.fixture(scope="session")
def toy_device():
    return TOY_DEVICE


@pytest.fixture(scope="session")
def toy_software():
    return TOY_SOFTWARE


@pytest.fixture(scope="session")
def ideal_device():
    """No launch, no ramp, full efficiency: the bare roofline."""
    return replace(
        TOY_DEVICE,
        launch_latency_s=0.0,
        memory_half_bytes=0.0,
        matmul=MatmulEfficiency(sustained_efficiency=1.0, tile_m=128, tile_n=128, half_k=0.0),
    )


@pytest.fixture(scope="session")
def free_software():
    return replace(TOY_SOFTWARE, kernel_overhead_s=0.0)
