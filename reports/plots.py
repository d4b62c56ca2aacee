"""The figures of a profile: throughput against the physical peak, balance of the strategies, speed-up per layer.

Every function returns a matplotlib Figure, or None where the profile has nothing to draw. Solid is measured, hatched
or hollow is predicted (a datasheet's figure counts as predicted: this tool has not seen it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apex4_probe.deployment import LayerTime, Measurement, Profile, StrategyBalance
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import layer_tables, tables, verdict, wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

ROW = 0.235  # inches a bar takes
LABEL_LIMIT = 34  # characters of a name beside an axis

PIPE_COLOURS = {
    "tensor": style.BLUE,
    "fma": style.ORANGE,
    "alu": style.SKY,
    "conversion": style.VERMILLION,
    "shared": style.GREEN,
}


@style.styled
def throughput_figure(profile: Profile) -> Figure | None:
    """Bars of every primary figure, its spread, the physical peak at that clock, and the sustained figure beside it."""
    panels = {family: _bars(profile, family) for family in ("Tensor Core", "CUDA Core", "Memory")}
    panels = {family: bars for family, bars in panels.items() if bars}
    if not panels:
        return None
    counts = [len(bars) for bars in panels.values()]
    figure = style.new_figure(0.9 + ROW * sum(counts) + 0.62 * len(counts))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[count + 0.6 for count in counts])
    units = {"Tensor Core": "T op/s, two a MAC, dense", "CUDA Core": "T thread-instructions/s", "Memory": "GB/s"}
    for axis, (family, bars) in zip(axes[:, 0], panels.items(), strict=True):
        _throughput_panel(axis, bars, {m.name: m for m in profile.measurements if m.regime == "sustained"})
        axis.set_title(family)
        axis.set_xlabel(units[family])
    _throughput_legend(figure, [bar for bars in panels.values() for bar in bars], profile)
    return figure


def _bars(profile: Profile, family: str) -> list[Measurement]:
    return [
        measurement
        for measurement in profile.measurements
        if tables.family(measurement) == family and tables.is_primary(measurement) and measurement.value is not None
    ]


def _on_axis(measurement: Measurement) -> float:
    """Value in the panel's unit: FFMA's TFLOPS become instructions, so that all CUDA-core bars compare."""
    value = measurement.value or 0.0
    return value / 2 if tables.family(measurement) == "CUDA Core" and measurement.unit == "TFLOPS" else value


def _throughput_panel(axis: Axes, bars: Sequence[Measurement], sustained: dict[str, Measurement]) -> None:
    furthest = 0.0
    for row, bar in enumerate(bars):
        value = _on_axis(bar)
        peak = value / bar.peak_fraction if bar.peak_fraction else value
        furthest = max(furthest, peak)
        colour = style.GREY if bar.emulated else style.BLUE
        if bar.peak_fraction:
            outline = axis.barh(row, peak, height=0.78, facecolor="none", edgecolor=style.INK, linewidth=0.7)
            outline.patches[0].set_linestyle((0, (2, 2)))
        style.bar(axis, row, value, colour, solid=bar.origin == "measured")
        if bar.spread:
            axis.errorbar(value, row, xerr=value * bar.spread / 2, color=style.INK, capsize=2, linewidth=1)
        steady = sustained.get(bar.name)
        if steady is not None and steady.value is not None and steady is not bar:
            axis.plot(_on_axis(steady), row, "D", color=style.ORANGE, markeredgecolor=style.INK, markersize=4.5)
        style.end_label(axis, _bar_label(bar), max(value, peak), row)
    axis.set_yticks(range(len(bars)), [wording.clip(bar.name, LABEL_LIMIT) for bar in bars])
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlim(0, 1.34 * furthest or 1)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def _bar_label(bar: Measurement) -> str:
    label = f"{wording.number(bar.value, bar.origin)} {wording.clip(bar.unit, 12)}"
    if bar.emulated:
        return f"{label}, emulated"
    return f"{label}, {wording.percent(bar.peak_fraction)}" if bar.peak_fraction else label


def _throughput_legend(figure: Figure, bars: Sequence[Measurement], profile: Profile) -> None:
    from matplotlib import lines, patches

    origins = {bar.origin for bar in bars}
    handles: list[Patch | Line2D] = []
    if "measured" in origins:
        handles.append(patches.Patch(color=style.BLUE, label="measured"))
    if origins - {"measured"}:
        label = " or ".join(sorted(origins - {"measured"}, reverse=True))
        handles.append(patches.Patch(facecolor="none", edgecolor=style.BLUE, hatch=style.HATCH, label=label))
    if any(bar.emulated for bar in bars):
        handles.append(patches.Patch(color=style.GREY, label="emulated"))
    if any(bar.peak_fraction for bar in bars):
        peak = "physical peak at that clock"
        handles.append(patches.Patch(facecolor="none", edgecolor=style.INK, linestyle=(0, (2, 2)), label=peak))
    if any(m.regime == "sustained" and m.value is not None for m in profile.measurements):
        diamond = lines.Line2D([], [], linestyle="", marker="D", color=style.ORANGE, markeredgecolor=style.INK)
        diamond.set_label("sustained")
        handles.append(diamond)
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8)


@style.styled
def balance_figure(profile: Profile) -> Figure | None:
    """Pipe times of every strategy, stacked, and under each bar the interval from full overlap to none."""
    if not profile.balance:
        return None
    groups: dict[str, list[StrategyBalance]] = {}
    for strategy in profile.balance:
        groups.setdefault(strategy.mma, []).append(strategy)
    counts = [len(group) for group in groups.values()]
    figure = style.new_figure(1.1 + 0.42 * sum(counts) + 0.45 * len(counts))
    axes = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=[count + 0.4 for count in counts])
    for axis, (mma, group) in zip(axes[:, 0], groups.items(), strict=True):
        for row, strategy in enumerate(group):
            _balance_row(axis, row, strategy)
        labels = [f"{wording.choice(s.format, s.granularity)}\n{wording.clip(s.strategy, 20)}" for s in group]
        axis.set_yticks(range(len(group)), labels, fontsize=8)
        axis.set_ylim(len(group) - 0.35, -0.6)
        axis.set_title(f"on {wording.clip(mma, 2 * LABEL_LIMIT)}")
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
    furthest = max(max(sum(_stacked(s).values()), s.cycles_no_overlap) for s in profile.balance) * tables.BALANCE_SCALE
    axes[-1, 0].set_xlim(0, 1.3 * furthest or 1)
    axes[-1, 0].set_xlabel("SM cycles per 1000 accumulators and 128 of K")
    _balance_legend(figure, profile)
    return figure


def _stacked(strategy: StrategyBalance) -> dict[str, float]:
    """Pipes drawn end to end; issue slots are not one of them, since every instruction of the others passes there."""
    return {pipe: strategy.pipes[pipe] for pipe in PIPE_COLOURS if strategy.pipes.get(pipe)}


def _balance_row(axis: Axes, row: int, strategy: StrategyBalance) -> None:
    scale = tables.BALANCE_SCALE
    left = 0.0
    for pipe, cycles in _stacked(strategy).items():
        solid = strategy.origin == "measured"
        style.bar(axis, row - 0.12, scale * cycles, PIPE_COLOURS[pipe], solid=solid, left=left, height=0.44)
        left += scale * cycles
    issue = scale * strategy.pipes.get("issue", 0.0)
    if issue:
        axis.plot([issue, issue], [row - 0.38, row + 0.14], color=style.INK, linewidth=1.6, zorder=3)
    low, high = scale * strategy.cycles_full_overlap, scale * strategy.cycles_no_overlap
    expected, y = scale * strategy.cycles_expected, row + 0.27
    axis.plot([low, high], [y, y], color=style.INK, linewidth=1.4, marker="|", markersize=6, zorder=3)
    filled = style.INK if strategy.overlap_origin == "measured" else style.PAPER
    axis.plot(expected, y, marker="D", markersize=5, color=filled, markeredgecolor=style.INK, zorder=4)
    label = f"{wording.times(strategy.over_channel, strategy.origin)}, bound by {wording.clip(strategy.bound_by, 24)}"
    axis.annotate(label, (max(left, high), row), (6, 0), textcoords="offset points", va="center", fontsize=8)


def _balance_legend(figure: Figure, profile: Profile) -> None:
    from matplotlib import lines, patches

    present = [pipe for pipe in PIPE_COLOURS if any(pipe in _stacked(s) for s in profile.balance)]
    handles: list[Patch | Line2D] = [patches.Patch(color=PIPE_COLOURS[pipe], label=pipe) for pipe in present]
    if any(strategy.pipes.get("issue") for strategy in profile.balance):
        handles.append(
            lines.Line2D([], [], linestyle="", marker="|", markersize=9, color=style.INK, label="issue slots")
        )
    handles.append(lines.Line2D([], [], color=style.INK, marker="|", markersize=6, label="full overlap to none"))
    overlaps = {strategy.overlap_origin for strategy in profile.balance}
    if "measured" in overlaps:
        label = "expected, measured overlap"
        handles.append(lines.Line2D([], [], linestyle="", marker="D", color=style.INK, markersize=5, label=label))
    if overlaps - {"measured"}:
        hollow = lines.Line2D([], [], linestyle="", marker="D", markersize=5, color=style.PAPER)
        hollow.set(markeredgecolor=style.INK, label="expected, predicted overlap")
        handles.append(hollow)
    if any(strategy.origin != "measured" for strategy in profile.balance):
        handles.append(patches.Patch(facecolor="none", edgecolor=style.INK, hatch=style.HATCH, label="predicted"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=8)


@style.styled
def speedup_figure(profile: Profile) -> Figure | None:
    """Speed-up over FP16 of every layer role at every M, with the interval from no overlap to full overlap."""
    sizes = layer_tables.batch_sizes(profile.layers)
    points = [(layer, time) for layer in profile.layers for time in layer.times if layer_tables.speedup(time)]
    if not points:
        return None
    from matplotlib import lines

    figure = style.new_figure(3.9)
    axis = figure.subplots()
    step = 0.7 / max(len(sizes), 1)
    extremes = [profile.workload.min_speedup, 0.9, 1.3]
    for column, layer in enumerate(profile.layers):
        for time in layer.times:
            index = sizes.index(time.m)
            extremes += _speedup_point(axis, column + (index - (len(sizes) - 1) / 2) * step, time, index)
    axis.axhline(1.0, color=style.INK, linewidth=1)
    axis.axhline(profile.workload.min_speedup, color=style.VERMILLION, linewidth=1, linestyle="--")
    labels = [
        f"{layer.role}\n{wording.format_name(layer.format)}\n{_short(layer.granularity)}" for layer in profile.layers
    ]
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlim(-0.6, len(labels) - 0.4)
    axis.grid(visible=False, axis="x")
    style.ratio_axis(axis, "y", min(extremes) / 1.12, max(extremes) * 1.12)
    axis.set_ylabel("speed-up over FP16")
    axis.set_xlabel("layer role, format and granularity")
    handles = [_size_handle(size, index) for index, size in enumerate(sizes)]
    bound = f"asked of W4A4: {profile.workload.min_speedup:g}×"
    handles.append(lines.Line2D([], [], color=style.VERMILLION, linestyle="--", linewidth=1, label=bound))
    timed = verdict.times_origin(profile) == "measured"
    title = "as timed" if timed else "bars: no overlap of the pipes to full overlap, hollow: predicted"
    legend = figure.legend(
        handles=handles, loc="outside upper left", ncols=5, fontsize=8, title=title, title_fontsize=8
    )
    legend.set_alignment("left")
    return figure


def _short(granularity: str) -> str:
    return "" if granularity == "none" else granularity


def _speedup_point(axis: Axes, x: float, time: LayerTime, index: int) -> list[float]:
    """Draws one point and its interval; the values drawn."""
    value, bounds = layer_tables.speedup(time), layer_tables.speedup_interval(time)
    if not value:
        return []
    colour, marker = style.CYCLE[index % len(style.CYCLE)], style.MARKERS[index % len(style.MARKERS)]
    drawn = [value]
    if bounds is not None:
        axis.plot([x, x], bounds, color=colour, linewidth=2, alpha=0.7, solid_capstyle="butt")
        drawn += bounds
    face = colour if time.origin == "measured" else style.PAPER
    axis.plot(
        x, value, marker=marker, color=face, markeredgecolor=colour, markeredgewidth=1.6, markersize=6, linestyle=""
    )
    return drawn


def _size_handle(size: int, index: int) -> Line2D:
    from matplotlib import lines

    colour, marker = style.CYCLE[index % len(style.CYCLE)], style.MARKERS[index % len(style.MARKERS)]
    return lines.Line2D([], [], color=colour, marker=marker, linewidth=2, markersize=6, label=f"M = {size}")
