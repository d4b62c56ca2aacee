"""Tuning's stopwatch on a GPU: the catalogue's kernels and torch's GEMMs, by ``microbench.gemm_candidates``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

from apex4_probe.deployment import GemmTiming
from apex4_probe.kernels.variant import Shape
from apex4_probe.tuning_plan import Pick

if TYPE_CHECKING:
    from apex4_probe.microbench.gemm_buffers import GemmBuffers

# Less than bench takes: the median of nine replays of a millisecond moves by half a per cent, a choice by none.
ROUNDS, GRAPH_MS = 9, 1.0
# Of weights of one shape, in every form that is timed, 300 MB each, and what making them takes beside.
SHAPE_BYTES = 4e9


class TorchBench:
    """``device``: CUDA's ordinal. Weights of a shape are kept for its next M while the memory allows."""

    def __init__(self, device: int) -> None:
        self.device = device
        self._buffers: dict[tuple[int, int], GemmBuffers] = {}

    def compile(self, picks: Sequence[Pick]) -> None:
        from apex4_probe.kernels.gemm import precompile

        precompile([(pick.variant, pick.tile) for pick in picks], self.device)

    def time(
        self, shape: Shape, picks: Sequence[Pick], baselines: Sequence[str], refused: Callable[[str, str], None]
    ) -> list[GemmTiming]:
        from apex4_probe.microbench.gemm_candidates import time_gemms

        return time_gemms(
            shape.n,
            shape.k,
            shape.m,
            [(pick.variant, pick.tile) for pick in picks],
            baselines,
            device=self.device,
            buffers=self._weights(shape.n, shape.k),
            rounds=ROUNDS,
            graph_ms=GRAPH_MS,
            refused=refused,
        )

    def release(self) -> None:
        """Give the weights' memory back."""
        with suppress(RuntimeError):  # of a GPU that was lost, which nothing can be given back to
            for buffers in self._buffers.values():
                buffers.release()
        self._buffers.clear()

    def _weights(self, n: int, k: int) -> GemmBuffers:
        import torch

        from apex4_probe.microbench.gemm_buffers import GemmBuffers

        if (n, k) not in self._buffers:
            if torch.cuda.mem_get_info(self.device)[0] < SHAPE_BYTES:
                self.release()
            self._buffers[n, k] = GemmBuffers(n, k, self.device, torch_compile=False)
        return self._buffers[n, k]


def torch_installed() -> bool:
    """Without importing it: its libraries must not come before those that the probes are compiled with."""
    return find_spec("torch") is not None


def why_no_torch() -> str:
    """Why GEMMs cannot be timed in this environment, and what to do; "" where they can. Imports torch."""
    if not torch_installed():
        return "torch is not installed: pip install 'apex4-probe[torch]'"
    try:
        import torch
    except (ImportError, OSError) as error:  # a library it was built against is missing
        return f"torch cannot be imported ({next(iter(str(error).splitlines()), '')}): reinstall it"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU: install a build for this driver's CUDA"
    return ""
