"""The figures of a profile drawn into one pair of axes, which a notebook places as it likes.

The report's figures are whole pages of panels; these are one panel each, in the same colours and with the same marks:
solid is measured, hatched or hollow is predicted or a datasheet's. Every function raises ApexError where the profile
has nothing to draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from apex4_probe.deployment import Measurement, Profile, StrategyBalance
from apex4_probe.errors import ApexError
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import layer_tables, tables, wording
from apex4_probe.reports.co_issue_curves import KNEE_TOLERANCE, Curve, curves, leading_shapes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_LIMIT = 40
Family = Literal["Tensor Core", "CUDA Core", "Memory"]
UNITS: dict[Family, str] = {
    "Tensor Core": "T op/s, two a MAC, dense",
    "CUDA Core": "T thread-instructions/s",
    "Memory": "GB/s",
}
PIPES = {
    "tensor": style.BLUE,
    "fma": style.ORANGE,
    "alu": style.SKY,
    "conversion": style.VERMILLION,
    "shared": style.GREEN,
}


@style.styled
def draw_throughput(axis: Axes, profile: Profile, family: Family) -> None:
    """A bar for every primary figure of ``family``, its spread as whiskers (10th to 90th percentile)."""
    if family not in UNITS:
        raise ApexError(f"no family {family!r:.40}: expected {', '.join(UNITS)}")
    bars = [
        figure
        for figure in profile.measurements
        if tables.family(figure) == family and tables.is_primary(figure) and figure.value is not None
    ]
    if not bars:
        raise ApexError(f"this profile holds no {family} throughput to plot")
    for row, bar in enumerate(bars):
        value = throughput_value(bar)
        _bar(axis, row, value, style.GREY if bar.emulated else style.BLUE, solid=bar.origin == "measured")
        if bar.spread:
            axis.errorbar(value, row, xerr=value * bar.spread / 2, color=style.INK, capsize=2, linewidth=1)
    axis.set_yticks(range(len(bars)), [_label(bar.name) + (" (emulated)" if bar.emulated else "") for bar in bars])
    axis.invert_yaxis()
    axis.set_xlabel(UNITS[family])
    axis.set_title(_device(profile))


def throughput_value(figure: Measurement) -> float:
    """The figure in its family's unit: FFMA's TFLOPS, two a multiply-add, become instructions."""
    value = figure.value or 0.0
    return value / 2 if tables.family(figure) == "CUDA Core" and figure.unit == "TFLOPS" else value


@style.styled
def draw_co_issue(axis: Axes, profile: Profile, mma: str | None, shape: str | None, placement: str | None) -> None:
    """A line for every placement and instruction of one MMA loop; the shaded band is what counts as free."""
    lines = co_issue_lines(profile, mma, shape, placement)
    alike = len({curve.placement for curve in lines}) == 1
    for index, curve in enumerate(lines):
        colour = style.CYCLE[index % len(style.CYCLE)]
        words = "" if alike else f", {wording.placement_name(curve.placement)}"
        axis.plot(
            curve.ks,
            curve.ratios,
            color=colour,
            marker=style.MARKERS[index % len(style.MARKERS)],
            markerfacecolor=colour if curve.origin == "measured" else style.PAPER,
            markersize=4,
            label=f"{wording.clip(curve.instruction, 24)}{words}",
        )
    axis.axhspan(1.0, KNEE_TOLERANCE, color=style.GREEN, alpha=0.18, linewidth=0)
    axis.set_xlabel("CUDA-core instructions per accumulator and four MMA K-steps")
    axis.set_ylabel("cycles over the MMA alone")
    first = lines[0]
    where = f", {wording.placement_name(first.placement)}" if alike else ""
    axis.set_title(f"{_device(profile)}: {_label(first.mma)} {_label(first.shape)}{where}")
    axis.legend(fontsize=8)


def co_issue_lines(profile: Profile, mma: str | None, shape: str | None, placement: str | None) -> list[Curve]:
    """The curves of one loop: as asked for, else of the first MMA that the profile leads with and its leading shape.

    ApexError: the profile has none, or none like that; it lists what there is.
    """
    gathered = curves(profile.co_issue)
    if not gathered:
        raise ApexError("this profile holds no co-issue curves to plot")
    leading = leading_shapes(gathered)
    mma = mma or next((name for name in leading if name.startswith("wgmma.")), next(iter(leading)))
    shape = shape or leading.get(mma)
    chosen = [curve for curve in gathered if (curve.mma, curve.shape) == (mma, shape)]
    chosen = [curve for curve in chosen if placement in (None, curve.placement)]
    if not chosen:
        there = dict.fromkeys(f"{curve.mma} {curve.shape} {curve.placement}" for curve in gathered)
        listed = "; ".join(wording.clean(name) for name in list(there)[:12])
        raise ApexError(f"no co-issue curve of {mma} {shape or ''} {placement or ''}: this profile has {listed}")
    return chosen


@style.styled
def draw_balance(axis: Axes, profile: Profile, format: str | None) -> None:
    """Pipe times of every strategy end to end; under each bar the interval from full overlap to none."""
    rows = [item for item in profile.balance if format in (None, item.format)]
    if not rows:
        raise ApexError(f"this profile holds no balance{f' of {format:.40}' if format else ''} to plot")
    scale, seen = tables.BALANCE_SCALE, set[str]()
    for row, item in enumerate(rows):
        left = 0.0
        for pipe, colour in PIPES.items():
            cycles = scale * item.pipes.get(pipe, 0.0)
            if cycles:
                label = "" if pipe in seen else pipe
                _bar(axis, row - 0.12, cycles, colour, solid=item.origin == "measured", left=left, label=label)
                seen.add(pipe)
            left += cycles
        _interval(axis, row + 0.3, item, scale)
    axis.set_yticks(range(len(rows)), [_label(_strategy(item)) for item in rows])
    axis.invert_yaxis()
    axis.set_xlabel("SM cycles per 1000 accumulators and 128 of K")
    axis.set_title(_device(profile))
    if seen:
        axis.legend(fontsize=8)


def _interval(axis: Axes, y: float, item: StrategyBalance, scale: float) -> None:
    low, high = scale * item.cycles_full_overlap, scale * item.cycles_no_overlap
    axis.plot([low, high], [y, y], color=style.INK, linewidth=1.4, marker="|", markersize=6)
    face = style.INK if item.overlap_origin == "measured" else style.PAPER
    axis.plot(scale * item.cycles_expected, y, marker="D", markersize=4, color=face, markeredgecolor=style.INK)


def _strategy(item: StrategyBalance) -> str:
    return f"{wording.choice(item.format, item.granularity)} {item.strategy}"


@style.styled
def draw_speedup(axis: Axes, profile: Profile) -> None:
    """Speed-up over FP16 of every layer role at every M, with the interval from no overlap of the pipes to full."""
    sizes = layer_tables.batch_sizes(profile.layers)
    if not any(layer_tables.speedup(time) for layer in profile.layers for time in layer.times):
        raise ApexError("this profile holds no speed-ups to plot")
    extremes = [1.0, profile.workload.min_speedup]
    for index, m in enumerate(sizes):
        extremes += _speedups_at(axis, profile, m, index, (index - (len(sizes) - 1) / 2) * 0.7 / len(sizes))
    axis.axhline(1.0, color=style.INK, linewidth=1)
    axis.axhline(profile.workload.min_speedup, color=style.VERMILLION, linewidth=1, linestyle="--")
    words = [
        "\n".join((layer.role, *wording.choice(layer.format, layer.granularity).split())) for layer in profile.layers
    ]
    axis.set_xticks(range(len(words)), words, fontsize=8)
    style.ratio_axis(axis, "y", min(extremes) / 1.12, max(extremes) * 1.12)
    axis.set_ylabel("speed-up over FP16")
    axis.set_title(_device(profile))
    axis.legend(fontsize=8)


def _speedups_at(axis: Axes, profile: Profile, m: int, index: int, shift: float) -> list[float]:
    """Draws one M of every layer; the values drawn."""
    colour, marker = style.CYCLE[index % len(style.CYCLE)], style.MARKERS[index % len(style.MARKERS)]
    drawn: list[float] = []
    label = f"M = {m}"
    for column, layer in enumerate(profile.layers):
        for time in layer.times:
            value, bounds = layer_tables.speedup(time), layer_tables.speedup_interval(time)
            if time.m != m or not value:
                continue
            if bounds is not None:
                axis.plot([column + shift] * 2, bounds, color=colour, linewidth=2, alpha=0.7)
                drawn += bounds
            face = colour if time.origin == "measured" else style.PAPER
            axis.plot(
                column + shift, value, marker=marker, color=face, markeredgecolor=colour, linestyle="", label=label
            )
            label = ""  # one entry in the legend
            drawn.append(value)
    return drawn


def _bar(axis: Axes, row: float, value: float, colour: str, *, solid: bool, left: float = 0.0, label: str = "") -> None:
    container = axis.barh(row, value, left=left, height=0.5, color=colour if solid else f"{colour}40", label=label)
    if not solid:
        for patch in container:
            patch.set(edgecolor=colour, hatch=style.HATCH, linewidth=0.8)


def _label(text: str) -> str:
    return wording.clip(text, LABEL_LIMIT)


def _device(profile: Profile) -> str:
    name = _label(profile.device.name)
    return name if profile.origin == "measured" else f"{name} (predicted)"
