"""W4A8 for 1 … 64 tokens: the catalogue's records of ``cuda/w4a8_small.cu``, their tile space and launch geometry.

Tile parameters (the source's header explains them): ``rows`` of W and ``tokens`` a CTA holds, ``warps``, of which
``row_warps`` lie side by side over the rows and the others split K, ``stages`` of a warp's ring, ``staged_x``.
"""

from __future__ import annotations

from apex4_probe.kernels.formats import (
    BLOCK_K,
    BLOCK_ROWS,
    TILE_ROWS,
    TOKEN_TILE,
    TWO_LEVEL,
    Granularity,
    block_bytes,
)
from apex4_probe.kernels.variant import MINIMUM_VERSION, Chip, Geometry, Shape, Tile, Variant, tile
from apex4_probe.kernels.whole_rows import even_grid, rounds

MOST_TOKENS = 64
_X_TILE_BYTES = TOKEN_TILE * BLOCK_K  # INT8
_LINE_BYTES = 128
_BULK_COPIES_SINCE = (9, 0)  # by means of which row warps share activations; cp.async takes a thread more registers
_FIVE_TILES = 5 * TILE_ROWS  # rows of a warp

# (rows, warps, row_warps, stages, staged_x), the preferred first: what wins somewhere on an H100, or may, and what
# small N and small shared memories need. About 64 KB in flight an SM are best there, some more with programmatic
# dependent launch. Odd tiles a CTA (48, 80) fit an N whose blocks of 32 rows do not spread evenly.
_TILES: dict[int, tuple[tuple[int, int, int, int, int], ...]] = {
    8: (
        (32, 16, 1, 2, 0),
        (48, 8, 1, 2, 0),
        (64, 8, 1, 2, 0),
        (32, 8, 1, 3, 0),
        (32, 16, 1, 3, 0),
        (16, 16, 1, 3, 0),
    ),
    16: (
        (32, 8, 1, 3, 1),
        (48, 8, 1, 2, 1),
        (64, 8, 1, 2, 1),
        (32, 16, 1, 2, 0),
        (32, 16, 1, 2, 1),
        (32, 8, 1, 2, 1),
        (16, 16, 1, 2, 1),
    ),
    32: (
        (32, 8, 1, 2, 1),
        (64, 8, 1, 2, 1),
        (48, 8, 1, 2, 1),
        (256, 8, 4, 3, 1),
        (224, 14, 7, 3, 1),
        (64, 4, 1, 3, 1),
        (128, 8, 2, 3, 1),
        (32, 4, 1, 3, 1),
    ),
    64: (
        (32, 8, 1, 2, 1),
        (48, 4, 1, 3, 1),
        (256, 8, 4, 3, 1),
        (64, 4, 1, 3, 1),
        (64, 4, 1, 2, 1),
        (32, 4, 1, 3, 1),
        (64, 8, 2, 3, 1),
        (128, 8, 4, 3, 1),
        (80, 4, 1, 2, 1),
        (96, 8, 2, 3, 1),
        (64, 2, 1, 3, 1),
        (32, 2, 1, 4, 1),
    ),
}


def _tiles() -> tuple[Tile, ...]:
    names = ("rows", "warps", "row_warps", "stages", "staged_x")
    return tuple(
        tile(**dict(zip(names, numbers, strict=True)), tokens=tokens)
        for tokens, several in _TILES.items()
        for numbers in several
    )


def _weight_stage_bytes(tiles: int, granularity: Granularity) -> int:
    """A stage of a warp with ``tiles`` of 16 rows: whole lines, with room for blocks that begin in a line's middle."""

    def whole_lines(size: int) -> int:
        return -(-size // _LINE_BYTES) * _LINE_BYTES

    block = block_bytes(granularity)
    skew = block % _LINE_BYTES
    return whole_lines(tiles * block // 2 + skew) if tiles % 2 else tiles // 2 * whole_lines(block + skew)


def shared_bytes(tile: Tile, granularity: Granularity) -> int:
    """Bytes of shared memory a CTA: the source's SHARED_BYTES."""
    row_warps, k_warps = tile["row_warps"], tile["warps"] // tile["row_warps"]
    weights = _weight_stage_bytes(tile["rows"] // TILE_ROWS // row_warps, granularity)
    x = tile["staged_x"] * tile["tokens"] // TOKEN_TILE * _X_TILE_BYTES
    x_rings = tile["warps"] if row_warps == 1 else k_warps
    barriers = 8 * (tile["warps"] + (2 * k_warps if tile["staged_x"] and row_warps > 1 else 0))
    copies = k_warps if tile["tokens"] < 32 else (k_warps + 1) // 2
    sums = copies * tile["tokens"] * (tile["rows"] + 4) * 4
    return tile["stages"] * (tile["warps"] * weights + x_rings * x + barriers) + sums + 8 * tile["tokens"]


def _geometry(granularity: Granularity, tile: Tile, shape: Shape, chip: Chip) -> Geometry:
    grid = even_grid(tile, shape.n, chip.sm_count)
    return Geometry((grid, 1, 1), 32 * tile["warps"], shared_bytes(tile, granularity))


def _refuses(granularity: Granularity, tile: Tile, shape: Shape, chip: Chip) -> str:
    if shape.m > tile["tokens"]:
        return f"holds {tile['tokens']} tokens, not {shape.m}"
    if shape.n % BLOCK_ROWS:
        return f"N = {shape.n} is no multiple of {BLOCK_ROWS}"
    if chip.version < MINIMUM_VERSION:
        return f"compute capability {chip.compute_capability} has no INT8 MMA m16n8k32 (8.0 and later)"
    if chip.version < _BULK_COPIES_SINCE and (what := _by_bulk_copies(granularity, tile)):
        return f"{what} need compute capability 9.0, not {chip.compute_capability}"
    if (needed := shared_bytes(tile, granularity)) > chip.shared_bytes:
        return f"needs {needed} bytes of shared memory a CTA, {chip.compute_capability} has {chip.shared_bytes}"
    return ""


def _by_bulk_copies(granularity: Granularity, tile: Tile) -> str:
    """What only works where copies are bulk copies; "" for nothing."""
    if tile["row_warps"] > 1:
        return "several row warps"
    return "group scales of 80 rows a warp" if granularity in TWO_LEVEL and tile["rows"] == _FIVE_TILES else ""


# l2.read over memory.read of an H100, 6921 to 3054 GB/s when the preference was fitted (6990 in the profile that is
# shipped). A row group's activations come from the L2 and take twice the bytes a token that its weights take a row; as
# long as the L2 keeps up they cost little.
_L2_OVER_MEMORY = 2.27
# Whose busiest SM has up to this much more to fetch may still be preferred: what an SM fetches more, others fetch less,
# and memory stays busy meanwhile.
_ABOUT_EVEN = 1.15


def _default(granularity: Granularity, shape: Shape, chip: Chip) -> Tile:
    """The preferred tile among those that load the SMs about evenly, with the fewest tokens that hold M.

    Fitted to one H100 SXM5: of channel's tiles it picks one within 4 % of the best for 1, 16 and 64 tokens at six
    shapes, 4096 x 4096 to 57344 x 8192. The preference at 32 tokens is interpolated, on other chips it is a guess.

    Raises ValueError where no tile can run the shape.
    """
    legal = [each for each in _tiles() if not _refuses(granularity, each, shape, chip)]
    if not legal:
        raise ValueError(f"w4a8.small.{granularity} cannot run {shape} on {chip}")
    fewest = min(each["tokens"] for each in legal)
    fitting = [each for each in legal if each["tokens"] == fewest]

    def busiest(tile: Tile) -> float:
        rows = max(tile["rows"], (tile["rows"] + 2 * shape.m) / _L2_OVER_MEMORY)
        return rounds(tile, shape.n, chip.sm_count) * rows

    least = min(busiest(each) for each in fitting)
    return next(each for each in fitting if busiest(each) <= _ABOUT_EVEN * least)


def _variant(granularity: Granularity, strategy: str, scales: str) -> Variant:
    return Variant(
        name=f"w4a8.small.{granularity}",
        format="w4a8",
        granularity=granularity,
        strategy=strategy,
        description=f"1 … {MOST_TOKENS} tokens, memory-bound: whole rows a CTA, K split over its warps; {scales}",
        source="w4a8_small.cu",
        headers=("mma.cuh", "async_copy.cuh", "output.cuh", "row_quads.cuh", "widen.cuh", "weight_ring.cuh"),
        macros=(("grouped", int(granularity in TWO_LEVEL)), ("rounded", int(granularity == "g128r"))),
        tiles=_tiles(),
        default=lambda shape, chip: _default(granularity, shape, chip),
        refuses=lambda tile, shape, chip: _refuses(granularity, tile, shape, chip),
        geometry=lambda tile, shape, chip: _geometry(granularity, tile, shape, chip),
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("channel", "none", "a float scale per row"),
    _variant("g128i", "widen", "integer group scales applied while widening"),
    _variant("g128r", "widen_rounded", "group scales of sixteenths applied while widening, rounded to INT8"),
)
