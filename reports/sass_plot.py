"""What every kernel's hot loop keeps busy, pipe by pipe, and the bounds that follow: a panel an architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apex4_probe.reports import figure_style as style
from apex4_probe.reports import wording
from apex4_probe.reports.plots import PIPE_COLOURS
from apex4_probe.reports.sass_table import in_order
from apex4_probe.reports.tables import BALANCE_SCALE
from apex4_probe.sass_records import HotLoop, SassRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.36  # inches a variant takes
TILED = 64  # weight rows or tokens of the smallest tile that is drawn: below it memory decides, not a pipe


@style.styled
def sass_figure(records: Sequence[SassRecord], loops: Sequence[HotLoop]) -> Figure | None:
    """Each variant by its largest tile. None: none of the tiles is one for many tokens.

    Compiled facts at documented rates, nothing timed: hatched, as everything that is predicted.
    """
    panels: dict[str, list[tuple[SassRecord, HotLoop]]] = {}
    for record, loop in largest(records, loops):
        panels.setdefault(record.arch, []).append((record, loop))
    if not panels:
        return None
    counts = [len(rows) for rows in panels.values()]
    figure = style.new_figure(1.0 + ROW * sum(counts) + 0.5 * len(counts))
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=[count + 0.4 for count in counts])
    furthest = 0.0
    for axis, (arch, rows) in zip(axes[:, 0], panels.items(), strict=True):
        for row, (record, loop) in enumerate(rows):
            furthest = max(furthest, _row(axis, row, record, BALANCE_SCALE / loop.accumulators))
        axis.set_yticks(range(len(rows)), [wording.clip(record.variant, 24) for record, _ in rows], fontsize=8)
        axis.set_ylim(len(rows) - 0.35, -0.6)
        axis.set_title(arch)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
    axes[-1, 0].set_xlim(0, 1.35 * furthest)
    axes[-1, 0].set_xlabel("SM cycles per 1000 accumulators and 128 of K")
    _legend(figure)
    return figure


def largest(records: Sequence[SassRecord], loops: Sequence[HotLoop]) -> list[tuple[SassRecord, HotLoop]]:
    """Of each variant and architecture the loop with the largest tile, where that is one for many tokens."""
    best: dict[tuple[str, str], tuple[SassRecord, HotLoop]] = {}
    for record, loop in zip(records, loops, strict=True):
        key = (record.arch, record.variant)
        if key not in best or loop.accumulators > best[key][1].accumulators:
            best[key] = (record, loop)
    return [pair for pair in best.values() if pair[1].accumulators >= TILED * TILED]


def _row(axis: Axes, row: int, record: SassRecord, scale: float) -> float:
    """Draws one loop; returns how far to the right it reaches."""
    left = 0.0
    for pipe, colour in PIPE_COLOURS.items():
        if cycles := scale * record.pipes[pipe]:
            style.bar(axis, row - 0.1, cycles, colour, solid=False, left=left, height=0.46)
            left += cycles
    issue = scale * record.pipes["issue"]
    axis.plot([issue, issue], [row - 0.38, row + 0.18], color=style.INK, linewidth=1.6, zorder=3)
    low, middle, high = (scale * bound.cycles for bound in in_order(record.bounds))
    y = row + 0.28
    axis.plot([low, high], [y, y], color=style.INK, linewidth=1.4, marker="|", markersize=6, zorder=3)
    axis.plot(middle, y, marker="D", markersize=5, color=style.PAPER, markeredgecolor=style.INK, zorder=4)
    speedups = " – ".join(f"{bound.speedup_fp16:.1f}" for bound in in_order(record.bounds))
    label = f"{speedups} × FP16"
    axis.annotate(label, (max(left, high), row), (6, 0), textcoords="offset points", va="center", fontsize=8)
    return max(left, high)


def _legend(figure: Figure) -> None:
    from matplotlib import lines, patches

    handles: list[patches.Patch | lines.Line2D] = [
        patches.Patch(facecolor="none", edgecolor=colour, hatch=style.HATCH, label=pipe)
        for pipe, colour in PIPE_COLOURS.items()
    ]
    handles.append(lines.Line2D([], [], linestyle="", marker="|", markersize=9, color=style.INK, label="issue slots"))
    handles.append(lines.Line2D([], [], color=style.INK, marker="|", markersize=6, label="full overlap to none"))
    hollow = lines.Line2D([], [], linestyle="", marker="D", markersize=5, color=style.PAPER)
    hollow.set(markeredgecolor=style.INK, label="MMA and dequantisation in sequence")
    figure.legend(handles=[*handles, hollow], loc="outside upper left", ncols=4, fontsize=8)
