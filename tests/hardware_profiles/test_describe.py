"""Profiles as plain data, units, and the cost of loading."""

import json
import subprocess
import sys
import time

import pytest

from hardware_profiles import (
    ProfileError,
    catalog_names,
    describe_profile,
    load_cluster,
    parse_quantity,
)
from hardware_profiles.units import SI_UNIT, UNITS


@pytest.mark.parametrize("kind", ["device", "link", "cluster", "software"])
def test_every_profile_is_json(kind):
    for name in catalog_names(kind):
        found = describe_profile(name)
        assert found["kind"] == kind
        assert json.loads(json.dumps(found)) == found
        assert found["quantities"]
        for entry in found["quantities"].values():
            assert set(entry) == {"value", "unit", "source", "kind", "note"}
            assert entry["source"] in found["sources"]


def test_fields_are_si_and_quantities_as_written():
    found = describe_profile("infiniband-hdr")
    assert found["fields"]["bandwidth_bytes_per_s"] == 25e9
    assert found["quantities"]["bandwidth"]["value"] == 25
    assert found["quantities"]["bandwidth"]["unit"] == "GB/s"


def test_cluster_with_count_and_override():
    found = describe_profile("dgx-a100-80g:4?memory=40GiB")
    assert found["fields"]["node_groups"][0]["num_nodes"] == 4
    assert found["fields"]["node_groups"][0]["device"]["memory_bytes"] == 40 * 2**30
    assert found["quantities"]["nics_per_node"]["value"] == 8


def test_file_of_any_kind(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('kind = "car"', encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        describe_profile(str(path))
    assert str(caught.value) == (
        "x.toml: kind is 'car'; expected one of ['device', 'link', 'cluster', 'software']"
    )


def test_unknown_profile_names_the_nearest():
    with pytest.raises(ProfileError) as caught:
        describe_profile("megatron-croe")
    text = str(caught.value)
    assert text.startswith("unknown profile 'megatron-croe'; did you mean 'megatron-core'")
    assert text.endswith("?")
    assert "\n" not in text


@pytest.mark.parametrize("dimension", sorted(UNITS))
def test_si_unit_has_factor_one(dimension):
    assert UNITS[dimension][SI_UNIT[dimension]] == 1.0
    assert parse_quantity(7.25, SI_UNIT[dimension], dimension=dimension) == 7.25


@pytest.mark.parametrize(
    ("value", "unit", "dimension", "expected"),
    [
        (1, "GiB", "size", 2**30),
        (1, "GB", "size", 1e9),
        (8, "Gb/s", "bandwidth", 1e9),
        (1, "TiB/s", "bandwidth", 2**40),
        (3, "us", "time", 3e-6),
        (1, "PFLOP/s", "flops_rate", 1e15),
        (2, "TOP/s", "flops_rate", 2e12),
        (25, "%", "ratio", 0.25),
    ],
)
def test_prefixes(value, unit, dimension, expected):
    assert parse_quantity(value, unit, dimension=dimension) == expected


def test_loading_one_cluster_takes_milliseconds():
    load_cluster("dgx-h100:16")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load_cluster("dgx-h100:16")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02


def test_import_and_load_need_no_graph_library():
    code = (
        "import sys, hardware_profiles as h; h.load_cluster('tpu-v4:64');"
        "print(*sorted({'networkx', 'numpy', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
