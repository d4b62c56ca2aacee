"""Co-issue: how much CUDA-core work hides behind the Tensor Core.

A Tensor Core loop is timed alone, the CUDA-core work alone, and both together, k = 0 … 8 instructions per accumulator
and four MMA K-steps. t_both / t_mma over k is the curve; where it leaves 1 is the knee, where dequantisation stops
being free. Cycles are read in the kernel, so power does not bend the curve; wall time beside it shows what power
costs.

The cycles are those of the slowest SM, which a kernel waits for. It matters: two warpgroups without a hand-over fall
into step on some SMs (both multiply, then both compute: the work is seen in full) and out of step on others (it is
free), so the median SM would tell of the luckier half. ``sm_spread`` shows where that happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from apex4_probe.architecture import Architecture
from apex4_probe.deployment import CoIssue
from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import Cubin, Kernel, compile_all
from apex4_probe.kernels.wgmma import Wgmma
from apex4_probe.microbench.execution import Gpu, Sample
from apex4_probe.microbench.operands import Kind
from apex4_probe.microbench.sources import probe_kernel
from apex4_probe.microbench.stopping import spread

Placement = Literal["other_warps", "at_issue", "after_complete", "no_handover", "same_warps"]

# What the macro WORK and the hot loop's instructions are, per pass over one accumulator (probes/cuda_work.cuh).
WORK: dict[str, tuple[str, tuple[str, ...]]] = {
    "nop": ("work_nop", ("NOP",)),
    "ffma": ("work_ffma", ("FFMA",)),
    "ffma3": ("work_ffma3", ("FFMA",)),
    "fadd": ("work_fadd", ("FADD",)),
    "imad": ("work_imad", (r"IMAD$",)),
    "lop3": ("work_lop3", ("LOP3",)),
    "i2f_ffma": ("work_i2f_ffma", (r"I2FP?\b", "FFMA")),
    "mix.i2f_ffma": ("mix_i2f_ffma", (r"I2FP?\b", "FFMA")),
    "mix.i2f_fmul_ffma": ("mix_i2f_fmul_ffma", (r"I2FP?\b", "FMUL", "FFMA")),
    "mix.magic_ffma2": ("mix_magic_ffma2", ("FFMA", "FFMA")),
    "mix.magic_fadd_ffma": ("mix_magic_fadd_ffma", ("FADD", "FFMA")),
    "mix.imad": ("mix_imad", (r"IMAD$",)),
}
SINGLE = tuple(name for name in WORK if not name.startswith("mix."))
MIXES = tuple(name for name in WORK if name.startswith("mix."))
OPERANDS: tuple[Literal["s8", "f16"], ...] = ("s8", "f16")
SYNC: tuple[Placement, ...] = ("same_warps", "other_warps")
HANDOVERS: tuple[Placement, ...] = ("at_issue", "after_complete", "no_handover")
WARPGROUPS: tuple[Placement, ...] = ("other_warps", *HANDOVERS)
MACRO_OF = {"other_warps": "OTHER_WARPS", "at_issue": "AT_ISSUE", "after_complete": "AFTER_COMPLETE",
            "no_handover": "NO_HANDOVER", "same_warps": "SAME_WARPS"}  # fmt: skip

ALL_K = tuple(range(9))
MIX_K = (0, 1)  # a group of 128 inputs, four K-steps at 8 bit, is dequantised once
MMA_WARPS = 8  # of mma.sync: two a scheduler, each with a 64 x 32 tile, as a GEMM of 256 threads has
SAMPLES = 5
PASS_OVERHEAD = 8  # counter, compare and branch of the loop over passes
LOOP_OVERHEAD = 40  # descriptors, barriers, waits and the loop itself
TARGET_S = 0.5e-3  # of one launch


@dataclass(frozen=True)
class Loop:
    """One Tensor Core loop. ``wgmma`` None: mma.sync, ``operand`` s8, s4 or f16."""

    operand: Literal["s8", "s4", "f16"]
    wgmma: Wgmma | None = None

    @property
    def mma(self) -> str:
        return f"{'wgmma' if self.wgmma else 'mma'}.{self.operand}"

    @property
    def shape(self) -> str:
        if self.wgmma:
            return self.wgmma.shape
        return {"s8": "m16n8k32", "s4": "m16n8k64", "f16": "m16n8k16"}[self.operand]

    @property
    def kind(self) -> Kind:
        return "f16" if self.operand == "f16" else "int"

    @property
    def accumulators(self) -> int:
        """Registers per thread of the tile that the work passes over."""
        return self.wgmma.accumulators if self.wgmma else 64

    @property
    def mmas(self) -> int:
        """MMA instructions of one warp (or warpgroup) in four K-steps."""
        return 4 if self.wgmma else 64


@dataclass(frozen=True)
class Curve:
    """One line of a plot: a loop, where the work is done, what it is, and at which k."""

    loop: Loop
    placement: Placement
    instruction: str
    ks: tuple[int, ...]

    def kernel(self, target: str, with_mma: bool) -> Kernel:
        macros: dict[str, int | str] = {
            "PLACEMENT": MACRO_OF[self.placement],
            "WITH_MMA": int(with_mma),
            "TWO_SETS": int(self.instruction in MIXES),
            "WORK": WORK[self.instruction][0],
        }
        if self.loop.wgmma:
            return probe_kernel("co_issue_wgmma.cu", target, self.loop.wgmma, **macros)
        mma = f"mma_{self.loop.operand}_{self.loop.shape}"
        return probe_kernel("co_issue_mma.cu", target, None, MMA=mma, MMA_WARPS=MMA_WARPS, **macros)

    @property
    def threads(self) -> int:
        if self.loop.wgmma:
            return 384 if self.placement == "other_warps" else 256
        return MMA_WARPS * 32 * (2 if self.placement == "other_warps" else 1)

    @property
    def free_running(self) -> Curve:
        """The loop whose k = 0 is "the MMA alone": no hand-over, nothing beside it."""
        placement: Placement = "no_handover" if self.loop.wgmma else "same_warps"
        return Curve(self.loop, placement, self.instruction if self.instruction in MIXES else "ffma", (0,))


def curves(architecture: Architecture, full: bool) -> tuple[Curve, ...]:
    """What is measured on an architecture: by default what the planner needs and the lines that tell the story, with
    ``full`` everything. Nothing where INT8 has no native m16n8k32."""

    def native(name: str) -> bool:
        return architecture.support(name).level == "native"

    if not native("mma.s8.m16n8k32"):
        return ()
    integer = [Loop("s8"), *([Loop("s4")] if native("mma.s4.m16n8k64") else [])]
    if not full:
        return (*_default_sync(integer), *(_default_wgmma() if native("wgmma.s8.m64n256k32.rs") else ()))
    found = [Curve(loop, where, name, ALL_K) for loop in (*integer, Loop("f16")) for where in SYNC for name in SINGLE]
    found += [Curve(loop, "same_warps", mix, MIX_K) for loop in integer for mix in MIXES]
    if native("wgmma.s8.m64n256k32.rs"):
        loops = [_wgmma(operand, n) for operand in OPERANDS for n in (64, 128, 256)]
        found += [Curve(loop, where, name, ALL_K) for loop in loops for where in WARPGROUPS for name in SINGLE]
        narrow = [_wgmma("s8", n) for n in (64, 128)]  # two accumulator sets of n = 256 would need all 256 registers
        found += [Curve(loop, where, mix, MIX_K) for loop in narrow for where in HANDOVERS for mix in MIXES]
    return tuple(found)


def _default_sync(loops: Sequence[Loop]) -> list[Curve]:
    found = []
    for loop in loops:
        found += [Curve(loop, "same_warps", name, (0, 1, 2, 4)) for name in ("ffma", "imad", "lop3", "i2f_ffma")]
        found += [Curve(loop, "same_warps", mix, (1,)) for mix in MIXES]
    return found


def _default_wgmma() -> list[Curve]:
    wide, narrow = _wgmma("s8", 256), _wgmma("s8", 128)
    found = [Curve(wide, where, "ffma", (0, 1, 2, 4)) for where in WARPGROUPS]
    found += [Curve(wide, "at_issue", name, (1, 2)) for name in ("imad", "lop3", "i2f_ffma", "nop")]
    found += [Curve(wide, "other_warps", "nop", (1, 2))]
    found += [Curve(narrow, "at_issue", mix, (1,)) for mix in MIXES]
    return found


def _wgmma(operand: Literal["s8", "f16"], n: int) -> Loop:
    return Loop(operand, Wgmma(operand, n, "rs"))


def compile_curves(
    chosen: Sequence[Curve], target: str, done: Callable[[int, int], None] = lambda _n, _of: None
) -> dict[Kernel, Cubin]:
    """Every kernel that the curves need: with and without the MMA, and the free-running baselines."""
    kernels = {curve.kernel(target, with_mma) for curve in chosen for with_mma in (True, False)}
    kernels |= {curve.free_running.kernel(target, True) for curve in chosen}
    wanted = sorted(kernels, key=lambda kernel: kernel.name)
    return dict(zip(wanted, compile_all(wanted, done), strict=True))


def verify(curve: Curve, cubin: Cubin) -> bool | None:
    """Whether the machine code holds the loop that the source describes: all MMAs outside the pass, exactly the named
    instructions in it, nothing spilled. None: no disassembler."""
    try:
        listing = sass.disassemble(cubin.image)["probe"]
    except sass.DisassemblyError:
        return None
    mma = "[IHQ]GMMA" if curve.loop.wgmma else "[IHQ]MMA"
    named = WORK[curve.instruction][1]
    per_pass = 16 if curve.placement == "other_warps" else curve.loop.accumulators

    def holds(body: tuple[sass.Instruction, ...], beside: int) -> bool:
        counts = listing.count(body)
        exact = all(sass.matching(counts, name) == per_pass * named.count(name) for name in set(named))
        return exact and sum(counts.values()) <= per_pass * len(named) + beside

    outer = listing.hot_loop(mma)
    if sass.matching(listing.count(outer), mma) != curve.loop.mmas or listing.has_local_memory():
        return False
    if curve.instruction in MIXES:  # once in the outer loop, beside the MMAs and their descriptors
        return holds(outer, curve.loop.mmas + LOOP_OVERHEAD)
    return any(holds(body, PASS_OVERHEAD) for body in listing.loops())


class CoIssueProbe:
    """Measures curves on one GPU, from compiled kernels; remembers the baselines that several curves share."""

    def __init__(self, gpu: Gpu, cubins: dict[Kernel, Cubin]) -> None:
        self._gpu, self._cubins = gpu, cubins
        self._baselines: dict[Kernel, list[Sample]] = {}
        self._functions: dict[Kernel, Any] = {}

    def measure(self, curve: Curve) -> list[CoIssue]:
        """One record per k."""
        target = self._gpu.architecture.target
        both_kernel, work_kernel = curve.kernel(target, True), curve.kernel(target, False)
        since = time.monotonic()
        alone = self._baseline(curve.free_running)
        verified = verify(curve, self._cubins[both_kernel])
        points = []
        for k in curve.ks:
            both = self._run(curve, both_kernel, k)
            work = self._run(curve, work_kernel, k) if k else None
            points.append((k, both, work))
        throttle = sorted(self._gpu.conditions(since).throttle)
        return [self._record(curve, k, alone, both, work, verified, throttle) for k, both, work in points]

    def _record(
        self,
        curve: Curve,
        k: int,
        alone: list[Sample],
        both: list[Sample],
        work: list[Sample] | None,
        verified: bool | None,
        throttle: list[str],
    ) -> CoIssue:
        t_mma, t_both = _cycles(alone), _cycles(both)
        t_cuda = _cycles(work) if work else None
        overlap = (t_mma + t_cuda - t_both) / min(t_mma, t_cuda) if t_cuda else None
        return CoIssue(
            mma=curve.loop.mma,
            shape=curve.loop.shape,
            placement=curve.placement,
            instruction=curve.instruction,
            k=k,
            cycles_over_mma_alone=t_both / t_mma,
            cuda_over_mma_alone=t_cuda / t_mma if t_cuda else None,
            wall_over_mma_alone=median(s.wall_s for s in both) / median(s.wall_s for s in alone),
            overlap=overlap,
            spread=spread([s.slowest_cycles for s in both]),
            sm_spread=median(s.slowest_cycles / s.cycles for s in both) - 1,
            sm_clock_mhz=median(s.sm_clock_mhz for s in both),
            throttle=throttle,
            samples=len(both),
            sass_verified=verified,
            origin="measured",
        )

    def _baseline(self, free_running: Curve) -> list[Sample]:
        kernel = free_running.kernel(self._gpu.architecture.target, True)
        if kernel not in self._baselines:
            self._baselines[kernel] = self._run(free_running, kernel, 0)
        return self._baselines[kernel]

    def _run(self, curve: Curve, kernel: Kernel, k: int) -> list[Sample]:
        """SAMPLES launches; cycles and wall time per iteration of the loop."""
        gpu = self._gpu
        if kernel not in self._functions:
            self._functions[kernel] = gpu.function(self._cubins[kernel])
        function, operands = self._functions[kernel], gpu.operands(curve.loop.kind)

        def launch(iterations: int) -> Sample:
            return gpu.launch(function, curve.threads, operands, iterations, (k,))

        few, many = (launch(n).wall_s for n in (32, 160))
        iterations = max(32, round(TARGET_S / max((many - few) / 128, 1e-8)))
        samples = [launch(iterations) for _ in range(SAMPLES)]
        return [
            replace(
                sample,
                cycles=sample.cycles / iterations,
                slowest_cycles=sample.slowest_cycles / iterations,
                wall_s=sample.wall_s / iterations,
            )
            for sample in samples
        ]


def _cycles(samples: list[Sample]) -> float:
    return median(sample.slowest_cycles for sample in samples)
