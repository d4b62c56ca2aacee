"""W4A4 for few tokens: that its cubins hold native INT4 and little besides, and that any N is covered, once, by CTAs
that end about together."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from apex4_probe.kernels import catalogue, sass
from apex4_probe.kernels.compile import compile_kernel
from apex4_probe.kernels.formats import BLOCK_K, BLOCK_ROWS, GROUP, TILE_ROWS, TOKEN_TILE, weight_group
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant
from apex4_probe.kernels.w4a4_small import MOST_TOKENS, VARIANTS, shared_bytes
from apex4_probe.kernels.whole_rows import rounds

CHIPS = {
    "sm_80": Chip("8.0", "sm_80", 108, 163 * 1024),
    "sm_86": Chip("8.6", "sm_86", 82, 99 * 1024),
    "sm_87": Chip("8.7", "sm_87", 16, 163 * 1024),
    "sm_89": Chip("8.9", "sm_89", 142, 99 * 1024),
    "sm_90a": Chip("9.0", "sm_90a", 132, 227 * 1024),
    "sm_100a": Chip("10.0", "sm_100a", 148, 227 * 1024),
    "sm_120a": Chip("12.0", "sm_120a", 170, 99 * 1024),
}
NATIVE, EMULATED = ("sm_80", "sm_86", "sm_89"), ("sm_90a", "sm_100a", "sm_120a")
A100, RTX_3090, H100 = CHIPS["sm_80"], CHIPS["sm_86"], CHIPS["sm_90a"]
CHANNEL, A128I, G128, G64, G32 = VARIANTS
EACH = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)

# Registers a thread, the most of 8.0, 8.6 and 8.9, by granularity and accumulators a thread: the header's.
REGISTERS = {
    "channel": {4: 57, 8: 57, 16: 88, 32: 90, 64: 126, 128: 190},
    "a128i": {4: 58, 8: 58, 16: 77, 32: 116, 64: 150, 128: 214},
    "g128": {4: 58, 8: 62, 16: 96, 32: 136, 64: 218, 128: 232},
    "g64": {4: 58, 8: 60, 16: 96, 32: 135, 64: 221},
    "g32": {4: 58, 8: 62, 16: 108, 32: 138, 64: 220},
}
REGISTERS_PER_SM = 65536

# Bytes of memory a clock and SM: 2039 GB/s over 108 SMs of 1.41 GHz, A100 80 GB SXM (datasheet), more than any other
# GPU with INT4 Tensor Cores has.
MOST_MEMORY = 13.4


def legal_tiles(variant: Variant, chip: Chip) -> list[Tile]:
    return [tile for tile in variant.tiles if not variant.refuses(tile, Shape(1, 4096, 4096), chip)]


def tile_of(variant: Variant = CHANNEL, **wanted: int) -> Tile:
    """The first tile of the space with these parameters."""
    return next(tile for tile in variant.tiles if all(tile[name] == value for name, value in wanted.items()))


def accumulators(tile: Tile) -> int:
    """Of a thread, whose warp has all rows and tokens of the CTA."""
    return tile["rows"] * tile["tokens"] // 32


@cache
def image(name: str, tile: Tile, target: str, bf16: bool = False) -> bytes:
    """The cubin of a source that also says what Python believes about its launch."""
    variant = catalogue.by_name(name)
    kernel = catalogue.kernel(variant, tile, target, bf16)
    threads, shared = 32 * tile["warps"], shared_bytes(tile, variant.granularity)
    believed = f"\nstatic_assert(THREADS == {threads} && SHARED_BYTES == {shared});\n"
    return compile_kernel(replace(kernel, source=kernel.source + believed)).image


def listing(name: str, tile: Tile, target: str, bf16: bool = False) -> sass.Listing:
    return sass.disassemble(image(name, tile, target, bf16))["gemm"]


def check(variant: Variant, tile: Tile, target: str) -> None:
    code = listing(variant.name, tile, target)
    what = f"{variant.name} {tile.name} {target}"
    assert not code.has_local_memory(), what
    registers = sass.registers(image(variant.name, tile, target))
    assert registers <= REGISTERS[variant.granularity][accumulators(tile)], what
    assert registers * 32 * tile["warps"] <= REGISTERS_PER_SM, what

    body = code.hot_loop("IMMA")
    loop = code.count(body)
    tiles, token_tiles = tile["rows"] // TILE_ROWS, tile["tokens"] // TOKEN_TILE
    blocks, token_blocks = -(-tiles // 2), -(-token_tiles // 4)
    group = GROUP[variant.granularity] or BLOCK_K
    groups, float_scales = BLOCK_K // group, weight_group(variant.granularity) is not None

    mma_k = min(group, 64)
    multiplications = tiles * token_tiles * BLOCK_K // mma_k
    assert sass.matching(loop, rf"IMMA\.168{mma_k}\.S4\.S4$") == sass.matching(loop, "IMMA") == multiplications, what
    # Two FFMA per accumulator and group, and two offsets per tile of rows; of a128i one IMAD.
    scaled = accumulators(tile) * groups
    assert sass.matching(loop, "FFMA$") == 2 * scaled * float_scales, what
    assert sass.matching(loop, "FMUL$") == 2 * tiles * groups * float_scales, what
    assert sass.matching(loop, "I2F") == 0, what
    if variant is A128I:
        assert scaled <= sass.matching(loop, "IMAD$") <= scaled + 10, what  # IMAD computes addresses, too
    # Of the stage: 16 bytes a lane for both operands, and each scale once.
    loads = [i for i in body if i.opcode.startswith("LDS") and i.predicate != "@!PT"]
    operands = 2 * tiles + token_tiles
    scales = groups * (token_tiles + tiles) if float_scales else token_tiles * (variant is A128I)
    assert operands <= sum(i.opcode == "LDS.128" for i in loads), what
    assert len(loads) <= operands + scales, what
    copies = operands + blocks * float_scales + token_blocks * (GROUP[variant.granularity] is not None)
    assert sass.matching(loop, "LDGSTS") == copies, what
    assert sass.matching(loop, "BAR") == 0, what  # no warp waits for another

    work = multiplications + len(loads) + copies + scaled * (2 * float_scales or variant is A128I)
    work += 4 * tiles * groups * float_scales  # offsets, conversions
    idle = sum(i.predicate == "@!UPT" for i in body)  # ptxas puts them between MMAs of 8.6 and 8.9
    assert len(body) - idle - work <= 45 + 5 * copies, what
    # Issue slots: four schedulers, one instruction a clock each, have twice the time that reading the weights takes.
    weights = tiles * 1024 + blocks * (128 if variant is G128 else 64 * groups) * float_scales
    if group == BLOCK_K and tile["rows"] >= BLOCK_ROWS:
        assert 4 * weights / len(body) >= 2 * MOST_MEMORY, what


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("target", NATIVE)
def test_every_tile_is_lean(variant: Variant, target: str) -> None:
    tiles = legal_tiles(variant, CHIPS[target])
    assert {tile["tokens"] for tile in tiles} == {8, 16, 32, 64}
    for tile in tiles:
        check(variant, tile, target)


@EACH
@pytest.mark.parametrize("target", NATIVE)
def test_default_tiles_are_lean(variant: Variant, target: str) -> None:
    for m in (1, 16, 32, 64):
        check(variant, variant.default(Shape(m, 6144, 4096), CHIPS[target]), target)


@EACH
@pytest.mark.parametrize("target", EMULATED)
def test_without_int4_tensor_cores_it_is_emulated_and_the_record_says_so(variant: Variant, target: str) -> None:
    code = listing(variant.name, variant.default(Shape(1, 4096, 4096), CHIPS[target]), target)
    opcodes = {i.opcode for i in code.instructions}
    assert not any(re.match(r"IMMA.*\.S4", opcode) for opcode in opcodes)
    assert any(re.match(r"IMMA\.168\d+\.S8\.S8", opcode) for opcode in opcodes)
    assert "slow" in variant.emulated_on(CHIPS[target])
    assert not any(variant.emulated_on(CHIPS[native]) for native in (*NATIVE, "sm_87"))


def test_bf16_output_is_converted_to_bf16() -> None:
    half, bf16 = (
        [i.opcode for i in listing(CHANNEL.name, CHANNEL.tiles[0], "sm_80", bf16).instructions]
        for bf16 in (False, True)
    )
    assert any("BF16" in opcode for opcode in bf16)
    assert not any("BF16" in opcode for opcode in half)


def test_on_hopper_it_reads_and_writes_nothing_before_the_kernel_ahead_has_ended() -> None:
    order = [i.opcode for i in listing(CHANNEL.name, CHANNEL.tiles[0], "sm_90a").instructions]
    wait = order.index("ACQBULK")
    assert order.index("PREEXIT") < wait
    assert min(at for at, opcode in enumerate(order) if opcode.startswith(("LDG", "STG"))) > wait


@pytest.mark.parametrize(
    ("variant", "tile", "bytes_"),
    [
        # stages of 4096 and 512 bytes, 8 copies of 8 tokens' sums of 64 rows and 4, a scale for each token
        (CHANNEL, tile_of(rows=64, tokens=8), 16 * (4096 + 512) + 8 * 8 * 68 * 4 + 8 * 4),
        (A128I, tile_of(rows=64, tokens=8), 16 * (4096 + 512 + 128) + 8 * 8 * 68 * 4 + 8 * 4),
        # both blocks' scales but no offsets; one copy, which four warps fill in turn
        (G128, tile_of(warps=4, stages=2, tokens=64), 8 * (4096 + 256 + 4096 + 256) + 64 * 68 * 4 + 64 * 4),
        # 16 rows come with their block's scales, all four groups'
        (G32, tile_of(G32, rows=16, tokens=8), 48 * (1024 + 256 + 512 + 512) + 16 * 8 * 20 * 4 + 8 * 4),
    ],
)
def test_shared_memory(variant: Variant, tile: Tile, bytes_: int) -> None:
    assert variant.geometry(tile, Shape(1, 4096, 4096), A100).shared_bytes == bytes_


def blocks_of(tile: Tile, n: int, k: int, grid: int) -> list[tuple[int, int]]:
    """(row tile, block of K) in the order in which the CTAs' warps walk over them, as the source's loops do."""
    walked = []
    for cta in range(grid):
        for group in range(cta, -(-n // tile["rows"]), grid):
            rows = range(group * tile["rows"], min((group + 1) * tile["rows"], n), TILE_ROWS)
            for warp in range(tile["warps"]):
                walked += [(row // TILE_ROWS, kb) for kb in range(warp, k // BLOCK_K, tile["warps"]) for row in rows]
    return walked


@pytest.mark.parametrize("n", [32, 96, 160, 1024, 4096, 4256])
@pytest.mark.parametrize("k", [128, 896, 4224])
def test_every_block_is_multiplied_once(n: int, k: int) -> None:
    everything = [(row_tile, kb) for row_tile in range(n // TILE_ROWS) for kb in range(k // BLOCK_K)]
    for tile in CHANNEL.tiles:
        grid, _, _ = CHANNEL.geometry(tile, Shape(1, n, k), A100).grid
        assert 1 <= grid <= A100.sm_count
        assert sorted(blocks_of(tile, n, k, grid)) == everything


@EACH
def test_tiles_are_distinct_and_hold_together(variant: Variant) -> None:
    assert len({tile.name for tile in variant.tiles}) == len(variant.tiles)
    for tile in variant.tiles:
        # A thread at least for every four rows of a token and for every token, and whole turns of adding sums.
        assert max(tile["rows"] // 4, tile["tokens"]) <= 32 * tile["warps"] <= 1024
        assert tile["rows"] * tile["tokens"] <= 4096
        assert tile["warps"] % min(tile["warps"], 4096 // (tile["rows"] * tile["tokens"])) == 0
    for chip in CHIPS.values():
        assert {tile["tokens"] for tile in legal_tiles(variant, chip)} == {8, 16, 32, 64}


@EACH
@pytest.mark.parametrize("target", CHIPS)
def test_default_loads_the_sms_evenly_for_any_n(variant: Variant, target: str) -> None:
    """Near and far from multiples of the SMs: the busiest has at most a third more rows than an even share."""
    chip = CHIPS[target]
    for n in range(chip.sm_count * BLOCK_ROWS, 12 * chip.sm_count * BLOCK_ROWS, 7 * BLOCK_ROWS):
        tile = variant.default(Shape(1, n, 4096), chip)
        share = -(-n // TILE_ROWS // chip.sm_count) * TILE_ROWS  # in whole row tiles
        assert rounds(tile, n, chip.sm_count) * tile["rows"] <= 1.34 * share, (n, tile.name)


@EACH
@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_default_holds_m_and_no_more_than_needed(variant: Variant, chip: Chip) -> None:
    for m in range(1, MOST_TOKENS + 1):
        tile = variant.default(Shape(m, 4096, 4096), chip)
        assert variant.refuses(tile, Shape(m, 4096, 4096), chip) == ""
        assert m <= tile["tokens"]
        assert tile["tokens"] == TOKEN_TILE or tile["tokens"] < 2 * m


@pytest.mark.parametrize("granularity", ["channel", "a128i", "g128"])
def test_few_tokens_take_it_and_more_the_tiled_kernel(granularity: str) -> None:
    for m, family in ((1, "small"), (64, "small"), (65, "mma")):
        variant, _ = catalogue.default_choice("w4a4", granularity, Shape(m, 4096, 4096), RTX_3090)  # type: ignore[arg-type]
        assert variant.name == f"w4a4.{family}.{granularity}"


@pytest.mark.parametrize(
    ("tile", "shape", "chip", "reason"),
    [
        (tile_of(tokens=8), Shape(9, 4096, 4096), A100, "holds 8 tokens, not 9"),
        (tile_of(tokens=8), Shape(1, 4112, 4096), A100, "N = 4112 is no multiple of 32"),
        (tile_of(tokens=8), Shape(1, 4096, 4096), Chip("7.5", "sm_75", 40, 65536), "capability 7.5 has no INT4 MMA"),
        (tile_of(tokens=64, warps=8), Shape(1, 4096, 4096), RTX_3090, "needs 148736 bytes of shared memory"),
    ],
)
def test_refusals(tile: Tile, shape: Shape, chip: Chip, reason: str) -> None:
    assert reason in CHANNEL.refuses(tile, shape, chip)
    assert CHANNEL.refuses(tile_of(tokens=64, warps=4, stages=2), Shape(64, 4096, 4096), RTX_3090) == ""


def test_no_default_where_nothing_is_legal() -> None:
    with pytest.raises(ValueError, match=r"w4a4\.small\.channel cannot run Shape\(m=65"):
        CHANNEL.default(Shape(65, 4096, 4096), A100)
