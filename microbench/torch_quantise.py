"""Quantising activations per token in plain torch, as a user of FP8 or INT8 without kernels of their own does.

torch.compile makes one kernel of it where it works (it needs Triton and a C compiler); else it is torch's operators one
after another. Which of the two was timed stands beside the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

E4M3_MAX = 448.0  # largest finite value of e4m3 (OCP 8-bit floating point specification)
INT8_MAX = 127.0
SMALLEST = 1e-12  # of a row's largest magnitude, so that a row of zeros divides by something
Quantise = Callable[["Tensor"], tuple["Tensor", "Tensor"]]
COMPILED, EAGER = "torch.compile", "torch operators"


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, k] to e4m3 [rows, k] and scales [rows, 1], fp32, by each row's largest magnitude."""
    import torch

    scale = _largest(x) / E4M3_MAX
    return (x / scale).to(torch.float8_e4m3fn), scale


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, k] to INT8 [rows, k] and scales [rows, 1], fp32, by each row's largest magnitude."""
    import torch

    scale = _largest(x) / INT8_MAX
    return (x / scale).round().to(torch.int8), scale


def fused(function: Quantise, x: Tensor) -> tuple[Quantise, str]:
    """``function`` compiled, if that works for ``x``, else as it is; and how, COMPILED or EAGER."""
    compiled = _compiled(function)
    try:
        compiled(x)
    except Exception as error:  # whatever is missing, Triton, a compiler or a header, has its own error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logging.getLogger(__name__).info("torch.compile failed: %s", reason)
        return function, EAGER
    return compiled, COMPILED


def _largest(x: Tensor) -> Tensor:
    import torch

    largest: Tensor = torch.linalg.vector_norm(x, ord=float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
    return largest.clamp(min=SMALLEST)


@cache
def _compiled(function: Quantise) -> Any:
    import torch

    return torch.compile(function, dynamic=True)
