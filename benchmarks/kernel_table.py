"""Read a table of measured kernels as work for the operator model.

The table has the columns device, kind, shape (``M=4096 N=8192 K=8192``, ``batch= seq= heads=
head_dim=``, ...), dtype, time_us, TFLOPs, GBps, source and notes.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from simulator.work import Work

PROFILES = {
    "A100 80GB": "a100-sxm4-80gb",
    "A100 80GB SXM": "a100-sxm4-80gb",
    "A100 SXM 80GB": "a100-sxm4-80gb",
    "A100 SXM 80GB (Azure ND A100 v4)": "a100-sxm4-80gb",
    "A100 PCIe 80GB": "a100-pcie-80gb",
    "A40": "a40",
    "B200": "b200-sxm",
    "B300": "b300-sxm",
    "GB200": "gb200",
    "GB200 GPU (Azure ND GB200 v6)": "gb200",
    "GB300": "gb300",
    "H100": "h100-sxm5",
    "H100 SXM": "h100-sxm5",
    "H100 SXM (Azure ND H100 v5)": "h100-sxm5",
    "H200": "h200-sxm5",
    "H200 SXM (Azure ND H200 v5)": "h200-sxm5",
    "H800": "h800-sxm5",
    "L40S": "l40s",
    "P100 PCIe": "p100-pcie-16gb",
    "RTX PRO 6000 Blackwell Server": "rtx-pro-6000",
    "T4": "t4",
    "V100 SXM2 (DGX-1)": "v100-sxm2-16gb",
}
"""Device of the table to device profile; other devices are left out."""
PRECISIONS = {
    "fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16", "fp8": "fp8",
    "fp16 in, fp32 acc": "fp16", "fp8_block": "fp8", "fp8 (128-block scaled)": "fp8",
}  # fmt: skip
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
SERVING = ("aiconfigurator",)
"""Sources whose attention kernels also fill a cache of keys and values."""
SUSTAINED = ("SimuMax", "Azure/AI-benchmarking-guide", "vidur")
"""Sources that time training products, products after 10,000 others, or layers of a running model:
at the clock that the power limit leaves."""
LONG_S = 1e-3
"""Kernel times from which any measurement runs under the power limit: within one table the rate of
an H100 falls by a fifth from kernels of 0.6 ms to kernels of 1.5 ms and stays there, that of an
A100 does not [s]."""
GRAPH_LAUNCH_S = 1.3e-6
"""Launch of a kernel inside a CUDA graph (gpu-benches, github.com/te42kyfo/gpu-benches) [s]."""
_HEADS_WIDTH = 2048
_TOKENS = 16384
"""The flash-attention figures: hidden size and tokens per batch [elements]."""
_GATES = {"Vanilla": 1, "LSTM": 4, "GRU": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One row: the works it timed together, and how."""

    profile: str
    source: str
    """First word of the source."""
    family: str
    """``product``, ``convolution``, ``attention``, ``recurrent`` or ``memory``."""
    kind: str
    """Kind of the table."""
    version: int
    """Version of the fused attention kernel, 0 for others."""
    works: tuple[Work, ...]
    time_s: float
    in_graph: bool
    shape: str

    @property
    def is_sustained(self) -> bool:
        """Whether the device ran under its power limit."""
        return self.source in SUSTAINED or self.time_s >= LONG_S

    @property
    def precision(self) -> str:
        return self.works[-1].precision


def read_table(path):
    """Return what the model can be held against, in the order of the table."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = [_measured(row) for row in csv.DictReader(file)]
    return [row for row in rows if row is not None]


def _measured(row):
    profile, precision = PROFILES.get(row["device"]), PRECISIONS.get(row["dtype"])
    if profile is None or precision is None:
        return None
    sizes = {key.lower(): float(value) for key, value in re.findall(r"(\w+)=(\d+)", row["shape"])}
    kind = row["kind"]
    if kind.startswith(("gemm", "grouped_gemm")) and {"m", "n", "k"} <= set(sizes):
        family, works, version = "product", _product(row, sizes, precision), 0
    elif kind.startswith("conv_"):
        family, works, version = "convolution", (_convolution(kind, row["shape"], precision),), 0
    elif kind.startswith("rnn_"):
        family, works, version = "recurrent", (_recurrent(row["shape"], sizes, precision),), 0
    elif kind.startswith("attention_"):
        family, version = "attention", _version(row)
        works = _attention(row, sizes, precision) if version else ()
    else:
        family, works, version = "memory", _memory(kind, sizes, precision), 0
    time_s = _time_s(row, works)
    if not works or time_s is None:
        return None
    return Measured(
        profile=profile, source=row["source"].split()[0], family=family, kind=kind,
        version=version, works=works, time_s=time_s, shape=row["shape"],
        in_graph="CUDA-graph" in row["notes"] or "prefill" in kind,
    )  # fmt: skip


def _time_s(row, works):
    if row["time_us"]:
        return float(row["time_us"]) * 1e-6
    if row["TFLOPs"] and works:
        nominal = 3.5 if len(works) == 2 else 1.0
        return nominal * works[0].num_flops / (float(row["TFLOPs"]) * 1e12)
    return None


def _product(row, sizes, precision):
    if row["dtype"] == "fp8_block" and "timed eagerly" in row["notes"]:
        return ()  # 180 us of host time per call
    m, n, k, groups = sizes["m"], sizes["n"], sizes["k"], sizes.get("groups", 1.0)
    if "stage=bwd_grad_w" in row["shape"]:  # sizes are those of the forward product
        m, n, k = n, k, m
    element = ELEMENT_BYTES[precision]
    out = 2 if precision == "fp8" else element
    if "fp32 accumulate" in row["notes"] or "stage=bwd_grad_w" in row["shape"]:
        out = 8  # the gradient's buffer is read and written in fp32
    product = Work(
        kind="matmul", precision=precision, num_flops=2 * groups * m * n * k, batch=groups,
        memory_bytes=groups * (element * (m * k + k * n) + out * m * n), m=m, n=n, k=k,
        aligned=all(sizes[side] * element % 16 == 0 for side in ("n", "k")),
    )  # fmt: skip
    if "activation quantisation" not in row["notes"]:
        return (product,)
    return (Work(kind="memory", precision="bf16", memory_bytes=3 * m * k), product)


def _convolution(kind, shape, precision):
    size = {key: float(value) for key, value in re.findall(r"\b([WHCNKSR])=(\d+)", shape)}
    pads = [float(value) for value in re.search(r"pad=(\d+)x(\d+)", shape).groups()]
    strides = [float(value) for value in re.search(r"stride=(\d+)x(\d+)", shape).groups()]
    filters = (size["R"], size["S"])
    height, width = (
        (extent + 2 * pad - edge) // stride + 1
        for extent, pad, edge, stride in zip(
            (size["H"], size["W"]), pads, filters, strides, strict=True
        )
    )
    area = size["R"] * size["S"]
    outputs, inputs = size["N"] * height * width, size["N"] * size["H"] * size["W"]
    m, n, k = {
        "conv_fwd": (outputs, size["K"], size["C"] * area),
        "conv_bwd_input": (outputs, size["C"], size["K"] * area),
        "conv_bwd_weight": (size["C"] * area, size["K"], outputs),
    }[kind]
    element = ELEMENT_BYTES[precision]
    moved = inputs * size["C"] + outputs * size["K"] + size["C"] * area * size["K"]
    return Work(
        kind="convolution", precision=precision, memory_bytes=element * moved, m=m, n=n, k=k,
        num_flops=2 * outputs * size["K"] * size["C"] * area, filter_area=int(area),
        backward=kind != "conv_fwd", weight_gradient=kind == "conv_bwd_weight",
    )  # fmt: skip


def _recurrent(shape, sizes, precision):
    gates = _GATES[re.search(r"cell=(\w+)", shape).group(1)]
    hidden, batch, steps = sizes["hidden"], sizes["batch"], sizes["steps"]
    weights = gates * hidden * 2 * hidden
    element = ELEMENT_BYTES[precision]
    return Work(
        kind="recurrent", precision=precision, num_flops=2 * steps * batch * weights,
        memory_bytes=element * (weights + steps * batch * hidden * (gates + 2)),
        m=steps * batch, n=gates * hidden, k=2 * hidden, sequential_steps=int(steps),
    )  # fmt: skip


def _version(row):
    named = re.search(r"attention_fa(\d)_fwd", row["kind"])
    if named:
        return int(named.group(1))
    if "prefill" in row["kind"]:
        backend = re.search(r"flash_attn_fa(\d)", row["notes"])
        return int(backend.group(1)) if backend else 2
    return 2 if row["kind"] in ("attention_causal_fwd", "attention_causal_bwd") else 0


def _attention(row, sizes, precision):
    if "headdim" in sizes:
        return _figure_attention(row, sizes, precision)
    heads, groups = sizes["heads"], sizes.get("kv_heads", sizes["heads"])
    width = sizes.get("head_dim") or (sizes["qk_dim"] + sizes["v_dim"]) / 2
    work = _attention_work(
        sizes["batch"], sizes["seq"], heads, groups, width, precision, causal=True,
        backward=row["kind"].endswith("bwd"),
    )  # fmt: skip
    return (work,)


def _figure_attention(row, sizes, precision):
    if "seq" not in sizes or "causal" not in sizes:
        return ()
    heads = _HEADS_WIDTH / sizes["headdim"]
    directions = (False, True) if row["kind"].endswith("fwd_bwd") else (False,)
    return tuple(
        _attention_work(
            _TOKENS / sizes["seq"], sizes["seq"], heads, heads, sizes["headdim"], precision,
            causal=bool(sizes["causal"]), backward=backward,
        )
        for backward in directions
    )  # fmt: skip


def _attention_work(batch, length, heads, groups, width, precision, *, causal, backward):
    flops = (10 if backward else 4) * batch * heads * length**2 * width
    operands = batch * length * width * 2 * (heads + groups)
    return Work(
        kind="attention", precision=precision, num_flops=flops / 2 if causal else flops,
        memory_bytes=ELEMENT_BYTES[precision] * operands * (2 if backward else 1),
        batch=batch * heads, m=length, n=length, k=width, backward=backward,
    )  # fmt: skip


def _memory(kind, sizes, precision):
    element = ELEMENT_BYTES[precision]
    tokens = sizes.get("tokens", 0.0)
    share = sizes.get("d_ff", 0.0) / sizes.get("tp", 1.0)
    moved = {
        "layernorm": 2 * sizes.get("rows", 0.0) * sizes.get("cols", 0.0),
        "softmax": 2 * sizes.get("rows", 0.0) * sizes.get("cols", 0.0),
        "gelu": 2 * sizes.get("elements", 0.0),
        "add": 3 * tokens * sizes.get("d_model", 0.0),
        "input_layernorm": 4 * tokens * sizes.get("d_model", 0.0),  # adds the residual, too
        "mlp_act": 3 * tokens * share,
    }.get(kind, 0.0)
    if not moved:
        return ()
    return (Work(kind="memory", precision=precision, memory_bytes=element * moved),)
