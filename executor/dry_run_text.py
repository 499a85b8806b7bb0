"""A dry run as JSON and as a table."""

from collections.abc import Iterable
from typing import Any

from executor.dry_run import DryRun, RankComparison
from executor.dry_run_counts import NOTHING, Count, Key, counts_to_json
from executor.dry_run_position import KnownDifference


def dry_run_to_json(result: DryRun) -> dict[str, Any]:
    """Return the object that ``run --dry-run --json`` prints.

    ``collectives_*`` at the top are those of the first probed rank; ``ranks`` has all of them.
    """
    ranks = [_rank_to_json(rank) for rank in result.ranks]
    return {
        "strategy": result.strategy,
        "model": result.model,
        "num_processes": result.num_processes,
        "num_microbatches": result.num_microbatches,
        "collectives_simulated": ranks[0]["collectives_simulated"],
        "collectives_issued": ranks[0]["collectives_issued"],
        "known_differences": ranks[0]["known_differences"],
        "matches": result.matches,
        "differences": list(result.differences),
        "ranks": ranks,
        "notes": list(result.notes),
    }


def _rank_to_json(rank: RankComparison) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "pipeline_rank": rank.pipeline_rank,
        "collectives_simulated": counts_to_json(rank.simulated),
        "collectives_issued": counts_to_json(rank.issued),
        "known_differences": [
            {"axis": axis, "kind": kind, "count": change.count, "bytes": change.num_bytes,
             "reason": reason}
            for axis, kind, change, reason in _summed(rank.known)
        ],
        "matches": not rank.unexplained,
    }  # fmt: skip


def _summed(known: Iterable[KnownDifference]) -> list[tuple[str, str, Count, str]]:
    """Return differences of one reason and collective once."""
    found: dict[tuple[Key, str], Count] = {}
    for entry in known:
        key = ((entry.axis, entry.kind), entry.reason)
        found[key] = found.get(key, NOTHING) + entry.change
    return [
        (axis, kind, change, reason)
        for ((axis, kind), reason), change in found.items()
        if change != NOTHING
    ]


def dry_run_text(result: DryRun) -> str:
    """Return the table for people, one block per probed rank."""
    lines = [
        f"dry run of {result.strategy} on {result.num_processes:,} pretended ranks, "
        f"{result.num_microbatches} microbatches; collectives of one step per rank",
    ]
    for rank in result.ranks:
        lines += ["", f"rank {rank.rank} (pipeline position {rank.pipeline_rank})"]
        lines.append(f"  {'axis':<6}{'kind':<16}{'issued':>22}{'simulated':>22}")
        for key in sorted({*rank.issued, *rank.simulated}):
            issued = _told(rank.issued.get(key, NOTHING))
            simulated = _told(rank.simulated.get(key, NOTHING))
            lines.append(f"  {key[0]:<6}{key[1]:<16}{issued:>22}{simulated:>22}")
        lines += [
            f"  known: {axis} {kind} {change.count:+g}, {change.num_bytes:+,.0f} B: {reason}"
            for axis, kind, change, reason in _summed(rank.known)
        ]
    lines += ["", *(f"note: {note}" for note in result.notes)]
    verdict = "torch issues what the simulator says"
    if not result.matches:
        verdict = "\n".join(["torch does NOT issue what the simulator says:", *result.differences])
    return "\n".join([*lines, verdict])


def _told(count: Count) -> str:
    if count == NOTHING:
        return "-"
    return f"{count.count:g} x, {count.num_bytes:,.0f} B"
