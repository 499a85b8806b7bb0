"""Which links are fitted to which systems, and where the results go."""

from dataclasses import dataclass, field
from pathlib import Path

from hardware_profiles.collective_costs import costs_to_lines

CATALOG = Path(__file__).parents[1] / "hardware_profiles" / "catalog"


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    kinds: tuple
    paths: tuple


@dataclass(frozen=True, kw_only=True)
class Fit:
    link: str
    """Link, or fabric of one cluster as ``pcie-l40s-8.intra``."""
    systems: tuple
    parts: tuple
    like: str = ""
    """Link whose costs it starts from; what is not measured stays as there."""
    fixed: dict = field(default_factory=dict)
    one_node: bool = False
    framework: bool = False
    """Whether times taken in a framework are fitted, for want of others."""
    highest_share: float = 1.0
    """What a network may reach over its bandwidth."""
    relatives: tuple = ()
    """Links without a measurement that get the same costs, as derived."""
    files: tuple = ()
    """Clusters without a measurement whose fabric gets the same costs, as derived."""
    note: str = ""

    def takes(self, row):
        """Return whether a row is fitted: on these systems, inside or between nodes."""
        if row.system not in self.systems or row.is_peak:
            return False
        quiet = self.framework or row.kind == "send" or not row.is_framework
        return quiet and (row.nodes == 1) == self.one_node


def _all(prefix, *names):
    return tuple(f"{prefix}.{name}" for name in names)


RINGS = tuple(
    path for protocol in ("simple", "ll128", "ll")
    for path in _all(f"ring.{protocol}", "base", "hop", "share", "ramp")
)  # fmt: skip
TREES = tuple(
    path for protocol in ("simple", "ll128", "ll")
    for path in _all(f"tree.{protocol}", "base", "hop", "share", "ramp")
)  # fmt: skip
LOOPS = ("all_reduce", "all_gather", "reduce_scatter")
FEW = ("few_two_passes", "few_one_pass")
RING_PART = Part(name="rings", kinds=LOOPS, paths=RINGS + FEW)
SWITCH_PART = Part(
    name="in switch", kinds=LOOPS,
    paths=RINGS + FEW + _all("in_switch", "hop", "share", "ramp"),
)  # fmt: skip
EXCHANGE_PART = Part(
    name="exchange", kinds=("all_to_all",),
    paths=_all("exchange", "base", "share", "ramp")
    + _all("exchange_small", "base", "share", "ramp") + ("message", "few_exchanging"),
)  # fmt: skip
MESH_PART = Part(
    name="rings", kinds=LOOPS, paths=("ring.simple.share", "ring.simple.ramp", "few_two_passes")
)
NETWORK_SEND_PART = Part(name="send", kinds=("send",), paths=("send.base", "send.ramp"))
"""The rate is that of a NIC: 48 GB/s between MI300X, though 36 between H100 of one provider."""
SEND_PART = Part(name="send", kinds=("send",), paths=_all("send", "base", "share", "ramp"))
NETWORK_PART = Part(
    name="network", kinds=LOOPS,
    paths=RINGS + TREES + _all("in_switch", "base", "hop", "share", "ramp") + ("congestion",),
)  # fmt: skip
ONE_SIZE_RING_PART = Part(
    name="rings", kinds=LOOPS,
    paths=tuple(path for path in RINGS if not path.endswith("hop")),
)  # fmt: skip
ONE_SIZE_TREE_PART = Part(
    name="trees", kinds=LOOPS,
    paths=tuple(path for path in TREES if not path.endswith("hop")),
)  # fmt: skip
TWO_NODE_TREE_PART = Part(
    name="trees", kinds=LOOPS, paths=(*ONE_SIZE_TREE_PART.paths, "tree_crossings")
)
ONE_SIZE_SWITCH_PART = Part(
    name="in switch", kinds=LOOPS,
    paths=ONE_SIZE_TREE_PART.paths + _all("in_switch", "base", "share", "ramp"),
)  # fmt: skip
TREES_SWITCH_PART = Part(
    name="in switch", kinds=LOOPS, paths=TREES + _all("in_switch", "base", "hop", "share", "ramp")
)
"""With one or two numbers of nodes measured, a hop cannot be told from the fixed cost."""
INSIDE = {"exchange.hop": 0.0, "exchange_small.hop": 0.0}

FITS = (
    Fit(
        link="nvswitch2", one_node=True, fixed=INSIDE,
        systems=(
            "8xA100 node (NVLink3)", "8xA100-SXM4-80GB node", "8xA100 server (vTrain profile)",
            "4xA100 NVLink3 node", "AWS p4d.24xlarge (8xA100-40GB)", "DGX A100 class node",
        ),
        parts=(RING_PART, EXCHANGE_PART, SEND_PART),
        relatives=("nvswitch1", "nvlink3-x12", "nvlink2-x6", "nvlink1-x4"),
    ),
    Fit(
        link="nvswitch3", one_node=True, fixed=INSIDE,
        systems=(
            "8xH200-SXM node", "8xH100-SXM node", "AWS p5.48xlarge (8xH100)", "8xH200 node",
            "Azure ND H100 v5 (8xH100)", "Azure ND H200 v5 (8xH200)", "DGX H100 class node",
        ),
        parts=(SWITCH_PART, EXCHANGE_PART, SEND_PART),
        relatives=("nvlink4-x18", "nvlink4-x8"),
    ),
    Fit(
        link="nvswitch4", one_node=True, fixed=INSIDE, like="nvswitch3",
        systems=(
            "8xB200 node", "8xB300 node", "GB200 NVL tray (4 GPUs)", "GB300 NVL tray (4 GPUs)",
            "AWS p6-b200 (8xB200)",
        ),
        parts=(SWITCH_PART, EXCHANGE_PART),
        relatives=("nvlink5-x18",),
    ),
    Fit(
        link="gb200-nvl72.intra", one_node=True, like="nvswitch4", files=("gb300-nvl72",),
        systems=("GB200 NVL tray (4 GPUs)", "CoreWeave GB200 NVL72, 1 rack"),
        parts=(Part(name="rack", kinds=LOOPS, paths=_all("in_switch", "hop", "share", "ramp")),),
        note="sums in the switch of a rack; the rest as nvswitch4",
    ),
    *(
        Fit(
            link=f"{cluster}.intra", one_node=True, fixed=INSIDE, framework=framework,
            systems=(system,), parts=(RING_PART, EXCHANGE_PART), files=files,
        )
        for cluster, system, framework, files in (
            ("pcie-l40s-8", "8xL40S PCIe node", False, ()),
            ("pcie-rtx-pro-6000-8", "8xRTX PRO 6000 Blackwell PCIe Gen5 node", False,
             ("pcie-h100-8", "pcie-a100-8", "pcie-a40-8", "pcie-rtx-a6000-4")),
            ("pcie-rtx-3090-8", "8xRTX 3090 PCIe server", True, ("pcie-rtx-4090-8",)),
            ("pcie-p100-4", "8xP100 PCIe server(s) (Baidu DeepBench)", False,
             ("pcie-v100-8", "pcie-t4-8", "pcie-k20-8", "pcie-k80-8", "pcie-m40-4", "pcie-p40-8",
                 "dgx-1p-pcie")),
        )
    ),
    Fit(
        link="xgmi-mi300x", one_node=True, fixed={**INSIDE, "few_two_passes": 0.0,
        "few_one_pass": 0.0, "few_exchanging": 0.0}, systems=("8xMI300X node",),
        parts=(MESH_PART,), relatives=("xgmi-mi355x", "xgmi-mi250x", "xgmi-mi100"),
        note="the rate of rings; the rest NCCL's constants", framework=True,
    ),
    Fit(
        link="infiniband-ndr",
        systems=(
            "DGX H100 SuperPOD-class (8xH100, 8x400Gb IB)", "16 nodes x 8xH100",
            "H100 cluster (8 GPUs/node, 400Gb/GPU IB)", "OCI BM.GPU.H100.8 (8xH100, RoCE)",
            "GCP GKE DWS flex-start 2x8 GPUs (machine type not stated; RDMA-class)",
            "32 nodes x 8xH100", "DGX H100 class node", "248 nodes x 8xH200",
        ),
        parts=(NETWORK_PART, NETWORK_SEND_PART),
        relatives=(
            "infiniband-xdr", "infiniband-edr", "infiniband-fdr", "roce-400g", "roce-800g",
            "roce-200g", "slingshot-11", "omnipath-100",
        ),
    ),
    Fit(
        link="infiniband-hdr", like="infiniband-ndr", systems=("DGX A100 (8x200G HDR)",),
        parts=(ONE_SIZE_RING_PART,), note="rings; the rest as infiniband-ndr",
    ),
    Fit(
        link="efa-v1", like="infiniband-ndr",
        systems=(
            "AWS p4de.24xlarge (8xA100-80GB, EFA 4x100G)",
            "AWS p4d.24xlarge (8xA100-40GB, EFA 4x100G)",
        ),
        parts=(TWO_NODE_TREE_PART,), note="trees; the rest as infiniband-ndr",
    ),
    Fit(
        link="efa-v2", like="infiniband-ndr",
        systems=(
            "AWS p5.48xlarge (8xH100, EFA 32x100G)",  # not the excerpt on EKS: up to 2 times slower
        ),
        parts=(ONE_SIZE_SWITCH_PART,),
        note="trees and sums in the switch; the rest as infiniband-ndr",
        relatives=("efa-v3",),
    ),
    Fit(
        link="efa-v4", like="efa-v2", framework=True,
        systems=("AWS p6-b200 (8xB200, EFAv4 8x400G)", "AWS p6-b200 (8xB200, EFAv4)"),
        parts=(TREES_SWITCH_PART,), note="trees and sums in the switch; the rest as infiniband-ndr",
    ),
    Fit(
        link="tcpxo-200g", like="infiniband-ndr",
        systems=("GCP a3-megagpu-8g (8xH100, GPUDirect-TCPXO 8x200G)",),
        parts=(ONE_SIZE_RING_PART,), note="rings; the rest as infiniband-ndr",
    ),
    Fit(
        link="tcpx-200g", like="infiniband-ndr",
        systems=("GCP a3-highgpu-8g (8xH100, GPUDirect-TCPX 4x200G)",),
        highest_share=1.3,  # 25 of 19 GB/s: the floor of 0.9 ms hides part of the transfer
        parts=(ONE_SIZE_RING_PART,), note="rings; the rest as infiniband-ndr",
    ),
)  # fmt: skip

SOURCE = (
    "[sources.collectives]\n"
    'title = "collectives as published, fitted by benchmarks/fit_collectives.py"\n'
    "retrieved = 2026-11-21\n"
)


def write_link(fit, costs):
    """Write the costs into a link's or a cluster's file and into those of its relatives."""
    of = ", ".join(fit.systems)
    more = f"; {fit.note}" if fit.note else ""
    cluster, dot, side = fit.link.partition(".")
    path = CATALOG / ("clusters" if dot else "links") / f"{cluster}.toml"
    table = f"{side}.collectives" if dot else "collectives"
    _rewrite(path, table, costs, kind="measured", note=f"fitted to {of}{more}")
    note = f"as {cluster}, the nearest with measured collectives"
    for name in fit.relatives:
        _rewrite(CATALOG / "links" / f"{name}.toml", table, costs, kind="derived", note=note)
    for name in fit.files:
        _rewrite(CATALOG / "clusters" / f"{name}.toml", table, costs, kind="derived", note=note)


def _rewrite(path, table, costs, *, kind, note):
    """Replace the table of collectives in a profile."""
    kept, current = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        current = line.strip("[]") if line.startswith("[") else current
        if current not in (table, "sources.collectives"):
            kept.append(line)
    head, mark, sources = ("\n".join(kept).rstrip() + "\n").partition("\n[sources.")
    lines = [f"[{table}]", 'source = "collectives"', f'kind = "{kind}"', f'note = "{note}"']
    body = "\n".join(lines + costs_to_lines(costs)) + "\n"
    path.write_text(
        f"{head.rstrip()}\n\n{body}{mark}{sources.rstrip()}\n\n{SOURCE}", encoding="utf-8"
    )
