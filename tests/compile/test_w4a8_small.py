"""W4A8 for few tokens: what its cubins hold, and that any N is covered, once, by CTAs that end about together."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from apex4_probe.kernels import catalogue, sass
from apex4_probe.kernels.compile import compile_kernel
from apex4_probe.kernels.formats import BLOCK_K, BLOCK_ROWS, TILE_ROWS, TOKEN_TILE, Granularity
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant
from apex4_probe.kernels.w4a8_small import MOST_TOKENS, VARIANTS, shared_bytes
from apex4_probe.kernels.whole_rows import rounds

CHIPS = {
    "sm_80": Chip("8.0", "sm_80", 108, 163 * 1024),
    "sm_86": Chip("8.6", "sm_86", 82, 99 * 1024),
    "sm_89": Chip("8.9", "sm_89", 142, 99 * 1024),
    "sm_90a": Chip("9.0", "sm_90a", 132, 227 * 1024),
    "sm_100a": Chip("10.0", "sm_100a", 148, 227 * 1024),
    "sm_120a": Chip("12.0", "sm_120a", 170, 99 * 1024),
}
H100 = CHIPS["sm_90a"]
REGISTERS_PER_SM = 65536
FIVE_TILES = 5  # a warp: so many that the source rolls the loop over the halves of a block
CHANNEL = VARIANTS[0]
# Instructions of a word of eight weights; of a group; of a block beside them: where it begins, constants in registers.
WIDENING = {"channel": (2, 0, 0), "g128i": (5, 5, 8), "g128r": (11, 3, 28)}
TILES = CHANNEL.tiles


def legal_tiles(variant: Variant, chip: Chip) -> list[Tile]:
    return [tile for tile in variant.tiles if not variant.refuses(tile, Shape(1, 4096, 4096), chip)]


def tile_of(**wanted: int) -> Tile:
    """The first tile of the space with these parameters."""
    return next(tile for tile in TILES if wanted.items() <= dict(tile.parameters).items())


def warp_tiles(tile: Tile) -> int:
    return tile["rows"] // TILE_ROWS // tile["row_warps"]


@cache
def listing(name: str, tile: Tile, target: str, bf16: bool = False) -> sass.Listing:
    """The machine code, of a source that also says what Python believes about its shared memory."""
    variant = catalogue.by_name(name)
    kernel = catalogue.kernel(variant, tile, target, bf16)
    believed = f"\nstatic_assert(SHARED_BYTES == {shared_bytes(tile, variant.granularity)});\n"
    return sass.disassemble(compile_kernel(replace(kernel, source=kernel.source + believed)).image)["gemm"]


def check(variant: Variant, tile: Tile, chip: Chip) -> None:
    code = listing(variant.name, tile, chip.target)
    what = f"{variant.name} {tile.name} {chip.target}"
    assert not code.has_local_memory(), what
    registers = 1 + max(int(number) for i in code.instructions for number in re.findall(r"\bR(\d+)\b", i.operands))
    warps_per_scheduler = -(-tile["warps"] // 4)
    assert warps_per_scheduler * 32 * (-(-registers // 8) * 8) <= REGISTERS_PER_SM // 4, what

    inner = code.hot_loop("IMMA")
    loop = code.count(inner)
    tiles, token_tiles = warp_tiles(tile), tile["tokens"] // TOKEN_TILE
    halves = 2 if tiles < FIVE_TILES else 1  # of a block of K, one after the other
    assert sass.matching(loop, r"IMMA\.16832\.U8\.S8") == 2 * halves * tiles * token_tiles, what
    assert sass.matching(loop, r"IMMA\.16832\.U8\.S8") == sass.matching(loop, "IMMA"), what
    # Conflict-free 16-byte accesses: one of each tile of weights and, staged, of each tile of tokens, a half.
    assert loop["LDS.128"] == halves * (tiles + token_tiles * tile["staged_x"]), what
    assert sass.matching(loop, r"LDG\..*128") == halves * token_tiles * (1 - tile["staged_x"]), what
    words = 4 * halves * tiles
    of_word, of_group, of_block = WIDENING[variant.granularity]
    masks = words * (4 if variant.granularity == "g128r" else 2)
    assert masks <= loop["LOP3.LUT"] <= masks + 40, what
    if chip is H100:
        work = halves * (2 * tiles * token_tiles + tiles + token_tiles) + words * of_word + of_group * tiles
        # Beside it a step waits, counts and requests a stage, most of that one lane's; odd tiles are fetched in pieces,
        # shared activations have barriers of their own, every second block with group scales lies half a line on.
        pieces = (tiles + 1) // 2 if tiles % 2 else 0
        allowed = 110 + 40 * pieces + 90 * (tile["row_warps"] > 1) + of_block
        assert len(inner) <= work + allowed, what
    everything = code.count(code.instructions)
    copies = [sass.matching(loop if halves == 2 else everything, opcode) > 0 for opcode in ("UBLKCP", "LDGSTS")]
    assert copies == [chip.version >= (9, 0), chip.version < (9, 0)], what


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_every_tile_is_lean(variant: Variant, target: str) -> None:
    """Both loaders, cp.async and bulk, with every tile."""
    tiles = legal_tiles(variant, CHIPS[target])
    assert {tile["tokens"] for tile in tiles} == {8, 16, 32, 64}
    for tile in tiles:
        check(variant, tile, CHIPS[target])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("target", CHIPS)
def test_default_tiles_are_lean_on_every_target(variant: Variant, target: str) -> None:
    chip = CHIPS[target]
    for m in (1, 16, 32, 64):
        check(variant, variant.default(Shape(m, 6144, 4096), chip), chip)


def test_bf16_output_is_converted_to_bf16() -> None:
    tile = tile_of(tokens=8, rows=32)
    half, bf16 = (
        [i.opcode for i in listing(CHANNEL.name, tile, "sm_90a", bf16).instructions] for bf16 in (False, True)
    )
    assert any("BF16" in opcode for opcode in bf16)
    assert not any("BF16" in opcode for opcode in half)


def test_dependent_launch_requests_weights_before_it_waits_and_reads_activations_after() -> None:
    for staged_x in (0, 1):
        tile = tile_of(tokens=16, staged_x=staged_x)
        order = [i.opcode for i in listing(CHANNEL.name, tile, "sm_90a").instructions]
        early, wait = order.index("PREEXIT"), order.index("ACQBULK")
        requests = [at for at, opcode in enumerate(order) if opcode.startswith("UBLKCP")]
        loads = [at for at, opcode in enumerate(order) if opcode.startswith("LDG")]
        assert early < requests[0]
        assert sum(at < wait for at in requests) == tile["stages"]
        assert min(loads) > wait
        assert min(at for at, opcode in enumerate(order) if opcode.startswith("STG")) > wait


@pytest.mark.parametrize("granularity", ["g128i", "g128r"])
def test_group_scales_have_room_and_may_begin_in_the_middle_of_a_line(granularity: Granularity) -> None:
    """A tile's scales are 32 bytes, a block begins up to 64 further on, stages are multiples of 128."""
    more_a_stage = {1: 128, 2: 128, 3: 256, 4: 256, 5: 256, 7: 384}
    for tile in TILES:
        more = more_a_stage[warp_tiles(tile)] * tile["warps"] * tile["stages"]
        assert shared_bytes(tile, granularity) - shared_bytes(tile, "channel") == more


def blocks_of(tile: Tile, n: int, k: int, grid: int) -> list[tuple[int, int]]:
    """(row tile, block of K) in the order in which the CTAs' warps walk over them, as the source's loops do."""
    k_warps = tile["warps"] // tile["row_warps"]
    walked = []
    for cta in range(grid):
        for group in range(cta, -(-n // tile["rows"]), grid):
            for warp in range(tile["warps"]):
                row_warp, k_warp = divmod(warp, k_warps)
                first = group * (tile["rows"] // TILE_ROWS) + row_warp * warp_tiles(tile)
                tiles = min(max(n // TILE_ROWS - first, 0), warp_tiles(tile))
                walked += [(first + t, kb) for kb in range(k_warp, k // BLOCK_K, k_warps) for t in range(tiles)]
    return walked


@pytest.mark.parametrize("n", [32, 96, 160, 1024, 2112, 4096, 4224, 4256, 6144])
@pytest.mark.parametrize("k", [128, 896, 4224])
def test_every_block_is_multiplied_once(n: int, k: int) -> None:
    everything = [(row_tile, kb) for row_tile in range(n // TILE_ROWS) for kb in range(k // BLOCK_K)]
    for tile in TILES:
        grid, _, _ = CHANNEL.geometry(tile, Shape(1, n, k), H100).grid
        assert 1 <= grid <= H100.sm_count
        assert sorted(blocks_of(tile, n, k, grid)) == everything


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_a_tile_holds_together(tile: Tile) -> None:
    """What the source needs of its macros, and a thread at least for every four rows of a token."""
    assert tile["rows"] % (TILE_ROWS * tile["row_warps"]) == 0
    assert tile["warps"] % tile["row_warps"] == 0
    assert tile["rows"] // 4 <= 32 * tile["warps"] <= 1024
    assert tile["stages"] >= 2 + (tile["row_warps"] > 1)
    assert tile["staged_x"] or tile["tokens"] <= 16
    assert CHANNEL.geometry(tile, Shape(1, 4096, 4096), H100).threads == 32 * tile["warps"]


def test_tiles_are_distinct_and_some_run_everywhere() -> None:
    assert len({tile.name for tile in TILES}) == len(TILES)
    for chip in CHIPS.values():
        for variant in VARIANTS:
            assert {tile["tokens"] for tile in legal_tiles(variant, chip)} == {8, 16, 32, 64}


@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_default_loads_the_sms_evenly_for_any_n(variant: Variant, target: str) -> None:
    """Near and far from multiples of the SMs: the busiest has at most a quarter more rows than an even share."""
    chip = CHIPS[target]
    for n in range(chip.sm_count * BLOCK_ROWS, 12 * chip.sm_count * BLOCK_ROWS, 7 * BLOCK_ROWS):
        tile = variant.default(Shape(1, n, 4096), chip)
        share = -(-n // TILE_ROWS // chip.sm_count) * TILE_ROWS  # in whole row tiles
        assert rounds(tile, n, chip.sm_count) * tile["rows"] <= 1.25 * share, (n, tile.name)


@pytest.mark.parametrize(
    ("n", "k", "m", "rows", "ctas"),
    [
        (4096, 4096, 1, 32, 128),
        (6144, 4096, 1, 48, 128),  # 192 blocks of 32 rows would leave 36 of 132 SMs idle
        (28672, 4096, 8, 32, 128),
        (4096, 4096, 64, 32, 128),
        (4096, 14336, 64, 32, 128),
        (8448, 4096, 64, 64, 132),
        (8960, 4096, 64, 80, 112),  # 140 row groups of 64 rows would take 132 SMs two rounds
        (12288, 4096, 64, 96, 128),
        (28672, 4096, 64, 256, 112),  # activations are fetched once a row group, so wide ones where tokens are many
        (8192, 28672, 64, 64, 128),
        (57344, 8192, 64, 256, 112),
    ],
)
def test_default_on_an_h100(n: int, k: int, m: int, rows: int, ctas: int) -> None:
    tile = CHANNEL.default(Shape(m, n, k), H100)
    assert tile["rows"] == rows
    assert CHANNEL.geometry(tile, Shape(m, n, k), H100).grid == (ctas, 1, 1)


def test_default_holds_m_and_no_more_than_needed() -> None:
    for m in range(1, MOST_TOKENS + 1):
        tokens = CHANNEL.default(Shape(m, 4096, 4096), H100)["tokens"]
        assert tokens >= m
        assert tokens == TOKEN_TILE or tokens < 2 * m


@pytest.mark.parametrize(
    ("tile", "shape", "chip", "reason"),
    [
        (tile_of(tokens=8), Shape(9, 4096, 4096), H100, "holds 8 tokens, not 9"),
        (tile_of(tokens=8), Shape(1, 4112, 4096), H100, "N = 4112 is no multiple of 32"),
        (tile_of(tokens=8), Shape(1, 4096, 4096), Chip("7.5", "sm_75", 40, 65536), "capability 7.5 has no INT8 MMA"),
        (tile_of(row_warps=7), Shape(1, 4096, 4096), CHIPS["sm_80"], "several row warps need compute capability 9.0"),
        (tile_of(tokens=64, warps=8), Shape(1, 4096, 4096), CHIPS["sm_86"], "needs 201344 bytes of shared memory"),
    ],
)
def test_refusals(tile: Tile, shape: Shape, chip: Chip, reason: str) -> None:
    assert reason in CHANNEL.refuses(tile, shape, chip)
    assert CHANNEL.refuses(tile_of(tokens=64, rows=32, warps=2), Shape(64, 4096, 4096), CHIPS["sm_86"]) == ""


def test_five_tiles_a_warp_with_group_scales_are_for_bulk_copies() -> None:
    shape, tile = Shape(1, 4096, 4096), tile_of(rows=80)
    assert CHANNEL.refuses(tile, shape, CHIPS["sm_80"]) == ""
    for grouped in VARIANTS[1:]:
        assert "group scales of 80 rows a warp need compute" in grouped.refuses(tile, shape, CHIPS["sm_80"])
        assert grouped.refuses(tile, shape, H100) == ""


def test_no_default_where_nothing_is_legal() -> None:
    with pytest.raises(ValueError, match=r"w4a8\.small\.channel cannot run Shape\(m=65"):
        CHANNEL.default(Shape(65, 4096, 4096), H100)
