"""The GPUs of a host on the terminal: one screen, the odd one out first."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from apex4_probe.deployment import Profile
from apex4_probe.host_records import Host
from apex4_probe.reports import host_tables as tables
from apex4_probe.reports.console_table import ConsoleTables
from apex4_probe.reports.link_tables import link_table


def print_host(host: Host, profiles: Mapping[int, Profile], console: Console) -> None:
    """Print the host's tables and what stands out; ``profiles`` by CUDA's number."""
    printer = ConsoleTables(console)
    printer.console.print()
    printer.sentence(tables.headline(host), style="bold")
    for table in (tables.host_table(host, profiles), tables.together_table(host), link_table(host)):
        if table.rows:
            printer.table(table)
    if note := tables.all_reduce(host):
        printer.sentence(note, indent=2)
    told = tables.sentences(host)
    if told:
        printer.heading("What stands out")
        for sentence in told:
            printer.sentence(sentence, indent=2)
