"""W4A4 for 1 … 64 tokens: the catalogue's records of ``cuda/w4a4_small.cu``, their tile space and launch geometry.

Tile parameters (the source's header explains them): ``rows`` of W and ``tokens`` a CTA holds, ``warps``, which split K,
and ``stages`` of a warp's ring. For GPUs with INT4 Tensor Cores, 8.0 to 8.9: elsewhere (9.0 and later) the same source
computes the same by INT8 MMAs, slowly.
"""

from __future__ import annotations

from apex4_probe.kernels.formats import (
    BLOCK_K,
    BLOCK_ROWS,
    BLOCK_TOKENS,
    GROUP,
    NIBBLE_BYTES,
    Granularity,
    block_bytes,
    has_offsets,
    token_block_bytes,
)
from apex4_probe.kernels.variant import MINIMUM_VERSION, Chip, Geometry, Shape, Tile, Variant, tile
from apex4_probe.kernels.w4a4_mma import NATIVE_ON, OPTIONS, STRATEGIES
from apex4_probe.kernels.whole_rows import even_grid, rounds

MOST_TOKENS = 64
_MOST_SUMS = 4096  # of all copies that the warps add up

# (rows, warps, stages), the preferred first. None was timed where INT4 is native. Reasons: 32 to 64 KB of weights in
# flight an SM saturate the memory of any of these GPUs (an H100, which has more bandwidth an SM, wants 64 KB); wide row
# groups where tokens are many, whose fetches from the L2 they share; 16 rows for an N whose blocks of 32 do not spread
# evenly. Of shared memory 8.6 and 8.9 have 99 KB, 8.0 has 163: for it the larger ones.
_TILES: dict[int, tuple[tuple[int, int, int], ...]] = {
    8: ((32, 8, 4), (16, 16, 3), (64, 8, 2), (16, 8, 4), (32, 8, 3), (32, 16, 2)),
    16: ((32, 8, 3), (16, 8, 4), (64, 8, 2), (64, 4, 3), (32, 8, 2)),
    32: ((64, 8, 2), (64, 4, 3), (32, 8, 3), (32, 8, 2), (16, 8, 3)),
    64: ((64, 8, 2), (64, 4, 4), (64, 4, 2), (32, 8, 2), (32, 4, 3), (16, 4, 3)),
}


def _tiles(group: int) -> tuple[Tile, ...]:
    return tuple(
        tile(rows=rows, warps=warps, stages=stages, tokens=tokens)
        for tokens, several in _TILES.items()
        for rows, warps, stages in several
        if group == BLOCK_K or rows * tokens < _MOST_SUMS  # with smaller groups so many sums do not fit registers
    )


def shared_bytes(tile: Tile, granularity: Granularity) -> int:
    """Bytes of shared memory a CTA: the source's SHARED_BYTES."""
    rows, tokens, warps = tile["rows"], tile["tokens"], tile["warps"]
    scales = block_bytes(granularity, "w4a4") - NIBBLE_BYTES
    if has_offsets("w4a4", granularity):
        scales //= 2  # the offsets stay in memory
    token_scales = token_block_bytes(granularity) - NIBBLE_BYTES
    nibbles = (rows + tokens) * BLOCK_K // 2
    stage = nibbles + -(-rows // BLOCK_ROWS) * scales + -(-tokens // BLOCK_TOKENS) * token_scales
    copies = min(warps, _MOST_SUMS // (rows * tokens))
    return warps * tile["stages"] * stage + copies * tokens * (rows + 4) * 4 + tokens * 4


def _refuses(granularity: Granularity, tile: Tile, shape: Shape, chip: Chip) -> str:
    if shape.m > tile["tokens"]:
        return f"holds {tile['tokens']} tokens, not {shape.m}"
    if shape.n % BLOCK_ROWS:
        return f"N = {shape.n} is no multiple of {BLOCK_ROWS}"
    if chip.version < MINIMUM_VERSION:
        return f"compute capability {chip.compute_capability} has no INT4 MMA m16n8k64 (8.0 and later)"
    if (needed := shared_bytes(tile, granularity)) > chip.shared_bytes:
        return f"needs {needed} bytes of shared memory a CTA, {chip.compute_capability} has {chip.shared_bytes}"
    return ""


_L2_OVER_MEMORY = 2.27  # as in w4a8_small.py, measured on an H100; assumed of the others
_ABOUT_EVEN = 1.15  # likewise


def _default(granularity: Granularity, tiles: tuple[Tile, ...], shape: Shape, chip: Chip) -> Tile:
    """The preferred tile among those that load the SMs about evenly, with the fewest tokens that hold M. A guess: the
    rule is that of w4a8_small.py, which was fitted to one H100.

    Raises ValueError where no tile can run the shape.
    """
    legal = [each for each in tiles if not _refuses(granularity, each, shape, chip)]
    if not legal:
        raise ValueError(f"w4a4.small.{granularity} cannot run {shape} on {chip}")
    fewest = min(each["tokens"] for each in legal)
    fitting = [each for each in legal if each["tokens"] == fewest]

    def busiest(tile: Tile) -> float:
        rows = max(tile["rows"], (tile["rows"] + shape.m) / _L2_OVER_MEMORY)
        return rounds(tile, shape.n, chip.sm_count) * rows

    least = min(busiest(each) for each in fitting)
    return next(each for each in fitting if busiest(each) <= _ABOUT_EVEN * least)


def _variant(granularity: Granularity, strategy: str, scales: str) -> Variant:
    group = GROUP[granularity] or BLOCK_K
    tiles = _tiles(group)
    return Variant(
        name=f"w4a4.small.{granularity}",
        format="w4a4",
        granularity=granularity,
        strategy=strategy,
        description=(f"1 … {MOST_TOKENS} tokens, memory-bound: whole rows a CTA, K split over its warps; {scales}"),
        source="w4a4_small.cu",
        headers=(
            "mma.cuh",
            "async_copy.cuh",
            "group_sums.cuh",
            "int4_mma.cuh",
            "output.cuh",
            "row_quads.cuh",
            "widen.cuh",
        ),
        macros=(("strategy", STRATEGIES[strategy]), ("group", group)),
        tiles=tiles,
        default=lambda shape, chip: _default(granularity, tiles, shape, chip),
        refuses=lambda tile, shape, chip: _refuses(granularity, tile, shape, chip),
        geometry=lambda tile, shape, chip: Geometry(
            (even_grid(tile, shape.n, chip.sm_count), 1, 1), 32 * tile["warps"], shared_bytes(tile, granularity)
        ),
        options=OPTIONS,
        native_on=NATIVE_ON,
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("channel", "none", "a scale per weight row and per token, integer sums over K"),
    _variant("a128i", "imad", "an integer scale per token and 128 inputs, exact over K"),
    _variant("g128", "magic_ffma2", "float scales per 128 on both operands"),
    _variant("g64", "magic_ffma2", "float scales per 64 on both operands"),
    _variant("g32", "magic_ffma2", "float scales per 32 on both operands, m16n8k32"),
)
