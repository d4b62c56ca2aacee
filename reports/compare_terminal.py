"""A comparison on the terminal: one table, what to know before believing it, what changed."""

from __future__ import annotations

from rich.console import Console

from apex4_probe.compare_records import Comparison
from apex4_probe.reports import compare_pair_tables as pair_tables
from apex4_probe.reports import compare_tables as tables
from apex4_probe.reports import wording
from apex4_probe.reports.compare_page import headline, sources
from apex4_probe.reports.console_table import ConsoleTables


def print_comparison(comparison: Comparison, console: Console) -> None:
    printer = ConsoleTables(console)
    printer.sentence(headline(comparison), style="bold")
    printer.sentence(sources(comparison))
    for remark in comparison.remarks:
        printer.sentence(wording.prose(remark))
    printer.table(tables.terminal_table(comparison))
    flags = tables.flagged_devices(comparison)
    if flags:
        printer.heading("Before you believe a row")
        printer.facts(flags)
    cost = tables.cost_table(comparison)
    if cost:
        printer.table(cost)
    for pair in comparison.pairs:
        table = pair_tables.pair_table(pair)
        printer.heading(table.title)
        printer.sentence(pair_tables.pair_summary(pair), indent=2)
        printer.sentence(table.caption, indent=2)
        printer.facts(pair_tables.difference_facts(pair))
        for row in table.rows:
            name, unit, first, second, change, _, significant, _ = row.cells
            if significant.startswith("changed"):
                printer.sentence(f"{name}: {first} to {second} {unit} ({change}, {significant})", indent=2)
