"""Invariants of the topology graph."""

import networkx as nx
import pytest

from hardware_profiles import catalog_names, cluster_graph, load_cluster


def devices_of(graph):
    return sorted(v for v, data in graph.nodes(data=True) if data["kind"] == "device")


@pytest.mark.parametrize("name", catalog_names("cluster"))
def test_every_device_is_reached(name):
    mixed = name == "mixed-a100-v100"
    cluster = load_cluster(name if mixed else f"{name}:4")
    graph = cluster_graph(cluster)
    assert len(devices_of(graph)) == cluster.num_devices
    assert nx.is_connected(graph)
    assert {data["kind"] for _, data in graph.nodes(data=True)} <= {
        "device",
        "switch",
        "host",
        "nic",
    }
    for _, _, data in graph.edges(data=True):
        assert data["bandwidth_bytes_per_s"] > 0
        assert data["latency_s"] >= 0
        assert data["link"]


def test_device_vertices_carry_rank_node_and_profile():
    graph = cluster_graph(load_cluster("mixed-a100-v100"))
    assert graph.nodes["device:9"] == {
        "kind": "device",
        "rank": 9,
        "node": 1,
        "device": "v100-sxm2-32gb",
    }


@pytest.mark.parametrize(
    ("text", "degree"),
    [("tpu-v4:64", 6), ("tpu-v5e:256", 4), ("tpu-v3:1024", 4), ("tpu-v5p:128", 6)],
)
def test_closed_torus_is_regular(text, degree):
    cluster = load_cluster(text)
    graph = cluster_graph(cluster)
    assert set(dict(graph.degree).values()) == {degree}
    assert graph.number_of_edges() == cluster.num_devices * degree // 2
    shape = cluster.intra.torus_shape
    assert nx.diameter(graph) == sum(extent // 2 for extent in shape)


def test_open_torus_is_a_grid():
    cluster = load_cluster("tpu-v5e:32")
    assert nx.is_isomorphic(cluster_graph(cluster), nx.grid_graph(list(cluster.intra.torus_shape)))


@pytest.mark.parametrize(("name", "lanes"), [("dgx-1p", 4), ("dgx-1v-32g", 6)])
def test_cube_mesh_spends_each_lane_once(name, lanes):
    cluster = load_cluster(name)
    graph = cluster_graph(cluster)
    assert set(dict(graph.degree).values()) == {4}
    assert nx.diameter(graph) == 2  # "some pairs need two hops"
    total = cluster.intra.bandwidth_bytes_per_s
    per_lane = total / lanes
    for vertex in graph:
        rates = [data["bandwidth_bytes_per_s"] for _, _, data in graph.edges(vertex, data=True)]
        assert sum(rates) == pytest.approx(total)
        assert all(round(rate / per_lane) in {1, 2} for rate in rates)


def test_full_mesh_splits_the_bandwidth():
    cluster = load_cluster("mi300x-8")
    graph = cluster_graph(cluster)
    assert graph.number_of_edges() == 28
    rate = graph.edges["device:0", "device:7"]["bandwidth_bytes_per_s"]
    assert rate * 7 == pytest.approx(cluster.intra.bandwidth_bytes_per_s)


def test_rails_join_the_same_nic_of_every_node():
    graph = cluster_graph(load_cluster("dgx-a100-80g:3?oversubscription=2"))
    assert {v for v in graph["leaf:5"] if v.startswith("nic")} == {"nic:0.5", "nic:1.5", "nic:2.5"}
    assert graph.has_edge("device:13", "nic:1.5")
    uplink = graph.edges["leaf:5", "spine:0"]["bandwidth_bytes_per_s"]
    assert uplink == pytest.approx(3 * 24e9 / 2)


def test_hop_latency_is_that_of_the_fabric():
    cluster = load_cluster("dgx-a100-80g:2")
    graph = cluster_graph(cluster)
    inside = nx.shortest_path_length(graph, "device:0", "device:1", weight="latency_s")
    across = nx.shortest_path_length(graph, "device:0", "device:8", weight="latency_s")
    assert inside == pytest.approx(cluster.intra.latency_s)
    assert across == pytest.approx(cluster.inter.latency_s)


def test_pcie_devices_meet_at_the_host():
    graph = cluster_graph(load_cluster("pcie-k20-8"))
    path = nx.shortest_path(graph, "device:0", "device:7")
    assert path == ["device:0", "switch:0.0", "host:0", "switch:0.1", "device:7"]


def test_huge_cluster_is_cut_to_whole_machines():
    graph = cluster_graph(load_cluster("dgx-h100:1000"), max_nodes=100)
    drawn = graph.graph["num_nodes_drawn"]
    assert drawn == 4
    assert len(devices_of(graph)) == 8 * drawn
    assert graph.number_of_nodes() <= 100
    assert nx.is_connected(graph)
