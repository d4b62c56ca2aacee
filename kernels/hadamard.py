"""The block Hadamard transform: spreads outliers over a row before weights or activations are quantised."""

from __future__ import annotations

import torch

SMALLEST_BLOCK = 64  # below it a rotation spreads too little to be worth a pass over the activations
LARGEST_BLOCK = 32768  # quantise.cu transforms a block within one CTA's registers


def check_hadamard(size: int | None, k: int) -> None:
    """ValueError unless ``size`` is None or a power of two from 64 to 32768 that divides ``k``."""
    if size is None:
        return
    legal = isinstance(size, int) and SMALLEST_BLOCK <= size <= LARGEST_BLOCK and size & (size - 1) == 0
    if not legal or k % size:
        raise ValueError(
            f"hadamard must be None or a power of two from {SMALLEST_BLOCK} to {LARGEST_BLOCK} that divides K = {k}, "
            f"not {size!r}"
        )


def hadamard_transform(x: torch.Tensor, size: int) -> torch.Tensor:
    """Each block of ``size`` along the last axis times the Hadamard matrix (Sylvester's order, entries +1 and -1).

    ``x``: fp32 [..., K]. Not normalised: the result is sqrt(size) times a rotation of ``x``. Butterflies (a + b, a - b)
    in fp32 with strides 1, 2, 4 … size / 2, the order of quantise.cu: the same bits on every device.
    """
    shape = x.shape
    stride = 1
    while stride < size:
        pairs = x.reshape(-1, 2, stride)
        first, second = pairs[:, 0], pairs[:, 1]
        x = torch.stack((first + second, first - second), dim=1)
        stride *= 2
    return x.reshape(shape)


def normalisation(size: int) -> float:
    """1 / sqrt(size), rounded to fp32: what turns the transform into a rotation."""
    return torch.tensor(size**-0.5, dtype=torch.float32).item()
