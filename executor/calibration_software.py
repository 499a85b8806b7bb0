"""From samples of the framework to the software profile of this machine, and its file."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from executor.calibration_data import Sample
from executor.calibration_fit import provenance_of, source_of
from executor.calibration_framework import (
    BLOCKS,
    COLLECTIVES_PER_REDISTRIBUTION,
    KERNELS_PER_BLOCK,
    OPERATORS_PER_BLOCK,
    SMALL_ELEMENTS,
    unit_bytes,
)
from hardware_profiles import Cluster, SoftwareProfile, load_software
from hardware_profiles.catalog_index import shipped_path
from hardware_profiles.software_file import QUANTITIES
from hardware_profiles.units import SI_UNIT
from planner.item_costs import BACKWARD_OPERATORS
from simulator.collectives import collective_time
from simulator.groups import CollectiveKind, Group

GATHER_AND_REDUCE: tuple[CollectiveKind, CollectiveKind] = ("all_gather", "reduce_scatter")
_CALLS_PER_UNIT = 3.0
"""Collectives of a sharded unit per step: its weights forward and backward, its gradients [1]."""


def fit_software(samples: Sequence[Sample], *, cluster: Cluster, command: str) -> SoftwareProfile:
    """Return the ``local`` stack with the times that were measured here.

    Parameters
    ----------
    samples : sequence of Sample
        What the processes measured.
    cluster : Cluster
        The fitted machine; its launches are part of every call, its messages of every exchange.
    command : str
        What was run, for the source note.
    """
    source = source_of(command)
    one = {sample.kind: sample for sample in samples if not sample.kind.startswith("optimizer:")}
    base = load_software(shipped_path("local", kind="software"))
    calls = one["calls"]
    per_kernel = calls.time_s / (BLOCKS * KERNELS_PER_BLOCK)
    found = {"kernel_overhead_s": max(0.0, per_kernel - cluster.device.launch_latency_s)}
    notes = {
        "kernel_overhead_s": provenance_of([calls], source, "a step of tiny blocks, per kernel"),
    }
    if "sharded_calls" in one:
        extra = one["sharded_calls"].time_s - one["plain_calls"].time_s
        operators = BLOCKS * OPERATORS_PER_BLOCK * (1.0 + BACKWARD_OPERATORS)
        found["sharded_operator_overhead_s"] = max(0.0, extra / operators)
        notes["sharded_operator_overhead_s"] = provenance_of(
            [one["sharded_calls"]], source, "the same with DTensors split by samples"
        )
    if "sharded_units" in one:
        extra = one["sharded_units"].time_s - one["plain_units"].time_s
        moved_s = _unit_bytes_s(cluster)
        found["sharded_unit_s"] = max(0.0, extra / (BLOCKS * _CALLS_PER_UNIT) - moved_s)
        notes["sharded_unit_s"] = provenance_of(
            [one["sharded_units"], one["plain_units"]], source,
            f"blocks under fully_shard beside plain ones, per gather or reduction, less "
            f"{1e6 * moved_s:.0f} us for its bytes",
        )  # fmt: skip
    if "redistribute" in one:
        exchange = one["redistribute"]
        per_call = exchange.time_s / COLLECTIVES_PER_REDISTRIBUTION
        found["collective_call_s"] = per_call / (1.0 + math.log2(cluster.num_devices))
        notes["collective_call_s"] = provenance_of(
            [exchange], source, "CPU time of DTensor's redistribution, both ways"
        )
    if "checkpointed_calls" in one:
        extra = one["checkpointed_calls"].time_s - one["calls"].time_s - one["forward_calls"].time_s
        found["checkpoint_s"] = max(0.0, extra / BLOCKS)
        notes["checkpoint_s"] = provenance_of(
            [one["checkpointed_calls"]], source,
            "the step of tiny blocks checkpointed, less itself and a forward pass",
        )  # fmt: skip
    if "scratch" in one:
        found["fixed_memory_bytes"] = float(one["scratch"].shape[0])
        notes["fixed_memory_bytes"] = provenance_of(
            [one["scratch"]], source, "what libraries allocate on first use; the process itself "
            "is no part of a run's peak"
        )  # fmt: skip
    updates = [s for s in samples if s.kind == "optimizer:adam" and s.shape[1] == SMALL_ELEMENTS]
    for update in updates:
        found["optimizer_tensor_s"] = update.time_s / update.shape[0]
        notes["optimizer_tensor_s"] = provenance_of([update], source, "Adam on small tensors")
    return replace(base, **found, provenance={**base.provenance, **notes})  # type: ignore[arg-type]


def _unit_bytes_s(cluster: Cluster) -> float:
    """Return what the bytes of one gather or reduction of a unit take on average [s]."""
    gather_s, reduce_s = (
        _all_s(kind, unit_bytes(), cluster) - _all_s(kind, 0.0, cluster)
        for kind in GATHER_AND_REDUCE
    )
    return (2.0 * gather_s + reduce_s) / _CALLS_PER_UNIT


def _all_s(kind: CollectiveKind, num_bytes: float, cluster: Cluster) -> float:
    """Return the time of a message among all processes [s]."""
    ranks = cluster.num_devices
    group = Group(num_ranks=ranks, ranks_per_node=ranks, num_nodes=1)
    return collective_time(kind, num_bytes, group=group, cluster=cluster)


_SOURCES = "[sources."


def software_to_toml(profile: SoftwareProfile, *, command: str) -> str:
    """Return the shipped file of the stack with the measured quantities in place of the assumed.

    :func:`hardware_profiles.load_software` reads it back as ``profile``.
    """
    text = shipped_path("local", kind="software").read_text(encoding="utf-8")
    head, _, sources = text.partition(_SOURCES)
    lines = head.rstrip().splitlines()
    for key, (name, dimension, _) in QUANTITIES.items():
        origin = profile.provenance.get(name)
        if origin is None or origin.kind != "measured":
            continue
        value = getattr(profile, name)
        line = (
            f'{key} = {{ value = {value!r}, unit = "{SI_UNIT[dimension]}", source = "calibrate", '
            f'kind = "measured", note = {json.dumps(origin.note)} }}'
        )
        lines = [old for old in lines if not old.startswith(f"{key} =")] + [line]
    source = source_of(command).partition(" (retrieved")[0]
    own = f"[sources.calibrate]\ntitle = {json.dumps(source)}\nretrieved = {date.today()}\n"
    return "\n".join(lines) + f"\n\n{_SOURCES}{sources.rstrip()}\n\n{own}"
