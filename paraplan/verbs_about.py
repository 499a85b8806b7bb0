"""Verbs that tell: profiles, trace."""

from dataclasses import asdict
from typing import Any

from paraplan.console import print_json, print_text

KINDS = ("device", "link", "cluster", "software")
GIGA = 1e9
MEGA = 1e6

_TRACE_WIDTH = 100
"""Columns that the numbers of the largest models take; narrower, they would be cut [1]."""


def show_profiles(name: str | None, *, as_json: bool) -> None:
    """List all profiles by kind, or show one with value, unit, source and kind per quantity."""
    from hardware_profiles import catalog_names, describe_profile

    if name is None:
        listing = {kind: list(catalog_names(kind)) for kind in KINDS}
        if as_json:
            print_json(listing)
            return
        for kind, names in listing.items():
            print_text(f"{kind} ({len(names)}): {', '.join(names)}")
        return
    described = describe_profile(name)
    if as_json:
        print_json(described)
        return
    for key, value in described.items():
        _print_field(key, value)


def _print_field(key: str, value: Any, indent: int = 0) -> None:
    lead = "  " * indent
    if isinstance(value, dict) and "value" in value and "unit" in value:
        note = f"; {value['note']}" if value.get("note") else ""
        print_text(
            f"{lead}{key}: {value['value']} {value['unit']}  "
            f"[{value.get('kind', '')}, {value.get('source', '')}{note}]"
        )
    elif isinstance(value, dict):
        print_text(f"{lead}{key}:")
        for inner, item in value.items():
            _print_field(str(inner), item, indent + 1)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        print_text(f"{lead}{key}:")
        for number, item in enumerate(value):
            _print_field(str(number), item, indent + 1)
    else:
        print_text(f"{lead}{key}: {value}")


def show_trace(model: str, *, sequence_length: int | None, batch_size: int, as_json: bool) -> None:
    """Show units, operators, parameters, FLOPs and memory of a traced model."""
    from paraplan.planning import at_least_one, trace
    from planner.graph_math import trace_summary

    at_least_one("--global-batch", batch_size)
    graph = trace(model, sequence_length=sequence_length)
    rows = [asdict(row) for row in trace_summary(graph, batch_size=batch_size)]
    if as_json:
        print_json(
            {
                "name": graph.name,
                "source": graph.source,
                "num_parameters": graph.num_parameters,
                "active_parameters": graph.active_parameters,
                "sequence_length": graph.sequence_length,
                "batch_size": batch_size,
                "num_operators": graph.graph.number_of_nodes(),
                "units": rows,
                "warnings": [asdict(warning) for warning in graph.warnings],
            }
        )
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, _TRACE_WIDTH)
    console.print(
        f"[bold]{graph.name}[/]: {graph.num_parameters:,} parameters, "
        f"{graph.graph.number_of_nodes()} operators in {len(graph.units)} units, "
        f"batch {batch_size} x {graph.sequence_length} positions"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("unit")
    for title in (
        "times",
        "operators",
        "parameters",
        "forward\nGFLOP",
        "backward\nGFLOP",
        "saved MB",
    ):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['count']}",
            f"{row['num_operators']}",
            f"{row['num_parameters']:,}",
            f"{row['forward_flops'] / GIGA:,.1f}",
            f"{row['backward_flops'] / GIGA:,.1f}",
            f"{row['saved_bytes'] / MEGA:,.1f}",
        )
    console.print(table)
    for warning in graph.warnings:
        console.print(f"warning: {warning.subject}: {warning.message}", style="yellow")
