"""The instruction probes: what each measures, on which source, and how it is run.

A probe is a descriptor; one runner measures them all (``measure``). Warps and instruction-level parallelism are swept;
the best configuration is reported, with how many others reach the same: a lone peak would be no plateau.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from apex4_probe.architecture import Architecture
from apex4_probe.deployment import Measurement
from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import Cubin, Kernel
from apex4_probe.kernels.wgmma import Wgmma
from apex4_probe.microbench.execution import Gpu, Sample, Series
from apex4_probe.microbench.operands import Kind
from apex4_probe.microbench.sass_gate import OVERHEAD, Gate, check
from apex4_probe.microbench.sources import probe_kernel

OPERATIONS_PER_ITERATION = 64  # of a warp; long enough that the loop's three instructions do not count
PLATEAU = 0.01  # configurations this near to the best are on the plateau
PEAK_TOLERANCE = 0.02  # for the timer
TARGET_S = 1.5e-3  # of one launch: a thousand times its latency, a twentieth of the power controller's reaction
BURST_BUDGET_S = 0.08  # of samples, the pauses between bursts not counted
SUSTAINED_S = 2.0  # of back-to-back launches; the first half lets the clock settle under the power cap


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
    ``warps_per_instruction``: 4 where a warpgroup issues together.
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
    leading: bool = False  # also measured on zeros, and sustained

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


def measure(gpu: Gpu, probe: InstructionProbe, compiled: Sequence[tuple[Configuration, Cubin]]) -> list[Measurement]:
    """Sweep, then measure on the plateau: random operands in a burst; leading probes also on zeros, and sustained."""
    operands = gpu.operands(probe.kind)
    swept = []
    for configuration, cubin in compiled:
        function = gpu.function(cubin)
        run = _Run(gpu, probe, configuration, function, _iterations(gpu, function, configuration.threads, operands))
        swept.append((run.rate(run.once(operands).cycles), run, cubin))
    best, run, cubin = max(swept, key=lambda entry: entry[0])
    found = gate(probe, run.configuration, cubin, gpu.architecture)
    on_plateau = sum(rate >= best * (1 - PLATEAU) for rate, *_ in swept)
    width = f"{on_plateau} of {len(swept)} configurations"

    series: list[tuple[Operands, Regime, Series]] = [
        ("random", "burst", gpu.sample(lambda: run.once(operands), BURST_BUDGET_S))
    ]
    if probe.leading and not (found and found.emulated):
        zeros = gpu.operands(probe.kind, zeros=True)
        series.append(("zeros", "burst", gpu.sample(lambda: run.once(zeros), BURST_BUDGET_S)))
        series.append(("random", "sustained", gpu.sustained(lambda: run.once(operands), SUSTAINED_S)))
    return [run.measurement(one, found, width).model_copy(update={"operands": o, "regime": r}) for o, r, one in series]


Operands = Literal["random", "zeros"]
Regime = Literal["burst", "sustained"]


@dataclass(frozen=True)
class _Run:
    """A probe in one configuration, loaded, with the number of iterations that fills a launch."""

    gpu: Gpu
    probe: InstructionProbe
    configuration: Configuration
    function: Any
    iterations: int

    def once(self, operands: Any) -> Sample:
        return self.gpu.launch(self.function, self.configuration.threads, operands, self.iterations)

    @property
    def work(self) -> int:
        """Of one CTA, so of one SM, in one launch."""
        return self.probe.work_per_iteration(self.configuration, self.gpu.architecture) * self.iterations

    def rate(self, cycles: float) -> float:
        """Work per clock and SM."""
        return self.work / cycles

    def measurement(self, series: Series, found: Gate | None, plateau: str) -> Measurement:
        """The record, or an ``unsupported`` one when the reading is above what the silicon can do."""
        per_clock = self.rate(series.cycles)
        emulated = found.emulated if found else None
        peak = self.gpu.architecture.peak(self.probe.name)
        if peak is not None and per_clock > peak * (1 + PEAK_TOLERANCE):
            reason = f"reading rejected: {per_clock:.1f} per clock and SM where the physical peak is {peak:g}"
            return unsupported(self.probe, reason)
        per_second = self.work * self.gpu.sm_count / series.wall_s * self.probe.operations / 1e12
        return Measurement(
            name=self.probe.name,
            instruction=found.instruction if found else "",
            emulated=emulated,
            sass_verified=found.verified if found else None,
            value=per_second,
            unit=self.probe.unit,
            per_clk_per_sm=per_clock,
            per_clk_unit="MAC" if self.probe.is_mma else "instr",
            peak_fraction=per_clock / peak if peak else None,
            samples=len(series.samples),
            discarded=series.discarded,
            spread=series.spread,
            sm_clock_mhz=series.sm_clock_mhz,
            temperature_c=series.conditions.temperature_c,
            power_w=series.conditions.power_w,
            throttle=series.throttle,
            configuration={
                **dict(self.configuration.labels),
                "plateau": plateau,
                "sass_per_operation": round(found.per_operation, 3) if found else 0,
                **({"sass": found.why} if found and found.why else {}),
            },
            origin="measured",
        )


def _iterations(gpu: Gpu, function: Any, threads: int, operands: Any) -> int:
    """As many as fill TARGET_S; the first launch also loads the code."""
    gpu.launch(function, threads, operands, 8)
    few, many = (gpu.launch(function, threads, operands, n).wall_s for n in (16, 144))
    return max(16, round(TARGET_S / max((many - few) / 128, 1e-8)))
