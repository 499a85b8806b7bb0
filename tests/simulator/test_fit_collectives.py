"""The fit of collectives: finds known costs again, the same ones every time."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import collective_links
import collective_table
import fit_collectives

from hardware_profiles.collective_costs import NCCL_COSTS, TransferCosts

TRUE = replace(
    NCCL_COSTS,
    ring={
        "simple": TransferCosts(base=2.5, hop=2.0, share=0.95, ramp=0.5),
        "ll128": TransferCosts(base=2.0, hop=1.4, share=0.8, ramp=0.9),
        "ll": TransferCosts(base=1.1, hop=1.2, share=0.25, ramp=0.5),
    },
)
SYSTEM = "8xA100-SXM4-80GB node"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table that a machine with the true costs would give."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    columns = ["system", "nodes", "gpus", "collective", "bytes", "time_us", "busbw_GBps",
               "library_version", "notes"]  # fmt: skip
    cluster = fit_collectives.with_costs(
        collective_table.cluster_of("dgx-a100-80g", 1), {"nvswitch2": TRUE}
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for ranks in (2, 4, 8):
            for kind in ("all_reduce", "all_gather"):
                for power in range(10, 31, 2):
                    row = {"system": SYSTEM, "nodes": 1, "gpus": ranks, "collective": kind,
                           "bytes": 2**power, "time_us": 1}  # fmt: skip
                    found = collective_table.measured(dict.fromkeys(columns, "") | {
                        name: str(value) for name, value in row.items()})  # fmt: skip
                    row["time_us"] = collective_table.predicted_s(found, cluster) * 1e6
                    writer.writerow(row)
        writer.writerow({"system": "a machine nobody has", "nodes": 1, "gpus": 2,
                         "collective": "all_reduce", "bytes": 8, "time_us": 1})  # fmt: skip
    return path


def fitted(table):
    rows, _ = collective_table.read_table(table)
    fit = next(fit for fit in collective_links.FITS if fit.link == "nvswitch2")
    return fit_collectives.fit_link(fit, rows, {}, quick=True), rows


def test_fit_comes_closer_and_is_repeatable(table):
    costs, rows = fitted(table)
    fit = next(fit for fit in collective_links.FITS if fit.link == "nvswitch2")
    cases = fit_collectives.cases_of(fit, fit.parts[0], rows)
    before = fit_collectives.loss(NCCL_COSTS, cases, "nvswitch2", {})
    after = fit_collectives.loss(costs, cases, "nvswitch2", {})
    assert after < before / 2
    assert after < 0.05
    assert fitted(table)[0] == costs


def test_rows_that_are_not_used_are_told_with_the_reason(table):
    _, left_out = collective_table.read_table(table)
    assert list(left_out) == [("a machine nobody has", "no such machine in the catalogue")]


def test_a_written_link_is_read_back(tmp_path, monkeypatch):
    from hardware_profiles import load_link

    (tmp_path / "links").mkdir()
    name = "infiniband-hdr"
    source = collective_links.CATALOG / "links" / f"{name}.toml"
    text = source.read_text(encoding="utf-8")
    target = tmp_path / "links" / f"{name}.toml"
    target.write_text(text, encoding="utf-8")
    monkeypatch.setattr(collective_links, "CATALOG", tmp_path)
    fit = collective_links.Fit(link=name, systems=("ours",), parts=())
    collective_links.write_link(fit, TRUE)
    link = load_link(target)
    assert link.costs == TRUE
    assert link.provenance["costs"].note == "fitted to ours"
    collective_links.write_link(fit, load_link(source).costs)
    assert load_link(target).costs == load_link(source).costs
