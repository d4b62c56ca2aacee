"""The dequantisation strategies: what each executes on the CUDA Cores per accumulator and group, and on which pipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# I2F has a pipe of its own on 7.5 and 8.0; IMAD runs on the heavier half of the FMA pipe, hence its 64 lanes of 128.
PIPE = {
    "i2f": "conversion", "ffma": "fma", "fadd": "fma", "fmul": "fma", "imad": "fma", "hfma2": "fma",
    "lop3": "alu", "shf": "alu", "prmt": "alu",
}  # fmt: skip


@dataclass(frozen=True)
class Strategy:
    """``instructions``: thread-instructions per accumulator and group, after the MMA."""

    name: str
    label: str
    instructions: Mapping[str, float]


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("none", "no group scale", {}),
        Strategy("i2f_fmul_ffma", "I2F + FMUL + FFMA", {"i2f": 1, "fmul": 1, "ffma": 1}),
        Strategy("i2f_ffma", "I2F + FFMA", {"i2f": 1, "ffma": 1}),
        Strategy("magic_ffma2", "magic number, 2 FFMA", {"ffma": 2}),
        Strategy("magic_fadd_ffma", "magic number, FADD + FFMA", {"fadd": 1, "ffma": 1}),
        Strategy("imad", "integer group scale, IMAD", {"imad": 1}),
        Strategy("widen", "integer group scale applied while widening", {}),
        Strategy("widen_rounded", "group scale of sixteenths applied while widening, rounded", {}),
        Strategy("ffma", "FFMA on FP32 sums", {"ffma": 1}),
        Strategy("before_mma", "before the MMA", {}),
    )
}


def executed(co_issue_name: str, k: int) -> dict[str, float]:
    """Thread-instructions per accumulator of ``k`` passes of a co-issue instruction or mix, by canonical name."""
    strategy = STRATEGIES.get(co_issue_name.removeprefix("mix."))
    counts = strategy.instructions if strategy else {co_issue_name: 1.0}
    return {name: count * k for name, count in counts.items()}
