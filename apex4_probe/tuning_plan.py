"""What there is to time: a model's GEMMs, the numbers of tokens, and the kernels that could be chosen for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apex4_probe.candidates import UNIFORM, fitting, units
from apex4_probe.deployment import Format, Granularity, WorkloadRecord
from apex4_probe.field import refused
from apex4_probe.gemm_time import GemmTimer
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant
from apex4_probe.models import Layer, Model
from apex4_probe.rates import Rates
from apex4_probe.tile_time import Ranked, ranked

# Tokens beside the workload's own, so that linear() finds kernels for all: a kernel serves every M up to its own, and
# the largest everything above. In the order in which they are worth their time.
LADDER = (2048, 64, 1, 256, 16)
TILES = 12  # of a variant, for one GEMM and M
# Times of the best that is predicted for its packing. The model knows no pipeline depth and no instruction mix, so a
# tile is worth timing well above it; not so far where the variant models its tiles itself (to 6 % in 258 timings on an
# H100). A variant beyond the last is meant for another M, or is mma.sync behind wgmma (1.5).
TILE_WITHIN, OWN_TILE_WITHIN, VARIANT_WITHIN = 1.25, 1.15, 1.4
FP8_MULTIPLE = 16  # of N and K: torch._scaled_mm's alignment


@dataclass(frozen=True)
class Pick:
    variant: Variant
    tile: Tile


@dataclass(frozen=True)
class Cell:
    """One GEMM at one M. ``asked``: the workload has this M. ``picks``: a variant's default tile before its others."""

    shape: Shape
    asked: bool
    picks: tuple[Pick, ...]
    baselines: tuple[str, ...]

    @property
    def defaults(self) -> tuple[Pick, ...]:
        """The first tile of each variant."""
        first: dict[str, Pick] = {}
        for pick in self.picks:
            first.setdefault(pick.variant.name, pick)
        return tuple(first.values())

    @property
    def further(self) -> tuple[Pick, ...]:
        """The other tiles, the second of every variant before the third of any."""
        defaults = set(map(id, self.defaults))
        rank: dict[str, int] = {}
        ranked = []
        for pick in self.picks:
            if id(pick) not in defaults:
                rank[pick.variant.name] = rank.get(pick.variant.name, 0) + 1
                ranked.append((rank[pick.variant.name], pick))
        return tuple(pick for _, pick in sorted(ranked, key=lambda item: item[0]))


def cells(
    model: Model,
    workload: WorkloadRecord,
    timer: GemmTimer,
    chip: Chip,
    variants: Iterable[Variant],
    tiles: int = TILES,
) -> list[Cell]:
    """Every GEMM of one rank at every M, the workload's first. ``model``: the rank's shapes; ``tiles``: of a variant.

    Linears that share an input are one GEMM; what the planner would split is W4A4, whose times are modelled. What the
    chip's compiler emulates is left out: it runs for correctness, and no plan wants it.
    """
    asked = list(dict.fromkeys(point.m for point in sorted(workload.points, key=lambda point: -point.weight)))
    tokens = [*asked, *(m for m in LADDER if m not in asked)]
    gemms = {(sum(layer.n for layer in unit), unit[0].k): unit[0] for unit in units(model)}
    offered = tuple(variant for variant in variants if not variant.emulated_on(chip))
    return [
        _cell(Shape(m, n, k), m in asked, layer, workload, timer, chip, offered, tiles)
        for m in tokens
        for (n, k), layer in gemms.items()
    ]


def _cell(
    shape: Shape,
    asked: bool,
    layer: Layer,
    workload: WorkloadRecord,
    timer: GemmTimer,
    chip: Chip,
    variants: Sequence[Variant],
    tiles: int,
) -> Cell:
    picks: list[Pick] = []
    for packing in _packings(layer, workload, timer.rates):
        multiplying = (variant for variant in variants if (variant.format, variant.granularity) == packing)
        times = [ranked(timer, variant, shape, chip) for variant in multiplying]
        picks += _promising([found for found in times if found], tiles)
    fp8 = not refused(timer.rates, "fp8") and shape.n % FP8_MULTIPLE == 0 and shape.k % FP8_MULTIPLE == 0
    return Cell(shape, asked, tuple(picks), ("fp16", "fp8") if fp8 else ("fp16",))


def _promising(variants: Sequence[Ranked], tiles: int) -> list[Pick]:
    """Of one packing: what may win. The first variant, the catalogue's own choice, is always among it."""
    if not variants:
        return []
    best = min(found.best_us for found in variants)
    return [
        Pick(found.variant, tile)
        for found in variants
        if found is variants[0] or found.best_us <= VARIANT_WITHIN * best
        for tile in found.within((OWN_TILE_WITHIN if found.variant.clocks else TILE_WITHIN) * best, tiles)
    ]


def _packings(layer: Layer, workload: WorkloadRecord, rates: Rates) -> list[tuple[Format, Granularity]]:
    """Formats and granularities that the plan may choose for a layer of this K."""
    found: dict[tuple[Format, Granularity], None] = {}
    for format, granularities in UNIFORM.items():
        if workload.format in ("auto", format) and not refused(rates, format):
            for granularity in granularities:
                try:
                    found.setdefault((format, fitting(format, granularity, layer)))
                except ValueError:  # cannot be packed
                    continue
    return list(found)
