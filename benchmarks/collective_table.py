"""A table of measured collectives, and the catalogue's cluster of each system in it."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from math import exp, log
from pathlib import Path
from statistics import median

from hardware_profiles import load_cluster
from simulator.collectives.selection import collective_candidates
from simulator.groups import Group, axis_group

CLUSTERS = {
    "8xA100 node (NVLink3)": "dgx-a100-80g",
    "8xA100-SXM4-80GB node": "dgx-a100-80g",
    "8xA100 server (vTrain profile)": "dgx-a100-80g",
    "4xA100 NVLink3 node": "dgx-a100-80g",
    "2xA100 NV12 pair": "dgx-a100-80g",
    "8xA100 NVLink3": "dgx-a100-80g",
    "A100-40GB host (4 GPUs, NVLink3)": "dgx-a100-40g",
    "DGX A100 class node": "dgx-a100-80g",
    "DGX A100 (8x200G HDR)": "dgx-a100-80g",
    "DGX A100 (NVL3 + 8x200Gb)": "dgx-a100-80g",
    "Azure NDm A100 v4": "azure-ndm-a100-v4",
    "HGX A100-80GB, 4x200G IB": "dgx-a100-80g?nics_per_node=4",
    "3 nodes x 8xA100-40GB, 4xHDR200": "dgx-a100-40g?nics_per_node=4",
    "DGX H100 class node": "dgx-h100",
    "8xH100-SXM node": "dgx-h100",
    "4xH100 node": "dgx-h100",
    "8xH100 NVLink4": "dgx-h100",
    "8xH100 NVLink4 SHARP": "dgx-h100",
    "8xH200-SXM node": "dgx-h200",
    "8xH200 node": "dgx-h200",
    "8xH200 node (p5en class)": "aws-p5en",
    "Azure ND H100 v5": "azure-nd-h100-v5",
    "Azure ND H100 v5 (8xH100)": "azure-nd-h100-v5",
    "Azure ND H200 v5 (8xH200)": "azure-nd-h200-v5",
    "16 nodes x 8xH100": "dgx-h100",
    "32 nodes x 8xH100": "dgx-h100",
    "248 nodes x 8xH200": "dgx-h200",
    "DGX H100 SuperPOD-class (8xH100, 8x400Gb IB)": "dgx-h100",
    "CoreWeave H100 (8xH100, 8x400G NDR, IB SHARP)": "dgx-h100",
    "H100 cluster (8 GPUs/node, 400Gb/GPU IB)": "dgx-h100",
    "H100 8-GPU nodes (shared cluster)": "dgx-h100",
    "DGX H100 (8x400Gb)": "dgx-h100",
    "DGX H100 (NVL4 + 8x400Gb)": "dgx-h100",
    "DGX H100 SHARP 8x400Gb": "dgx-h100",
    "HGX H100 virtual machines, 8 NICs (InfiniBand)": "dgx-h100",
    "HGX H100, 8x400G RoCEv2": "dgx-h100",
    "OCI BM.GPU.H100.8 (8xH100, RoCE)": "dgx-h100",
    "GCP GKE DWS flex-start 2x8 GPUs (machine type not stated; RDMA-class)": "dgx-h200",
    "GCP a3-megagpu-8g (8xH100, GPUDirect-TCPXO 8x200G)": "gcp-a3-mega",
    "GCP a3-highgpu-8g (8xH100, GPUDirect-TCPX 4x200G)": "gcp-a3-high",
    "AWS p4d.24xlarge (8xA100-40GB)": "aws-p4d",
    "AWS p4d.24xlarge (8xA100-40GB, EFA 4x100G)": "aws-p4d",
    "AWS p4de.24xlarge (8xA100-80GB, EFA 4x100G)": "aws-p4de",
    "AWS p5.48xlarge (8xH100)": "aws-p5",
    "AWS p5.48xlarge (8xH100, EFA 32x100G)": "aws-p5",
    "AWS p5.48xlarge on EKS (8xH100, EFA 32x100G)": "aws-p5",
    "AWS p5en (8xH200, EFAv3 16x200G)": "aws-p5en",
    "AWS p6-b200 (8xB200)": "aws-p6-b200",
    "AWS p6-b200 (8xB200, EFAv4 8x400G)": "aws-p6-b200",
    "AWS p6-b200 (8xB200, EFAv4)": "aws-p6-b200",
    "AWS p3dn.24xlarge (8xV100-32GB, EFA 100G)": "aws-p3dn",
    "8xB200 node": "dgx-b200",
    "8xB300 node": "dgx-b300",
    "8xB200 NVLink5": "dgx-b200",
    "8xB200 NVLink5 SHARP": "dgx-b200",
    "GB200 NVL tray (4 GPUs)": "gb200-nvl72",
    "GB300 NVL tray (4 GPUs)": "gb300-nvl72",
    "CoreWeave GB200 NVL72, 1 rack": "gb200-nvl72",
    "CoreWeave GB200 NVL72, 2 racks": "gb200-nvl72",
    "Azure GB300 NVL72 rack": "gb300-nvl72",
    "8xMI300X node": "mi300x-8",
    "2 x 8xMI300-class nodes, 8x400G NICs": "mi300x-8",
    "8xMI350X nodes": "mi355x-8",
    "8xL40S PCIe node": "pcie-l40s-8",
    "8xRTX 3090 PCIe server": "pcie-rtx-3090-8",
    "8xRTX PRO 6000 Blackwell PCIe Gen5 node": "pcie-rtx-pro-6000-8",
    "8xP100 PCIe server(s) (Baidu DeepBench)": "pcie-p100-4?devices_per_node=8",
    "8xM40 PCIe server(s), FDR InfiniBand (Baidu DeepBench)": "pcie-m40-4?devices_per_node=8",
    "8xH100 HGX virtual machine": "dgx-h100",
    "A100-80GB nodes, 8x100G RoCE": "dgx-a100-80g?nic_bandwidth=100Gb/s",
    "DGX-1 (4x100G EDR)": "dgx-1v-32g",
    "8xV100 NVLink2": "dgx-1v-32g",
    "JeanZay 4xV100-16GB node (NVLink2)": "dgx-1v-16g?devices_per_node=4",
    "TPU v5e 4-chip ring without wraparound": "tpu-v5e:16",
    "V100-16GB host (4 GPUs, NVLink2)": "dgx-1v-16g?devices_per_node=4",
    "TPU v6e-256 slice": "tpu-v6e:256",
    "TPU7x (Ironwood) slice 2x2x1 (4 chips, 8 devices)": "tpu-v7:4",
    "TPU7x (Ironwood) slice 2x2x2 (8 chips, 16 devices)": "tpu-v7:8",
}
"""The catalogue's name of each system; the others have no such machine in the catalogue."""
RACKS = ("gb200-nvl72", "gb300-nvl72")
KINDS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "broadcast": "broadcast",
    "alltoall": "all_to_all",
    "sendrecv": "send",
}
NOT_THE_LIBRARY = ("all-reduce", "trt", "vllm", "sglang", "mscclpp", "msccl++")
"""Kernels of serving stacks, other libraries: another product, not judged here."""
BUS_FACTOR = {"all_reduce": 2.0, "broadcast": 0.0, "send": 0.0}
SIZES = ((64e3, "<=64k"), (1e6, "<1M"), (1e7, "<10M"), (1e8, "<100M"), (1e99, "more"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One measured collective, or a published peak rate taken at 8 GiB."""

    system: str
    cluster_name: str
    nodes: int
    ranks: int
    kind: str
    num_bytes: float
    time_s: float
    is_peak: bool
    is_framework: bool
    """Timed in a framework with a host synchronisation per call."""
    only: str
    """Algorithm the run was forced to; empty if none."""

    @property
    def key(self):
        return (self.system, self.nodes, self.ranks, self.kind)

    @property
    def size_class(self):
        return next(label for limit, label in SIZES if self.num_bytes <= limit)


def read_table(path):
    """Return the rows on machines of the catalogue, and the systems left out with the reason."""
    rows, left_out = [], {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = measured(row)
            if isinstance(found, str):
                left_out.setdefault((row["system"], found), []).append(row)
            else:
                rows.append(found)
    return rows, left_out


def measured(row):
    """Return a row as a measurement, or why it is none."""
    name = CLUSTERS.get(row["system"])
    kind = KINDS.get(row["collective"])
    if name is None:
        return "no such machine in the catalogue"
    if kind is None:
        return f"{row['collective']} is not modelled"
    if any(word in row["library_version"].lower() for word in NOT_THE_LIBRARY):
        return "not NCCL but " + row["library_version"]
    if not (row["gpus"] and (row["nodes"].isdigit() or name.startswith("tpu"))):
        return "the size of the group is not stated"
    nodes, ranks = int(row["nodes"] or 1), int(float(row["gpus"]))
    if row["system"] == "DGX A100 class node" and nodes > 1:
        return "7.8 GB/s over a network not stated, no 200 Gb/s one"
    if name in RACKS:  # a rack is one node of the catalogue, a tray is a part of it
        nodes = max(1, nodes // 18)
    is_peak = not (row["bytes"] and row["time_us"])
    if is_peak and not row["busbw_GBps"]:
        return "neither a size nor a rate is stated"
    if is_peak:
        num_bytes = float(row["bytes"] or 2.0**33)
        factor = BUS_FACTOR.get(kind, 1.0) * (ranks - 1) / ranks or 1.0
        time_s = factor * num_bytes / (float(row["busbw_GBps"]) * 1e9)
    else:
        num_bytes, time_s = float(row["bytes"]), float(row["time_us"]) * 1e-6
    if row["system"].startswith("TPU7x"):  # both devices of a chip gather, over four chips
        num_bytes, ranks = 2 * num_bytes, 4
    notes = row["notes"].lower()
    framework = "host sync" in notes or "framework timing" in notes or "torch" in notes
    return Measured(
        system=row["system"], cluster_name=name, nodes=nodes, ranks=ranks, kind=kind,
        num_bytes=num_bytes, time_s=time_s, is_peak=is_peak, is_framework=framework,
        only="ring" if re.search(r"\bring\b", notes) and kind == "all_reduce" else "",
    )  # fmt: skip


@cache
def cluster_of(name, nodes):
    """Return the cluster of a system at its number of nodes."""
    if ":" in name:
        return load_cluster(name)
    bare, question, overrides = name.partition("?")
    return load_cluster(f"{bare}:{nodes}{question}{overrides}")


def group_of(row, cluster):
    """Return the group of a measurement: whole nodes, or one rank in each of them."""
    per_node = cluster.devices_per_node
    one_each = row.nodes > 1 and row.ranks == row.nodes
    if row.kind == "send" and row.nodes > 1:
        pairs = 1 if one_each else per_node  # every rank sends to its like in the other node
        return Group(num_ranks=2, ranks_per_node=1, num_nodes=2, concurrent=pairs)
    group = axis_group(
        size=row.ranks, stride=per_node if one_each else 1, devices_per_node=per_node
    )
    if one_each:  # nobody else uses the other NICs meanwhile
        group = Group(num_ranks=row.ranks, ranks_per_node=1, num_nodes=row.nodes)
    return group


def predicted_s(row, cluster):
    """Return the model's time of a measurement [s]."""
    found = collective_candidates(
        row.kind, row.num_bytes, group=group_of(row, cluster), cluster=cluster
    )
    times = [time_s for name, time_s in found if name.startswith(row.only)] if row.only else []
    return min(times or [time_s for _, time_s in found])


def ratios(rows, make_cluster=cluster_of):
    """Return row and predicted over measured time, per cell of system, nodes, ranks, collective."""
    found, clusters = {}, {}
    for row in rows:
        name = (row.cluster_name, row.nodes)
        if name not in clusters:
            clusters[name] = make_cluster(*name)
        ratio = predicted_s(row, clusters[name]) / row.time_s
        found.setdefault(row.key, []).append((row, ratio))
    return found


def print_ratios(cells, *, before=None):
    """Print every cell: median |error|, and the geometric mean of the ratio per size class."""
    labels = [label for _, label in SIZES]
    head = (
        f"{'system':44} nodes ranks {'collective':15}" + ("before " if before else "") + " error |"
    )
    print(head + "".join(f"{label:>7}" for label in labels))
    for key in sorted(cells):
        columns = ([before[key]] if before else []) + [cells[key]]
        errors = "".join(f"{median(abs(ratio - 1) for _, ratio in x):6.1%} " for x in columns)
        classes = ""
        for label in labels:
            logs = [log(ratio) for row, ratio in cells[key] if row.size_class == label]
            classes += f"{exp(sum(logs) / len(logs)):7.2f}" if logs else "      -"
        row = cells[key][0][0]
        flags = " peak" * row.is_peak + " framework" * row.is_framework
        print(f"{key[0][:44]:44} {key[1]:5} {key[2]:5} {key[3]:15}{errors}|{classes}{flags}")
    good = sum(median(abs(ratio - 1) for _, ratio in cell) <= 0.1 for cell in cells.values())
    print(f"{good} of {len(cells)} cells have a median |error| of at most 10 %")
