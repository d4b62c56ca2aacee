"""A predicted profile on the terminal: as any other, then every predicted time with its error bar."""

from __future__ import annotations

from rich.console import Console

from apex4_probe.deployment import LayerTime, Profile
from apex4_probe.reports import tables, verdict, wording
from apex4_probe.reports.console_table import ConsoleTables
from apex4_probe.reports.tables import Row, Table, columns_of
from apex4_probe.reports.terminal import print_profile

INTERVAL = "the first figure with full overlap of the pipes, the last with none"


def print_prediction(profile: Profile, console: Console) -> None:
    """Print a predicted profile and the intervals of its times and balances; the verdict first and last."""
    print_profile(profile, console)
    printer = ConsoleTables(console)
    for table in (times_interval_table(profile), balance_interval_table(profile)):
        if table.rows:
            printer.table(table)
    printer.sentence(
        "Throughput figures have no such interval: each is a datasheet's or predicted from one, as its origin says.",
        indent=2,
    )
    console.print()
    printer.sentence(verdict.headline(profile), style="bold")


def times_interval_table(profile: Profile) -> Table:
    """Microseconds of a layer at every M, expected and between full overlap of the pipes and none."""
    rows = []
    for layer in profile.layers:
        for time in layer.times:
            cells = (
                layer.role,
                wording.choice(layer.format, layer.granularity),
                str(time.m),
                wording.number(time.us, time.origin),
                _between(time),
                wording.number(time.us_fp16, time.origin),
            )
            rows.append(Row(cells, predicted=time.origin == "predicted"))
    caption = f"Of one layer, quantising the activations included; interval: {INTERVAL}. FP16 has nothing to overlap."
    return Table(
        "Time per layer, microseconds",
        columns_of("role", "choice", "#M", "#expected", "#interval", "#FP16"),
        tuple(rows),
        caption,
    )


def _between(time: LayerTime) -> str:
    return f"{wording.number(time.us_low)}–{wording.number(time.us_high)}"


def balance_interval_table(profile: Profile) -> Table:
    """SM cycles of every dequantisation strategy, expected and between full overlap of the pipes and none."""
    scale = tables.BALANCE_SCALE
    rows = [
        Row(
            (
                wording.choice(item.format, item.granularity),
                wording.strategy_name(item.strategy),
                wording.number(scale * item.cycles_expected, item.origin),
                f"{wording.number(scale * item.cycles_full_overlap)}–{wording.number(scale * item.cycles_no_overlap)}",
                f"{wording.number(item.overlap)} ({item.overlap_origin})",
            ),
            predicted=item.origin == "predicted",
        )
        for item in profile.balance
    ]
    return Table(
        "Balance, SM cycles per 1000 accumulators and 128 of K",
        columns_of("choice", "strategy", "#expected", "#interval", "#overlap"),
        tuple(rows),
        f"Interval: {INTERVAL}; expected: with the overlap beside it.",
    )
