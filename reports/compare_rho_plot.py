"""rho across GPUs, over the map of which granularity wins at which rho and wanted speed-up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from apex4_probe.compare_records import Comparison, Entry, Region
from apex4_probe.reports import compare_words as words
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

COLOURS = {
    "W4A16": style.PURPLE,
    "fine": style.GREEN,
    "mixed": style.BLUE,
    "coarse": style.ORANGE,
    "stay in FP16": style.GREY,
}
COLUMNS = {"plain": "group scales as in the paper's kernel", "all": "best of all strategies"}
PHASE_HEIGHT = {"decode": 0.95, "prefill": 2.1}
ROW = 0.2
FILL = 0.38
NAMES = 30
LEAST_HEIGHT = 0.07  # of the map: what a name needs


@style.styled
def rho_figure(comparison: Comparison) -> Figure | None:
    """Maps above, one row a GPU below, on one rho axis; left the plain strategy, right the best of all."""
    entries = sorted((entry for entry in comparison.entries if _place(entry)), key=_rank)
    if not entries:
        return None
    points = list(dict.fromkeys((region.phase, region.m) for region in comparison.map.regions))
    heights = [*(PHASE_HEIGHT[phase] for phase, _ in points), ROW * len(entries) + 0.3]
    figure = style.new_figure(sum(heights) + 1.6)
    axes = figure.subplots(len(heights), 2, sharex=True, sharey="row", squeeze=False, height_ratios=heights)
    for column, strategies in enumerate(COLUMNS):
        for row, (phase, m) in enumerate(points):
            here = [r for r in comparison.map.regions if (r.strategies, r.phase, r.m) == (strategies, phase, m)]
            _map(axes[row, column], here)
            axes[row, 0].set_ylabel(f"{words.point_name(phase, m)}\nwanted speed-up", fontsize=8)
        axes[0, column].set_title(COLUMNS[strategies], fontsize=9)
        _rows(axes[-1, column], entries, strategies)
    axes[-1, 0].set_yticks(range(len(entries)), [words.label(entry, NAMES) for entry in entries], fontsize=8)
    axes[-1, 0].set_ylim(len(entries) - 0.4, -0.6)
    rhos = [region.rho for region in comparison.map.regions] + [place[0] for e in entries if (place := _place(e))]
    _rho_axis(axes[0, 0], min(rhos) / 1.15, max(rhos) * 1.15)
    figure.supxlabel("rho: Tensor Core over CUDA Core (FP32) throughput", fontsize=9)
    _legend(figure, entries)
    return figure


def _place(entry: Entry) -> tuple[float, str, str] | None:
    """rho, its origin and its kind: INT4, else INT8 where INT4 is not in hardware."""
    for kind in ("int4", "int8"):
        figures = [figure for name, figure in entry.subject.profile.rho.items() if name == kind]
        value, origin = words.rho_shown(figures[0] if figures else None)
        if value is not None and value > 0:
            return value, origin, kind
        if kind == "int4" and figures and not figures[0].usable and figures[0].reason.startswith("block scales"):
            int8 = [f for name, f in entry.subject.profile.rho.items() if name == "int8"]
            listed = int8[0].datasheet if int8 else None
            return (listed, "datasheet", "block") if listed else None
    return None


def _rank(entry: Entry) -> tuple[int, float]:
    place = _place(entry)
    assert place is not None
    return ("int4", "int8", "block").index(place[2]), place[0]


def _map(axis: Axes, regions: Sequence[Region]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    finite = [region.high for region in regions if math.isfinite(region.high)]
    top = 1.15 * max([*finite, 1.5])
    rhos = sorted({region.rho for region in regions})
    half = math.sqrt(rhos[1] / rhos[0]) if len(rhos) > 1 else 1.2
    tallest: dict[str, tuple[float, float, float]] = {}  # height, rho and middle of where a name fits best
    tiles: dict[str, list[Path]] = {}
    widths = Counter(_name(region) for region in regions)
    for region in regions:
        name, high = _name(region), min(region.high, top)
        word = wording.verdict_word(region.format, region.granularity)
        left, right = region.rho / half, region.rho * half
        corners = [(left, region.low), (right, region.low), (right, high), (left, high), (left, region.low)]
        tiles.setdefault(word, []).append(Path(corners, closed=True))
        place = (high - region.low, region.rho, (high + region.low) / 2)
        tallest[name] = max(tallest.get(name, place), place)
    for word, members in tiles.items():  # one path a colour: between paths, seams would show
        whole = Path.make_compound_path(*members)
        axis.add_patch(PathPatch(whole, facecolor=COLOURS[word], alpha=FILL, linewidth=0))
    for name, (height, rho, middle) in tallest.items():
        if height > LEAST_HEIGHT * (top - 1) and widths[name] > 1:
            _write(axis, name, rho, middle, rhos)
    axis.set_ylim(1, top)
    axis.grid(visible=False)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")


def _name(region: Region) -> str:
    """The verdict; a granularity beside the usual one of its kind is named."""
    word = wording.verdict_word(region.format, region.granularity)
    return region.granularity if word == "fine" and region.granularity != "g128" else word


def _write(axis: Axes, name: str, rho: float, middle: float, rhos: Sequence[float]) -> None:
    """A name at its tallest place, kept off the edges of the map."""
    side: Literal["left", "right", "center"] = "center"
    if rho <= rhos[1]:
        rho, side = rhos[0], "left"
    elif rho >= rhos[-2]:
        rho, side = rhos[-1], "right"
    axis.annotate(name, (rho, middle), ha=side, va="center", fontsize=8)


def _rows(axis: Axes, entries: Sequence[Entry], strategies: str) -> None:
    for row, entry in enumerate(entries):
        place = _place(entry)
        assert place is not None
        value, origin, kind = place
        decision = None
        if entry.answer is not None:
            decision = entry.answer.plain if strategies == "plain" else entry.answer.w4a4
        word = wording.verdict_word(decision.format, decision.granularity) if decision else ""
        colour = COLOURS.get(word, style.INK) if kind == "int4" else style.GREY
        face = colour if origin == "measured" else style.PAPER
        marker = {"int4": "o", "int8": "s", "block": "D"}[kind]
        axis.plot(value, row, marker, color=face, markeredgecolor=colour, markeredgewidth=1.7, markersize=6)
        text = word if kind == "int4" else {"int8": "INT8; no INT4", "block": "INT8; block scales in hardware"}[kind]
        left = value > 24
        axis.annotate(
            text, (value, row), (-7 if left else 7, 0), textcoords="offset points",
            ha="right" if left else "left", va="center", fontsize=7.5,
        )  # fmt: skip
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def _rho_axis(axis: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(FixedLocator([2.0**n for n in range(9) if low <= 2.0**n <= high]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, entries: Sequence[Entry]) -> None:
    from matplotlib import lines, patches

    handles: list[Patch | Line2D] = [
        patches.Patch(color=colour, alpha=FILL, linewidth=0, label=word) for word, colour in COLOURS.items()
    ]
    origins = {place[1] for entry in entries if (place := _place(entry))}
    for name, face, wanted in (("measured", style.INK, True), ("datasheet or predicted", style.PAPER, False)):
        if any((origin == "measured") is wanted for origin in origins):
            handle = lines.Line2D([], [], linestyle="", marker="o", markersize=6, color=face, label=name)
            handle.set_markeredgecolor(style.INK)
            handles.append(handle)
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8, columnspacing=1.2)
