"""A profile on the terminal, readable at 80 columns and without colour; the verdict first and last."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console

from apex4_probe.deployment import Profile, StrategyBalance
from apex4_probe.health import compare_with_shipped
from apex4_probe.reports import (
    co_issue_tables,
    health_words,
    kernel_tables,
    layer_tables,
    link_tables,
    tables,
    verdict,
    wording,
)
from apex4_probe.reports.console_table import ConsoleTables
from apex4_probe.reports.tables import Column, Row, Table

CLOCK_ONLY = "clock_below_maximum"  # says no more than the clock's own column: left out where there is little room
WIDE = 110  # columns from which the throughput table has room for one column a property
NARROW_PIPES = {
    "tensor": "tensor",
    "fma": "fma",
    "alu": "alu",
    "conversion": "conv.",
    "shared": "shared",
    "issue": "issue",
}


def print_profile(profile: Profile, console: Console) -> None:
    """Print a whole profile: device, throughput, rho, balance, co-issue, then the verdict per layer and overall."""
    printer = ConsoleTables(console)
    printer.sentence(verdict.headline(profile), style="bold")
    printer.sentence(verdict.provenance_line(profile))
    _print_warnings(printer, profile)
    _print_device(printer, profile)
    _print_throughput(printer, profile)
    _print_health(printer, profile)
    _print_rho(printer, profile)
    _print_balance(printer, profile)
    _print_co_issue(printer, profile)
    _print_rejected(printer, profile)
    _print_layers(printer, profile)
    _print_decision(printer, profile)


def print_tour(profiles: Sequence[Profile], console: Console) -> None:
    """One table over many profiles: device, rho, verdict, W4A4 granularity, speed-up and origin."""
    printer = ConsoleTables(console)
    rows = tuple(_tour_row(profile) for profile in profiles)
    columns = (
        Column("device"),
        Column("rho INT4", numeric=True),
        Column("rho INT8", numeric=True),
        Column("verdict"),
        Column("within W4A4"),
        Column("speed-up over FP16", numeric=True),
        Column("origin"),
    )
    caption = "rho: Tensor Core over FP32 throughput. Speed-up over the workload, with no overlap of the pipes to full."
    printer.table(Table("Which format and granularity, by device", columns, rows, caption))


def _tour_row(profile: Profile) -> Row:
    decision, w4a4 = profile.decision, profile.w4a4
    speed = wording.times(decision.speedup_fp16, verdict.times_origin(profile))
    if decision.speedup_fp16_interval is not None and decision.format != "fp16":
        low, high = sorted(decision.speedup_fp16_interval)
        speed += f" ({low:.2f}–{high:.2f})"
    chosen = "stay in FP16" if decision.format == "fp16" else wording.choice(decision.format, decision.granularity)
    within = wording.ABSENT
    if w4a4 is not None:
        within = w4a4.granularity if w4a4.format == "w4a4" else wording.choice(w4a4.format, w4a4.granularity)
    name = wording.clean(profile.device.name.removeprefix("NVIDIA "))
    return Row((name, _tour_rho(profile, "int4"), _tour_rho(profile, "int8"), chosen, within, speed, profile.origin))


def _tour_rho(profile: Profile, kind: str) -> str:
    figure = next((figure for name, figure in profile.rho.items() if name == kind), None)
    if figure is None:
        return wording.ABSENT
    if not figure.usable:
        return "emulated" if figure.reason.lower().startswith("emulated") else "not usable"
    if figure.measured is not None:
        return wording.number(figure.measured)
    if figure.datasheet is not None:
        return wording.number(figure.datasheet)
    return wording.number(figure.per_clock, profile.origin)


def _print_warnings(printer: ConsoleTables, profile: Profile) -> None:
    for warning in profile.provenance.warnings:
        printer.sentence(f"Warning: {wording.prose(warning)}")


def _print_device(printer: ConsoleTables, profile: Profile) -> None:
    printer.heading("Device")
    printer.facts([(row.cells[0], row.cells[1]) for row in tables.device_table(profile).rows])
    links = link_tables.profile_links_table(profile)
    if links.rows:
        printer.table(links)


def _print_throughput(printer: ConsoleTables, profile: Profile) -> None:
    if not profile.measurements:
        printer.absent("Throughput", "No measurements in this profile.")
        return
    table = tables.throughput_table(profile)
    title = {column.title: index for index, column in enumerate(table.columns)}
    figures = [title[name] for name in ("value", "spread", "per clk and SM", "of peak", "SM MHz")]
    state = [title[name] for name in ("throttle", "SASS", "origin")]
    wide = printer.console.width >= WIDE
    usual = ("none", "verified", profile.origin, wording.ABSENT)
    rows: list[Row] = []
    for row in table.rows:
        if row.section or row.remark:
            rows.append(row)
            continue
        head = (_terminal_name(row.cells[title["name"]], row.cells[title["run"]]), *(row.cells[i] for i in figures))
        told = tuple(row.cells[i] for i in state)
        unusual = ", ".join(word for word in told if word not in (*usual, wording.throttle([CLOCK_ONLY])))
        rows.append(Row((*head, *told) if wide else (*head, unusual)))
    columns = [
        Column("name", name=True),
        *(Column(name, numeric=True) for name in ("value", "spread", "per clk and SM", "of peak", "MHz")),
    ]
    columns += [Column(name) for name in (("throttle", "SASS", "origin") if wide else ("remark",))]
    caption = table.caption if wide else f"{table.caption} {_usual_state(profile)}"
    printer.table(Table(table.title, tuple(columns), tuple(rows), caption))


def _print_health(printer: ConsoleTables, profile: Profile) -> None:
    health = compare_with_shipped(profile)
    if health is None:
        return
    printer.heading("Is this GPU healthy?")
    for sentence in health_words.sentences(health):
        printer.sentence(sentence, indent=2)
    table = health_words.significant_table(health)
    if table.rows:
        printer.table(table)


def _terminal_name(name: str, run: str) -> str:
    """Zeros and sustained runs are named under the figure that they go with."""
    unusual = [word for word in run.split(", ") if word in ("zeros", "sustained")]
    return f"  {', '.join(unusual)}" if unusual else name


def _usual_state(profile: Profile) -> str:
    if profile.origin == "predicted":
        return "Without a remark: predicted."
    return (
        "Without a remark: measured, no power cap and no thermal limit, the instruction verified in the SASS where one "
        "is named."
    )


def _print_rho(printer: ConsoleTables, profile: Profile) -> None:
    if profile.rho:
        printer.table(tables.rho_table(profile))
    else:
        printer.absent("rho", "No rho in this profile.")


def _print_balance(printer: ConsoleTables, profile: Profile) -> None:
    if not profile.balance:
        printer.absent("Dequantisation balance", "No balance in this profile.")
        return
    pipes = [pipe for pipe in tables.PIPES if any(pipe in strategy.pipes for strategy in profile.balance)]
    rows: list[Row] = []
    for (fmt, mma), group in groupby(profile.balance, key=lambda strategy: (strategy.format, strategy.mma)):
        rows.append(Row((f"{wording.format_name(fmt)} on {wording.clean(mma)}",), section=True))
        rows.extend(_balance_row(strategy, pipes) for strategy in group)
    columns = [Column("strategy", name=True), *(Column(NARROW_PIPES[pipe], numeric=True) for pipe in pipes)]
    columns += [Column("time", numeric=True), Column("over coarse", numeric=True), Column("bound by")]
    caption = (
        "SM cycles per 1000 accumulators and 128 of K, pipe by pipe; time: with the overlap that holds here, and over "
        "that of one scale per channel. ~ marks what was predicted."
    )
    printer.table(Table("Dequantisation balance", tuple(columns), tuple(rows), caption))


def _balance_row(strategy: StrategyBalance, pipes: Sequence[str]) -> Row:
    def cycles(value: float | None) -> str:
        return wording.ABSENT if value is None else wording.number(tables.BALANCE_SCALE * value, strategy.origin)

    return Row(
        (
            f"{strategy.granularity} {wording.clean(strategy.strategy)}",
            *(cycles(strategy.pipes.get(pipe)) for pipe in pipes),
            cycles(strategy.cycles_expected),
            wording.times(strategy.over_channel, strategy.origin),
            NARROW_PIPES.get(strategy.bound_by, wording.clean(strategy.bound_by)),
        )
    )


def _print_co_issue(printer: ConsoleTables, profile: Profile) -> None:
    if not profile.co_issue:
        printer.absent("Co-issue", "Not measured in this profile.")
        return
    table, left_out = co_issue_tables.co_issue_summary(profile)
    rows: list[Row] = []
    for mma, group in groupby(table.rows, key=lambda row: row.cells[0]):
        rows.append(Row((mma,), section=True))
        rows.extend(Row(row.cells[1:]) for row in group)
    printer.table(Table(table.title, table.columns[1:], tuple(rows), table.caption))
    if left_out:
        printer.sentence(f"The report shows {left_out} more of these curves.", indent=2)


def _print_rejected(printer: ConsoleTables, profile: Profile) -> None:
    if profile.rejected:
        printer.heading("Rejected")
        printer.facts([(row.cells[0], row.cells[1]) for row in tables.rejected_table(profile).rows])


def _print_layers(printer: ConsoleTables, profile: Profile) -> None:
    if not profile.layers:
        printer.absent("Verdict per layer", "No layers in this profile.")
        return
    workload = profile.workload
    points = ", ".join(f"{point.phase} M = {point.m} (weight {point.weight:g})" for point in workload.points)
    table = _choice_column(layer_tables.layer_table(profile))
    room = 4 if printer.console.width >= WIDE else 2
    sizes = layer_tables.batch_sizes(profile.layers)
    if len(sizes) > room:
        table = _long_layer_table(profile, table)
    shard = f", tensor parallel {workload.tensor_parallel}" if workload.tensor_parallel > 1 else ""
    title = f"Verdict per layer: {wording.clean(workload.model)}{shard}"
    printer.table(Table(title, table.columns, table.rows, table.caption))
    for roles, reason in layer_tables.layer_reasons(profile):
        printer.sentence(f"{roles}: {reason}", indent=2)
    if points:
        printer.sentence(f"Workload: {points}.", indent=2)
    for kernels in (kernel_tables.packing_table(profile), kernel_tables.chosen_kernel_table(profile)):
        if kernels.rows:
            printer.table(kernels)


def _choice_column(table: Table) -> Table:
    """Format and granularity as one column."""
    at = [column.title for column in table.columns].index("format")
    columns = (*table.columns[:at], Column("choice"), *table.columns[at + 2 :])
    rows = tuple(
        Row((*row.cells[:at], " ".join(row.cells[at : at + 2]).removesuffix(" none"), *row.cells[at + 2 :]))
        for row in table.rows
    )
    return Table(table.title, columns, rows, table.caption)


def _long_layer_table(profile: Profile, table: Table) -> Table:
    """One row for every M, where the columns would not fit beside each other."""
    rows: list[Row] = []
    fixed = len(table.columns) - 1 - len(layer_tables.batch_sizes(profile.layers))
    for layer, row in zip(profile.layers, table.rows, strict=True):
        head, margin = row.cells[:fixed], row.cells[-1]
        for index, time in enumerate(layer.times):
            cells = head if index == 0 else ("",) * fixed
            rows.append(Row((*cells, str(time.m), layer_tables.speedup_text(time), margin if index == 0 else "")))
        if not layer.times:
            rows.append(Row((*head, wording.ABSENT, wording.ABSENT, margin)))
    columns = (*table.columns[:fixed], Column("M", numeric=True), Column("speed-up", numeric=True), table.columns[-1])
    return Table(table.title, columns, tuple(rows), table.caption)


def _print_decision(printer: ConsoleTables, profile: Profile) -> None:
    if profile.notes:
        printer.heading("Notes")
        printer.facts([("-", wording.prose(note)) for note in profile.notes])
    printer.heading("Within W4A4, which granularity")
    printer.sentence(verdict.w4a4_answer(profile), indent=2)
    if profile.w4a4 is not None:
        printer.facts(verdict.decision_facts(profile.w4a4))
    printer.heading("Which format at all")
    printer.facts(verdict.decision_facts(profile.decision))
    printer.console.print()
    printer.sentence(verdict.headline(profile), style="bold")
