"""The tiled W4A8 GEMM without a GPU: what its machine code holds, that Python and the source agree on every tile, that
its grid covers the output once, and what is picked and refused."""

import re
from functools import cache

import pytest

from apex4_probe.kernels import sass, w4a8_mma
from apex4_probe.kernels.compile import CompileError, Kernel, compile_kernel, cuda_header
from apex4_probe.kernels.formats import GROUP
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant, tile
from apex4_probe.strategies import STRATEGIES

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
VARIANTS = {variant.granularity: variant for variant in w4a8_mma.VARIANTS}
INTEGER = ("channel", "g128i", "g128r")
WIDENING = {"channel": 16, "g128i": 44, "g128r": 91}  # of 16 rows x 128 of K, a thread

A100 = Chip("8.0", "sm_80", 108, 163 * 1024)
RTX_3090 = Chip("8.6", "sm_86", 82, 99 * 1024)
RTX_4090 = Chip("8.9", "sm_89", 128, 99 * 1024)
H100 = Chip("9.0", "sm_90a", 132, 227 * 1024)
CHIPS = (A100, RTX_3090, RTX_4090, H100)


def kernel(variant: Variant, tile: Tile, target: str, bf16: bool = False, added: str = "") -> Kernel:
    macros = (*tile.parameters, *variant.macros, ("out_bf16", int(bf16)))
    return Kernel(
        f"{variant.name} {tile.name}",
        cuda_header(variant.source)[1] + added,
        target,
        tuple(cuda_header(name) for name in variant.headers),
        tuple(f"-D{name.upper()}={value}" for name, value in macros),
    )


@cache
def image(granularity: str, tile: Tile, target: str, bf16: bool) -> bytes:
    return compile_kernel(kernel(VARIANTS[granularity], tile, target, bf16)).image


def shapes(variant: Variant) -> list[Tile]:
    """A tile for every shape of the grid and the warps, with one number of stages."""
    return list({one.parameters[:3]: one for one in variant.tiles}.values())


CELLS = [
    pytest.param(granularity, one, target, bf16, id=f"{granularity}-{one.name}-{target}-{'bf16' if bf16 else 'fp16'}")
    for target in TARGETS
    for granularity, variant in VARIANTS.items()
    for one in variant.tiles
    for bf16 in ((False, True) if one == variant.tiles[0] else (False,))
]


@pytest.mark.slow
@pytest.mark.parametrize(("granularity", "tile", "target", "bf16"), CELLS)
def test_hot_loop_and_occupancy(granularity: str, tile: Tile, target: str, bf16: bool):
    code = sass.disassemble(image(granularity, tile, target, bf16))["gemm"]
    assert not code.has_local_memory()
    threads = tile["rows"]
    registers = sass.registers(image(granularity, tile, target, bf16))
    named = (int(number) for i in code.instructions for number in re.findall(r"\bR(\d+)", i.operands))
    assert max(named) < registers
    allocated = -(-registers // 8) * 8  # handed out by eights
    resident = w4a8_mma.ctas_per_sm(granularity, tile)
    assert resident * threads * allocated <= 65536
    assert resident * threads >= 256, "two warps a scheduler"

    body = code.hot_loop("IMMA")
    counts = code.count(body)

    def count(opcode: str) -> int:
        return sass.matching(counts, opcode)

    row_tiles, token_tiles = tile["warp_rows"] // 16, 4 * tile["tokens"] // tile["warp_rows"]
    group, is_float = GROUP[granularity], granularity not in INTEGER
    groups = 128 // group if group else 0
    imma = 4 * row_tiles * token_tiles
    operand = "S8" if is_float else "U8"
    assert count(rf"IMMA\.16832\.{operand}\.S8") == count("IMMA") == imma

    # ptxas puts three loads that never happen ("@!PT LDS RZ, [RZ]") before copies that follow loads.
    loads = [i for i in body if i.opcode.startswith("LDS") and i.predicate != "@!PT"]
    wide = [i for i in loads if i.opcode == "LDS.128"]
    assert len(wide) == 2 * row_tiles + 2 * token_tiles
    assert len(loads) - len(wide) == row_tiles * groups
    assert count("LDGSTS") == tile["tokens"] * 8 // threads + 4 + bool(groups)
    assert count("BAR") == 1

    dequantisation = imma // (group // 32) * 4 if is_float and group else 0
    assert count("FADD") == count("FFMA") == dequantisation
    assert count("I2F") == 0

    widening = row_tiles * (24 + 2 * groups if is_float else WIDENING[granularity])
    idle = sum(i.predicate in ("@!PT", "@!UPT") for i in body)
    counted = imma + len(loads) + count("LDGSTS") + 2 * dequantisation + widening + idle
    overhead = sum(counts.values()) - counted
    assert overhead < (64 if is_float else 48), "the header of w4a8_mma.cu"


@pytest.mark.slow
@pytest.mark.parametrize("granularity", VARIANTS)
def test_python_and_the_source_agree_on_every_tile(granularity: str):
    variant = VARIANTS[granularity]
    for one in variant.tiles:
        geometry = variant.geometry(one, Shape(1, 32, 128), H100)
        stage = w4a8_mma.stage_bytes(granularity, one)
        added = (
            f"\nstatic_assert(SHARED == {geometry.shared_bytes} && THREADS == {geometry.threads} && STAGE == {stage}"
            f' && CTAS_PER_SM == {w4a8_mma.ctas_per_sm(granularity, one)}, "w4a8_mma.py counts otherwise");\n'
        )
        compile_kernel(kernel(variant, one, "sm_80", added=added))


# Run by the compiler, on the source's own function: every tile of rows and tokens once, none outside.
COVERAGE = """
constexpr bool covers_once(int m, int n) {
  bool seen[4096] = {};
  const int row_tiles = (n + ROWS - 1) / ROWS, ctas = row_tiles * ((m + TOKENS - 1) / TOKENS);
  for (int cta = 0; cta < ctas; cta++) {
    const Corner at = corner(cta, m, n);
    if (at.row < 0 || at.token < 0 || at.row % ROWS || at.token % TOKENS || at.row >= n || at.token >= m) return false;
    bool& here = seen[at.token / TOKENS * row_tiles + at.row / ROWS];
    if (here) return false;
    here = true;
  }
  return true;
}
"""
SIZES = ((1, 32), (7, 96), (128, 128), (129, 160), (777, 4064), (1000, 288), (1024, 4096), (2049, 1056), (4095, 32))


@pytest.mark.slow
@pytest.mark.parametrize("shape", shapes(VARIANTS["channel"]), ids=lambda one: one.name)
def test_grid_covers_the_output_once(shape: Tile):
    variant = VARIANTS["channel"]
    claims = "".join(f'static_assert(covers_once({m}, {n}), "M = {m}, N = {n}");\n' for m, n in SIZES)
    compile_kernel(kernel(variant, shape, "sm_80", added=COVERAGE + claims))
    for m, n in SIZES:
        ctas = -(-m // shape["tokens"]) * -(-n // shape["rows"])
        assert variant.geometry(shape, Shape(m, n, 256), A100).grid == (ctas, 1, 1)


def test_coverage_check_can_fail():
    twice = COVERAGE.replace("corner(cta, m, n)", "corner(cta / 2, m, n)") + 'static_assert(covers_once(1, 512), "");'
    with pytest.raises(CompileError, match="static assertion failed"):
        compile_kernel(kernel(VARIANTS["channel"], VARIANTS["channel"].tiles[0], "sm_80", added=twice))


@pytest.mark.parametrize(
    ("granularity", "one", "bytes_"),
    [
        ("channel", tile(rows=128, tokens=128, warp_rows=32, stages=2), 2 * (128 * 128 + 4 * 2048)),
        ("g128i", tile(rows=128, tokens=128, warp_rows=32, stages=2), 2 * (128 * 128 + 4 * 2112)),
        ("g32", tile(rows=128, tokens=16, warp_rows=32, stages=4), 4 * (16 * 128 + 4 * 2304)),
        # two stages of it are less than the epilogue's outputs, 264 rows with padding x 128 tokens, and 8 bytes a token
        ("channel", tile(rows=256, tokens=128, warp_rows=64, stages=2), 128 * (264 * 2 + 8)),
    ],
)
def test_shared_memory(granularity: str, one: Tile, bytes_: int):
    geometry = VARIANTS[granularity].geometry(one, Shape(300, 4096, 4096), H100)
    assert (geometry.shared_bytes, geometry.threads, geometry.workspace_bytes) == (bytes_, one["rows"], 0)


@pytest.mark.parametrize("granularity", INTEGER)
def test_the_largest_tile_shares_an_sm_on_every_chip(granularity: str):
    """Two CTAs of 128 x 128, which take 1 KB each beside their own; 8.6 and 8.9 have room for two stages of it."""
    for chip, stages in ((A100, 3), (RTX_3090, 2), (RTX_4090, 2), (H100, 4)):
        fits = tile(rows=128, tokens=128, warp_rows=32, stages=stages)
        assert fits in VARIANTS[granularity].tiles
        assert 2 * (w4a8_mma.shared_bytes(granularity, fits) + 1024) <= chip.shared_bytes + 1024
        for shape in (Shape(4096, 4096, 4096), Shape(1024, 28672, 4096), Shape(4096, 4096, 14336)):
            pick = VARIANTS[granularity].default(shape, chip)
            assert (pick["rows"], pick["tokens"], pick["stages"]) == (128, 128, stages)


def test_refusals_say_why():
    refuses = VARIANTS["g128i"].refuses
    wide = tile(rows=256, tokens=128, warp_rows=32, stages=4)
    small = tile(rows=128, tokens=16, warp_rows=32, stages=4)
    turing = Chip("7.5", "sm_75", 40, 64 * 1024)
    assert refuses(small, Shape(1, 32, 128), A100) == ""
    assert refuses(wide, Shape(1024, 4096, 4096), A100) == ""
    assert "133120" in refuses(wide, Shape(1024, 4096, 4096), RTX_3090)
    assert "101376" in refuses(wide, Shape(1024, 4096, 4096), RTX_3090)
    assert "N = 4100" in refuses(small, Shape(1, 4100, 4096), A100)
    assert "compute capability 8.0" in refuses(small, Shape(1, 4096, 4096), turing)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.granularity)
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.target)
def test_default_runs_and_grows_with_m(variant: Variant, chip: Chip):
    def tokens(m: int, n: int) -> int:
        pick = variant.default(Shape(m, n, 4096), chip)
        assert pick in variant.tiles
        assert variant.refuses(pick, Shape(m, n, 4096), chip) == ""
        return pick["tokens"]

    assert tokens(1, 4096) == 16
    assert tokens(128, 4096) < 128, "32 CTAs would leave three quarters of the SMs idle"
    assert tokens(4096, 4096) == max(one["tokens"] for one in variant.tiles)
    assert tokens(1024, 28672) == max(one["tokens"] for one in variant.tiles)


def test_records_name_what_they_do():
    assert [(v.name, v.strategy) for v in w4a8_mma.VARIANTS] == [
        ("w4a8.mma.channel", "none"),
        ("w4a8.mma.g128i", "widen"),
        ("w4a8.mma.g128r", "widen_rounded"),
        ("w4a8.mma.g128", "magic_fadd_ffma"),
        ("w4a8.mma.g64", "magic_fadd_ffma"),
        ("w4a8.mma.g32", "magic_fadd_ffma"),
    ]
    assert all(v.strategy in STRATEGIES for v in w4a8_mma.VARIANTS)
    assert all(len(set(v.tiles)) == len(v.tiles) for v in w4a8_mma.VARIANTS)
