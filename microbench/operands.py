"""What the probes multiply: random bits that are valid numbers of the type, because zeros draw less power and run
faster.

A buffer is RANDOM_WORDS words of operands and four more that probes read by position (probes/probe.cuh): a zero; p
and q; the accumulators' first value."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

RANDOM_WORDS = 1 << 16
MAGIC_ACCUMULATOR = 0x4B400000  # 12582912.0: an INT32 sum counted up from here reads back as that float plus the sum
P = np.float32(-1.0 + 2.0**-24)  # keeps x * p + q bounded, its sign changing, for millions of steps
Q = np.float32(0.3)

Kind = Literal["int", "f16", "bf16", "e4m3", "f32"]


def operand_words(kind: Kind, *, zeros: bool = False, seed: int = 0) -> NDArray[np.uint32]:
    """uint32 [RANDOM_WORDS + 4]. Floating kinds are normally distributed, without NaN or infinity."""
    generator = np.random.default_rng(seed)
    if zeros:
        body = np.zeros(RANDOM_WORDS, np.uint32)
    elif kind == "int":
        body = generator.integers(0, 1 << 32, RANDOM_WORDS, dtype=np.uint32)
    elif kind == "f32":
        body = generator.standard_normal(RANDOM_WORDS, np.float32).view(np.uint32)
    elif kind == "f16":
        body = generator.standard_normal(2 * RANDOM_WORDS, np.float32).astype(np.float16).view(np.uint32)
    elif kind == "bf16":  # the upper half of a float32
        halves = (generator.standard_normal(2 * RANDOM_WORDS, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        body = halves.view(np.uint32)
    else:  # e4m3: every byte is a number but 0x7F and 0xFF, NaN; they become the largest finite
        octets = generator.integers(0, 256, 4 * RANDOM_WORDS, dtype=np.uint8)
        octets[(octets & 0x7F) == 0x7F] -= 1
        body = octets.view(np.uint32)
    p, q = (0, 0) if zeros else (P.view(np.uint32), Q.view(np.uint32))
    return np.concatenate([body, np.array([0, p, q, 0 if zeros else MAGIC_ACCUMULATOR], np.uint32)])
