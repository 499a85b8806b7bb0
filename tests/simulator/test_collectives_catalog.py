"""Collectives on every cluster of the catalogue: monotone in bytes, and against measurements."""

from statistics import median

import pytest

from hardware_profiles import catalog_names, load_cluster
from simulator.collectives import collective_time
from simulator.groups import axis_group

KINDS = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "send")
SIZES = [2 ** (step / 4) for step in range(4 * 6, 4 * 35)]
"""Quarter powers of two from 64 B to 32 GiB."""


def shapes(name):
    """Yield clusters of one and of several nodes with groups that fit them."""
    one = load_cluster(name)
    sizes = {2, one.devices_per_node // 2, one.devices_per_node}
    yield (
        one,
        [
            axis_group(size=size, stride=1, devices_per_node=one.devices_per_node)
            for size in sorted(sizes)
            if 1 < size <= one.devices_per_node
        ],
    )
    if one.inter is None or one.is_mixed or one.intra.topology == "torus":
        return
    many = load_cluster(f"{name}:16")
    per_node = many.devices_per_node
    if many.num_nodes < 16:
        return
    yield (
        many,
        [
            axis_group(size=size, stride=stride, devices_per_node=per_node)
            for size, stride in ((16 * per_node, 1), (2 * per_node, 1), (16, per_node))
        ],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", catalog_names("cluster"))
def test_more_bytes_never_take_less_time(name, kind):
    for cluster, groups in shapes(name):
        for group in groups:
            times = [collective_time(kind, size, group=group, cluster=cluster) for size in SIZES]
            assert times == sorted(times)
            assert times[0] > 0


MIB = 2**20
MEASURED = [
    # nccl-tests in aiconfigurator's tables (Aug 2026), fp16, out of place: MiB -> us
    ("dgx-a100-80g", "all_reduce", 8, {4: 77.3, 16: 216.5, 32: 367.0, 64: 595.3, 128: 1169.1}),
    ("dgx-a100-80g", "all_reduce", 4, {4: 68.8, 16: 183.5, 32: 288.0, 64: 544.3, 128: 1000.5}),
    ("dgx-a100-80g", "all_gather", 8, {0.5: 21.9, 8: 73.5, 32: 217.6, 128: 660.3, 512: 2288}),
    ("dgx-a100-80g", "reduce_scatter", 8, {0.5: 19.1, 8: 79.5, 32: 210, 128: 624, 512: 2207.1}),
    ("dgx-a100-80g", "all_to_all", 8, {0.5: 19, 8: 67.8, 32: 191.3, 128: 640.5, 512: 2313.5}),
    ("dgx-h100", "all_gather", 8, {0.5: 15.4, 8: 44.9, 32: 125.5, 128: 392.8, 512: 1401.5}),
    ("dgx-h100", "reduce_scatter", 8, {0.5: 12.3, 8: 43.8, 32: 111.3, 128: 382.2, 512: 1399.4}),
    ("dgx-h100", "all_to_all", 8, {0.5: 14.8, 8: 41.4, 32: 124.9, 128: 402.4, 512: 1490.4}),
    ("dgx-h200", "all_reduce", 8, {4: 51.4, 16: 121.7, 32: 197.3, 64: 319.6, 128: 564.5}),
    ("dgx-h200", "all_reduce", 4, {4: 39.8, 16: 98.8, 32: 171.6, 64: 323.3, 128: 612.2}),
    ("dgx-b200", "all_reduce", 8, {4: 53.4, 16: 99.1, 32: 167.8, 64: 278.3, 128: 398.4}),
    ("dgx-b200", "all_reduce", 2, {4: 36.8, 16: 53.4, 32: 83.2, 64: 146.7, 128: 270.6}),
    # NVIDIA DGX H100 SuperPOD, NCCL, read off a plot (+/- 3 GB/s)
    ("dgx-h100:4", "all_reduce", 32, {16: 258, 64: 565, 256: 1653, 1024: 5910}),
    ("dgx-h100:128", "all_reduce", 1024, {16: 710, 64: 1087, 256: 2095, 1024: 6460}),
    ("dgx-h100:512", "all_reduce", 4096, {16: 937, 64: 1229, 256: 2376, 1024: 7239}),
    # NVIDIA Kubernetes notes, two DGX A100; two p4de and p5, aws-samples; cluster-toolkit
    ("dgx-a100-80g:2", "all_reduce", 16, {16: 302, 64: 918, 256: 2924, 1024: 11085}),
    ("aws-p4de:2", "all_reduce", 16, {16: 1192, 64: 2645, 256: 7202, 1024: 26217}),
    ("aws-p5:2", "all_reduce", 16, {16: 298, 64: 602, 256: 1468, 1024: 4608}),
    ("gcp-a3-mega:2", "all_gather", 16, {16: 198, 64: 518, 256: 1511, 1024: 5531}),
    (
        "gcp-a3-high:2",
        "all_gather",
        16,
        {
            1: 997,
            2: 989,
            4: 943,
            8: 1007,
            16: 1063,
            32: 1116,
            64: 1335,
            128: 1941,
            256: 3624,
            512: 7099,
        },
    ),
]


@pytest.mark.parametrize(("name", "kind", "ranks", "measured_us"), MEASURED)
def test_median_error_over_the_sizes_of_a_training_step(name, kind, ranks, measured_us):
    cluster = load_cluster(name)
    group = axis_group(size=ranks, stride=1, devices_per_node=cluster.devices_per_node)
    errors = [
        abs(collective_time(kind, size * MIB, group=group, cluster=cluster) * 1e6 / time_us - 1)
        for size, time_us in measured_us.items()
    ]
    assert median(errors) <= 0.1
