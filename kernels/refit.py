"""Checkpoints with a float scale per group of 128 (GPTQ, AWQ, round to nearest) made two-level, ``g128i``, at load time.

A kernel with float group scales promotes every accumulator of every group on CUDA Cores; integer group scales are
applied while INT4 is widened, for nothing. What a checkpoint holds in a group,

    w = (code - group_zero) * group_scale                            an arithmetic series of 16 levels,

is approximated by ``(code * integer_scale + zero - 128) * row_scale``, with integer_scale 1 … 16 and zero 0 … 255, so
that the squared error over each row is least. Nothing but codes and scales is needed: sixteen counts describe a group.

For a given row scale r the best integer_scale and zero of a group that keeps its codes follow from the codes' mean and
variance. For given integers the best r is a quotient of two sums (least squares), and with it the error. So each of
``CANDIDATES`` row scales, from the smallest that covers the row to twice it (an exact fit with a larger one has an
exact fit with half of it, too), yields integers, these a better r and an error. The best ``FINALISTS`` are evaluated
level by level, where a group far narrower than the row's widest may round its levels to other codes: at an integer_scale
below 5, half a step is less than what a rounded scale makes of the outermost code.

How much this costs: group scales become multiples of r, about 1/16 of the row's largest. On rows of 4096 normal weights
the error is 2 % of the weights, 0.2 times the error of rounding them to g128 (which it meets at a right angle, so that
both together are 1.02 times that). Rows with fewer groups fit better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from apex4_probe.kernels.formats import GROUP, Granularity
from apex4_probe.kernels.quantised_weight import (
    CODE_ZERO,
    ELEMENTS_AT_ONCE,
    INTEGER_OFFSET,
    LARGEST_INTEGER_SCALE,
    SMALLEST_ROW_SCALE,
    QuantisedWeight,
    check_quantised,
    check_tensor,
)

LEVELS = 16
LARGEST_INTEGER = 255 - INTEGER_OFFSET
# Of a row scale between two of them, the nearer one (1 % off) gives every group scale its integer: 16 becomes 16 +- 0.16.
CANDIDATES = tuple(0.94 * 1.02**i for i in range(40))  # 0.94 … 2.03, times the smallest row scale that clips nothing
FINALISTS = 3


@dataclass(frozen=True, eq=False)
class Refitted:
    """``weight``: granularity g128i. ``squared_error``, ``squared_norm``: fp64 [N], per row, of w' - w and of w."""

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


def refit(quantised: QuantisedWeight, granularity: Granularity = "g128i") -> Refitted:
    """``quantised`` (g128: codes [N, K], float scales [N, K / 128]) with the two-level scales that come closest to it.

    Pack the result's ``weight`` with ``pack_quantised(..., format="w4a8")``. A rotation that ``quantised`` has been given
    stays in it. Computes where the codes lie; 28672 x 4096 take some seconds on a CPU.

    ValueError: a granularity other than g128, a target other than g128i, NaN or whatever else ``pack_quantised`` refuses.
    """
    if granularity != "g128i":
        raise ValueError(f"granularity: scales are refitted to g128i, not to {granularity!r}")
    if not isinstance(quantised, QuantisedWeight):
        raise ValueError(f"quantised must be a QuantisedWeight, not {type(quantised).__name__}; see refit_groups")
    check_quantised(quantised)
    if quantised.granularity != "g128" or quantised.group_scale is None:
        raise ValueError(
            f"quantised: only g128 can be refitted to g128i, not {quantised.granularity}: their groups are not the same"
        )
    scale = quantised.group_scale.to(torch.float64) * quantised.row_scale.to(torch.float64)[:, None]
    return _refit(quantised.codes, scale, torch.full_like(scale, CODE_ZERO))


def refit_groups(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> Refitted:
    """As ``refit``, of a weight as checkpoints hold it: w = (codes - zero) * scale.

    ``codes``: uint8 [N, K], 0 … 15, one a byte. ``scale``: fp16, bf16 or fp32 [N, K / 128], of either sign. ``zero``:
    [N, K / 128], integers or floats; None: 8 (symmetric).

    ValueError, naming the argument: no tensor, another dtype, shape or device, K not a multiple of 128, codes above 15,
    NaN or infinity, weights that overflow fp32.
    """
    check_tensor("codes", codes)
    if codes.dtype != torch.uint8 or codes.ndim != 2 or codes.numel() == 0:
        raise ValueError(f"codes must be uint8 [N, K] and not empty, not {codes.dtype} {list(codes.shape)}")
    group = GROUP["g128i"]
    assert group is not None
    n, k = codes.shape
    if k % group:
        raise ValueError(f"codes: K = {k} must be a multiple of the group of {group}")
    if int(codes.max()) >= LEVELS:
        raise ValueError(f"codes must lie in 0 … 15, not reach {int(codes.max())}: unpack them, one a byte")
    for name, part in (("scale", scale), ("zero", zero)):
        if part is None and name == "zero":
            continue
        check_tensor(name, part)
        assert part is not None
        if tuple(part.shape) != (n, k // group) or part.device != codes.device or part.is_complex():
            raise ValueError(
                f"{name} must be [{n}, {k // group}] on {codes.device}, not {part.dtype} {list(part.shape)} on {part.device}"
            )
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
    new_codes, row_scale, integer_scale, byte, error, norm = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    if not bool(torch.isfinite(row_scale).all()):
        raise ValueError("scale is too large: the weight overflows fp32")
    return Refitted(QuantisedWeight("g128i", new_codes, row_scale, None, integer_scale, byte), error, norm)


@dataclass(frozen=True, eq=False)
class _Groups:
    """Levels ``slope * code + start``, slope >= 0, and how many weights have each: fp64 [rows, groups], counts [.., 16].

    Of the codes that occur: ``lowest``, ``highest``, ``mean`` and ``square``, the mean of the squares.
    """

    counts: torch.Tensor
    slope: torch.Tensor
    start: torch.Tensor
    n: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor

    def levels(self) -> torch.Tensor:
        return self.slope[..., None] * _codes(self.slope) + self.start[..., None]


def _groups(counts: torch.Tensor, slope: torch.Tensor, start: torch.Tensor) -> _Groups:
    code, used, n = _codes(slope), counts > 0, counts.sum(2)
    lowest, highest = torch.where(used, code, 15.0).amin(2), torch.where(used, code, 0.0).amax(2)
    return _Groups(
        counts, slope, start, n, lowest, highest, (counts @ code) / n, (counts @ (code * code)) / n
    )


@dataclass(frozen=True, eq=False)
class _Fit:
    """``row_scale`` [rows]; ``step`` and ``offset`` (integer_scale and zero - 128) [rows, groups]; ``codes`` of the 16
    levels [rows, groups, 16]; ``error`` [rows], squared. All fp64."""

    row_scale: torch.Tensor
    step: torch.Tensor
    offset: torch.Tensor
    codes: torch.Tensor
    error: torch.Tensor

    def integers(self) -> torch.Tensor:
        return self.step[..., None] * self.codes + self.offset[..., None]


def _refit_rows(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rows, group_count = scale.shape
    grouped = codes.reshape(rows, group_count, -1)
    index = torch.arange(rows * group_count, device=codes.device).view(rows, group_count, 1) * LEVELS + grouped
    counts = torch.bincount(index.view(-1), minlength=rows * group_count * LEVELS)
    counts = counts.view(rows, group_count, LEVELS).to(torch.float64)
    # Steps are positive: the row scale takes the sign of the row's widest group (for -8 times a step of 16 fits a byte,
    # and 8 does not), and a group of the other sign becomes its mirror image, code 15 - code.
    widest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    sign = torch.where(widest < 0, -1.0, 1.0)
    scale = scale * sign
    falling = (scale < 0)[..., None]
    start = torch.where(scale < 0, scale * (LEVELS - 1 - zero), -scale * zero)
    groups = _groups(torch.where(falling, counts.flip(2), counts), scale.abs(), start)

    smallest = _smallest_row_scale(groups)
    empty = smallest < SMALLEST_ROW_SCALE
    fit = _best([_fit(groups, row_scale) for row_scale in _finalists(groups, torch.where(empty, 1.0, smallest))])

    row_scale = torch.where(empty, 0.0, fit.row_scale)
    levels = groups.levels()
    difference = fit.integers() * row_scale[:, None, None] - levels
    error, norm = ((groups.counts * values * values).sum((1, 2)) for values in (difference, levels))
    table = torch.where(falling, fit.codes.flip(2), fit.codes)
    return (
        _recoded(grouped, table, counts).reshape(codes.shape),
        (row_scale * sign[:, 0]).to(torch.float32),
        fit.step.to(torch.uint8),
        (fit.offset + INTEGER_OFFSET).to(torch.uint8),
        error,
        norm,
    )


def _smallest_row_scale(groups: _Groups) -> torch.Tensor:
    """[rows]: with which every step is at most 16, and every weight fits INT8."""
    low = (groups.slope * groups.lowest + groups.start).amin(1) / -INTEGER_OFFSET
    high = (groups.slope * groups.highest + groups.start).amax(1) / LARGEST_INTEGER
    return torch.maximum(groups.slope.amax(1) / LARGEST_INTEGER_SCALE, torch.maximum(low, high))


def _finalists(groups: _Groups, smallest: torch.Tensor) -> list[torch.Tensor]:
    """The most promising row scales, [rows] each, refined by least squares."""
    found, errors = [], []
    zeros = (groups.slope == 0) & (groups.start == 0)
    for factor in CANDIDATES:
        row_scale = smallest * factor
        a, b = groups.slope / row_scale[:, None], groups.start / row_scale[:, None]
        step, offset, error, rounded = _keeping_codes(groups, a, b)
        kept = error <= rounded
        weight = torch.where(kept, groups.n, 0.0)
        dot, own, norm = (
            (weight * moment).sum(1)
            for moment in (
                a * step * groups.square + (a * offset + b * step) * groups.mean + b * offset,
                step * step * groups.square + 2 * step * offset * groups.mean + offset * offset,
                a * a * groups.square + 2 * a * b * groups.mean + b * b,
            )
        )
        refined = _least_squares(dot, own)
        least = (norm - dot * refined).clamp(min=0) + torch.where(kept, 0.0, groups.n * rounded).sum(1)
        fitted = _fp32(row_scale * refined)
        exact = ((step * fitted[:, None] == groups.slope) & (offset * fitted[:, None] == groups.start)) | zeros
        found.append(fitted)
        # Of several that are right but for rounding to fp32 (a step of 12, or of 15), one that is right after it.
        errors.append(torch.where(exact.all(1), -1.0, least * row_scale * row_scale))
    order = torch.stack(errors).topk(FINALISTS, dim=0, largest=False).indices
    return list(torch.stack(found).gather(0, order))


def _keeping_codes(groups: _Groups, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """For levels a * code + b: step, offset, mean squared error; and what that is about when codes are rounded anew."""
    variance = groups.square - groups.mean * groups.mean

    def with_step(step: torch.Tensor) -> tuple[torch.Tensor, ...]:
        excess = step - a
        offset = (b - excess * groups.mean).round().clamp(min=-INTEGER_OFFSET)
        offset = torch.minimum(offset, LARGEST_INTEGER - step * groups.highest)
        shift = offset - b + excess * groups.mean
        return excess * excess * variance + shift * shift, step, offset

    down = a.floor().clamp(1, LARGEST_INTEGER_SCALE)
    error, step, offset = _less(with_step(down), with_step((down + 1).clamp(max=LARGEST_INTEGER_SCALE)))
    covering = (a * (groups.highest - groups.lowest) / 15).ceil().clamp(min=1)
    rounded = torch.where(covering <= LARGEST_INTEGER_SCALE, covering * covering / 12, torch.inf)  # uniform noise
    return step, offset, error, rounded


def _fit(groups: _Groups, row_scale: torch.Tensor) -> _Fit:
    """Steps, offsets and codes for ``row_scale`` [rows], and the row scale that is best for these."""
    a, b = groups.slope / row_scale[:, None], groups.start / row_scale[:, None]
    step, offset, error, rounded = _keeping_codes(groups, a, b)
    codes = _codes(a).expand(groups.counts.shape).clone()
    farthest = torch.maximum(groups.highest - groups.mean, groups.mean - groups.lowest)
    centre = a * groups.mean + b - step * groups.mean - offset
    nearer = (step - a).abs() * farthest + centre.abs() > step / 2  # some code's level is another code's neighbour
    some = nearer | (rounded < error)
    if bool(some.any()):
        counts, levels = groups.counts[some], a[some, None] * _codes(a) + b[some, None]
        step[some], offset[some], codes[some] = _rounded_anew(counts, levels, step[some], offset[some])
    integers, levels = step[..., None] * codes + offset[..., None], groups.levels()
    counted = groups.counts * integers
    dot, own = (counted * levels).sum((1, 2)), (counted * integers).sum((1, 2))
    row_scale = _fp32(row_scale * _least_squares(dot / row_scale, own))
    difference = integers * row_scale[:, None, None] - levels
    return _Fit(row_scale, step, offset, codes, (groups.counts * difference * difference).sum((1, 2)))


def _rounded_anew(
    counts: torch.Tensor, levels: torch.Tensor, step: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step and offset [groups] and the codes of ``levels`` [groups, 16]: the given ones or others, whatever errs least.

    Others are a step up and down, and the two smallest steps with which 16 levels cover those that occur, or nearly.
    """
    used = counts > 0
    low, high = torch.where(used, levels, torch.inf).amin(1), torch.where(used, levels, -torch.inf).amax(1)
    middle = (low + high) / 2
    covering = ((high - low) / 15).ceil().clamp(1, LARGEST_INTEGER_SCALE)
    code = (counts @ _codes(levels)) / counts.sum(1)  # the mean, where a kept code's level stays when the step changes
    best: tuple[torch.Tensor, ...] = ()
    for other, centre in (
        (step, offset),
        ((step - 1).clamp(min=1), offset + code),
        ((step + 1).clamp(max=LARGEST_INTEGER_SCALE), offset - code),
        (covering, middle - covering * 7.5),
        ((covering - 1).clamp(min=1), middle - (covering - 1).clamp(min=1) * 7.5),
    ):
        codes, whole = _assigned(levels, counts, other, centre)
        difference = other[:, None] * codes + whole[:, None] - levels
        found = ((counts * difference * difference).sum(1), other, whole, codes)
        best = _less(best, found) if best else found
    return best[1:]


def _assigned(
    levels: torch.Tensor, counts: torch.Tensor, step: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each level's nearest code, and the offset: the whole one next to ``offset``, moved to where these codes want it."""

    def nearest(offset: torch.Tensor) -> torch.Tensor:
        highest = ((LARGEST_INTEGER - offset) / step).floor().clamp(max=LEVELS - 1)
        return torch.minimum(((levels - offset[:, None]) / step[:, None]).round().clamp(min=0), highest[:, None])

    codes = nearest(offset.round().clamp(-INTEGER_OFFSET, LARGEST_INTEGER))
    wanted = ((counts * (levels - step[:, None] * codes)).sum(1) / counts.sum(1)).round().clamp(min=-INTEGER_OFFSET)
    highest = torch.where(counts > 0, codes, 0.0).amax(1)
    offset = torch.minimum(wanted, LARGEST_INTEGER - step * highest)
    return nearest(offset), offset


def _fp32(values: torch.Tensor) -> torch.Tensor:
    """What fp32 makes of fp64 numbers."""
    return values.to(torch.float32).to(torch.float64)


def _best(fits: list[_Fit]) -> _Fit:
    """Row by row."""
    parts = [(fit.error, fit.row_scale, fit.step, fit.offset, fit.codes) for fit in fits]
    best = parts[0]
    for part in parts[1:]:
        best = _less(best, part)
    error, row_scale, step, offset, codes = best
    return _Fit(row_scale, step, offset, codes, error)


def _less(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Of two tuples that begin with an error, the one that errs less, by the error's axes; the others may have more."""
    take = second[0] < first[0]
    return tuple(
        torch.where(take.reshape(*take.shape, *[1] * (old.ndim - take.ndim)), new, old)
        for old, new in zip(first, second, strict=True)
    )


def _least_squares(dot: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """dot / own: the factor that brings a vector nearest to another. 1 where that says nothing, or turns it round."""
    return torch.where((own > 0) & (dot > 0), dot / torch.where(own > 0, own, 1.0), 1.0)


def _recoded(grouped: torch.Tensor, table: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """``grouped`` [rows, groups, group] by ``table`` [rows, groups, 16]; most groups keep their codes."""
    changed = ((table != _codes(table[..., 0])) & (counts > 0)).any(2)
    result = grouped.clone()
    if bool(changed.any()):
        result[changed] = table[changed].gather(1, grouped[changed].to(torch.int64)).to(torch.uint8)
    return result


def _codes(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(LEVELS, dtype=torch.float64, device=like.device)


def _ratio(error: torch.Tensor, norm: torch.Tensor) -> float:
    return float((error / norm).sqrt()) if float(norm) > 0 else 0.0
