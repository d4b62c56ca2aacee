"""Checkpoints with a float scale per group of 128 (GPTQ, AWQ, rounding to nearest) made two-level, ``g128i``.

A kernel with float group scales promotes every accumulator of every group on CUDA Cores; integer group scales are
applied while INT4 is widened, for nothing. What a checkpoint holds in a group, an arithmetic series of 16 levels,

    w = (code - group_zero) * group_scale

is approximated by ``(code * integer_scale + zero - 128) * row_scale``, with integer_scale 1 … 16 and zero 0 … 255, so
that the squared error over each row is least. Nothing but codes and scales is needed: sixteen counts describe a group.
How the least is found: ``two_level_fit.py``.

What it costs: group scales become multiples of the row scale, about 1/16 of the row's largest. On rows of 4096 normal
weights the error is 2 % of the weights, 0.2 times the error of rounding them to g128, which it meets at a right angle:
both together are 1.02 times that. Rows with fewer groups fit better: 1.3 % with 5, 1.8 % with 12.

What it costs a model, in nats per token (``tests/quality/refit_loss.py``): SmolLM2-135M, rows of 5 and 12 groups, by
GPTQ 0.062 and 0.199 over FP32 on two texts, loses 0.015 and 0.008 (+- 0.002) more, 0.006 (+- 0.001) of it by the size
of the change and not by chance; that becomes 0.022 and 0.025 with one row scale for 40 groups and more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from apex4_probe.kernels.formats import GROUP, Granularity
from apex4_probe.kernels.quantised_weight import (
    CODE_ZERO,
    ELEMENTS_AT_ONCE,
    INTEGER_OFFSET,
    QuantisedWeight,
    check_quantised,
    check_tensor,
)
from apex4_probe.kernels.two_level_fit import LEVELS, fit_groups, groups_of, level_codes


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

    Pack the result's ``weight`` with ``pack_quantised(..., format="w4a8")``, naming the rotation that ``quantised`` has
    been given, if any. Computes where the codes lie; 28672 x 4096 take some seconds on a CPU.

    ValueError: a granularity other than g128, a target other than g128i, NaN and whatever ``pack_quantised`` refuses.
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
    for name, part in {"scale": scale, **({} if zero is None else {"zero": zero})}.items():
        check_tensor(name, part)
        if tuple(part.shape) != (n, k // group) or part.device != codes.device or part.is_complex():
            found = f"{part.dtype} {list(part.shape)} on {part.device}"
            raise ValueError(f"{name} must be [{n}, {k // group}] on {codes.device}, not {found}")
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
    groups = groups_of(torch.where(falling, counts.flip(2), counts), scale.abs(), start)

    fit, levels = fit_groups(groups), groups.levels()
    difference = fit.integers() * fit.row_scale[:, None, None] - levels
    error, norm = ((groups.counts * values * values).sum((1, 2)) for values in (difference, levels))
    table = torch.where(falling, fit.codes.flip(2), fit.codes)
    return (
        _recoded(grouped, table, counts).reshape(codes.shape),
        (fit.row_scale * sign[:, 0]).to(torch.float32),
        fit.step.to(torch.uint8),
        (fit.offset + INTEGER_OFFSET).to(torch.uint8),
        error,
        norm,
    )


def _recoded(grouped: torch.Tensor, table: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """``grouped`` [rows, groups, group] by ``table`` [rows, groups, 16]; most groups keep their codes."""
    changed = ((table != level_codes(table[..., 0])) & (counts > 0)).any(2)
    result = grouped.clone()
    if bool(changed.any()):
        result[changed] = table[changed].gather(1, grouped[changed].to(torch.int64)).to(torch.uint8)
    return result


def _ratio(error: torch.Tensor, norm: torch.Tensor) -> float:
    return float((error / norm).sqrt()) if float(norm) > 0 else 0.0
