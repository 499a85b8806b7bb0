"""Hold the collective model against a table of measurements.

Usage: python benchmarks/collectives_check.py TABLE.csv [--algorithms]

The table has the columns system, nodes, gpus, collective, bytes, time_us and library_version, as
nccl-tests results are usually kept. Printed is the geometric mean of model over measured time per
system, collective and size class; below 1 the model is optimistic.
"""

import csv
import sys
from collections import defaultdict
from math import exp, log
from pathlib import Path

from hardware_profiles import load_cluster
from simulator.collectives import collective_algorithm, collective_time
from simulator.groups import axis_group

CLUSTERS = {
    "8xA100 node (NVLink3)": "dgx-a100-80g",
    "8xA100-SXM4-80GB node": "dgx-a100-80g",
    "4xA100 NVLink3 node": "dgx-a100-80g",
    "DGX A100 (8x200G HDR)": "dgx-a100-80g",
    "DGX A100 (NVL3 + 8x200Gb)": "dgx-a100-80g",
    "AWS p4de (8xA100-80, 4x100G EFA)": "aws-p4de",
    "DGX H100 class node": "dgx-h100",
    "8xH100-SXM node": "dgx-h100",
    "8xH200-SXM node": "dgx-h200",
    "8xH200 node (p5en class)": "aws-p5en",
    "DGX H100 SuperPOD-class (8xH100, 8x400Gb IB)": "dgx-h100",
    "H100 cluster (8 GPUs/node, 400Gb/GPU IB)": "dgx-h100",
    "DGX H100 (8x400Gb)": "dgx-h100",
    "GCP a3-megagpu-8g (8xH100, GPUDirect-TCPXO 8x200G)": "gcp-a3-mega",
    "GCP a3-highgpu-8g (8xH100, GPUDirect-TCPX 4x200G)": "gcp-a3-high",
    "8xB200 node": "dgx-b200",
    "8xB300 node": "dgx-b300",
    "GB200 NVL tray (4 GPUs)": "gb200-nvl72",
    "8xMI300X node": "mi300x-8",
    "8xL40S PCIe node": "pcie-l40s-8",
    "DGX-1 (4x100G EDR)": "dgx-1v-32g",
    "8xV100 NVLink2": "dgx-1v-32g",
    "TPU v5e 4-chip ring without wraparound": "tpu-v5e",
}
PREFIXES = {
    "AWS p5 ": "aws-p5",
    "AWS p5en": "aws-p5en",
    "AWS p6-b200": "aws-p6-b200",
    "AWS p4d": "aws-p4de",
}
KINDS = {"alltoall": "all_to_all", "sendrecv": "send"}
NOT_THE_LIBRARY = ("all-reduce", "trt", "vllm", "sglang")
CLASSES = ((64e3, "<=64k"), (1e6, "<1M"), (3e7, "<30M"), (2e8, "<200M"), (1e99, "more"))


def cluster_name(system):
    for prefix, name in PREFIXES.items():
        if system.startswith(prefix):
            return name
    return CLUSTERS.get(system)


def main(path, *, show_algorithms):
    ratios = defaultdict(lambda: defaultdict(list))
    algorithms = defaultdict(set)
    clusters = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name = cluster_name(row["system"])
        kind = KINDS.get(row["collective"], row["collective"])
        if name is None or not (row["time_us"] and row["bytes"]) or not row["nodes"].isdigit():
            continue
        if kind not in {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"}:
            continue
        if any(word in row["library_version"].lower() for word in NOT_THE_LIBRARY):
            continue
        nodes, ranks = int(row["nodes"]), int(float(row["gpus"]))
        count = 16 if name.startswith("tpu") else nodes  # a line of 4 in a slice of 4 x 4
        if (name, count) not in clusters:
            clusters[name, count] = load_cluster(f"{name}:{count}")
        cluster = clusters[name, count]
        group = axis_group(
            size=ranks,
            stride=1 if ranks > nodes or nodes == 1 else cluster.devices_per_node,
            devices_per_node=cluster.devices_per_node,
        )
        case = {"group": group, "cluster": cluster}
        size, key = float(row["bytes"]), (row["system"], nodes, ranks, kind)
        ratio = collective_time(kind, size, **case) * 1e6 / float(row["time_us"])
        label = next(label for limit, label in CLASSES if size <= limit)
        ratios[key][label].append(ratio)
        algorithms[key].add(collective_algorithm(kind, size, **case))
    labels = [label for _, label in CLASSES]
    print(f"{'system':44} nodes ranks {'collective':15}" + "".join(f"{x:>8}" for x in labels))
    for key, found in sorted(ratios.items()):
        cells = "".join(
            f"{exp(sum(map(log, found[x])) / len(found[x])):8.2f}" if found[x] else "       -"
            for x in labels
        )
        more = " " + ",".join(sorted(algorithms[key])) if show_algorithms else ""
        print(f"{key[0][:44]:44} {key[1]:5} {key[2]:5} {key[3]:15}{cells}{more}")


if __name__ == "__main__":
    main(sys.argv[1], show_algorithms="--algorithms" in sys.argv[2:])
