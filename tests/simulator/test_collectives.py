"""Collectives: examples, closed forms, relations, failures."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.collective_costs import NCCL_NETWORK_COSTS
from hardware_profiles.errors import ProfileError
from simulator.collectives import collective_algorithm, collective_time
from simulator.groups import Group, axis_group

KINDS = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "send")
ONE_NODE = Group(num_ranks=8, ranks_per_node=8, num_nodes=1)
FOUR_NODES = Group(num_ranks=32, ranks_per_node=8, num_nodes=4)
BYTES = st.floats(0, 1e10)


@pytest.fixture(scope="module")
def plain(toy_cluster, make_fabric):
    """No latency and no library protocols: textbook links of 1 GB/s."""
    return toy_cluster(
        num_nodes=4,
        intra=make_fabric(kind="loopback", latency=0.0),
        inter=make_fabric(kind="dcn", bandwidth=1e8, latency=0.0),
        nics_per_node=8,
    )


@pytest.fixture(scope="module")
def gpus(toy_cluster, make_fabric):
    """NVLink-like inside, InfiniBand-like between."""
    return toy_cluster(
        num_nodes=64,
        intra=make_fabric(bandwidth=2.4e11, latency=3.4e-6, base_latency_s=8.4e-6),
        inter=make_fabric(kind="infiniband", bandwidth=2.4e10, latency=1.4e-5, base_latency_s=1e-6),
        nics_per_node=8,
    )


@pytest.mark.parametrize(
    ("kind", "expected_s"),
    [
        ("all_reduce", 2 * 7 / 8),
        ("reduce_scatter", 7 / 8),
        ("all_gather", 7 / 8),
        ("all_to_all", 7 / 8),
        ("broadcast", 1),
        ("send", 1),
    ],
)
def test_ideal_link_gives_the_textbook_form(plain, kind, expected_s):
    assert collective_time(kind, 1e9, group=ONE_NODE, cluster=plain) == pytest.approx(expected_s)


def test_ring_with_latency_example(toy_cluster, make_fabric):
    cluster = toy_cluster(intra=make_fabric(kind="loopback", latency=1e-3, base_latency_s=5e-3))
    group = Group(num_ranks=4, ranks_per_node=4, num_nodes=1)
    # six hops of 1 ms, 5 ms to begin with, nothing to move
    assert collective_time("all_reduce", 0, group=group, cluster=cluster) == pytest.approx(11e-3)
    assert collective_time("all_gather", 0, group=group, cluster=cluster) == pytest.approx(8e-3)


def test_multi_node_ring_is_bound_by_the_nics(plain):
    # 8 NICs of 100 MB/s make 800 MB/s per node, less than 1 GB/s inside
    assert collective_time("all_gather", 1e9, group=FOUR_NODES, cluster=plain) == pytest.approx(
        31 / 32 / 0.8
    )


def test_concurrent_groups_share_the_nics(plain):
    alone = Group(num_ranks=4, ranks_per_node=1, num_nodes=4)
    shared = replace(alone, concurrent=8)
    few_nics = replace(plain, nics_per_node=2)
    time_s = {
        (name, cluster.nics_per_node): collective_time("all_gather", 1e9, group=g, cluster=cluster)
        for name, g in (("alone", alone), ("shared", shared))
        for cluster in (plain, few_nics)
    }
    assert time_s["alone", 8] == time_s["shared", 8] == time_s["alone", 2]  # one NIC each
    assert time_s["shared", 2] == pytest.approx(4 * time_s["alone", 2])


def test_oversubscription_divides_the_network(plain):
    thin = replace(plain, oversubscription=2.0)
    for kind in KINDS:
        wide_s = collective_time(kind, 1e9, group=FOUR_NODES, cluster=plain)
        assert collective_time(kind, 1e9, group=FOUR_NODES, cluster=thin) == pytest.approx(
            2 * wide_s
        )


def test_all_to_all_leaves_the_node_through_the_nics(plain):
    # 24 of 32 blocks leave each of 8 ranks over 800 MB/s
    assert collective_time("all_to_all", 1e9, group=FOUR_NODES, cluster=plain) == pytest.approx(
        8 * 24 / 32 / 0.8
    )


def test_group_of_one_is_free(gpus):
    group = Group(num_ranks=1, ranks_per_node=1, num_nodes=1)
    for kind in KINDS:
        assert collective_time(kind, 1e9, group=group, cluster=gpus) == 0.0
        assert collective_algorithm(kind, 1e9, group=group, cluster=gpus) == "none"


@pytest.mark.parametrize(
    ("num_bytes", "group", "expected"),
    [
        (1e3, ONE_NODE, "ring/ll"),
        (1e10, ONE_NODE, "ring/simple"),
        (1e4, axis_group(size=512, stride=1, devices_per_node=8), "tree/ll"),
        (1e10, FOUR_NODES, "ring/simple"),
    ],
)
def test_fastest_algorithm_by_size(gpus, num_bytes, group, expected):
    assert collective_algorithm("all_reduce", num_bytes, group=group, cluster=gpus) == expected


def test_switch_that_adds_wins_with_eight_ranks_and_large_messages(gpus):
    adding = replace(gpus, intra=replace(gpus.intra, in_network_reduction=True))
    four = Group(num_ranks=4, ranks_per_node=4, num_nodes=1)
    pick = [
        collective_algorithm("all_reduce", size, group=group, cluster=adding)
        for size, group in ((1e9, ONE_NODE), (1e9, four), (1e3, ONE_NODE))
    ]
    assert pick == ["in-switch", "ring/simple", "ring/ll"]


def test_few_peers_of_a_full_mesh_mean_few_links(toy_cluster, make_fabric):
    cluster = toy_cluster(intra=make_fabric("full_mesh", kind="loopback", latency=0.0))
    pair = Group(num_ranks=2, ranks_per_node=2, num_nodes=1)
    assert collective_time("send", 1e9, group=pair, cluster=cluster) == pytest.approx(7)
    assert collective_time("send", 1e9, group=ONE_NODE, cluster=cluster) == pytest.approx(1)


def test_network_missing_is_a_clear_error(toy_cluster):
    with pytest.raises(ProfileError, match=r"cluster 'toy': .* spans 4 nodes .* no network"):
        collective_time("all_reduce", 1, group=FOUR_NODES, cluster=toy_cluster())


def test_negative_size_is_refused(gpus):
    with pytest.raises(ValueError, match="message_bytes is -1"):
        collective_time("all_reduce", -1, group=ONE_NODE, cluster=gpus)


GROUPS = st.builds(
    axis_group,
    size=st.sampled_from([2, 3, 4, 8, 16, 64]),
    stride=st.sampled_from([1, 2, 4, 8]),
    devices_per_node=st.just(8),
)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), size=BYTES, more=BYTES, group=GROUPS, adds=st.booleans())
def test_more_bytes_never_take_less_time(gpus, kind, size, more, group, adds):
    cluster = replace(gpus, intra=replace(gpus.intra, in_network_reduction=adds))
    small = collective_time(kind, size, group=group, cluster=cluster)
    assert collective_time(kind, size + more, group=group, cluster=cluster) >= small > 0


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), size=BYTES, group=GROUPS, factor=st.floats(1, 10))
def test_better_links_are_never_slower(gpus, kind, size, group, factor):
    time_s = collective_time(kind, size, group=group, cluster=gpus)
    for part in ("intra", "inter"):
        fabric = getattr(gpus, part)
        for better in (
            replace(fabric, bandwidth_bytes_per_s=fabric.bandwidth_bytes_per_s * factor),
            replace(fabric, latency_s=fabric.latency_s / factor),
        ):
            faster = replace(gpus, **{part: better})
            assert collective_time(kind, size, group=group, cluster=faster) <= time_s * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), size=BYTES, group=GROUPS, factor=st.floats(1, 10))
def test_all_rates_times_k_divides_the_time_by_k(gpus, kind, size, group, factor):
    def faster(fabric):
        return replace(
            fabric,
            bandwidth_bytes_per_s=fabric.bandwidth_bytes_per_s * factor,
            latency_s=fabric.latency_s / factor,
            base_latency_s=fabric.base_latency_s / factor,
        )

    cluster = replace(gpus, intra=faster(gpus.intra), inter=faster(gpus.inter))
    assert collective_time(kind, size, group=group, cluster=cluster) == pytest.approx(
        collective_time(kind, size, group=group, cluster=gpus) / factor
    )


@given(size=BYTES)
def test_all_reduce_is_reduce_scatter_and_all_gather(plain, size):
    parts = sum(
        collective_time(kind, size, group=ONE_NODE, cluster=plain)
        for kind in ("reduce_scatter", "all_gather")
    )
    whole = collective_time("all_reduce", size, group=ONE_NODE, cluster=plain)
    assert whole == pytest.approx(parts)


@given(size=st.floats(1, 1e10), group=GROUPS)
def test_nothing_beats_the_bandwidth_bound(plain, size, group):
    """A rank must receive what it lacks, over its own link: (n - 1) / n of an all-gather."""
    time_s = collective_time("all_gather", size, group=group, cluster=plain)
    assert time_s >= (group.num_ranks - 1) / group.num_ranks * size / 1e9 * (1 - 1e-12)


def test_neighbours_in_a_pcie_tree_are_faster_than_all_devices(toy_cluster, make_fabric):
    fabric = make_fabric("pcie_tree", kind="loopback", bandwidth=1.6e10, latency=0.0)
    cluster = toy_cluster(intra=replace(fabric, bandwidth_bytes_per_s=1e9))
    time_s = [
        collective_time(
            "send",
            1e9,
            group=Group(num_ranks=2, ranks_per_node=ranks, num_nodes=1),
            cluster=cluster,
        )
        for ranks in (2, 4, 8)
    ]
    assert time_s == pytest.approx([1 / 16, 1 / 4, 1])  # equal factors per doubling


@pytest.mark.parametrize(("ranks", "share"), [(2, 1 / 3), (4, 2 / 3), (8, 1)])
def test_a_part_of_a_cube_mesh_has_a_part_of_the_links(toy_cluster, make_fabric, ranks, share):
    cluster = toy_cluster(intra=make_fabric("cube_mesh", kind="loopback", latency=0.0))
    group = Group(num_ranks=ranks, ranks_per_node=ranks, num_nodes=1)
    assert collective_time("broadcast", 1e9, group=group, cluster=cluster) == pytest.approx(
        1 / share
    )


def test_one_rank_per_node_uses_aggregated_trees_for_small_gathers(gpus):
    group = axis_group(size=64, stride=8, devices_per_node=8)
    pick = [
        collective_algorithm("all_gather", size, group=group, cluster=gpus) for size in (1e7, 1e10)
    ]
    assert pick == ["pat", "ring/simple"]


@pytest.fixture(scope="module")
def processes(toy_cluster, make_fabric):
    """Processes of gloo: CPUs, no latency."""
    cluster = toy_cluster(intra=make_fabric(kind="loopback", latency=0.0))
    (nodes,) = cluster.node_groups
    return replace(cluster, node_groups=(replace(nodes, device=replace(nodes.device, kind="cpu")),))


@pytest.mark.parametrize(
    ("kind", "name", "expected_s"),
    [
        ("all_reduce", "ring", 2 * 7 / 8),
        ("reduce_scatter", "ring", 2 * 7 / 8),  # torch all-reduces and keeps a part
        ("all_gather", "ring", 7 / 8),
        ("broadcast", "binomial tree", 3),
        ("all_to_all", "direct", 7 / 8),
        ("send", "direct", 1),
    ],
)
def test_gloo_has_one_algorithm_each(processes, kind, name, expected_s):
    case = {"group": ONE_NODE, "cluster": processes}
    assert collective_algorithm(kind, 1e9, **case) == name
    assert collective_time(kind, 1e9, **case) == pytest.approx(expected_s)


def test_all_to_all_over_nodes_moves_as_if_all_blocks_left(gpus):
    """DGX H100 reach one NIC's rate as bus bandwidth over four nodes, whatever stays inside."""
    time_s = collective_time("all_to_all", 1e12, group=FOUR_NODES, cluster=gpus)
    assert 31 / 32 * 1e12 / time_s == pytest.approx(2.4e10, rel=0.01)


def test_congestion_grows_with_the_nodes(gpus):
    costs = replace(NCCL_NETWORK_COSTS, congestion=0.1)
    inter = replace(gpus.inter, link=replace(gpus.inter.link, costs=costs))
    crowded = replace(gpus, inter=inter)
    for nodes, slower in ((2, 1.0), (4, 1.1), (16, 1.3)):
        group = axis_group(size=8 * nodes, stride=1, devices_per_node=8)
        ratio = collective_time("all_gather", 1e13, group=group, cluster=crowded) / collective_time(
            "all_gather", 1e13, group=group, cluster=gpus
        )
        assert ratio == pytest.approx(slower, rel=1e-3)


def test_interleaved_groups_share_the_root_of_a_pcie_tree(toy_cluster, make_fabric):
    fabric = make_fabric("pcie_tree", kind="loopback", bandwidth=1.6e10, latency=0.0)
    cluster = toy_cluster(intra=replace(fabric, bandwidth_bytes_per_s=1e9))
    near, far = (
        collective_time(
            "broadcast",
            1e9,
            group=axis_group(size=4, stride=stride, devices_per_node=8),
            cluster=cluster,
        )
        for stride in (1, 2)
    )
    assert (near, far) == pytest.approx((1 / 4, 1))


def test_measured_groups_of_a_pcie_tree(toy_cluster, make_fabric):
    fabric = make_fabric("pcie_tree", kind="loopback", latency=0.0, group_share={2: 6.0, 4: 1.5})
    cluster = toy_cluster(intra=fabric)
    time_s = [
        collective_time(
            "send",
            1e9,
            group=Group(num_ranks=2, ranks_per_node=ranks, num_nodes=1),
            cluster=cluster,
        )
        for ranks in (2, 3, 4, 8)
    ]
    part = 0.5849625  # log2(3 / 2)
    assert time_s == pytest.approx([1 / 6, 1 / (6 ** (1 - part) * 1.5**part), 1 / 1.5, 1])
