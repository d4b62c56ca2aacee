"""The verb ``bench --sass`` on the terminal: what was counted, in three tables, and what could not be."""

from __future__ import annotations

from rich.console import Console

from apex4_probe.reports.console_table import ConsoleTables
from apex4_probe.reports.sass_table import bounds_table, executed_table, not_counted, pipes_table
from apex4_probe.sass_records import SassReport


def print_sass(report: SassReport, console: Console) -> None:
    printer = ConsoleTables(console)
    header = report.header
    printer.sentence(
        f"Counted in machine code of NVRTC {header.nvrtc}, read by nvdisasm {header.disassembler}.", style="bold"
    )
    for build in (executed_table, pipes_table, bounds_table):
        printer.table(build(report.records, report.loops))
    if report.not_counted:
        printer.heading("Not counted")
        printer.facts(not_counted(report.not_counted))
