"""Float group scales refitted as sixteenths: exact where they can be, elsewhere about as good as trying everything."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from apex4_probe.kernels.formats import Granularity  # noqa: E402
from apex4_probe.kernels.packing import pack_quantised, unpack  # noqa: E402
from apex4_probe.kernels.quantised_weight import QuantisedWeight, check_quantised, quantise_weight  # noqa: E402
from apex4_probe.kernels.reference import reference_linear64  # noqa: E402
from apex4_probe.kernels.refit import ROW_SCALES, Refitted, refit, refit_groups  # noqa: E402

Tensor = Any


def generator(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


def random_codes(n: int, k: int, seed: int = 0, low: int = 0, high: int = 16) -> Tensor:
    return torch.randint(low, high, (n, k), dtype=torch.uint8, generator=generator(seed))


def normal(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=generator(seed))


def along_k(per_group: Tensor) -> Tensor:
    return per_group.double().repeat_interleave(128, 1)


def held(codes: Tensor, scale: Tensor, zero: Tensor | float = 8.0) -> Tensor:
    """What a checkpoint means, by its definition."""
    zeros = torch.full_like(scale, zero) if isinstance(zero, float) else zero
    k = codes.shape[1]
    return (codes.double() - along_k(zeros)[:, :k]) * along_k(scale)[:, :k]


def rows_of_32(weight: QuantisedWeight) -> QuantisedWeight:
    """The last row again until there are 32, as many as can be packed."""
    return weight.rows(torch.arange(32).clamp(max=weight.n - 1))  # type: ignore[arg-type]


def squared_rows(values: Tensor) -> Tensor:
    return (values * values).sum(1)


# ---- exact where representable ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1, 2, 4, 8, 16])
def test_multiples_of_a_row_scale_are_kept_exactly(largest: int) -> None:
    n, groups = 16, 7
    multiples = torch.randint(1, largest + 1, (n, groups), generator=generator(largest))
    multiples[:, 3] = largest  # becomes a step of 16
    row = (torch.rand(n, generator=generator(1)) + 0.5).half().float() / 64
    scale, codes = multiples * row[:, None], random_codes(n, groups * 128, seed=2)
    found = refit_groups(codes, scale)
    assert torch.equal(found.weight.dequantised(), held(codes, scale))
    assert torch.equal(found.weight.codes, codes)
    assert found.relative_error == 0
    assert found.worst_row[1] == 0


def test_of_quantised_weights_the_fp16_group_scales_times_the_row_scale_are_meant() -> None:
    multiples = torch.tensor([[16, 5, 9], [3, 16, 1]])
    row_scale = torch.tensor([0.0123, -4.5])
    quantised = QuantisedWeight("g128", random_codes(2, 384), row_scale, (multiples / 16).half())
    found = refit(quantised)
    assert torch.equal(found.weight.dequantised(), quantised.dequantised())
    assert found.relative_error == 0


def test_zeros_of_asymmetric_codes_are_kept_exactly() -> None:
    """Also where a group lies on one side of zero and so needs the whole range of a byte for half of its steps."""
    n, groups = 12, 5
    multiples = torch.randint(1, 9, (n, groups), generator=generator(3))
    zero = torch.randint(0, 16, (n, groups), generator=generator(4))
    multiples[:, 2], zero[:, 2] = 16, 8
    codes = random_codes(n, groups * 128, seed=5)
    found = refit_groups(codes, multiples * 2.0**-9, zero)
    assert torch.equal(found.weight.dequantised(), held(codes, multiples * 2.0**-9, zero))
    check_quantised(found.weight)


def test_negative_scales_become_mirrored_codes() -> None:
    multiples = torch.tensor([[16, -5, 9, -13], [-16, -5, 9, -13]])
    codes, zero = random_codes(2, 512, seed=6), torch.tensor([[8, 3, 7, 6], [8, 8, 8, 8]])
    found = refit_groups(codes, multiples * 0.25, zero)
    assert torch.equal(found.weight.dequantised(), held(codes, multiples * 0.25, zero))
    assert found.weight.row_scale.tolist() == [0.25, -0.25]  # that of the widest group, which keeps its codes
    mirrored = along_k(multiples) * torch.tensor([[1], [-1]]) < 0
    assert torch.equal(found.weight.codes, torch.where(mirrored, 15 - codes, codes))


@pytest.mark.parametrize("k", [32, 64, 576, 608])
def test_a_short_last_group_is_fitted_by_the_codes_that_it_has(k: int) -> None:
    groups = -(-k // 128)
    multiples = torch.randint(1, 8, (6, groups), generator=generator(18))
    multiples[:, 0] = 16  # a step of 16, with which all others are whole
    multiples[:, -1] = torch.tensor([16, -9, 3, 5, -7, 0])
    codes, scale = random_codes(6, k, seed=19), multiples * 0.25
    found = refit_groups(codes, scale)
    assert torch.equal(found.weight.dequantised(), held(codes, scale)) and found.relative_error == 0
    assert torch.equal(unpack(pack_quantised(rows_of_32(found.weight), format="w4a8")).codes[:6], found.weight.codes)
    scale = torch.rand(6, groups, generator=generator(20)) + 0.1
    some = refit_groups(codes, scale)
    error = some.weight.dequantised() - held(codes, scale)
    assert some.squared_error.tolist() == pytest.approx(squared_rows(error).tolist(), rel=1e-9)


def test_rows_of_zeros_stay_zeros() -> None:
    codes = random_codes(3, 256)
    codes[1] = 8
    found = refit_groups(codes, torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]]))
    assert torch.equal(found.weight.dequantised()[:2], torch.zeros(2, 256, dtype=torch.float64))
    assert found.row_errors.tolist() == [0, 0, 0]
    check_quantised(found.weight)


# ---- optimal ---------------------------------------------------------------------------------------------------------


def by_trying_everything(codes: Tensor, scale: Tensor, zero: Tensor) -> float:
    """The least squared error of one row: the same first row scales, every step, every zero."""
    code = torch.arange(16).double()
    levels = (code - zero.double()[:, None]) * scale.double()[:, None]
    counts = torch.stack([torch.bincount(each.long(), minlength=16) for each in codes.view(len(scale), -1)]).double()
    smallest = max(float(-levels.min()) / 128, float(levels.max()) / 126, float(scale.abs().max()) / 16)
    steps, zeros = torch.arange(1.0, 257).double()[:, None, None] / 16, torch.arange(256.0).double()[:, None]
    integers = (steps * code + zeros).round().view(-1, 16)
    integers = integers[integers[:, 15] <= 255] - 128
    least = float("inf")
    for factor in ROW_SCALES:
        row_scale, chosen = smallest * factor, []
        for level, count in zip(levels, counts, strict=True):
            error = (count * (integers - level / row_scale) ** 2).sum(1)
            chosen.append(integers[error.argmin()])
        fitted = torch.stack(chosen)
        row_scale = float((counts * fitted * levels).sum() / (counts * fitted * fitted).sum())
        least = min(least, float((counts * (fitted * row_scale - levels) ** 2).sum()))
    return least


@pytest.mark.parametrize("kind", ["normal", "uniform codes", "unequal groups", "asymmetric", "few codes"])
def test_errs_hardly_more_than_the_best_of_all_steps_and_zeros(kind: str) -> None:
    n, groups = 3, 3
    quantised = quantise_weight(normal(n, groups * 128, seed=7), "g128")
    assert quantised.group_scale is not None
    codes, scale = quantised.codes, quantised.group_scale.float() * quantised.row_scale[:, None]
    zero = torch.full_like(scale, 8)
    if kind != "normal":
        codes = random_codes(n, groups * 128, seed=8)
        scale = torch.rand(n, groups, generator=generator(9)) * 0.01 + 0.01
    if kind == "unequal groups":
        scale *= torch.tensor([1.0, 0.2, 0.03])
    if kind == "asymmetric":
        zero = torch.tensor([[7, 9, 5], [0, 8, 15], [6, 11, 8]])
    if kind == "few codes":
        codes = random_codes(n, groups * 128, seed=8, low=6, high=10)
    found = refit_groups(codes, scale, zero)
    check_quantised(found.weight)
    least = sum(by_trying_everything(codes[row], scale[row], zero[row]) for row in range(n))
    assert float(found.squared_error.sum()) <= 1.1 * least


def test_no_level_is_farther_than_rounding_and_the_step_put_it() -> None:
    codes, scale = random_codes(64, 1024, seed=10), torch.rand(64, 8, generator=generator(18)) + 0.01
    found = refit_groups(codes, scale)
    units = (found.weight.dequantised() - held(codes, scale)).abs() / found.weight.row_scale.double()[:, None]
    assert float(units.max()) <= 1.3  # half a unit each of rounding and of the zero, and 1/32 a code of the step
    assert float(units.square().mean().sqrt()) <= 0.37


def test_codes_stay_what_they_are() -> None:
    codes = random_codes(8, 512, seed=10)
    scale = torch.tensor([[1.0, 0.02, 1.0, 0.002]]).expand(8, 4).contiguous()
    found = refit_groups(codes, scale)
    assert torch.equal(found.weight.codes, codes)
    narrow = along_k(scale) < 0.5
    difference = found.weight.dequantised() - held(codes, scale)
    assert float(difference[narrow].abs().max()) <= 0.9 / 16  # of the row scale: rounding, and a step in sixteenths


def test_groups_without_a_step_become_zero() -> None:
    codes, scale = random_codes(4, 384, seed=20), torch.tensor([[1.0, 0.0, 2.0]]).repeat(4, 1)
    found = refit_groups(codes, scale)
    assert torch.equal(found.weight.dequantised(), held(codes, scale))
    check_quantised(found.weight)


@pytest.mark.parametrize("low", [0, 1, 14])
def test_levels_at_the_upper_end_fit_a_byte(low: int) -> None:
    """A group far above zero, hardly wider than a point: its last level must not leave the byte, whoever has it."""
    codes = random_codes(8, 256, seed=21, low=low, high=low + 2)
    scale = torch.tensor([[1.0, 1e-3]]).repeat(8, 1) * (1 + torch.rand(8, 2, generator=generator(22)))
    zero = torch.stack((torch.full((8,), 8.0), -100 / scale[:, 1]), 1)
    check_quantised(refit_groups(codes, scale, zero).weight)
    check_quantised(refit_groups(codes, scale, -zero).weight)


def test_error_on_normal_weights_is_what_the_documentation_says() -> None:
    weight = normal(256, 4096, seed=11)
    quantised = quantise_weight(weight, "g128")
    found = refit(quantised)
    assert found.relative_error == pytest.approx(0.0089, abs=0.0002)
    rounding, both = (float((each.dequantised() - weight).norm() / weight.norm()) for each in (quantised, found.weight))
    assert found.relative_error / rounding == pytest.approx(0.08, abs=0.005)
    assert both / rounding == pytest.approx(1.003, abs=0.002)
    assert torch.equal(found.weight.codes, quantised.codes)


# ---- what is reported, and what comes of it --------------------------------------------------------------------------


def test_reported_errors_are_those_of_the_weights() -> None:
    codes = random_codes(5, 384, seed=13)
    scale = torch.rand(5, 3, generator=generator(14)).half() + 0.1
    found = refit_groups(codes, scale)
    wanted = held(codes, scale)
    difference = found.weight.dequantised() - wanted
    assert found.squared_error.tolist() == pytest.approx(squared_rows(difference).tolist(), rel=1e-9)
    assert found.squared_norm.tolist() == pytest.approx(squared_rows(wanted).tolist(), rel=1e-12)
    assert found.relative_error == pytest.approx(float(difference.norm() / wanted.norm()), rel=1e-9)
    errors = (difference.norm(dim=1) / wanted.norm(dim=1)).tolist()
    assert found.worst_row == (errors.index(max(errors)), pytest.approx(max(errors)))


def test_rows_do_not_depend_on_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = quantise_weight(normal(24, 512, seed=15), "g128")
    whole = refit(quantised)
    monkeypatch.setattr("apex4_probe.kernels.refit.ELEMENTS_AT_ONCE", 5 * 512)
    pieces = refit(quantised)
    assert torch.equal(pieces.weight.dequantised(), whole.weight.dequantised())
    assert torch.equal(pieces.squared_error, whole.squared_error)


def test_the_result_packs_and_multiplies_like_the_weight_it_came_from() -> None:
    quantised = quantise_weight(normal(64, 512, seed=16), "g128")
    found = refit(quantised)
    packed = pack_quantised(found.weight, format="w4a8")
    assert torch.equal(unpack(packed).dequantised(), found.weight.dequantised())
    x = normal(8, 512, seed=17).half()
    y, wanted = (reference_linear64(x, each) for each in (packed, pack_quantised(quantised, format="w4a8")))
    assert float((y - wanted).norm() / wanted.norm()) == pytest.approx(found.relative_error, rel=0.15)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["channel", "g64", "g32", "g128i", "g128r"])
def test_refuses_other_granularities(granularity: Granularity) -> None:
    with pytest.raises(ValueError, match=f"only g128 can be refitted to g128r, not {granularity}"):
        refit(quantise_weight(normal(4, 128), granularity))


def test_refuses_other_types() -> None:
    with pytest.raises(ValueError, match="quantised must be a QuantisedWeight, not Tensor"):
        refit(normal(4, 128))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_scales_that_are_not_finite(bad: float) -> None:
    codes, scale = random_codes(4, 256), torch.ones(4, 2)
    spoilt = scale.clone()
    spoilt[2, 1] = bad
    with pytest.raises(ValueError, match="scale must be finite"):
        refit_groups(codes, spoilt)
    with pytest.raises(ValueError, match="zero must be finite"):
        refit_groups(codes, scale, spoilt)
    with pytest.raises(ValueError, match="group_scale must lie in"):
        refit(QuantisedWeight("g128", codes, torch.ones(4), spoilt.half()))


@pytest.mark.parametrize(
    ("codes", "scale", "message"),
    [
        (random_codes(4, 200), torch.ones(4, 2), "codes: K = 200 must be a multiple of 32, or the result cannot be"),
        (random_codes(4, 288), torch.ones(4, 2), r"scale must be \[4, 3\] on cpu, not torch.float32 \[4, 2\]"),
        (random_codes(4, 256).int(), torch.ones(4, 2), r"codes must be uint8 \[N, K\] and not empty, not torch.int32"),
        (random_codes(4, 256, high=255), torch.ones(4, 2), "codes must lie in 0 … 15, not reach 25.: unpack them"),
        (random_codes(4, 256), torch.ones(4, 1), r"scale must be \[4, 2\] on cpu, not torch.float32 \[4, 1\]"),
        (random_codes(4, 256), [[1.0, 1.0]] * 4, "scale must be a torch.Tensor, not list"),
        (torch.empty(0, 128, dtype=torch.uint8), torch.ones(0, 1), "not empty"),
    ],
)
def test_refuses_what_is_no_checkpoint(codes: Tensor, scale: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refit_groups(codes, scale)


def test_refuses_weights_that_overflow() -> None:
    with pytest.raises(ValueError, match="overflows fp32"):
        refit_groups(random_codes(2, 128), torch.full((2, 1), 1e38), torch.full((2, 1), 1e6))


def test_returns_a_frozen_record() -> None:
    found = refit(quantise_weight(normal(4, 128), "g128"))
    assert isinstance(found, Refitted)
    assert found.weight.granularity == "g128r"
    assert found.weight.row_scale.dtype == torch.float32
