"""Operators: example, closed form, limits, relations, failures."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.errors import ProfileError
from simulator.operators import operator_bound, operator_time
from simulator.work import Work

SIZE = st.floats(1, 20_000)


def product(m, n, k, *, batch=1.0, kind="matmul", precision="bf16", traffic=1.0, **more):
    return Work(
        kind=kind,
        precision=precision,
        num_flops=2 * batch * m * n * k,
        memory_bytes=2 * batch * (m * k + k * n + m * n) * traffic,
        batch=batch,
        m=m,
        n=n,
        k=k,
        **more,
    )


def attention(batch, m, n, k=64, **more):
    return replace(
        product(m, n, k, batch=batch, kind="attention", **more),
        num_flops=(10 if more.get("backward") else 4) * batch * m * n * k,
        memory_bytes=4 * batch * (m + n) * k,
    )


def test_aligned_product_reaches_the_peak_of_an_ideal_device(ideal_device, free_software):
    work = product(1280, 1280, 8192, traffic=1e-9)  # 100 tiles over 10 units: 10 full waves
    assert operator_time(work, device=ideal_device, software=free_software) == pytest.approx(
        2 * 1280 * 1280 * 8192 / 4e12
    )


def test_each_device_number_matters(toy_device, toy_software):
    work = product(1280, 1280, 8192, traffic=1e-9)
    time_s = operator_time(work, device=toy_device, software=toy_software)
    # one launch of 1 us + 2 us; 0.8 of the peak; inner loop of 8192 pays for 64 more
    assert time_s == pytest.approx(3e-6 + 2 * 1280 * 1280 * (8192 + 64) / (0.8 * 4e12))


def test_memory_bound_example(toy_device, toy_software):
    work = Work(kind="memory", precision="bf16", memory_bytes=1e6, num_kernels=2)
    # two launches, 1 MB and twice the ramp of 1 kB at 10 GB/s
    assert operator_time(work, device=toy_device, software=toy_software) == pytest.approx(
        2 * 3e-6 + (1e6 + 2e3) / 1e10
    )


def test_element_wise_flops_run_on_the_vector_units(ideal_device, free_software):
    work = Work(kind="memory", precision="fp32", memory_bytes=1, num_flops=1e9)
    assert operator_time(work, device=ideal_device, software=free_software) == pytest.approx(1e-2)


def test_bounds(toy_device, toy_software):
    machine = {"device": toy_device, "software": toy_software}
    assert operator_bound(product(4096, 4096, 4096), **machine) == "compute"
    assert operator_bound(product(1, 4096, 4096), **machine) == "memory"
    assert operator_bound(product(8, 8, 8), **machine) == "launch"


def test_wave_quantisation_costs_a_wave(ideal_device, free_software):
    device = replace(ideal_device, memory_bandwidth_bytes_per_s=1e15)
    machine = {"device": device, "software": free_software}
    ten_tiles = operator_time(product(1280, 128, 65536), **machine)
    fifteen_tiles = operator_time(product(1920, 128, 65536), **machine)
    twenty_tiles = operator_time(product(2560, 128, 65536), **machine)
    assert 1.5 * ten_tiles < fifteen_tiles < twenty_tiles
    assert twenty_tiles == pytest.approx(2 * ten_tiles)


def test_few_tiles_are_split_along_the_inner_loop(ideal_device, free_software):
    machine = {"device": ideal_device, "software": free_software}
    one_tile = operator_time(product(128, 128, 65536), **machine)
    assert one_tile < 1.01 * max(2 * 128 * 128 * 65536 / 4e12, 2 * 2 * 128 * 65536 / 1e10)


def test_convolution_gain_needs_fp32_and_a_filter_of_nine(toy_device, toy_software):
    def time_s(precision, area):
        work = product(50_000, 256, 2304, kind="convolution", precision=precision, traffic=1e-9)
        return operator_time(
            replace(work, filter_area=area), device=toy_device, software=toy_software
        )

    shape = toy_device.matmul
    rate = toy_device.peak_flops_per_s["fp32"] * shape.sustained_efficiency
    transforms = 1 + 15 * (1 / 256 + 1 / 256)
    fast_s = 2 * 50_000 * 256 * 2304 / (rate * toy_device.convolution_gain) * transforms
    assert time_s("fp32", 1) > 1.5 * time_s("fp32", 9)
    assert time_s("fp32", 9) == pytest.approx(fast_s, rel=1e-3)
    assert time_s("bf16", 1) == time_s("bf16", 9)


def test_fast_convolutions_gain_more_with_more_channels(ideal_device, free_software):
    def rate(channels):
        work = product(100_000, channels, 9 * channels, kind="convolution", traffic=1e-9)
        work = replace(work, precision="fp32", filter_area=9)
        return work.num_flops / operator_time(work, device=ideal_device, software=free_software)

    assert rate(64) < rate(128) < rate(256) < rate(512)
    assert rate(256) / rate(64) == pytest.approx((1 + 15 / 32) / (1 + 15 / 128), rel=1e-3)


def test_a_stack_with_slow_convolutions_still_has_the_fast_algorithms(ideal_device, free_software):
    slow = replace(free_software, convolution_shares={"fp32": 0.5})

    def time_s(area, software):
        work = product(50_000, 256, 256 * area, kind="convolution", traffic=1e-9)
        work = replace(work, precision="fp32", filter_area=area)
        return operator_time(work, device=ideal_device, software=software)

    assert time_s(1, slow) == pytest.approx(2 * time_s(1, free_software), rel=1e-3)
    assert time_s(9, slow) == time_s(9, free_software)


def test_gradients_of_weights_are_slower_than_those_of_inputs(ideal_device, free_software):
    forward = product(8192, 8192, 8192, kind="convolution", traffic=1e-9)
    machine = {"device": ideal_device, "software": free_software}
    inputs = operator_time(replace(forward, backward=True), **machine)
    weights = operator_time(replace(forward, backward=True, weight_gradient=True), **machine)
    assert operator_time(forward, **machine) < inputs < weights


def test_attention_efficiencies_forward_and_backward(ideal_device, free_software):
    machine = {"device": ideal_device, "software": free_software}
    forward = operator_time(attention(10, 128_000, 128_000), **machine)
    backward = operator_time(attention(10, 128_000, 128_000, backward=True), **machine)
    ideal = 4 * 10 * 128_000**2 * 64 / 4e12
    assert forward == pytest.approx(ideal / 0.5, rel=2e-3)
    assert backward == pytest.approx(2.5 * ideal / 0.4, rel=2e-3)


@pytest.mark.parametrize(("keys", "published"), [(512, 0.60), (1024, 0.76), (2048, 0.87)])
def test_short_causal_sequences_ramp_as_published(ideal_device, free_software, keys, published):
    """J. Shah et al. 2024, arXiv:2407.08608, figure 5: FlashAttention-2, share of the 16k rate."""
    work = attention(10 * 16384 / keys, keys, keys)
    causal = replace(work, num_flops=work.num_flops / 2)
    time_s = operator_time(causal, device=ideal_device, software=free_software)
    reached = causal.num_flops / time_s / (0.5 * 4e12)
    assert reached == pytest.approx(published, rel=0.12)


def test_recurrence_is_bound_by_its_steps(toy_device, toy_software):
    def time_s(steps):
        work = product(8, 4096, 1024, kind="recurrent", sequential_steps=steps)
        whole = replace(
            work, num_flops=steps * work.num_flops, memory_bytes=steps * work.memory_bytes
        )
        return operator_time(whole, device=toy_device, software=toy_software)

    launch_s = 3e-6
    assert time_s(100) - launch_s == pytest.approx(100 * (time_s(1) - launch_s))


def test_roofline_between_longer_side_and_sum(ideal_device, free_software):
    for m in (1, 16, 128, 1280):
        work = product(m, 1280, 8192)
        compute_s, memory_s = work.num_flops / 4e12, work.memory_bytes / 1e10
        time_s = operator_time(work, device=ideal_device, software=free_software)
        assert max(compute_s, memory_s) <= time_s * (1 + 1e-12)
        assert time_s <= 16 * compute_s + memory_s  # a tile is never narrower than 16 rows


def test_missing_precision_names_those_there(toy_device, toy_software):
    with pytest.raises(
        ProfileError, match=r"'toy': no peak for precision 'fp8'; it has bf16, fp32"
    ):
        operator_time(product(8, 8, 8, precision="fp8"), device=toy_device, software=toy_software)


@settings(max_examples=150, deadline=None)
@given(
    m=SIZE, n=SIZE, k=SIZE, batch=st.floats(1, 50), grow=st.floats(1, 2), which=st.integers(0, 3)
)
def test_larger_product_is_never_faster(toy_device, toy_software, m, n, k, batch, grow, which):
    small = {"m": m, "n": n, "k": k, "batch": batch}
    name = tuple(small)[which]
    large = {**small, name: small[name] * grow}
    machine = {"device": toy_device, "software": toy_software}
    before, after = (operator_time(product(**s), **machine) for s in (small, large))
    assert after >= before * (1 - 1e-12)


@settings(max_examples=100, deadline=None)
@given(m=SIZE, n=SIZE, batch=st.floats(1, 500), grow=st.floats(1, 2), which=st.integers(0, 2))
def test_larger_attention_is_never_faster(toy_device, toy_software, m, n, batch, grow, which):
    small = {"m": m, "n": n, "batch": batch}
    name = tuple(small)[which]
    large = {**small, name: small[name] * grow}
    machine = {"device": toy_device, "software": toy_software}
    before, after = (operator_time(attention(**s), **machine) for s in (small, large))
    assert after >= before * (1 - 1e-12)


@settings(max_examples=100, deadline=None)
@given(m=SIZE, n=SIZE, k=SIZE)
def test_time_is_continuous(toy_device, toy_software, m, n, k):
    machine = {"device": toy_device, "software": toy_software}
    before = operator_time(product(m, n, k), **machine)
    after = operator_time(product(m * (1 + 1e-9), n, k), **machine)
    assert after == pytest.approx(before, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(m=SIZE, n=SIZE, k=SIZE, factor=st.floats(1, 8))
def test_all_rates_times_k_divides_the_time_by_k(toy_device, toy_software, m, n, k, factor):
    fast = replace(
        toy_device,
        peak_flops_per_s={"bf16": 4e12 * factor},
        memory_bandwidth_bytes_per_s=1e10 * factor,
        launch_latency_s=1e-6 / factor,
    )
    stack = replace(toy_software, kernel_overhead_s=2e-6 / factor)
    work = product(m, n, k)
    assert operator_time(work, device=fast, software=stack) == pytest.approx(
        operator_time(work, device=toy_device, software=toy_software) / factor
    )


@settings(max_examples=50, deadline=None)
@given(m=SIZE, n=SIZE, k=SIZE, factor=st.floats(1, 8))
def test_faster_device_is_never_slower(toy_device, toy_software, m, n, k, factor):
    work = product(m, n, k)
    time_s = operator_time(work, device=toy_device, software=toy_software)
    for better in (
        replace(toy_device, peak_flops_per_s={"bf16": 4e12 * factor}),
        replace(toy_device, memory_bandwidth_bytes_per_s=1e10 * factor),
        replace(toy_device, launch_latency_s=1e-6 / factor),
    ):
        faster_s = operator_time(work, device=better, software=toy_software)
        assert faster_s <= time_s * (1 + 1e-12)
