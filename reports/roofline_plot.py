"""The roofline as a figure: bandwidth slope, Tensor Core roofs, dequantisation ceilings, and the layers on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apex4_probe.deployment import Format, Profile
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import wording
from apex4_probe.reports.roofline import SIZES, Ceiling, LayerPoint, Roofline, ceiling_name, roofline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS: dict[Format, str] = {
    "fp16": style.BLUE,
    "fp8": style.PURPLE,
    "w4a16": style.SKY,
    "w4a8": style.VERMILLION,
    "w4a4": style.GREEN,
}
TIMED, PLANNED = "x", "1"  # markers
LABEL_HEIGHT = 0.085  # of the axes: two lines of small type


@style.styled
def roofline_figure(profile: Profile) -> Figure | None:
    """Log-log; the layers at M = 1, 16, 256 and 4096 on their roof, and crosses below it at the plan's own times."""
    lines = roofline(profile)
    if lines is None:
        return None
    figure = style.new_figure(4.6)
    axis = figure.subplots()
    left = min(point.intensity for point in lines.points) / 1.6
    right = max(point.intensity for point in lines.points) * 2.2
    _roofs(axis, lines, left, right)
    for point in lines.points:
        _point(axis, point)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(left, right)
    planned = [point.planned for point in lines.points if point.planned]
    lowest = min([*(point.bound for point in lines.points), *planned])
    axis.set_ylim(lowest / 2, max(ceiling.tops for ceiling in lines.ceilings) * 1.9)
    _roof_labels(axis, lines)
    for which in (axis.xaxis, axis.yaxis):
        style.plain_log_ticks(which)
    axis.set_xlabel("operations per byte, two a MAC")
    axis.set_ylabel("T op/s")
    _legend(figure, lines)
    return figure


def _roofs(axis: Axes, lines: Roofline, left: float, right: float) -> None:
    slope = lines.read_gb_s / 1000
    highest = max(ceiling.tops for ceiling in lines.ceilings)
    solid = _line(lines.bandwidth_origin == "measured")
    axis.plot([left, highest / slope], [left * slope, highest], color=style.INK, linewidth=1.4, linestyle=solid)
    label = f"read {wording.number(lines.read_gb_s, lines.bandwidth_origin)} GB/s"
    at = (10 * left, 10 * left * slope)
    axis.annotate(label, at, (6, -8), textcoords="offset points", fontsize=8)
    for ceiling in lines.ceilings:
        axis.plot(
            [ceiling.tops / slope, right],
            [ceiling.tops] * 2,
            color=COLOURS[ceiling.format],
            linewidth=1.4 if ceiling.granularity is None else 1.0,
            linestyle=_line(ceiling.origin == "measured"),
        )


def _roof_labels(axis: Axes, lines: Roofline) -> None:
    """Right of the axes, a label a roof; those that would touch are pushed apart, the highest first."""
    bottom, top = (math.log(limit) for limit in axis.get_ylim())
    previous = math.inf
    for ceiling in sorted(lines.ceilings, key=lambda item: -item.tops):
        fraction = min((math.log(ceiling.tops) - bottom) / (top - bottom), previous - LABEL_HEIGHT)
        previous = fraction
        axis.text(
            1.01,
            fraction,
            f"{ceiling_name(ceiling)}\n{wording.number(ceiling.tops, ceiling.origin)} T op/s",
            transform=axis.transAxes,
            va="center",
            fontsize=8,
            color=style.INK,
        )


def _line(solid: bool) -> str:
    return "-" if solid else "--"


def _point(axis: Axes, point: LayerPoint) -> None:
    colour = COLOURS[point.format]
    if point.m in SIZES:
        marker = style.MARKERS[SIZES.index(point.m)]
        face = colour if point.origin == "measured" else style.PAPER
        axis.plot(
            point.intensity, point.bound, marker, color=face, markeredgecolor=colour, markersize=6, zorder=4, alpha=0.9
        )
    if point.planned:
        mark = TIMED if point.planned_origin == "measured" else PLANNED
        axis.plot(point.intensity, point.planned, mark, color=colour, markersize=5, zorder=3)


def _legend(figure: Figure, lines: Roofline) -> None:
    from matplotlib import lines as artists

    def mark(marker: str, colour: str, label: str) -> Line2D:
        return artists.Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=label)

    handles = [mark(style.MARKERS[index], style.INK, f"M = {m}") for index, m in enumerate(SIZES)]
    formats = dict.fromkeys(point.format for point in lines.points)
    handles += [mark("s", COLOURS[fmt], wording.format_name(fmt)) for fmt in formats]
    origins = {point.planned_origin for point in lines.points if point.planned}
    if "measured" in origins:
        handles.append(mark(TIMED, style.INK, "as timed"))
    if origins - {"measured"}:
        handles.append(mark(PLANNED, style.INK, "at the predicted time"))
    if any(not _is_measured(item) for item in lines.ceilings):
        handles.append(artists.Line2D([], [], linestyle="--", color=style.INK, label="dashed, hollow: predicted"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8)


def _is_measured(ceiling: Ceiling) -> bool:
    return ceiling.origin == "measured"


def alt_text(profile: Profile) -> str:
    """The picture in a sentence, with its figures."""
    lines = roofline(profile)
    if lines is None:
        return ""
    roofs = "; ".join(
        f"{ceiling_name(roof)} {wording.number(roof.tops, roof.origin)} T op/s" for roof in lines.ceilings
    )
    bound: Sequence[str] = [
        f"M = {m}: {', '.join(dict.fromkeys(point.bound_by for point in lines.points if point.m == m))}" for m in SIZES
    ]
    return (
        f"Roofline: read bandwidth {wording.number(lines.read_gb_s, lines.bandwidth_origin)} GB/s; {roofs}. "
        f"Layers are bound by, at {'; at '.join(bound)}."
    )
