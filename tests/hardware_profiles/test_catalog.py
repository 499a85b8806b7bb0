"""Every shipped file loads, the promised names exist, and the figures match a second source."""

import math
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import hardware_profiles
from hardware_profiles import (
    catalog_names,
    describe_profile,
    load_cluster,
    load_device,
    load_link,
    load_software,
)

CATALOG = Path(hardware_profiles.__file__).parent / "catalog"
FILES = sorted(CATALOG.glob("*/*.toml"))
REQUIRED_CLUSTERS = {
    *("dgx-1p", "dgx-1v-16g", "dgx-1v-32g", "dgx-2", "dgx-a100-40g", "dgx-a100-80g"),
    *("dgx-h100", "dgx-h200", "dgx-b200", "gb200-nvl72"),
    *("aws-p3dn", "aws-p4d", "aws-p4de", "aws-p5", "aws-p5en"),
    *("azure-nd-a100-v4", "azure-nd-h100-v5", "gcp-a3-high", "gcp-a3-mega", "mi300x-8"),
    *("pcie-v100-8", "pcie-a100-8", "pcie-k20-8", "pcie-p100-4", "pcie-l40s-8"),
    *("tpu-v2", "tpu-v3", "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7"),
    *("brainwave-s10", "alveo-u250", "alveo-u280"),
}
REQUIRED_SOFTWARE = {
    *("eager", "compiled", "megatron-2021", "megatron-core", "deepspeed", "maxtext"),
    *("tensorflow-2017", "no-overlap", "local"),
}


def test_required_clusters_are_shipped():
    assert set(catalog_names("cluster")) >= REQUIRED_CLUSTERS


def test_required_software_is_shipped():
    assert set(catalog_names("software")) >= REQUIRED_SOFTWARE


def test_enough_devices_of_each_kind():
    kinds = [load_device(name).kind for name in catalog_names("device")]
    assert kinds.count("gpu") >= 20
    assert kinds.count("tpu") == 7
    assert kinds.count("fpga") >= 6
    assert kinds.count("cpu") >= 4


def test_no_name_stands_for_two_profiles():
    names = [n for kind in ("device", "link", "cluster", "software") for n in catalog_names(kind)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_loads_and_is_named_after_its_profile(path):
    loaders = {
        "devices": load_device,
        "links": load_link,
        "clusters": load_cluster,
        "software": load_software,
    }
    profile = loaders[path.parent.name](path.stem)
    assert profile.name == path.stem
    for item in fields(profile):
        value = getattr(profile, item.name)
        if isinstance(value, float):
            assert math.isfinite(value)
            assert value >= 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_source_is_dated_and_used(path):
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    used = {q["source"] for q in describe_profile(path.stem)["quantities"].values()}
    tables = [data, data.get("intra", {}), data.get("inter", {})]
    used |= {table["collectives"]["source"] for table in tables if "collectives" in table}
    assert set(data["sources"]) == used
    assert all("retrieved" in source for source in data["sources"].values())


@pytest.mark.parametrize("name", catalog_names("device"))
def test_every_device_quantity_has_a_source(name):
    device = load_device(name)
    skipped = {"name", "title", "vendor", "kind", "year", "provenance"}
    nested = {"peak_flops_per_s", "matmul", "attention_kernels", "element_times_s"}
    for item in fields(device):
        if item.name in skipped | nested or getattr(device, item.name) is None:
            continue
        assert device.provenance[item.name].source
    for precision in device.peak_flops_per_s:
        assert device.provenance[f"peak_flops_per_s.{precision}"].source
    for precision in device.matmul.precision_shares:
        assert device.provenance[f"matmul.precision_shares.{precision}"].source
    for version, kernel in device.attention_kernels.items():
        for item in fields(kernel):
            assert device.provenance[f"attention_kernels.flash{version}.{item.name}"].source
    for item in fields(device.matmul):
        if item.name == "precision_shares":
            continue
        assert device.provenance[f"matmul.{item.name}"].source


@pytest.mark.parametrize("name", catalog_names("cluster"))
def test_cluster_joins_all_its_devices(name):
    cluster = load_cluster(f"{name}:4") if name != "mixed-a100-v100" else load_cluster(name)
    assert cluster.num_nodes == 1 or cluster.inter is not None
    assert cluster.intra.bandwidth_bytes_per_s <= cluster.intra.link.bandwidth_bytes_per_s
    if cluster.inter is not None:
        assert cluster.inter.bandwidth_bytes_per_s <= cluster.inter.link.bandwidth_bytes_per_s
    if cluster.intra.topology == "torus":
        assert math.prod(cluster.intra.torus_shape) == cluster.devices_per_node


# Dense peak [TFLOP/s] and memory bandwidth [GB/s] as the vendors' own pages print them:
# NVIDIA data sheets (structured sparsity halved), AMD Instinct data sheets, Google Cloud TPU
# documentation. A second source beside the one each file names.
SECOND_SOURCE = [
    ("k20", "fp32", 3.52, 208, 5),
    ("k40", "fp32", 5.04, 288, 12),
    ("p100-sxm2-16gb", "fp16", 21.2, 732, 16),
    ("v100-sxm2-32gb", "fp16", 125, 900, 32),
    ("t4", "fp16", 65, 320, 16),
    ("a40", "bf16", 149.7, 696, 48),
    ("a100-sxm4-40gb", "bf16", 312, 1555, 40),
    ("a100-sxm4-80gb", "bf16", 312, 2039, 80),
    ("a100-pcie-80gb", "tf32", 156, 1935, 80),
    ("l4", "bf16", 121, 300, 24),
    ("l40s", "bf16", 362, 864, 48),
    ("rtx-4090", "bf16", 165.2, 1008, 24),
    ("h100-sxm5", "bf16", 989.4, 3350, 80),
    ("h100-sxm5", "fp8", 1979, 3350, 80),
    ("h100-pcie", "bf16", 756, 2000, 80),
    ("h200-sxm5", "bf16", 989.4, 4800, 141),
    ("h20-sxm", "bf16", 148, 4000, 96),
    ("b200-sxm", "bf16", 2250, 8000, 180),
    ("gb200", "fp8", 5000, 8000, 186),
    ("mi250x", "bf16", 383, 3277, 128),
    ("mi300x", "bf16", 1307.4, 5300, 192),
    ("tpu-v3-chip", "bf16", 123, 900, 32),
    ("tpu-v4-chip", "bf16", 275, 1228, 32),
    ("tpu-v5e-chip", "bf16", 197, 819, 16),
    ("tpu-v5p-chip", "bf16", 459, 2765, 95),
    ("tpu-v6e-chip", "bf16", 918, 1640, 32),
    ("tpu-v7-chip", "bf16", 2307, 7380, 192),
]


@pytest.mark.parametrize(("name", "precision", "peak", "bandwidth", "memory"), SECOND_SOURCE)
def test_device_against_second_source(name, precision, peak, bandwidth, memory):
    device = load_device(name)
    assert device.peak_flops_per_s[precision] == pytest.approx(peak * 1e12, rel=0.01)
    assert device.memory_bandwidth_bytes_per_s == pytest.approx(bandwidth * 1e9, rel=0.03)
    assert device.memory_bytes == pytest.approx(memory * 2**30, rel=0.01)


@pytest.mark.parametrize(
    ("name", "line_gbit"),
    [("infiniband-edr", 100), ("infiniband-hdr", 200), ("infiniband-ndr", 400), ("tcp-10g", 10)],
)
def test_link_line_rate(name, line_gbit):
    assert load_link(name).bandwidth_bytes_per_s == line_gbit * 1e9 / 8


@pytest.mark.parametrize("name", catalog_names("device"))
def test_lower_precision_is_never_slower(name):
    peaks = load_device(name).peak_flops_per_s
    order = [p for p in ("fp32", "tf32", "bf16", "fp8") if p in peaks]
    rates = [peaks[p] for p in order]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("k20", ("tf32", "fp16", "bf16", "fp8", "int8")),
        ("p100-sxm2-16gb", ("tf32", "bf16", "fp8", "int8")),
        ("v100-sxm2-16gb", ("tf32", "bf16", "fp8")),
        ("a100-sxm4-80gb", ("fp8",)),
    ],
)
def test_old_devices_lack_new_precisions(name, lacks):
    assert not set(lacks) & set(load_device(name).peak_flops_per_s)


def test_no_overlap_is_eager_with_everything_exposed():
    eager, exposed = load_software("eager"), load_software("no-overlap")
    different = {
        item.name
        for item in fields(eager)
        if getattr(eager, item.name) != getattr(exposed, item.name)
    }
    overlaps = {item.name for item in fields(eager) if item.name.startswith("overlap_")}
    assert all(getattr(exposed, name) == 0 for name in overlaps)
    assert different <= overlaps | {"name", "title", "compute_slowdown", "provenance"}
