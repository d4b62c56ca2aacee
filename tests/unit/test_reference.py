"""The reference against Python's own integers and fractions: exact sums, and fp32 steps rounded once each."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from apex4_probe.kernels import reference as reference_module  # noqa: E402
from apex4_probe.kernels.formats import GRANULARITIES, Format, Granularity, weight_group  # noqa: E402
from apex4_probe.kernels.hadamard import hadamard_transform, normalisation  # noqa: E402
from apex4_probe.kernels.packing import PackedWeight, pack, pack_quantised, random_packed, unpack  # noqa: E402
from apex4_probe.kernels.quantised_weight import QuantisedWeight  # noqa: E402
from apex4_probe.kernels.reference import (  # noqa: E402
    arrange_int4,
    arrange_int8,
    arrange_int8_wgmma,
    pack_int4,
    quantise_int4,
    quantise_int4_a128i,
    quantise_int8,
    reference_linear,
    reference_linear64,
)

EVERY: list[tuple[Format, Granularity]] = [(f, g) for f, granularities in GRANULARITIES.items() for g in granularities]
Tensor = Any
fp32 = np.float32


def generator(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


def activations(m: int, k: int, seed: int = 0, dtype: Any = torch.float16) -> Tensor:
    """Tokens of very different size, with an outlier channel."""
    random = generator(seed)
    x = torch.randn(m, k, generator=random) * torch.logspace(-2, 1, m)[:, None]
    x[:, 5] *= 12
    return x.to(dtype)


def rounded(value: Fraction, digits: int = 24, lowest: int = -149) -> Fraction:
    """To ``digits`` bits, halves to even, no exponent below ``lowest``: fp32 unless said otherwise."""
    if value == 0:
        return value
    exponent = math.floor(math.log2(abs(value)))
    exponent += (abs(value) >= Fraction(2) ** (exponent + 1)) - (abs(value) < Fraction(2) ** exponent)
    unit = Fraction(2) ** max(exponent - digits + 1, lowest)
    return round(value / unit) * unit


def fused(a: Fraction, b: Fraction, c: Fraction) -> Fraction:
    return rounded(a * b + c)


# ---- activation quantisers ------------------------------------------------------------------------------------------


def scalar_quantised(row: np.ndarray[Any, Any], clip: float, low: int, high: int) -> tuple[list[int], np.float32]:
    """One scale over ``row`` (fp32), step by step in NumPy's fp32."""
    a = np.abs(row).max() * fp32(clip)
    inverse = fp32(high) / a if a > 0 else fp32(0)
    return [int(min(max(np.rint(value * inverse), low), high)) for value in row], a / fp32(high)


def scalar_a128i(row: np.ndarray[Any, Any], clip: float) -> tuple[list[int], np.float32, list[int]]:
    groups = [row[first : first + 128] for first in range(0, len(row), 128)]
    largest = [np.abs(group).max() * fp32(clip) for group in groups]
    t = max(largest) / fp32(112)
    q, scales = [], []
    for group, a in zip(groups, largest, strict=True):
        s = fp32(min(max(np.ceil(a / (fp32(7) * t)), 1), 16))
        inverse = fp32(1) / (s * t)
        q += [int(min(max(np.rint(value * inverse), -8), 7)) for value in group]
        scales.append(int(s))
    return q, t, scales


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("clip", [1.0, 0.8, 0.333])
@pytest.mark.parametrize("hadamard", [None, 64, 256])
def test_every_step_of_the_quantisers(dtype: Any, clip: float, hadamard: int | None) -> None:
    m, k = 5, 512
    x = activations(m, k, seed=1, dtype=dtype)
    values = (hadamard_transform(x.float(), hadamard) if hadamard else x.float()).numpy()
    factor = fp32(normalisation(hadamard)) if hadamard else fp32(1)
    q8, scale8, row_sum = quantise_int8(x, clip, hadamard)
    q4, scale4 = quantise_int4(x, clip, hadamard)
    q32, scale32 = quantise_int4(x, clip, hadamard, group=32)
    q128i, scale128i, group_scale = quantise_int4_a128i(x, clip, hadamard)
    assert (row_sum.dtype, group_scale.dtype, scale8.dtype) == (torch.int32, torch.uint8, torch.float32)
    for i in range(m):
        wanted, scale = scalar_quantised(values[i], clip, -127, 127)
        assert q8[i].tolist() == wanted and scale8[i].item() == scale * factor and row_sum[i].item() == sum(wanted)
        wanted, scale = scalar_quantised(values[i], clip, -8, 7)
        assert q4[i].tolist() == wanted and scale4[i].item() == scale * factor
        for j in range(k // 32):
            wanted, scale = scalar_quantised(values[i, 32 * j : 32 * j + 32], clip, -8, 7)
            assert q32[i, 32 * j : 32 * j + 32].tolist() == wanted and scale32[i, j].item() == scale * factor
        wanted, scale, scales = scalar_a128i(values[i], clip)
        assert (q128i[i].tolist(), group_scale[i].tolist()) == (wanted, scales)
        assert scale128i[i].item() == scale * factor


def test_int8_by_hand() -> None:
    x = torch.zeros(2, 64)
    x[0, :6] = torch.tensor([127.0, -127.0, 0.5, 1.5, -2.5, 3.0])  # scale 1; halves go to the even neighbour
    x[1, :3] = torch.tensor([254.0, -200.0, 1.0])
    q, scale, row_sum = quantise_int8(x)
    assert q[0, :7].tolist() == [127, -127, 0, 2, -2, 3, 0]
    assert scale.tolist() == [1.0, 2.0]
    assert row_sum.tolist() == [127 - 127 + 2 - 2 + 3, 127 - 100 + 0]
    q, scale, _ = quantise_int8(x, clip=0.5)
    assert q[1, :3].tolist() == [127, -127, 1]  # clipped at both ends
    assert scale[1].item() == 1.0


def test_int4_uses_minus_eight_only_where_clipped() -> None:
    x = torch.zeros(1, 64)
    x[0, :3] = torch.tensor([14.0, -14.0, 5.0])
    assert quantise_int4(x)[0][0, :3].tolist() == [7, -7, 2]
    q, scale = quantise_int4(x, clip=0.5)
    assert (q[0, :3].tolist(), scale.tolist()) == ([7, -8, 5], [1.0])


def test_integer_group_scales_stay_within_1_and_16() -> None:
    x = torch.zeros(1, 128 * 5)
    for j, largest in enumerate([112.0, 56.0, 7.0, 0.01, 0.0]):
        x[0, 128 * j] = largest
    q, scale, group_scale = quantise_int4_a128i(x)
    assert scale.tolist() == [1.0]
    assert group_scale.tolist() == [[16, 8, 1, 1, 1]]
    assert q[0, ::128].tolist() == [7, 7, 7, 0, 0]
    generous = quantise_int4_a128i(activations(64, 1024, seed=2))[2]
    assert int(generous.min()) >= 1 and generous.amax(1).unique().tolist() == [16]


def test_integer_group_scales_lose_little_beside_float_ones() -> None:
    x = activations(64, 2048, seed=3, dtype=torch.float32)
    x[:, 5] /= 12
    x *= (torch.rand(1, 16, generator=generator(4)) + 0.2).repeat_interleave(128, 1)

    def error(found: Tensor) -> float:
        return float(((found - x).norm(dim=1) / x.norm(dim=1)).mean())

    q, scale, integer = quantise_int4_a128i(x)
    of_integers = error(q * integer.float().repeat_interleave(128, 1) * scale[:, None])
    q, scale = quantise_int4(x, group=128)
    of_floats = error(q * scale.repeat_interleave(128, 1))
    q, scale = quantise_int4(x)
    assert of_floats < of_integers < 1.1 * of_floats < 0.8 * error(q * scale[:, None])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("hadamard", [None, 64])
def test_a_token_that_is_not_finite_poisons_itself_alone(bad: float, hadamard: int | None) -> None:
    x = activations(3, 256, seed=5)
    clean = quantise_int8(x, hadamard=hadamard)
    x[1, 200] = bad
    q, scale, row_sum = quantise_int8(x, hadamard=hadamard)
    assert scale.isnan().tolist() == [False, True, False]
    assert row_sum[1].item() == 0 and q[1].unique().tolist() == [0]
    for found, wanted in zip((q, scale, row_sum), clean, strict=True):
        assert torch.equal(found[[0, 2]], wanted[[0, 2]])
    assert quantise_int4(x, hadamard=hadamard)[1].isnan().tolist() == [False, True, False]
    assert quantise_int4(x, hadamard=hadamard, group=128)[1].isnan().tolist() == [
        [False] * 2,
        [False, True],
        [False] * 2,
    ]
    q, scale, group_scale = quantise_int4_a128i(x, hadamard=hadamard)
    assert scale.isnan().tolist() == [False, True, False]
    assert q[1].unique().tolist() == [0] and group_scale[1].tolist() == [1, 1]


def test_a_token_of_zeros_and_one_next_to_zero() -> None:
    x = torch.zeros(2, 128)
    x[1, 3] = 1e-38  # 127 / x overflows
    for q, scale, *_ in (quantise_int8(x), quantise_int4(x), quantise_int4(x, group=64), quantise_int4_a128i(x)):
        assert q.unique().tolist() == [0]
        assert scale[0].unique().tolist() == [0.0] and float(scale.max()) < 1e-38
    assert quantise_int4_a128i(x)[2].tolist() == [[1], [16]]


@pytest.mark.parametrize("size", [64, 512, 4096])
def test_the_transform_is_its_own_inverse_and_exact_on_integers(size: int) -> None:
    x = torch.randint(-100, 101, (3, 4096), generator=generator(6)).float()
    once = hadamard_transform(x, size)
    assert torch.equal(hadamard_transform(once, size), x * size)
    assert once[0, 0].item() == x[0, :size].sum().item()
    assert once[0, 1].item() == (x[0, 0:size:2] - x[0, 1:size:2]).sum().item()
    assert once[0, size // 2].item() == (x[0, : size // 2] - x[0, size // 2 : size]).sum().item()


@pytest.mark.parametrize("arguments", [{"hadamard": 48}, {"hadamard": 1024}, {"clip": 0.0}, {"clip": 1.5}])
def test_quantisers_refuse_what_packing_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"hadamard must be|act_clip must lie"):
        quantise_int8(torch.ones(2, 512), **arguments)


# ---- operand order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k"), [(1, 128), (8, 256), (13, 320), (17, 96)])
def test_int8_bytes_lie_where_the_layout_says(m: int, k: int) -> None:
    q = torch.randint(-127, 128, (m, k), generator=generator(7)).to(torch.int8)
    tiles, blocks = -(-m // 8), -(-k // 128)
    data = arrange_int8(q)
    assert data.dtype == torch.uint8 and data.shape == (blocks * tiles * 1024,)
    found = data.numpy().view(np.int8)
    seen = set()
    for kb, mt, half, g, c, word, byte in np.ndindex(blocks, tiles, 2, 8, 4, 4, 4):
        s, h = divmod(word, 2)
        token = 8 * mt + g
        column = 128 * kb + 64 * half + 32 * s + 8 * c + 4 * h + (0, 2, 1, 3)[byte]
        at = (((((kb * tiles + mt) * 2 + half) * 8 + g) * 4 + c) * 4 + word) * 4 + byte
        seen.add(at)
        if token < m:
            assert found[at] == (q[token, column].item() if column < k else 0)
    assert len(seen) == data.numel()


@pytest.mark.parametrize(
    ("m", "k", "group"), [(5, 160, None), (70, 384, None), (35, 256, 128), (33, 192, 64), (3, 96, 32)]
)
@pytest.mark.parametrize("integer", [False, True])
def test_int4_activations_lie_where_the_layout_says(m: int, k: int, group: int | None, integer: bool) -> None:
    random = generator(3)
    q = torch.randint(-8, 8, (m, k), generator=random, dtype=torch.int8)
    scale = None
    if group is not None:
        scale = torch.rand(m, k // group, generator=random) + 0.1
        scale = (scale * 15).to(torch.uint8) if integer else scale
    data = arrange_int4(q, scale).numpy()
    k_blocks, token_blocks = -(-k // 128), -(-m // 32)
    groups = 128 // group if group else 0
    data = data.reshape(k_blocks, token_blocks, 2048 + groups * 32 * 4)
    seen = set()
    for j, g, c, word, nibble in np.ndindex(4, 8, 4, 4, 8):
        half, s = divmod(word, 2)
        token, column = 8 * j + g, 64 * half + 32 * s + 8 * c + nibble
        seen.add((token, column))
        at = (j * 32 + 4 * g + c) * 16 + word * 4 + nibble // 2
        found = data[:, :, at] >> (4 * (nibble % 2)) & 15
        for kb, mb in np.ndindex(k_blocks, token_blocks):
            if 32 * mb + token < m:
                wanted = q[32 * mb + token, 128 * kb + column].item() if 128 * kb + column < k else 0
                assert found[kb, mb] == wanted & 15
    assert len(seen) == 32 * 128
    if scale is None or group is None:
        return
    words = data[..., 2048:].copy().view(np.int32 if integer else fp32)
    for kb, mb, i, pair, c, tile, e in np.ndindex(k_blocks, token_blocks, groups, 2, 4, 2, 2):
        token, column = 32 * mb + 16 * pair + 8 * tile + 2 * c + e, kb * groups + i
        if token < m:
            wanted = scale[token, column].item() if column < k // group else 0
            assert words[kb, mb, (((i * 2 + pair) * 4 + c) * 2 + tile) * 2 + e] == wanted


@pytest.mark.parametrize(("m", "k"), [(1, 128), (8, 256), (13, 320), (17, 96)])
def test_int8_bytes_lie_where_the_layout_for_wgmma_says(m: int, k: int) -> None:
    q = torch.randint(-127, 128, (m, k), generator=generator(7)).to(torch.int8)
    tiles, blocks = -(-m // 8), -(-k // 128)
    data = arrange_int8_wgmma(q)
    assert data.dtype == torch.uint8 and data.shape == (blocks * tiles * 1024,)
    found = data.numpy().view(np.int8)
    seen = set()
    for kb, mt, g, i, h, c, byte in np.ndindex(blocks, tiles, 8, 4, 2, 4, 4):
        token, column = 8 * mt + g, 128 * kb + 32 * i + 8 * c + 4 * h + (0, 2, 1, 3)[byte]
        at = (((kb * tiles + mt) * 8 + g) * 8 + ((2 * i + h) ^ g)) * 16 + 4 * c + byte
        seen.add(at)
        if token < m:
            assert found[at] == (q[token, column].item() if column < k else 0)
    assert len(seen) == data.numel()


def test_int4_nibbles_are_twos_complement_lower_k_first() -> None:
    q = torch.tensor([[-8, 7, 0, -1, 3, -4]], dtype=torch.int8)
    assert pack_int4(q).tolist() == [[0x78, 0xF0, 0xC3]]


# ---- the linear layer -----------------------------------------------------------------------------------------------


def exact_outputs(x: Tensor, packed: PackedWeight, bias: Tensor | None, picks: list[tuple[int, int]]) -> list[Fraction]:
    """Some outputs (token, row) before the output type: Python's integer sums under fp32 steps of Fractions."""
    weight, m = unpack(packed), x.shape[0]
    clip, hadamard, group = packed.act_clip, packed.hadamard, weight_group(packed.granularity)
    values, token_scale, of_group = x.tolist(), [1.0] * m, None
    if packed.format == "w4a8":
        q, scale, _ = quantise_int8(x, clip, hadamard)
        values, token_scale = q.tolist(), scale.tolist()
    elif packed.granularity == "a128i":
        q, scale, integer = quantise_int4_a128i(x, clip, hadamard)
        values, token_scale = (q * integer.int().repeat_interleave(128, 1)).tolist(), scale.tolist()
    elif packed.format == "w4a4":
        q, scale = quantise_int4(x, clip, hadamard, group)
        values = q.tolist()
        token_scale, of_group = (scale.tolist(), None) if group is None else (token_scale, scale.tolist())

    def output(i: int, n: int) -> Fraction:
        products = [Fraction(a) * b for a, b in zip(values[i], weight.integers()[n].tolist(), strict=True)]
        if weight.group_scale is None or group is None:
            total = rounded(sum(products, Fraction(0)))
        else:
            total = Fraction(0)
            for j, group_scale in enumerate(weight.group_scale[n].tolist()):
                part = rounded(sum(products[j * group : (j + 1) * group], Fraction(0)))
                if of_group is None:
                    total = fused(part, Fraction(group_scale), total)
                else:
                    total = fused(rounded(part * Fraction(group_scale)), Fraction(of_group[i][j]), total)
        scale = rounded(Fraction(token_scale[i]) * Fraction(weight.row_scale[n].item()))
        return fused(total, scale, Fraction(0 if bias is None else bias[n].item()))

    return [output(i, n) for i, n in picks]


OUTPUT = {torch.float16: (11, -24), torch.bfloat16: (8, -133)}  # digits and smallest exponent


@pytest.mark.parametrize(("format", "granularity"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_are_exact_sums_under_fp32_steps(format: Format, granularity: Granularity, dtype: Any) -> None:
    m, n, k = 4, 32, 256
    weight = torch.randn(n, k, generator=generator(8)) * torch.logspace(-2, 0, n)[:, None]
    settings: dict[str, Any] = {} if format == "w4a16" else {"hadamard": 128, "act_clip": 0.9}
    packed = pack(weight, format=format, granularity=granularity, **settings)
    x = activations(m, k, seed=9, dtype=dtype)
    for bias in (None, torch.randn(n, generator=generator(10)).to(dtype)):
        y = reference_linear(x, packed, bias)
        assert y.dtype == dtype and y.shape == (m, n)
        picks = [(i, row) for i in range(m) for row in range(i, n, 7)]
        wanted = [rounded(value, *OUTPUT[dtype]) for value in exact_outputs(x, packed, bias, picks)]
        assert [Fraction(y[pick].item()) for pick in picks] == wanted


@pytest.mark.parametrize(("format", "granularity"), EVERY)
def test_float64_is_within_one_rounding_of_the_output(format: Format, granularity: Granularity) -> None:
    packed = random_packed(64, 1024, format, granularity, "cpu", generator(11))
    for dtype, digits in ((torch.float16, 11), (torch.bfloat16, 8)):
        x = activations(16, 1024, seed=12, dtype=dtype)
        bias = torch.randn(64, generator=generator(13)).to(dtype)
        exact = reference_linear64(x, packed, bias)
        assert exact.dtype == torch.float64
        error = (reference_linear(x, packed, bias).double() - exact).abs()
        # Half a unit of the output, and what fp32 sums of a token's products may lose where they cancel.
        size = x.double().abs().amax(1)[:, None] * unpack(packed).dequantised().abs().sum(1)
        assert bool((error <= exact.abs() * 2.0**-digits * 1.001 + size * 2.0**-22 + 2.0**-25).all())


@pytest.mark.parametrize(("format", "granularity"), EVERY)
def test_the_layer_approximates_the_unquantised_one(format: Format, granularity: Granularity) -> None:
    weight = torch.randn(64, 512, generator=generator(14))
    x = activations(32, 512, seed=15)
    settings: dict[str, Any] = {} if format == "w4a16" else {"hadamard": 512}
    packed = pack(weight, format=format, granularity=granularity, **settings)
    wanted = x.double() @ weight.double().T
    found = reference_linear64(x, packed)
    assert float((found - wanted).norm() / wanted.norm()) < (0.22 if format == "w4a4" else 0.16)


def widened_as_kernels_do(word: int, granularity: Granularity, scale: int, zero: int) -> int:
    """The word of four unsigned bytes that an INT8 MMA reads, of four codes: ``kernels/cuda/widen.cuh``."""
    if granularity == "g128i":
        return (word * scale + zero * 0x01010101) & 0xFFFFFFFF
    codes = [word >> 8 * byte & 15 for byte in range(4)]
    return sum((round(Fraction(code * (scale + 1), 16) + zero) & 255) << 8 * i for i, code in enumerate(codes))


@pytest.mark.parametrize("granularity", ["g128i", "g128r"])
@pytest.mark.parametrize("k", [32, 64, 576, 608])
def test_a_short_last_group_multiplies_as_packed_whatever_lies_beyond_it(granularity: Granularity, k: int) -> None:
    """Packed words, widened and multiplied as kernels do it, with the padding as packed and at its worst.

    At its worst: codes of 15 under any scale, whose bytes carry. K is a multiple of 32, so they carry within words that
    are padding throughout, and activations are zeros there.
    """
    packed = random_packed(32, k, "w4a8", granularity, "cpu", generator(40))
    x = activations(3, k, seed=41)
    weight = unpack(packed)
    q, token_scale, row_sum = quantise_int8(x)
    exact = q.long() @ weight.integers().long().T
    wanted = (q.double() * token_scale.double()[:, None]) @ weight.dequantised().T
    assert torch.equal(reference_linear64(x, packed), wanted)
    f = reference_module._accumulated(reference_module._activations(x, packed), weight)
    assert torch.equal(f, exact.to(torch.float32))

    k_blocks = packed.k_padded // 128
    tokens = arrange_int8(q).numpy().view(np.int8).reshape(k_blocks, 2, 8, 4, 4, 4)  # kb half g c word byte
    full = packed.data.view(k_blocks, -1).numpy().copy()
    worst = full.copy()
    nibbles = worst[-1, :2048].reshape(2, 2, 32, 2, 8)  # tile half lane step, its 8 bytes
    for step in range(k % 128 // 32, 4):
        nibbles[:, step // 2, :, step % 2] = 0xFF
    assert not np.array_equal(worst, full)
    for blocks in (full, worst):
        for row in (0, 7, 8, 21, 31):
            tile, r, g = row // 16, row // 8 % 2, row % 8
            sums = np.zeros(3, dtype=np.int64)
            for kb in range(k_blocks):
                scale, zero = blocks[kb, 2048 + (tile * 8 + g) * 4 + 2 * r :][:2].tolist()
                words = blocks[kb, :2048].view(np.uint32).reshape(2, 2, 8, 4, 4)[tile, :, g]  # half c word
                for half, c, word in np.ndindex(2, 4, 4):
                    codes = int(words[half, c, word]) >> 4 * r & 0x0F0F0F0F
                    wide = widened_as_kernels_do(codes, granularity, scale, zero)
                    of_weight = np.array([wide >> 8 * byte & 255 for byte in range(4)])
                    sums += tokens[kb, half, :3, c, word].astype(np.int64) @ of_weight
            assert (sums - 128 * row_sum.numpy()).tolist() == exact[:, row].tolist()


@pytest.mark.parametrize("fill", ["lowest", "highest", "alternating", "one hot"])
@pytest.mark.parametrize(
    ("format", "granularity"), [("w4a8", "channel"), ("w4a8", "g128i"), ("w4a8", "g128r"), ("w4a4", "a128i")]
)
def test_the_longest_rows_of_extreme_values_are_exact(format: Format, granularity: Granularity, fill: str) -> None:
    k = 65536
    codes = {
        "lowest": torch.zeros(k), "highest": torch.full((k,), 15.0), "alternating": torch.arange(k) % 2 * 15.0,
        "one hot": torch.where(torch.arange(k) == 777, 15.0, 8.0),
    }[fill].to(torch.uint8).repeat(32, 1)  # fmt: skip
    groups = torch.ones(32, k // 128, dtype=torch.uint8)
    largest = {"g128i": (groups * 16, groups * 15), "g128r": (groups * 255, groups * 15)}
    integers = largest.get(granularity, (None, None))
    weight = QuantisedWeight(granularity, codes, torch.ones(32), None, *integers)
    packed = pack_quantised(weight, format=format)
    x = torch.where(torch.arange(k) % 2 == 0, 1.0, -1.0).half()[None].repeat(2, 1)
    x[1] = -1.0
    y = reference_linear64(x, packed)
    low, high = weight.integers().min().item(), weight.integers().max().item()
    even_minus_odd, minus_all = {
        "lowest": (0, -low * k), "highest": (0, -high * k),
        "alternating": ((low - high) * k // 2, -(low + high) * k // 2),
        "one hot": (-(high - low), -low * k - (high - low)),
    }[fill]  # fmt: skip
    if format == "w4a8":
        q, _, _ = quantise_int8(x)
        assert q.unique().tolist() == [-127, 127]
    else:
        q, _, integer = quantise_int4_a128i(x)
        assert q.unique().tolist() == [-7, 7] and integer.unique().tolist() == [16]
    unit = 127 if format == "w4a8" else 112
    assert y[:, 0].tolist() == pytest.approx([even_minus_odd, minus_all], rel=1e-6)
    exact = [even_minus_odd * unit, minus_all * unit]
    assert max(map(abs, exact)) < 2**31
    f = reference_module._accumulated(reference_module._activations(x, packed), weight)
    assert f[:, 31].tolist() == [float(fp32(value)) for value in exact]


def test_sixteen_times_the_sum_under_a_sixteenth_of_the_scale_is_the_same() -> None:
    """Kernels widen codes times 16 and take row_scale / 16."""
    random = generator(16)
    total = torch.randint(-(2**27) + 1, 2**27, (4096,), generator=random)
    token, row = torch.rand(4096, generator=random) * 1e-3, torch.rand(4096, generator=random) * 1e-2
    bias = torch.randn(4096, generator=random)
    wanted = reference_module._fma(total.float(), token * row, bias)
    assert torch.equal(reference_module._fma((total * 16).float(), token * (row * 0.0625), bias), wanted)


def test_fused_multiply_add_rounds_once() -> None:
    random = np.random.default_rng(17)
    a, b, c = (
        random.standard_normal(3000).astype(fp32) * fp32(2.0) ** random.integers(-20, 20, 3000) for _ in range(3)
    )
    c[::2] = -(a * b)[::2] * (1 + random.integers(-3, 4, 1500).astype(fp32) * fp32(2.0**-23))  # cancellation
    # A hair off the middle between two fp32, by less than float64 keeps: rounded twice, these end at the even one.
    a[:2], b[:2] = 1 + 2.0**-23, 1 - 2.0**-23
    a[:2] *= fp32(2.0**-24), fp32(-(2.0**-25))
    c[:2] = 1 + 2.0**-23, 1 - 2.0**-24
    found = reference_module._fma(*(torch.from_numpy(values) for values in (a, b, c)))
    naive = (a.astype(np.float64) * b + c).astype(fp32)
    wanted = [float(fused(*(Fraction(float(v)) for v in triple))) for triple in zip(a, b, c, strict=True)]
    assert found.tolist() == wanted
    assert (naive.tolist()[0], wanted[0]) == (1 + 2.0**-22, 1 + 2.0**-23)
    assert (naive.tolist()[1], wanted[1]) == (1 - 2.0**-23, 1 - 2.0**-24)


def test_fused_multiply_add_of_what_is_not_finite() -> None:
    inf, nan = torch.inf, torch.nan
    a, b, c = (
        torch.tensor([inf, 1.0, nan, inf, 3e38]),
        torch.tensor([1.0, 1.0, 1.0, 0.0, 3e38]),
        torch.tensor([1.0, -inf, 1.0, 1.0, 0.0]),
    )
    found = reference_module._fma(a, b, c)
    assert found[[0, 1, 4]].tolist() == [inf, -inf, inf] and found[[2, 3]].isnan().all()


@pytest.mark.parametrize(("format", "granularity"), EVERY)
def test_pieces_change_nothing(format: Format, granularity: Granularity, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = random_packed(96, 256, format, granularity, "cpu", generator(18))
    x, bias = activations(5, 256, seed=19), torch.randn(96, generator=generator(20)).half()
    y, y64 = reference_linear(x, packed, bias), reference_linear64(x, packed, bias)
    monkeypatch.setattr(reference_module, "ELEMENTS_AT_ONCE", 256 * 7)
    assert torch.equal(reference_linear(x, packed, bias), y)
    assert torch.allclose(reference_linear64(x, packed, bias), y64, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("format", "granularity"), EVERY)
def test_tokens_do_not_know_of_each_other(format: Format, granularity: Granularity) -> None:
    packed = random_packed(32, 256, format, granularity, "cpu", generator(21))
    x = activations(6, 256, seed=22)
    y = reference_linear(x, packed)
    assert torch.equal(reference_linear(x[2:3], packed), y[2:3])
    x[4, 9] = torch.nan
    poisoned = reference_linear(x, packed)
    assert bool(poisoned[4].isnan().all())
    others = [0, 1, 2, 3, 5]
    assert torch.equal(poisoned[others], y[others])
    assert reference_linear(x[:0], packed).shape == (0, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_beyond_fp16_become_infinite(dtype: Any) -> None:
    packed = pack(torch.full((32, 128), 1000.0), format="w4a8", granularity="channel")
    y = reference_linear(torch.full((1, 128), 100.0, dtype=dtype), packed)
    assert bool(y.isinf().all()) == (dtype == torch.float16)


def test_parameters_carry_no_gradient() -> None:
    packed = random_packed(32, 128, "w4a8", "g128", "cpu", generator(23))
    x = torch.nn.Parameter(activations(2, 128))
    y = reference_linear(x, packed, torch.nn.Parameter(torch.ones(32, dtype=torch.float16)))
    assert not y.requires_grad


@pytest.mark.parametrize(
    ("x", "bias", "complaint"),
    [
        (torch.ones(2, 128), None, "x must be fp16 or bf16, not torch.float32"),
        (np.ones((2, 128), np.float16), None, r"x must be a torch\.Tensor, not ndarray"),
        (torch.tensor(1.0).half(), None, r"x must be \[\.\.\., 128\], the packed weight's K, not \[\]"),
        (torch.ones(2, 256).half(), None, r"x must be \[\.\.\., 128\], the packed weight's K, not \[2, 256\]"),
        (torch.ones(2, 128).half(), [1.0] * 32, r"bias must be a torch\.Tensor, not list"),
        (torch.ones(2, 128, device="meta").half(), None, "x must be on cpu like the packed weight, not on meta"),
        (torch.ones(2, 128).half(), torch.ones(32), r"bias must be torch.float16 \[32\] on cpu"),
        (torch.ones(2, 128).half(), torch.ones(31).half(), r"not torch.float16 \[31\] on cpu"),
        (torch.ones(2, 128).half(), torch.ones(32, device="meta").half(), r"not torch.float16 \[32\] on meta"),
    ],
)
def test_the_argument_that_is_wrong_is_named(x: Tensor, bias: Tensor | None, complaint: str) -> None:
    packed = random_packed(32, 128, "w4a8", "channel", "cpu", generator(24))
    for linear in (reference_linear, reference_linear64):
        with pytest.raises(ValueError, match=complaint):
            linear(x, packed, bias)
        with pytest.raises(ValueError, match="packed must be a PackedWeight, as pack returns it, not Tensor"):
            linear(torch.ones(2, 128).half(), torch.ones(32, 128))
        with pytest.raises(ValueError, match=r"packed\.layout_version is 3"):
            linear(torch.ones(2, 128).half(), replace(packed, layout_version=3))


@pytest.mark.parametrize("shape", [(256,), (1, 256), (2, 3, 256), (2, 0, 256)])
def test_leading_dimensions_stay(shape: tuple[int, ...]) -> None:
    packed = random_packed(32, 256, "w4a8", "g64", "cpu", generator(25))
    x = activations(6, 256, seed=26)[: math.prod(shape[:-1])].view(shape)
    for linear in (reference_linear, reference_linear64):
        y = linear(x, packed)
        assert y.shape == (*shape[:-1], 32)
        assert torch.equal(y.view(-1, 32), linear(x.view(-1, 256), packed))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("format", "granularity"), [pair for pair in EVERY if pair[0] != "w4a16"])
def test_cpu_and_gpu_agree_to_the_bit(format: Format, granularity: Granularity) -> None:
    weight = torch.randn(128, 1024, generator=generator(25))
    packed = pack(weight, format=format, granularity=granularity, hadamard=256, act_clip=0.9)
    x, bias = activations(33, 1024, seed=26), torch.randn(128, generator=generator(27)).half()
    here = reference_linear(x, packed, bias)
    there = reference_linear(x.cuda(), packed.to("cuda"), bias.cuda())
    assert torch.equal(there.cpu(), here)
