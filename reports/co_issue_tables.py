"""Co-issue curves as tables: all of them for the page, the ones that say most for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from apex4_probe.deployment import Profile
from apex4_probe.reports import wording
from apex4_probe.reports.co_issue_curves import KNEE_TOLERANCE, Curve, curves, knee_text, leading_shapes
from apex4_probe.reports.tables import Row, Table, columns_of

SHORT_INSTRUCTIONS = ("ffma", "ffma3", "imad", "i2f_ffma")
SHORT_ROWS = 16

CO_ISSUE_CAPTION = (
    "Cycles over those of the MMA alone, with k CUDA-core instructions per accumulator and four MMA K-steps. The knee "
    f"is the largest k up to which every point stays at or below {KNEE_TOLERANCE:.2f}: so much work is free."
)


def co_issue_table(profile: Profile) -> Table:
    """One row a curve: cycles over those of the MMA alone at every k, and the knee."""
    gathered = curves(profile.co_issue)
    ks = sorted({k for curve in gathered for k in curve.ks})
    return _co_issue_rows(gathered, ks, "Co-issue")


def co_issue_summary(profile: Profile) -> tuple[Table, int]:
    """The curves that say most, at most four k, and how many curves were left out.

    Of every MMA the leading shape, FFMA first; where none of ``SHORT_INSTRUCTIONS`` was run, whatever was.
    """
    gathered = curves(profile.co_issue)
    leading = leading_shapes(gathered)
    candidates = [curve for curve in gathered if leading[curve.mma] == curve.shape]
    order = {instruction: rank for rank, instruction in enumerate(SHORT_INSTRUCTIONS)}
    rank = sorted(candidates, key=lambda curve: order.get(curve.instruction, len(order)))
    kept = [curve for curve in rank if curve.instruction in order] or rank
    chosen = sorted(kept[:SHORT_ROWS], key=lambda curve: list(leading).index(curve.mma))
    ks = sorted({k for curve in chosen for k in curve.ks})
    shown = [k for k in ks if k in (0, 1, 2, 4)] or ks[:4]
    return _co_issue_rows(chosen, shown, "Co-issue"), len(gathered) - len(chosen)


def _co_issue_rows(chosen: Sequence[Curve], ks: Sequence[int], title: str) -> Table:
    rows = []
    for curve in chosen:
        points = [curve.at(k) for k in ks]
        ratios = (
            "" if point is None else wording.times(point.cycles_over_mma_alone, point.origin).rstrip("×")
            for point in points
        )
        mma = f"{wording.clean(curve.mma)} {wording.clean(curve.shape)}"
        cells = (
            mma,
            wording.placement_name(curve.placement),
            wording.clean(curve.instruction),
            *ratios,
            knee_text(curve),
        )
        rows.append(Row((*cells, curve.origin), predicted=curve.origin == "predicted"))
    titles = ["MMA", "placement", "instruction", *(f"#k={k}" for k in ks), "#knee", "origin"]
    return Table(title, columns_of(*titles), tuple(rows), CO_ISSUE_CAPTION)
