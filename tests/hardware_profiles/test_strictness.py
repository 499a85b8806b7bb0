"""A malformed profile is refused with one line that names file, key, value and expectation."""

from pathlib import Path

import pytest

import hardware_profiles
from hardware_profiles import ProfileError, load_cluster, load_device, load_link, load_software

CATALOG = Path(hardware_profiles.__file__).parent / "catalog"
LINK = (CATALOG / "links" / "infiniband-hdr.toml").read_text(encoding="utf-8")
DEVICE = (CATALOG / "devices" / "a100-sxm4-80gb.toml").read_text(encoding="utf-8")
CLUSTER = (CATALOG / "clusters" / "dgx-a100-80g.toml").read_text(encoding="utf-8")
SOFTWARE = (CATALOG / "software" / "eager.toml").read_text(encoding="utf-8")


def refused(tmp_path, load, text):
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load(str(path))
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path) + "/", "")


def change(text, old, new):
    assert text.count(old) >= 1
    return text.replace(old, new, 1)


BANDWIDTHS = sorted(
    f"{prefix}{unit}/s"
    for unit, prefixes in (("B", "|k|M|G|T|P|Ki|Mi|Gi|Ti"), ("b", "|k|M|G|T|P"))
    for prefix in prefixes.split("|")
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "x.toml: schema is 2; expected 1"),
        ('kind = "link"', 'kind = "device"', "x.toml: kind is 'device'; expected 'link'"),
        ('"GB/s"', '"GBps"', f"x.toml: bandwidth.unit is 'GBps'; expected one of {BANDWIDTHS}"),
        ("value = 25,", "value = 0,", "x.toml: bandwidth.value is 0; expected a number above 0"),
        ("value = 25,", "value = -1,", "x.toml: bandwidth.value is -1; expected a number above 0"),
        ("value = 25,", "value = nan,", "x.toml: bandwidth.value is nan; expected a finite number"),
        ("value = 25,", "value = inf,", "x.toml: bandwidth.value is inf; expected a finite number"),
        (
            "value = 25,",
            'value = "25",',
            "x.toml: bandwidth.value is '25'; expected a finite number",
        ),
        (
            "value = 25,",
            "value = true,",
            "x.toml: bandwidth.value is True; expected a finite number",
        ),
        ("value = 25, ", "", "x.toml: bandwidth.value is missing; add it"),
        (
            "value = 24,",
            "value = 26,",
            "x.toml: achievable_bandwidth.value is 26 GB/s; expected at most 2.5e+10",
        ),
        (
            'source = "adapter"',
            'source = "me"',
            "x.toml: bandwidth.source is 'me'; expected one of [sources]: "
            "['adapter', 'collectives', 'nccl', 'nccltests']",
        ),
        (
            'kind = "datasheet"',
            'kind = "guess"',
            "x.toml: bandwidth.kind is 'guess'; expected one of "
            "['datasheet', 'measured', 'derived', 'assumed']",
        ),
        ("latency = {", "delay = {", "x.toml: delay is not a known key; expected one of "
         "['achievable_bandwidth', 'bandwidth', 'collectives', 'kind', 'latency', 'link_kind', "
         "'name', 'schema', 'sources', 'title']"),
        ('title = "InfiniBand', 'title = 7 # "', "x.toml: title is 7; expected a non-empty text"),
        (
            "retrieved = 2026-11-21",
            "retrieved = 'today'",
            "x.toml: sources.adapter.retrieved is 'today'; expected a date like 2026-01-15",
        ),
        (
            "latency = {",
            "latency = 5 # {",
            "x.toml: latency is 5; expected a table",
        ),
        (
            "latency = {",
            "latency = = {",
            "x.toml: not valid TOML: Invalid value (at line 9, column 11); correct that line",
        ),
    ],
)  # fmt: skip
def test_link_mistake(tmp_path, old, new, message):
    assert refused(tmp_path, load_link, change(LINK, old, new)) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("year = 2020", "year = 20.5", "x.toml: year is 20.5; expected a whole number of at least "
         "1940"),
        ('device_kind = "gpu"', 'device_kind = "abacus"', "x.toml: device_kind is 'abacus'; "
         "expected one of ['gpu', 'tpu', 'fpga', 'cpu']"),
        ("memory_efficiency = { value = 0.83", "memory_efficiency = { value = 1.2",
         "x.toml: memory_efficiency.value is 1.2 1; expected at most 1"),
        ("compute_units = { value = 108", "compute_units = { value = 10.5",
         "x.toml: compute_units.value is 10.5; expected a whole number"),
        ("bf16 = {", "bf17 = {", "x.toml: peak_flops.bf17 is not a known key; expected one of "
         "['bf16', 'fp16', 'fp32', 'fp64', 'fp8', 'int8', 'tf32']"),
        ("half_k = {", "# half_k = {", "x.toml: matmul.half_k is missing; add it"),
    ],
)  # fmt: skip
def test_device_mistake(tmp_path, old, new, message):
    assert refused(tmp_path, load_device, change(DEVICE, old, new)) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[node_group]]", "[node_group]", "x.toml: node_group is not a list; expected "
         "[[node_group]] tables"),
        ("devices_per_node = 8", "devices_per_node = 0",
         "x.toml: node_group[0].devices_per_node is 0; expected a whole number of at least 1"),
        ('topology = "switch"', 'topology = "cloud"', "x.toml: intra.topology is 'cloud'; expected "
         "one of ['switch', 'full_mesh', 'cube_mesh', 'pcie_tree', 'ring', 'torus', 'host']"),
        ('topology = "switch"', 'topology = "torus"\ntorus_shape = [2, 2]',
         "x.toml: intra.torus_shape is 2x2; expected a product of 8 devices"),
        ('topology = "switch"', 'topology = "torus"\ntorus_shape = [2, 4]\ntorus_wraps = [true]',
         "x.toml: intra.torus_wraps is [True]; expected one true or false per axis"),
        ('link = "nvswitch2"', 'link = "nvswitch"',
         "cluster 'x.toml': unknown link 'nvswitch'; did you mean 'nvswitch1' or 'nvswitch2' or "
         "'nvswitch3'?"),
        ('device = "a100-sxm4-80gb"', 'device = "a100-sxm4"',
         "cluster 'x.toml': unknown device 'a100-sxm4'; did you mean 'a100-sxm4-40gb' or "
         "'a100-sxm4-80gb'?"),
        ('count = "nodes"', 'count = "racks"', "x.toml: count is 'racks'; expected one of "
         "['nodes', 'devices']"),
    ],
)  # fmt: skip
def test_cluster_mistake(tmp_path, old, new, message):
    assert refused(tmp_path, load_cluster, change(CLUSTER, old, new)) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fuses_elementwise = false", "fuses_elementwise = 0",
         "x.toml: fuses_elementwise is 0; expected true or false"),
        ('attention = "flash"', 'attention = "magic"',
         "x.toml: attention is 'magic'; expected one of ['unfused', 'flash']"),
        ("compute_slowdown = { value = 1.06", "compute_slowdown = { value = 0.9",
         "x.toml: compute_slowdown.value is 0.9; expected at least 1"),
    ],
)  # fmt: skip
def test_software_mistake(tmp_path, old, new, message):
    assert refused(tmp_path, load_software, change(SOFTWARE, old, new)) == message


def test_not_text(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="not UTF-8 text; expected a TOML profile"):
        load_link(path)


def test_folder_is_not_a_profile(tmp_path):
    with pytest.raises(ProfileError, match="cannot be read"):
        load_link(tmp_path)
