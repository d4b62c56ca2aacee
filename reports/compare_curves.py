"""Co-issue curves of several profiles overlaid: only where MMA, shape, placement and instruction are the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apex4_probe.compare_records import Comparison
from apex4_probe.reports import compare_words as words
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import wording
from apex4_probe.reports.co_issue_curves import KNEE_TOLERANCE, Curve, curves, knee_text
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Key = tuple[str, str, str, str]
PANELS = 6  # that a figure of README width bears
FIRST = ("ffma", "imad", "i2f_ffma", "fadd", "lop3", "ffma3", "nop")
SAY_MOST = 3  # of them, about dequantisation
PLACEMENTS = ("at_issue", "same_warps")  # where dequantisation sits in a kernel; the others come after
MMAS = ("wgmma.s8", "mma.s4", "mma.s8", "wgmma.f16", "mma.f16")


def shared_curves(comparison: Comparison) -> dict[Key, list[tuple[int, Curve]]]:
    """Curves of two points or more that at least two profiles hold, by (mma, shape, placement, instruction).

    The int is the entry's index.
    """
    found: dict[Key, list[tuple[int, Curve]]] = {}
    for index, entry in enumerate(comparison.entries):
        for curve in curves(entry.subject.profile.co_issue):
            if len(curve.points) > 1:
                key = (curve.mma, curve.shape, curve.placement, curve.instruction)
                found.setdefault(key, []).append((index, curve))
    return {key: members for key, members in found.items() if len(members) > 1}


def leading(shared: dict[Key, list[tuple[int, Curve]]]) -> list[Key]:
    """The panels of the figure: INT8 before FP16, the placement that kernels use, FFMA and IMAD first."""

    def rank(key: Key) -> tuple[bool, bool, bool, int, int]:
        mma, _, placement, instruction = key
        floating, late = mma.endswith("f16"), _at(FIRST, instruction) >= SAY_MOST
        return placement not in PLACEMENTS, floating, late, _at(MMAS, mma), _at(FIRST, instruction)

    widest: dict[tuple[str, str, str], Key] = {}
    for key in sorted(shared, key=lambda key: _width(key[1])):
        widest[key[0], key[2], key[3]] = key  # the widest shape speaks for its MMA
    return sorted(widest.values(), key=rank)[:PANELS]


def _at(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _width(shape: str) -> int:
    found = re.search(r"n(\d{1,9})", shape)
    return int(found[1]) if found else 0


@style.styled
def co_issue_figure(comparison: Comparison) -> Figure | None:
    """A panel a loop, a line a profile; None where no two profiles ran the same loop."""
    shared = shared_curves(comparison)
    keys = leading(shared)
    if not keys:
        return None
    columns = min(3, len(keys))
    depth = -(-len(keys) // columns)
    users = sorted({index for key in keys for index, _ in shared[key]})
    figure = style.new_figure(1.1 + 2.3 * depth)
    axes: list[Axes] = list(figure.subplots(depth, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axis, key in zip(axes, keys, strict=False):
        mma, shape, placement, instruction = (wording.clip(part, 20) for part in key)
        axis.set_title(f"{mma} {shape}\n{instruction}, {wording.placement_name(placement)}", fontsize=8)
        axis.axhspan(1.0, KNEE_TOLERANCE, color=style.GREEN, alpha=0.18, linewidth=0)
        for index, curve in shared[key]:
            _draw(axis, curve, users.index(index))
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    ratios = [ratio for key in keys for _, curve in shared[key] for ratio in curve.ratios if ratio > 0]
    style.ratio_axis(axes[0], "y", min([*ratios, 1.0]) / 1.03, max([*ratios, 1.3]) * 1.05)
    figure.supxlabel("CUDA-core instructions per accumulator and four MMA K-steps", fontsize=9)
    figure.supylabel("cycles over the MMA alone", fontsize=9)
    _legend(figure, comparison, users)
    return figure


def _draw(axis: Axes, curve: Curve, look: int) -> None:
    colour, marker = style.CYCLE[look % len(style.CYCLE)], style.MARKERS[look % len(style.MARKERS)]
    face = colour if curve.origin == "measured" else style.PAPER
    width, size = max(1.2, 4.2 - 1.4 * look), max(3.5, 7.5 - 2 * look)  # what a later line covers shows at its edges
    axis.plot(
        curve.ks, curve.ratios, color=colour, marker=marker, markersize=size, markerfacecolor=face, linewidth=width,
        linestyle="-" if curve.origin == "measured" else "--",
    )  # fmt: skip


def _legend(figure: Figure, comparison: Comparison, users: Sequence[int]) -> None:
    from matplotlib import lines

    handles: list[Line2D] = []
    for look, index in enumerate(users):
        entry = comparison.entries[index]
        colour, marker = style.CYCLE[look % len(style.CYCLE)], style.MARKERS[look % len(style.MARKERS)]
        name = words.label(entry, 36)
        text = name if name.endswith(words.origin(entry)) else f"{name}, {words.origin(entry)}"
        handle = lines.Line2D([], [], color=colour, marker=marker, markersize=4, label=text)
        if not words.is_measured(entry):
            handle.set(markerfacecolor=style.PAPER, linestyle="--")
        handles.append(handle)
    figure.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=8)


def co_issue_table(comparison: Comparison) -> Table:
    """The curves that the figure draws, one row a profile; the profiles have the rest."""
    shared = shared_curves(comparison)
    keys = leading(shared)
    ks = sorted({k for key in keys for _, curve in shared[key] for k in curve.ks})
    rows = []
    for key in keys:
        for index, curve in shared[key]:
            points = [curve.at(k) for k in ks]
            ratios = (ABSENT if p is None else wording.number(p.cycles_over_mma_alone, p.origin) for p in points)
            loop = f"{wording.clean(curve.mma)} {wording.clean(curve.shape)}"
            where = f"{wording.clean(curve.instruction)}, {wording.placement_name(curve.placement)}"
            name = words.label(comparison.entries[index])
            cells = (name, loop, where, *ratios, knee_text(curve), curve.origin)
            rows.append(Row(cells, predicted=curve.origin != "measured"))
    titles = ["device", "MMA", "instruction", *(f"#k={k}" for k in ks), "#knee", "origin"]
    caption = (
        "Cycles over those of the MMA alone with k CUDA-core instructions per accumulator and four MMA K-steps; only "
        f"loops that two profiles share. {len(shared)} such loops, of which {len(keys)} are shown."
    )
    return Table("Co-issue", columns_of(*titles), tuple(rows), caption)
