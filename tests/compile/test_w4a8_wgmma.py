"""The W4A8 GEMM on wgmma without a GPU: what its machine code holds, that Python and the source agree on every tile,
that the Tensor Core finds both operands where the layouts put them, and what is picked and refused."""

import re
from functools import cache

import numpy as np
import pytest
import torch

from apex4_probe.kernels import catalogue, sass, w4a8_wgmma
from apex4_probe.kernels.compile import CompileError, Cubin, Kernel, _compile, compile_kernel
from apex4_probe.kernels.formats import BYTE_ORDER
from apex4_probe.kernels.packing import random_packed, unpack
from apex4_probe.kernels.reference import arrange_int8_wgmma
from apex4_probe.kernels.variant import Chip, Shape, Tile, tile
from apex4_probe.strategies import STRATEGIES

H100 = Chip("9.0", "sm_90a", 132, 227 * 1024)
A100 = Chip("8.0", "sm_80", 108, 163 * 1024)
B200 = Chip("10.0", "sm_100a", 148, 227 * 1024)
VARIANTS = {variant.granularity: variant for variant in w4a8_wgmma.VARIANTS}
WIDENING = {"channel": 16, "g128i": 44, "g128r": 91}  # of 64 rows x 128 of K, a thread: the header of the source
SLACK = 48  # waiting, addresses of stages and descriptors, loop: a block of K
WIDE = tile(rows=128, tokens=256, warpgroups=2, stages=4, lag=1, split_k=1, share_last=0)
SHARED = tile(rows=128, tokens=64, warpgroups=2, stages=11, lag=1, split_k=4, share_last=0)
SHARE_LAST = tile(rows=128, tokens=256, warpgroups=2, stages=5, lag=2, split_k=1, share_last=1)
SQUARE = tile(rows=128, tokens=128, warpgroups=2, stages=7, lag=1, split_k=1, share_last=0)
SHARE_LAST_HIGH = tile(rows=256, tokens=128, warpgroups=2, stages=6, lag=2, split_k=1, share_last=1)
CELLS = [
    pytest.param(granularity, one, id=f"{granularity}-{one.name}")
    for granularity, variant in VARIANTS.items()
    for one in variant.tiles
]


def kernel(granularity: str, one: Tile, bf16: bool = False, added: str = "") -> Kernel:
    plain = catalogue.kernel(VARIANTS[granularity], one, "sm_90a", bf16)
    return Kernel(plain.name, plain.source + added, plain.target, plain.headers, plain.options)


@cache
def compiled(granularity: str, one: Tile) -> Cubin:
    """Freshly, for its log, which the cache does not keep."""
    fresh = kernel(granularity, one)
    image, log = _compile(fresh)
    return Cubin(fresh, image, None, log)


@pytest.mark.slow
@pytest.mark.parametrize(("granularity", "one"), CELLS)
def test_hot_loop(granularity: str, one: Tile):
    cubin = compiled(granularity, one)
    assert not re.search(r"C75\d\d", cubin.log), f"ptxas serialises wgmma: {cubin.log}"
    code = sass.disassemble(cubin.image)["gemm"]
    assert not code.has_local_memory()
    named = (int(number) for i in code.instructions for number in re.findall(r"\bR(\d+)", i.operands))
    given = next(i for i in code.instructions if i.opcode.startswith("USETMAXREG.TRY_ALLOC")).operands
    assert max(named) < int(given.split(",")[-1], 0)
    threads = 128 * (one["warpgroups"] + 1)
    assert threads * -(-sass.registers(cubin.image) // 8) * 8 <= 65536

    body = code.hot_loop("IGMMA")
    counts = code.count(body)
    row_tiles = one["rows"] // 64 // one["warpgroups"]
    batches = row_tiles * 4 // w4a8_wgmma.BATCH
    blocks = 2 if batches % 2 else 1  # of K, a pass of the loop

    def count(opcode: str) -> int:
        return sass.matching(counts, opcode)

    assert count(rf"IGMMA\.64x{one['tokens']}x32\.U8\.S8") == count(".GMMA") == blocks * row_tiles * 4
    assert count(r"WARPGROUP\.ARRIVE") == count(r"WARPGROUP\.DEPBAR") == blocks * batches
    assert count(r"LDS\.128") == blocks * row_tiles * 2
    assert count("LDS") == blocks * row_tiles * (2 if granularity == "channel" else 3)
    assert count("SYNCS.ARRIVE") == blocks
    assert count("BAR") == count("STS") == count("LDG") == 0
    work = row_tiles * (WIDENING[granularity] + 4 + count("LDS") // (blocks * row_tiles)) + 2 * batches
    assert sum(counts.values()) <= blocks * (work + SLACK)
    # Outputs: a fence and a barrier a group of chunks, a tensor copy a chunk, which nobody waits for.
    finished = one["tokens"] // one["split_k"]
    chunks = row_tiles * finished // w4a8_wgmma.out_chunk(one)
    whole = code.count(code.instructions)
    assert sass.matching(whole, "UTMASTG") == chunks
    assert sass.matching(whole, "STSM") == row_tiles * finished // 16
    assert sass.matching(whole, "STG") == 0
    waits_for_stores = [i for i in code.instructions if i.opcode == "MEMBAR.ALL.GPU"]
    assert len(waits_for_stores) == (w4a8_wgmma.cluster_ctas(one) > 1), "at the end, before CTAs of a cluster leave"


@pytest.mark.slow
@pytest.mark.parametrize("granularity", VARIANTS)
def test_python_and_the_source_agree_on_every_tile(granularity: str):
    variant = VARIANTS[granularity]
    for one in variant.tiles:
        geometry = variant.geometry(one, Shape(1, 32, 1024), H100)
        stage = w4a8_wgmma.stage_bytes(granularity, one)
        added = (
            f"\nstatic_assert(SHARED == {geometry.shared_bytes} && THREADS == {geometry.threads}"
            f' && X_STAGE + W_STAGE == {stage}, "w4a8_wgmma.py counts otherwise");\n'
        )
        compile_kernel(kernel(granularity, one, added=added))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", VARIANTS)
def test_bf16(granularity: str):
    image = compile_kernel(kernel(granularity, VARIANTS[granularity].tiles[0], bf16=True)).image
    opcodes = {i.opcode for i in sass.disassemble(image)["gemm"].instructions}
    assert any(opcode.startswith("F2FP.BF16") for opcode in opcodes)
    assert not any(opcode.startswith("F2FP.F16") for opcode in opcodes)


# Run by the compiler: the persistent kernel's division by reciprocals against the plain one of the other kernels, whose
# own tests show that it covers the output. __umulhi is no constant expression; what it computes is.
SAME_CORNERS = """
constexpr bool same_corners(int m, int n) {
  const Raster raster(m, n);
  for (int tile = 0; tile < raster.tiles(); tile++) {
    const Corner a = raster.corner(tile), b = corner(tile WRONG, m, n);
    if (a.row != b.row || a.token != b.token) return false;
  }
  return raster.tiles() == (n + ROWS - 1) / ROWS * ((m + TOKENS - 1) / TOKENS);
}
"""
GRIDS = ((1, 32), (257, 96), (2048, 4096), (2049, 28672), (4095, 1056), (8192, 10240), (77, 152064))


def corners_compile(wrong: str) -> None:
    plain = kernel("channel", WIDE, added=SAME_CORNERS.replace("WRONG", wrong) + "".join(
        f'static_assert(same_corners({m}, {n}), "M = {m}, N = {n}");\n' for m, n in GRIDS
    ))  # fmt: skip
    headers = dict(plain.headers)
    text = headers["output_tile.cuh"]
    first, last = text.index("struct Divisor"), text.index("// Two tokens' values")
    constant = text[first:last].replace("__device__ __forceinline__", "constexpr __device__ __forceinline__")
    assert constant.count("__umulhi(dividend, reciprocal)") == 1
    constant = constant.replace("__umulhi(dividend, reciprocal)", "(u32)((u64)dividend * reciprocal >> 32)")
    headers["output_tile.cuh"] = text[:first] + constant + text[last:]
    compile_kernel(Kernel(plain.name, plain.source, plain.target, tuple(headers.items()), plain.options))


@pytest.mark.slow
def test_tiles_lie_where_the_plain_division_says():
    corners_compile("")
    with pytest.raises(CompileError, match="static assertion failed"):
        corners_compile("/ 2")


def tensor_core(a: np.ndarray, shared: np.ndarray, start: int, tokens: int) -> np.ndarray:
    """wgmma m64nNk32 as PTX ISA describes it: ``a`` [warp 4][lane 32][register 4][byte 4] -> [64, tokens], int64.

    Operand B is K-major under the 128-byte swizzle: row t at start + t / 8 * 1024 + t % 8 * 128, and bits 4 … 6 of an
    address are exclusive-ored with bits 7 … 9.
    """
    left = np.zeros((64, 32), np.int64)
    for warp, lane, register, byte in np.ndindex(4, 32, 4, 4):
        row = 16 * warp + lane // 4 + 8 * (register % 2)
        left[row, 16 * (register // 2) + 4 * (lane % 4) + byte] = a[warp, lane, register, byte]
    right = np.zeros((tokens, 32), np.int64)
    for token, k in np.ndindex(tokens, 32):
        address = start + token // 8 * 1024 + token % 8 * 128 + k
        right[token, k] = shared[address ^ ((address >> 7 & 7) << 4)]
    return left @ right.T


def test_both_layouts_meet_in_the_tensor_core():
    """A thread's words, widened as they are, against the activations' order, with no exchange between threads."""
    n, k, tokens = 64, 256, 16
    packed = random_packed(n, k, "w4a8", "channel", "cpu", torch.Generator().manual_seed(1))
    q = torch.randint(-127, 128, (tokens, k), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    words = packed.data.numpy().reshape(n // 32, k // 128, 2, 2, 32, 4, 4)  # block, kb, tile, half, lane, word, byte
    x = arrange_int8_wgmma(q).numpy().view(np.int8).reshape(k // 128, tokens * 128)
    total = np.zeros((64, tokens), np.int64)
    for kb, step in np.ndindex(k // 128, 4):
        a = np.zeros((4, 32, 4, 4), np.int64)
        for warp, lane, h in np.ndindex(4, 32, 2):
            word = words[warp // 2, kb, warp % 2, step // 2, lane, 2 * (step % 2) + h].astype(np.int64)
            a[warp, lane, 2 * h], a[warp, lane, 2 * h + 1] = word & 15, word >> 4
        total += tensor_core(a, x[kb], 32 * step, tokens)
    codes = unpack(packed).codes.numpy().astype(np.int64)
    assert BYTE_ORDER != (0, 1, 2, 3), "or this test would not see bytes that changed places"
    assert np.array_equal(total, codes @ q.numpy().astype(np.int64).T)


@pytest.mark.parametrize(
    ("granularity", "one", "bytes_"),
    [
        # stages; two groups of three chunks of 32 tokens x 128 bytes, and 8 bytes a token for each warpgroup; barriers
        ("channel", WIDE, 4 * (256 * 128 + 4 * 2048) + 2 * (6 * 32 * 128 + 256 * 8) + 8 * (8 + 4)),
        # there is room for all of a tile's four chunks; slots of 2176 bytes
        ("g128i", SQUARE, 172 * 1024 + 2 * (4 * 32 * 128 + 128 * 8) + 8 * (14 + 4)),
        # 185856 bytes of stages, up to the next KiB; what three other CTAs send: 64 rows x 16 tokens x 4 bytes each
        ("g128i", SHARED, 182 * 1024 + 2 * (16 * 128 + 16 * 8 + 3 * 64 * 16 * 4) + 8 * (22 + 4)),
        # 207360 bytes of stages, a fifth; two chunks; what the last round sends lies in the stages
        ("g128i", SHARE_LAST, 203 * 1024 + 2 * (2 * 32 * 128 + 256 * 8) + 8 * (10 + 4)),
        # two row tiles, some shared: chunks go one at a time, whatever there is room for
        ("channel", SHARE_LAST_HIGH, 6 * (128 * 128 + 8 * 2048) + 2 * (2 * 32 * 128 + 128 * 8) + 8 * (12 + 4)),
    ],
)
def test_shared_memory(granularity: str, one: Tile, bytes_: int):
    assert one in VARIANTS[granularity].tiles
    assert w4a8_wgmma.shared_bytes(granularity, one) == bytes_


@pytest.mark.parametrize("granularity", VARIANTS)
def test_every_tile_fits_and_is_named_once(granularity: str):
    tiles = VARIANTS[granularity].tiles
    assert len(set(tiles)) == len(tiles)
    assert all(w4a8_wgmma.shared_bytes(granularity, one) <= H100.shared_bytes for one in tiles)


def test_grid_ends_all_its_clusters_together():
    variant = VARIANTS["channel"]

    def grid(one: Tile, m: int, n: int) -> int:
        return variant.geometry(one, Shape(m, n, 4096), H100).grid[0]

    assert grid(WIDE, 1, 32) == 1
    assert grid(WIDE, 1024, 4096) == 128
    assert grid(WIDE, 1024, 28672) == 128, "896 tiles in seven rounds"
    assert grid(WIDE, 1024, 6144) == 96, "192 tiles in two rounds"
    assert grid(SHARED, 64, 2048) == 64, "16 tiles, four CTAs each"
    assert grid(SHARED, 64, 4096) == 64, "32 tiles in two rounds of 16 clusters: 29 run at once on every chip"
    assert grid(SHARED, 64, 6144) == 96, "48 tiles in two rounds of 24 clusters"
    assert grid(SHARE_LAST, 1, 32) == 2, "one tile, both CTAs of a pair"
    assert grid(SHARE_LAST, 512, 28672) == 128, "448 tiles: three rounds of 128, then 64 that pairs share"
    assert grid(SHARE_LAST, 512, 10240) == 108, "160 tiles: one round of 108, then 52 that pairs share"


def test_a_shared_last_round_is_run_where_half_of_the_ctas_are_enough_for_it():
    """The kernel gives tiles of full rounds to CTAs, and of what is left one to each pair: for some and for all."""
    variant = VARIANTS["channel"]
    ran = 0
    for tiles in range(1, 1200):
        shape = Shape(1, 128 * tiles, 4096)
        rest = tiles % 132
        if variant.refuses(SHARE_LAST, shape, H100):
            assert rest == 0 or rest > 66
            continue
        assert 0 < rest <= 66
        grid = variant.geometry(SHARE_LAST, shape, H100).grid[0]
        assert grid % 2 == 0 and 0 < grid <= 132
        assert 0 < tiles % grid <= grid // 2
        assert tiles // grid == tiles // 132, "as many full rounds as the whole chip needs"
        ran += 1
    assert ran == 9 * 66 + 11


def test_refusals_say_why():
    refuses = VARIANTS["g128i"].refuses
    assert refuses(SHARED, Shape(1, 32, 512), H100) == ""
    assert "9.0" in refuses(SHARED, Shape(1, 32, 512), A100)
    assert "10.0" in refuses(SHARED, Shape(1, 32, 512), B200)
    assert "N = 4100" in refuses(SHARED, Shape(1, 4100, 4096), H100)
    assert "K = 384 is 3 blocks of 128" in refuses(SHARED, Shape(1, 32, 384), H100)
    assert refuses(SHARE_LAST, Shape(512, 28672, 4096), H100) == ""
    assert "896 tiles leave no last round for half of 132 CTAs" in refuses(SHARE_LAST, Shape(1024, 28672, 4096), H100)
    assert "K = 128 is 1 blocks of 128, fewer than the 2 CTAs" in refuses(SHARE_LAST, Shape(1, 32, 128), H100)
    assert "215504" in refuses(SHARED, Shape(1, 32, 512), Chip("9.0", "sm_90a", 132, 200_000))


@pytest.mark.parametrize("granularity", VARIANTS)
def test_default_runs_and_fills_the_chip(granularity: str):
    variant = VARIANTS[granularity]
    for m in (1, 33, 64, 128, 256, 512, 1000, 4096, 16384):
        for n, k in ((32, 128), (4096, 4096), (28672, 4096), (4096, 14336), (6144, 896)):
            shape = Shape(m, n, k)
            pick = variant.default(shape, H100)
            assert pick in variant.tiles
            assert variant.refuses(pick, shape, H100) == ""
    for m, n in ((64, 4096), (256, 4096), (1024, 4096), (4096, 28672)):
        pick = variant.default(Shape(m, n, 4096), H100)
        assert variant.geometry(pick, Shape(m, n, 4096), H100).grid[0] >= 112


def test_clocks_of_a_shared_last_round():
    """Against the same tile whose CTAs share nothing: half of the last tile's K less, an exchange more."""
    alone = Tile(tuple((key, 0 if key == "share_last" else value) for key, value in SHARE_LAST.parameters))
    for granularity in VARIANTS:
        per_block = 128 * 256 * 128 / w4a8_wgmma.MACS  # neither shared memory nor widening takes longer

        def clocks(one: Tile, m: int, n: int, k: int, granularity: str = granularity) -> float:
            return w4a8_wgmma.clocks(granularity, one, Shape(m, n, k), H100)

        saved = clocks(alone, 512, 28672, 4096) - clocks(SHARE_LAST, 512, 28672, 4096)
        full_rounds = 3 * 32 * per_block
        assert saved == pytest.approx(
            16 * per_block - w4a8_wgmma.EXCHANGE_CLOCKS - (w4a8_wgmma.PAIR_FACTOR - 1) * full_rounds
        )
        odd = clocks(alone, 256, 4096, 896) - clocks(SHARE_LAST, 256, 4096, 896)
        assert odd == pytest.approx(3 * per_block - w4a8_wgmma.EXCHANGE_CLOCKS), "the longer part of seven blocks: four"


@pytest.mark.parametrize("granularity", VARIANTS)
def test_default_shares_an_uneven_last_round_and_no_other(granularity: str):
    default = VARIANTS[granularity].default
    assert default(Shape(512, 10240, 8192), H100)["share_last"] == 1, "320 tiles of 128 x 128: 2.5 rounds, not 3"
    for m, n, k in ((1024, 28672, 4096), (1024, 4096, 14336), (4096, 28672, 4096), (4096, 57344, 8192)):
        assert default(Shape(m, n, k), H100)["share_last"] == 0


def test_records_name_what_they_do():
    assert [(v.name, v.strategy, v.activations) for v in w4a8_wgmma.VARIANTS] == [
        ("w4a8.wgmma.channel", "none", "int8_wgmma"),
        ("w4a8.wgmma.g128i", "widen", "int8_wgmma"),
        ("w4a8.wgmma.g128r", "widen_rounded", "int8_wgmma"),
    ]
    assert all(v.strategy in STRATEGIES for v in w4a8_wgmma.VARIANTS)
