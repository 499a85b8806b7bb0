"""Small problems on real traced models, and machines that are better in one way."""

from dataclasses import replace
from functools import cache
from typing import Any

from hardware_profiles.cluster import Cluster
from hardware_profiles.device import DeviceProfile
from hardware_profiles.interconnect import Fabric
from paraplan.planning import Options, make_problem
from planner.evaluation import Evaluation, evaluate
from planner.problem import PriceBook, Problem
from planner.strategy import parse_strategy

MACHINE = "dgx-a100-80g:1"


@cache
def problem_of(model: str = "gpt2", cluster: str = MACHINE, **options: Any) -> Problem:
    """Return a problem by names; GPT-2 at 128 positions on 8 A100 unless told otherwise."""
    if model == "gpt2":
        options.setdefault("seq_len", 128)
    options.setdefault("global_batch", 32)
    return make_problem(Options(model=model, cluster=cluster, **options))


def evaluated(problem: Problem, strategy: str) -> Evaluation:
    """Return a strategy by the closed form, with the fastest layout."""
    parsed = parse_strategy(strategy)
    book = PriceBook(problem=problem)
    return evaluate(book, parsed, book.layouts(parsed)[0])


def on(problem: Problem, cluster: Cluster) -> Problem:
    """Return the same problem on another cluster."""
    return replace(problem, cluster=cluster)


def faster_devices(
    cluster: Cluster, *, flops: float = 1.0, bandwidth: float = 1.0, latency: float = 1.0
) -> Cluster:
    """Return a cluster whose devices compute, copy and launch faster by factors."""
    groups = tuple(
        replace(
            group,
            device=replace(
                group.device,
                peak_flops_per_s={k: v * flops for k, v in group.device.peak_flops_per_s.items()},
                vector_flops_per_s=group.device.vector_flops_per_s * flops,
                memory_bandwidth_bytes_per_s=group.device.memory_bandwidth_bytes_per_s * bandwidth,
                launch_latency_s=group.device.launch_latency_s / latency,
            ),
        )
        for group in cluster.node_groups
    )
    return replace(cluster, node_groups=groups)


def faster_network(cluster: Cluster, *, bandwidth: float = 1.0, latency: float = 1.0) -> Cluster:
    """Return a cluster whose links are faster and whose hops are shorter by factors."""
    return replace(
        cluster,
        intra=_faster(cluster.intra, bandwidth=bandwidth, latency=latency),
        inter=cluster.inter and _faster(cluster.inter, bandwidth=bandwidth, latency=latency),
    )


def _faster(fabric: Fabric, *, bandwidth: float, latency: float) -> Fabric:
    link = fabric.link
    return replace(
        fabric,
        bandwidth_bytes_per_s=fabric.bandwidth_bytes_per_s * bandwidth,
        latency_s=fabric.latency_s / latency,
        base_latency_s=fabric.base_latency_s / latency,
        link=replace(
            link,
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * bandwidth,
            achievable_bandwidth_bytes_per_s=link.achievable_bandwidth_bytes_per_s * bandwidth,
            latency_s=link.latency_s / latency,
        ),
    )


def all_faster(problem: Problem, factor: float) -> Problem:
    """Return the problem with all rates times a factor and all latencies divided by it."""
    cluster = faster_devices(problem.cluster, flops=factor, bandwidth=factor, latency=factor)
    cluster = faster_network(cluster, bandwidth=factor, latency=factor)
    groups = tuple(
        replace(group, device=_shorter_kernels(group.device, factor))
        for group in cluster.node_groups
    )
    cluster = replace(cluster, node_groups=groups)
    software = replace(
        problem.software,
        kernel_overhead_s=problem.software.kernel_overhead_s / factor,
        sharded_operator_overhead_s=problem.software.sharded_operator_overhead_s / factor,
        host_call_s=problem.software.host_call_s / factor,
        collective_call_s=problem.software.collective_call_s / factor,
    )
    return replace(problem, cluster=cluster, software=software)


def _shorter_kernels(device: DeviceProfile, factor: float) -> DeviceProfile:
    """Return a device whose kernels take a share of their own time beside launches and rates."""
    return replace(
        device,
        matmul=replace(device.matmul, kernel_time_s=device.matmul.kernel_time_s / factor),
        convolution_time_s=device.convolution_time_s / factor,
        recurrent_step_s=device.recurrent_step_s / factor,
    )
