"""The verdict as one picture: what the choice brings, and what it would cost to scale more finely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apex4_probe.deployment import Origin, Profile, StrategyBalance
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import layer_tables, verdict, wording
from apex4_probe.reports.co_issue_curves import KNEE_TOLERANCE
from apex4_probe.reports.layer_tables import WorkloadSpeedup
from apex4_probe.reports.tables import Row, Table, columns_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def cheapest(profile: Profile) -> list[StrategyBalance]:
    """The cheapest strategy of every granularity, of the verdict's own format or else of the first that has any."""
    formats = list(dict.fromkeys(item.format for item in profile.balance))
    if not formats:
        return []
    about = profile.decision.format if profile.decision.format in formats else formats[0]
    best: dict[str, StrategyBalance] = {}
    for item in profile.balance:
        known = best.get(item.granularity)
        if item.format == about and (known is None or item.cycles_expected < known.cycles_expected):
            best[item.granularity] = item
    return list(best.values())


@style.styled
def verdict_figure(profile: Profile) -> Figure | None:
    """Left the speed-up over FP16 at every point of the workload, right the cycles of every granularity."""
    speedups, costs = layer_tables.workload_speedups(profile), cheapest(profile)
    if not speedups and not costs:
        return None
    rows = max(len(speedups), len(costs))
    figure = style.new_figure(1.15 + 0.34 * rows)
    columns = [part for part in (speedups, costs) if part]
    axes = list(figure.subplots(1, len(columns), squeeze=False)[0])
    if speedups:
        _speedups(axes.pop(0), profile, speedups)
    if costs:
        _costs(axes.pop(0), profile, costs)
    return figure


def _speedups(axis: Axes, profile: Profile, speedups: Sequence[WorkloadSpeedup]) -> None:
    for row, item in enumerate(speedups):
        style.bar(axis, row, item.value, style.BLUE, solid=item.origin == "measured", height=0.6)
        if item.high > item.low:
            axis.plot([item.low, item.high], [row, row], color=style.INK, linewidth=1.3, marker="|", zorder=3)
        label = wording.times(item.value, item.origin)
        style.end_label(axis, label, max(item.value, item.high), row)
    axis.axvline(1.0, color=style.INK, linewidth=1)
    _rows(axis, [item.label for item in speedups])
    axis.set_xlim(0, 1.35 * max(1.0, *(item.high for item in speedups), *(item.value for item in speedups)))
    chosen = wording.choice(profile.decision.format, profile.decision.granularity)
    axis.set_title("Stay in FP16" if profile.decision.format == "fp16" else f"{chosen}: speed-up over FP16")
    axis.set_xlabel("times FP16")


def _costs(axis: Axes, profile: Profile, costs: Sequence[StrategyBalance]) -> None:
    axis.axvspan(1.0, KNEE_TOLERANCE, color=style.GREEN, alpha=0.3, linewidth=0)
    for row, item in enumerate(costs):
        chosen = (item.format, item.granularity) == (profile.decision.format, profile.decision.granularity)
        colour = style.BLUE if chosen else style.GREY
        style.bar(axis, row, item.over_channel, colour, solid=item.origin == "measured", height=0.6)
        style.end_label(axis, wording.times(item.over_channel, item.origin), item.over_channel, row)
    axis.axvline(1.0, color=style.INK, linewidth=1)
    _rows(axis, [f"{item.granularity}: {wording.clip(wording.strategy_name(item.strategy), 32)}" for item in costs])
    axis.set_xlim(0, 1.35 * max(1.0, *(item.over_channel for item in costs)))
    axis.set_title(f"What scales cost in {wording.format_name(costs[0].format)}")
    axis.set_xlabel("SM cycles over one scale per channel")


def _rows(axis: Axes, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def verdict_table(profile: Profile) -> Table:
    """The numbers of the picture."""
    rows: list[Row] = []
    speedups, costs = layer_tables.workload_speedups(profile), cheapest(profile)
    if speedups:
        chosen = wording.choice(profile.decision.format, profile.decision.granularity)
        rows.append(Row((f"{chosen}: speed-up over FP16",), section=True))
    for speedup in speedups:
        timed = speedup.origin == "measured"
        span = wording.ABSENT if timed else wording.interval(speedup.low, speedup.high)
        rows.append(_row(speedup.label, speedup.value, span, speedup.origin))
    if costs:
        name = wording.format_name(costs[0].format)
        rows.append(Row((f"{name}: SM cycles over one scale per channel",), section=True))
    for cost in costs:
        base = cost.cycles_expected / cost.over_channel if cost.over_channel else 0.0
        ends = (cost.cycles_full_overlap, cost.cycles_no_overlap)
        span = wording.interval(*(cycles / base for cycles in ends)) if base else wording.ABSENT
        label = f"{cost.granularity}: {wording.strategy_name(cost.strategy)}"
        rows.append(_row(label, cost.over_channel, span, cost.origin))
    columns = columns_of("what", "#factor", "#between no overlap of the pipes and full", "origin")
    return Table("The verdict in figures", columns, tuple(rows), _caption(profile))


def _row(label: str, factor: float, span: str, origin: Origin) -> Row:
    return Row((label, wording.times(factor, origin), span, origin), predicted=origin == "predicted")


def _caption(profile: Profile) -> str:
    origin = "from measured rates" if profile.origin == "measured" else "from a datasheet"
    times = "measured" if verdict.times_origin(profile) == "measured" else f"predicted {origin}"
    return f"The speed-ups' times are {times}; activation quantisation is counted in."
