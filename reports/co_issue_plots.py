"""The co-issue curves as figures: what CUDA-core work costs beside the Tensor Core, and where it stops being free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from apex4_probe.deployment import Profile
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import wording
from apex4_probe.reports.co_issue_curves import KNEE_TOLERANCE, Curve, curves, leading_shapes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

OVERVIEW_LINES = 7  # that an eye tells apart in one panel, one colour each
OVERVIEW_INSTRUCTIONS = ("ffma", "imad", "i2f_ffma")
X_LABEL = "CUDA-core instructions per accumulator and four MMA K-steps"
Y_LABEL = "cycles over the MMA alone"
LINE_STYLES: tuple[Literal["-"], Literal["--"], Literal["-."], Literal[":"]] = ("-", "--", "-.", ":")


@style.styled
def co_issue_figure(profile: Profile) -> Figure | None:
    """One panel per MMA and shape, one line per placement and instruction; a ring marks the knee.

    Where a profile holds more combinations than an eye can tell apart, FFMA in every placement is drawn first.
    """
    gathered = curves(profile.co_issue)
    if not gathered:
        return None
    chosen = _overview_lines(gathered)
    panels: dict[str, list[Curve]] = {}
    for curve in gathered:
        if _line(curve) in chosen:
            panels.setdefault(f"{curve.mma} {curve.shape}", []).append(curve)
    looks = {line: index for index, line in enumerate(chosen)}
    labels = [
        f"{wording.clip(instruction, 20)}, {wording.placement_name(placement)}" for placement, instruction in chosen
    ]
    named = {title: [(curve, looks[_line(curve)]) for curve in members] for title, members in panels.items()}
    return _panels(named, labels)


def _line(curve: Curve) -> tuple[str, str]:
    return curve.placement, curve.instruction


def _overview_lines(gathered: Sequence[Curve]) -> list[tuple[str, str]]:
    present = list(dict.fromkeys(_line(curve) for curve in gathered))
    if len(present) <= OVERVIEW_LINES:
        return present
    order = {instruction: rank for rank, instruction in enumerate(OVERVIEW_INSTRUCTIONS)}
    return sorted(present, key=lambda line: order.get(line[1], len(order)))[:OVERVIEW_LINES]


@style.styled
def co_issue_details(profile: Profile) -> dict[str, Figure]:
    """Of each MMA's leading shape, one panel per placement and one line per instruction; keyed by MMA and shape."""
    gathered = curves(profile.co_issue)
    figures: dict[str, Figure] = {}
    for mma, shape in leading_shapes(gathered).items():
        members = [curve for curve in gathered if curve.mma == mma and curve.shape == shape]
        instructions = list(dict.fromkeys(curve.instruction for curve in members))
        panels: dict[str, list[tuple[Curve, int]]] = {}
        for curve in members:
            panel = panels.setdefault(wording.placement_name(curve.placement), [])
            panel.append((curve, instructions.index(curve.instruction)))
        labels = [wording.clip(instruction, 24) for instruction in instructions]
        figures[f"{wording.clean(mma)} {wording.clean(shape)}"] = _panels(panels, labels)
    return figures


def _panels(panels: dict[str, list[tuple[Curve, int]]], labels: Sequence[str]) -> Figure:
    """A grid of panels on shared axes under one legend; the int beside a curve is its look and its label."""
    columns = min(len(panels), 3)
    depth = -(-len(panels) // columns)
    figure = style.new_figure(1.3 + 2.35 * depth + 0.17 * (len(labels) // 3))
    grid = figure.subplots(depth, columns, squeeze=False, sharex=True, sharey=True)
    axes: list[Axes] = list(grid.flat)
    every = [curve for members in panels.values() for curve, _ in members]
    highest = max(ratio for curve in every for ratio in curve.ratios)
    lowest = min(ratio for curve in every for ratio in curve.ratios)
    for axis, (title, members) in zip(axes, panels.items(), strict=False):
        axis.set_title(wording.clip(title, 34), fontsize=9)
        axis.axhspan(1.0, KNEE_TOLERANCE, color=style.GREEN, alpha=0.18, linewidth=0)
        for curve, look in members:
            _draw(axis, curve, look)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for index, axis in enumerate(axes[: len(panels)]):
        axis.tick_params(labelbottom=index + columns >= len(panels))
    style.ratio_axis(axes[0], "y", min(lowest, 1.0) / 1.03, max(highest, 1.3) * 1.05)
    ks = sorted({k for curve in every for k in curve.ks})
    axes[0].set_xticks(ks if len(ks) <= 9 else ks[:: -(-len(ks) // 9)])
    figure.supxlabel(X_LABEL, fontsize=9)
    figure.supylabel(Y_LABEL, fontsize=9)
    _legend(figure, every, labels)
    return figure


def _draw(axis: Axes, curve: Curve, look: int) -> None:
    """Earlier lines are thicker, so that one which a later line covers still shows at its edges."""
    colour, marker = _look(look)
    face = colour if curve.origin == "measured" else style.PAPER
    axis.plot(
        curve.ks,
        curve.ratios,
        color=colour,
        linestyle=LINE_STYLES[look // len(style.CYCLE) % len(LINE_STYLES)],
        linewidth=max(1.2, 2.8 - 0.3 * look),
        marker=marker,
        markersize=4,
        markerfacecolor=face,
    )
    if curve.knee is not None and not curve.open_ended:
        knee = curve.at(curve.knee)
        assert knee is not None
        at = (knee.k, knee.cycles_over_mma_alone)
        axis.plot(*at, "o", markersize=10, markerfacecolor="none", markeredgecolor=colour)


def _look(index: int) -> tuple[str, str]:
    return style.CYCLE[index % len(style.CYCLE)], style.MARKERS[index % len(style.MARKERS)]


def _legend(figure: Figure, every: Sequence[Curve], labels: Sequence[str]) -> None:
    from matplotlib import lines, patches

    measured = all(curve.origin == "measured" for curve in every)
    handles: list[Line2D | Patch] = []
    for index, label in enumerate(labels):
        colour, marker = _look(index)
        dashes = LINE_STYLES[index // len(style.CYCLE) % len(LINE_STYLES)]
        handles.append(lines.Line2D([], [], color=colour, marker=marker, markersize=4, linestyle=dashes, label=label))
    handles.append(patches.Patch(color=style.GREEN, alpha=0.18, label=f"free: at most {KNEE_TOLERANCE:.2f}×"))
    ring = lines.Line2D([], [], linestyle="", marker="o", markersize=9, color=style.INK, label="knee")
    ring.set_markerfacecolor("none")
    handles.append(ring)
    if not measured:
        hollow = lines.Line2D([], [], marker="o", markersize=4, color=style.INK, label="hollow: predicted")
        hollow.set_markerfacecolor(style.PAPER)
        handles.append(hollow)
    columns = 2 if max(len(label) for label in labels) > 24 else 4
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8)
