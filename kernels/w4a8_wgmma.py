"""W4A8 on Hopper's wgmma: the catalogue's records of ``cuda/w4a8_wgmma.cu``, their tile space and launch geometry.

Tile parameters (the source's header explains them): ``rows`` of W and ``tokens`` of a CTA's tile, consumer
``warpgroups``, ``stages`` of 128 of K, ``lag`` stages more that must have landed before a warpgroup starts than for
the one before, ``split_k`` CTAs that share every tile, ``share_last`` 1: pairs of CTAs share the tiles of a last round
that would leave half of them idle. Counts below repeat the source's; the compile tests hold them together.
"""

from __future__ import annotations

from math import ceil

from apex4_probe.kernels.formats import BLOCK_K, BLOCK_ROWS, NIBBLE_BYTES, TWO_LEVEL, Granularity
from apex4_probe.kernels.variant import Box, Chip, Geometry, Shape, Tile, Variant, tile
from apex4_probe.kernels.wgmma import Wgmma

COMPUTE_CAPABILITY = "9.0"  # wgmma and setmaxnreg belong to sm_90a and to no later architecture (PTX ISA)
BATCH = 4  # wgmmas of 32 of K between two waits: a row tile's block of K. Two were nowhere faster beyond noise
WARPGROUP = 128
WARPGROUP_ROWS = 64  # of one wgmma
# Eight GPCs of 14, 16 or 18 SMs make an H100's or H200's 132, which of them differs from chip to chip: clusters of four
# leave two SMs idle in a GPC of 14 or 18. (A chip was seen to run fewer than 32 at once.)
GPCS = 8
CTA_SHARED_BYTES = 227 * 1024  # compute capability 9.0 (CUDA C++ Programming Guide)


def _slot_bytes(granularity: Granularity) -> int:
    """Shared memory of a block of 32 rows x 128 of K: with room to begin in a line's middle."""
    return NIBBLE_BYTES + (128 if granularity in TWO_LEVEL else 0)


def stage_bytes(granularity: Granularity, tile: Tile) -> int:
    return tile["tokens"] * BLOCK_K + tile["rows"] // BLOCK_ROWS * _slot_bytes(granularity)


def shared_bytes(granularity: Granularity, tile: Tile) -> int:
    """Dynamic shared memory of a CTA: the source's SHARED."""
    share = tile["tokens"] // cluster_ctas(tile)
    finished = tile["tokens"] // tile["split_k"]
    row_tiles = tile["rows"] // WARPGROUP_ROWS // tile["warpgroups"]
    sent = (tile["split_k"] - 1) * row_tiles * share * WARPGROUP_ROWS * 4  # share_last's lies where stages lay
    barriers = 8 * (2 * tile["stages"] + 2 * tile["warpgroups"])
    stages = -(-tile["stages"] * stage_bytes(granularity, tile) // 1024) * 1024  # as swizzled buffers want it
    chunk = out_chunk(tile)

    def with_buffers(count: int) -> int:
        outputs = count * chunk * WARPGROUP_ROWS * 2 + finished * 8
        return stages + tile["warpgroups"] * (outputs + sent) + barriers

    chunks = row_tiles * finished // chunk
    fit = next((count for count in range(chunks, 1, -1) if with_buffers(count) <= CTA_SHARED_BYTES), 1)
    group = 1 if tile["share_last"] and row_tiles > 1 else fit // 2
    return with_buffers(chunks if fit == chunks and (row_tiles == 1 or not tile["share_last"]) else 2 * group)


def out_chunk(tile: Tile) -> int:
    """Tokens whose outputs a warpgroup sends to memory at once."""
    return 32 if tile["tokens"] // cluster_ctas(tile) % 32 == 0 else 16


def cluster_ctas(tile: Tile) -> int:
    return 2 if tile["share_last"] else tile["split_k"]


def _tiles_of(tile: Tile, shape: Shape) -> int:
    return ceil(shape.n / tile["rows"]) * ceil(shape.m / tile["tokens"])


def clusters(tile: Tile, chip: Chip) -> int:
    """Clusters that run at once on every chip of this size."""
    ctas = cluster_ctas(tile)
    return chip.sm_count // ctas if ctas <= 2 else (chip.sm_count - 2 * GPCS) // ctas


def rounds(tile: Tile, shape: Shape, chip: Chip) -> int:
    """Tiles that the busiest cluster multiplies: one after the other or, of ``share_last``, two at a time."""
    return ceil(_tiles_of(tile, shape) / clusters(tile, chip))


def _refuses(granularity: Granularity, tile: Tile, shape: Shape, chip: Chip) -> str:
    if chip.compute_capability != COMPUTE_CAPABILITY:
        return f"wgmma exists on compute capability {COMPUTE_CAPABILITY}, this GPU has {chip.compute_capability}"
    if shape.n % BLOCK_ROWS:
        return f"N = {shape.n} is no multiple of {BLOCK_ROWS}"
    if (blocks := ceil(shape.k / BLOCK_K)) < (sharers := cluster_ctas(tile)):
        return f"K = {shape.k} is {blocks} blocks of {BLOCK_K}, fewer than the {sharers} CTAs that share it"
    if (needed := shared_bytes(granularity, tile)) > chip.shared_bytes:
        return f"needs {needed} bytes of shared memory a CTA, this GPU has {chip.shared_bytes}"
    if tile["share_last"] and rounds(tile, shape, chip) % 2 == 0:
        count, ctas = _tiles_of(tile, shape), 2 * clusters(tile, chip)
        return f"{count} tiles leave no last round for half of {ctas} CTAs or fewer, which pairs could share"
    return ""


def _geometry(granularity: Granularity, tile: Tile, shape: Shape, chip: Chip) -> Geometry:
    """As few CTAs as finish in the same number of rounds: they end together, and a dependent launch finds free SMs."""
    grid = ceil(_tiles_of(tile, shape) / rounds(tile, shape, chip)) * cluster_ctas(tile)
    threads = (tile["warpgroups"] + 1) * WARPGROUP
    return Geometry((grid, 1, 1), threads, shared_bytes(granularity, tile))


# For picks without a measurement: clocks, fitted to 269 timings on an H100, M = 64 … 4096; rms error 5.5 %, picks 0.4 %
# above the fastest tile in the geometric mean, 5.5 % at most.
MACS = 4096  # dense INT8, a clock and SM: datasheet
SHARED_BYTES = 122  # a clock and SM, of 128: operand B, which each 64 rows read anew, weights, and what copies write
# What a warpgroup takes at least: from the end of one batch of wgmmas to the issue of the next but one, and before a
# stage's first to see that the stage is full and to read it. g128r: not measured; from its 91 instructions where the
# others have 16 and 44.
WIDEN_CLOCKS: dict[Granularity, int] = {"channel": 260, "g128i": 305, "g128r": 380}
STAGE_CLOCKS = 140
TILE_CLOCKS = 3750  # between two tiles of 128 x 256: epilogue, first operands; the fit gave 4250, before tensor copies
EXCHANGE_CLOCKS = 3450  # of a tile that CTAs share
PAIR_FACTOR = 1.02  # of the clocks a block, in clusters whose CTAs multiply tiles of their own: measured 1.00 … 1.07
START_CLOCKS = 2450  # launch, first loads
MEMORY_BYTES = 1740  # a clock, of all SMs
# Blocks with group scales begin in the middle of every second line.
LINE_BYTES: dict[Granularity, int] = {
    "channel": NIBBLE_BYTES,
    "g128i": NIBBLE_BYTES + 192,
    "g128r": NIBBLE_BYTES + 192,
}


def clocks(granularity: Granularity, tile: Tile, shape: Shape, chip: Chip) -> float:
    """Of the busiest SM."""
    rows, row_tiles = tile["rows"], tile["rows"] / WARPGROUP_ROWS
    loaded = min(tile["tokens"], shape.m) * BLOCK_K + rows / BLOCK_ROWS * LINE_BYTES[granularity]
    read = row_tiles * tile["tokens"] * BLOCK_K + rows / BLOCK_ROWS * _slot_bytes(granularity)
    block = max(
        rows * tile["tokens"] * BLOCK_K / MACS,
        (loaded + read) / SHARED_BYTES,
        row_tiles / tile["warpgroups"] * WIDEN_CLOCKS[granularity] + STAGE_CLOCKS,
    )

    def of_tile(sharers: int, factor: float = 1.0) -> float:
        exchange = EXCHANGE_CLOCKS if sharers > 1 else 0
        blocks = ceil(ceil(shape.k / BLOCK_K) / sharers)
        return blocks * block * factor + TILE_CLOCKS * rows * tile["tokens"] / (128 * 256) + exchange

    count = rounds(tile, shape, chip)
    multiply = count * of_tile(tile["split_k"])
    if tile["share_last"]:
        multiply = count // 2 * of_tile(1, PAIR_FACTOR) + count % 2 * of_tile(2)
    memory = shape.n / BLOCK_ROWS * shape.k / BLOCK_K * LINE_BYTES[granularity] / MEMORY_BYTES
    return START_CLOCKS + max(multiply, memory)


def _default(granularity: Granularity, shape: Shape, chip: Chip) -> Tile:
    fitting = [one for one in TILES if not _refuses(granularity, one, shape, chip)]
    # Where memory is the bound, the smallest: it starts and ends soonest. Of equals the first of TILES.
    return min(fitting or TILES, key=lambda one: (clocks(granularity, one, shape, chip), one["rows"] * one["tokens"]))


def _tiles(*shapes: tuple[int, int, int, int, int, tuple[int, ...]], share_last: int = 0) -> tuple[Tile, ...]:
    names = ("rows", "tokens", "warpgroups", "stages", "lag")
    return tuple(
        tile(**dict(zip(names, counts, strict=True)), split_k=split, share_last=share_last)
        for *counts, splits in shapes
        for split in splits
    )


# As many stages as fit for both granularities, or fewer and more buffers of outputs. Of tiles that differ in stages and
# lag alone, first the one that measured faster.
TILES = (
    *_tiles(
        (128, 256, 2, 4, 1, (1,)),
        (128, 256, 2, 5, 1, (1,)),
        (128, 192, 2, 5, 1, (1,)),
        (256, 128, 2, 5, 1, (1,)),
        (192, 128, 3, 6, 2, (1,)),
        (192, 128, 3, 5, 1, (1,)),
        (128, 128, 2, 7, 2, (1,)),
        (128, 128, 2, 7, 1, (1,)),
        (128, 128, 2, 6, 1, (2, 4)),
    ),
    *_tiles((128, 256, 2, 5, 2, (1,)), (256, 128, 2, 6, 2, (1,)), (128, 128, 2, 7, 2, (1,)), share_last=1),
    *_tiles(
        (256, 64, 2, 7, 1, (1, 2)),
        (256, 64, 2, 6, 1, (4,)),
        (128, 64, 2, 11, 1, (1, 2, 4)),
        (256, 32, 2, 9, 1, (1, 2)),
        (128, 32, 2, 16, 1, (1, 2)),
    ),
)


def _variant(granularity: Granularity, strategy: str, scales: str) -> Variant:
    return Variant(
        name=f"w4a8.wgmma.{granularity}",
        format="w4a8",
        granularity=granularity,
        strategy=strategy,
        description=f"Hopper, any number of tokens: weights widened in registers as wgmma's operand A; {scales}",
        source="w4a8_wgmma.cu",
        headers=(
            "mma.cuh", "async_copy.cuh", "cluster.cuh", "output.cuh", "output_tile.cuh", "warpgroup.cuh", "widen.cuh",
        ),
        macros=(
            ("grouped", int(granularity in TWO_LEVEL)), ("rounded", int(granularity == "g128r")), ("batch", BATCH),
        ),
        tiles=TILES,
        default=lambda shape, chip: _default(granularity, shape, chip),
        refuses=lambda tile, shape, chip: _refuses(granularity, tile, shape, chip),
        geometry=lambda tile, shape, chip: _geometry(granularity, tile, shape, chip),
        activations="int8_wgmma",
        clocks=lambda tile, shape, chip: clocks(granularity, tile, shape, chip),
        generated=lambda tile: (("wgmma.cuh", Wgmma("u8s8", tile["tokens"], "rs").header()),),
        out_box=lambda tile: Box(out_chunk(tile), WARPGROUP_ROWS),
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (
    _variant("channel", "none", "a float scale per row"),
    _variant("g128i", "widen", "integer group scales applied while widening"),
    _variant("g128r", "widen_rounded", "group scales of sixteenths applied while widening, rounded to INT8"),
)
