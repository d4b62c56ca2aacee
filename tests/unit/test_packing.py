"""Packed bytes against the layout's own words, one element at a time; round trips; what the quantiser costs."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from apex4_probe.kernels import quantised_weight as quantiser_module  # noqa: E402
from apex4_probe.kernels.formats import (  # noqa: E402
    GRANULARITIES,
    LAYOUT_VERSION,
    Format,
    Granularity,
    block_bytes,
    weight_group,
)
from apex4_probe.kernels.hadamard import hadamard_transform  # noqa: E402
from apex4_probe.kernels.packing import (  # noqa: E402
    LARGEST_K,
    PackedWeight,
    check_packed,
    pack,
    pack_quantised,
    random_packed,
    unpack,
)
from apex4_probe.kernels.quantised_weight import QuantisedWeight, check_quantised, quantise_weight  # noqa: E402

EVERY: list[tuple[Format, Granularity]] = [(f, g) for f, granularities in GRANULARITIES.items() for g in granularities]
ALL_GRANULARITIES: list[Granularity] = ["channel", "a128i", "g128", "g64", "g32", "g128i", "g128r"]
Tensor = Any


def generator(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


def random_weight(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=generator(seed))


def quantised(granularity: Granularity, codes: Tensor, seed: int = 0) -> QuantisedWeight:
    """Random legal scales under the given codes."""
    n, k = codes.shape
    random = generator(seed)
    group = weight_group(granularity)
    row_scale = torch.rand(n, generator=random) + 0.5
    if group is None:
        return QuantisedWeight(granularity, codes, row_scale)
    if granularity == "g128i":
        scale = torch.randint(1, 17, (n, -(-k // group)), generator=random)
        zero = (torch.rand(scale.shape, generator=random) * (256 - 15 * scale)).floor()
        return QuantisedWeight(granularity, codes, row_scale, None, scale.to(torch.uint8), zero.to(torch.uint8))
    if granularity == "g128r":
        scale = torch.randint(0, 256, (n, -(-k // group)), generator=random)
        zero = (torch.rand(scale.shape, generator=random) * (256 - (15 * (scale + 1) / 16).ceil())).floor()
        return QuantisedWeight(granularity, codes, row_scale, None, scale.to(torch.uint8), zero.to(torch.uint8))
    return QuantisedWeight(granularity, codes, row_scale, (1 - torch.rand(n, k // group, generator=random)).half())


def random_codes(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator(seed))


def one_hot(n: int, k: int) -> Tensor:
    codes = torch.full((n, k), 8, dtype=torch.uint8)
    codes[n // 2 + 1, k // 2 + 3] = 15
    return codes


def assert_same(found: QuantisedWeight, wanted: QuantisedWeight) -> None:
    assert found.granularity == wanted.granularity
    for name in ("codes", "row_scale", "group_scale", "integer_scale", "zero"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name


# ---- the layout, from formats.py and packing.py word by word ---------------------------------------------------------


def operand_order_element(word: int, byte: int, nibble: int, tile: int, half: int, lane: int) -> tuple[int, int]:
    """Row and k within a block, w4a8 and w4a16."""
    g, c = divmod(lane, 4)
    s, h = divmod(word, 2)
    return 16 * tile + 8 * nibble + g, 64 * half + 32 * s + 8 * c + 4 * h + (0, 2, 1, 3)[byte]


def mma_m16n8k64_element(word: int, byte: int, nibble: int, tile: int, half: int, lane: int) -> tuple[int, int]:
    """Row and k within a block, w4a4: PTX ISA, fragment A of mma.m16n8k64 with .s4, element i of thread ``lane``."""
    i = 8 * word + 2 * byte + nibble
    group_id, thread_in_group = lane >> 2, lane % 4
    row = group_id if i < 8 or 16 <= i < 24 else group_id + 8
    column = thread_in_group * 8 + (i & 7) + (32 if i >= 16 else 0)
    return 16 * tile + row, 64 * half + column


@pytest.mark.parametrize(("format", "granularity"), EVERY)
def test_every_nibble_lies_where_the_layout_says(format: Format, granularity: Granularity) -> None:
    n, k = 64, 384
    weight = quantised(granularity, random_codes(n, k, seed=1))
    data = pack_quantised(weight, format=format).data.numpy().reshape(n // 32, k // 128, -1)
    element = mma_m16n8k64_element if format == "w4a4" else operand_order_element
    codes = weight.codes.numpy()
    seen = set()
    for tile, half, lane, word, byte, nibble in np.ndindex(2, 2, 32, 4, 4, 2):
        row, column = element(word, byte, nibble, tile, half, lane)
        seen.add((row, column))
        at = ((tile * 2 + half) * 32 + lane) * 16 + word * 4 + byte
        found = data[:, :, at] >> (4 * nibble) & 15
        wanted = codes[row::32, column::128]
        np.testing.assert_array_equal(found, wanted ^ 8 if format == "w4a4" else wanted)
    assert len(seen) == 32 * 128


@pytest.mark.parametrize(
    ("format", "granularity"), [pair for pair in EVERY if weight_group(pair[1]) and pair != ("w4a4", "g128")]
)
def test_every_scale_lies_where_the_layout_says(format: Format, granularity: Granularity) -> None:
    n, k = 64, 256
    group = weight_group(granularity)
    assert group is not None
    weight = quantised(granularity, random_codes(n, k), seed=2)
    data = pack_quantised(weight, format=format).data.numpy().reshape(n // 32, k // 128, -1)
    assert data.shape[2] == 2048 + 64 * 128 // group
    for nb, kb, j, tile, g in np.ndindex(n // 32, k // 128, 128 // group, 2, 8):
        at = 2048 + ((j * 2 + tile) * 8 + g) * 4
        word = data[nb, kb, at : at + 4]
        row, column = 32 * nb + 16 * tile + g, kb * (128 // group) + j
        if weight.integer_scale is not None and weight.zero is not None:
            pairs = [(weight.integer_scale[r, column], weight.zero[r, column]) for r in (row, row + 8)]
            assert word.tolist() == [int(value) for pair in pairs for value in pair]
        else:
            assert weight.group_scale is not None
            low, high = word.view(np.float16)
            assert (low, high) == (weight.group_scale[row, column].item(), weight.group_scale[row + 8, column].item())


def test_g128_of_w4a4_has_fp32_scales_and_their_offsets() -> None:
    n, k = 64, 384
    weight = quantised("g128", random_codes(n, k), seed=2)
    assert weight.group_scale is not None
    data = pack_quantised(weight, format="w4a4").data.numpy().reshape(n // 32, k // 128, -1)
    assert data.shape[2] == block_bytes("g128", "w4a4") == 2048 + 128 + 128
    for nb, kb, g, tile, r in np.ndindex(n // 32, k // 128, 8, 2, 2):
        at = 2048 + ((g * 2 + tile) * 2 + r) * 4
        scale = weight.group_scale[32 * nb + 16 * tile + 8 * r + g, kb].item()
        scale_found, offset = (float(data[nb, kb, i : i + 4].view(np.float32)[0]) for i in (at, at + 128))
        assert (scale_found, offset) == (scale, -12582912 * scale), "13 bits, so the offset is exact"


def test_a_word_gives_pairs_of_consecutive_k() -> None:
    """What w4a16 kernels rely on: word & 0x000F000F holds k, k + 1 of the first row; word >> 8, likewise, k + 2, 3."""
    codes = (torch.arange(128) % 16).to(torch.uint8).repeat(32, 1)
    word = int(pack_quantised(quantised("channel", codes), format="w4a16").data[:4].numpy().view(np.uint32)[0])
    assert [word & 15, word >> 16 & 15, word >> 8 & 15, word >> 24 & 15] == [0, 1, 2, 3]


@pytest.mark.parametrize(("format", "granularity"), EVERY)
@pytest.mark.parametrize("fill", ["random", "lowest", "highest", "alternating", "one hot"])
def test_unpacking_gives_back_what_was_packed(format: Format, granularity: Granularity, fill: str) -> None:
    n, k = 96, 256
    codes = {
        "random": random_codes(n, k, seed=3),
        "lowest": torch.zeros(n, k, dtype=torch.uint8),
        "highest": torch.full((n, k), 15, dtype=torch.uint8),
        "alternating": (torch.arange(k) % 2 * 15).to(torch.uint8).repeat(n, 1),
        "one hot": one_hot(n, k),
    }[fill]
    weight = quantised(granularity, codes, seed=4)
    packed = pack_quantised(weight, format=format)
    assert_same(unpack(packed), weight)
    assert (packed.format, packed.granularity, packed.n, packed.k) == (format, granularity, n, k)
    assert packed.nbytes == 3 * 2 * block_bytes(granularity, format) + 4 * n


@pytest.mark.parametrize(("format", "granularity"), EVERY)
def test_bytes_of_all_ones_unpack(format: Format, granularity: Granularity) -> None:
    packed = random_packed(64, 256, format, granularity, "cpu", generator(5))
    data = packed.data.clone()
    data.view(4, -1)[:, :2048] = 0xFF
    back = unpack(replace(packed, data=data))
    assert back.codes.unique().tolist() == [7 if format == "w4a4" else 15]  # two's complement -1 is code 7
    assert torch.equal(pack_quantised(back, format=format).data, data)


@pytest.mark.parametrize(("format", "granularity", "k"), [
    ("w4a8", "channel", 96), ("w4a8", "g64", 576), ("w4a8", "g32", 32), ("w4a4", "channel", 160), ("w4a4", "g64", 576),
    ("w4a4", "g32", 352),
])  # fmt: skip
def test_k_is_padded_with_zero_weights(format: Format, granularity: Granularity, k: int) -> None:
    weight = quantised(granularity, random_codes(64, k, seed=6), seed=7)
    packed = pack_quantised(weight, format=format)
    assert_same(unpack(packed), weight)
    assert packed.k == k and packed.k_padded % 128 == 0 and 0 < packed.k_padded - k < 128
    whole = unpack(replace(packed, k=packed.k_padded))
    assert torch.equal(whole.codes[:, :k], weight.codes)
    assert whole.dequantised()[:, k:].unique().tolist() == [0.0]


@pytest.mark.parametrize(("format", "granularity"), EVERY)
def test_strides_and_offsets_of_codes_and_scales_do_not_matter(format: Format, granularity: Granularity) -> None:
    whole = quantised(granularity, random_codes(96, 256, seed=8), seed=9)
    part = whole.rows(slice(33, 65))  # row scales that begin four bytes past an alignment
    turned = {
        name: value.T.contiguous().T if value.ndim == 2 else value
        for name in ("codes", "group_scale", "integer_scale", "zero")
        if (value := getattr(part, name)) is not None
    }
    packed = pack_quantised(replace(part, **turned), format=format)
    assert_same(unpack(packed), part)
    wanted = part.row_scale.clone()
    part.row_scale.zero_()
    assert torch.equal(packed.row_scale, wanted)


@pytest.mark.parametrize("granularity", ["g128i", "g128r"])
@pytest.mark.parametrize("k", [32, 64, 576, 608])
def test_a_short_last_group_of_two_levels_is_filled_up_with_code_0(granularity: Granularity, k: int) -> None:
    weight = quantised(granularity, random_codes(64, k, seed=6), seed=7)
    assert weight.integer_scale is not None and weight.integer_scale.shape == (64, -(-k // 128))
    packed = pack_quantised(weight, format="w4a8")
    assert_same(unpack(packed), weight)
    assert packed.nbytes == 2 * -(-k // 128) * block_bytes(granularity) + 4 * 64
    whole = unpack(replace(packed, k=packed.k_padded))
    assert torch.equal(whole.codes[:, :k], weight.codes)
    assert whole.codes[:, k:].unique().tolist() == [0]
    check_quantised(whole)


@pytest.mark.parametrize(("granularity", "scale", "zero"), [("g128i", 16, 207), ("g128r", 254, 207)])
def test_what_fills_a_group_up_leaves_no_byte_that_the_groups_own_codes_do_not(
    granularity: Granularity, scale: int, zero: int
) -> None:
    """3 * 16 + 207 = 255: of the codes that a group has 3 is legal, and 8, the value zero elsewhere, would not be."""
    codes = torch.full((32, 160), 3, dtype=torch.uint8)
    scales = torch.full((32, 2), scale, dtype=torch.uint8)
    weight = QuantisedWeight(granularity, codes, torch.ones(32), None, scales, torch.full_like(scales, zero))
    packed = pack_quantised(weight, format="w4a8")
    check_quantised(unpack(replace(packed, k=256)))
    beyond = replace(weight, codes=with_value(codes, 4))
    with pytest.raises(ValueError, match="must lie in 0 … 255, not reach 27"):
        pack_quantised(beyond, format="w4a8")


# ---- random weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "granularity"), EVERY)
@pytest.mark.parametrize("k", [256, 384])
def test_random_weights_are_legal_and_repack_to_the_same_bytes(
    format: Format, granularity: Granularity, k: int
) -> None:
    packed = random_packed(64, k, format, granularity, "cpu", generator(8))
    weight = unpack(packed)
    check_quantised(weight)
    assert torch.equal(pack_quantised(weight, format=format).data, packed.data)
    assert weight.codes.unique().tolist() == list(range(16))
    assert torch.equal(random_packed(64, k, format, granularity, "cpu", generator(8)).data, packed.data)
    assert not torch.equal(random_packed(64, k, format, granularity, "cpu", generator(9)).data, packed.data)


@pytest.mark.parametrize(("format", "granularity", "k"), [
    ("w4a8", "channel", 32), ("w4a8", "channel", 224), ("w4a8", "g64", 576), ("w4a8", "g32", 160),
    ("w4a4", "channel", 96), ("w4a4", "g64", 192), ("w4a4", "g32", 352),
    ("w4a8", "g128i", 32), ("w4a8", "g128i", 576), ("w4a8", "g128r", 64), ("w4a8", "g128r", 608),
])  # fmt: skip
def test_random_weights_are_padded_too(format: Format, granularity: Granularity, k: int) -> None:
    packed = random_packed(32, k, format, granularity, "cpu", generator(10))
    assert torch.equal(pack_quantised(unpack(packed), format=format).data, packed.data)


def test_random_integer_scales_reach_their_ends() -> None:
    weight = unpack(random_packed(256, 4096, "w4a8", "g128i", "cpu", generator(11)))
    assert weight.integer_scale is not None and weight.zero is not None
    assert weight.integer_scale.unique().tolist() == list(range(1, 17))
    assert int(weight.zero.min()) == 0 and int(weight.zero.max()) > 200
    assert int(weight.integers().min()) < -120 and int(weight.integers().max()) > 120


def test_random_sixteenths_reach_their_ends() -> None:
    weight = unpack(random_packed(256, 4096, "w4a8", "g128r", "cpu", generator(11)))
    check_quantised(weight)
    assert weight.integer_scale is not None and weight.zero is not None
    assert weight.integer_scale.unique().tolist() == list(range(256))
    assert int(weight.zero.min()) == 0 and int(weight.zero.max()) > 240
    assert int(weight.integers().min()) == -128 and int(weight.integers().max()) > 120


# ---- the quantiser ------------------------------------------------------------------------------------------------


def scalar_dequantised(weight: QuantisedWeight) -> np.ndarray[Any, Any]:
    group = weight_group(weight.granularity)
    result = np.zeros((weight.n, weight.k))
    for row, column in np.ndindex(weight.n, weight.k):
        code, scale = int(weight.codes[row, column]), weight.row_scale[row].item()
        if group is None:
            result[row, column] = (code - 8) * scale
        elif weight.integer_scale is not None and weight.zero is not None:
            integer, zero = int(weight.integer_scale[row, column // group]), int(weight.zero[row, column // group])
            step = Fraction(integer + 1, 16) if weight.granularity == "g128r" else integer
            result[row, column] = (round(code * step + zero) - 128) * scale
        else:
            assert weight.group_scale is not None
            result[row, column] = (code - 8) * weight.group_scale[row, column // group].item() * scale
    return result


@pytest.mark.parametrize("granularity", ALL_GRANULARITIES)
def test_dequantised_is_what_the_definition_says(granularity: Granularity) -> None:
    weight = quantised(granularity, random_codes(32, 256, seed=12), seed=13)
    wanted = scalar_dequantised(weight)
    np.testing.assert_array_equal(weight.dequantised().numpy(), wanted)
    np.testing.assert_array_equal(weight.dequantised(torch.float32).numpy(), wanted.astype(np.float32))
    part = weight.rows(slice(5, 9))
    np.testing.assert_array_equal(part.dequantised().numpy(), wanted[5:9])


@pytest.mark.parametrize("granularity", ["g128i", "g128r"])
@pytest.mark.parametrize("k", [32, 160])
def test_a_short_last_group_dequantises_by_its_own_scale(granularity: Granularity, k: int) -> None:
    weight = quantised(granularity, random_codes(32, k, seed=12), seed=13)
    np.testing.assert_array_equal(weight.dequantised().numpy(), scalar_dequantised(weight))


@pytest.mark.parametrize("granularity", ["g128i", "g128r"])
@pytest.mark.parametrize("k", [32, 64, 96, 576, 608])
def test_a_short_last_group_is_rounded_by_its_own_weights_alone(granularity: Granularity, k: int) -> None:
    """They lie far from 0, so that zeros beside them would make its range five times as wide."""
    short = k % 128
    weight = random_weight(32, k, seed=30)
    weight[:, -short:] = weight[:, -short:] * 0.1 + 3
    found = quantise_weight(weight, granularity)
    assert found.codes.shape == weight.shape and found.codes.is_contiguous()
    assert found.integer_scale is not None and found.zero is not None
    check_quantised(found)
    own = weight[:, -short:]
    step = torch.maximum((own.amax(1) - own.amin(1)) / 15, found.row_scale)  # of g128i at least one INT8 unit
    assert bool(((found.dequantised()[:, -short:] - own).pow(2).mean(1).sqrt() <= 0.6 * step).all())
    if 128 % short == 0:  # a whole group of the same weights, each as many times
        again = quantise_weight(torch.cat((weight, *[own] * (128 // short - 1)), 1), granularity)
        assert again.integer_scale is not None and again.zero is not None
        assert torch.equal(again.row_scale, found.row_scale)
        same = (again.integer_scale == found.integer_scale).all(1)  # sums of errors in another order may tip a tie
        assert int(same.sum()) >= 31
        assert torch.equal(again.zero[same], found.zero[same])
        assert torch.equal(again.codes[same, :k], found.codes[same])


@pytest.mark.parametrize("granularity", ["g128i", "g128r"])
def test_the_step_of_a_short_group_is_chosen_by_the_weights_that_it_has(granularity: Granularity) -> None:
    """Its last weight, with which it is filled up, counts once: it must not decide between two steps 32 times."""
    weight = random_weight(512, 96, seed=31)
    found = quantise_weight(weight, granularity)
    biased = quantise_weight(torch.cat((weight, weight[:, -1:].expand(-1, 32)), 1), granularity)
    assert torch.equal(biased.row_scale, found.row_scale)
    error, other = ((each.dequantised()[:, :96] - weight).pow(2).sum(1) for each in (found, biased))
    assert bool((error <= other * (1 + 1e-5)).all())
    assert int((error < other * (1 - 1e-3)).sum()) > 20


@pytest.mark.parametrize("granularity", ["channel", "a128i", "g128", "g64", "g32"])
def test_no_weight_errs_by_more_than_half_a_step(granularity: Granularity) -> None:
    weight = random_weight(64, 512, seed=14)
    found = quantise_weight(weight, granularity)
    step = found.row_scale.double()[:, None].expand(64, 512)
    if found.group_scale is not None:
        step = step * found.group_scale.double().repeat_interleave(512 // found.group_scale.shape[1], 1)
    error = (found.dequantised() - weight.double()).abs()
    # The group scale's own rounding (half a unit of its 11 bits, of 7.5 steps) comes on top.
    assert float((error / step).max()) <= 0.5 + 7.5 * 2**-11
    absmax = weight.abs().amax(1)
    assert torch.allclose(found.row_scale * 7.5, absmax, rtol=1e-6)
    if found.group_scale is not None:
        assert found.group_scale.amax(1).unique().tolist() == [1.0]


def test_channel_by_hand() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :6] = torch.tensor([7.5, -7.5, 1.0, 0.5, 1.5, -2.6])  # a step is 1; halves go to the even neighbour
    found = quantise_weight(weight, "channel")
    assert found.row_scale.tolist() == [1.0]
    assert (found.codes[0, :7].int() - 8).tolist() == [7, -8, 1, 0, 2, -3, 0]


def test_integer_groups_by_hand() -> None:
    levels = torch.arange(16.0).repeat(8)
    weight = torch.cat((16 * levels - 120, 2 * levels + 60, torch.zeros(128)))[None]
    found = quantise_weight(weight, "g128i")
    assert found.row_scale.tolist() == [1.0]  # the widest group takes 15 steps of 16
    assert found.integer_scale is not None and found.zero is not None
    assert found.integer_scale.tolist() == [[16, 2, 1]]
    assert found.zero.tolist() == [[8, 188, 120]]
    assert found.codes[0].tolist() == [*levels.int().tolist() * 2, *[8] * 128]
    assert torch.equal(found.dequantised(torch.float32), weight)


def test_every_level_of_sixteenths_is_what_exact_arithmetic_rounds_to() -> None:
    codes = torch.arange(128).remainder(16).to(torch.uint8).expand(256, 128)
    for zero in (0, 1, 7, 15):
        scale, zeros = torch.arange(256, dtype=torch.uint8)[:, None], torch.full((256, 1), zero, dtype=torch.uint8)
        found = QuantisedWeight("g128r", codes, torch.ones(256), None, scale, zeros).integers()
        for n, code in np.ndindex(256, 16):
            assert found[n, code].item() == round(Fraction(code * (n + 1), 16) + zero) - 128  # ties to even


def test_sixteenths_by_hand() -> None:
    levels = torch.arange(16.0).repeat(8)
    weight = torch.cat((16 * levels - 120, (2.75 * levels + 60).round(), torch.zeros(128)))[None]
    found = quantise_weight(weight, "g128r")
    assert found.row_scale.tolist() == [1.0]  # the widest group takes 15 steps of 16
    assert found.integer_scale is not None and found.zero is not None
    assert found.integer_scale.tolist() == [[255, 43, 0]]  # one less than sixteenths
    assert found.zero.tolist() == [[8, 188, 128]]
    assert torch.equal(found.dequantised(torch.float32), weight)


def test_every_weight_gets_the_code_whose_rounded_level_is_nearest() -> None:
    weight = random_weight(32, 512, seed=29)
    weight[:, 128:256] /= 12  # steps of little more than one, where rounding moves levels most
    found = quantise_weight(weight, "g128r")
    error = (found.dequantised() - weight).abs()
    for code in range(16):
        other = replace(found, codes=torch.full_like(found.codes, code)).dequantised()
        assert bool((error <= (other - weight).abs() * (1 + 1e-5) + 1e-7).all())


@pytest.mark.parametrize("granularity", ["g128i", "g128r"])
def test_a_one_sided_group_uses_all_its_levels(granularity: Granularity) -> None:
    weight = torch.zeros(1, 128)
    weight[0] = torch.linspace(100, 130, 128)
    found = quantise_weight(weight, granularity)
    assert float((found.dequantised() - weight).abs().max()) <= 1.1  # a row step of 130 / 127.5, integer scale 2
    assert float((quantise_weight(weight, "g128").dequantised() - weight).abs().max()) > 8


def test_integer_groups_beat_float_groups_on_normal_weights() -> None:
    weight = random_weight(256, 1024, seed=15)

    def error(granularity: Granularity) -> float:
        return float((quantise_weight(weight, granularity).dequantised() - weight).pow(2).mean())

    assert error("g128i") / error("g128") == pytest.approx(0.76, abs=0.03)  # asymmetric, and the better of two steps
    assert error("g128r") / error("g128") == pytest.approx(0.73, abs=0.02)
    assert error("g32") < error("g64") < error("g128") < error("channel")


def test_of_two_integer_steps_the_better_is_taken() -> None:
    weight = random_weight(32, 512, seed=16)
    found = quantise_weight(weight, "g128i")
    assert found.integer_scale is not None
    chosen = (found.dequantised() - weight).pow(2).view(32, 4, 128).sum(2)
    row_scale = found.row_scale.double()[:, None, None]
    groups = weight.view(32, 4, 128).double() / row_scale
    exact = (groups.amax(2) - groups.amin(2)) / 15
    clear = (exact - exact.round()).abs() > 1e-4  # float64 and fp32 then agree on the integers around it
    middle = (groups.amax(2) + groups.amin(2)) / 2
    smaller_won = 0
    for step in (torch.ceil(exact), torch.floor(exact)):
        zero = torch.minimum(((middle - 7.5 * step).round() + 128).clamp(min=0), 255 - 15 * step)[..., None]
        codes = ((groups + 128 - zero) / step[..., None]).round().clamp(0, 15)
        error = ((codes * step[..., None] + zero - 128 - groups) * row_scale).pow(2).sum(2)
        assert bool((chosen <= error * (1 + 1e-5))[clear].all())
        smaller_won = int((found.integer_scale == step)[clear].sum())
    assert int(clear.sum()) > 90 and 0.2 < smaller_won / int(clear.sum()) < 0.95


@pytest.mark.parametrize("granularity", ALL_GRANULARITIES)
def test_rows_and_groups_without_weights_are_zero(granularity: Granularity) -> None:
    weight = random_weight(32, 256, seed=17)
    weight[3] = 0
    weight[4] = 1e-38  # below what counts
    weight[5, :128] = 0
    found = quantise_weight(weight, granularity)
    check_quantised(found)
    assert found.row_scale[3:5].tolist() == [0.0, 0.0]
    assert found.dequantised()[3:5].unique().tolist() == [0.0]
    assert float(found.dequantised()[5, :128].abs().max()) <= float(found.row_scale[5])


@pytest.mark.parametrize("granularity", ALL_GRANULARITIES)
def test_the_largest_weights_of_each_type_quantise(granularity: Granularity) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        largest = torch.finfo(dtype).max
        weight = (random_weight(32, 256, seed=18).clamp(-1, 1) * largest).to(dtype).clamp(-largest, largest)
        if granularity in ("g128i", "g128r") and dtype != torch.float16:
            weight = weight / 4  # the range of a group, greatest - least, has to be a float
        found = quantise_weight(weight, granularity)
        check_quantised(found)
        error = (found.dequantised() - weight.double()).abs().max() / weight.double().abs().max()
        assert float(error) < 0.07


@pytest.mark.parametrize("granularity", ALL_GRANULARITIES)
def test_type_strides_and_pieces_change_nothing(granularity: Granularity, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(64, 256, seed=19).to(torch.bfloat16)
    wanted = quantise_weight(weight.float(), granularity)
    assert_same(quantise_weight(weight, granularity), wanted)
    assert_same(quantise_weight(weight.T.contiguous().T, granularity), wanted)
    assert_same(quantise_weight(torch.nn.Parameter(weight), granularity), wanted)
    monkeypatch.setattr(quantiser_module, "ELEMENTS_AT_ONCE", 700)  # two rows and a bit
    assert_same(quantise_weight(weight, granularity), wanted)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_rotated_weight_multiplies_rotated_activations(size: int) -> None:
    weight, x = random_weight(32, 256, seed=20), random_weight(8, 256, seed=21)
    weight[:, 7] = 6.0  # an outlier column, which is what the rotation is for
    packed = pack(weight, format="w4a8", granularity="channel", hadamard=size, act_clip=0.9)
    assert (packed.hadamard, packed.act_clip) == (size, 0.9)
    block = torch.ones(1, 1, dtype=torch.float64)
    while block.shape[0] < size:
        block = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), block)
    rotation = torch.block_diag(*[block / size**0.5] * (256 // size))
    assert torch.allclose(hadamard_transform(x, size).double(), x.double() @ rotation * size**0.5, atol=1e-4)
    wanted = quantise_weight((weight.double() @ rotation).float(), "channel").dequantised()
    found = unpack(packed).dequantised()
    different = (found - wanted).abs() > 1e-6
    assert float(different.double().mean()) < 1e-3  # fp32 butterflies may tip a rounding
    exact = x.double() @ weight.double().T
    plain = x.double() @ quantise_weight(weight, "channel").dequantised().T
    rotated = x.double() @ rotation @ found.T
    assert float((rotated - exact).norm()) < 0.6 * float((plain - exact).norm())


# ---- packed weights travel ----------------------------------------------------------------------------------------


def test_a_packed_weight_moves() -> None:
    packed = random_packed(32, 128, "w4a8", "g128i", "cpu", generator(22))
    moved = packed.to("meta")
    assert moved.device.type == "meta" and moved.row_scale.device.type == "meta"
    assert (moved.nbytes, moved.k, moved.granularity) == (packed.nbytes, packed.k, packed.granularity)
    assert packed.device.type == "cpu"
    assert "n=32, k=128" in repr(packed) and "tensor" not in repr(packed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("format", "granularity"), EVERY)
def test_cpu_and_gpu_give_the_same_bytes(format: Format, granularity: Granularity) -> None:
    for seed, dtype in ((23, torch.float32), (24, torch.float16), (25, torch.bfloat16)):
        weight = random_weight(256, 1024, seed).to(dtype)
        for hadamard in (None, 256) if format != "w4a16" else (None,):
            here = pack(weight, format=format, granularity=granularity, hadamard=hadamard)
            there = pack(weight.cuda(), format=format, granularity=granularity, hadamard=hadamard)
            assert there.device.type == "cuda"
            assert torch.equal(there.data.cpu(), here.data)
            assert torch.equal(there.row_scale.cpu(), here.row_scale)
            assert_same(unpack(there.to("cpu")), unpack(here))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"layout_version": LAYOUT_VERSION + 1}, "packed.layout_version is 3; this version reads 2"),
        ({"arch": "tcgen05"}, "arch must be 'mma'"),
        ({"format": "w2a2"}, "format must be one of w4a4, w4a8, w4a16"),
        ({"granularity": "a128i"}, "granularity must be one of channel, g128i"),
        ({"n": 64}, "packed.data must be contiguous torch.uint8"),
        ({"k": 384}, "packed.data must be"),
        ({"n": 33}, "N = 33 must be a positive multiple of 32"),
        ({"data": torch.zeros(4224)[:4224]}, "packed.data must be contiguous torch.uint8"),
        ({"data": torch.zeros(8448, dtype=torch.uint8)[::2]}, "packed.data must be contiguous"),
        ({"data": torch.zeros(4240, dtype=torch.uint8)[8:4232]}, "packed.data must be aligned to 16 bytes"),
        ({"row_scale": torch.zeros(31)}, r"packed.row_scale must be contiguous torch.float32 \[32\]"),
        ({"row_scale": torch.zeros(32, device="meta")}, "packed.row_scale must be on cpu"),
    ],
)
def test_consumers_refuse_what_they_cannot_read(change: dict[str, Any], complaint: str) -> None:
    packed = random_packed(32, 256, "w4a8", "g128i", "cpu", generator(26))
    check_packed(packed)
    with pytest.raises(ValueError, match=complaint):
        check_packed(replace(packed, **change))
    with pytest.raises(ValueError, match=complaint):
        unpack(replace(packed, **change))


# ---- bad input ----------------------------------------------------------------------------------------------------


def packed_with(weight: Tensor | None = None, **changes: Any) -> PackedWeight:
    given = {"format": "w4a8", "granularity": "g128", **changes}
    return pack(torch.ones(32, 256) if weight is None else weight, **given)


@pytest.mark.parametrize(
    ("weight", "changes", "complaint"),
    [
        (torch.ones(32, 256, dtype=torch.float64), {}, "weight must be fp16, bf16 or fp32, not torch.float64"),
        (torch.ones(32, 256, dtype=torch.int8), {}, "weight must be fp16, bf16 or fp32"),
        (np.ones((32, 256), np.float32), {}, r"weight must be a torch\.Tensor, not ndarray"),
        (torch.nn.Linear(256, 32), {}, r"weight must be a torch\.Tensor, not Linear"),
        (torch.ones(32, 256).to_sparse(), {}, r"weight must be dense, not torch\.sparse_coo: call to_dense\(\)"),
        (torch.ones(32, 256, device="meta"), {}, "weight is on meta, where it has no values"),
        (torch.ones(256), {}, r"weight must be a matrix \[N, K\], not 1-D"),
        (torch.ones(1, 32, 256), {}, "not 3-D"),
        (torch.ones(0, 256), {}, "weight must not be empty, but is 0 x 256"),
        (torch.ones(32, 0), {}, "weight must not be empty"),
        (torch.ones(48, 256), {}, "N = 48 must be a positive multiple of 32"),
        (torch.ones(32, 320), {}, "K = 320 must be a multiple of the group of 128"),
        (torch.ones(32, 336), {"granularity": "g128i"}, "K = 336 must be a positive multiple of 32 for w4a8"),
        (torch.ones(32, 16), {"granularity": "g128r"}, "K = 16 must be a positive multiple of 32 for w4a8"),
        (torch.ones(32, 288), {"granularity": "g64"}, "K = 288 must be a multiple of the group of 64"),
        (torch.ones(32, 192), {"format": "w4a4", "granularity": "a128i"}, "K = 192 must be a multiple of the group"),
        (
            torch.ones(32, 192),
            {"format": "w4a4", "granularity": "g128"},
            "K = 192 must be a multiple of the group of 128",
        ),
        (torch.ones(32, 96), {"format": "w4a4", "granularity": "g64"}, "K = 96 must be a multiple of the group of 64"),
        (torch.ones(32, 48), {"granularity": "channel"}, "K = 48 must be a positive multiple of 32"),
        (torch.ones(32, 192), {"format": "w4a16", "granularity": "g64"}, "multiple of 128 for w4a16"),
        (torch.full((32, 256), torch.nan), {}, "weight must be finite"),
        (torch.full((32, 256), -torch.inf), {"hadamard": 64}, "weight must be finite"),
        (torch.full((32, 256), 3e38), {"hadamard": 64}, "weight must be finite"),  # not any more, once rotated
        (None, {"format": "w8a8"}, "format must be one of w4a4, w4a8, w4a16, not 'w8a8'"),
        (None, {"format": ["w4a8"]}, r"format must be one of .*, not \['w4a8'\]"),
        (None, {"granularity": ["g128"]}, r"granularity must be one of .*, not \['g128'\]"),
        (None, {"granularity": "g256"}, "granularity must be one of .*, not 'g256'"),
        (None, {"granularity": "a128i"}, "granularity must be one of channel, g128i, g128r, g128, g64, g32 for w4a8"),
        (None, {"format": "w4a16", "granularity": "g128i"}, "granularity must be one of .* for w4a16"),
        (None, {"hadamard": 32}, "hadamard must be None or a power of two from 64"),
        (None, {"hadamard": 96}, "hadamard must be"),
        (None, {"hadamard": 512}, "divides K = 256, not 512"),
        (torch.ones(32, 65536), {"hadamard": 65536}, "to 32768 that divides K = 65536, not 65536"),
        (None, {"hadamard": 0}, "hadamard must be"),
        (None, {"hadamard": 64.0}, "hadamard must be"),
        (None, {"act_clip": 0.0}, r"act_clip must lie in \(0, 1\], not 0.0"),
        (None, {"act_clip": 1.1}, "act_clip must lie"),
        (None, {"act_clip": float("nan")}, "act_clip must lie"),
        (None, {"act_clip": "1"}, "act_clip must lie"),
        (None, {"act_clip": True}, "act_clip must lie"),
        (None, {"format": "w4a16", "hadamard": 64}, "hadamard: w4a16 multiplies activations as they are"),
        (None, {"format": "w4a16", "act_clip": 0.9}, "act_clip: w4a16 multiplies activations as they are"),
        (None, {"arch": "sm_90a"}, "arch must be 'mma'"),
        (torch.empty(32, LARGEST_K + 128, device="meta"), {}, "K = 65664 must not exceed 65536"),
        (torch.empty(65568, 32768, device="meta"), {}, r"not have more than 2\^31 elements"),
    ],
)
def test_packing_names_the_argument_that_is_wrong(weight: Tensor, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        packed_with(weight, **changes)


def with_value(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


@pytest.mark.parametrize(
    ("granularity", "field", "value", "complaint"),
    [
        ("channel", "codes", lambda w: with_value(w.codes, 16), "codes must lie in 0 … 15, not reach 16"),
        ("channel", "codes", lambda w: w.codes.to(torch.int8), r"codes must be uint8 \[N, K\]"),
        ("channel", "codes", lambda w: w.codes.numpy(), r"codes must be a torch\.Tensor, not ndarray"),
        ("channel", "row_scale", lambda w: w.row_scale.tolist(), r"row_scale must be a torch\.Tensor, not list"),
        ("channel", "codes", lambda w: w.codes[0], r"codes must be uint8 \[N, K\]"),
        ("channel", "row_scale", lambda w: with_value(w.row_scale, torch.nan), "row_scale must be finite"),
        ("g32", "row_scale", lambda w: with_value(w.row_scale, torch.inf), "row_scale must be finite"),
        ("channel", "row_scale", lambda w: w.row_scale.double(), "row_scale must be torch.float32"),
        ("channel", "row_scale", lambda w: w.row_scale[:-1], r"row_scale must be torch.float32 \[32\]"),
        ("channel", "row_scale", lambda w: w.row_scale.to("meta"), "row_scale must be on cpu like codes, not on meta"),
        ("channel", "group_scale", lambda w: torch.ones(32, 2), "group_scale must be None"),
        ("g128", "group_scale", lambda w: None, "group_scale must be given"),
        ("g128", "group_scale", lambda w: with_value(w.group_scale, 0), r"group_scale must lie in \(0, 1\]"),
        ("g128", "group_scale", lambda w: with_value(w.group_scale, -0.5), r"group_scale must lie in \(0, 1\]"),
        ("g128", "group_scale", lambda w: with_value(w.group_scale, 1.001), r"group_scale must lie in \(0, 1\]"),
        ("g128", "group_scale", lambda w: with_value(w.group_scale, torch.nan), r"group_scale must lie in \(0, 1\]"),
        ("g128", "group_scale", lambda w: w.group_scale.float(), "group_scale must be torch.float16"),
        ("g128", "group_scale", lambda w: w.group_scale[:, :1], r"group_scale must be torch.float16 \[32, 2\]"),
        ("g128", "zero", lambda w: torch.zeros(32, 2, dtype=torch.uint8), "zero must be None"),
        ("g128i", "integer_scale", lambda w: with_value(w.integer_scale, 0), "integer_scale must lie in 1 … 16"),
        ("g128i", "integer_scale", lambda w: with_value(w.integer_scale, 17), "integer_scale must lie in 1 … 16"),
        ("g128i", "integer_scale", lambda w: None, "integer_scale must be given"),
        ("g128i", "zero", lambda w: None, "zero must be given"),
        ("g128r", "zero", lambda w: w.zero[:, :1], r"zero must be torch.uint8 \[32, 2\]"),
        ("g128i", "zero", lambda w: with_value(w.zero, 255), r"code \* integer_scale \+ zero must lie in 0 … 255"),
        ("g128r", "integer_scale", lambda w: None, "integer_scale must be given"),
        ("g128r", "zero", lambda w: with_value(w.zero, 255), r"rint\(code \* \(integer_scale \+ 1\) / 16 \+ zero"),
        ("mixed", "codes", lambda w: w.codes, "granularity must be one of"),
    ],
)  # fmt: skip
def test_packing_names_the_field_that_is_wrong(granularity: Any, field: str, value: Any, complaint: str) -> None:
    legal: Granularity = granularity if granularity in ALL_GRANULARITIES else "channel"
    weight = quantised(legal, torch.full((32, 256), 15, dtype=torch.uint8), seed=27)
    pack_quantised(weight, format="w4a8")
    with pytest.raises(ValueError, match=complaint):
        pack_quantised(replace(weight, granularity=granularity, **{field: value(weight)}), format="w4a8")


def test_a_zero_that_codes_do_not_reach_is_legal() -> None:
    codes = torch.full((32, 128), 3, dtype=torch.uint8)
    scale, zero = torch.full((32, 1), 16, dtype=torch.uint8), torch.full((32, 1), 207, dtype=torch.uint8)
    weight = QuantisedWeight("g128i", codes, torch.ones(32), None, scale, zero)
    assert unpack(pack_quantised(weight, format="w4a8")).integers().unique().tolist() == [127]  # 3 * 16 + 207 - 128
    with pytest.raises(ValueError, match="not reach 256"):
        pack_quantised(replace(weight, zero=zero + 1), format="w4a8")
    rounded = replace(weight, granularity="g128r", integer_scale=scale * 15 + 14)  # 255 / 16
    for zero_byte, code, highest in ((207, 3, 127), (15, 15, 126), (16, 15, 127)):
        parts = torch.full_like(codes, code), torch.full_like(zero, zero_byte)
        packed = pack_quantised(replace(rounded, codes=parts[0], zero=parts[1]), format="w4a8")
        assert unpack(packed).integers().unique().tolist() == [highest]  # 3 * 15.9375 = 47.8, 15 * 15.9375 = 239.1
    with pytest.raises(ValueError, match="not reach 256"):
        pack_quantised(replace(rounded, zero=zero + 1), format="w4a8")


def test_sums_of_the_longest_row_fit_int32() -> None:
    limit = 2**31 - 1
    assert 255 * 127 * LARGEST_K <= limit < 255 * 127 * 2 * LARGEST_K
    assert max(240 * 127 * LARGEST_K, 128 * 127 * LARGEST_K, 64 * LARGEST_K, 16 * 64 * LARGEST_K) <= limit
    for granularity in ("g128i", "g128r"):
        assert random_packed(32, LARGEST_K, "w4a8", granularity, "cpu", generator(28)).k == LARGEST_K
    with pytest.raises(ValueError, match="must not exceed 65536, where INT32 sums could overflow"):
        random_packed(32, LARGEST_K + 32, "w4a8", "channel", "cpu")
