"""Fit what collectives cost over each kind of link to a table of measurements.

Usage: python benchmarks/fit_collectives.py TABLE.csv [--write] [--only LINK] [--quick]

Per kind of link the costs of NCCL's algorithms (``hardware_profiles/collective_costs.py``) are
fitted, links inside nodes first, then networks on top of them. The search starts at NCCL's own
constants, takes the same steps every time and minimises the mean over system, ranks and collective
of the mean logarithmic error over the sizes. Printed are, per such cell and size class, predicted
over measured time before (NCCL's constants) and after. With ``--write`` the link files of the
catalogue get the result.
"""

import random
import re
import sys
from dataclasses import dataclass, replace
from math import exp, log

from collective_links import FITS, write_link
from collective_table import cluster_of, predicted_s, print_ratios, ratios, read_table

from hardware_profiles.collective_costs import NCCL_COSTS, NCCL_NETWORK_COSTS

STEPS = (0.7, 0.35, 0.18, 0.09, 0.045, 0.02)
RANGES = {
    "ring.simple.share": (0.5, 1.25), "ring.ll128.share": (0.5, 1.0), "ring.ll.share": (0.01, 0.5),
    "exchange.share": (0.5, 1.2), "exchange_small.share": (0.02, 0.3), "send.share": (0.7, 1.4),
    "in_switch.share": (0.4, 1.1),
    "tree.simple.share": (0.5, 1.05), "tree.ll128.share": (0.3, 0.95),
    "tree.ll.share": (0.005, 0.4),
}  # fmt: skip
PULL = 0.002
"""What a factor of e away from the start must gain in mean error, so that what the table does not
tell stays at NCCL's constant."""
LINEAR = {"ramp": (0.0, 2.5), "few": (-1.5, 2.5), "congestion": (0.0, 0.5)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A row to fit, with the weight of its cell."""

    row: object
    cluster: object
    weight: float


def get(costs, path):
    for name in path.split("."):
        costs = costs[name] if isinstance(costs, dict) else getattr(costs, name)
    return costs


def put(costs, path, value):
    head, _, rest = path.partition(".")
    if isinstance(costs, dict):
        return {**costs, head: put(costs[head], rest, value)}
    return replace(costs, **{head: put(getattr(costs, head), rest, value) if rest else value})


def with_costs(cluster, costs):
    """Return a cluster whose links have the costs known so far."""
    changes = {}
    for side in ("intra", "inter"):
        fabric = getattr(cluster, side)
        if fabric is not None:
            link = fabric.link
            here = f"{re.split('[:?]', cluster.name)[0]}.{side}"
            known = costs.get(here, costs.get(link.name, link.costs))
            changes[side] = replace(fabric, link=replace(link, costs=known))
    return replace(cluster, **changes)


def loss(costs, cases, link, known):
    """Return the weighted mean of |log(predicted / measured)|."""
    clusters = {}
    total = weights = 0.0
    for case in cases:
        name = id(case.cluster)
        if name not in clusters:
            clusters[name] = with_costs(case.cluster, {**known, link: costs})
        error = log(predicted_s(case.row, clusters[name]) / case.row.time_s)
        total += case.weight * abs(error)
        weights += case.weight
    return total / weights


def distance(costs, start, paths):
    """Return how far the parameters are from where they started: logarithms, or differences."""
    total = 0.0
    for path in paths:
        value, usual = get(costs, path), get(start, path)
        linear = any(path.rpartition(".")[2].startswith(name) for name in LINEAR)
        total += abs(value - usual) if linear or not usual * value else abs(log(value / usual))
    return total


def moved(costs, path, step, start, ranges):
    """Return the costs with one parameter a step away, within its range."""
    value, kind = get(costs, path), path.rpartition(".")[2]
    linear = next((LINEAR[name] for name in LINEAR if kind.startswith(name)), None)
    if linear is not None:
        low, high = linear
        return put(costs, path, round(min(high, max(low, value + step)), 4))
    usual = get(start, path)
    low, high = ranges.get(path, (usual / 10, usual * 10))
    return put(costs, path, float(f"{min(high, max(low, value * exp(step))):.4g}"))


def descend(costs, paths, cases, *, link, known, start, ranges, steps=STEPS, seed=0):
    """Return the costs that a pattern search from ``costs`` finds, and their loss."""
    order = random.Random(seed)

    def objective(trial):
        return loss(trial, cases, link, known) + PULL * distance(trial, start, paths)

    best = objective(costs)
    for step in steps:
        improved = True
        while improved:
            improved = False
            moves = [((path, sign * step),) for path in paths for sign in (1, -1)]
            for _ in range(len(paths)):
                pair = order.sample(paths, 2) if len(paths) > 1 else paths * 2
                moves.append(tuple((path, order.choice((-step, step))) for path in pair))
            order.shuffle(moves)
            for move in moves:
                trial = costs
                for path, change in move:
                    trial = moved(trial, path, change, start, ranges)
                found = objective(trial)
                if found < best * (1 - 1e-4):
                    costs, best, improved = trial, found, True
    return costs, best


def cases_of(fit, part, rows):
    """Return the rows of one part of a fit; every cell counts the same, whatever its sizes."""
    chosen = [row for row in rows if fit.takes(row) and row.kind in part.kinds]
    counts = {}
    for row in chosen:
        counts[row.key] = counts.get(row.key, 0) + 1
    return [
        Case(
            row=row,
            cluster=cluster_of(row.cluster_name, row.nodes),
            weight=min(1.0, counts[row.key] / 10) / counts[row.key],
        )
        for row in chosen
    ]


def usual_costs(fit):
    """Return NCCL's constants for a link."""
    return NCCL_COSTS if fit.one_node else NCCL_NETWORK_COSTS


def ranges_of(fit):
    """Return the ranges of a fit; over a network no ring may beat what a NIC reaches at most."""
    if fit.one_node:
        return RANGES
    names = ("ring.simple.share", "tree.simple.share", "in_switch.share")
    return {**RANGES, **dict.fromkeys(names, (0.5, fit.highest_share))}


def fit_link(fit, rows, known, *, quick):
    """Return the fitted costs of a link, part by part."""
    costs = known.get(fit.like, usual_costs(fit))
    for path, value in fit.fixed.items():
        costs = put(costs, path, value)
    start = costs
    for part in fit.parts:
        cases = cases_of(fit, part, rows)
        if not cases:
            continue
        before = loss(costs, cases, fit.link, known)
        found = [
            descend(
                costs, list(part.paths), cases, link=fit.link, known=known, start=start,
                ranges=ranges_of(fit),
                steps=STEPS[1:4] if quick else STEPS, seed=seed,
            )
            for seed in range(1 if quick else 3)
        ]  # fmt: skip
        costs, after = min(found, key=lambda one: one[1])
        print(f"{fit.link:24} {part.name:10} {len(cases):4} rows  {before:.3f} -> {after:.3f}")
    return costs


def main(arguments):
    rows, left_out = read_table(arguments[0])
    only = arguments[arguments.index("--only") + 1] if "--only" in arguments else None
    known = {}
    for fit in FITS:
        if only is None or fit.link == only:
            known[fit.link] = fit_link(fit, rows, known, quick="--quick" in arguments)
        else:
            known[fit.link] = usual_costs(fit)
    for (system, reason), found in sorted(left_out.items()):
        print(f"not used: {len(found):3} rows of {system}: {reason}")
    usual = {fit.link: usual_costs(fit) for fit in FITS}
    before, after = (
        ratios(rows, lambda name, nodes, costs=costs: with_costs(cluster_of(name, nodes), costs))
        for costs in (usual, known)
    )
    print_ratios(after, before=before)
    if "--write" in arguments:
        for fit in FITS:
            write_link(fit, known[fit.link])


if __name__ == "__main__":
    main(sys.argv[1:])
