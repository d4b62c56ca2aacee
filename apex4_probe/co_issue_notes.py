"""What a GPU's own co-issue curves tell the author of a kernel, computed from the records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from apex4_probe.deployment import CoIssue

FREE = 1.05  # t_both / t_mma up to which work counts as free, as in the report: above noise, below any real pass
WIDEST = "wgmma.s8", "m64n256k32.rs"
MMA_SYNC = "mma.s8", "m16n8k32"


def note(co_issue: Iterable[CoIssue]) -> str:
    """One sentence from the FFMA curves of INT8 MMAs that were measured here; empty where there are none."""
    curves = [point for point in co_issue if point.origin == "measured" and point.instruction == "ffma"]
    parts = [
        *_wgmma(_curve(curves, WIDEST, "at_issue"), _curve(curves, WIDEST, "after_complete")),
        *_mma_sync(_curve(curves, MMA_SYNC, "same_warps")),
    ]
    return f"Co-issue measured here, with k FFMA per accumulator and 128 of K: {'; '.join(parts)}." if parts else ""


def _wgmma(at_issue: Sequence[CoIssue], after_complete: Sequence[CoIssue]) -> Iterable[str]:
    worked = [point for point in at_issue if point.k > 0]
    free = 0
    for point in worked:
        if point.cycles_over_mma_alone > FREE:
            cost = f"k = {point.k} costs {point.cycles_over_mma_alone - 1:.0%}"
            told = f"up to k = {free} is free, {cost}" if free else cost
            yield f"behind {point.mma} {point.shape}, handed over at issue, {told}"
            break
        free = point.k
    else:
        if free:
            yield f"behind {worked[0].mma} {worked[0].shape}, handed over at issue, k = {free} is still free"
    if after_complete:
        costs = (f"k = {point.k} costs {point.cycles_over_mma_alone - 1:.0%}" for point in after_complete[:2])
        yield f"handed over after the last wgmma is complete, {' and '.join(costs)}"


def _mma_sync(points: Sequence[CoIssue]) -> Iterable[str]:
    """What is visible of the passes after the first: the first also fills gaps that the MMAs leave."""
    timed = [point for point in points if point.k > 0 and point.cuda_over_mma_alone is not None]
    if len(timed) < 2:
        return
    first, last = timed[0], timed[-1]
    added = (last.cuda_over_mma_alone or 0.0) - (first.cuda_over_mma_alone or 0.0)
    if added > 0:
        visible = min(1.0, max(0.0, (last.cycles_over_mma_alone - first.cycles_over_mma_alone) / added))
        yield (
            f"in the warps of {first.mma} {first.shape}, k = {first.k} costs {first.cycles_over_mma_alone - 1:.0%} and "
            f"{visible:.0%} of every further FFMA is visible"
        )


def _curve(points: Iterable[CoIssue], loop: tuple[str, str], placement: str) -> list[CoIssue]:
    here = (point for point in points if (point.mma, point.shape) == loop and point.placement == placement)
    return sorted(here, key=lambda point: point.k)
