"""Dot plots of a comparison: one row a profile, one panel a quantity. Solid is measured, hollow is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apex4_probe.compare_records import Comparison, Entry, Gain, Rate
from apex4_probe.reports import compare_words as words
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

ROW = 0.235  # inches
NAMES = 30
KINDS = {"INT4": style.GREEN, "INT8": style.BLUE, "FP8": style.PURPLE, "FP16": style.ORANGE, "FP32": style.GREY}
FORMATS = {"w4a4": style.GREEN, "w4a8": style.BLUE, "w4a16": style.PURPLE, "fp8": style.VERMILLION, "fp16": style.GREY}


@dataclass(frozen=True)
class Dot:
    """One mark in a row; ``low``, ``high``: an interval under it."""

    row: int
    value: float
    colour: str
    marker: str
    solid: bool
    low: float | None = None
    high: float | None = None
    shift: float = 0.0  # of a row, where marks share it


@style.styled
def throughput_figure(comparison: Comparison) -> Figure | None:
    """Three panels: per second, per clock and SM, per watt; a marker a kind of arithmetic."""
    entries = [entry for entry in comparison.entries if any(rate.tops for rate in entry.rates)]
    if not entries:
        return None
    measures: dict[str, tuple[Callable[[Rate], float | None], Callable[[Rate], bool]]] = {
        "T op/s": (lambda rate: rate.tops, lambda rate: rate.origin == "measured"),
        "MAC or FMA / clock / SM": (lambda rate: rate.per_clk, lambda rate: rate.origin == "measured"),
        "T op/s per W": (lambda rate: rate.per_watt, lambda rate: rate.watts_measured),
    }
    marks = dict(zip(KINDS, style.MARKERS, strict=False))
    panels = {
        title: [
            Dot(
                row, value, KINDS[rate.kind], marks[rate.kind], solid(rate), shift=_spread(list(KINDS).index(rate.kind))
            )
            for row, entry in enumerate(entries)
            for rate in entry.rates
            if (value := figure(rate))
        ]
        for title, (figure, solid) in measures.items()
    }
    used = [kind for kind in KINDS if any(rate.kind == kind and rate.tops for e in entries for rate in e.rates)]
    legend = {kind: (KINDS[kind], marks[kind]) for kind in used}
    return _panels(entries, panels, legend, solid="measured", hollow="datasheet or predicted")


def _spread(kind: int) -> float:
    """Equal rates (INT8 and FP8, say) must not cover each other."""
    return 0.17 * (kind - (len(KINDS) - 1) / 2)


@style.styled
def gain_figure(comparison: Comparison) -> Figure | None:
    """A panel a granularity, a colour a format, the interval from no overlap of the pipes to full overlap."""
    titles = {"channel": "channel", "a128i": "a128i, g128i", "g128i": "a128i, g128i", "g128": "g128", "mixed": "mixed"}
    entries = [entry for entry in comparison.entries if any(_placed(entry, titles))]
    if not entries:
        return None
    panels: dict[str, list[Dot]] = {"channel": [], "a128i, g128i": [], "g128": [], "g128 plain": [], "mixed": []}
    shown: list[str] = []
    for row, entry in enumerate(entries):
        for title, gain in _placed(entry, titles):
            marker = style.MARKERS[list(FORMATS).index(gain.format)]
            shift = {"w4a4": -0.2, "w4a8": 0.05, "w4a16": 0.28}.get(gain.format, 0.0)
            timed = gain.origin == "measured"
            low, high = (None, None) if timed else (gain.low, gain.high)
            dot = Dot(row, gain.speedup, FORMATS[gain.format], marker, timed, low, high, shift)
            panels[title].append(dot)
            shown.append(gain.format)
    legend = {
        wording.FORMATS[f]: (FORMATS[f], style.MARKERS[list(FORMATS).index(f)])  # type: ignore[index]
        for f in FORMATS
        if f in shown
    }
    figure = _panels(
        entries,
        {title: dots for title, dots in panels.items() if dots},
        legend,
        solid="timed",
        hollow="predicted; line: no overlap to full",
        one=True,
    )
    figure.supxlabel("speed-up over FP16, whole workload", fontsize=9)
    return figure


def _placed(entry: Entry, titles: dict[str, str]) -> Iterable[tuple[str, Gain]]:
    seen = set()
    for gain in entry.answer.gains if entry.answer else ():
        if gain.granularity in titles:
            again = (gain.format, gain.granularity) in seen
            seen.add((gain.format, gain.granularity))
            yield "g128 plain" if again else titles[gain.granularity], gain


@style.styled
def time_figure(comparison: Comparison) -> Figure | None:
    """A panel a point of the workload: milliseconds in the chosen format, its interval, and FP16 beside it."""
    entries = [entry for entry in comparison.entries if entry.answer]
    if not entries:
        return None
    points = words.points(comparison)[:4]
    panels: dict[str, list[Dot]] = {words.point_name(*point): [] for point in points}
    shown: set[str] = set()
    for row, entry in enumerate(entries):
        assert entry.answer is not None
        format = entry.answer.decision.format
        for time in entry.answer.times[: len(points)]:
            panel = panels[words.point_name(time.phase, time.m)]
            shown |= {format, "fp16"}
            solid = time.origin == "measured"
            for name, us, low, high in (
                ("fp16", time.us_fp16, None, None),
                (format, time.us, time.us_low, time.us_high),
            ):
                if us > 0:
                    interval = (low / 1e3 if low else None, high / 1e3 if high else None)
                    marker = style.MARKERS[list(FORMATS).index(name)]
                    panel.append(Dot(row, us / 1e3, FORMATS[name], marker, solid, *interval))
    legend = {
        wording.FORMATS[f]: (FORMATS[f], style.MARKERS[list(FORMATS).index(f)])  # type: ignore[index]
        for f in FORMATS
        if f in shown
    }
    figure = _panels(entries, panels, legend, solid="timed", hollow="predicted; line: no overlap to full")
    figure.supxlabel("milliseconds, all linear layers once", fontsize=9)
    return figure


def _panels(
    entries: Sequence[Entry],
    panels: dict[str, list[Dot]],
    legend: dict[str, tuple[str, str]],
    *,
    solid: str,
    hollow: str,
    one: bool = False,
) -> Figure:
    """Panels side by side on shared rows; ``one``: their value axis is shared too, and crosses 1."""
    figure = style.new_figure(1.35 + ROW * len(entries))
    axes = figure.subplots(1, len(panels), sharey=True, sharex=one, squeeze=False)[0]
    for axis, (title, dots) in zip(axes, panels.items(), strict=True):
        _draw(axis, dots)
        axis.set_title(title, fontsize=8.5)
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=True, axis="y", alpha=0.6)
        if one:
            axis.axvline(1.0, color=style.INK, linewidth=1)
    extremes = {id(axis): _extremes(dots) for axis, dots in zip(axes, panels.values(), strict=True)}
    everywhere = _extremes([dot for dots in panels.values() for dot in dots])
    for axis in axes:
        low, high = everywhere if one else extremes[id(axis)]
        _log_axis(axis, low / 1.2, high * 1.2)
    axes[0].set_yticks(range(len(entries)), [_row_name(entry) for entry in entries], fontsize=8)
    axes[0].set_ylim(len(entries) - 0.4, -0.6)
    _legend(figure, legend, [dot for dots in panels.values() for dot in dots], solid, hollow)
    return figure


def _row_name(entry: Entry) -> str:
    name = words.label(entry, NAMES)
    return name if name.endswith((", measured", ", predicted")) or not words.is_measured(entry) else f"{name}, measured"


def _extremes(dots: Sequence[Dot]) -> tuple[float, float]:
    values = [v for dot in dots for v in (dot.value, dot.low, dot.high) if v]
    return (min(values), max(values)) if values else (1.0, 1.0)


def _draw(axis: Axes, dots: Sequence[Dot]) -> None:
    """One artist a look, since drawing takes as long as there are artists."""
    spans = [dot for dot in dots if dot.low and dot.high]
    if spans:
        ys, lows, highs = zip(*((dot.row + dot.shift, dot.low, dot.high) for dot in spans), strict=True)
        axis.hlines(ys, lows, highs, colors=[dot.colour for dot in spans], linewidth=1.6, alpha=0.7, zorder=2)
    looks: dict[tuple[str, str, bool], list[Dot]] = {}
    for dot in dots:
        looks.setdefault((dot.colour, dot.marker, dot.solid), []).append(dot)
    for (colour, marker, solid), members in looks.items():
        values, rows = [dot.value for dot in members], [dot.row + dot.shift for dot in members]
        face = colour if solid else style.PAPER
        axis.plot(values, rows, marker, color=face, markeredgecolor=colour, markeredgewidth=1.4, markersize=5, zorder=3)


def _log_axis(axis: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xlim(low, high)
    decades = range(-4, 7)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**n for n in decades for step in steps if low <= step * 10.0**n <= high]
        if len(ticks) <= 5:
            break
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)


def _legend(figure: Figure, names: dict[str, tuple[str, str]], dots: Sequence[Dot], solid: str, hollow: str) -> None:
    from matplotlib import lines

    handles: list[Line2D] = []
    for name, (colour, marker) in names.items():
        handle = lines.Line2D([], [], linestyle="", marker=marker, markersize=5, color=style.PAPER, label=name)
        handle.set(markeredgecolor=colour, markeredgewidth=1.6)
        handles.append(handle)
    if any(dot.solid for dot in dots):
        handles.append(lines.Line2D([], [], linestyle="", marker="o", markersize=5, color=style.INK, label=solid))
    if not all(dot.solid for dot in dots):
        handle = lines.Line2D([], [], linestyle="", marker="o", markersize=5, color=style.PAPER, label=hollow)
        handle.set_markeredgecolor(style.INK)
        handles.append(handle)
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8, columnspacing=1.2)
