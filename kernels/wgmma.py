"""wgmma.mma_async wrappers (sm_90a), generated: inline assembly must list every accumulator register by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operand = Literal["s8", "u8s8", "f16", "e4m3"]

# PTX ISA, "wgmma.mma_async": K of one instruction, types, and the immediates that follow the scale-d predicate
# (floating types negate A and B by two of them; 16-bit types also transpose: B from shared memory, A likewise).
_K = {"s8": 32, "u8s8": 32, "f16": 16, "e4m3": 32}
_TYPES = {"s8": "s32.s8.s8", "u8s8": "s32.u8.s8", "f16": "f32.f16.f16", "e4m3": "f32.e4m3.e4m3"}
_IMMEDIATES = {
    ("s8", "rs"): "", ("s8", "ss"): "", ("u8s8", "rs"): "", ("u8s8", "ss"): "",
    ("f16", "rs"): ", 1, 1, 0", ("f16", "ss"): ", 1, 1, 0, 0",
    ("e4m3", "rs"): ", 1, 1", ("e4m3", "ss"): ", 1, 1",
}  # fmt: skip


@dataclass(frozen=True)
class Wgmma:
    """One wgmma shape, 64 x n x k. ``a_from``: ``rs`` operand A in registers, ``ss`` both operands in shared memory.

    ``u8s8``: A unsigned, B signed.
    """

    operand: Operand
    n: int
    a_from: Literal["rs", "ss"]

    @property
    def k(self) -> int:
        return _K[self.operand]

    @property
    def accumulators(self) -> int:
        """32-bit accumulator registers per thread of the warpgroup."""
        return self.n // 2

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one instruction (a warpgroup)."""
        return 64 * self.n * self.k

    @property
    def shape(self) -> str:
        return f"m64n{self.n}k{self.k}.{self.a_from}"

    def header(self) -> str:
        """``struct WGMMA`` with ``mma<scale_d>(c, a, b)``: C = A x B + (scale_d ? C : 0), asynchronously; ``b`` and,
        from shared memory, ``a`` are matrix descriptors. ``mma(c, a, b, scale_d)``: for a scale_d known at run time."""
        count = self.accumulators
        registers = ",".join(f"%{i}" for i in range(count))
        outputs = ", ".join(f'"+r"(c[{i}])' for i in range(count))
        if self.a_from == "rs":
            a_parameter, a_operand = "const u32 (&a)[4]", f"{{%{count},%{count + 1},%{count + 2},%{count + 3}}}"
            inputs, b_index = '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)', count + 4
        else:
            a_parameter, a_operand = "u64 a", f"%{count}"
            inputs, b_index = '"l"(a), "l"(b)', count + 1
        instruction = f"wgmma.mma_async.sync.aligned.m64n{self.n}k{self.k}.{_TYPES[self.operand]}"
        tail = f"%{b_index}, p{_IMMEDIATES[self.operand, self.a_from]};"

        def body(scale_d: str) -> str:
            return f"""asm volatile("{{.reg .pred p; setp.ne.b32 p, %{b_index + 1}, 0;\\n"
                 "{instruction} {{{registers}}}, {a_operand}, {tail}}}"
                 : {outputs}
                 : {inputs}, {scale_d});"""

        return f"""#pragma once
struct WGMMA {{
  static constexpr int N = {self.n}, K = {self.k}, ACCUMULATORS = {count};
  template <int scale_d>
  static __device__ void mma(u32 (&c)[{count}], {a_parameter}, u64 b) {{
    {body('"n"(scale_d)')}
  }}
  static __device__ void mma(u32 (&c)[{count}], {a_parameter}, u64 b, u32 scale_d) {{
    {body('"r"(scale_d)')}
  }}
}};
"""
