"""The dequantisation balance: rho, and what each strategy costs on every pipe beside the Tensor Core. Arithmetic only.

Everything is counted in SM cycles per accumulator element and 128 of K. The Tensor Core needs 128 / (MAC per cycle and
SM), a CUDA-core instruction 1 / (its lanes per SM); shared memory and the issue slots are two more pipes. All pipes in
parallel give the lower bound, one after the other the upper; the co-issue probe's overlap says where between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from apex4_probe.deployment import CoIssue, Format, Granularity, RhoFigure, StrategyBalance
from apex4_probe.hot_loops import Counted, counted
from apex4_probe.overlap import Overlap, overlap_of
from apex4_probe.rates import Operand, Rates, Throughput, worst
from apex4_probe.sass_bounds import PipeRates, Work, cycles
from apex4_probe.shipped import Family
from apex4_probe.strategies import STRATEGIES

DEPTH = 128  # of K; what every cost here is counted for
# Absent: no groups.
GROUP: dict[Granularity, int] = {"g128": 128, "a128i": 128, "g128i": 128, "g128r": 128, "g64": 64, "g32": 32}
SHORT_LAST_GROUP: tuple[Granularity, ...] = ("g128i", "g128r")  # K need not hold whole groups


@dataclass(frozen=True)
class Variant:
    format: Format
    granularity: Granularity
    strategy: str

    @property
    def label(self) -> str:
        granularity = "per channel" if self.granularity == "channel" else self.granularity
        detail = f" ({STRATEGIES[self.strategy].label})" if self.strategy not in ("none", "before_mma") else ""
        return f"{self.format} {granularity}{detail}"


VARIANTS: tuple[Variant, ...] = (
    Variant("w4a4", "channel", "none"),
    Variant("w4a4", "a128i", "imad"),
    *(Variant("w4a4", g, s) for g in ("g128", "g64", "g32") for s in ("i2f_fmul_ffma", "magic_ffma2")),
    Variant("w4a8", "channel", "none"),
    Variant("w4a8", "g128i", "widen"),
    Variant("w4a8", "g128r", "widen_rounded"),
    *(Variant("w4a8", g, s) for g in ("g128", "g64", "g32") for s in ("i2f_ffma", "magic_fadd_ffma")),
)
OPERAND: dict[Format, Operand] = {"w4a4": "s4", "w4a8": "s8"}


# Of wgmma the catalogue has no kernel yet. A study kernel's, static SASS: 128 weights x 256 tokens, two warpgroups; a
# tile reads 8 KiB of packed weights, TMA writes 40 KiB, what the Tensor Core reads by itself is part of its measured
# rate; everything else 0.25 instructions, and a weight is widened once for 256 tokens.
WGMMA_SHARED, WGMMA_REST, WGMMA_WIDENED = 48 * 1024 / (128 * 256), 0.25, DEPTH / 256
# Instructions that widen one INT4 weight to INT8, of 8 packed ones; nvcc 13.0 SASS: x16 form 3, with a group scale 7,
# with one of sixteenths 11.
WIDEN = {"none": 3 / 8, "i2f_ffma": 3 / 8, "magic_fadd_ffma": 3 / 8, "widen": 7 / 8, "widen_rounded": 11 / 8}
STUDY = "instructions counted in the machine code of study kernels (nvcc 13.0)"


def family_of(mma: str) -> Family:
    return "wgmma" if mma.startswith("wgmma") else "mma"


def strategy_balance(rates: Rates, variant: Variant, co_issue: Sequence[CoIssue]) -> StrategyBalance | None:
    """Cost of one variant on this GPU; None where the hardware lacks its MMA.

    ApexError: a lane rate is neither measured nor known.
    """
    operand = OPERAND[variant.format]
    tensor = rates.kernel_tensor(operand)
    if tensor is None:
        return None
    family = family_of(tensor.name)
    channel = _cost(rates, Variant(variant.format, "channel", "none"), tensor, family, co_issue)
    cost = _cost(rates, variant, tensor, family, co_issue)
    return StrategyBalance(
        format=variant.format,
        granularity=variant.granularity,
        strategy=variant.strategy,
        mma=tensor.name,
        pipes=dict(cost.pipes),
        overlap=cost.overlap,
        overlap_origin=cost.behind.origin,
        cycles_full_overlap=cost.full,
        cycles_no_overlap=cost.none,
        cycles_expected=cost.expected,
        over_channel=cost.expected / channel.expected,
        bound_by=max(cost.pipes, key=lambda pipe: cost.pipes[pipe]),
        origin="predicted",
        source=f"{cost.executed}; rates {cost.rates_origin}; overlap: {cost.behind.source}",
    )


def balance(rates: Rates, co_issue: Sequence[CoIssue]) -> list[StrategyBalance]:
    """Every variant that the hardware can run, in the order of ``VARIANTS``."""
    return [found for variant in VARIANTS if (found := strategy_balance(rates, variant, co_issue)) is not None]


@dataclass(frozen=True)
class _Cost:
    pipes: Mapping[str, float]
    overlap: float
    behind: Overlap
    executed: str  # whose instructions were counted
    rates_origin: str
    full: float
    none: float
    expected: float


def _cost(rates: Rates, variant: Variant, tensor: Throughput, family: Family, co_issue: Sequence[CoIssue]) -> _Cost:
    groups = DEPTH / GROUP.get(variant.granularity, DEPTH)
    executed = _executed(rates, variant, family, groups)
    work = executed.work
    names = (name for part in (work.dequantisation, work.widening, work.other) for name in part)
    lanes = {name: rates.instruction(name) for name in names}
    found = cycles(
        work,
        PipeRates(
            tensor=tensor.per_clk,
            instruction=lambda name: lanes[name].per_clk,
            shared_bytes=rates.limit("shared_bytes"),
            issue=rates.limit("issue"),
        ),
    )
    pipes = found.pipes
    behind = overlap_of(variant.strategy, OPERAND[variant.format], family, co_issue, rates)
    # The chain's own time, timed by the probe or carried over: its pipes overlap, but not wholly.
    cuda = (behind.cuda_cycles * groups if work.dequantisation else 0.0) + found.widening
    full = found.overlap
    none = found.all_pipes + max(0.0, cuda - found.dequantisation - found.widening)
    overlap = behind.behind(cuda / pipes["tensor"])
    # Operands reach a multiplying warp by double buffering, so shared memory and issue bound the MMA, not add to it.
    base = max(pipes["tensor"], pipes["shared"], pipes["issue"])
    expected = base + cuda - overlap * min(pipes["tensor"], cuda)
    origins = [rate.origin for rate in (tensor, *lanes.values())]
    told = f"{executed.source}; {executed.kernel}"
    return _Cost(pipes, overlap, behind, told, worst(origins), full, none, min(max(expected, full), none))


def _executed(rates: Rates, variant: Variant, family: Family, groups: float) -> Counted:
    if family == "mma":
        found = counted(rates.device.compute_capability, variant.format, variant.granularity, variant.strategy, groups)
        if found is not None:
            return found
    instructions = {name: count * groups for name, count in STRATEGIES[variant.strategy].instructions.items()}
    widening = {"lop3": WGMMA_WIDENED * WIDEN[variant.strategy]}
    return Counted(Work(instructions, widening, {}, WGMMA_REST, WGMMA_SHARED), STUDY, "wgmma, 128 x 256 a CTA")


def rho(rates: Rates, listed: Mapping[str, float | None]) -> dict[Literal["int4", "int8"], RhoFigure]:
    """The paper's rho = Tensor Core / CUDA Core throughput for INT4 and INT8.

    ``listed``: dense datasheet figures ``int4_tops``, ``int8_tops``, ``fp32_tflops``, where known.
    """
    fp32 = listed.get("fp32_tflops")
    return {
        "int4": _rho(rates, "s4", listed.get("int4_tops"), fp32),
        "int8": _rho(rates, "s8", listed.get("int8_tops"), fp32),
    }


def _rho(rates: Rates, operand: Operand, listed_tops: float | None, listed_tflops: float | None) -> RhoFigure:
    datasheet = listed_tops / listed_tflops if listed_tops and listed_tflops else None
    reason = _unusable(rates, operand)
    tensor = rates.tensor(operand)
    if tensor is None:
        return RhoFigure(datasheet=datasheet, usable=False, reason=reason or f"no {operand} Tensor Core rate is known")
    ffma = rates.instruction("ffma")
    both = rates.find(tensor.name), rates.find("ffma")
    measured = None
    if all(m is not None and m.origin == "measured" for m in both) and tensor.origin == "measured":
        tops, tflops = (m.value for m in both if m is not None)
        measured = tops / tflops if tops and tflops else None
    return RhoFigure(
        datasheet=datasheet,
        measured=measured,
        per_clock=tensor.per_clk / ffma.per_clk,
        usable=not reason,
        reason=reason,
    )


def _unusable(rates: Rates, operand: Operand) -> str:
    if rates.architecture.block_scales_in_hardware:
        return f"block scales are in hardware: {rates.architecture.block_scales_in_hardware}"
    if operand == "s4" and rates.tensor("s4") is None:
        return "emulated: no INT4 Tensor Core here, the compiler replaces the MMA by INT8 MMAs and integer instructions"
    return ""
