"""The tiled W4A4 GEMM without a GPU: that INT4 is native and what each group costs, counted in its machine code; that
Python and the source agree on every tile, that its grid covers the output once, and what is picked and refused."""

import re
from collections import Counter
from functools import cache

import pytest

from apex4_probe.kernels import sass, sass_counts, w4a4_mma
from apex4_probe.kernels.compile import CompileError, Kernel, compile_kernel, cuda_header
from apex4_probe.kernels.formats import GROUP, block_bytes, token_block_bytes
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant, tile
from apex4_probe.strategies import STRATEGIES

NATIVE = ("sm_80", "sm_86", "sm_89")
EMULATED = ("sm_90a", "sm_100a", "sm_120a")
VARIANTS = {variant.name: variant for variant in w4a4_mma.VARIANTS}

A100 = Chip("8.0", "sm_80", 108, 163 * 1024)
RTX_3090 = Chip("8.6", "sm_86", 82, 99 * 1024)
RTX_4090 = Chip("8.9", "sm_89", 128, 99 * 1024)
H100 = Chip("9.0", "sm_90a", 132, 227 * 1024)
CHIPS = (A100, RTX_3090, RTX_4090, H100)

# Instructions per accumulator and group by opcode, exactly; and a bound for everything else per 128 of K that is no
# MMA: of 64 x 64 a warp with stages of 256, then of other tiles.
DEQUANTISATION: dict[str, tuple[str, ...]] = {
    "none": (),
    "imad": (r"IMAD$",),
    "magic_ffma2": (r"FFMA$", r"FFMA$"),
    "i2f_fmul_ffma": (r"I2F(P\.F32\.S32)?$", r"FMUL$", r"FFMA$"),
}
REST = {"none": 0.28, "imad": 0.32, "magic_ffma2": 0.35, "i2f_fmul_ffma": 0.35}
REST_OF_STEP_128 = {"none": 0.40, "imad": 0.40, "magic_ffma2": 0.40, "i2f_fmul_ffma": 0.41}
REST_OF_64_X_32 = 0.55
REST_OF_A_CTA_OF_64 = 0.60  # each of its threads copies twice as much
REST_OF_SMALL_GROUPS = {("g64", 64): 0.80, ("g64", 32): 1.28, ("g32", 64): 1.20, ("g32", 32): 1.96}  # warp tokens
EVERY_DEQUANTISATION = r"(I2F.*|FMUL|FFMA|FADD|IMAD)$"


def kernel(variant: Variant, tile: Tile, target: str, bf16: bool = False, added: str = "") -> Kernel:
    macros = (*tile.parameters, *variant.macros, ("out_bf16", int(bf16)))
    return Kernel(
        f"{variant.name} {tile.name}",
        cuda_header(variant.source)[1] + added,
        target,
        tuple(cuda_header(name) for name in variant.headers),
        (*(f"-D{name.upper()}={value}" for name, value in macros), *variant.options),
    )


@cache
def image(name: str, tile: Tile, target: str, bf16: bool = False) -> bytes:
    return compile_kernel(kernel(VARIANTS[name], tile, target, bf16)).image


def rest_allowed(variant: Variant, tile: Tile) -> float:
    if variant.granularity in ("g64", "g32"):
        return REST_OF_SMALL_GROUPS[variant.granularity, tile["warp_tokens"]]
    if tile["warp_tokens"] == 32:
        return REST_OF_64_X_32 if tile["rows"] == 128 else REST_OF_A_CTA_OF_64
    return REST[variant.strategy] if tile["step"] == 256 else REST_OF_STEP_128[variant.strategy]


CELLS = [
    pytest.param(name, one, target, bf16, id=f"{name}-{one.name}-{target}-{'bf16' if bf16 else 'fp16'}")
    for target in NATIVE
    for name, variant in VARIANTS.items()
    for one in variant.tiles
    for bf16 in ((False, True) if one == variant.tiles[0] else (False,))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tile", "target", "bf16"), CELLS)
def test_hot_loop(name: str, tile: Tile, target: str, bf16: bool):
    """Fails where another compiler no longer keeps to what the source's header states."""
    variant = VARIANTS[name]
    strategy, group = variant.strategy, GROUP[variant.granularity] or 128
    code = sass.disassemble(image(name, tile, target, bf16))["gemm"]
    assert not code.has_local_memory()
    registers = sass.registers(image(name, tile, target, bf16))
    named = (int(number) for i in code.instructions for number in re.findall(r"\bR(\d+)", i.operands))
    assert max(named) < registers <= 255

    body = code.hot_loop("IMMA")
    counts = code.count(body)
    row_tiles, token_tiles, k_blocks = tile["warp_rows"] // 16, tile["warp_tokens"] // 8, tile["step"] // 128
    accumulators = row_tiles * token_tiles * 4  # of a thread
    each, groups = accumulators * k_blocks, 128 // group

    mma_k = dict(variant.macros)["mma_k"]
    multiplications = each * 32 // mma_k
    assert sass.matching(counts, rf"IMMA\.168{mma_k}\.S4\.S4$") == sass.matching(counts, "IMMA") == multiplications
    wanted = DEQUANTISATION[strategy]
    # Scales that are fp16 in memory: of a thread's rows, converted and multiplied with the offset.
    converted = 2 * row_tiles * groups * k_blocks if group < 128 else 0
    for opcode in set(wanted):
        assert sass.matching(counts, opcode) == wanted.count(opcode) * each * groups, opcode
    assert sass.matching(counts, EVERY_DEQUANTISATION) == len(wanted) * each * groups + converted
    assert sass.matching(counts, r"HADD2\.F32$") == converted

    # ptxas puts three loads that never happen ("@!PT LDS RZ, [RZ]") before copies that follow loads.
    loads = [i for i in body if i.opcode.startswith("LDS") and i.predicate != "@!PT"]
    token_scales = token_tiles // 2 * groups if strategy != "none" else 0
    by_width = Counter(i.opcode for i in loads)
    if group < 128:
        assert by_width == {
            "LDS.128": k_blocks * (2 * row_tiles + token_scales),
            "LDS.64": k_blocks * 2 * token_tiles,
            "LDS": k_blocks * row_tiles * groups,
        }
    else:
        weight_scales = {"magic_ffma2": row_tiles, "i2f_fmul_ffma": row_tiles // 2}.get(strategy, 0)
        assert by_width == {"LDS.128": k_blocks * (2 * row_tiles + token_tiles + weight_scales + token_scales)}
    blocks = (tile["rows"] + tile["tokens"]) // 32
    lanes = variant.geometry(tile, Shape(1, 32, 128), H100).threads // blocks  # that copy a block
    scale_bytes = max(block_bytes(variant.granularity, "w4a4"), token_block_bytes(variant.granularity)) - 2048
    assert sass.matching(counts, "LDGSTS") == k_blocks * (128 // lanes + -(-scale_bytes // (16 * lanes)))
    assert sass.matching(counts, "BAR") == 1

    counted = sass_counts.count(code, "w4a4", strategy)
    assert (counted.mma_rate, counted.mma, counted.scaling) == ("mma.s4", 32 / mma_k, len(wanted) * groups)
    assert counted.rest <= rest_allowed(variant, tile)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("target", EMULATED)
def test_without_int4_tensor_cores_it_is_emulated(name: str, target: str):
    code = sass.disassemble(image(name, VARIANTS[name].tiles[0], target))["gemm"]
    opcodes = {i.opcode for i in code.instructions}
    assert not any(re.match(r"IMMA.*\.S4", opcode) for opcode in opcodes)
    assert any(re.match(r"IMMA\.168\d+\.S8\.S8", opcode) for opcode in opcodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_python_and_the_source_agree_on_every_tile(name: str):
    variant = VARIANTS[name]
    for one in variant.tiles:
        geometry = variant.geometry(one, Shape(1, 32, 128), H100)
        stage = w4a4_mma.stage_bytes(variant.granularity, one)
        added = (
            f"\nstatic_assert(SHARED == {geometry.shared_bytes} && THREADS == {geometry.threads} && STAGE == {stage}, "
            '"w4a4_mma.py counts otherwise");\n'
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
@pytest.mark.parametrize("rows", [128, 64])
def test_grid_covers_the_output_once(rows: int):
    variant = VARIANTS["w4a4.mma.channel"]
    one = next(one for one in variant.tiles if one["rows"] == rows)
    claims = "".join(f'static_assert(covers_once({m}, {n}), "M = {m}, N = {n}");\n' for m, n in SIZES)
    compile_kernel(kernel(variant, one, "sm_80", added=COVERAGE + claims))
    for m, n in SIZES:
        ctas = -(-m // one["tokens"]) * -(-n // one["rows"])
        assert variant.geometry(one, Shape(m, n, 256), A100).grid == (ctas, 1, 1)


def test_coverage_check_can_fail():
    variant = VARIANTS["w4a4.mma.channel"]
    twice = COVERAGE.replace("corner(cta, m, n)", "corner(cta / 2, m, n)") + 'static_assert(covers_once(1, 512), "");'
    with pytest.raises(CompileError, match="static assertion failed"):
        compile_kernel(kernel(variant, variant.tiles[0], "sm_80", added=twice))


@pytest.mark.parametrize(
    ("name", "step", "stages", "bytes_"),
    [
        ("w4a4.mma.channel", 256, 3, 3 * 2 * 8 * 2048),
        ("w4a4.mma.a128i", 256, 2, 2 * 2 * 8 * (2048 + 128)),  # of both operands' blocks, though weights have no scales
        ("w4a4.mma.g128", 256, 2, 2 * 2 * 8 * (2048 + 256)),
        ("w4a4.mma.g64", 256, 2, 2 * 2 * 8 * (2048 + 2 * 128)),
        ("w4a4.mma.g32", 128, 2, 2 * 8 * (2048 + 4 * 128)),
        # two stages of 128 are less than the epilogue's outputs, 136 rows with padding and 4 bytes for each token
        ("w4a4.mma.channel", 128, 2, 128 * (136 * 2 + 4)),
    ],
)
def test_shared_memory(name: str, step: int, stages: int, bytes_: int):
    one = tile(rows=128, tokens=128, warp_rows=64, warp_tokens=64, step=step, stages=stages)
    geometry = VARIANTS[name].geometry(one, Shape(300, 4096, 4096), H100)
    assert (geometry.shared_bytes, geometry.threads, geometry.workspace_bytes) == (bytes_, 128, 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_large_ctas_share_an_sm_on_every_chip(name: str):
    """Of 256 of K a stage on 8.0 and 9.0, of 128 on 8.6 and 8.9 and of g32."""
    large = 128 if name == "w4a4.mma.g32" else 256
    for chip, step in ((A100, large), (RTX_3090, 128), (RTX_4090, 128), (H100, large)):
        fits = tile(rows=128, tokens=128, warp_rows=64, warp_tokens=64, step=step, stages=2)
        assert fits in VARIANTS[name].tiles
        assert w4a4_mma.ctas_per_sm(VARIANTS[name].granularity, fits, chip) == 2
        for shape in (Shape(4096, 4096, 4096), Shape(4096, 28672, 4096), Shape(4096, 4096, 14336)):
            pick = VARIANTS[name].default(shape, chip)
            assert (pick["rows"], pick["warp_tokens"], pick["step"]) == (128, 64, step)


def test_refusals_say_why():
    refuses = VARIANTS["w4a4.mma.g128"].refuses
    deep = tile(rows=128, tokens=128, warp_rows=64, warp_tokens=64, step=256, stages=3)
    small = tile(rows=64, tokens=64, warp_rows=64, warp_tokens=32, step=256, stages=2)
    turing = Chip("7.5", "sm_75", 40, 64 * 1024)
    assert refuses(small, Shape(1, 32, 128), A100) == ""
    assert refuses(deep, Shape(1024, 4096, 4096), A100) == ""
    assert "110592" in refuses(deep, Shape(1024, 4096, 4096), RTX_3090)
    assert "101376" in refuses(deep, Shape(1024, 4096, 4096), RTX_3090)
    assert "N = 4100" in refuses(small, Shape(1, 4100, 4096), A100)
    assert "compute capability 8.0" in refuses(small, Shape(1, 4096, 4096), turing)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.target)
def test_default_runs_and_grows_with_m(variant: Variant, chip: Chip):
    def rows(m: int, n: int) -> int:
        pick = variant.default(Shape(m, n, 4096), chip)
        assert pick in variant.tiles
        assert variant.refuses(pick, Shape(m, n, 4096), chip) == ""
        return pick["rows"]

    assert rows(1, 4096) == 64
    assert rows(128, 4096) == 64, "32 CTAs of 128 x 128 would leave three quarters of the SMs idle"
    assert rows(4096, 4096) == 128
    assert rows(4096, 28672) == 128


def test_records_name_what_they_do():
    assert [(v.name, v.granularity, v.strategy) for v in w4a4_mma.VARIANTS] == [
        ("w4a4.mma.channel", "channel", "none"),
        ("w4a4.mma.a128i", "a128i", "imad"),
        ("w4a4.mma.g128", "g128", "magic_ffma2"),
        ("w4a4.mma.g64", "g64", "magic_ffma2"),
        ("w4a4.mma.g32", "g32", "magic_ffma2"),
        ("w4a4.i2f.g128", "g128", "i2f_fmul_ffma"),
        ("w4a4.k32.g128", "g128", "i2f_fmul_ffma"),
    ]
    assert all(v.strategy in STRATEGIES for v in w4a4_mma.VARIANTS)
    assert all(v.options == ("--ptxas-options=-O1",) for v in w4a4_mma.VARIANTS)
    assert all(len(set(v.tiles)) == len(v.tiles) for v in w4a4_mma.VARIANTS)
