"""A 4-bit weight in neutral order, and the quantiser that rounds a float weight to the nearest one.

Codes are 0 … 15, the value plus 8. Row n, column k, group j = k // group (the last of g128i and g128r may be short):

    channel, a128i     w = (code - 8) * row_scale[n]
    g128, g64, g32     w = (code - 8) * group_scale[n, j] * row_scale[n]          group_scale: fp16 in (0, 1]
    g128i              w = (code * integer_scale[n, j] + zero[n, j] - 128) * row_scale[n]
                       integer_scale 1 … 16, zero 0 … 255, code * integer_scale + zero <= 255
    g128r              w = (level(code) - 128) * row_scale[n]
                       level(code) = rint(code * (integer_scale[n, j] + 1) / 16 + zero[n, j]) <= 255, rint to even
                       integer_scale 0 … 255, zero 0 … 255

How the scales are chosen. A step of absmax / 7.5 is the smallest by which no weight errs by more than half a step: +7.5
steps become 7, -7.5 become -8. absmax / 7, which wastes code 0, has more squared error on normal weights: 15 % over
rows of 4096, 12 % in groups of 128, 5 % in groups of 32.

``g128i`` has the zero for nothing, since the kernels subtract an offset anyway, so groups are asymmetric: a group's 16
levels are centred between its least and greatest weight. The row's scale is the smallest with which the widest group
fits 15 steps of 16 and the largest weight fits INT8: rounding the steps to integers then costs least. Of the smallest
integer step that covers the group and the next smaller one, which clips its ends a little but is finer, that with the
smaller squared error is taken. On normal weights this has 24 % less squared error than ``g128``; symmetric integer
steps rounded up have 6 % more.

``g128r`` is chosen likewise, but its steps are sixteenths, so that the widest group alone decides nothing for the
others: of several steps from the one that covers the group down, the best is taken, and each weight gets the code whose
rounded level is nearest. On normal weights it has 27 % less squared error than ``g128``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from apex4_probe.kernels.formats import GROUP, TWO_LEVEL, Granularity, weight_group

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CODE_ZERO = 8  # the code of 0
STEPS_TO_ABSMAX = 7.5
LARGEST_INTEGER_SCALE = 16
TWO_LEVEL_GROUP = 128
INTEGER_OFFSET = 128  # what an unsigned byte of g128i or g128r is above its value
SIXTEENTHS = 16  # of a step of 1, in which g128r's scales count
STEPS_TRIED = (1.0, 0.93, 0.87)  # of g128r's quantiser, times the step that covers the group
SMALLEST_GROUP_SCALE = 2.0**-24  # fp16's smallest positive number
SMALLEST_ROW_SCALE = 2.0**-100  # rows below count as zero: no product of scales may lose bits to underflow
ELEMENTS_AT_ONCE = 1 << 22  # bounds the quantiser's temporaries
LARGEST_TENSOR = 1 << 31  # elements; kernels index with 32 bits


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """Codes and scales of a weight [N, K] as checkpoints hold them; the module's docstring says what they mean.

    ``codes``: uint8 [N, K]. ``row_scale``: fp32 [N]. ``group_scale``: fp16 [N, K / group], g128, g64 and g32 only.
    ``integer_scale``, ``zero``: uint8 [N, ceil(K / 128)], g128i and g128r only.
    """

    granularity: Granularity
    codes: torch.Tensor
    row_scale: torch.Tensor
    group_scale: torch.Tensor | None = None
    integer_scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None

    @property
    def n(self) -> int:
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        return self.codes.shape[1]

    def rows(self, rows: slice) -> QuantisedWeight:
        """The same, of some rows (views)."""
        parts = (self.group_scale, self.integer_scale, self.zero)
        return QuantisedWeight(
            self.granularity,
            self.codes[rows],
            self.row_scale[rows],
            *(None if part is None else part[rows] for part in parts),
        )

    def integers(self) -> torch.Tensor:
        """int16 [N, K]: what an integer MMA multiplies, two-level group scale applied (-128 … 127), else -8 … 7."""
        codes = self.codes.to(torch.int16)
        if self.integer_scale is None or self.zero is None:
            return codes - CODE_ZERO
        scale, zero = (self._along_k(part.to(torch.int16)) for part in (self.integer_scale, self.zero))
        if self.granularity == "g128r":
            return rounded_levels(codes, scale + 1, zero).to(torch.int16) - INTEGER_OFFSET
        return codes * scale + zero - INTEGER_OFFSET

    def dequantised(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """[N, K] in ``dtype``: exact in float64 (39 bits at most), rounded once in any other."""
        values = self.integers().to(torch.float64)
        if self.group_scale is not None:
            values *= self._along_k(self.group_scale.to(torch.float64))
        return (values * self.row_scale.to(torch.float64)[:, None]).to(dtype)

    def _along_k(self, per_group: torch.Tensor) -> torch.Tensor:
        group = weight_group(self.granularity)
        assert group is not None
        return per_group.repeat_interleave(group, dim=1)[:, : self.k]


def quantise_weight(weight: torch.Tensor, granularity: Granularity) -> QuantisedWeight:
    """Rounds ``weight`` [N, K] (fp16, bf16 or fp32, any strides) to the nearest codes; the same on CPU and GPU.

    ValueError, naming the argument: no tensor, another dtype or rank, nothing in it, NaN or infinity, K not a multiple
    of the group (but of g128i and g128r), more than 2^31 elements, an unknown granularity.
    """
    check_weight(weight, granularity)
    weight = weight.detach()
    if weight.is_meta:
        raise ValueError("weight is on meta, where it has no values: load it first")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight must be finite, but holds NaN or infinity")
    quantiser = _quantiser(granularity)
    n, k = weight.shape
    rows = max(1, ELEMENTS_AT_ONCE // k)
    parts = [quantiser(weight[first : first + rows].to(torch.float32)) for first in range(0, n, rows)]

    def joined(name: str) -> torch.Tensor | None:
        pieces = [part[name] for part in parts if name in part]
        return torch.cat(pieces) if pieces else None

    codes, row_scale = joined("codes"), joined("row_scale")
    assert codes is not None and row_scale is not None
    if not bool(torch.isfinite(row_scale).all()):
        raise ValueError("weight is too large: its scales overflow fp32")
    return QuantisedWeight(
        granularity, codes, row_scale, joined("group_scale"), joined("integer_scale"), joined("zero")
    )


def rounded_levels(codes: torch.Tensor, sixteenths: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """g128r's rint(codes * sixteenths / 16 + zero), fp32, of integers of any type: exact but for that rounding."""
    return torch.round((codes * sixteenths).to(torch.float32) * (1 / SIXTEENTHS) + zero)


def check_tensor(name: str, value: object) -> None:
    """ValueError, naming the argument, unless ``value`` is a strided torch tensor."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"{name} must be dense, not {value.layout}: call to_dense()")


def check_weight(weight: torch.Tensor, granularity: Granularity) -> None:
    """What can be said of a float weight without reading it. ValueError as ``quantise_weight``."""
    _check_granularity(granularity)
    check_tensor("weight", weight)
    if weight.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"weight must be fp16, bf16 or fp32, not {weight.dtype}")
    if weight.ndim != 2:
        raise ValueError(f"weight must be a matrix [N, K], not {weight.ndim}-D")
    _check_size("weight", weight, granularity)


def check_quantised(quantised: QuantisedWeight) -> None:
    """ValueError, naming the field, unless ``quantised`` has what its granularity demands, with legal values."""
    _check_granularity(quantised.granularity)
    codes = quantised.codes
    check_tensor("codes", codes)
    if codes.dtype != torch.uint8 or codes.ndim != 2:
        raise ValueError(f"codes must be uint8 [N, K], not {codes.dtype} {list(codes.shape)}")
    _check_size("codes", codes, quantised.granularity)
    group = weight_group(quantised.granularity)
    n, k = codes.shape
    integer, grouped = quantised.granularity in TWO_LEVEL, group is not None
    per_group = (n, -(-k // group)) if group else None
    _check_field("row_scale", quantised.row_scale, torch.float32, (n,), codes.device)
    _check_field(
        "group_scale", quantised.group_scale, torch.float16, None if integer or not grouped else per_group, codes.device
    )
    for name, part in (("integer_scale", quantised.integer_scale), ("zero", quantised.zero)):
        _check_field(name, part, torch.uint8, per_group if integer else None, codes.device)

    if int(codes.max()) > 15:
        raise ValueError(f"codes must lie in 0 … 15, not reach {int(codes.max())}")
    if not bool(torch.isfinite(quantised.row_scale).all()):
        raise ValueError("row_scale must be finite")
    if (scale := quantised.group_scale) is not None and not bool(((scale > 0) & (scale <= 1)).all()):
        raise ValueError("group_scale must lie in (0, 1]: larger ones belong into row_scale")
    if quantised.integer_scale is not None and quantised.zero is not None:
        _check_two_level(quantised.granularity, codes, quantised.integer_scale, quantised.zero)


def _check_two_level(granularity: Granularity, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> None:
    # A short last group is filled up with 0 here as in packed weights: its highest level is that of a code it has.
    filled = torch.nn.functional.pad(codes, (0, -codes.shape[1] % TWO_LEVEL_GROUP))
    largest = filled.reshape(*scale.shape, TWO_LEVEL_GROUP).amax(-1).to(torch.int16)
    wide, zero = scale.to(torch.int16), zero.to(torch.int16)
    if granularity == "g128r":
        level, highest = "rint(code * (integer_scale + 1) / 16 + zero)", rounded_levels(largest, wide + 1, zero)
    elif int(scale.min()) < 1 or int(scale.max()) > LARGEST_INTEGER_SCALE:
        raise ValueError(f"integer_scale must lie in 1 … {LARGEST_INTEGER_SCALE}")
    else:
        level, highest = "code * integer_scale + zero", largest * wide + zero
    if (reached := int(highest.max())) > 255:
        raise ValueError(f"zero: {level} must lie in 0 … 255, not reach {reached}")


def _check_field(
    name: str, value: torch.Tensor | None, dtype: torch.dtype, shape: tuple[int, ...] | None, device: torch.device
) -> None:
    """``shape`` None: the granularity has no such field."""
    if shape is None:
        if value is not None:
            raise ValueError(f"{name} must be None: this granularity has none")
    elif value is None:
        raise ValueError(f"{name} must be given: {dtype} {list(shape)}")
    else:
        check_tensor(name, value)
        if value.dtype != dtype or tuple(value.shape) != shape:
            raise ValueError(f"{name} must be {dtype} {list(shape)}, not {value.dtype} {list(value.shape)}")
        if value.device != device:
            raise ValueError(f"{name} must be on {device} like codes, not on {value.device}")


def _check_granularity(granularity: Granularity) -> None:
    if granularity not in tuple(GROUP):  # a tuple compares where a dict would want to hash
        raise ValueError(f"granularity must be one of {', '.join(GROUP)}, not {granularity!r}")


def _check_size(name: str, matrix: torch.Tensor, granularity: Granularity) -> None:
    n, k = matrix.shape
    group = None if granularity in TWO_LEVEL else weight_group(granularity)
    if n == 0 or k == 0:
        raise ValueError(f"{name} must not be empty, but is {n} x {k}")
    if matrix.numel() > LARGEST_TENSOR:
        raise ValueError(f"{name} must not have more than 2^31 elements, but is {n} x {k}")
    if group and k % group:
        raise ValueError(f"{name}: K = {k} must be a multiple of the group of {group}")


Parts = dict[str, torch.Tensor]


def _quantiser(granularity: Granularity) -> Callable[[torch.Tensor], Parts]:
    group = weight_group(granularity)
    if group is None:
        return _per_row
    if granularity == "g128i":
        return _integer_groups
    return _rounded_groups if granularity == "g128r" else lambda weight: _float_groups(weight, group)


# Elementwise tensor arithmetic alone, in an order that is spelt out, and never a Python number as divisor (torch
# multiplies by its reciprocal on a GPU): so that CPU and GPU give the same bits.


def _over(values: torch.Tensor, divisor: float) -> torch.Tensor:
    return values / torch.full_like(values, divisor)


def _row_scale(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``scale`` with tiny ones made zero, and the same with ones for zeros, to divide by."""
    scale = torch.where(scale < SMALLEST_ROW_SCALE, torch.zeros_like(scale), scale)
    return scale, torch.where(scale == 0, torch.ones_like(scale), scale)


def _codes(weight: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return (torch.round(weight / step).clamp(-CODE_ZERO, 15 - CODE_ZERO) + CODE_ZERO).to(torch.uint8)


def _per_row(weight: torch.Tensor) -> Parts:
    row_scale, divisor = _row_scale(_over(weight.abs().amax(1), STEPS_TO_ABSMAX))
    return {"codes": _codes(weight, divisor[:, None]), "row_scale": row_scale}


def _float_groups(weight: torch.Tensor, group: int) -> Parts:
    groups = weight.reshape(weight.shape[0], -1, group)
    absmax = groups.abs().amax(2)
    row_max = absmax.amax(1)
    row_scale, divisor = _row_scale(_over(row_max, STEPS_TO_ABSMAX))
    row_max = torch.where(row_scale == 0, torch.ones_like(row_max), row_max)
    group_scale = (absmax / row_max[:, None]).clamp(SMALLEST_GROUP_SCALE, 1.0).to(torch.float16)
    step = group_scale.to(torch.float32) * divisor[:, None]  # the rounded scale: codes are nearest to what it gives
    return {
        "codes": _codes(groups, step[:, :, None]).reshape(weight.shape),
        "row_scale": row_scale,
        "group_scale": group_scale,
    }


def _two_level(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of groups of 128: row scale, weights over it, least and greatest of each group.

    A short last group is filled up with its last weight, which moves neither its least nor its greatest.
    """
    missing = -weight.shape[1] % TWO_LEVEL_GROUP
    filled = torch.cat((weight, weight[:, -1:].expand(-1, missing)), 1) if missing else weight
    groups = filled.reshape(weight.shape[0], -1, TWO_LEVEL_GROUP)
    least, greatest = groups.amin(2), groups.amax(2)
    widest = _over((greatest - least).amax(1), 15.0 * LARGEST_INTEGER_SCALE)
    largest = _over(weight.abs().amax(1), INTEGER_OFFSET - 0.5)
    row_scale, divisor = _row_scale(torch.maximum(widest, largest))
    return row_scale, groups / divisor[:, None, None], least / divisor[:, None], greatest / divisor[:, None]


def _integer_groups(weight: torch.Tensor) -> Parts:
    row_scale, values, least, greatest = _two_level(weight)
    covering = torch.ceil(_over(greatest - least, 15.0)).clamp(1, LARGEST_INTEGER_SCALE)

    def rounded(scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The squared error of every group; scale, zero, codes."""
        centred = torch.round((least + greatest) * 0.5 - scale * 7.5) + INTEGER_OFFSET
        zero = torch.minimum(centred.clamp(min=0), 255 - scale * 15)
        offset = zero - INTEGER_OFFSET
        codes = torch.round((values - offset[:, :, None]) / scale[:, :, None]).clamp(0, 15)
        error = codes * scale[:, :, None] + offset[:, :, None] - values
        return _squared(error, weight.shape[1]), scale, zero, codes

    best = _less(rounded(covering), rounded((covering - 1).clamp(min=1)))
    return _two_level_parts(weight, row_scale, *best[1:])


def _rounded_groups(weight: torch.Tensor) -> Parts:
    row_scale, values, least, greatest = _two_level(weight)
    values = values + INTEGER_OFFSET
    covering = _over(greatest - least, 15.0 / SIXTEENTHS)

    def rounded(factor: float) -> tuple[torch.Tensor, ...]:
        """The squared error of every group; integer scale, zero, codes."""
        sixteenths = torch.ceil(covering * factor).clamp(1, SIXTEENTHS * LARGEST_INTEGER_SCALE)
        scale = sixteenths * (1 / SIXTEENTHS)
        centred = torch.round((least + greatest) * 0.5 - scale * 7.5) + INTEGER_OFFSET
        zero = torch.minimum(centred.clamp(min=0), 255 - torch.ceil(scale * 15))

        def off(codes: torch.Tensor) -> torch.Tensor:
            return rounded_levels(codes, sixteenths[:, :, None], zero[:, :, None]) - values

        codes = torch.round((values - zero[:, :, None]) / scale[:, :, None]).clamp(0, 15)
        error = off(codes)
        neighbour = (codes - torch.sign(error)).clamp(0, 15)  # may be nearer, for levels are rounded
        of_neighbour = off(neighbour)
        nearer = of_neighbour.abs() < error.abs()
        error, codes = torch.where(nearer, of_neighbour, error), torch.where(nearer, neighbour, codes)
        return _squared(error, weight.shape[1]), sixteenths - 1, zero, codes

    best = rounded(STEPS_TRIED[0])
    for factor in STEPS_TRIED[1:]:
        best = _less(best, rounded(factor))
    return _two_level_parts(weight, row_scale, *best[1:])


def _less(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Group by group, of two tuples that begin with an error, the one that errs less; of equals the second."""
    take = second[0] <= first[0]
    return tuple(
        torch.where(take if old.ndim == take.ndim else take[:, :, None], new, old)
        for old, new in zip(first, second, strict=True)
    )


def _two_level_parts(
    weight: torch.Tensor, row_scale: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, codes: torch.Tensor
) -> Parts:
    return {
        "codes": codes.to(torch.uint8).flatten(1)[:, : weight.shape[1]],
        "row_scale": row_scale,
        "integer_scale": scale.to(torch.uint8),
        "zero": zero.to(torch.uint8),
    }


def _squared(error: torch.Tensor, k: int) -> torch.Tensor:
    """The squared error of each group, of its first ``k`` columns; in one order on every device: it decides."""
    values = error * error
    values[:, -1, k - (error.shape[1] - 1) * TWO_LEVEL_GROUP :] = 0
    while (width := values.shape[-1]) > 1:
        values = values[..., : width // 2] + values[..., width // 2 :]
    return values[..., 0]
