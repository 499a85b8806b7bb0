"""From samples of kernels and messages to a device, a link and a cluster of this machine.

The profile's parameters are those of the simulator's own formulas, fitted on kernels and messages
alone; no training step takes part.
"""

import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import cast

import numpy as np
from scipy.optimize import minimize

from executor.calibration_data import COLLECTIVES, Sample
from executor.calibration_framework import SMALL_ELEMENTS
from hardware_profiles import (
    Cluster,
    DeviceProfile,
    Fabric,
    LinkProfile,
    MatmulEfficiency,
    NodeGroup,
    Precision,
    Provenance,
    SoftwareProfile,
    load_software,
)
from simulator.collectives import collective_time
from simulator.groups import CollectiveKind, Group
from simulator.operators import operator_time
from simulator.work import Work

_TILES = (8, 16, 32, 64)
"""Register tiles tried: rows and columns of the kernel's inner block [elements]."""
_LARGE_COPY_BYTES = 1 << 18
"""From here on a copy is bound by memory, not by its call [B]."""
_COPY_PASSES = 2
"""A copy reads and writes each byte [1]."""
_SHARE_LIMIT = 2.0
_BACKWARD_PRODUCTS = 5 / 2
"""Products of attention's backward pass over those of its forward pass (Dao 2023, arXiv:2307.08691,
section 3.1) [1]."""
_FIT_TOLERANCE = 1e-3


def fit_cluster(samples: Sequence[Sample], *, num_processes: int, command: str) -> Cluster:
    """Return this machine as one node whose devices are processes of one thread.

    Parameters
    ----------
    samples : sequence of Sample
        What every process measured while all of them ran.
    num_processes : int
        Processes, which become devices [1].
    command : str
        What was run, for the source note.
    """
    source = source_of(command)
    bare = replace(load_software("local"), kernel_overhead_s=0.0)
    device = _fit_device(samples, num_processes=num_processes, source=source, software=bare)
    intra, origin = _fit_fabric(samples, source=source, num_processes=num_processes, device=device)
    return Cluster(
        name="local",
        title=f"{num_processes} processes of one thread on {_cpu_name()}, {os.cpu_count()} cores, "
        "each measured while all ran",
        node_groups=(NodeGroup(device=device, devices_per_node=num_processes, num_nodes=1),),
        intra=intra,
        inter=None,
        provenance=origin,
    )


def source_of(command: str) -> str:
    """Return where and when a measurement was taken."""
    return f"{command} on {_cpu_name()}, {os.cpu_count()} cores (retrieved {date.today()})"


def work_of(sample: Sample) -> Work:
    """Return a kernel sample as the simulator's work."""
    shape, item = sample.shape, 2.0 if sample.precision == "bf16" else 4.0
    precision: Precision = "bf16" if sample.precision == "bf16" else "fp32"
    if sample.kind == "matmul":
        m, n, k = shape
        return Work(
            kind="matmul", precision=precision, num_flops=2.0 * m * n * k, m=m, n=n, k=k,
            memory_bytes=item * (m * k + n * k + m * n),
        )  # fmt: skip
    if sample.kind == "convolution":
        batch, channels, height, width, filters, edge = shape
        rows, inner = batch * height * width, channels * edge * edge
        return Work(
            kind="convolution", precision=precision, num_flops=2.0 * rows * filters * inner,
            memory_bytes=item * rows * (channels + filters), m=rows, n=filters, k=inner,
            filter_area=edge * edge,
        )  # fmt: skip
    if sample.kind in {"attention", "attention_backward"}:
        batch, heads, length, width = shape
        backward = sample.kind == "attention_backward"
        flops = 4.0 * batch * heads * length * length * width / 2  # a causal mask leaves half
        return Work(
            kind="attention", precision=precision, batch=batch * heads, m=length, n=length, k=width,
            num_flops=flops * (_BACKWARD_PRODUCTS if backward else 1.0), backward=backward,
            memory_bytes=4 * item * batch * heads * length * width,
        )  # fmt: skip
    return Work(kind="memory", precision=precision, memory_bytes=_COPY_PASSES * float(shape[0]))


def fit_logs(
    predict: Callable[[np.ndarray], Sequence[float]],
    measured: Sequence[float],
    *,
    start: Sequence[float],
) -> tuple[np.ndarray, float]:
    """Fit positive parameters so that logarithms of times agree in the least-squares sense.

    Returns
    -------
    tuple of ndarray and float
        Parameters, and the root mean square of the remaining log ratios [1].

    Examples
    --------
    >>> sizes = np.array([1.0, 10.0, 100.0, 1000.0])
    >>> found, rest = fit_logs(lambda p: p[0] + p[1] * sizes, 2.0 + 0.5 * sizes, start=[1.0, 1.0])
    >>> bool(abs(found[0] - 2.0) < 0.02), bool(abs(found[1] - 0.5) < 0.01), rest < 0.01
    (True, True, True)
    """
    wanted = np.log(np.asarray(measured))

    def loss(logs: np.ndarray) -> float:
        found = np.log(np.maximum(np.asarray(predict(np.exp(logs))), 1e-12))
        return float(np.mean((found - wanted) ** 2))

    options = {"maxiter": 2000, "xatol": _FIT_TOLERANCE, "fatol": _FIT_TOLERANCE**2}
    best = minimize(loss, np.log(np.asarray(start)), method="Nelder-Mead", options=options)  # type: ignore[call-overload]
    return np.exp(best.x), math.sqrt(float(best.fun))


def _of(samples: Sequence[Sample], kind: str, precision: str = "fp32") -> list[Sample]:
    return [s for s in samples if s.kind == kind and s.precision == precision]


def _fit_device(
    samples: Sequence[Sample], *, num_processes: int, source: str, software: SoftwareProfile
) -> DeviceProfile:
    products = _of(samples, "matmul")
    rates = {s.shape: work_of(s).num_flops / s.time_s for s in products}
    peak = max(rates.values())
    launches = _of(samples, "launch")
    launch_s = min(s.time_s / s.shape[0] for s in launches)
    copies = [s for s in _of(samples, "copy") if s.shape[0] >= _LARGE_COPY_BYTES]
    bandwidth = max(_COPY_PASSES * s.shape[0] / s.time_s for s in _of(samples, "copy"))
    large = statistics.geometric_mean(_COPY_PASSES * s.shape[0] / s.time_s for s in copies)
    vector = _of(samples, "vector")[0]
    vector_rate = vector.shape[0] / max(vector.time_s - launch_s, vector.time_s / 4)
    device = DeviceProfile(
        name="local-cpu-process", title=f"One process on {_cpu_name()}", vendor=platform.machine(),
        kind="cpu", year=date.today().year,
        peak_flops_per_s={"fp32": peak}, vector_flops_per_s=vector_rate,
        memory_bytes=_total_memory_bytes() / num_processes,
        memory_bandwidth_bytes_per_s=bandwidth, num_compute_units=1, launch_latency_s=launch_s,
        memory_efficiency=min(1.0, large / bandwidth), memory_half_bytes=1.0,
        matmul=MatmulEfficiency(sustained_efficiency=1.0, tile_m=16, tile_n=16, half_k=32.0),
        attention_forward_efficiency=1.0, attention_backward_efficiency=1.0, convolution_gain=1.0,
    )  # fmt: skip
    device, rest = _fit_products(device, products, software)
    device = _with_bf16(device, samples, software)
    device = _with_shares(device, samples, software)
    device = replace(device, element_times_s=_element_times(samples))
    return replace(device, provenance=_device_provenance(device, samples, rest, source=source))


def _fit_products(
    device: DeviceProfile, products: Sequence[Sample], software: SoftwareProfile
) -> tuple[DeviceProfile, float]:
    """Fit sustained rate, inner-loop ramp and tile on all product shapes."""
    measured = [sample.time_s for sample in products]
    best: tuple[float, DeviceProfile] | None = None
    for tile in _TILES:

        def made(values: np.ndarray, tile: int = tile) -> DeviceProfile:
            return replace(device, matmul=MatmulEfficiency(
                sustained_efficiency=min(1.0, float(values[0])), half_k=max(1.0, float(values[1])),
                tile_m=tile, tile_n=tile))  # fmt: skip

        def predict(values: np.ndarray, make: Callable[..., DeviceProfile] = made) -> list[float]:
            candidate = make(values)
            return [operator_time(work_of(s), device=candidate, software=software)
                    for s in products]  # fmt: skip

        values, rest = fit_logs(predict, measured, start=[0.9, 16.0])
        if best is None or rest < best[0]:
            best = (rest, made(values))
    if best is None:
        raise RuntimeError("no tile was tried")
    return best[1], best[0]


def _with_bf16(
    device: DeviceProfile, samples: Sequence[Sample], software: SoftwareProfile
) -> DeviceProfile:
    """Add the bf16 peak at which the fitted shape law meets its largest product."""
    largest = max(_of(samples, "matmul", "bf16"), key=lambda s: math.prod(s.shape))
    peaks = {**device.peak_flops_per_s, "bf16": device.peak_flops_per_s["fp32"]}
    as_fp32 = replace(device, peak_flops_per_s=peaks)
    ratio = operator_time(work_of(largest), device=as_fp32, software=software) / largest.time_s
    return replace(device, peak_flops_per_s={**peaks, "bf16": peaks["fp32"] * ratio})


def _with_shares(
    device: DeviceProfile, samples: Sequence[Sample], software: SoftwareProfile
) -> DeviceProfile:
    """Set the shares of attention and convolution that meet their samples in the geometric mean."""

    def ratio(made: DeviceProfile, chosen: Sequence[Sample]) -> float:
        logs = [
            math.log(operator_time(work_of(s), device=made, software=software) / s.time_s)
            for s in chosen
        ]
        return math.exp(statistics.fmean(logs))

    made = replace(
        device,
        attention_forward_efficiency=min(1.0, ratio(device, _of(samples, "attention"))),
        attention_backward_efficiency=min(1.0, ratio(device, _of(samples, "attention_backward"))),
    )
    share = min(_SHARE_LIMIT, ratio(made, _of(samples, "convolution")))
    return replace(made, convolution_share=share)


def _element_times(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the time per element of memory-bound kernels and updates [s]."""
    found = {}
    for sample in samples:
        family, _, name = sample.kind.partition(":")
        if family == "element":
            found[name] = sample.time_s / sample.shape[0]
        elif family == "optimizer" and sample.shape[1] > SMALL_ELEMENTS:
            found[name] = sample.time_s / (sample.shape[0] * sample.shape[1])
    return dict(sorted(found.items()))


def _fit_fabric(
    samples: Sequence[Sample], *, source: str, num_processes: int, device: DeviceProfile
) -> tuple[Fabric, dict[str, Provenance]]:
    """Fit rate and latencies of the loopback on collectives; the link's own on round trips."""
    trips = _of(samples, "round_trip")
    messages = [sample for kind in COLLECTIVES for sample in _of(samples, kind)]
    if not messages:
        note = Provenance(source=source, kind="assumed", note="one process: nothing to measure")
        return _fabric(1e9, 1e-5, 1e-5, note), {}
    sizes = np.array([s.shape[1] for s in trips], dtype=float)
    (hop, per_byte), link_rest = fit_logs(
        lambda p: p[0] + p[1] * sizes, [s.time_s / 2 for s in trips], start=[1e-5, 1e-9]
    )
    measured = [s.time_s for s in messages]

    def predict(values: np.ndarray) -> list[float]:
        fabric = _fabric(float(values[0]), float(values[1]), float(values[2]), None)
        node = NodeGroup(device=device, devices_per_node=num_processes, num_nodes=1)
        cluster = Cluster(name="", title="", node_groups=(node,), intra=fabric, inter=None)
        return [
            collective_time(
                cast("CollectiveKind", s.kind), float(s.shape[1]), cluster=cluster,
                group=Group(num_ranks=s.shape[0], ranks_per_node=s.shape[0], num_nodes=1),
            ) for s in messages
        ]  # fmt: skip

    (rate, latency, base), rest = fit_logs(predict, measured, start=[1 / per_byte, hop, hop])
    note = provenance_of(
        messages, source,
        f"collectives of 2 to {num_processes} between compute, fit within {_percent(rest)}",
    )  # fmt: skip
    fabric = _fabric(float(rate), float(latency), float(base), note)
    link_note = provenance_of(trips, source, f"round trips, fit within {_percent(link_rest)}")
    fastest = max(float(1 / per_byte), float(rate))  # a ring sends and receives at once
    link = replace(
        fabric.link, bandwidth_bytes_per_s=fastest, latency_s=float(hop),
        achievable_bandwidth_bytes_per_s=fastest,
        provenance=dict.fromkeys(
            ("bandwidth_bytes_per_s", "achievable_bandwidth_bytes_per_s", "latency_s"), link_note
        ),
    )  # fmt: skip
    keys = ("intra.bandwidth_bytes_per_s", "intra.latency_s", "intra.base_latency_s")
    return replace(fabric, link=link), dict.fromkeys(keys, note)


def _fabric(rate: float, latency: float, base: float, note: Provenance | None) -> Fabric:
    names = ("bandwidth_bytes_per_s", "achievable_bandwidth_bytes_per_s", "latency_s")
    link = LinkProfile(
        name="local-loopback", title="gloo over the loopback interface", kind="loopback",
        bandwidth_bytes_per_s=rate, achievable_bandwidth_bytes_per_s=rate, latency_s=latency,
        provenance=dict.fromkeys(names, note) if note else {},
    )  # fmt: skip
    return Fabric(topology="host", link=link, bandwidth_bytes_per_s=rate, latency_s=latency,
                  base_latency_s=base)  # fmt: skip


def _device_provenance(
    device: DeviceProfile, samples: Sequence[Sample], rest: float, *, source: str
) -> dict[str, Provenance]:
    products, copies = _of(samples, "matmul"), _of(samples, "copy")
    shape_note = f"{len(products)} product shapes, fit within {_percent(rest)}"
    of_products = provenance_of(products, source, shape_note)
    of_copies = provenance_of(copies, source, "fastest copy")
    large = [sample for sample in copies if sample.shape[0] >= _LARGE_COPY_BYTES]
    derived = Provenance(source=source, kind="derived", note="one process is one compute unit")
    assumed = Provenance(source=source, kind="assumed", note="small kernels show as launches")
    found = {
        "peak_flops_per_s.fp32": provenance_of(products, source, "fastest product"),
        "peak_flops_per_s.bf16": provenance_of(_of(samples, "matmul", "bf16"), source, "largest"),
        "vector_flops_per_s": provenance_of(_of(samples, "vector"), source, "in-place product"),
        "memory_bytes": Provenance(source=source, kind="derived", note="equal shares of the RAM"),
        "memory_bandwidth_bytes_per_s": of_copies,
        "memory_efficiency": provenance_of(
            large, source, "geometric mean of copies of 256 KiB and more, out of caches"
        ),
        "memory_half_bytes": assumed,
        "launch_latency_s": provenance_of(_of(samples, "launch"), source, "small additions"),
        "num_compute_units": derived,
        "attention_forward_efficiency": provenance_of(_of(samples, "attention"), source, ""),
        "attention_backward_efficiency": provenance_of(
            _of(samples, "attention_backward"), source, ""
        ),
        "convolution_share": provenance_of(_of(samples, "convolution"), source, "1x1 and 3x3"),
        "convolution_gain": replace(derived, note="no algorithm faster than the product is known"),
    }
    for sample in samples:
        family, _, name = sample.kind.partition(":")
        if family in ("element", "optimizer"):
            found[f"element_times_s.{name}"] = provenance_of([sample], source, "")
    for key in ("sustained_efficiency", "tile_m", "tile_n", "half_k"):
        found[f"matmul.{key}"] = of_products
    return found


def provenance_of(samples: Sequence[Sample], source: str, note: str) -> Provenance:
    """State spread and foreign load; a noisy sample is called so."""
    spread = max(sample.spread for sample in samples)
    load = max(sample.foreign_load_cores for sample in samples)
    noisy = sum(sample.is_noisy for sample in samples)
    statistics_used = sorted({sample.statistic for sample in samples})
    words = [
        note,
        f"{' and '.join(statistics_used)} of times",
        f"p90/median up to {spread:.2f}",
        f"foreign load up to {load:.2f} cores",
    ]
    if noisy:
        words.append(f"NOISY: {noisy} of {len(samples)} samples")
    return Provenance(source=source, kind="measured", note="; ".join(filter(None, words)))


def _percent(rest: float) -> str:
    return f"{100 * (math.exp(rest) - 1):.0f} %"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _total_memory_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
