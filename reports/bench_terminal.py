"""The verb ``bench`` on the terminal: what was timed, tables, what has no time and why."""

from __future__ import annotations

from rich.console import Console

from apex4_probe.bench_records import Bench
from apex4_probe.reports import wording
from apex4_probe.reports.bench_table import bench_tables, chain_table, mean_tables, refusals
from apex4_probe.reports.console_table import ConsoleTables

WIDE = 150  # columns from which a line holds a tile's name beside the figures


def print_bench(bench: Bench, console: Console) -> None:
    printer = ConsoleTables(console)
    header = bench.header
    name = wording.clean(header.device.name)
    printer.sentence(f"{name}: the GEMMs of {wording.clean(header.model)}, timed.", style="bold")
    for warning in header.warnings:
        printer.sentence(f"Warning: {wording.prose(warning)}.", style="yellow")
    if not bench.records:
        printer.absent("GEMMs", "Nothing could be timed; the reasons stand below.")
    for table in bench_tables(bench, tiles=console.width >= WIDE):
        printer.table(table)
    for table in mean_tables(bench):
        printer.table(table)
    if bench.chains:
        printer.table(chain_table(bench))
    if bench.refused:
        printer.heading("Not timed")
        printer.facts(refusals(bench))
