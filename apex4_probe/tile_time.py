"""How long a tile of the catalogue would take, well enough to leave out those that cannot win before timing them.

The model's time of the GEMM, spread over the SMs as the tile's grid is: the SM with most CTAs decides, and tokens that
only fill a tile up are computed like others. Beside it the L2, from which every CTA loads its own operands. A variant
that models its own tiles is believed about how they compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apex4_probe.gemm_time import ACTIVATION_BITS, GemmTimer, Time, weight_bytes
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant


@dataclass(frozen=True)
class Ranked:
    """A variant's tiles for one shape, by predicted microseconds; ``default``: what it would take unmeasured."""

    variant: Variant
    default: Tile
    times: tuple[tuple[float, Tile], ...]

    @property
    def best_us(self) -> float:
        return self.times[0][0]

    def within(self, us: float, most: int) -> list[Tile]:
        """The default, then the fastest others up to ``us``; ``most`` in all."""
        others = [tile for time, tile in self.times if time <= us and tile != self.default]
        return [self.default, *others[: most - 1]]


def ranked(timer: GemmTimer, variant: Variant, shape: Shape, chip: Chip) -> Ranked | None:
    """None: none of the variant's tiles runs this shape, or the model has no kernel of its packing."""
    legal = [tile for tile in variant.tiles if not variant.refuses(tile, shape, chip)]
    if not legal or (variant.format in ("w4a8", "w4a4") and (variant.format, variant.granularity) not in timer.costs):
        return None
    default = variant.default(shape, chip)
    us = _by_its_clocks(timer, variant, legal, shape, chip) or [
        tile_us(timer, variant, tile, shape, chip) for tile in legal
    ]
    times = sorted(zip(us, legal, strict=True), key=lambda item: item[0])
    return Ranked(variant, default if default in legal else legal[0], tuple(times))


def _by_its_clocks(
    timer: GemmTimer, variant: Variant, tiles: Sequence[Tile], shape: Shape, chip: Chip
) -> list[float] | None:
    """Microseconds, the best tile's as the model says of the GEMM; None: the variant has no model of its own."""
    if variant.clocks is None:
        return None
    clocks = [variant.clocks(tile, shape, chip) for tile in tiles]
    modelled = timer.modelled(shape.m, shape.n, shape.k, variant.format, variant.granularity)
    return [(modelled.us - modelled.quantise) * each / min(clocks) for each in clocks]


def tile_us(timer: GemmTimer, variant: Variant, tile: Tile, shape: Shape, chip: Chip) -> float:
    """Microseconds, without quantisation. KeyError: the model has no kernel of this format and granularity."""
    parameters = dict(tile.parameters)
    tokens = parameters.get("tokens", 1)
    padded = -(-shape.m // tokens) * tokens
    modelled = timer.modelled(padded, shape.n, shape.k, variant.format, variant.granularity)
    geometry = variant.geometry(tile, shape, chip)
    ctas = geometry.grid[0] * geometry.grid[1] * geometry.grid[2]
    idle = -(-ctas // chip.sm_count) * chip.sm_count / ctas
    busy = max(modelled.us - modelled.quantise - timer.fixed_us, 0.0) * idle * _slower_mma(timer, variant, modelled)
    scratch = 2 * geometry.workspace_bytes / (timer.rates.read_bandwidth().value * 1e3)  # written, then read
    return timer.fixed_us + max(busy, _l2_us(timer, variant, parameters, shape)) + scratch


def _slower_mma(timer: GemmTimer, variant: Variant, modelled: Time) -> float:
    """How far mma.sync stays behind the MMA that the model counts with, on Hopper wgmma; 1.0 where memory binds."""
    if variant.format != "w4a8" or variant.activations or modelled.bound_by in ("memory", "launch"):
        return 1.0
    counted = timer.rates.kernel_tensor("s8")
    return max(1.0, counted.per_clk / timer.rates.instruction("mma.s8.m16n8k32").per_clk) if counted else 1.0


def _l2_us(timer: GemmTimer, variant: Variant, tile: dict[str, int], shape: Shape) -> float:
    """Loading the operands of all CTAs from the L2: weights once a tile of tokens, activations once a tile of rows."""
    l2 = timer.rates.find("l2.read")
    if l2 is None or not l2.value or "rows" not in tile or "tokens" not in tile:
        return 0.0
    weights = weight_bytes(shape.n, shape.k, variant.format, variant.granularity) * -(-shape.m // tile["tokens"])
    activations = shape.m * shape.k * ACTIVATION_BITS[variant.format] / 8 * -(-shape.n // tile["rows"])
    return (weights + activations) / (l2.value * 1e3)
