"""What the co-issue curves of a profile say, in sentences computed from its records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median

from apex4_probe.deployment import CoIssue, Measurement, Profile
from apex4_probe.reports import wording
from apex4_probe.reports.co_issue_curves import Curve, curves, leading_shapes

IN_STEP = 0.10  # cycles of the slowest SM over the median one's, minus 1: ten times what SMs differ by in step
HIDES_NOTHING = 0.9  # of an instruction's own time, seen in full but for a tenth
ONE_OVER_N = 0.05  # by which cost times n may differ over n for the cost to be a fixed time per hand-over


def reading(profile: Profile) -> list[str]:
    """The knee in two sentences, then what the records show of hand-overs and of SMs that differ; empty: no curves."""
    gathered = curves(profile.co_issue)
    lead = _lead(profile, gathered)
    if lead is None:
        return []
    found = [f"{_knee(lead)} {_beyond(lead)}".strip()]
    found += _fixed_handover(gathered, profile.measurements)
    found += _sms_differ(gathered)
    return found


def _lead(profile: Profile, gathered: Sequence[Curve]) -> Curve | None:
    """FFMA on the MMA that the balance is about, else on the first MMA's leading shape, where it hides best."""
    usable = [curve for curve in gathered if len(curve.points) > 1]
    if not usable:
        return None
    leading = leading_shapes(usable)
    wanted = {strategy.mma for strategy in profile.balance}
    about = [curve for curve in usable if f"{curve.mma}.{curve.shape}" in wanted]
    first = next(iter(leading))
    about = about or [curve for curve in usable if curve.mma == first and curve.shape == leading[first]]
    plain = [curve for curve in about if curve.instruction == "ffma"] or about
    steady = [curve for curve in plain if not _in_step(curve)] or plain

    def hides(curve: Curve) -> tuple[int, float]:
        return -1 if curve.knee is None else curve.knee, -sum(curve.ratios) / len(curve.ratios)

    handed = [curve for curve in steady if curve.placement in ("at_issue", "same_warps")]  # where a GEMM does its work
    return max(handed or steady, key=hides)


def _knee(curve: Curve) -> str:
    loop = f"{wording.clean(curve.mma)} {wording.clean(curve.shape)}"
    work = wording.clean(curve.instruction).upper()
    seen = "" if curve.origin == "measured" else " (predicted)"
    where = f"Beside {loop}, {wording.placement_name(curve.placement)}{seen},"
    if curve.knee is None:
        bare = curve.points[0].cycles_over_mma_alone
        return f"{where} the loop takes {bare:.2f} times the MMA alone at k = {curve.ks[0]} already: there is no knee."
    if curve.open_ended:
        return f"{where} {work} is still free at k = {curve.knee}, the most that was tried."
    past = next(point for point in curve.points if point.k > curve.knee)
    cost = f"k = {past.k} costs {past.cycles_over_mma_alone - 1:.0%}"
    if curve.knee == 0:
        return f"{where} {work} is not free: {cost}, so the knee is at 0."
    at = curve.at(curve.knee)
    assert at is not None
    free = f"{at.cycles_over_mma_alone:.2f} times the MMA alone"
    return f"{where} {work} is free up to the knee at k = {curve.knee} ({free}), and {cost}."


def _beyond(curve: Curve) -> str:
    """How much of every further instruction shows past the knee."""
    knee = -1 if curve.knee is None else curve.knee
    past = [point for point in curve.points if point.k > max(knee, 0) and point.cuda_over_mma_alone]
    if len(past) < 2:
        return ""
    first, last = past[0], past[-1]
    steps = last.k - first.k
    added = (last.cycles_over_mma_alone - first.cycles_over_mma_alone) / steps
    alone = ((last.cuda_over_mma_alone or 0.0) - (first.cuda_over_mma_alone or 0.0)) / steps
    if alone <= 0:
        return ""
    tail = "nothing more hides" if added / alone >= HIDES_NOTHING else f"{1 - added / alone:.0%} of it still hides"
    start = "Every further one" if knee >= 0 else "Every one"
    return f"{start} adds {added:.2f} of the MMA's time, {added / alone:.0%} of what it takes by itself: {tail}."


def _fixed_handover(gathered: Sequence[Curve], measurements: Sequence[Measurement]) -> list[str]:
    """A hand-over after completion at k = 0, where its cost over three widths n or more goes as 1/n."""
    found = []
    for mma in dict.fromkeys(curve.mma for curve in gathered):
        bare: dict[int, list[float]] = {}
        shapes: dict[int, str] = {}
        for curve in gathered:
            width = _dimension(curve.shape, "n")
            point = curve.at(0)
            if curve.mma == mma and curve.placement == "after_complete" and point is not None and width:
                bare.setdefault(width, []).append(point.cycles_over_mma_alone - 1)
                shapes[width] = curve.shape
        costs = {width: median(values) for width, values in sorted(bare.items())}
        products = [cost * width for width, cost in costs.items()]
        if len(costs) < 3 or min(products) <= 0 or max(products) / min(products) - 1 > ONE_OVER_N:
            continue
        listed = _and([f"{cost:.0%}" for cost in costs.values()])
        widths = _and([str(width) for width in costs])
        widest = max(costs)
        group = _group_cycles(mma, shapes[widest], measurements)
        each = f", about {group * costs[widest]:.0f} SM cycles each" if group else ""
        found.append(
            f"With {wording.clean(mma)}, handing the Tensor Core over only after completion costs {listed} at n = "
            f"{widths} without any other work: that goes as 1/n, so every hand-over costs the same time{each}."
        )
    return found


def _group_cycles(mma: str, shape: str, measurements: Sequence[Measurement]) -> float | None:
    """SM cycles of the four MMA K-steps between two hand-overs, at the best measured rate of this kind of MMA."""
    m, n, k = (_dimension(shape, letter) for letter in "mnk")
    rates = [item.per_clk_per_sm for item in measurements if item.name.startswith(f"{mma}.") and item.per_clk_per_sm]
    return 4 * m * n * k / max(rates) if rates and m * n * k else None


def _sms_differ(gathered: Sequence[Curve]) -> list[str]:
    affected = [(curve, point) for curve in gathered for point in curve.points if _stands_out(point)]
    if not affected:
        return []
    curve, point = max(affected, key=lambda pair: pair[1].sm_spread or 0.0)
    where = (
        f"{wording.clean(curve.mma)} {wording.clean(curve.shape)}, {wording.clean(curve.instruction)}, k = {point.k}"
    )
    worst = f"the slowest SM takes up to {point.sm_spread:.0%} more cycles than the median one ({where})"
    count = len({id(pair[0]) for pair in affected})
    placements = {pair[0].placement for pair in affected}
    if placements == {"no_handover"}:
        return [
            f"Where nothing hands the Tensor Core over, {worst}, and over {IN_STEP:.0%} more in {count} of the curves. "
            "Warpgroups left to themselves fall into step on some SMs only: there the work shows in full, elsewhere it "
            "hides, and a kernel waits for the slowest."
        ]
    names = ", ".join(sorted(wording.placement_name(placement) for placement in placements))
    return [f"SMs differ in {count} of the curves ({names}): {worst}. The curves show the slowest."]


def _stands_out(point: CoIssue) -> bool:
    return point.sm_spread is not None and point.sm_spread > IN_STEP


def _in_step(curve: Curve) -> bool:
    return any(_stands_out(point) for point in curve.points)


def _dimension(shape: str, letter: str) -> int:
    found = re.search(rf"{letter}(\d{{1,6}})", shape)
    return int(found.group(1)) if found else 0


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
