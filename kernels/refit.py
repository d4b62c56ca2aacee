"""Checkpoints with a float scale per group of 128 (GPTQ, AWQ, rounding to nearest) made two-level, ``g128r``.

A kernel with float group scales promotes every accumulator of every group on CUDA Cores; two-level scales are applied
while INT4 is widened. What a checkpoint holds in a group, an arithmetic series of 16 levels,

    w = (code - group_zero) * group_scale

becomes ``(rint(code * sixteenths / 16 + zero) - 128) * row_scale``. Codes stay what they are (15 - code in a group
whose scale has the other sign than the row's widest, 0 in one whose scale is 0); only scales are fitted, so that the
squared error over each row is least: 0.3 INT8 units rms, where the row's widest group has steps of 16. Sixteen counts
describe a group, and nothing but codes and scales is needed.

How. For a given row scale a group's zero is one of the two integers next to its first level, the step that goes with it
follows by least squares over the codes that occur, and of both zeros that with the smaller error is taken. A row takes
the best of ``ROW_SCALES`` row scales, from the smallest with which no step exceeds 16 and every level fits a byte, and
refines it by least squares.

Why the two bytes are divided so. With one byte each the zero is an integer for symmetric groups, too, whose first level
lies at any fraction; but the step makes up for it where the codes are. Relative error on normal weights, rows of 32
groups and one row scale tried, symmetric / asymmetric: 0.92 / 0.94 %; steps of 1/32 and zeros of 2 1.08 / 1.05 %, of
1/8 and zeros of 1/2 0.94 / 0.97 %. With as many bits as one likes it is 0.84 / 0.81 %: the rounding to INT8 alone.

What it costs. On rows of 4096 normal weights the error is 0.9 % of the weights, 0.08 times the error of rounding them
to g128, which it meets at a right angle: both together are 1.003 times that. A model, in nats per token
(``tests/quality/refit_loss.py``): SmolLM2-135M, rows of 5 and 12 groups, by GPTQ 0.073 and 0.178 over FP32 on two
texts, loses 0.0001 and 0.0028 (+- 0.0008) more; by the size of the change and not by chance 0.0014 and 0.0030
(+- 0.0005), and with one row scale for 40 groups and more 0.0038 and 0.0047. Rounded to nearest, where it is 0.5 over
FP32 and far from any minimum, chance takes 0.010 more on both texts, size 0.0037 and 0.0028 (+- 0.0018).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from apex4_probe.kernels.packing import SMALLEST_K_STEP
from apex4_probe.kernels.quantised_weight import (
    CODE_ZERO,
    ELEMENTS_AT_ONCE,
    INTEGER_OFFSET,
    LARGEST_INTEGER_SCALE,
    SIXTEENTHS,
    SMALLEST_ROW_SCALE,
    TWO_LEVEL_GROUP,
    QuantisedWeight,
    check_quantised,
    check_tensor,
    rounded_levels,
)

LEVELS = 16
ROW_SCALES = tuple(1 + 0.01 * i for i in range(8))  # times the smallest. Twice as many err less by 1 % with 5 groups


@dataclass(frozen=True, eq=False)
class Refitted:
    """``weight``: granularity g128r. ``squared_error``, ``squared_norm``: fp64 [N], per row, of w' - w and of w."""

    weight: QuantisedWeight
    squared_error: torch.Tensor
    squared_norm: torch.Tensor

    @property
    def relative_error(self) -> float:
        """|w' - w| / |w|, Frobenius norms over the whole matrix; 0: every weight is what it was."""
        return _ratio(self.squared_error.sum(), self.squared_norm.sum())

    @property
    def row_errors(self) -> torch.Tensor:
        """fp64 [N]: |w' - w| / |w| of each row, 0 for a row of zeros."""
        return (self.squared_error / torch.where(self.squared_norm == 0, 1.0, self.squared_norm)).sqrt()

    @property
    def worst_row(self) -> tuple[int, float]:
        """Index and relative error of the row that fits worst."""
        row = int(self.row_errors.argmax())
        return row, float(self.row_errors[row])


def refit(quantised: QuantisedWeight) -> Refitted:
    """``quantised`` (g128: codes [N, K], float scales [N, K / 128]) with the two-level scales that come closest to it.

    Pack the result's ``weight`` with ``pack_quantised(..., format="w4a8")``, naming the rotation that ``quantised`` has
    been given, if any. Computes where the codes lie; 28672 x 4096 take some seconds on a CPU.

    ValueError: a granularity other than g128, NaN and whatever ``pack_quantised`` refuses.
    """
    if not isinstance(quantised, QuantisedWeight):
        raise ValueError(f"quantised must be a QuantisedWeight, not {type(quantised).__name__}; see refit_groups")
    check_quantised(quantised)
    if quantised.granularity != "g128" or quantised.group_scale is None:
        raise ValueError(
            f"quantised: only g128 can be refitted to g128r, not {quantised.granularity}: their groups are not the same"
        )
    scale = quantised.group_scale.to(torch.float64) * quantised.row_scale.to(torch.float64)[:, None]
    return _refit(quantised.codes, scale, torch.full_like(scale, CODE_ZERO))


def refit_groups(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> Refitted:
    """As ``refit``, of a weight as checkpoints hold it: w = (codes - zero) * scale.

    ``codes``: uint8 [N, K], 0 … 15, one a byte. ``scale``: fp16, bf16 or fp32 [N, ceil(K / 128)], of either sign.
    ``zero``: [N, ceil(K / 128)], integers or floats; None: 8 (symmetric).

    ValueError, naming the argument: no tensor, another dtype, shape or device, K not a multiple of 32, codes above 15,
    NaN or infinity, weights that overflow fp32.
    """
    check_tensor("codes", codes)
    if codes.dtype != torch.uint8 or codes.ndim != 2 or codes.numel() == 0:
        raise ValueError(f"codes must be uint8 [N, K] and not empty, not {codes.dtype} {list(codes.shape)}")
    n, k = codes.shape
    groups = -(-k // TWO_LEVEL_GROUP)
    if k % SMALLEST_K_STEP:
        raise ValueError(f"codes: K = {k} must be a multiple of {SMALLEST_K_STEP}, or the result cannot be packed")
    if int(codes.max()) >= LEVELS:
        raise ValueError(f"codes must lie in 0 … 15, not reach {int(codes.max())}: unpack them, one a byte")
    for name, part in {"scale": scale, **({} if zero is None else {"zero": zero})}.items():
        check_tensor(name, part)
        if tuple(part.shape) != (n, groups) or part.device != codes.device or part.is_complex():
            found = f"{part.dtype} {list(part.shape)} on {part.device}"
            raise ValueError(f"{name} must be [{n}, {groups}] on {codes.device}, not {found}")
        if not bool(torch.isfinite(part).all()):
            raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    wide = scale.detach().to(torch.float64)
    return _refit(codes, wide, torch.full_like(wide, CODE_ZERO) if zero is None else zero.detach().to(torch.float64))


def _refit(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> Refitted:
    """``scale``, ``zero``: fp64 [N, groups]."""
    n, k = codes.shape
    count = max(1, ELEMENTS_AT_ONCE // k)
    parts = [
        _refit_rows(codes[first : first + count], scale[first : first + count], zero[first : first + count])
        for first in range(0, n, count)
    ]
    new_codes, row_scale, sixteenths, byte, error, norm = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    if not bool(torch.isfinite(row_scale).all()):
        raise ValueError("scale is too large: the weight overflows fp32")
    return Refitted(QuantisedWeight("g128r", new_codes, row_scale, None, sixteenths, byte), error, norm)


def _refit_rows(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rows, group_count = scale.shape
    # Steps are positive: the row scale takes the sign of the row's widest group (for -8 times a step of 16 fits a byte,
    # and 8 does not), and a group of the other sign becomes its mirror image, code 15 - code.
    widest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    sign = torch.where(widest < 0, -1.0, 1.0)
    scale = scale * sign
    falling = scale < 0
    start = torch.where(falling, scale * (LEVELS - 1 - zero), -scale * zero)
    of_column = torch.arange(codes.shape[1], device=codes.device) // TWO_LEVEL_GROUP  # the last may have fewer
    new_codes = torch.where(falling[:, of_column], LEVELS - 1 - codes, codes)
    # A group without a step, whose weights are zero: a step of 1/16 cannot move the first codes.
    new_codes = torch.where((scale == 0)[:, of_column], 0, new_codes)

    first_group = torch.arange(rows, device=codes.device)[:, None] * group_count
    index = (first_group + of_column) * LEVELS + new_codes
    counts = torch.bincount(index.flatten(), minlength=rows * group_count * LEVELS)
    groups = _Groups(counts.view(rows, group_count, LEVELS).to(torch.float64), scale.abs(), start)
    smallest = groups.smallest_row_scale()
    empty = smallest < SMALLEST_ROW_SCALE
    error, row_scale, sixteenths, offset = _best(groups.fits(torch.where(empty, 1.0, smallest)))
    norm = groups.squares(groups.levels())
    return (
        new_codes,
        (torch.where(empty, 0.0, row_scale) * sign[:, 0]).to(torch.float32),
        (sixteenths - 1).to(torch.uint8),
        offset.to(torch.uint8),
        torch.where(empty, norm, error),
        norm,
    )


@dataclass(frozen=True, eq=False)
class _Groups:
    """Levels ``slope * code + start``, slope >= 0: fp64 [rows, groups]; and how many weights have each: ``counts``
    [rows, groups, 16]."""

    counts: torch.Tensor
    slope: torch.Tensor
    start: torch.Tensor

    def levels(self) -> torch.Tensor:
        return self.slope[..., None] * self._code() + self.start[..., None]

    def squares(self, values: torch.Tensor) -> torch.Tensor:
        """Of values that the levels have, [rows, groups, 16], summed over each row's weights."""
        return (self.counts * values * values).sum((1, 2))

    def smallest_row_scale(self) -> torch.Tensor:
        """[rows]: with which no step exceeds 16 and every level fits INT8, those of a step of 1/16 included."""
        low, high = -self.start.amin(1), (self.start + (LEVELS - 1) * self.slope).amax(1)
        widest = self.slope.amax(1) / LARGEST_INTEGER_SCALE
        return torch.maximum(widest, torch.maximum(low / INTEGER_OFFSET, high / (INTEGER_OFFSET - 2)))

    def fits(self, smallest: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Squared error [rows], row scale [rows], sixteenths and zero [rows, groups] for each of ``ROW_SCALES``."""
        levels = self.levels()
        for factor in ROW_SCALES:
            row_scale = smallest * factor
            _, sixteenths, zero = _best(self._with_row_scale(row_scale))
            integers = rounded_levels(self._code(), sixteenths[..., None], zero[..., None]) - INTEGER_OFFSET
            counted = self.counts * integers
            own = (counted * integers).sum((1, 2))
            refined = (counted * levels).sum((1, 2)) / torch.where(own > 0, own, 1.0)
            row_scale = torch.where(refined > 0, refined, row_scale).to(torch.float32).to(torch.float64)
            yield self.squares(integers * row_scale[:, None, None] - levels), row_scale, sixteenths, zero

    def _with_row_scale(self, row_scale: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Squared error, sixteenths and zero, [rows, groups] each, for both zeros."""
        code, step, first = self._code(), self.slope / row_scale[:, None], self.start / row_scale[:, None]
        levels = step[..., None] * code + first[..., None] + INTEGER_OFFSET
        mean_over_square = (self.counts @ code) / (self.counts @ (code * code)).clamp(min=1)
        for zero in (first.floor() + INTEGER_OFFSET, first.ceil() + INTEGER_OFFSET):
            wanted = step + (first + INTEGER_OFFSET - zero) * mean_over_square
            sixteenths = (wanted * SIXTEENTHS).round().clamp(1, SIXTEENTHS * LARGEST_INTEGER_SCALE)
            integers = rounded_levels(code, sixteenths[..., None], zero[..., None])
            difference = integers - levels
            error = (self.counts * difference * difference).sum(2)
            yield torch.where((zero < 0) | (integers[..., -1] > 255), torch.inf, error), sixteenths, zero

    def _code(self) -> torch.Tensor:
        return torch.arange(LEVELS, dtype=torch.float64, device=self.slope.device)


def _best(candidates: Iterator[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Of tuples that begin with an error, the least by the error's axes; of equals the first. Others may have more."""
    best = next(candidates)
    for other in candidates:
        take = other[0] < best[0]
        best = tuple(
            torch.where(take.reshape(*take.shape, *[1] * (old.ndim - take.ndim)), new, old)
            for old, new in zip(best, other, strict=True)
        )
    return best


def _ratio(error: torch.Tensor, norm: torch.Tensor) -> float:
    return float((error / norm).sqrt()) if float(norm) > 0 else 0.0
