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
from apex4_probe.overlap import Overlap, overlap_of
from apex4_probe.rates import Operand, Rates, Throughput, worst
from apex4_probe.shipped import Family
from apex4_probe.strategies import PIPE, STRATEGIES

DEPTH = 128  # of K; what every cost here is counted for
GROUP: dict[Granularity, int] = {"g128": 128, "a128i": 128, "g128i": 128, "g64": 64, "g32": 32}  # absent: no groups


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
    *(Variant("w4a8", g, s) for g in ("g128", "g64", "g32") for s in ("i2f_ffma", "magic_fadd_ffma")),
)
OPERAND: dict[Format, Operand] = {"w4a4": "s4", "w4a8": "s8"}


@dataclass(frozen=True)
class Tile:
    """What a CTA tile costs beside MMA and dequantisation, per accumulator and 128 of K.

    ``shared_bytes``: moved through shared memory by instructions and copies. ``widen_weights``: how many weights are
    widened, each as often as warps do it. ``bookkeeping``: address, load and loop instructions. ``mma``: MMAs.
    """

    shared_bytes: float
    widen_weights: float
    bookkeeping: float
    mma: float


# A study kernel for mma.sync, 128 x 128 a CTA, 64 x 64 a warp, static SASS: IMMA 0.500, everything else 0.25 to 0.33,
# shared memory 432 to 528 cycles of 128 bytes a tile. 8-bit activations move half as much again: (4 + 8) bits against
# (4 + 4). Two warps widen each weight. wgmma: 128 weights x 256 tokens, two warpgroups; a tile reads 8 KiB of packed
# weights, TMA writes 40 KiB; what the Tensor Core reads by itself is part of its measured rate.
_S4_SHARED = 480 * 128 / (128 * 128)
TILES: dict[tuple[Family, Operand], Tile] = {
    ("mma", "s4"): Tile(_S4_SHARED, 0, 0.29, 0.5),
    ("mma", "s8"): Tile(1.5 * _S4_SHARED, 2 * DEPTH / 128, 0.29, 1.0),
    ("wgmma", "s8"): Tile(48 * 1024 / (128 * 256), DEPTH / 256, 0.25, 0),
}
# Instructions that widen one INT4 weight to INT8, of 8 packed ones; nvcc 13.0 SASS: x16 form 3, with a group scale 7.
WIDEN = {"none": 3 / 8, "i2f_ffma": 3 / 8, "magic_fadd_ffma": 3 / 8, "widen": 7 / 8}
COUNTS = "instructions counted from SASS of study kernels (nvcc 13.0)"


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
        pipes=cost.pipes,
        overlap=cost.overlap,
        overlap_origin=cost.behind.origin,
        cycles_full_overlap=cost.full,
        cycles_no_overlap=cost.none,
        cycles_expected=cost.expected,
        over_channel=cost.expected / channel.expected,
        bound_by=max(cost.pipes, key=lambda pipe: cost.pipes[pipe]),
        origin="predicted",
        source=f"{COUNTS}; rates {cost.rates_origin}; overlap: {cost.behind.source}",
    )


def balance(rates: Rates, co_issue: Sequence[CoIssue]) -> list[StrategyBalance]:
    """Every variant that the hardware can run, in the order of ``VARIANTS``."""
    return [found for variant in VARIANTS if (found := strategy_balance(rates, variant, co_issue)) is not None]


@dataclass(frozen=True)
class _Cost:
    pipes: dict[str, float]
    overlap: float
    behind: Overlap
    rates_origin: str
    full: float
    none: float
    expected: float


def _cost(rates: Rates, variant: Variant, tensor: Throughput, family: Family, co_issue: Sequence[CoIssue]) -> _Cost:
    operand = OPERAND[variant.format]
    tile = TILES[family, operand]
    groups = DEPTH / GROUP.get(variant.granularity, DEPTH)
    instructions = {name: count * groups for name, count in STRATEGIES[variant.strategy].instructions.items()}
    widen = tile.widen_weights * WIDEN.get(variant.strategy, 0) if operand == "s8" else 0.0
    lanes = {name: rates.instruction(name) for name in (*instructions, *(["lop3"] if widen else []))}

    pipes = dict.fromkeys(("tensor", "fma", "alu", "conversion", "shared", "issue"), 0.0)
    pipes["tensor"] = DEPTH / tensor.per_clk
    for name, count in instructions.items():
        pipes[PIPE[name]] += count / lanes[name].per_clk
    dequantise = sum(pipes[pipe] for pipe in ("fma", "alu", "conversion"))
    unpack = widen / lanes["lop3"].per_clk if widen else 0.0
    pipes["alu"] += unpack
    pipes["shared"] = tile.shared_bytes / rates.limit("shared_bytes")
    pipes["issue"] = (sum(instructions.values()) + widen + tile.bookkeeping + tile.mma) / rates.limit("issue")

    behind = overlap_of(variant.strategy, operand, family, co_issue, rates)
    serial = dequantise + unpack  # one pipe after the other
    # The chain's own time, timed by the probe or carried over: its pipes overlap, but not wholly.
    cuda = (behind.cuda_cycles * groups if instructions else 0.0) + unpack
    full = max(pipes.values())
    none = pipes["tensor"] + pipes["shared"] + max(serial, cuda)
    overlap = behind.behind(cuda / pipes["tensor"])
    # Operands reach a multiplying warp by double buffering, so shared memory and issue bound the MMA, not add to it.
    base = max(pipes["tensor"], pipes["shared"], pipes["issue"])
    expected = base + cuda - overlap * min(pipes["tensor"], cuda)
    origins = [rate.origin for rate in (tensor, *lanes.values())]
    return _Cost(pipes, overlap, behind, worst(origins), full, none, min(max(expected, full), none))


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
