"""W4A16: for few tokens a kernel that widens INT4 weights in registers, else dequantisation and torch's FP16 GEMM.

``cuda/w4a16_small.cu`` and ``cuda/dequantise.cu`` explain themselves. ``shared_bytes`` repeats what the first one lays
out; the compile tests hold the two together.
"""

from __future__ import annotations

from math import ceil

from apex4_probe.kernels.formats import (
    BLOCK_K,
    BLOCK_ROWS,
    GRANULARITIES,
    TILE_ROWS,
    Granularity,
    block_bytes,
    weight_group,
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

LARGEST_M = 64  # beyond it the weights would be widened more than twice
WIDE = 0.7  # CTAs of 64 rows an SM from which on they beat those of 32
EVEN = 0.9  # share of the SMs' time that whole rounds of row groups must use for one CTA an SM to be the default
HEADERS = ("mma.cuh", "async_copy.cuh", "output.cuh", "widen.cuh", "widen16.cuh")


def shared_bytes(granularity: Granularity, tile: Tile) -> int:
    """Dynamic shared memory of a CTA of w4a16_small.cu: rings, partial sums, a barrier for each stage."""
    stages = tile["warps"] * tile["stages"]
    k_warps = tile["warps"] * BLOCK_ROWS // tile["rows"]
    return stages * block_bytes(granularity) + k_warps * tile["tokens"] * (tile["rows"] + 4) * 4 + stages * 8


def _small(granularity: Granularity, tiles: tuple[Tile, ...]) -> Variant:
    def refuses(tile: Tile, shape: Shape, chip: Chip) -> str:
        if reason := _refuses_always(shape, chip):
            return reason
        if shape.m > LARGEST_M:
            return f"is for up to {LARGEST_M} tokens, not {shape.m}"
        if shape.m > 2 * tile["tokens"]:
            return f"a tile of {tile['tokens']} tokens would read the weights more than twice for {shape.m}"
        shared, room = shared_bytes(granularity, tile), chip.shared_bytes
        if tile["ctas"] * (shared + RESERVED_BYTES) > room + RESERVED_BYTES:
            return f"needs {shared} bytes of shared memory for each of {tile['ctas']} CTAs an SM, which has {room}"
        return ""

    def default(shape: Shape, chip: Chip) -> Tile:
        wanted = [one for one in _preferred(shape, chip) if one in tiles]
        fitting = (one for one in (*wanted, *tiles) if not refuses(one, shape, chip))
        return next(fitting, tiles[0])

    def geometry(tile: Tile, shape: Shape, chip: Chip) -> Geometry:
        row_groups, passes = ceil(shape.n / tile["rows"]), ceil(shape.m / tile["tokens"])
        ctas = max(1, min(row_groups, chip.sm_count * tile["ctas"] // passes))
        return Geometry((ctas, passes, 1), 32 * tile["warps"], shared_bytes(granularity, tile))

    return Variant(
        name=f"w4a16.small.{granularity}",
        format="w4a16",
        granularity=granularity,
        strategy="none" if granularity == "channel" else "ffma",
        description=f"up to {LARGEST_M} tokens; INT4 widened in registers, {_SCALES[granularity]} on the FP32 sums",
        source="w4a16_small.cu",
        headers=HEADERS,
        macros=(("group", weight_group(granularity) or 0),),
        tiles=tiles,
        default=default,
        refuses=refuses,
        geometry=geometry,
    )


def _preferred(shape: Shape, chip: Chip) -> tuple[Tile, ...]:
    """The fastest first, as far as shapes tell; fitted to an H100, where it is within 10 % of the best tile."""
    if shape.m > 16:
        passes = ceil(shape.m / 32)
        wide = ceil(shape.n / 64) * passes >= WIDE * chip.sm_count
        return _WIDE_ROWS + _NARROW_ROWS if wide else _NARROW_ROWS + _WIDE_ROWS
    rounds = shape.n / BLOCK_ROWS / chip.sm_count  # of row groups, were each SM to take one at a time
    if shape.m > 8:
        return _SIXTEEN_ROUNDS + _SIXTEEN if rounds > 1 else _SIXTEEN + _SIXTEEN_ROUNDS
    uneven = rounds > 1 and rounds / ceil(rounds) < EVEN
    # With two CTAs an SM those SMs that have two share the memory's speed with the others.
    return _PAIRED + _SINGLE if uneven or shape.k < 16 * BLOCK_K else _SINGLE + _PAIRED


def _fp16(granularity: Granularity) -> Variant:
    def refuses(_tile: Tile, shape: Shape, chip: Chip) -> str:
        return _refuses_always(shape, chip)

    def geometry(tile: Tile, shape: Shape, _chip: Chip) -> Geometry:
        warps = shape.n // TILE_ROWS * (shape.k // BLOCK_K)
        return Geometry((ceil(warps / tile["warps"]), 1, 1), 32 * tile["warps"], 0, 2 * shape.n * shape.k)

    return Variant(
        name=f"w4a16.fp16.{granularity}",
        format="w4a16",
        granularity=granularity,
        strategy="before_mma",
        description=f"any number of tokens; INT4 and {_SCALES[granularity]} to FP16 in memory, then torch's GEMM",
        source="dequantise.cu",
        headers=HEADERS,
        macros=(("group", weight_group(granularity) or 0),),
        tiles=(_DEQUANTISE,),
        default=lambda _shape, _chip: _DEQUANTISE,
        refuses=refuses,
        geometry=geometry,
        then_fp16=True,
    )


def _refuses_always(shape: Shape, chip: Chip) -> str:
    if chip.version < MINIMUM_VERSION:
        return f"mma.sync m16n8k16 needs compute capability 8.0, this GPU has {chip.compute_capability}"
    if shape.n % BLOCK_ROWS:
        return f"N = {shape.n} is no multiple of {BLOCK_ROWS}"
    if shape.k % BLOCK_K:
        return f"K = {shape.k} is no multiple of {BLOCK_K}, and FP16 activations are not padded"
    return ""


def _tiles(*points: tuple[int, int, int, int, int]) -> tuple[Tile, ...]:
    return tuple(
        tile(rows=rows, tokens=tokens, warps=warps, stages=stages, ctas=ctas)
        for rows, tokens, warps, stages, ctas in points
    )


# The fastest at one shape or another of N x K = 4096 x 4096 … 57344 x 8192 on an H100, M = 1 … 64, and runners-up
# for GPUs with less shared memory.
_SINGLE = _tiles((32, 8, 16, 2, 1), (64, 8, 16, 2, 1), (32, 8, 8, 4, 1))
_PAIRED = _tiles((32, 8, 8, 2, 2), (32, 8, 8, 3, 2), (32, 8, 4, 3, 4))
_SIXTEEN = _tiles((32, 16, 16, 2, 1), (32, 16, 8, 3, 1))
_SIXTEEN_ROUNDS = _tiles((32, 16, 4, 3, 3))
_NARROW_ROWS = _tiles((32, 32, 8, 3, 1), (32, 32, 4, 2, 2))
_WIDE_ROWS = _tiles((64, 32, 8, 3, 1), (128, 32, 8, 4, 1))
_TOO_MANY_REGISTERS = _tiles((32, 16, 16, 2, 1))  # for four group scales a block: local memory on sm_120
_DEQUANTISE = tile(warps=8)

_SCALES: dict[Granularity, str] = {
    "channel": "a scale per weight row",
    "g128": "a scale per 128 weights",
    "g64": "a scale per 64 weights",
    "g32": "a scale per 32 weights",
}


def _small_tiles(granularity: Granularity) -> tuple[Tile, ...]:
    every = (*_SINGLE, *_PAIRED, *_SIXTEEN, *_SIXTEEN_ROUNDS, *_WIDE_ROWS, *_NARROW_ROWS)
    return tuple(one for one in every if granularity != "g32" or one not in _TOO_MANY_REGISTERS)


VARIANTS: tuple[Variant, ...] = (
    *(_small(granularity, _small_tiles(granularity)) for granularity in GRANULARITIES["w4a16"]),
    *(_fp16(granularity) for granularity in GRANULARITIES["w4a16"]),
)
