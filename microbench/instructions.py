"""The instruction probes: what each measures, on which source, how it is configured, what its machine code holds.

A probe is a descriptor; one runner measures them all (throughput.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

from apex4_probe.architecture import Architecture
from apex4_probe.deployment import Measurement
from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import Cubin, Kernel
from apex4_probe.kernels.wgmma import Wgmma
from apex4_probe.microbench.operands import Kind
from apex4_probe.microbench.sass_gate import OVERHEAD, Gate, check
from apex4_probe.microbench.sources import probe_kernel

OPERATIONS_PER_ITERATION = 64  # of a warp; long enough that the loop's three instructions do not count
PEAK_TOLERANCE = 0.02  # of a reading above the physical peak; for the timer


@dataclass(frozen=True)
class Configuration:
    """One point of the sweep: a cubin and a block size."""

    kernel: Kernel
    threads: int
    labels: tuple[tuple[str, int], ...]  # ("warps", 8), ("ilp", 4)


@dataclass(frozen=True)
class InstructionProbe:
    """One instruction. ``opcode``: a regular expression that its SASS mnemonic matches from the beginning.

    ``work``: MAC of one warp-instruction for MMAs (of a warpgroup for wgmma), 32 thread-instructions else.
    ``leading``: also measured on zeros, and sustained.
    """

    name: str
    description: str
    file: str
    macro: str
    opcode: str
    work: int
    unit: Literal["TOPS", "TFLOPS", "Tinstr/s"]
    kind: Kind
    ilps: tuple[int, ...] = (4, 8)  # with fewer chains the compiler pads every dependence with instructions of its own
    warps: tuple[int, ...] = (4, 8, 16)
    wgmma: Wgmma | None = None
    leading: bool = False

    @property
    def is_mma(self) -> bool:
        return self.work > 32

    @property
    def operations(self) -> int:
        """What ``value`` counts per unit of work: two per MAC and per fused multiply-add, one else."""
        return 2 if self.unit in ("TOPS", "TFLOPS") else 1

    def configurations(self, architecture: Architecture) -> tuple[Configuration, ...]:
        emulated = self.is_mma and architecture.support(self.name).level == "emulated"
        found = []
        for warps, ilp in product(self.warps, self.ilps):
            if self.wgmma is not None:
                macros: dict[str, int | str] = {
                    "WARPGROUPS": warps // 4,
                    "GROUP": ilp,
                    "A_FROM_REGISTERS": int(self.wgmma.a_from == "rs"),
                }
            elif self.is_mma:
                macros = {
                    "MMA": self.macro,
                    "ILP": ilp,
                    "MMAS_PER_ITERATION": OPERATIONS_PER_ITERATION // (8 if emulated else 1),
                    "LIVE_OPERANDS": int(emulated),
                }
            else:
                macros = {"OPERATION": self.macro, "ILP": ilp, "OPERATIONS_PER_ITERATION": OPERATIONS_PER_ITERATION}
            kernel = probe_kernel(self.file, architecture.target, self.wgmma, **macros)
            found.append(Configuration(kernel, 32 * warps, (("warps", warps), ("ilp", ilp))))
        return tuple(found)

    def per_iteration(self, configuration: Configuration, architecture: Architecture) -> int:
        """Named instructions of one warp in one pass of the hot loop."""
        if self.wgmma is not None:
            return dict(configuration.labels)["ilp"]
        emulated = self.is_mma and architecture.support(self.name).level == "emulated"
        return OPERATIONS_PER_ITERATION // (8 if emulated else 1)

    def work_per_iteration(self, configuration: Configuration, architecture: Architecture) -> int:
        """Work of one CTA in one pass of the hot loop."""
        issuers = configuration.threads // (128 if self.wgmma else 32)
        return self.work * issuers * self.per_iteration(configuration, architecture)


def _mma(
    name: str, macs: int, unit: Literal["TOPS", "TFLOPS"], kind: Kind, what: str, leading: bool = False
) -> InstructionProbe:
    return InstructionProbe(
        name, f"dense {what} on the Tensor Core by mma.sync, accumulators and operands in registers",
        "mma_sync.cu", name.replace(".", "_"), "", macs, unit, kind, leading=leading,
    )  # fmt: skip


def _wgmma(wgmma: Wgmma, unit: Literal["TOPS", "TFLOPS"], kind: Kind, leading: bool = False) -> InstructionProbe:
    where = "registers" if wgmma.a_from == "rs" else "shared memory"
    return InstructionProbe(
        f"wgmma.{wgmma.operand}.{wgmma.shape}",
        f"dense {wgmma.operand} on the Tensor Core by wgmma, A from {where}, B from shared memory",
        "wgmma.cu", "", "", wgmma.macs, unit, kind, ilps=(4, 8), warps=(4, 8), wgmma=wgmma, leading=leading,
    )  # fmt: skip


def _cuda(
    name: str, opcode: str, kind: Kind, what: str, unit: Literal["TFLOPS", "Tinstr/s"] = "Tinstr/s"
) -> InstructionProbe:
    return InstructionProbe(
        name, what, "cuda_core.cu", name.replace(".", "_"), opcode, 32, unit, kind, ilps=(4, 8, 16), warps=(8, 16, 32)
    )


PROBES: tuple[InstructionProbe, ...] = (
    _mma("mma.s4.m8n8k32", 8 * 8 * 32, "TOPS", "int", "INT4 in 8x8x32 tiles"),
    _mma("mma.s4.m16n8k32", 16 * 8 * 32, "TOPS", "int", "INT4 in 16x8x32 tiles, the shape of the paper's kernel"),
    _mma("mma.s4.m16n8k64", 16 * 8 * 64, "TOPS", "int", "INT4 in 16x8x64 tiles", leading=True),
    _mma("mma.s8.m8n8k16", 8 * 8 * 16, "TOPS", "int", "INT8 in 8x8x16 tiles"),
    _mma("mma.s8.m16n8k32", 16 * 8 * 32, "TOPS", "int", "INT8", leading=True),
    _mma("mma.f16.m16n8k8", 16 * 8 * 8, "TFLOPS", "f16", "FP16, fp32 accumulators, in 16x8x8 tiles"),
    _mma("mma.f16.m16n8k16", 16 * 8 * 16, "TFLOPS", "f16", "FP16, fp32 accumulators", leading=True),
    _mma("mma.bf16.m16n8k16", 16 * 8 * 16, "TFLOPS", "bf16", "BF16, fp32 accumulators"),
    _mma("mma.e4m3.m16n8k32", 16 * 8 * 32, "TFLOPS", "e4m3", "FP8, fp32 accumulators"),
    _mma("mma.mxf4nvf4.m16n8k64", 16 * 8 * 64, "TFLOPS", "int", "NVFP4 (block scales of 16)"),
    _mma("mma.mxf4.m16n8k64", 16 * 8 * 64, "TFLOPS", "int", "MXFP4 (block scales of 32)"),
    _wgmma(Wgmma("s8", 256, "ss"), "TOPS", "int", leading=True),
    _wgmma(Wgmma("s8", 256, "rs"), "TOPS", "int"),
    _wgmma(Wgmma("f16", 256, "ss"), "TFLOPS", "f16", leading=True),
    _wgmma(Wgmma("e4m3", 256, "ss"), "TFLOPS", "e4m3"),
    _cuda("ffma", "FFMA", "f32", "fp32 fused multiply-add with one fresh source register", "TFLOPS"),
    _cuda("ffma.two_fresh", "FFMA", "f32", "fp32 fused multiply-add with two fresh source registers", "TFLOPS"),
    _cuda("ffma.three_fresh", "FFMA", "f32", "fp32 fused multiply-add with three fresh source registers", "TFLOPS"),
    _cuda("fadd", "FADD", "f32", "fp32 addition"),
    _cuda("fmul", "FMUL", "f32", "fp32 multiplication"),
    _cuda("hfma2", "HFMA2", "f16", "two fp16 fused multiply-adds in one instruction"),
    _cuda("imad", "IMAD", "int", "32-bit integer multiply-add"),
    _cuda("lop3", "LOP3", "int", "three-input logic on 32 bits"),
    _cuda("shf", "SHF", "int", "funnel shift of 64 bits to 32"),
    _cuda("prmt", "PRMT", "int", "byte permutation"),
    _cuda("i2f", r"I2FP?\b", "int", "32-bit integer to fp32"),
)


def opcode(probe: InstructionProbe, architecture: Architecture) -> str:
    """Regular expression of the native mnemonic: the architecture table's for MMAs, the probe's own else."""
    return probe.opcode or architecture.support(probe.name).sass.replace(".", r"\.") + r"(\.|$)"


def gate(
    probe: InstructionProbe, configuration: Configuration, cubin: Cubin, architecture: Architecture
) -> Gate | None:
    """What the cubin's machine code says; None without a disassembler."""
    try:
        listing = sass.disassemble(cubin.image)["probe"]
    except sass.DisassemblyError:
        return None
    # A group of four wgmma from registers computes its descriptors beside them: as many instructions again, all hidden
    # behind an MMA that takes 128 clocks.
    overhead = 4.0 if probe.wgmma else OVERHEAD
    return check(
        listing, opcode(probe, architecture), probe.per_iteration(configuration, architecture), overhead=overhead
    )


def unsupported(probe: InstructionProbe, reason: str) -> Measurement:
    """The row of a probe that cannot run here, or whose reading was refused."""
    return Measurement(name=probe.name, instruction="", unit=probe.unit, origin="measured", unsupported=reason)
