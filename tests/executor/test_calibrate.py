"""The fit finds a known machine again; the measurement yields a profile that loads."""

from dataclasses import replace

import pytest

from executor.calibrate import MAX_PROCESSES, calibrate
from executor.calibration_data import COLLECTIVES, Sample
from executor.calibration_fit import fit_cluster, work_of
from executor.calibration_framework import BLOCKS, SMALL_ELEMENTS, SMALL_TENSORS, unit_bytes
from executor.calibration_software import fit_software, software_to_toml
from executor.errors import RunError
from hardware_profiles import (
    Cluster,
    DeviceProfile,
    Fabric,
    LinkProfile,
    MatmulEfficiency,
    NodeGroup,
    cluster_to_toml,
    load_cluster,
    load_software,
)
from simulator.collectives import collective_time
from simulator.groups import Group
from simulator.operators import operator_time

SOFTWARE = replace(load_software("local"), kernel_overhead_s=0.0)
KNOWN = DeviceProfile(
    name="known", title="known", vendor="nobody", kind="cpu", year=2026,
    peak_flops_per_s={"fp32": 100e9, "bf16": 300e9}, vector_flops_per_s=5e9, memory_bytes=8e9,
    memory_bandwidth_bytes_per_s=20e9, num_compute_units=1, launch_latency_s=2e-6,
    memory_efficiency=0.5, memory_half_bytes=1.0,
    matmul=MatmulEfficiency(sustained_efficiency=0.8, tile_m=16, tile_n=16, half_k=40.0),
    attention_forward_efficiency=0.4, attention_backward_efficiency=0.3, convolution_gain=1.0,
    convolution_share=0.7,
)  # fmt: skip
LINK = LinkProfile(name="l", title="l", kind="loopback", bandwidth_bytes_per_s=2e9,
                   achievable_bandwidth_bytes_per_s=2e9, latency_s=3e-5)  # fmt: skip
KNOWN_CLUSTER = Cluster(
    name="known", title="known", inter=None,
    node_groups=(NodeGroup(device=KNOWN, devices_per_node=4, num_nodes=1),),
    intra=Fabric(topology="host", link=LINK, bandwidth_bytes_per_s=1e9, latency_s=3e-5,
                 base_latency_s=1e-4),
)  # fmt: skip


def sample(kind, shape, precision="fp32", time_s=None, load=0.0):
    made = Sample(kind=kind, shape=shape, precision=precision, time_s=1.0, statistic="median",
                  spread=1.1, repetitions=9, foreign_load_cores=load)  # fmt: skip
    if time_s is None:
        time_s = operator_time(work_of(made), device=KNOWN, software=SOFTWARE)
    return replace(made, time_s=time_s)


def message_s(kind, num_bytes, ranks):
    group = Group(num_ranks=ranks, ranks_per_node=ranks, num_nodes=1)
    return collective_time(kind, num_bytes, group=group, cluster=KNOWN_CLUSTER)


UNIT_BYTES_S = sum(
    share * (message_s(kind, unit_bytes(), 4) - message_s(kind, 0.0, 4))
    for kind, share in (("all_gather", 2 / 3), ("reduce_scatter", 1 / 3))
)
"""What the bytes of a sharded unit's gather or reduction take on average among four [s]."""


def known_samples(load=0.0):
    sizes = [(n, n, n) for n in (64, 128, 256, 512, 1024)]
    samples = [sample("matmul", s, load=load) for s in
               [*sizes, (512, 512, 16), (512, 512, 64), (32, 512, 128)]]  # fmt: skip
    samples += [sample("matmul", s, "bf16") for s in sizes[2:]]
    samples += [sample("copy", (1 << p,)) for p in range(14, 27, 2)]
    samples += [sample("launch", (100,), time_s=100 * 2e-6), sample("vector", (8192,), time_s=4e-6)]
    for kind in ("attention", "attention_backward"):
        samples.append(sample(kind, (1, 4, 256, 64)))
    samples.append(sample("convolution", (4, 32, 28, 28, 64, 3)))
    samples.append(sample("element:gelu", (1000,), time_s=2e-6, load=load))
    samples.append(sample("optimizer:adam", (4, 1 << 20), time_s=8e-3))
    samples.append(sample("optimizer:adam", (SMALL_TENSORS, SMALL_ELEMENTS), time_s=1.6e-3))
    samples.append(sample("calls", (BLOCKS,), time_s=2.48e-3))
    samples.append(sample("plain_calls", (BLOCKS,), time_s=1.2e-3))
    samples.append(sample("sharded_calls", (BLOCKS,), time_s=5.2e-3))
    samples.append(sample("forward_calls", (BLOCKS,), time_s=0.8e-3))
    samples.append(sample("checkpointed_calls", (BLOCKS,), time_s=7.28e-3))
    samples.append(sample("plain_units", (BLOCKS,), time_s=20e-3))
    samples.append(sample("sharded_units", (BLOCKS,), time_s=44e-3 + 24 * UNIT_BYTES_S))
    samples.append(sample("redistribute", (1,), time_s=1e-3))
    for power in range(10, 25, 2):
        for ranks in (2, 4):
            for kind in COLLECTIVES:
                time_s = message_s(kind, 1 << power, ranks)
                samples.append(sample(kind, (ranks, 1 << power), time_s=time_s))
        samples.append(sample("round_trip", (2, 1 << power), time_s=2 * (3e-5 + 2**power / 2e9)))
    return samples


def test_fit_finds_a_known_machine_again():
    cluster = fit_cluster(known_samples(), num_processes=4, command="test")
    device = cluster.device
    for shape in ((192, 192, 192), (768, 768, 768), (512, 512, 48)):
        work = work_of(sample("matmul", shape))
        wanted = operator_time(work, device=KNOWN, software=SOFTWARE)
        assert operator_time(work, device=device, software=SOFTWARE) == pytest.approx(wanted, 0.1)
    for kind, shape, precision in (
        ("matmul", (768, 768, 768), "bf16"), ("attention", (1, 4, 256, 64), "fp32"),
        ("attention_backward", (1, 4, 256, 64), "fp32"),
        ("convolution", (4, 32, 28, 28, 64, 3), "fp32"),
    ):  # fmt: skip
        known = sample(kind, shape, precision)
        found = operator_time(work_of(known), device=device, software=SOFTWARE)
        assert found == pytest.approx(known.time_s, rel=0.15), kind
    reached = device.memory_bandwidth_bytes_per_s * device.memory_efficiency
    assert reached == pytest.approx(10e9, rel=0.05)
    group = Group(num_ranks=4, ranks_per_node=4, num_nodes=1)
    for num_bytes in (5e3, 5e5, 5e7):
        wanted = collective_time("all_reduce", num_bytes, group=group, cluster=KNOWN_CLUSTER)
        found = collective_time("all_reduce", num_bytes, group=group, cluster=cluster)
        assert found == pytest.approx(wanted, rel=0.1)


def test_a_fitted_profile_is_read_back_and_says_what_was_noisy(tmp_path):
    cluster = fit_cluster(known_samples(load=0.8), num_processes=4, command="paraplan calibrate")
    path = tmp_path / "local.toml"
    path.write_text(cluster_to_toml(cluster))
    loaded = load_cluster(str(path))
    assert loaded.num_devices == 4
    origin = loaded.device.provenance["matmul.half_k"]
    assert origin.kind == "measured"
    assert "NOISY: 8 of 8" in origin.note
    assert "paraplan calibrate" in origin.source
    assert "NOISY" not in loaded.provenance["intra.latency_s"].note


def test_the_stack_is_timed_per_call_and_read_back(tmp_path):
    samples = known_samples()
    cluster = fit_cluster(samples, num_processes=4, command="test")
    device = cluster.device
    assert device.element_times_s["gelu"] == pytest.approx(2e-9)
    assert device.element_times_s["adam"] == pytest.approx(8e-3 / 4 / 2**20)
    software = fit_software(samples, cluster=cluster, command="test")
    assert software.kernel_overhead_s == pytest.approx(2.48e-3 / (8 * 31) - device.launch_latency_s)
    assert software.sharded_operator_overhead_s == pytest.approx(4e-3 / (48 * 3))
    assert software.sharded_unit_s == pytest.approx(1e-3, rel=0.02)
    assert software.checkpoint_s == pytest.approx(0.5e-3)
    assert software.collective_call_s == pytest.approx(1e-3 / 2 / 3)
    assert software.optimizer_tensor_s == pytest.approx(25e-6)
    path = tmp_path / "local-software.toml"
    path.write_text(software_to_toml(software, command="paraplan calibrate"))
    loaded = load_software(path)
    for name in ("kernel_overhead_s", "sharded_operator_overhead_s", "optimizer_tensor_s"):
        assert getattr(loaded, name) == getattr(software, name)
        assert loaded.provenance[name].kind == "measured"
    assert loaded.attention == software.attention


def test_cpu_time_is_noisy_by_its_spread_alone():
    busy = replace(sample("copy", (1 << 20,), load=2.0), statistic="cpu")
    assert not busy.is_noisy
    assert replace(busy, spread=2.0).is_noisy
    assert replace(busy, statistic="p10").is_noisy


@pytest.mark.distributed
@pytest.mark.slow
def test_calibrate_makes_local_usable(tmp_path, monkeypatch):
    monkeypatch.setenv("PARAPLAN_HOME", str(tmp_path))
    heard = []
    path = calibrate(quick=True, processes=2, progress=lambda *event: heard.append(event))
    assert path == tmp_path / "profiles" / "local.toml"
    cluster = load_cluster("local")
    assert cluster.num_devices == 2
    assert cluster.device.peak_flops_per_s["fp32"] > 1e9
    assert cluster.intra.bandwidth_bytes_per_s > 1e6
    assert heard[-1][1] == heard[-1][2]


def test_too_many_processes_are_refused():
    with pytest.raises(RunError, match=f"expected 1 to {MAX_PROCESSES}"):
        calibrate(processes=1000)
