"""How much of the CUDA Cores' work hides behind the Tensor Core: this GPU's co-issue measurement, or the nearest one.

overlap = (t_mma + t_cuda - t_both) / min(t_mma, t_cuda): 1 when the shorter of the two is free, 0 when they add.
Where a GPU was not measured, the point of the nearest shipped profile is carried over: its overlap, and its chain's own
time for this GPU's lane rates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from apex4_probe.chain import carried_over, pipe_cycles
from apex4_probe.deployment import CoIssue, Origin
from apex4_probe.rates import Operand, Rates
from apex4_probe.shipped import Family, nearest
from apex4_probe.strategies import STRATEGIES, executed

# Co-issue instructions that stand for a strategy, nearest first, and how many of them an accumulator and group takes.
PROXIES: dict[str, tuple[tuple[str, int], ...]] = {
    "i2f_fmul_ffma": (("mix.i2f_fmul_ffma", 1),),
    "i2f_ffma": (("mix.i2f_ffma", 1), ("i2f_ffma", 1)),
    "magic_ffma2": (("mix.magic_ffma2", 1), ("ffma", 2)),
    "magic_fadd_ffma": (("mix.magic_fadd_ffma", 1), ("ffma", 2)),
    "imad": (("mix.imad", 1), ("imad", 1)),
    "widen": (("lop3", 1), ("imad", 1)),  # 64 lanes both, and alike behind wgmma (measured, H100)
    "widen_rounded": (("lop3", 1), ("imad", 1)),
    "none": (("lop3", 1), ("imad", 1)),
}
PLACEMENTS: dict[Family, str] = {"wgmma": "at_issue", "mma": "same_warps"}  # where dequantisation sits in a kernel
CO_ISSUE_MMAS: dict[Operand, tuple[Operand, ...]] = {
    "s4": ("s4", "s8"),
    "s8": ("s8",),
}  # INT4 borrows the INT8 curve of its chip
_NO_REFERENCE = "none assumed, since no measured GPU with such a co-issue point ships"
K_STEPS = 4  # of the MMA between two passes of CUDA-core work, in the co-issue probe


@dataclass(frozen=True)
class Overlap:
    """One co-issue point, ready to be applied to a kernel's own amount of work.

    ``cuda_over_mma_alone``: the work's time over the MMA's, at this point; ``cuda_cycles``: the work's time, SM cycles
    per accumulator and pass.
    """

    family: Family
    value: float
    cuda_over_mma_alone: float
    cuda_cycles: float
    origin: Origin
    source: str

    def behind(self, cuda_over_mma: float) -> float:
        """Overlap of work that takes ``cuda_over_mma`` of the MMA's time.

        Behind wgmma work is free up to a fixed part of the MMA's time and then adds in full (register-file bandwidth;
        measured on an H100), so what is hidden is an amount. Behind mma.sync every pass is visible in the same
        proportion, so what is hidden is a share.
        """
        if self.family == "mma" or cuda_over_mma <= 0:
            return self.value
        hidden = self.value * min(1.0, self.cuda_over_mma_alone)
        return min(1.0, hidden / min(1.0, cuda_over_mma))


def overlap_of(strategy: str, operand: Operand, family: Family, co_issue: Iterable[CoIssue], rates: Rates) -> Overlap:
    """What ``strategy`` hides behind the MMA of ``operand`` (s4 or s8) on the GPU of ``rates`` and ``co_issue``.

    KeyError: no such strategy. ApexError: a lane rate is neither measured nor known.
    """
    point = _point_of(strategy, operand, family, co_issue) or carry_over(strategy, operand, family, rates)
    if point is None:
        pipes = pipe_cycles(STRATEGIES[strategy].instructions, rates)
        return Overlap(family, 0.0, 0.0, sum(pipes.values()), "predicted", _NO_REFERENCE)
    source = f"co-issue measured here: {_where(point)}" if point.origin == "measured" else point.source or _where(point)
    alone = point.cuda_over_mma_alone or 0.0
    return Overlap(family, _within(point.overlap), alone, alone * _mma_cycles(point, rates), point.origin, source)


def carry_over(strategy: str, operand: Operand, family: Family, rates: Rates) -> CoIssue | None:
    """The nearest shipped profile's point for ``strategy``, as the GPU of ``rates`` would show it; origin predicted.

    None: no shipped profile has one. KeyError: no such strategy. ApexError: a lane rate is neither measured nor known.
    """
    reference = nearest(rates.device.compute_capability, family)
    point = _point_of(strategy, operand, family, reference.co_issue) if reference else None
    if reference is None or point is None:
        return None
    there = Rates.of(reference.device, reference.measurements)
    measured = (point.cuda_over_mma_alone or 0.0) * _mma_cycles(point, there)
    cycles = carried_over(measured, executed(point.instruction, point.k), there, rates)
    alone = cycles / _mma_cycles(point, rates)
    seen = Overlap(family, _within(point.overlap), point.cuda_over_mma_alone or 0.0, measured, "measured", "")
    overlap = seen.behind(alone)
    return CoIssue(
        mma=point.mma,
        shape=point.shape,
        placement=point.placement,
        instruction=point.instruction,
        k=point.k,
        cycles_over_mma_alone=1 + alone - overlap * min(1.0, alone),
        cuda_over_mma_alone=alone,
        overlap=overlap,
        origin="predicted",
        source=f"carried over from {reference.device.name}: {_where(point)}",
    )


def _point_of(strategy: str, operand: Operand, family: Family, co_issue: Iterable[CoIssue]) -> CoIssue | None:
    placement = PLACEMENTS[family]
    points = [p for p in co_issue if p.placement == placement and p.overlap is not None and p.cuda_over_mma_alone]
    for kind in CO_ISSUE_MMAS[operand]:
        for instruction, k in PROXIES[strategy]:
            here = [p for p in points if (p.mma, p.instruction, p.k) == (f"{family}.{kind}", instruction, k)]
            if here:
                return max(here, key=lambda p: (p.origin == "measured", _number_after("n", p.shape)))
    return None


def _mma_cycles(point: CoIssue, rates: Rates) -> float:
    """SM cycles per accumulator of the MMAs between two passes; at n = 128 wgmma runs at the rate of n = 256."""
    name = f"{point.mma}.{point.shape}" if point.mma.startswith("mma.") else f"{point.mma}.m64n256k32.rs"
    return K_STEPS * _number_after("k", point.shape) / rates.instruction(name).per_clk


def _within(overlap: float | None) -> float:
    return min(1.0, max(0.0, overlap or 0.0))


def _where(point: CoIssue) -> str:
    return f"{point.mma} {point.shape}, {point.instruction}, k = {point.k}, {point.placement.replace('_', ' ')}"


def _number_after(letter: str, shape: str) -> int:
    """Of a shape such as m64n256k32.rs; 0 where it does not say."""
    found = re.search(rf"{letter}(\d+)", shape)
    return int(found[1]) if found else 0
