"""How much of the CUDA Cores' work hides behind the Tensor Core: this GPU's co-issue measurement, or the nearest one.

overlap = (t_mma + t_cuda - t_both) / min(t_mma, t_cuda): 1 when the shorter of the two is free, 0 when they add.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from apex4_probe.deployment import CoIssue, Origin

Family = Literal["mma", "wgmma"]  # how the kernel drives the Tensor Core: mma.sync, or wgmma on 9.0

# Co-issue instructions that stand for a strategy, nearest first, and how many of them an accumulator and group takes.
PROXIES: dict[str, tuple[tuple[str, int], ...]] = {
    "i2f_fmul_ffma": (("mix.i2f_fmul_ffma", 1),),
    "i2f_ffma": (("mix.i2f_ffma", 1), ("i2f_ffma", 1)),
    "magic_ffma2": (("mix.magic_ffma2", 1), ("ffma", 2)),
    "magic_fadd_ffma": (("mix.magic_fadd_ffma", 1), ("ffma", 2)),
    "imad": (("mix.imad", 1), ("imad", 1)),
    "widen": (("lop3", 1), ("imad", 1)),  # both have 64 lanes and hide alike (measured, H100)
    "none": (("lop3", 1), ("imad", 1)),
}
PLACEMENTS: dict[Family, str] = {"wgmma": "at_issue", "mma": "same_warps"}  # where dequantisation sits in a kernel
CO_ISSUE_MMAS: dict[str, tuple[str, ...]] = {
    "s4": ("s4", "s8"),
    "s8": ("s8",),
}  # INT4 borrows the INT8 curve of its chip


@dataclass(frozen=True)
class Reference:
    """One point of the H100's co-issue curves; ``cuda_over_mma_alone`` from the lane rates, all pipes added."""

    mma: str
    shape: str
    placement: Literal["same_warps", "at_issue"]
    instruction: str
    k: int
    cuda_over_mma_alone: float
    overlap: float
    source: str

    @property
    def cycles_over_mma_alone(self) -> float:
        return 1 + self.cuda_over_mma_alone - self.overlap * min(1.0, self.cuda_over_mma_alone)


_H100 = "measured on an H100 80GB HBM3"
_SERIAL = (
    "taken from FFMA behind mma.sync on an H100; a chain through the conversion pipe was not measured there, and the "
    "published g128 speed-ups on A100 and RTX 3090 (arXiv 2606.08761) both fit pipes that add up"
)
# Per accumulator and 128 of K: mma.sync s8 128 / 2706 clk, wgmma s8 128 / 4095, FFMA 1 / 123, IMAD and I2FP 1 / 63.5.
REFERENCES: tuple[Reference, ...] = (
    Reference("mma.s8", "m16n8k32", "same_warps", "ffma", 1, 0.172, 0.10, f"{_H100}: 90 % of a pass is visible"),
    Reference("mma.s8", "m16n8k32", "same_warps", "imad", 1, 0.333, 0.65, f"{_H100}: 60 to 70 % hide"),
    Reference("mma.s8", "m16n8k32", "same_warps", "lop3", 1, 0.333, 0.65, f"{_H100}: 60 to 70 % hide"),
    Reference("mma.s8", "m16n8k32", "same_warps", "mix.imad", 1, 0.333, 0.65, f"{_H100}: as IMAD in place"),
    Reference("mma.s8", "m16n8k32", "same_warps", "mix.magic_ffma2", 1, 0.344, 0.10, f"{_H100}: as two FFMA"),
    Reference("mma.s8", "m16n8k32", "same_warps", "mix.magic_fadd_ffma", 1, 0.344, 0.10, f"{_H100}: as two FFMA"),
    Reference("mma.s8", "m16n8k32", "same_warps", "mix.i2f_ffma", 1, 0.505, 0.10, _SERIAL),
    Reference("mma.s8", "m16n8k32", "same_warps", "mix.i2f_fmul_ffma", 1, 0.677, 0.10, _SERIAL),
    Reference("wgmma.s8", "m64n256k32.rs", "at_issue", "ffma", 1, 0.260, 1.0, f"{_H100}: no clocks"),
    Reference("wgmma.s8", "m64n256k32.rs", "at_issue", "lop3", 1, 0.504, 0.74, f"{_H100}: as IMAD"),
    Reference("wgmma.s8", "m64n128k32.rs", "at_issue", "mix.imad", 1, 0.504, 0.74, f"{_H100}: 12 to 14 %"),
    Reference("wgmma.s8", "m64n128k32.rs", "at_issue", "mix.magic_ffma2", 1, 0.520, 0.73, f"{_H100}: 13 to 15 %"),
    Reference("wgmma.s8", "m64n128k32.rs", "at_issue", "mix.magic_fadd_ffma", 1, 0.520, 0.73, f"{_H100}: as two FFMA"),
    Reference("wgmma.s8", "m64n128k32.rs", "at_issue", "mix.i2f_ffma", 1, 0.764, 0.39, f"{_H100}: 43 to 50 %"),
    Reference("wgmma.s8", "m64n128k32.rs", "at_issue", "mix.i2f_fmul_ffma", 1, 1.024, 0.39, f"{_H100}: as I2F + FFMA"),
)  # fmt: skip


@dataclass(frozen=True)
class Overlap:
    """One co-issue point, ready to be applied to a kernel's own amount of work.

    ``mma``: the MMA that it was taken with; ``cuda_over_mma_alone``: the work's time over that MMA's, at this point.
    """

    family: Family
    mma: str
    value: float
    cuda_over_mma_alone: float
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


def overlap_of(strategy: str, operand: str, family: Family, co_issue: Iterable[CoIssue]) -> Overlap:
    """What ``strategy`` hides behind the MMA of ``operand`` ("s4" or "s8"). KeyError: no such strategy."""
    points = [
        p for p in co_issue if p.overlap is not None and p.cuda_over_mma_alone and p.placement == PLACEMENTS[family]
    ]
    for kind in CO_ISSUE_MMAS[operand]:
        mma = f"{family}.{kind}"
        for instruction, k in PROXIES[strategy]:
            here = [p for p in points if p.mma == mma and p.instruction == instruction and p.k == k]
            if here:
                return _from_point(family, max(here, key=lambda p: (p.origin == "measured", _width(p.shape))))
    return _from_reference(strategy, family)


def _from_point(family: Family, point: CoIssue) -> Overlap:
    value = min(1.0, max(0.0, point.overlap or 0.0))
    alone = point.cuda_over_mma_alone or 0.0
    where = f"{point.mma} {point.shape}, {point.instruction}, {point.placement.replace('_', ' ')}"
    if point.origin != "measured":
        return Overlap(family, point.mma, value, alone, "predicted", point.source or where)
    return Overlap(family, point.mma, value, alone, "measured", f"co-issue measured here: {where}")


def _from_reference(strategy: str, family: Family) -> Overlap:
    names = [instruction for instruction, _ in PROXIES[strategy]]
    points = [r for r in REFERENCES if r.mma.startswith(f"{family}.") and r.instruction in names]
    nearest = min(points, key=lambda r: names.index(r.instruction))
    return Overlap(family, nearest.mma, nearest.overlap, nearest.cuda_over_mma_alone, "predicted", nearest.source)


def _width(shape: str) -> int:
    """N of a shape such as m64n256k32.rs: wider tiles are what kernels use."""
    digits = shape.partition("n")[2].partition("k")[0]
    return int(digits) if digits.isdigit() else 0
