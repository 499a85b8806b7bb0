"""Torus collectives: the worked problems of the scaling book, limits, relations."""

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.collectives import collective_algorithm, collective_time
from simulator.collectives.torus import sub_torus
from simulator.groups import Group


def slice_group(num_ranks, num_nodes=1):
    return Group(num_ranks=num_ranks, ranks_per_node=num_ranks // num_nodes, num_nodes=num_nodes)


@pytest.fixture(scope="module")
def make_slice(toy_cluster, make_fabric):
    def build(shape, wraps, *, bandwidth=1e9, latency=0.0, inter=None, num_nodes=1):
        fabric = make_fabric(
            "torus", kind="ici", bandwidth=bandwidth, latency=latency, torus_shape=shape,
            torus_wraps=wraps,
        )  # fmt: skip
        return toy_cluster(
            num_nodes=num_nodes, devices_per_node=prod(shape), intra=fabric, inter=inter
        )

    return build


def test_wrapped_axis_uses_both_directions(make_slice):
    cluster = make_slice((16,), (True,))
    time_s = collective_time("all_gather", 16e9, group=slice_group(16), cluster=cluster)
    assert time_s == pytest.approx(15 / 2)


def test_line_is_half_a_ring_and_relays(make_slice):
    line, ring = (
        collective_time("all_gather", 4e9, group=slice_group(4), cluster=make_slice((4,), (wraps,)))
        for wraps in (False, True)
    )
    assert ring == pytest.approx(1.5)
    assert line == pytest.approx(3 / 0.83)  # 680 us measured where the links need 567


def test_two_chips_relay_nothing(make_slice):
    """Ironwood gathers at 179 of the 180 GB/s of a chip's two links on a 2x2x1 slice."""
    cluster = make_slice((2, 2), (False, False), bandwidth=9e10)
    time_s = collective_time("all_gather", 537e6, group=slice_group(4), cluster=cluster)
    assert 0.75 * 537e6 / time_s == pytest.approx(179e9, rel=0.01)


def test_two_axes_share_the_work(make_slice):
    """A 16x16 slice of v6e all-reduces at 236 of the 360 GB/s of its four directions."""
    cluster = make_slice((16, 16), (True, True), bandwidth=9e10)
    time_s = collective_time("all_reduce", 606e6, group=slice_group(256), cluster=cluster)
    assert 2 * 255 / 256 * 606e6 / time_s == pytest.approx(236e9, rel=0.01)


def test_published_v5e_line_of_four(make_slice):
    """How to scale your model, section 3: 34 MB over 4 chips, measured 680 us."""
    cluster = make_slice((4, 4), (False, False), bandwidth=4.5e10, latency=1e-6)
    time_s = collective_time("all_gather", 34e6, group=slice_group(4), cluster=cluster)
    assert time_s == pytest.approx(680e-6, rel=0.03)


def test_all_to_all_is_a_quarter_of_the_all_gather_of_all_buffers(make_slice):
    cluster = make_slice((64,), (True,))
    group = slice_group(64)
    exchange = collective_time("all_to_all", 1e6, group=group, cluster=cluster)
    gather = collective_time("all_gather", 64e6, group=group, cluster=cluster)
    assert exchange == pytest.approx(gather / 4, rel=0.02)


def test_hop_latency_counts_half_a_ring_or_a_whole_line(make_slice):
    ring = make_slice((8,), (True,), latency=1.0)
    line = make_slice((8,), (False,), latency=1.0)
    assert collective_time("all_gather", 0, group=slice_group(8), cluster=ring) == 4
    assert collective_time("all_gather", 0, group=slice_group(8), cluster=line) == 7
    assert collective_time("all_reduce", 0, group=slice_group(8), cluster=ring) == 8
    assert collective_time("send", 0, group=slice_group(2), cluster=ring) == 1


def test_several_slices_go_through_the_network(make_slice, make_fabric):
    inter = make_fabric(kind="dcn", bandwidth=1e8, latency=0.0)
    cluster = make_slice((4,), (True,), inter=inter, num_nodes=2)
    group = slice_group(8, num_nodes=2)
    # 3/4 of 1 GB twice over 2 GB/s inside, then half of it twice over 0.1 GB/s outside
    assert collective_time("all_reduce", 1e9, group=group, cluster=cluster) == pytest.approx(
        2 * 0.75 / 2 + 2 * 0.5 / 0.1
    )
    assert collective_algorithm("all_reduce", 1e9, group=group, cluster=cluster) == (
        "torus, then network"
    )


@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=3),
    num_ranks=st.integers(1, 64),
)
def test_sub_torus_has_the_size_of_the_group(make_fabric, shape, num_ranks):
    fabric = make_fabric(
        "torus", kind="ici", torus_shape=tuple(shape), torus_wraps=(True,) * len(shape)
    )
    assert prod(axis.size for axis in sub_torus(num_ranks, fabric=fabric)) == num_ranks


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["all_reduce", "all_gather", "all_to_all", "broadcast", "send"]),
    size=st.floats(0, 1e9),
    more=st.floats(0, 1e9),
    num_ranks=st.sampled_from([2, 4, 8, 16]),
)
def test_more_bytes_never_take_less_time(make_slice, kind, size, more, num_ranks):
    cluster = make_slice((4, 4), (True, False), latency=1e-6)
    group = slice_group(num_ranks)
    small = collective_time(kind, size, group=group, cluster=cluster)
    assert collective_time(kind, size + more, group=group, cluster=cluster) >= small
