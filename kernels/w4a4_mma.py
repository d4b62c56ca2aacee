"""W4A4 for any number of tokens: a tiled GEMM on ``mma.sync`` of native INT4, with group scales applied to its sums.

``cuda/w4a4_mma.cu`` explains the tile. Counts below repeat the source's; the compile tests hold them together. Where
there is no INT4 Tensor Core (9.0 and later) the same source computes the same by INT8 MMAs, slowly.
"""

from __future__ import annotations

from math import ceil

from apex4_probe.kernels.formats import (
    BLOCK_K,
    BLOCK_ROWS,
    BLOCK_TOKENS,
    GROUP,
    Granularity,
    block_bytes,
    token_block_bytes,
)
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

NATIVE_ON = ("8.0", "8.6", "8.7", "8.9")  # Tensor Cores with INT4 and m16n8k64 (profiles/architectures.yaml)

# For picks without a measurement, all assumed: relative to 64 x 64 a warp and 256 of K a stage, by the instructions per
# accumulator that the source's header states, half hidden.
SMALL_WARP_TILE = 1.1
STEP_TIME = {256: 1.0, 128: 1.03}
ENOUGH_WARPS, FEW_WARPS = 8, 1.2  # two a scheduler; as w4a8_mma.py

# STRATEGY of the source: how a group's sums are scaled.
STRATEGIES = {"none": 0, "imad": 1, "magic_ffma2": 2, "i2f_fmul_ffma": 3}
# ptxas -O3 spills with group scales and moves registers besides (NVRTC 13.5: 0.68 instead of 0.31 instructions per
# accumulator and group of a128i); -O1 keeps the source's order, which is pipelined already.
OPTIONS = ("--ptxas-options=-O1",)


def _warps(tile: Tile) -> int:
    return tile["rows"] // tile["warp_rows"] * (tile["tokens"] // tile["warp_tokens"])


def stage_bytes(granularity: Granularity, tile: Tile) -> int:
    """Shared memory that holds ``step`` of K. Blocks of both operands take the room of the larger."""
    slot = max(block_bytes(granularity, "w4a4"), token_block_bytes(granularity))
    return tile["step"] // BLOCK_K * (tile["rows"] // BLOCK_ROWS + tile["tokens"] // BLOCK_TOKENS) * slot


def shared_bytes(granularity: Granularity, tile: Tile) -> int:
    """Dynamic shared memory of a CTA: its stages, or the epilogue's tile of outputs with each token's scale."""
    epilogue = tile["tokens"] * ((tile["rows"] + 8) * 2 + 4)
    return max(tile["stages"] * stage_bytes(granularity, tile), epilogue)


def ctas_per_sm(granularity: Granularity, tile: Tile, chip: Chip) -> int:
    """What the registers (256 a thread) and the shared memory of an SM hold."""
    room = (chip.shared_bytes + RESERVED_BYTES) // (shared_bytes(granularity, tile) + RESERVED_BYTES)
    return min(REGISTERS_PER_SM // (32 * _warps(tile) * 256), room)


def _cost(granularity: Granularity, tile: Tile, shape: Shape, chip: Chip) -> float:
    """Time of the busiest SM, in outputs of the best tile."""
    ctas = ceil(shape.n / tile["rows"]) * ceil(shape.m / tile["tokens"])
    busiest = ceil(ctas / chip.sm_count)
    resident = min(busiest, ctas_per_sm(granularity, tile, chip))
    waits = FEW_WARPS if resident * _warps(tile) < ENOUGH_WARPS else 1.0
    per_output = STEP_TIME[tile["step"]] * (1.0 if tile["warp_tokens"] == 64 else SMALL_WARP_TILE)
    return busiest * tile["rows"] * tile["tokens"] * per_output * waits


def _variant(
    name: str, granularity: Granularity, tiles: tuple[Tile, ...], strategy: str, description: str, mma_k: int = 64
) -> Variant:
    def refuses(tile: Tile, shape: Shape, chip: Chip) -> str:
        if chip.version < MINIMUM_VERSION:
            return f"mma.sync m16n8k64 needs compute capability 8.0, this GPU has {chip.compute_capability}"
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
        name=name,
        format="w4a4",
        granularity=granularity,
        strategy=strategy,
        description=description,
        source="w4a4_mma.cu",
        headers=(
            "mma.cuh",
            "async_copy.cuh",
            "group_sums.cuh",
            "int4_mma.cuh",
            "output.cuh",
            "output_tile.cuh",
            "widen.cuh",
        ),
        macros=(("strategy", STRATEGIES[strategy]), ("group", GROUP[granularity] or BLOCK_K), ("mma_k", mma_k)),
        tiles=tiles,
        default=default,
        refuses=refuses,
        geometry=geometry,
        options=OPTIONS,
        native_on=NATIVE_ON,
    )


# 128 x 128, 64 x 64 a warp: two CTAs of two stages of 256 fit an SM of 8.0 and 9.0, of 128 one of 8.6 and 8.9, where
# one CTA of three stages of 256 fits without group scales. 64 x 32 a warp: twice the warps for the same CTA, or a CTA
# of a quarter for few tokens and small grids.
TILES: tuple[Tile, ...] = tuple(
    tile(rows=rows, tokens=rows, warp_rows=64, warp_tokens=warp_tokens, step=step, stages=stages)
    for rows, warp_tokens, step, stages in (
        (128, 64, 256, 2),
        (128, 64, 256, 3),
        (128, 64, 128, 2),
        (128, 64, 128, 4),
        (128, 32, 256, 2),
        (128, 32, 256, 3),
        (64, 32, 256, 2),
        (64, 32, 256, 4),
    )
)
# With four groups and two MMAs each, 256 of K of a 64 x 64 warp tile are 42 KB of instructions, and ptxas spills.
TILES_G32 = tuple(one for one in TILES if one["step"] == 128 or one["warp_tokens"] == 32)

VARIANTS: tuple[Variant, ...] = (
    _variant("w4a4.mma.channel", "channel", TILES, "none", "a scale per weight row and per token; integer sums over K"),
    _variant(
        "w4a4.mma.a128i", "a128i", TILES, "imad", "an integer scale per token and 128 inputs: one IMAD, exact over K"
    ),
    _variant(
        "w4a4.mma.g128", "g128", TILES, "magic_ffma2", "float scales per 128 on both operands: two FFMA, no conversion"
    ),
    _variant("w4a4.mma.g64", "g64", TILES, "magic_ffma2", "as g128, with scales per 64"),
    _variant(
        "w4a4.mma.g32", "g32", TILES_G32, "magic_ffma2", "as g128, with scales per 32 and so by m16n8k32", mma_k=32
    ),
    _variant(
        "w4a4.i2f.g128",
        "g128",
        TILES,
        "i2f_fmul_ffma",
        "float scales per 128 on both operands, the straightforward way",
    ),
    _variant(
        "w4a4.k32.g128",
        "g128",
        TILES,
        "i2f_fmul_ffma",
        "the same by the paper's instruction, m16n8k32, which does half of m16n8k64's work",
        mma_k=32,
    ),
)
