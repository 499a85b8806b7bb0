"""Naming, scaling and changing clusters; each user mistake is one line."""

import pytest

from hardware_profiles import (
    ParaplanError,
    ProfileError,
    cluster_to_toml,
    load_cluster,
    paraplan_home,
)

LOCAL = """
schema = 1
kind = "cluster"
name = "desk"
title = "A measured desk"

[[node_group]]
device = "box"
devices_per_node = 2
num_nodes = 1

[intra]
topology = "host"
link = "wire"
bandwidth = { value = 1, unit = "GB/s", source = "run", kind = "measured" }
latency = { value = 20, unit = "us", source = "run", kind = "measured" }

[links.wire]
name = "wire"
title = "Loopback"
link_kind = "loopback"
bandwidth = { value = 2, unit = "GB/s", source = "run", kind = "measured" }
achievable_bandwidth = { value = 1, unit = "GB/s", source = "run", kind = "measured" }
latency = { value = 20, unit = "us", source = "run", kind = "measured" }

[devices.box]
name = "box"
title = "A box"
vendor = "none"
device_kind = "cpu"
year = 2026
vector_flops = { value = 1, unit = "TFLOP/s", source = "run", kind = "measured" }
memory = { value = 8, unit = "GiB", source = "run", kind = "measured" }
memory_bandwidth = { value = 10, unit = "GB/s", source = "run", kind = "measured" }
compute_units = { value = 2, unit = "1", source = "run", kind = "measured" }
launch_latency = { value = 1, unit = "us", source = "run", kind = "measured" }
memory_efficiency = { value = 80, unit = "%", source = "run", kind = "measured" }
memory_half_size = { value = 1, unit = "MB", source = "run", kind = "measured" }
attention_forward_efficiency = { value = 0.5, unit = "1", source = "run", kind = "assumed" }
attention_backward_efficiency = { value = 0.4, unit = "1", source = "run", kind = "assumed" }
convolution_gain = { value = 1, unit = "1", source = "run", kind = "assumed" }

[devices.box.peak_flops]
fp32 = { value = 1, unit = "TFLOP/s", source = "run", kind = "measured", note = "all cores" }

[devices.box.matmul]
sustained_efficiency = { value = 1, unit = "1", source = "run", kind = "measured" }
half_k = { value = 32, unit = "1", source = "run", kind = "measured" }
tile_m = { value = 64, unit = "1", source = "run", kind = "assumed" }
tile_n = { value = 64, unit = "1", source = "run", kind = "assumed" }

[sources.run]
title = "paraplan calibrate"
retrieved = 2026-11-21
"""


@pytest.fixture
def desk(tmp_path):
    path = tmp_path / "desk.toml"
    path.write_text(LOCAL, encoding="utf-8")
    return path


def test_count_is_nodes_of_a_gpu_machine():
    cluster = load_cluster("dgx-a100-80g:128")
    assert (cluster.num_nodes, cluster.devices_per_node, cluster.num_devices) == (128, 8, 1024)
    assert cluster.name == "dgx-a100-80g:128"


def test_one_node_has_no_network():
    assert load_cluster("dgx-a100-80g").inter is None
    assert load_cluster("dgx-a100-80g:2").inter is not None


def test_nvl72_node_is_the_rack():
    cluster = load_cluster("gb200-nvl72:2")
    assert (cluster.devices_per_node, cluster.num_devices) == (72, 144)
    assert cluster.intra.in_network_reduction


def test_in_network_reduction_begins_with_the_third_switch():
    assert not load_cluster("dgx-a100-80g").intra.in_network_reduction
    assert load_cluster("dgx-h100").intra.in_network_reduction


@pytest.mark.parametrize(
    ("text", "shape", "wraps"),
    [
        ("tpu-v2:16", (4, 4), (False, False)),
        ("tpu-v3:1024", (32, 32), (True, True)),
        ("tpu-v3:512", (16, 32), (False, True)),
        ("tpu-v4:4", (1, 2, 2), (False, False, False)),
        ("tpu-v4:32", (2, 4, 4), (False, False, False)),
        ("tpu-v4:64", (4, 4, 4), (True, True, True)),
        ("tpu-v4:512", (8, 8, 8), (True, True, True)),
        ("tpu-v5e:128", (8, 16), (False, True)),
        ("tpu-v5e:256", (16, 16), (True, True)),
        ("tpu-v5p:8960", (16, 20, 28), (True, True, True)),
        ("tpu-v5p:6144", (16, 16, 24), (True, True, True)),
        ("tpu-v7:1", (1, 1, 1), (False, False, False)),
    ],
)
def test_slice_shape(text, shape, wraps):
    cluster = load_cluster(text)
    assert cluster.num_nodes == 1
    assert cluster.intra.torus_shape == shape
    assert cluster.intra.torus_wraps == wraps


def test_more_than_a_pod_is_several_slices():
    cluster = load_cluster("tpu-v4:6144")
    assert (cluster.num_nodes, cluster.devices_per_node) == (2, 3072)
    assert cluster.inter is not None
    assert cluster.inter.link.kind == "dcn"
    assert cluster.nics_per_node == 768  # one per host of four chips


def test_fpga_cards_are_one_fabric():
    cluster = load_cluster("alveo-u250:6")
    assert (cluster.num_nodes, cluster.num_devices, cluster.inter) == (1, 6, None)


def test_price_is_that_of_all_devices():
    cluster = load_cluster("dgx-a100-80g:2")
    assert cluster.price_usd_per_hour == pytest.approx(16 * 3.4309)
    assert load_cluster("dgx-1p").price_usd_per_hour is None
    assert load_cluster("azure-nd-h100-v5:3").price_usd_per_hour == pytest.approx(3 * 98.32)


def test_mixed_cluster_gives_each_rank_its_device():
    cluster = load_cluster("mixed-a100-v100")
    assert cluster.is_mixed
    assert cluster.device_of(7).name == "a100-sxm4-40gb"
    assert cluster.device_of(8).name == "v100-sxm2-32gb"
    assert cluster.node_of(8) == 1


def test_overrides_change_what_they_name_and_nothing_else():
    plain = load_cluster("dgx-a100-80g:16")
    changed = load_cluster(
        "dgx-a100-80g:16?nics_per_node=4&nic_bandwidth=100Gb/s&nic_latency=9us"
        "&intra_bandwidth=150GB/s&intra_latency=2us&memory=40GiB&oversubscription=2&price=2USD/h"
    )
    assert changed.nics_per_node == 4
    assert changed.inter.link.bandwidth_bytes_per_s == 12.5e9
    assert changed.inter.bandwidth_bytes_per_s == pytest.approx(12e9)  # 0.96 of the line, as HDR
    assert changed.inter.latency_s == 9e-6
    assert changed.intra.bandwidth_bytes_per_s == plain.intra.bandwidth_bytes_per_s / 2
    assert changed.intra.latency_s == 2e-6
    assert changed.device.memory_bytes == 40 * 2**30
    assert changed.oversubscription == 2
    assert changed.price_usd_per_hour == 256
    assert changed.provenance["nics_per_node"].source == "override"
    assert changed.device.peak_flops_per_s == plain.device.peak_flops_per_s
    assert changed.inter.base_latency_s == plain.inter.base_latency_s


def test_devices_per_node_rescales():
    assert load_cluster("dgx-h100:4?devices_per_node=4").num_devices == 16
    cluster = load_cluster("tpu-v4:128?devices_per_node=64")
    assert (cluster.num_nodes, cluster.intra.torus_shape) == (2, (4, 4, 4))


def test_network_override_of_a_single_node_is_harmless():
    assert load_cluster("dgx-h100?nic_bandwidth=100Gb/s").inter is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "dgx-a100",
            "unknown cluster 'dgx-a100'; did you mean 'dgx-a100-40g' or 'dgx-a100-80g'?",
        ),
        ("DGX-H10", "unknown cluster 'DGX-H10'; did you mean 'dgx-h100'?"),
        (
            "dgx-h100:x",
            "cluster 'dgx-h100:x': the count is 'x'; expected a whole number from 1 to 1000000",
        ),
        (
            "dgx-h100:0",
            "cluster 'dgx-h100:0': the count is '0'; expected a whole number from 1 to 1000000",
        ),
        (
            "dgx-h100?nics=4",
            "cluster 'dgx-h100?nics=4': unknown override 'nics'; expected one of "
            "['devices_per_node', 'intra_bandwidth', 'intra_latency', 'memory', 'nic_bandwidth', "
            "'nic_latency', 'nics_per_node', 'oversubscription', 'price']",
        ),
        (
            "dgx-h100?nic_latency=2",
            "cluster 'dgx-h100?nic_latency=2': override nic_latency: unit is ''; expected one of "
            "['ms', 'ns', 's', 'us']",
        ),
        (
            "dgx-h100?memory=lots",
            "cluster 'dgx-h100?memory=lots': override memory: 'lots' is not a number with a unit; "
            "expected for example '2B'",
        ),
        (
            "dgx-h100?memory=-1GiB",
            "cluster 'dgx-h100?memory=-1GiB': override memory is '-1GiB'; expected a value above 0",
        ),
        (
            "dgx-h100?nics_per_node=1.5",
            "cluster 'dgx-h100?nics_per_node=1.5': override nics_per_node is '1.5'; expected a "
            "whole number of at least 1",
        ),
        (
            "dgx-h100?price=1USD/h&price=2USD/h",
            "cluster 'dgx-h100?price=1USD/h&price=2USD/h': override 'price' is given twice; write "
            "price=VALUE once",
        ),
        (
            "dgx-h100?price",
            "cluster 'dgx-h100?price': override 'price' has no value; write price=VALUE once",
        ),
        (
            "tpu-v5e:48",
            "cluster 'tpu-v5e:48': no slice has 48 chips; the nearest sizes are 32 and 64",
        ),
        (
            "tpu-v4:66",
            "cluster 'tpu-v4:66': no slice has 66 chips; the nearest sizes are 64 and 128",
        ),
        (
            "tpu-v4:4099",
            "cluster 'tpu-v4:4099': 4099 chips are more than one pod of 4096 and make no equal "
            "slices; use a multiple of 4096 or set devices_per_node",
        ),
        (
            "tpu-v4:10?devices_per_node=4",
            "cluster 'tpu-v4:10?devices_per_node=4': devices_per_node=4 does not divide "
            "10 devices; choose a divisor",
        ),
        (
            "alveo-u250:4?nic_latency=2us",
            "cluster 'alveo-u250:4?nic_latency=2us': alveo-u250 has no network between nodes to "
            "change; drop the nic_ overrides",
        ),
        (
            "dgx-1v-16g:2?devices_per_node=9",
            "dgx-1v-16g.toml: intra.topology is 'cube_mesh' with 9 devices; expected at most 8 "
            "per node",
        ),
        (
            "mixed-a100-v100:2",
            "mixed-a100-v100.toml has 2 node groups and takes no "
            "count; set num_nodes of each group in the file",
        ),
        ("/nowhere/x.toml", "/nowhere/x.toml: cannot be read (No such file or directory); "
         "give a TOML profile"),
    ],
)  # fmt: skip
def test_message(text, message):
    with pytest.raises(ProfileError) as caught:
        load_cluster(text)
    assert str(caught.value) == message


def test_local_is_told_to_calibrate(tmp_path, monkeypatch):
    monkeypatch.setenv("PARAPLAN_HOME", str(tmp_path))
    with pytest.raises(ParaplanError) as caught:
        load_cluster("local")
    absent = tmp_path / "profiles" / "local.toml"
    assert str(caught.value) == (
        f"cluster 'local' is not measured yet ({absent} is absent); run 'paraplan calibrate'"
    )


def test_local_is_the_calibrated_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PARAPLAN_HOME", str(tmp_path))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "local.toml").write_text(LOCAL, encoding="utf-8")
    cluster = load_cluster("local?devices_per_node=4")
    assert cluster.num_devices == 4
    assert cluster.device.memory_efficiency == 0.8


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PARAPLAN_HOME", str(tmp_path))
    assert paraplan_home() == tmp_path
    monkeypatch.delenv("PARAPLAN_HOME")
    assert paraplan_home().name == "paraplan"


def test_file_with_embedded_tables_and_overrides(desk):
    cluster = load_cluster(f"{desk}?memory=4GiB")
    assert cluster.device.memory_bytes == 4 * 2**30
    assert cluster.intra.link.kind == "loopback"
    assert cluster.device.provenance["peak_flops_per_s.fp32"].note == "all cores"
    assert cluster.name == "desk?memory=4GiB"


def test_file_needs_a_network_for_two_nodes(desk):
    with pytest.raises(ProfileError) as caught:
        load_cluster(f"{desk}:2")
    assert str(caught.value) == "desk.toml: inter is missing but there are 2 nodes; add it"


@pytest.mark.parametrize(
    "text",
    [
        "dgx-a100-80g",
        "dgx-a100-80g:16?nics_per_node=4&nic_bandwidth=100Gb/s&memory=40GiB",
        "gb200-nvl72:2",
        "dgx-1v-32g:3?oversubscription=1.7",
        "azure-nd-h100-v5:3",
        "tpu-v4:6144",
        "tpu-v5e:16",
        "mixed-a100-v100",
        "brainwave-s10:4",
        "pcie-k20-8?price=0.1USD/h",
    ],
)
def test_round_trip(text, tmp_path):
    cluster = load_cluster(text)
    path = tmp_path / "written.toml"
    path.write_text(cluster_to_toml(cluster), encoding="utf-8")
    assert load_cluster(str(path)) == cluster
    assert cluster_to_toml(load_cluster(str(path))) == path.read_text(encoding="utf-8")


def test_round_trip_keeps_awkward_text(desk, tmp_path):
    awkward = LOCAL.replace('title = "A measured desk"', r'title = "d\"\\\u007f\n\tü"')
    desk.write_text(awkward, encoding="utf-8")
    cluster = load_cluster(str(desk))
    assert cluster.title == 'd"\\\x7f\n\tü'
    path = tmp_path / "written.toml"
    path.write_text(cluster_to_toml(cluster), encoding="utf-8")
    assert load_cluster(str(path)) == cluster
