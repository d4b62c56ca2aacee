"""Every variant and tile on a real GPU against the reference: to the bit where the sums are integers, else within one
rounding of the output type of float64.

The output lies in a buffer full of NaN that is longer than it, tokens that only fill up a tile hold garbage, and every
launch is repeated. For large N the reference is computed for some blocks of 32 rows, the last ones among them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

import apex4_probe as apex
from apex4_probe.kernels import catalogue
from apex4_probe.kernels.formats import (
    BLOCK_K,
    BLOCK_TOKENS,
    GROUP,
    NIBBLE_BYTES,
    TOKEN_TILE,
    TWO_LEVEL,
    block_bytes,
    weight_group,
)
from apex4_probe.kernels.gemm import gemm, precompile
from apex4_probe.kernels.launch import chip
from apex4_probe.kernels.packing import PackedWeight, pack_quantised, random_packed, unpack
from apex4_probe.kernels.quantise import INT8_KINDS, QuantisedActivations, activation_kind, quantise
from apex4_probe.kernels.quantised_weight import QuantisedWeight
from apex4_probe.kernels.reference import reference_linear, reference_linear64
from apex4_probe.kernels.variant import Shape, Tile, Variant

DEVICE = 0
TOKENS = (1, 2, 7, 16, 17, 33, 64, 77, 128, 255, 1000, 4096)
RANDOM_CASES = 200
BF16_EVERY = 6  # tiles that are compiled for bf16 too, not of w4a16: only the last instruction of a kernel differs
LARGEST_RANDOM = 1 << 32  # M * N * K of a random case, for the reference's sake
ROW_BLOCKS = 12  # of a large weight that the reference multiplies
MANY_ROWS_TOKENS = 128  # the most with which N is as large as it takes to keep every SM busy twice
SPARE = 5  # tokens behind the output that must stay untouched

# N x K as they run, qkv and gate_up fused: Llama-2-7B and 13B; Llama-3-8B, which is Mistral-7B's too, and 70B;
# Qwen2.5-0.5B, 7B and 72B
REAL = [
    (12288, 4096), (22016, 4096), (4096, 11008), (15360, 5120), (5120, 13824),
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (57344, 8192), (8192, 28672),
    (1152, 896), (9728, 896), (896, 4864), (4608, 3584), (37888, 3584), (3584, 18944), (59136, 8192), (8192, 29568),
]  # fmt: skip
EACH = pytest.mark.parametrize("variant", catalogue.VARIANTS, ids=lambda variant: variant.name)
TWO_LEVELS = pytest.mark.parametrize(
    "variant",
    [variant for variant in catalogue.VARIANTS if variant.granularity in TWO_LEVEL],
    ids=lambda variant: variant.name,
)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Everything at once, on every core."""
    cases = [case for variant in catalogue.VARIANTS for case in random_cases(variant)]
    for dtype in (torch.float16, torch.bfloat16):
        picks = [(variant, tile) for variant in catalogue.VARIANTS for tile in tiles_here(variant, dtype)]
        precompile(picks, DEVICE, dtype=dtype, quantisers={(case.k, case.hadamard) for case in cases})


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Torch's own GEMM, which w4a16 ends in for many tokens, may add up pieces of K in 16 bits; that is not tested."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_fp16_reduced_precision_reduction, settings.allow_bf16_reduced_precision_reduction
    settings.allow_fp16_reduced_precision_reduction = settings.allow_bf16_reduced_precision_reduction = False
    yield
    settings.allow_fp16_reduced_precision_reduction, settings.allow_bf16_reduced_precision_reduction = before


@cache
def tiles_here(variant: Variant, dtype: torch.dtype = torch.float16) -> tuple[Tile, ...]:
    """Those that this GPU can run for some number of tokens; in bf16 some of them, but of w4a16."""
    shapes = [Shape(m, 4096, 4096) for m in TOKENS]
    legal = tuple(
        tile for tile in variant.tiles if any(not variant.refuses(tile, shape, chip(DEVICE)) for shape in shapes)
    )
    return legal[::BF16_EVERY] if dtype == torch.bfloat16 and variant.format != "w4a16" else legal


def legal_tokens(variant: Variant, n: int, k: int) -> list[int]:
    return [m for m in TOKENS if not catalogue.legal(variant, Shape(m, n, k), chip(DEVICE))]


def legal_tiles(variant: Variant, m: int, n: int, k: int, dtype: torch.dtype = torch.float16) -> list[Tile]:
    return [tile for tile in tiles_here(variant, dtype) if not variant.refuses(tile, Shape(m, n, k), chip(DEVICE))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cuda").manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", generator=generator(seed)).to(dtype)


@dataclass(frozen=True)
class Expected:
    """What y [M, rows] must be; ``exact``: to the bit, else in float64 and within one rounding."""

    values: torch.Tensor
    rows: torch.Tensor
    exact: bool

    def check(self, y: torch.Tensor, what: str) -> None:
        assert not y.isnan().any(), f"{what}: elements that were never written, or NaN"
        mine = y[:, self.rows]
        if self.exact:
            assert torch.equal(mine, self.values), f"{what}: {self._worst(mine)}"
            return
        # One unit in the last place; for an output near zero, a difference of large sums, that of its row's magnitude.
        typical = self.values.square().mean(dim=1, keepdim=True).sqrt().clamp(min=torch.finfo(y.dtype).smallest_normal)
        allowed = torch.finfo(y.dtype).eps * torch.maximum(self.values.abs(), typical)
        assert bool(((mine.double() - self.values).abs() <= allowed).all()), f"{what}: {self._worst(mine)}"

    def _worst(self, mine: torch.Tensor) -> str:
        error = (mine.double() - self.values.double()).abs()
        token, column = divmod(int(error.nan_to_num(torch.inf).argmax()), error.shape[1])
        wrong = int((mine != self.values).sum())
        return (
            f"{wrong} of {mine.numel()} differ, most at token {token}, row {int(self.rows[column])}: "
            f"{mine[token, column].item()} instead of {self.values[token, column].item()}"
        )


def sums_in_order(variant: Variant) -> bool:
    """Whether it adds as the reference does. FP16 MMAs do not, nor do warps that split K and have float sums."""
    splits_float_sums = variant.source == "w4a4_small.cu" and weight_group(variant.granularity) is not None
    return variant.format != "w4a16" and not splits_float_sums


def expected(
    variant: Variant, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, in_float64: bool = False
) -> Expected:
    """``in_float64``: what the reference that is matched to the bit is itself held to."""
    blocks = packed.n // 32
    chosen = torch.arange(blocks, device="cuda")
    if blocks > ROW_BLOCKS and packed.n * packed.k > 1 << 22:
        some = torch.randperm(blocks - 2, device="cuda", generator=generator(blocks))[: ROW_BLOCKS - 2]
        chosen = torch.cat((some, torch.tensor([blocks - 2, blocks - 1], device="cuda")))
    rows = (chosen[:, None] * 32 + torch.arange(32, device="cuda")).flatten()
    part = replace(
        packed,
        n=len(rows),
        data=packed.data.view(blocks, -1)[chosen].flatten(),
        row_scale=packed.row_scale[rows],
    )
    bias = None if bias is None else bias[rows]
    if sums_in_order(variant) and not in_float64:
        return Expected(reference_linear(x, part, bias), rows, exact=True)
    if not variant.then_fp16:
        return Expected(reference_linear64(x, part, bias), rows, exact=False)
    values = x.double() @ unpack(part).dequantised(x.dtype).double().T  # the weight that it writes out is rounded
    return Expected(values if bias is None else values + bias.double(), rows, exact=False)


def operands(variant: Variant, x: torch.Tensor, packed: PackedWeight) -> torch.Tensor | QuantisedActivations:
    """What the GEMM reads, with garbage in the place of tokens that only fill up its last tile."""
    kind = activation_kind(variant)
    if kind is None:
        return x
    ready = quantise(x, kind=kind, clip=packed.act_clip, hadamard=packed.hadamard)
    if kind in INT8_KINDS:
        halves = 1 if kind == "int8_wgmma" else 2
        tiles = ready.data.view(packed.k_padded // BLOCK_K, -(-ready.m // TOKEN_TILE), halves, TOKEN_TILE, -1)
        if ready.m % TOKEN_TILE:
            tiles[:, -1, :, ready.m % TOKEN_TILE :] = 0x81
    elif used := ready.m % BLOCK_TOKENS:
        blocks = ready.data.view(packed.k_padded // BLOCK_K, -(-ready.m // BLOCK_TOKENS), -1)[:, -1]
        blocks[:, :NIBBLE_BYTES].unflatten(1, (BLOCK_TOKENS, -1))[:, used:] = 0x81
        groups = (blocks.shape[1] - NIBBLE_BYTES) // (4 * BLOCK_TOKENS)
        scales = blocks[:, NIBBLE_BYTES:].unflatten(1, (groups, 2, 4, 2, 2, 4)).transpose(3, 4)  # pair, tile, c, e
        scales[:, :, torch.arange(BLOCK_TOKENS, device="cuda").view(2, 2, 4, 2) >= used] = 0xFF  # NaN
    return ready


def launched_twice(
    x: torch.Tensor | QuantisedActivations,
    packed: PackedWeight,
    pick: tuple[Variant, Tile],
    bias: torch.Tensor | None,
    m: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """y [M, N]; both times into NaN, with equal bits, and nothing written behind it."""
    found = []
    for _ in range(2):
        buffer = torch.full((m + SPARE, packed.n), torch.nan, dtype=dtype, device="cuda")
        gemm(x, packed, *pick, bias, out=buffer[:m], dtype=dtype)
        assert buffer[m:].isnan().all(), f"{pick[1].name}: wrote beyond M = {m}"
        found.append(buffer[:m])
    assert torch.equal(found[0].view(torch.int16), found[1].view(torch.int16)), f"{pick[1].name}: differs from itself"
    return found[0]


@EACH
def test_every_tile_for_every_number_of_tokens(variant: Variant) -> None:
    seen = set()
    for n, k in ((416, 640), (32, 128)):
        packed = random_packed(n, k, variant.format, variant.granularity, "cuda", generator(n))
        for m in legal_tokens(variant, n, k):
            x, bias = normal(m, k, seed=m), normal(n, seed=n)
            wanted, ready = expected(variant, x, packed, bias), operands(variant, x, packed)
            for tile in legal_tiles(variant, m, n, k):
                y = launched_twice(ready, packed, (variant, tile), bias, m, x.dtype)
                wanted.check(y, f"{variant.name} {tile.name}, M = {m}, N = {n}, K = {k}")
                seen.add(tile)
    assert seen == set(tiles_here(variant))


@TWO_LEVELS
def test_a_short_last_group_whatever_lies_beyond_it(variant: Variant) -> None:
    """Its padding as packed, and with codes of 15, which under many scales leave their bytes."""
    for n, k in ((96, 32), (416, 576), (96, 1088), (32, 608)):
        packed = random_packed(n, k, variant.format, variant.granularity, "cuda", generator(k))
        spoilt = replace(packed, data=packed.data.clone())
        last = spoilt.data.view(n // 32, -1, block_bytes(variant.granularity))[:, -1, :NIBBLE_BYTES]
        steps = last.unflatten(1, (2, 2, 32, 2, 8))  # tile, half, lane, step of 32, its bytes
        for step in range(k % BLOCK_K // 32, BLOCK_K // 32):
            steps[:, :, step // 2, :, step % 2] = 0xFF
        for m in legal_tokens(variant, n, k):
            x, bias = normal(m, k, seed=m), normal(n, seed=n)
            wanted, ready = expected(variant, x, packed, bias), operands(variant, x, packed)
            for tile in legal_tiles(variant, m, n, k):
                for weight, what in ((packed, "as packed"), (spoilt, "spoilt")):
                    y = launched_twice(ready, weight, (variant, tile), bias, m, x.dtype)
                    wanted.check(y, f"{variant.name} {tile.name}, M = {m}, N = {n}, K = {k}, padding {what}")


@EACH
def test_every_tile_with_more_rows_than_the_sms_hold_at_once(variant: Variant) -> None:
    """What a CTA keeps from its first row group must not reach the next; the last is short."""
    most = max(dict(tile.parameters).get("rows", 0) for tile in variant.tiles)
    n, k = most * chip(DEVICE).sm_count + 32, 384
    packed = random_packed(n, k, variant.format, variant.granularity, "cuda", generator(n))
    for m in legal_tokens(variant, n, k):
        if m > MANY_ROWS_TOKENS:
            continue
        x = normal(m, k, seed=m)
        wanted, ready = expected(variant, x, packed, None), operands(variant, x, packed)
        for tile in legal_tiles(variant, m, n, k):
            y = launched_twice(ready, packed, (variant, tile), None, m, x.dtype)
            wanted.check(y, f"{variant.name} {tile.name}, M = {m}, N = {n}, K = {k}")


@dataclass(frozen=True)
class Case:
    n: int
    k: int
    m: int
    dtype: torch.dtype
    bias: bool
    hadamard: int | None
    clip: float
    magnitude: float


def random_case(variant: Variant, rng: random.Random) -> Case:
    whole = None if variant.granularity in TWO_LEVEL else GROUP[variant.granularity]
    step = BLOCK_K if variant.format == "w4a16" else whole or 32
    while True:
        n = 32 * rng.choice((1, 2, 3, 5, 7, 13, 21, 32, 42, 64))
        k = BLOCK_K * rng.choice((0, 1, 2, 3, 5, 8, 16, 17, 32, 33, 224)) + step * rng.randrange(BLOCK_K // step)
        m = rng.choice(legal_tokens(variant, n, max(k, step)))
        if k and m * n * k <= LARGEST_RANDOM:
            break
    rotated = variant.format != "w4a16"
    return Case(
        n=n,
        k=k,
        m=m,
        dtype=rng.choice((torch.float16, torch.bfloat16))
        if legal_tiles(variant, m, n, k, torch.bfloat16)
        else torch.float16,
        bias=rng.random() < 0.5,
        hadamard=128 if rotated and k % 128 == 0 and rng.random() < 0.3 else None,
        clip=rng.choice((1.0, 0.9, 0.7)) if rotated else 1.0,
        magnitude=rng.choice((1e-3, 1.0, 30.0)),
    )


@cache
def random_cases(variant: Variant) -> list[Case]:
    rng = random.Random(variant.name)
    return [random_case(variant, rng) for _ in range(RANDOM_CASES)]


@EACH
def test_random_cases(variant: Variant) -> None:
    for number, case in enumerate(random_cases(variant)):
        packed = random_packed(case.n, case.k, variant.format, variant.granularity, "cuda", generator(number))
        packed = replace(packed, hadamard=case.hadamard, act_clip=case.clip)
        x = (normal(case.m, case.k, seed=number, dtype=torch.float32) * case.magnitude).to(case.dtype)
        bias = normal(case.n, seed=number, dtype=case.dtype) if case.bias else None
        tiles = legal_tiles(variant, case.m, case.n, case.k, case.dtype)
        tile = tiles[number % len(tiles)]
        y = launched_twice(x, packed, (variant, tile), bias, case.m, case.dtype)
        what = f"{variant.name} {tile.name}, {case}"
        expected(variant, x, packed, bias).check(y, what)
        if variant.format == "w4a4":
            expected(variant, x, packed, bias, in_float64=True).check(y, f"{what}, float64")


@EACH
def test_the_shapes_of_real_models(variant: Variant) -> None:
    for index, (n, k) in enumerate(REAL):
        packed = random_packed(n, k, variant.format, variant.granularity, "cuda", generator(index))
        tokens = [m for m in legal_tokens(variant, n, k) if m * max(n, k) <= 1 << 26]
        for m in {tokens[0], tokens[index % len(tokens)], tokens[-1]}:
            x = normal(m, k, seed=m)
            y = apex.linear(x, packed, variant=variant)
            expected(variant, x, packed, None).check(y, f"{variant.name} by default, M = {m}, N = {n}, K = {k}")


# Steps of 16, of 1/16 and of ten halves, which tie; zeros at both ends.
SIXTEENTHS_AND_ZERO = ((255, 0), (255, 15), (0, 254), (0, 0), (87, 0), (87, 172))


def extreme_weights(variant: Variant, n: int, k: int) -> Iterator[tuple[str, PackedWeight]]:
    """Codes at their limits under scales at theirs."""
    codes = {
        "all -8": torch.zeros(n, k, dtype=torch.uint8),
        "all +7": torch.full((n, k), 15, dtype=torch.uint8),  # all nibbles 0xF
        "alternating": (torch.arange(k) % 2 * 15).to(torch.uint8).expand(n, k).contiguous(),
        "one hot": torch.nn.functional.one_hot(torch.arange(n) % k, k).to(torch.uint8) * 7 + 8,
    }
    group = weight_group(variant.granularity)
    row_scale = torch.full((n,), 2.0**-16)
    for name, code in codes.items():
        if variant.granularity in TWO_LEVEL:
            integers = ((16, 0), (16, 15), (1, 240), (1, 0))
            for scale, zero in integers if variant.granularity == "g128i" else SIXTEENTHS_AND_ZERO:
                of_group = torch.full((n, k // 128), scale, dtype=torch.uint8)
                offset = torch.full_like(of_group, zero)
                whole = QuantisedWeight(variant.granularity, code, row_scale, integer_scale=of_group, zero=offset)
                yield f"{name}, scale {scale}, zero {zero}", pack_quantised(whole, format=variant.format)
        elif group:
            for scale in (1.0, 2.0**-24):
                of_group = torch.full((n, k // group), scale, dtype=torch.float16)
                whole = QuantisedWeight(variant.granularity, code, row_scale, group_scale=of_group)
                yield f"{name}, scale {scale}", pack_quantised(whole, format=variant.format)
        else:
            yield name, pack_quantised(QuantisedWeight(variant.granularity, code, row_scale), format=variant.format)


@EACH
def test_extreme_values(variant: Variant) -> None:
    n, k = 96, 4096
    ones = torch.ones(k, dtype=torch.float16, device="cuda")
    signs = 1 - 2 * (torch.arange(k, device="cuda") % 2).half()
    hot = torch.nn.functional.one_hot(torch.tensor(k - 1, device="cuda"), k).half()
    x = torch.stack((ones, -ones, signs, -signs, hot, -hot, 0 * ones, 60000 * hot, 6e-8 * ones))
    for name, on_cpu in extreme_weights(variant, n, k):
        packed = on_cpu.to("cuda")
        wanted, ready = expected(variant, x, packed, None), operands(variant, x, packed)
        for tile in legal_tiles(variant, len(x), n, k):
            y = launched_twice(ready, packed, (variant, tile), None, len(x), x.dtype)
            wanted.check(y, f"{variant.name} {tile.name}, {name}")


@EACH
def test_a_token_that_is_not_finite_spoils_itself_alone(variant: Variant) -> None:
    packed = random_packed(64, 512, variant.format, variant.granularity, "cuda", generator(3))
    x = normal(5, 512, seed=4)
    clean = apex.linear(x, packed, variant=variant)
    x[1, 17], x[3, 511] = torch.nan, torch.inf
    y = apex.linear(x, packed, variant=variant)
    assert torch.equal(y[[0, 2, 4]], clean[[0, 2, 4]])
    assert not y[[1, 3]].isfinite().any()


@pytest.mark.parametrize("m", [16, 64])
@EACH
def test_a_captured_call_replays_with_new_activations(variant: Variant, m: int) -> None:
    packed = random_packed(416, 1024, variant.format, variant.granularity, "cuda", generator(5))
    x, bias = normal(m, 1024, seed=6), normal(416, seed=7)
    apex.linear(x, packed, bias, variant=variant)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = apex.linear(x, packed, bias, variant=variant)
    for seed in (8, 9):
        x.copy_(normal(m, 1024, seed=seed))
        captured.fill_(torch.nan)
        graph.replay()
        assert torch.equal(captured, apex.linear(x, packed, bias, variant=variant))


@pytest.mark.parametrize("m", [8, 64])
@EACH
def test_a_chain_with_programmatic_dependent_launch_computes_the_same(variant: Variant, m: int) -> None:
    n = k = 1024
    start = normal(m, k, seed=10)
    tile = catalogue.safe_tile(variant, Shape(m, n, k), chip(DEVICE))
    plain, weights = [start], []
    for seed in range(12):
        packed = random_packed(n, k, variant.format, variant.granularity, "cuda", generator(seed))
        spread = gemm(plain[-1], packed, variant, tile).float().std()
        weights.append(replace(packed, row_scale=packed.row_scale / spread))  # or twelve layers leave fp16's range
        plain.append(gemm(plain[-1], weights[-1], variant, tile))
        assert 0.9 < plain[-1].float().std() < 1.1
    torch.cuda.synchronize()
    overlapped = [start]
    for packed in weights:
        overlapped.append(gemm(overlapped[-1], packed, variant, tile, pdl=True))
    for one, other in zip(plain, overlapped, strict=True):
        assert torch.equal(one.view(torch.int16), other.view(torch.int16))


def test_nothing_waits_and_the_current_stream_is_used() -> None:
    packed, x = random_packed(416, 1024, "w4a8", "g128i", "cuda", generator(11)), normal(16, 1024, seed=12)
    wanted = apex.linear(x, packed)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        apex.linear(x, packed)  # its memory is there from now on
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)  # some 30 ms: an unordered reader would see the zeros
            x2 = torch.zeros_like(x)
            x2.copy_(x)
            y = apex.linear(x2, packed)
            assert not side.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side.synchronize()
    assert torch.equal(y, wanted)


def test_the_safe_default_needs_no_arguments_and_takes_leading_dimensions() -> None:
    for format, granularity in (("w4a8", "channel"), ("w4a8", "g64"), ("w4a16", "g128"), ("w4a4", "a128i")):
        packed = random_packed(96, 512, format, granularity, "cuda", generator(13))
        x = normal(3, 29, 512, seed=14)
        y = apex.linear(x, packed)
        assert y.shape == (3, 29, 96)
        variant, _ = catalogue.default_choice(packed.format, packed.granularity, Shape(87, 96, 512), chip(DEVICE))
        expected(variant, x.view(87, 512), packed, None).check(y.view(87, 96), f"{format} {granularity}")
        assert apex.linear(x[:0], packed).shape == (0, 29, 96)
