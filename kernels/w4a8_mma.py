"""W4A8 for any number of tokens: a tiled GEMM on ``mma.sync`` that widens INT4 weights in registers.

``cuda/w4a8_mma.cu`` explains the tile. A CTA has a warp for every 32 weight rows; a warp multiplies ``warp_rows`` rows
by ``32 * tokens / warp_rows`` tokens. Counts below repeat the source's; the compile tests hold them together.
"""

from __future__ import annotations

from math import ceil

from apex4_probe.kernels.formats import BLOCK_K, BLOCK_ROWS, GROUP, TWO_LEVEL, Granularity, block_bytes
from apex4_probe.kernels.variant import (
    MINIMUM_VERSION,
    RESERVED_BYTES,
    Chip,
    Geometry,
    Shape,
    Tile,
    Variant,
    tile,
)

REGISTERS_PER_SM = 65536

# For picks without a measurement: time per output relative to 128 tokens, with other CTAs on the SM. Measured on an
# H100 for channel and g128i, N x K of 4096 x 4096, 28672 x 4096 and 4096 x 14336, M = 1024 and 4096; means of both
# granularities, which lie 4 to 7 % apart. For float groups and other GPUs: assumed.
TIME_PER_OUTPUT = {128: 1.0, 64: 1.07, 32: 1.33, 16: 2.05}
ENOUGH_WARPS = 8  # two a scheduler
# While the only warp of a scheduler waits, nothing runs. H100, g128, 4096 x 4096: a CTA for each SM takes 17.0 us, of
# which some 2 are the launch, eight for each take 102.5 us.
FEW_WARPS = 1.2
ONE_CTA = 1.07  # all warps wait at one barrier. H100: 256 rows against 128, both 32 a warp, mean of the shapes above


def _is_float(granularity: Granularity) -> bool:
    return GROUP[granularity] is not None and granularity not in TWO_LEVEL


def _warps(tile: Tile) -> int:
    return tile["rows"] // BLOCK_ROWS


def stage_bytes(granularity: Granularity, tile: Tile) -> int:
    """Shared memory that holds 128 of K: the tokens, and each warp's block of weights."""
    return tile["tokens"] * BLOCK_K + _warps(tile) * block_bytes(granularity)


def shared_bytes(granularity: Granularity, tile: Tile) -> int:
    """Dynamic shared memory of a CTA: its stages, or the epilogue's tile of outputs with each token's scale and sum."""
    epilogue = tile["tokens"] * ((tile["rows"] + 8) * 2 + 8)
    return max(tile["stages"] * stage_bytes(granularity, tile), epilogue)


def ctas_per_sm(granularity: Granularity, tile: Tile) -> int:
    """What the registers of an SM hold; the kernel is compiled for it."""
    tokens = tile["tokens"]
    wide = tokens == 128 or (_is_float(granularity) and tokens > 16)
    registers = 256 if wide else 168 if tokens == 64 or (granularity == "g128r" and tokens == 32) else 128
    return REGISTERS_PER_SM // (32 * _warps(tile) * registers)


def _cost(granularity: Granularity, tile: Tile, shape: Shape, chip: Chip) -> float:
    """Time of the busiest SM, in outputs of the best tile."""
    ctas = ceil(shape.n / tile["rows"]) * ceil(shape.m / tile["tokens"])
    busiest = ceil(ctas / chip.sm_count)
    room = (chip.shared_bytes + RESERVED_BYTES) // (shared_bytes(granularity, tile) + RESERVED_BYTES)
    resident = min(busiest, room, ctas_per_sm(granularity, tile))
    waits = FEW_WARPS if resident * _warps(tile) < ENOUGH_WARPS else ONE_CTA if resident == 1 else 1.0
    return busiest * tile["rows"] * tile["tokens"] * TIME_PER_OUTPUT[tile["tokens"]] * waits


def _variant(granularity: Granularity, tiles: tuple[Tile, ...], strategy: str, description: str) -> Variant:
    def refuses(tile: Tile, shape: Shape, chip: Chip) -> str:
        if chip.version < MINIMUM_VERSION:
            return f"mma.sync m16n8k32 needs compute capability 8.0, this GPU has {chip.compute_capability}"
        if shape.n % BLOCK_ROWS:
            return f"N = {shape.n} is no multiple of {BLOCK_ROWS}"
        if (needed := shared_bytes(granularity, tile)) > chip.shared_bytes:
            return f"needs {needed} bytes of shared memory a CTA, this GPU has {chip.shared_bytes}"
        return ""

    def default(shape: Shape, chip: Chip) -> Tile:
        fitting = [one for one in tiles if shared_bytes(granularity, one) <= chip.shared_bytes]
        return min(fitting or tiles, key=lambda one: (_cost(granularity, one, shape, chip), -one["stages"]))

    def geometry(tile: Tile, shape: Shape, _chip: Chip) -> Geometry:
        ctas = ceil(shape.n / tile["rows"]) * ceil(shape.m / tile["tokens"])
        return Geometry((ctas, 1, 1), 32 * _warps(tile), shared_bytes(granularity, tile))

    return Variant(
        name=f"w4a8.mma.{granularity}",
        format="w4a8",
        granularity=granularity,
        strategy=strategy,
        description=description,
        source="w4a8_mma.cu",
        headers=("mma.cuh", "async_copy.cuh", "output.cuh", "output_tile.cuh", "widen.cuh"),
        macros=(
            ("group", GROUP[granularity] or 0),
            ("two_level", int(granularity in TWO_LEVEL)),
            ("rounded", int(granularity == "g128r")),
        ),
        tiles=tiles,
        default=default,
        refuses=refuses,
        geometry=geometry,
    )


def _tiles(*shapes: tuple[int, int, int, tuple[int, ...]]) -> tuple[Tile, ...]:
    return tuple(
        tile(rows=rows, tokens=tokens, warp_rows=warp_rows, stages=count)
        for rows, tokens, warp_rows, stages in shapes
        for count in stages
    )


# What can win, best first. 128 tokens: an SM of 9.0 has shared memory for two CTAs of 4 stages, of 8.0 for 3, of 8.6
# and 8.9 for 2; with 64 tokens two of 3 stages fit everywhere, 4 are for grids of one CTA an SM. 64 rows a warp never
# won for g128i, which widens every weight twice there; 256 rows did, by 1 %, and never for channel.
_FEW_TOKENS = _tiles((128, 64, 32, (3, 4)), (128, 32, 32, (4,)), (128, 16, 32, (4,)))
_CHANNEL = (*_tiles((128, 128, 32, (4,)), (128, 128, 64, (4, 3)), (128, 128, 32, (3, 2))), *_FEW_TOKENS)
_TWO_LEVEL = (*_tiles((128, 128, 32, (4, 3, 2)), (256, 128, 32, (3,))), *_FEW_TOKENS)
# A float sum beside each integer one: 128 tokens do not fit the registers.
_FLOAT = _tiles((128, 64, 32, (4, 3, 2)), (128, 32, 32, (4,)), (128, 16, 32, (4,)))

_PER_GROUP = "a float scale per {} weights, on each group's integer sums: one addition and one multiplication each"

VARIANTS: tuple[Variant, ...] = (
    _variant("channel", _CHANNEL, "none", "a scale per weight row; nibbles become bytes where they lie"),
    _variant("g128i", _TWO_LEVEL, "widen", "an integer scale per 128 weights, applied while they are widened to INT8"),
    _variant("g128r", _TWO_LEVEL, "widen_rounded", "likewise, in sixteenths, and rounded to INT8"),
    _variant("g128", _FLOAT, "magic_fadd_ffma", _PER_GROUP.format(128)),
    _variant("g64", _FLOAT, "magic_fadd_ffma", _PER_GROUP.format(64)),
    _variant("g32", _FLOAT, "magic_fadd_ffma", _PER_GROUP.format(32)),
)
