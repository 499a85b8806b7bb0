"""How long one operator takes on one device: a roofline with shape."""

from math import floor
from typing import Literal

from hardware_profiles.device import DeviceProfile
from hardware_profiles.errors import ProfileError
from hardware_profiles.software import SoftwareProfile
from simulator.work import Work

OperatorBound = Literal["compute", "memory", "launch"]

_RAMP = 0.25
"""Share of a quantisation step over which its cost rises, so that time is continuous [1]."""
_TILES = ((1.0, 1.0, 1.0), (0.5, 1.0, 0.92), (1.0, 0.5, 0.92), (0.5, 0.5, 0.85))
"""Tile shapes a library offers: share of ``tile_m``, of ``tile_n``, and the rate they reach [1].
A tile of half the size loads 3/4 as many operands per product, hence the lower rate."""
_SMALLEST_TILE = 1 / 8
"""Narrowest tile as a share of the full one: 16 of 128, one matrix instruction [1]."""
_SPLIT_K = 4.0
"""Shortest piece of the inner loop after a split, in units of ``half_k`` [1]."""
_FAST_FILTER_AREA = 9
"""Smallest filter (3x3) for which Winograd or FFT algorithms exist in cuDNN [1]."""
_ATTENTION_ROWS = 128.0
"""Query rows per thread block (Dao 2023, arXiv:2307.08691, section 3.3) [elements]."""
_ATTENTION_SMALLEST_ROWS = 16.0
"""Rows of one matrix instruction, the waste of a single-query step [elements]."""
_ATTENTION_HALF_KEYS = 128.0
"""Key length at which half of the fused attention rate is reached: one block of keys for the
prologue and epilogue. Keys count after the mask; FlashAttention-2 on H100 reaches 0.60, 0.76, 0.87
of its rate at 512, 1024, 2048 causal keys (J. Shah et al. 2024, arXiv:2407.08608, figure 5); this
gives 0.67, 0.80, 0.89 [elements]."""
_ATTENTION_PRODUCTS = {False: 2, True: 5}
"""Matrix products forward (scores, output) and backward (scores again and four gradients):
Dao 2023, section 3.1 [1]."""


def operator_time(work: Work, *, device: DeviceProfile, software: SoftwareProfile) -> float:
    r"""Return the time of one operator on one device.

    The kernels are launched one after another; each takes the longer of its arithmetic and its
    memory traffic. Arithmetic pays for partly filled tiles and waves, for short inner loops and for
    the sustained clock; traffic pays for the ramp of small transfers.

    Parameters
    ----------
    work : Work
        Local work after all splits.
    device : DeviceProfile
        The device that runs it.
    software : SoftwareProfile
        The stack; its :attr:`kernel_overhead_s` adds to every launch.

    Returns
    -------
    float
        Duration [s].

    Raises
    ------
    ProfileError
        If the device has no peak for the precision of the work.

    Notes
    -----
    .. math:: t = K (\ell + o) + \max(F / (P \, e), (Q + K h) / (W \, e_W))

    with :math:`K` kernels, launch latency :math:`\ell`, host overhead :math:`o`, :math:`F` FLOP,
    peak :math:`P`, :math:`Q` bytes, ramp :math:`h` bytes and bandwidth :math:`W` (the roofline of
    [1]_). The efficiency :math:`e` of a product comes from its tiles: they are spread over the
    compute units in waves [2]_, the best of four tile shapes is taken, and few tiles with a long
    inner loop are split along it. Quantised counts rise linearly within a quarter of a step, so
    that the time is continuous; it never falls when a size grows. Not modelled: cache residency
    between operators, and clocks that depend on the data.

    References
    ----------
    .. [1] S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance
       model for multicore architectures", CACM 52(4), 2009.
    .. [2] NVIDIA, "Matrix multiplication background user's guide", sections 3.2 and 4 (tile and
       wave quantization).

    """
    launch_s, compute_s, memory_s = _terms(work, device, software)
    return launch_s + max(compute_s, memory_s)


def operator_bound(
    work: Work, *, device: DeviceProfile, software: SoftwareProfile
) -> OperatorBound:
    """Return what limits an operator: launches, arithmetic or memory traffic.

    Parameters
    ----------
    work : Work
        Local work after all splits.
    device : DeviceProfile
        The device that runs it.
    software : SoftwareProfile
        The stack.

    Returns
    -------
    str
        ``launch`` if launching takes longer than the work itself, otherwise the longer side of the
        roofline.

    Raises
    ------
    ProfileError
        If the device has no peak for the precision of the work.

    """
    launch_s, compute_s, memory_s = _terms(work, device, software)
    if launch_s > max(compute_s, memory_s):
        return "launch"
    return "compute" if compute_s >= memory_s else "memory"


def _terms(
    work: Work, device: DeviceProfile, software: SoftwareProfile
) -> tuple[float, float, float]:
    """Return launch, arithmetic and traffic time [s]."""
    launch_s = work.num_kernels * (device.launch_latency_s + software.kernel_overhead_s)
    ramp_bytes = device.memory_half_bytes * max(work.num_kernels, work.sequential_steps)
    rate = device.memory_bandwidth_bytes_per_s * device.memory_efficiency
    memory_s = (work.memory_bytes + ramp_bytes) / rate if work.memory_bytes > 0 else 0.0
    if work.num_flops <= 0:
        return launch_s, 0.0, memory_s
    match work.kind:
        case "memory":
            compute_s = work.num_flops / device.vector_flops_per_s
        case "attention":
            compute_s = _attention_time(work, device)
        case "matmul" | "convolution" | "recurrent":
            compute_s = _product_time(work, device)
    return launch_s, compute_s, memory_s


def _peak(work: Work, device: DeviceProfile) -> float:
    """Return the dense peak for the precision of the work [FLOP/s]."""
    peak = device.peak_flops_per_s.get(work.precision)
    if peak is None:
        has = ", ".join(sorted(device.peak_flops_per_s)) or "no matrix precision"
        msg = (
            f"device {device.name!r}: no peak for precision {work.precision!r}; "
            f"it has {has}; choose one of these or add the peak to its profile"
        )
        raise ProfileError(msg)
    return peak


def _product_time(work: Work, device: DeviceProfile) -> float:
    """Return the arithmetic time of a product, a convolution or all steps of a recurrence [s]."""
    shape = device.matmul
    rate = _peak(work, device) * shape.sustained_efficiency
    if (
        work.kind == "convolution"
        and work.precision == "fp32"
        and work.filter_area >= _FAST_FILTER_AREA
    ):
        rate *= device.convolution_gain
    best = min(
        _tiled_elements(
            work.batch, work.m, work.n, work.k,
            shape.tile_m * part_m, shape.tile_n * part_n, shape.half_k, device.num_compute_units,
        ) / share
        for part_m, part_n, share in _TILES
    )  # fmt: skip
    return work.num_flops / rate * best / (work.batch * work.m * work.n * work.k)


def _attention_time(work: Work, device: DeviceProfile) -> float:
    """Return the arithmetic time of fused attention [s]."""
    share = (
        device.attention_backward_efficiency
        if work.backward
        else device.attention_forward_efficiency
    )
    rows = min(max(work.m, _ATTENTION_SMALLEST_ROWS), _ATTENTION_ROWS)
    blocks = work.batch * _soft_ceil(work.m / _ATTENTION_ROWS)
    per_key = _ATTENTION_PRODUCTS[work.backward] * 2 * work.batch * work.m * work.k
    keys = min(work.n, work.num_flops / per_key)  # a causal mask leaves half of them
    padded = rows * _waves(blocks, keys, _ATTENTION_HALF_KEYS, device.num_compute_units)
    return work.num_flops / (_peak(work, device) * share) * padded / (work.batch * work.m * keys)


def _tiled_elements(
    batch: float, m: float, n: float, k: float,
    tile_m: float, tile_n: float, half_k: float, num_units: int,
) -> float:  # fmt: skip
    """Return the multiply-adds the whole device could do in the time of the tiled product."""
    rows = min(max(m, tile_m * _SMALLEST_TILE), tile_m)
    columns = min(max(n, tile_n * _SMALLEST_TILE), tile_n)
    tiles = batch * _soft_ceil(m / tile_m) * _soft_ceil(n / tile_n)
    return rows * columns * _waves(tiles, k, half_k, num_units)


def _waves(tiles: float, length: float, half_length: float, num_units: int) -> float:
    """Return inner-loop iterations of the longest unit, times the number of units.

    Tiles beyond one wave queue; tiles short of one wave are split along the inner loop, as far as
    the pieces stay long.
    """
    waves = tiles / num_units
    if waves >= 1:
        return _soft_ceil(waves) * num_units * (length + half_length)
    splits = min(1 / waves, max(1.0, length / max(1.0, _SPLIT_K * half_length)))
    return num_units * (length / splits + half_length)


def _soft_ceil(x: float) -> float:
    """Return the ceiling of a count, continuous: the step rises over its first quarter."""
    if x <= 1:
        return 1.0
    whole = floor(x)
    return whole + min(1.0, (x - whole) / _RAMP)
