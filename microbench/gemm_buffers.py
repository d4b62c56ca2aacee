"""Random weights and activations for timing one layer shape: so many copies that no weight is found in the L2.

Random bits, because a Tensor Core fed with zeros draws less power and clocks higher; packed weights straight from
random bytes, because quantising hundreds of megabytes would take longer than the timing.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from apex4_probe.kernels.formats import Format, Granularity

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from apex4_probe.kernels.packing import PackedWeight

ROTATE_BYTES = 300_000_000  # six times the 50 MB L2 of an H100
ACTIVATION_SETS = 4  # few, since a model finds its activations in the L2 too: the layer before has just written them
WEIGHT_SCALE = 0.02  # about the spread of a trained weight; FP16 sums of K = 57344 stay far below 65504
SEED = 4


def copies(size: float, rotate_bytes: float = ROTATE_BYTES) -> int:
    """Buffers of ``size`` bytes that make up ``rotate_bytes``; two at least, so that none is used twice in a row."""
    return max(2, math.ceil(rotate_bytes / size))


class GemmBuffers:
    """Weights [n, k] in every form a candidate asked for, made at the first use and kept for further M.

    ``device``: CUDA's ordinal, or a torch device. ``release`` gives their memory back. ``torch_compile``: whether
    quantisers in plain torch are compiled, which takes ten seconds (H100, 16 cores) the first time in a process.
    """

    def __init__(
        self,
        n: int,
        k: int,
        device: int | torch.device = 0,
        rotate_bytes: float = ROTATE_BYTES,
        *,
        torch_compile: bool = True,
    ) -> None:
        import torch

        self.n, self.k = n, k
        self.torch_compile = torch_compile
        self.device = torch.device("cuda", device) if isinstance(device, int) else device
        self.rotate_bytes = rotate_bytes
        self._generator = torch.Generator(self.device).manual_seed(SEED)
        self._packed: dict[tuple[Format, Granularity], list[PackedWeight]] = {}

    def activations(self, m: int) -> list[Tensor]:
        """ACTIVATION_SETS tensors [m, k], FP16, standard normal."""
        return [self._normal(m, self.k) for _ in range(ACTIVATION_SETS)]

    def out(self, m: int) -> Tensor:
        """An FP16 output [m, n], which the candidates of one M may share."""
        import torch

        return torch.empty(m, self.n, dtype=torch.float16, device=self.device)

    @cached_property
    def fp16(self) -> list[Tensor]:
        """Weights [n, k], FP16."""
        return [self._normal(self.n, self.k) * WEIGHT_SCALE for _ in range(self.copies(2 * self.n * self.k))]

    @cached_property
    def bytes_nk(self) -> list[Tensor]:
        """Random bytes [n, k] as INT8 weights."""
        import torch

        shape = (self.n, self.k)
        count = self.copies(self.n * self.k)
        return [self._integers(-128, 128, shape, torch.int8) for _ in range(count)]

    @cached_property
    def fp8(self) -> list[tuple[Tensor, Tensor]]:
        """Weights [n, k] in e4m3 and their row scales [n, 1], fp32."""
        from apex4_probe.microbench.torch_quantise import fp8_rows

        return [fp8_rows(self._normal(self.n, self.k)) for _ in range(self.copies(self.n * self.k))]

    def packed(self, format: Format, granularity: Granularity) -> list[PackedWeight]:
        """Packed weights. Raises ApexError where the shape does not suit the granularity."""
        from apex4_probe.kernels.packing import random_packed

        kind = (format, granularity)
        if kind not in self._packed:
            first = random_packed(self.n, self.k, format, granularity, self.device, self._generator)
            rest = range(self.copies(first.nbytes) - 1)
            more = [random_packed(self.n, self.k, format, granularity, self.device, self._generator) for _ in rest]
            self._packed[kind] = [first, *more]
        return self._packed[kind]

    def copies(self, size: float) -> int:
        return copies(size, self.rotate_bytes)

    def release(self) -> None:
        import torch

        self._packed.clear()
        for name in ("fp16", "bytes_nk", "fp8"):
            self.__dict__.pop(name, None)
        torch.cuda.empty_cache()

    def _normal(self, rows: int, columns: int) -> Tensor:
        import torch

        return torch.randn(rows, columns, dtype=torch.float16, device=self.device, generator=self._generator)

    def _integers(self, low: int, high: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        import torch

        return torch.randint(low, high, shape, dtype=dtype, device=self.device, generator=self._generator)
