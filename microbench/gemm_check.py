"""Whether a timed kernel's output is right: what the records' ``exact`` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apex4_probe.kernels.formats import Format

if TYPE_CHECKING:
    from torch import Tensor

    from apex4_probe.kernels.packing import PackedWeight


def expected(x: Tensor, packed: PackedWeight) -> Tensor:
    """What y must be held against: the reference in x's type where sums are integers, else in float64."""
    from apex4_probe.kernels.reference import reference_linear, reference_linear64

    return reference_linear64(x, packed) if packed.format == "w4a16" else reference_linear(x, packed)


def agrees(y: Tensor, reference: Tensor, format: Format) -> bool:
    """Whether y [M, N] is ``expected``: to the bit where the sums are integers (w4a8, w4a4), else within one rounding
    of y's type."""
    import torch

    return within_one_rounding(y, reference) if format == "w4a16" else torch.equal(y, reference)


def within_one_rounding(y: Tensor, exact: Tensor) -> bool:
    """Whether every element of y [M, N] is within one unit in the last place of ``exact``, float64.

    An output near zero is a difference of large sums, whose own rounding in fp32 is all that can be asked of it: its
    unit is that of its row's root mean square.
    """
    import torch

    magnitude = torch.maximum(exact.abs(), exact.square().mean(dim=-1, keepdim=True).sqrt())
    unit = torch.finfo(y.dtype).eps
    return bool(((y.to(torch.float64) - exact).abs() <= unit * magnitude).all())  # NaN compares false
