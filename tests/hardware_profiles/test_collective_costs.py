"""Costs of collectives in link and cluster files: defaults, mistakes, keeping."""

import pytest

from hardware_profiles import ProfileError, cluster_to_toml, load_cluster, load_link
from hardware_profiles.collective_costs import NCCL_COSTS, TransferCosts

LINK = """
schema = 1
kind = "link"
name = "ours"
title = "Our link"
link_kind = "nvlink"
bandwidth = { value = 300, unit = "GB/s", source = "us", kind = "measured" }
achievable_bandwidth = { value = 240, unit = "GB/s", source = "us", kind = "measured" }
latency = { value = 1, unit = "us", source = "us", kind = "measured" }

[collectives]
source = "us"
kind = "measured"
ring.simple = { base = 3, hop = 1.5, share = 1.02, ramp = 0.6 }
send = { share = 0.9 }
few_one_pass = -0.5

[sources.us]
title = "Our own runs"
retrieved = 2026-01-15
"""


def written(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_table_leaves_out_keeps_nccls_constant(tmp_path):
    link = load_link(written(tmp_path, LINK))
    costs = link.costs
    assert costs.ring["simple"] == TransferCosts(base=3, hop=1.5, share=1.02, ramp=0.6)
    assert costs.ring["ll"] == NCCL_COSTS.ring["ll"]
    assert costs.send == TransferCosts(base=1, hop=1, share=0.9, ramp=0.7)
    assert (costs.few_one_pass, costs.few_two_passes) == (-0.5, NCCL_COSTS.few_two_passes)
    assert link.provenance["costs"].kind == "measured"


def test_a_link_without_a_table_has_no_costs():
    assert load_link("tcp-10g").costs is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'source = "us"\nkind = "measured"\nring',
            'source = "them"\nkind = "measured"\nring',
            "x.toml: collectives.source is 'them'; expected one of [sources]: ['us']",
        ),
        (
            "ring.simple",
            "ring.ll64",
            "x.toml: collectives.ring.ll64 is not a known key; expected one of "
            "['ll', 'll128', 'simple']",
        ),
        (
            "share = 0.9",
            "share = 0",
            "x.toml: collectives.send.share is 0.0; expected a number above 0",
        ),
        (
            "hop = 1.5",
            "hop = -1",
            "x.toml: collectives.ring.simple.hop is -1; expected a number from 0 to 10000",
        ),
        (
            "ramp = 0.6",
            'ramp = "some"',
            "x.toml: collectives.ring.simple.ramp is 'some'; expected a number from 0 to 10000",
        ),
        (
            "few_one_pass = -0.5",
            "few_one_pass = 3",
            "x.toml: collectives.few_one_pass is 3; expected a number from -2 to 2",
        ),
    ],
)
def test_mistakes_in_the_table(tmp_path, old, new, message):
    assert LINK.count(old) == 1
    with pytest.raises(ProfileError) as caught:
        load_link(written(tmp_path, LINK.replace(old, new)))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["dgx-h100:4", "gb200-nvl72:2", "pcie-l40s-8", "tpu-v5e:16"])
def test_fabrics_are_kept_whole(tmp_path, name):
    cluster = load_cluster(name)
    again = load_cluster(str(written(tmp_path, cluster_to_toml(cluster))))
    assert (again.intra, again.inter) == (cluster.intra, cluster.inter)
    assert again.intra.link.provenance == cluster.intra.link.provenance


def test_a_fabric_may_have_costs_of_its_own():
    rack, node = load_cluster("gb200-nvl72"), load_cluster("dgx-b200")
    assert rack.intra.link.name == node.intra.link.name == "nvswitch4"
    assert rack.intra.link.costs.in_switch != node.intra.link.costs.in_switch


def test_groups_are_kept_relative_to_the_fabric():
    shares = load_cluster("pcie-l40s-8").intra.group_share
    assert shares == pytest.approx({2: 20.1 / 1.83, 4: 5.16 / 1.83})
    doubled = load_cluster("pcie-l40s-8?intra_bandwidth=63GB/s").intra
    assert doubled.group_share == shares
    assert doubled.bandwidth_bytes_per_s == pytest.approx(2 * 1.83e9)


@pytest.mark.parametrize("key", ["one", "1"])
def test_a_group_is_a_number_of_ranks(tmp_path, key):
    text = cluster_to_toml(load_cluster("pcie-l40s-8"))
    changed = text.replace("[intra.group_bandwidth]\n2 =", f"[intra.group_bandwidth]\n{key} =")
    assert changed != text
    with pytest.raises(ProfileError) as caught:
        load_cluster(str(written(tmp_path, changed)))
    assert f"intra.group_bandwidth.{key} is not a group; expected a number of ranks" in str(
        caught.value
    )
