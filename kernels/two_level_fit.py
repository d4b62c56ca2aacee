"""Two-level scales for rows of groups whose 16 levels are known: the least squared error over integers and row scale.

For a given row scale r the best step and offset of a group that keeps its codes follow from the codes' mean and
variance. For given integers the best r is a quotient of two sums (least squares), and with it the error. So each of
``CANDIDATES`` row scales, from the smallest that covers the row to twice it (an exact fit with a larger one has an
exact fit with half of it, too), yields integers, these a better r and an error. The best ``FINALISTS`` are evaluated
level by level, where a group may round its levels to other codes: one far narrower than the row's widest has steps so
small that half of one is less than what a rounded scale makes of the outermost code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from apex4_probe.kernels.quantised_weight import INTEGER_OFFSET, LARGEST_INTEGER_SCALE, SMALLEST_ROW_SCALE

LEVELS = 16
LARGEST_INTEGER = 255 - INTEGER_OFFSET
# The one next to a row scale is at most 1 % off, and a group scale of 16 at most 0.16: it rounds to the same integer.
CANDIDATES = tuple(0.94 * 1.02**i for i in range(40))  # 0.94 … 2.03, times the smallest row scale that clips nothing
FINALISTS = 3


@dataclass(frozen=True, eq=False)
class Groups:
    """Levels ``slope * code + start``, slope >= 0, and how many weights have each: fp64 [rows, groups(, 16)].

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
        return self.slope[..., None] * level_codes(self.slope) + self.start[..., None]


def groups_of(counts: torch.Tensor, slope: torch.Tensor, start: torch.Tensor) -> Groups:
    """``counts`` [rows, groups, 16]: none of the groups empty."""
    code, used, n = level_codes(slope), counts > 0, counts.sum(2)
    lowest, highest = torch.where(used, code, 15.0).amin(2), torch.where(used, code, 0.0).amax(2)
    return Groups(counts, slope, start, n, lowest, highest, (counts @ code) / n, (counts @ (code * code)) / n)


@dataclass(frozen=True, eq=False)
class Fit:
    """``row_scale`` [rows]; ``step`` and ``offset`` (integer_scale and zero - 128) [rows, groups]; ``codes`` of the 16
    levels [rows, groups, 16]; ``error`` [rows], squared. All fp64."""

    row_scale: torch.Tensor
    step: torch.Tensor
    offset: torch.Tensor
    codes: torch.Tensor
    error: torch.Tensor

    def integers(self) -> torch.Tensor:
        return self.step[..., None] * self.codes + self.offset[..., None]


def fit_groups(groups: Groups) -> Fit:
    """The best fit of each row. A row next to zero gets row scale 0."""
    smallest = _smallest_row_scale(groups)
    empty = smallest < SMALLEST_ROW_SCALE
    fit = _best([_fit(groups, row_scale) for row_scale in _finalists(groups, torch.where(empty, 1.0, smallest))])
    return replace(fit, row_scale=torch.where(empty, 0.0, fit.row_scale))


def _smallest_row_scale(groups: Groups) -> torch.Tensor:
    """[rows]: with which every step is at most 16, and every weight fits INT8."""
    low = (groups.slope * groups.lowest + groups.start).amin(1) / -INTEGER_OFFSET
    high = (groups.slope * groups.highest + groups.start).amax(1) / LARGEST_INTEGER
    return torch.maximum(groups.slope.amax(1) / LARGEST_INTEGER_SCALE, torch.maximum(low, high))


def _finalists(groups: Groups, smallest: torch.Tensor) -> list[torch.Tensor]:
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


def _keeping_codes(groups: Groups, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
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


def _fit(groups: Groups, row_scale: torch.Tensor) -> Fit:
    """Steps, offsets and codes for ``row_scale`` [rows], and the row scale that is best for these."""
    a, b = groups.slope / row_scale[:, None], groups.start / row_scale[:, None]
    step, offset, error, rounded = _keeping_codes(groups, a, b)
    codes = level_codes(a).expand(groups.counts.shape).clone()
    farthest = torch.maximum(groups.highest - groups.mean, groups.mean - groups.lowest)
    centre = a * groups.mean + b - step * groups.mean - offset
    nearer = (step - a).abs() * farthest + centre.abs() > step / 2  # some code's level is another code's neighbour
    some = nearer | (rounded < error)
    if bool(some.any()):
        counts, levels = groups.counts[some], a[some, None] * level_codes(a) + b[some, None]
        step[some], offset[some], codes[some] = _rounded_anew(counts, levels, step[some], offset[some])
    integers, levels = step[..., None] * codes + offset[..., None], groups.levels()
    counted = groups.counts * integers
    dot, own = (counted * levels).sum((1, 2)), (counted * integers).sum((1, 2))
    row_scale = _fp32(row_scale * _least_squares(dot / row_scale, own))
    difference = integers * row_scale[:, None, None] - levels
    return Fit(row_scale, step, offset, codes, (groups.counts * difference * difference).sum((1, 2)))


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
    code = (counts @ level_codes(levels)) / counts.sum(1)  # the mean: when the step changes, its level stays
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
    _, step, offset, codes = best
    return step, offset, codes


def _assigned(
    levels: torch.Tensor, counts: torch.Tensor, step: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each level's nearest code, and the offset: whole, next to ``offset``, then next to what the codes want."""

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


def _best(fits: list[Fit]) -> Fit:
    """Row by row."""
    best: tuple[torch.Tensor, ...] = ()
    for fit in fits:
        part = (fit.error, fit.row_scale, fit.step, fit.offset, fit.codes)
        best = _less(best, part) if best else part
    error, row_scale, step, offset, codes = best
    return Fit(row_scale, step, offset, codes, error)


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


def level_codes(like: torch.Tensor) -> torch.Tensor:
    """0 … 15, fp64."""
    return torch.arange(LEVELS, dtype=torch.float64, device=like.device)
