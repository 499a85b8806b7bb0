"""How long one operator takes on one device: a roofline with shape."""

from typing import Literal

from hardware_profiles.device import DeviceProfile
from hardware_profiles.errors import ProfileError
from hardware_profiles.software import SoftwareProfile
from simulator.operator_attention import fused_attention_time, kernel_of
from simulator.operator_convolutions import convolution_time
from simulator.operator_products import tiled_product_time
from simulator.operator_recurrent import recurrent_time
from simulator.work import Work

OperatorBound = Literal["compute", "memory", "launch"]

_OVERLAP = 2.5
"""Exponent by which arithmetic and traffic of a product overlap: 1 is their sum, infinity the
longer of the two; on the product tables of A100 and H100 1.5 to 6 fit best
(benchmarks/fit_operators.py) [1]."""
_CORE_OVERLAP = 1.0
"""The same on one core of a CPU, which packs operands and then multiplies them (Goto and van de
Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008) [1]."""


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
    if work.kind in ("memory", "attention"):
        return launch_s + max(compute_s, memory_s)
    longer_s, shorter_s = max(compute_s, memory_s), min(compute_s, memory_s)
    overlap = _CORE_OVERLAP if device.kind == "cpu" else _OVERLAP
    excess: float = (1.0 + (shorter_s / longer_s) ** overlap) ** (1.0 / overlap)
    return launch_s + longer_s * excess


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
    if work.kind == "memory" and device.element_times_s:
        return launch_s, _function_time(work, device), memory_s
    if work.num_flops <= 0:
        return launch_s, 0.0, memory_s
    match work.kind:
        case "memory":
            return launch_s, work.num_flops / device.vector_flops_per_s, memory_s
        case "attention":
            kernel = kernel_of(device, software.flash_version)
            attention_s = fused_attention_time(
                work, device=device, kernel=kernel, peak_flops_per_s=_peak(work, device)
            )
            return launch_s, attention_s, memory_s
        case "matmul" | "convolution" | "recurrent":
            kernel_s = device.matmul.kernel_time_s
            if work.kind == "convolution":
                kernel_s += device.convolution_time_s
            product_s = _product_time(work, device, software)
            return launch_s + work.num_kernels * kernel_s, product_s, memory_s


def _function_time(work: Work, device: DeviceProfile) -> float:
    """Return the time of a memory-bound kernel by what it computes, where the device tells [s]."""
    suffix = ".backward" if work.backward else ""
    names = (name.removeprefix("aten.") + suffix for name in work.function.split("+"))
    per_element = sum(device.element_times_s.get(name, 0.0) for name in names)
    return max(per_element * work.num_elements, work.num_flops / device.vector_flops_per_s)


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


def _product_time(work: Work, device: DeviceProfile, software: SoftwareProfile) -> float:
    """Return the arithmetic time of a product, a convolution or all steps of a recurrence [s]."""
    shape = device.matmul
    rate = _peak(work, device) * shape.sustained_efficiency
    rate *= shape.precision_shares.get(work.precision, 1.0)
    if not work.aligned:
        rate *= shape.misaligned_share
    if work.kind == "convolution":
        share = software.convolution_shares.get(work.precision, 1.0)
        return convolution_time(work, device=device, rate_flops_per_s=rate, stack_share=share)
    if work.kind == "recurrent":
        return recurrent_time(work, device=device, rate_flops_per_s=rate)
    rate *= software.product_share
    return tiled_product_time(work, device=device, rate_flops_per_s=rate)
