"""The GEMMs of a transformer block in a row, each behind the quantisation of its input, with and without programmatic
dependent launch: what that saves where kernels of different shapes follow one another, not copies of one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apex4_probe.kernels.launch import PDL_SINCE, chip
from apex4_probe.kernels.variant import Tile, Variant
from apex4_probe.microbench.gemm_baselines import bound
from apex4_probe.microbench.gemm_buffers import ROTATE_BYTES, GemmBuffers
from apex4_probe.microbench.gemm_timing import (
    GRAPH_MS,
    ROUNDS,
    Call,
    Candidate,
    Refused,
    Timing,
    interleaved,
    log_refused,
    one_line,
)

if TYPE_CHECKING:
    from torch import Tensor

    from apex4_probe.kernels.packing import PackedWeight

PLAIN, PDL, FP16 = "chain", "chain with programmatic dependent launch", "chain in FP16"


@dataclass(frozen=True)
class Link:
    """One GEMM of the block; quantisation of its input [m, k] goes before it."""

    n: int
    k: int
    variant: Variant
    tile: Tile

    @property
    def name(self) -> str:
        return f"{self.n} x {self.k} {self.variant.name} {self.tile.name}"


def time_chain(
    links: Sequence[Link],
    m: int,
    *,
    device: int = 0,
    rounds: int = ROUNDS,
    graph_ms: float = GRAPH_MS,
    refused: Refused = log_refused,
) -> dict[str, Timing]:
    """Time of all ``links`` once, by PLAIN, PDL (where the GPU has it) and FP16, interleaved; weights rotate together.

    A chain that cannot run is told to ``refused`` and has no entry. Raises GpuLostError.
    """
    import torch

    with torch.cuda.device(device):
        buffers = [GemmBuffers(link.n, link.k, device, ROTATE_BYTES / len(links)) for link in links]
        try:
            inputs = [own.activations(m)[0] for own in buffers]
            modes = [(PLAIN, False), (PDL, True)] if chip(device).version >= PDL_SINCE else [(PLAIN, False)]
            places = list(zip(links, buffers, inputs, strict=True))
            chains = [Candidate(key, turns([_link(*place, pdl) for place in places])) for key, pdl in modes]
            dense = Candidate(FP16, turns([_dense(own, x) for _, own, x in places]))
        except torch.OutOfMemoryError as error:
            refused("every chain", one_line(error))
            return {}
        else:
            return interleaved([*chains, dense], rounds, graph_ms, refused=refused)
        finally:
            for own in buffers:
                own.release()


def _link(link: Link, buffers: GemmBuffers, x: Tensor, pdl: bool) -> list[Call]:
    """Quantise and multiply, a call for every copy of the weight."""
    from apex4_probe.kernels.gemm import gemm
    from apex4_probe.kernels.quantise import activation_kind, quantise

    kind = activation_kind(link.variant)
    out = buffers.out(len(x))

    def call(packed: PackedWeight) -> None:
        ready = x if kind is None else quantise(x, kind=kind, pdl=pdl)
        gemm(ready, packed, link.variant, link.tile, out=out, dtype=x.dtype, pdl=pdl)

    return [bound(call, packed) for packed in buffers.packed(link.variant.format, link.variant.granularity)]


def _dense(buffers: GemmBuffers, x: Tensor) -> list[Call]:
    from torch.nn.functional import linear

    return [bound(linear, x, weight) for weight in buffers.fp16]


def turns(parts: Sequence[Sequence[Call]]) -> list[Call]:
    """All parts in order, once for every copy that the part with the most has; each part goes round its own."""

    def turn(i: int) -> None:
        for part in parts:
            part[i % len(part)]()

    return [bound(turn, i) for i in range(max(len(part) for part in parts))]
