"""W4A16 kernels: no local memory anywhere, the MMAs of a block in the hot loop, the occupancy that the source states,
exact widening; and that tile, geometry and default fit the shapes they are for."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from apex4_probe.kernels import sass, w4a16
from apex4_probe.kernels.compile import Kernel, compile_kernel, cuda_header
from apex4_probe.kernels.formats import BYTE_ORDER
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
REGISTERS_PER_SM = 65536
H100 = Chip("9.0", "sm_90a", 132, 227 * 1024)
RTX_3090 = Chip("8.6", "sm_86", 82, 99 * 1024)
A100 = Chip("8.0", "sm_80", 108, 163 * 1024)

VARIANTS = {variant.name: variant for variant in w4a16.VARIANTS}
SMALL = [variant for variant in w4a16.VARIANTS if not variant.then_fp16]
DENSE = [variant for variant in w4a16.VARIANTS if variant.then_fp16]


def kernel(variant: Variant, tile: Tile, target: str, bf16: bool) -> Kernel:
    macros = (*tile.parameters, *variant.macros, ("out_bf16", int(bf16)))
    source = cuda_header(variant.source)[1]
    if not variant.then_fp16:
        shared = w4a16.shared_bytes(variant.granularity, tile)
        source += f'\nstatic_assert(SHARED_BYTES == {shared}, "kernels/w4a16.py counts otherwise");\n'
    return Kernel(
        f"{variant.name} {tile.name}",
        source,
        target,
        tuple(cuda_header(name) for name in variant.headers),
        tuple(f"-D{name.upper()}={value}" for name, value in macros),
    )


@cache
def image(variant: str, tile: Tile, target: str, bf16: bool) -> bytes:
    return compile_kernel(kernel(VARIANTS[variant], tile, target, bf16)).image


def listing(variant: Variant, tile: Tile, target: str, bf16: bool) -> sass.Listing:
    return sass.disassemble(image(variant.name, tile, target, bf16))["gemm"]


def compiled_for(tile: Tile) -> int:
    """Registers that a thread may have where the tile's CTAs are to be resident together."""
    return min(REGISTERS_PER_SM // (32 * tile["warps"] * tile["ctas"]) // 8 * 8, 255)


def picks(variant: Variant, target: str, bf16: bool) -> tuple[Tile, ...]:
    """All tiles where registers are allotted differently; elsewhere, and for bf16, which differs in widening alone, one
    for each number of tokens."""
    if target in ("sm_80", "sm_90a", "sm_120a") and not bf16:
        return variant.tiles
    return tuple({tile["tokens"]: tile for tile in variant.tiles}.values())


CELLS = [
    pytest.param(variant, tile, target, bf16, id=f"{variant.name}-{tile.name}-{target}-{'bf16' if bf16 else 'fp16'}")
    for variant in SMALL
    for target in TARGETS
    for bf16 in (False, True)
    for tile in picks(variant, target, bf16)
]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "tile", "target", "bf16"), CELLS)
def test_small_kernel_in_machine_code(variant: Variant, tile: Tile, target: str, bf16: bool):
    code = listing(variant, tile, target, bf16)
    assert not code.has_local_memory()
    assert sass.registers(image(variant.name, tile, target, bf16)) <= compiled_for(tile)

    loop = code.count(code.hot_loop("HMMA"))
    token_tiles = tile["tokens"] // 8
    assert sass.matching(loop, r"HMMA\.16816\.F32") == 16 * token_tiles  # 32 rows x 128 of K
    assert sass.matching(loop, r"LDG\.E\.128") == 4 * token_tiles, "activations, 16 bytes a lane and quarter"
    ahead = 4 if token_tiles == 1 else 1 if (token_tiles, variant.granularity) == (4, "g32") else 2
    everywhere = sass.matching(code.count(code.instructions), r"LDG\.E\.128")
    assert everywhere == (4 + ahead) * token_tiles, "the first of them come before the loop"
    assert sass.matching(loop, r"LDS\.128") == 4, "weights: two row tiles x two halves, conflict-free"
    assert sass.matching(loop, "HADD2$|HFMA2") == 64, "an exact subtraction for each pair of weights"
    groups = {"channel": 0, "g128": 1, "g64": 2, "g32": 4}[variant.granularity]
    assert sass.matching(loop, "FFMA") == 8 * token_tiles * groups, "group scales: one for each accumulator and group"
    bulk, cp_async = sass.matching(loop, "UBLKCP"), sass.matching(loop, "LDGSTS")
    assert (bulk, cp_async > 0) == ((1, False) if target in ("sm_90a", "sm_100a", "sm_120a") else (0, True))


@pytest.mark.parametrize("bf16", (False, True), ids=("fp16", "bf16"))
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variant", DENSE, ids=lambda variant: variant.name)
def test_dequantise_requests_everything_before_it_stores(variant: Variant, target: str, bf16: bool):
    code = listing(variant, variant.tiles[0], target, bf16)
    assert not code.has_local_memory()
    assert sass.registers(image(variant.name, variant.tiles[0], target, bf16)) <= 48, "five CTAs of eight warps an SM"
    memory = [i.opcode[:3] for i in code.instructions if i.opcode.startswith(("LDG", "STG"))]
    scales = {"channel": 0, "g128": 1, "g64": 2, "g32": 4}[variant.granularity]
    assert memory == ["LDG"] * (2 + 2 + scales) + ["STG"] * 8
    assert sum(i.opcode.startswith("STG.E.128") for i in code.instructions) == 8


def test_a_wrong_count_of_shared_memory_does_not_compile():
    variant, tile = SMALL[0], SMALL[0].tiles[0]
    right = kernel(variant, tile, "sm_90a", False)
    shared = w4a16.shared_bytes(variant.granularity, tile)
    wrong = replace(right, source=right.source.replace(f"== {shared},", f"== {shared + 16},"))
    with pytest.raises(Exception, match="static assertion"):
        compile_kernel(wrong)


# What widen16.cuh does to a word, on the values that its instructions compute with. The word holds code `low` in all
# first rows' nibbles and `high` in all second rows'; every combination of the two is tried.
LOW, HIGH = (grid.ravel().astype(np.uint32) for grid in np.meshgrid(np.arange(16), np.arange(16)))
WORDS = (LOW | HIGH << 4) * np.uint32(0x01010101)


def halves(words: np.ndarray) -> np.ndarray:
    return np.stack([words & 0xFFFF, words >> 16]).astype(np.uint16)


def fp16(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.float16).astype(np.float64)


def bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def constant(word: int, decode) -> float:
    return float(decode(halves(np.array([word], np.uint32)))[0, 0])


@pytest.mark.parametrize("shift", (0, 8), ids=("k 0, 1", "k 2, 3"))
def test_fp16_widening_is_exact(shift: int):
    word = WORDS >> shift
    first = fp16(halves((word & 0x000F000F) | 0x64006400)) + constant(0xE408E408, fp16)
    second = fp16(halves((word & 0x00F000F0) | 0x64006400)) * constant(0x2C002C00, fp16) + constant(0xD480D480, fp16)
    for widened, codes in ((first, LOW), (second, HIGH)):
        assert np.array_equal(widened, np.broadcast_to(codes.astype(float) - 8, widened.shape))
        assert np.array_equal(widened.astype(np.float16).astype(float), widened), "nothing for the instruction to round"


@pytest.mark.parametrize("i", range(4))
def test_bf16_widening_is_exact(i: int):
    pair = bf16(halves(((WORDS >> (4 * i)) & 0x000F000F) | 0x43004300))
    widened = pair * constant(0x3F803F80, bf16) + constant(0xC308C308, bf16)
    codes = (LOW, HIGH)[i % 2]
    assert np.array_equal(widened, np.broadcast_to(codes.astype(float) - 8, widened.shape))


def test_two_nibbles_do_not_fit_the_mantissa_of_a_bf16():
    """Why widen_bf16 moves every nibble: a second row's code of 8 or more would change the exponent."""
    pair = bf16(halves((np.array([0x90], np.uint32)) | 0x43004300))
    assert pair[0, 0] == 288 != 128 + 9 * 16


def test_the_source_holds_the_constants_of_the_emulation():
    header = cuda_header("widen16.cuh")[1]
    for constant in ("0x64006400", "0xE408E408", "0x2C002C00", "0xD480D480", "0x43004300", "0x3F803F80", "0xC308C308"):
        assert f"{constant}u" in header


def test_operands_a_and_b_of_every_mma_hold_the_same_k():
    """The packing's k (formats.py) of operand A against that of the 16 bytes of activations that a lane loads."""
    seen = set()
    for quarter in range(4):
        for c in range(4):
            loaded = [32 * quarter + 8 * c + i for i in range(8)]  # 16 bytes: four words of two
            for h in range(2):
                half, s = divmod(quarter, 2)
                of_byte = [64 * half + 32 * s + 8 * c + 4 * h + BYTE_ORDER[p] for p in range(4)]
                operand_a = [
                    of_byte[0],
                    of_byte[2],
                    of_byte[1],
                    of_byte[3],
                ]  # low halves of the masked words, then >> 8
                words = loaded[4 * h : 4 * h + 2], loaded[4 * h + 2 : 4 * h + 4]  # 2h and 2h + 1
                assert operand_a == [*words[0], *words[1]]
                seen.update(operand_a)
    assert seen == set(range(128))


@pytest.mark.parametrize(
    ("m", "n", "k", "chip", "grid", "tokens", "warps"),
    [
        (1, 4096, 4096, H100, (128, 1, 1), 8, 16),
        (1, 28672, 4096, H100, (132, 1, 1), 8, 16),  # 6.8 rounds
        (1, 6144, 4096, H100, (192, 1, 1), 8, 8),  # 1.45 rounds: two CTAs an SM
        (1, 57344, 8192, H100, (132, 1, 1), 8, 16),
        (8, 4096, 14336, H100, (128, 1, 1), 8, 16),
        (9, 4096, 4096, H100, (128, 1, 1), 16, 16),
        (16, 4096, 4096, RTX_3090, (82, 1, 1), 16, 8),
        (64, 4096, 4096, H100, (64, 2, 1), 32, 8),  # 64 rows: 128 CTAs on 132 SMs
        (33, 1024, 4096, H100, (32, 2, 1), 32, 8),
        (17, 32, 128, A100, (1, 1, 1), 32, 8),
    ],
)
def test_default_tile_and_its_launch(m, n, k, chip, grid, tokens, warps):
    variant, shape = VARIANTS["w4a16.small.g128"], Shape(m, n, k)
    tile = variant.default(shape, chip)
    assert variant.refuses(tile, shape, chip) == ""
    assert (tile["tokens"], tile["warps"]) == (tokens, warps)
    geometry = variant.geometry(tile, shape, chip)
    assert geometry.grid == grid
    assert geometry.threads == 32 * warps
    assert geometry.shared_bytes <= chip.shared_bytes
    assert geometry.workspace_bytes == 0


@pytest.mark.parametrize("variant", SMALL, ids=lambda variant: variant.name)
@pytest.mark.parametrize("chip", (H100, RTX_3090, A100), ids=lambda chip: chip.target)
def test_every_m_up_to_64_has_a_default(variant: Variant, chip: Chip):
    for m in range(1, 65):
        for n, k in ((32, 128), (2720, 384), (6144, 4096), (57344, 8192)):
            shape = Shape(m, n, k)
            tile = variant.default(shape, chip)
            assert tile in variant.tiles
            assert variant.refuses(tile, shape, chip) == ""
            columns, passes, _ = variant.geometry(tile, shape, chip).grid
            assert passes * tile["tokens"] >= m > (passes - 1) * tile["tokens"]
            assert 1 <= columns * passes <= max(chip.sm_count * tile["ctas"], passes), "all CTAs are resident"


def test_shared_memory_of_the_tile_that_reads_at_m_1():
    """16 warps x 2 stages of 2112 bytes, 16 x 8 tokens x 36 floats, 32 barriers."""
    assert w4a16.shared_bytes("g128", SMALL[1].tiles[0]) == 67584 + 18432 + 256


def test_dense_geometry():
    variant = VARIANTS["w4a16.fp16.g64"]
    geometry = variant.geometry(variant.tiles[0], Shape(1000, 4096, 14336), H100)
    assert geometry.grid == (4096 // 16 * 112 // 8, 1, 1)
    assert geometry.workspace_bytes == 2 * 4096 * 14336
    odd = variant.geometry(variant.tiles[0], Shape(1, 32, 384), H100)
    assert odd.grid == (1, 1, 1)  # six warps' work
    assert variant.refuses(variant.tiles[0], Shape(100_000, 96, 128), H100) == ""


@pytest.mark.parametrize(
    ("name", "shape", "chip", "reason"),
    [
        ("w4a16.small.g128", Shape(65, 4096, 4096), H100, "up to 64 tokens"),
        ("w4a16.small.g128", Shape(1, 4100, 4096), H100, "N = 4100"),
        ("w4a16.small.channel", Shape(1, 4096, 4160), H100, "K = 4160"),
        ("w4a16.fp16.channel", Shape(1, 4096, 4160), H100, "K = 4160"),
        ("w4a16.fp16.g32", Shape(1, 4096, 4096), replace(RTX_3090, compute_capability="7.5"), "capability 8.0"),
    ],
)
def test_refusals_say_why(name: str, shape: Shape, chip: Chip, reason: str):
    variant = VARIANTS[name]
    assert all(reason in variant.refuses(tile, shape, chip) for tile in variant.tiles)


def test_a_tile_that_does_not_fit_is_refused_and_one_for_half_the_tokens_is_not():
    variant = VARIANTS["w4a16.small.g128"]
    widest = max(variant.tiles, key=lambda tile: w4a16.shared_bytes("g128", tile) * tile["ctas"])
    assert "shared memory" in variant.refuses(widest, Shape(1, 4096, 4096), RTX_3090)
    eight = variant.tiles[0]
    assert variant.refuses(eight, Shape(16, 4096, 4096), H100) == ""
    assert "more than twice" in variant.refuses(eight, Shape(17, 4096, 4096), H100)
