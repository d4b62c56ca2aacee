"""W4A4 for any number of tokens: a tiled GEMM on ``mma.sync`` of native INT4, with group scales applied to its sums.

``cuda/w4a4_mma.cu`` explains the tile. Counts below repeat the source's; the compile tests hold them together. Where
there is no INT4 Tensor Core (9.0 and later) the same source computes the same, emulated by the compiler and slow.
"""

from __future__ import annotations

from math import ceil

from apex4_probe.kernels.formats import (
    BLOCK_K,
    BLOCK_ROWS,
    BLOCK_TOKENS,
    Granularity,
    block_bytes,
    token_block_bytes,
)
from apex4_probe.kernels.variant import Chip, Geometry, Shape, Tile, Variant, tile

MINIMUM_VERSION = (8, 0)  # mma.sync m16n8k64 and cp.async (PTX ISA)

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


def _variant(name: str, granularity: Granularity, tiles: tuple[Tile, ...], strategy: str, description: str) -> Variant:
    def refuses(tile: Tile, shape: Shape, chip: Chip) -> str:
        if chip.version < MINIMUM_VERSION:
            return f"mma.sync m16n8k64 needs compute capability 8.0, this GPU has {chip.compute_capability}"
        if shape.n % BLOCK_ROWS:
            return f"N = {shape.n} is no multiple of {BLOCK_ROWS}"
        if (needed := shared_bytes(granularity, tile)) > chip.shared_bytes:
            return f"needs {needed} bytes of shared memory a CTA, this GPU has {chip.shared_bytes}"
        return ""

    def default(shape: Shape, chip: Chip) -> Tile:
        return next((one for one in tiles if not refuses(one, shape, chip)), tiles[0])

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
        headers=("mma.cuh", "async_copy.cuh", "output.cuh"),
        macros=(("strategy", STRATEGIES[strategy]),),
        tiles=tiles,
        default=default,
        refuses=refuses,
        geometry=geometry,
        options=OPTIONS,
    )


# 64 x 64 a warp. Two stages of 256 fit two CTAs on an SM of 8.0; on 8.6 and 8.9 those of 128 do, and one CTA of three
# of 256 without group scales.
_TILES = tuple(
    tile(rows=128, tokens=128, warp_rows=64, warp_tokens=64, step=step, stages=stages)
    for step, stages in ((256, 2), (128, 2), (128, 4), (256, 3))
)

VARIANTS: tuple[Variant, ...] = (
    _variant("w4a4.mma.channel", "channel", _TILES, "none", "a scale per weight row and per token; integer sums over K"),
    _variant(
        "w4a4.mma.a128i", "a128i", _TILES, "imad", "an integer scale per token and 128 inputs: one IMAD, exact over K"
    ),
    _variant(
        "w4a4.mma.g128", "g128", _TILES, "magic_ffma2", "float scales per 128 on both operands: two FFMA, no conversion"
    ),
    _variant(
        "w4a4.mma.g128.i2f", "g128", _TILES, "i2f_fmul_ffma", "float scales per 128 on both operands, the plain way"
    ),
)
