"""A comparison as tables of text: what terminal and page show. Pure functions; a cell is safe once escaped."""

from __future__ import annotations

from apex4_probe.compare_records import Comparison, Cost, Entry, Flag, PhaseTime, Rate
from apex4_probe.deployment import Decision
from apex4_probe.reports import compare_words as words
from apex4_probe.reports import wording
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

NO_PLAN = "no plan: "
GAIN_FORMATS = ("W4A4", "W4A8", "W4A16", "FP8")
GAIN_ORDER = ("", "channel", "a128i", "g128i", "g128", "mixed")


def _row(entry: Entry, *cells: str) -> Row:
    return Row((words.beside_origin(entry), *cells), predicted=not words.is_measured(entry))


def verdict_table(comparison: Comparison) -> Table:
    """One row a profile: rho, which format at all, which granularity within W4A4, the paper's question."""
    rows, notes = [], note_numbers(comparison)
    for entry in comparison.entries:
        answer = entry.answer
        if answer is None:
            rows.append(Row((words.label(entry),), remark=NO_PLAN + wording.prose(entry.unplanned)))
            continue
        cells = (
            words.origin(entry),
            _rho(entry, "int4"),
            wording.choice(answer.decision.format, answer.decision.granularity),
            words.speedup(answer.decision),
            _word(answer.w4a4),
            words.speedup(answer.w4a4),
            _word(answer.plain),
            words.speedup(answer.plain),
            ", ".join(str(notes[flag]) for flag in entry.flags) or ABSENT,
        )
        rows.append(_row(entry, *cells))
    titles = ["device", "origin", "#rho INT4", "fastest", "#speed-up"]
    titles += ["within W4A4", "#speed-up", "paper's question, plain strategy", "#speed-up", "notes"]
    limits = comparison.workload
    caption = (
        "rho: measured where the row is, else the datasheet's; in hardware: the Tensor Cores apply block scales "
        "themselves. Speed-ups are over FP16 on the whole workload, as the row's kernels were timed, or after ~ "
        "predicted from its rates, in brackets from no overlap of the pipes to full overlap. Fastest: of the formats "
        "that are expected to lose at most "
        f"{limits.max_quality_loss:g} nats. Within W4A4: the best expected quality that reaches "
        f"{limits.min_speedup:g}×; the plain strategy is the paper's, I2F + FMUL + FFMA per accumulator and group."
    )
    return Table("Which format and granularity, by GPU", columns_of(*titles), tuple(rows), caption)


def terminal_table(comparison: Comparison) -> Table:
    """As ``verdict_table``, for 80 columns."""
    rows = []
    for entry in comparison.entries:
        answer = entry.answer
        if answer is None:
            rows.append(Row((words.label(entry),), remark=NO_PLAN + wording.prose(entry.unplanned)))
            continue
        cells = (
            words.origin(entry),
            _rho(entry, "int4"),
            f"{wording.choice(answer.decision.format, answer.decision.granularity)} {_short(answer.decision)}".strip(),
            _choice(answer.w4a4),
            _choice(answer.plain),
        )
        rows.append(_row(entry, *cells))
    titles = ("device", "origin", "#rho INT4", "fastest", "within W4A4", "plain W4A4 (the paper's)")
    caption = (
        "rho in hardware: its Tensor Cores apply block scales themselves. Speed-ups over FP16 on the whole workload, "
        "timed, or after ~ predicted; compare.html has their intervals."
    )
    return Table("Which format and granularity, by GPU", columns_of(*titles), tuple(rows), caption)


def _short(decision: Decision) -> str:
    return "" if decision.format == "fp16" else words.short_speedup(decision)


def _word(decision: Decision) -> str:
    return "FP16" if decision.format == "fp16" else words.verdict(decision)


def _choice(decision: Decision) -> str:
    return "FP16" if decision.format == "fp16" else f"{words.verdict(decision)} {_short(decision)}"


def _rho(entry: Entry, kind: str) -> str:
    figure = next((figure for name, figure in entry.subject.profile.rho.items() if name == kind), None)
    value, origin = words.rho_shown(figure)
    if figure is not None and figure.usable:
        return wording.number(value, origin)
    return words.unusable(figure)


def note_numbers(comparison: Comparison) -> dict[Flag, int]:
    """Every distinct flag and its number, in the order of the rows."""
    flags = dict.fromkeys(flag for entry in comparison.entries for flag in entry.flags)
    return {flag: number for number, flag in enumerate(flags, 1)}


def notes(comparison: Comparison) -> list[tuple[str, str]]:
    """``1 INT4 emulated`` and its sentence, as the table's last column numbers them."""
    return [
        (f"{number} {wording.clean(flag.word)}", wording.prose(flag.sentence))
        for flag, number in note_numbers(comparison).items()
    ]


def flagged_devices(comparison: Comparison) -> list[tuple[str, str]]:
    """Flag and sentence, and to which rows it belongs: for the terminal, whose table has no column for it."""
    facts = []
    for flag in note_numbers(comparison):
        names = ", ".join(words.label(entry, 30) for entry in comparison.entries if flag in entry.flags)
        facts.append((wording.clean(flag.word), f"{names}. {wording.prose(flag.sentence)}"))
    return facts


def rho_table(comparison: Comparison) -> Table:
    """Every rho of every profile."""
    rows = []
    for entry in comparison.entries:
        for kind, figure in entry.subject.profile.rho.items():
            name = kind.upper()
            if not figure.usable:
                rows.append(Row((words.label(entry),), remark=f"{name}: {wording.prose(figure.reason)}"))
                continue
            cells = (
                words.origin(entry),
                name,
                wording.number(figure.datasheet),
                wording.number(figure.measured),
                wording.number(figure.per_clock, entry.subject.profile.origin),
            )
            rows.append(_row(entry, *cells))
        if not entry.subject.profile.rho:
            rows.append(Row((words.label(entry),), remark="no rho in this profile"))
    titles = ("device", "origin", "operands", "#datasheet", "#measured", "#per clock")
    caption = "Tensor Core over FP32 throughput, two operations per MAC and per FMA; per clock: MAC over FFMA of an SM."
    return Table("rho", columns_of(*titles), tuple(rows), caption)


def region_table(comparison: Comparison) -> Table:
    """What is chosen at each rho for which wanted speed-up."""
    grouped: dict[tuple[str, str, int, float], list[str]] = {}
    for region in comparison.map.regions:
        key = (region.strategies, region.phase, region.m, region.rho)
        name = words.named(region.format, region.granularity)
        until = "beyond" if region.format == "fp16" else f"to {region.high:.2f}×"
        grouped.setdefault(key, []).append(f"{name} {until}")
    names = {"plain": wording.strategy_name("i2f_fmul_ffma"), "all": "best of all strategies"}
    rows = tuple(
        Row((names[strategies], words.point_name(phase, m), f"{rho:.3g}", ", ".join(stairs)), predicted=True)
        for (strategies, phase, m, rho), stairs in grouped.items()
    )
    titles = ("group scales by", "at", "#rho", "choice, up to which wanted speed-up over FP16")
    return Table("Regions along rho", columns_of(*titles), rows, comparison.map.assumption)


def throughput_table(comparison: Comparison) -> Table:
    rows = [_rate_row(entry, rate) for entry in comparison.entries for rate in entry.rates]
    titles = ("device", "profile", "kind", "instruction", "#T op/s", "#per clock and SM", "#T op/s per W", "#at W")
    caption = (
        "T op/s: dense, two a MAC or FMA, burst. Per watt: throughput and power under the sustained load where both "
        "were measured, else the burst or listed rate over the datasheet's power."
    )
    return Table(
        "Throughput", columns_of(*titles, "power is", "origin of the rate"), tuple(r for r in rows if r), caption
    )


def _rate_row(entry: Entry, rate: Rate) -> Row:
    if rate.tops is None:
        return Row((words.label(entry),), remark=f"{rate.kind}: {wording.prose(rate.absent)}")
    cells = (
        words.beside_origin(entry),
        words.origin(entry),
        rate.kind,
        wording.clean(rate.instruction),
        wording.number(rate.tops, rate.origin),
        wording.number(rate.per_clk, rate.origin),
        wording.number(rate.per_watt, "measured" if rate.watts_measured else "predicted"),
        wording.number(rate.watts),
        rate.watts_are or ABSENT,
        rate.origin,
    )
    return Row(cells, predicted=rate.origin != "measured")


def gain_table(comparison: Comparison) -> Table:
    """One column a format and granularity; the cheapest strategy, but where the plain one is named."""
    columns = sorted({key for entry in comparison.entries for key in _gains(entry)}, key=_gain_rank)
    rows = []
    for entry in comparison.entries:
        gains = _gains(entry)
        if gains:
            rows.append(_row(entry, words.origin(entry), *(gains.get(column, ABSENT) for column in columns)))
        elif entry.answer is None:
            rows.append(Row((words.label(entry),), remark=NO_PLAN + wording.prose(entry.unplanned)))
        else:
            rows.append(Row((words.label(entry),), remark="only FP16 can be planned"))
    caption = (
        "Over FP16 on the whole workload, predicted from the row's rates; in brackets from no overlap of the pipes to "
        "full overlap. Each with the cheapest strategy there; g128 plain: with I2F + FMUL + FFMA. mixed: as published, "
        "v and down at g32, the rest per channel."
    )
    titles = ["device", "rates", *(f"#{column}" for column in columns)]
    return Table("Speed-up over FP16 by granularity", columns_of(*titles), tuple(rows), caption)


def _gain_rank(name: str) -> tuple[int, int, bool]:
    """W4A4 first, as the paper asks; within a format from coarse to fine."""
    format, _, rest = name.partition(" ")
    granularity, _, plain = rest.partition(" ")
    return GAIN_FORMATS.index(format), GAIN_ORDER.index(granularity), bool(plain)


def _gains(entry: Entry) -> dict[str, str]:
    found: dict[str, str] = {}
    for gain in entry.answer.gains if entry.answer else ():
        name = wording.choice(gain.format, gain.granularity)
        name = f"{name} plain" if name in found else name  # the second one of a name is the paper's strategy
        found[name] = words.with_interval(gain.speedup, (gain.low, gain.high), gain.origin)
    return found


def time_table(comparison: Comparison) -> Table:
    """Expected time of the model's linear layers at every point of the workload."""
    rows = []
    for entry in comparison.entries:
        if entry.answer is None:
            rows.append(Row((words.label(entry),), remark=NO_PLAN + wording.prose(entry.unplanned)))
            continue
        for time in entry.answer.times:
            rows.append(_row(entry, words.origin(entry), *_time_cells(entry, time)))
    titles = ("device", "rates", "format", "at", "#ms", "#full overlap", "#no overlap", "#FP16 ms", "#tokens/s")
    model = wording.clean(comparison.workload.model)
    caption = (
        f"All linear layers of {model} once, input quantisation and launches included; attention, norms, the output "
        "head and the time between steps are not, and cost the same in every format. tokens/s: M over that time, so an "
        "upper bound. After ~ predicted from the row's rates, else timed."
    )
    return Table("Expected time of a step", columns_of(*titles), tuple(rows), caption)


def _time_cells(entry: Entry, time: PhaseTime) -> tuple[str, ...]:
    assert entry.answer is not None
    decision = entry.answer.decision
    figures = (time.us, time.us_low, time.us_high, time.us_fp16)
    return (
        wording.choice(decision.format, decision.granularity),
        words.point_name(time.phase, time.m),
        *(wording.number(us / 1e3, time.origin) for us in figures),
        wording.number(1e6 * time.m / time.us, time.origin),
    )


def cost_table(comparison: Comparison) -> Table | None:
    """Cost per million tokens; None where no price was given."""
    rows = [
        _row(entry, words.origin(entry), words.point_name(cost.phase, cost.m), *_cost_cells(cost))
        for entry in comparison.entries
        for cost in entry.costs
    ]
    if not rows:
        return None
    titles = (
        "device",
        "rates",
        "at",
        "#USD/h a GPU",
        "#USD per million tokens",
        "#full overlap",
        "#no overlap",
        "#FP16",
    )
    gpus = comparison.workload.tensor_parallel
    shards = f" of all {gpus} GPUs" if gpus > 1 else ""
    caption = (
        f"The price{shards} for the time that the linear layers take, nothing idle and nothing else counted: a lower "
        "bound, for comparing GPUs with each other. Predicted from the row's rates."
    )
    return Table("Cost", columns_of(*titles), tuple(rows), caption)


def _cost_cells(cost: Cost) -> tuple[str, ...]:
    figures = (cost.usd, cost.usd_low, cost.usd_high, cost.usd_fp16)
    return wording.number(cost.usd_per_hour), *(wording.number(usd, "predicted") for usd in figures)
