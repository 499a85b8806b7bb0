"""Hold the operator model against a table of measured kernels.

Usage: python benchmarks/operators_check.py TABLE.csv

The table has the columns device, kind, shape (``M=4096 N=8192 K=8192``, or ``batch= seq= heads=
head_dim=``), dtype, time_us and TFLOPs. Printed is the geometric mean of model over measured time
and the spread (10 % to 90 %) by size; below 1 the model is optimistic.
"""

import csv
import re
import sys
from collections import defaultdict
from dataclasses import replace
from math import exp, log
from pathlib import Path

from hardware_profiles import load_device, load_software
from simulator.operators import operator_time
from simulator.work import Work

DEVICES = {
    "V100 SXM2 (DGX-1)": "v100-sxm2-16gb",
    "P100 PCIe": "p100-pcie-16gb",
    "T4": "t4",
    "A40": "a40",
    "A100 80GB": "a100-sxm4-80gb",
    "A100 80GB SXM": "a100-sxm4-80gb",
    "A100 SXM 80GB": "a100-sxm4-80gb",
    "A100 PCIe 80GB": "a100-pcie-80gb",
    "H100": "h100-sxm5",
    "H100 SXM": "h100-sxm5",
    "H200": "h200-sxm5",
    "B200": "b200-sxm",
    "B300": "b300-sxm",
    "GB200": "gb200",
    "L40S": "l40s",
}
PRECISIONS = {
    "fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16", "fp8": "fp8",
    "fp16 in, fp32 acc": "fp16",
}  # fmt: skip
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
CLASSES = ((1e9, "<1 GFLOP"), (3e10, "<30"), (3e11, "<300"), (1e99, "more"))


def gemm_work(sizes, precision):
    m, n, k = sizes["m"], sizes["n"], sizes["k"]
    element = ELEMENT_BYTES[precision]
    return Work(
        kind="matmul", precision=precision, num_flops=2 * m * n * k,
        memory_bytes=element * (m * k + k * n + m * n), m=m, n=n, k=k,
    )  # fmt: skip


def attention_work(sizes, precision):
    batch, length, heads, width = (sizes[x] for x in ("batch", "seq", "heads", "head_dim"))
    groups = sizes.get("kv_heads", heads)
    return Work(
        kind="attention", precision=precision, num_flops=2 * batch * heads * length**2 * width,
        memory_bytes=2 * batch * length * width * 2 * (heads + groups),
        batch=batch * heads, m=length, n=length, k=width,
    )  # fmt: skip


def work_of(row, precision):
    sizes = {key.lower(): float(value) for key, value in re.findall(r"(\w+)=(\d+)", row["shape"])}
    if row["kind"].startswith("gemm") and {"m", "n", "k"} <= set(sizes):
        return gemm_work(sizes, precision)
    if row["kind"] == "attention_prefill_causal":
        return attention_work(sizes, precision)
    return None


def quantile(values, share):
    return sorted(values)[int(share * (len(values) - 1))]


def main(path):
    software = replace(load_software("eager"), kernel_overhead_s=0.0)
    devices = {name: load_device(name) for name in set(DEVICES.values())}
    ratios = defaultdict(lambda: defaultdict(list))
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name, precision = DEVICES.get(row["device"]), PRECISIONS.get(row["dtype"])
        if name is None or precision is None or not row["time_us"]:
            continue
        device, work = devices[name], work_of(row, precision)
        if work is None or precision not in device.peak_flops_per_s:
            continue
        ratio = operator_time(work, device=device, software=software) * 1e6 / float(row["time_us"])
        label = next(label for limit, label in CLASSES if work.num_flops <= limit)
        ratios[row["device"], work.kind, precision][label].append(ratio)
    print(f"{'device':20} {'kind':10} {'':5}" + "".join(f"{label:>22}" for _, label in CLASSES))
    for key, found in sorted(ratios.items()):
        cells = ""
        for _, label in CLASSES:
            values = found[label]
            text = "-"
            if values:
                mean = exp(sum(map(log, values)) / len(values))
                text = f"{mean:.2f} ({quantile(values, 0.1):.2f}-{quantile(values, 0.9):.2f})"
            cells += f"{text:>22}"
        print(f"{key[0]:20} {key[1]:10} {key[2]:5}{cells}")


if __name__ == "__main__":
    main(sys.argv[1])
