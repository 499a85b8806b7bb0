"""Tiles, precisions, fused attention and recurrent layers: laws and figures of others."""

from dataclasses import replace

import pytest

from hardware_profiles import load_device, load_software
from hardware_profiles.device import AttentionEfficiency
from simulator.operator_attention import fused_attention_time, kernel_of
from simulator.operator_products import tiled_product_time
from simulator.operators import operator_time
from simulator.work import Work

SHAPE = {"m": 4096.0, "n": 4096.0, "k": 4096.0}


def product(m, n, k, precision="bf16", **more):
    return Work(
        kind="matmul", precision=precision, num_flops=2 * m * n * k,
        memory_bytes=2 * (m * k + k * n + m * n), m=m, n=n, k=k, **more,
    )  # fmt: skip


def attention(batch, length, width=128.0, *, causal=True, backward=False):
    flops = (10 if backward else 4) * batch * length**2 * width
    return Work(
        kind="attention", precision="bf16", num_flops=flops / 2 if causal else flops,
        batch=batch, m=length, n=length, k=width, backward=backward,
    )  # fmt: skip


def with_shape(device, **changes):
    return replace(device, matmul=replace(device.matmul, **changes))


def test_operand_cost_forbids_small_tiles(ideal_device):
    free, costly = (with_shape(ideal_device, operand_cost=cost) for cost in (0.0, 100.0))

    def slower(size):
        times = [
            tiled_product_time(product(size, size, 8192), device=device, rate_flops_per_s=1e12)
            for device in (free, costly)
        ]
        return times[1] / times[0]

    assert slower(12_800) == pytest.approx(1.0)
    # 100 tiles of 64 x 64 in 10 full waves, or 25 of 128 x 128 in 3 waves on 10 units
    assert slower(640) == pytest.approx(3 * 128**2 / (10 * 64**2))


def test_groups_fill_whole_tiles(ideal_device):
    def seconds(rows, groups):
        work = replace(product(rows, 1280, 8192), batch=groups)
        work = replace(work, num_flops=work.num_flops * groups)
        return tiled_product_time(work, device=ideal_device, rate_flops_per_s=1e12)

    assert seconds(24, 20.0) == pytest.approx(seconds(32, 20.0))  # a quarter of 128 rows
    assert seconds(24, 1.0) < seconds(32, 1.0)


def test_kernel_time_counts_once_per_product(toy_device, toy_software):
    def seconds(work, device):
        return operator_time(work, device=device, software=toy_software)

    slow = with_shape(toy_device, kernel_time_s=5e-6)
    work = product(**SHAPE)
    assert seconds(work, slow) - seconds(work, toy_device) == pytest.approx(5e-6)
    copy = Work(kind="memory", precision="bf16", memory_bytes=1e6)
    assert seconds(copy, slow) == seconds(copy, toy_device)


def test_misaligned_rows_and_precisions_have_rates_of_their_own(ideal_device, free_software):
    shares = {"misaligned_share": 0.5, "precision_shares": {"fp32": 0.8}}
    device = replace(with_shape(ideal_device, **shares), memory_bandwidth_bytes_per_s=1e15)

    def ratio(work):
        times = [
            operator_time(work, device=machine, software=free_software)
            for machine in (device, replace(device, matmul=ideal_device.matmul))
        ]
        return times[0] / times[1]

    assert ratio(product(**SHAPE)) == pytest.approx(1.0, rel=1e-3)
    assert ratio(product(**SHAPE, aligned=False)) == pytest.approx(2.0, rel=1e-3)
    assert ratio(product(**SHAPE, precision="fp32")) == pytest.approx(1.25, rel=1e-3)


def test_narrow_heads_pay_for_their_exponentials(toy_device):
    def rate(width, half_width):
        work = attention(4096, 2048, width)
        seconds = fused_attention_time(
            work, device=toy_device, peak_flops_per_s=4e12,
            kernel=AttentionEfficiency(forward=0.5, backward=0.4, half_width=half_width),
        )  # fmt: skip
        return work.num_flops / seconds

    assert rate(64.0, 0.0) == pytest.approx(rate(128.0, 0.0))
    assert rate(64.0, 64.0) / rate(128.0, 64.0) == pytest.approx(0.75)  # (64/128) / (128/192)


def test_a_version_that_is_absent_is_the_second(toy_device):
    third = AttentionEfficiency(forward=0.7, backward=0.6, half_width=9.0)
    device = replace(toy_device, attention_kernels={3: third})
    assert kernel_of(device, 3) is third
    assert kernel_of(device, 2) == kernel_of(device, 1)
    assert kernel_of(device, 2).forward == device.attention_forward_efficiency


@pytest.mark.parametrize(
    ("length", "causal", "version", "published_tflops"),
    [
        (2048, False, 3, 600), (8192, False, 3, 640), (16384, True, 3, 610),
        (2048, False, 2, 350), (16384, False, 2, 370), (4096, True, 2, 320),
    ],
)  # fmt: skip
def test_forward_attention_on_h100_as_published(length, causal, version, published_tflops):
    """J. Shah et al. 2024, arXiv:2407.08608, figure 5 (head width 128, 16k tokens, fp16)."""
    software = replace(load_software("eager"), flash_version=version)
    work = attention(16 * 16384 / length, length, causal=causal)
    seconds = operator_time(work, device=load_device("h100-sxm5"), software=software)
    assert work.num_flops / seconds / 1e12 == pytest.approx(published_tflops, rel=0.1)


def test_few_heads_leave_units_idle(toy_device):
    kernel = AttentionEfficiency(forward=0.5, backward=0.4)

    def rate(heads):
        work = attention(heads, 1280)
        seconds = fused_attention_time(
            work, device=toy_device, kernel=kernel, peak_flops_per_s=4e12
        )
        return work.num_flops / seconds

    assert rate(1) < 0.6 * rate(16)
    assert rate(256) == pytest.approx(rate(512), rel=0.02)


def test_recurrent_steps_read_the_state_weights_again(ideal_device, free_software):
    def seconds(steps, device=ideal_device, **more):
        work = Work(
            kind="recurrent", precision="bf16", num_flops=4 * steps * 8 * 4096 * 1024,
            m=8, n=4096, k=1024, sequential_steps=steps, **more,
        )  # fmt: skip
        return operator_time(work, device=device, software=free_software)

    weights_s = 2 * 4096 * 1024 / 1e10
    assert seconds(50) > 50 * weights_s
    stalled = replace(ideal_device, recurrent_step_s=1e-3)
    assert seconds(50, stalled) - seconds(50) == pytest.approx(50e-3)
    assert seconds(50, weight_gradient=True) < seconds(50) / 4
