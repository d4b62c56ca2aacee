"""Other people's 4-bit GEMMs, timed beside ours: one small adapter each, used where its library is installed.

An adapter makes candidates for a layer shape and raises where its library refuses; what it says is reported. Weights
are rotated and activations quantised beforehand, as for our own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from apex4_probe.discovery import installed_version
from apex4_probe.errors import ApexError
from apex4_probe.kernels.formats import GROUP, Format, Granularity
from apex4_probe.microbench.gemm_baselines import bound, pairs
from apex4_probe.microbench.gemm_candidates import OPERANDS
from apex4_probe.microbench.gemm_records import GemmCandidate, Prepared
from apex4_probe.microbench.gemm_timing import Call, Candidate

if TYPE_CHECKING:
    from torch import Tensor

    from apex4_probe.microbench.gemm_buffers import GemmBuffers

ACTIVATION_BITS: dict[Format, int] = {"w4a16": 16, "w4a8": 8, "w4a4": 4}
Adapter = Callable[["GemmBuffers", "Sequence[Tensor]"], Prepared]


@dataclass(frozen=True)
class Peer:
    """``variant``: what its records are called. ``package``: the distribution whose version stands beside them."""

    variant: str
    package: str
    module: str
    adapter: Adapter

    def prepare(self, buffers: GemmBuffers, xs: Sequence[Tensor]) -> Prepared:
        """Candidates on activations ``xs`` [m, k], FP16. Raises ApexError where the library is not installed, and
        whatever the library itself raises."""
        if find_spec(self.module) is None:
            raise ApexError(f"not installed: pip install {self.package}")
        with redirect_stdout(sys.stderr):  # some log to stdout, where --json has its answer
            return self.adapter(buffers, xs)

    @property
    def version(self) -> str | None:
        return installed_version(self.package)


def peers() -> list[Peer]:
    """Every peer and packing that has an adapter, installed or not."""
    humming: list[tuple[Format, Granularity]] = [
        ("w4a16", "g128"), ("w4a8", "channel"), ("w4a8", "g128"), ("w4a4", "channel"), ("w4a4", "g128"),
    ]  # fmt: skip
    marlin: list[Granularity] = ["channel", "g128"]
    return [
        *(
            Peer(
                f"humming.{format}.{granularity}", "humming-kernels", "humming", partial(_humming, format, granularity)
            )
            for format, granularity in humming
        ),
        *(Peer(f"marlin.w4a16.{granularity}", "vllm", "vllm", partial(_marlin, granularity)) for granularity in marlin),
        Peer("tinygemm.w4a16.g128", "torch", "torch", _tinygemm),
    ]


def versions(used: Iterable[Peer]) -> dict[str, str]:
    """Of every peer's distribution that is installed."""
    return {peer.package: found for peer in used if (found := peer.version) is not None}


def _humming(format: Format, granularity: Granularity, buffers: GemmBuffers, xs: Sequence[Tensor]) -> Prepared:
    """humming-kernels through its layer, which compiles at the first call with the tile that its heuristics choose.

    Group scales are FP16; for integer activations it turns them into integers itself.
    """
    import torch
    from humming.forward import may_quant_input  # type: ignore[import-not-found,unused-ignore]
    from humming.layer import HummingLayer  # type: ignore[import-not-found,unused-ignore]

    bits = ACTIVATION_BITS[format]

    def layer() -> Any:
        made = HummingLayer(
            shape_n=buffers.n,
            shape_k=buffers.k,
            weight_config={"dtype": "int4", "group_size": GROUP[granularity] or 0},
            input_config=None if bits == 16 else {"dtype": f"int{bits}"},
            torch_dtype=torch.float16,
        ).to(buffers.device)
        made.load_from_unquantized(buffers.fp16[0])
        made.transform()
        return made

    def multiply(layer: Any, x: Tensor, scale: Tensor | None) -> object:
        return layer(x, input_scale=scale)

    layers = [layer() for _ in range(buffers.copies(buffers.n * buffers.k / 2))]
    config = layers[0].humming_config
    inputs = [may_quant_input(config, x) for x in xs]
    calls = [bound(multiply, one, x, scale) for (x, scale), one in pairs(inputs, layers)]
    key = "" if bits == 16 else f"quantise humming int{bits}"
    quantisers = [Candidate(key, [bound(may_quant_input, config, x) for x in xs])] if key else []
    return [_way("humming", "humming-kernels", format, granularity, calls, buffers, len(xs[0]), key)], quantisers


def _marlin(granularity: Granularity, buffers: GemmBuffers, xs: Sequence[Tensor]) -> Prepared:
    """vLLM's Marlin through the function that its GPTQ layers call; random bits in its layout are weights to it."""
    import torch
    from vllm.model_executor.layers.quantization.utils import (  # type: ignore[import-not-found,unused-ignore]
        marlin_utils as marlin,
    )
    from vllm.scalar_type import scalar_types  # type: ignore[import-not-found,unused-ignore]

    n, k, device = buffers.n, buffers.k, buffers.device
    groups = k // (GROUP[granularity] or k)
    supported, why = marlin.check_marlin_supports_shape(n, k, k, GROUP[granularity] or -1)
    if not supported:
        raise ApexError(" ".join((why or "its shape check refuses").split()))
    empty = marlin.marlin_make_empty_g_idx(device)
    workspace = marlin.marlin_make_workspace_new(device)

    def multiply(x: Tensor, weight: Tensor, scale: Tensor) -> object:
        return marlin.apply_gptq_marlin_linear(
            input=x,
            weight=weight,
            weight_scale=scale,
            weight_zp=empty,
            g_idx=empty,
            g_idx_sort_indices=empty,
            workspace=workspace,
            wtype=scalar_types.uint4b8,
            output_size_per_partition=n,
            input_size_per_partition=k,
            is_k_full=True,
        )

    weights = [
        (_random_words((k // 16, 2 * n), device), torch.rand(groups, n, dtype=torch.float16, device=device) * 0.01)
        for _ in range(buffers.copies(n * k / 2))
    ]
    calls = [bound(multiply, x, *weight) for x, weight in pairs(xs, weights)]
    return [_way("marlin", "vllm", "w4a16", granularity, calls, buffers, len(xs[0]))], []


def _tinygemm(buffers: GemmBuffers, xs: Sequence[Tensor]) -> Prepared:
    """torch's own weight-only INT4 GEMM, which torchao's int4 weight-only quantisation calls; BF16 activations."""
    import torch

    n, k, device = buffers.n, buffers.k, buffers.device
    if n % 8 or k % 128:
        raise ApexError("it wants N in multiples of 8 and K in multiples of 128")
    pack, multiply = torch.ops.aten._convert_weight_to_int4pack, torch.ops.aten._weight_int4pack_mm

    def weight() -> tuple[Tensor, Tensor]:
        nibbles = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=device)
        scales_and_zeros = torch.rand(k // 128, n, 2, dtype=torch.bfloat16, device=device) * 0.01
        return pack(nibbles, 8), scales_and_zeros

    weights = [weight() for _ in range(buffers.copies(n * k / 2))]
    inputs = [x.to(torch.bfloat16) for x in xs]
    calls = [bound(multiply, x, packed, 128, scales) for x, (packed, scales) in pairs(inputs, weights)]
    return [_way("tinygemm", "torch", "w4a16", "g128", calls, buffers, len(xs[0]))], []


def _way(
    name: str,
    package: str,
    format: Format,
    granularity: Granularity,
    calls: Sequence[Call],
    buffers: GemmBuffers,
    m: int,
    quantise: str = "",
) -> GemmCandidate:
    """``package``: the distribution whose version stands beside the figures."""
    n, k, bits = buffers.n, buffers.k, ACTIVATION_BITS[format]
    scales = 2.0 * n * k / (GROUP[granularity] or k) + (4.0 * m if bits < 16 else 0.0)
    return GemmCandidate(
        variant=f"{name}.{format}.{granularity}",
        format=format,
        granularity=granularity,
        calls=calls,
        moved_bytes=n * k / 2 + scales + m * k * bits / 8 + 2.0 * m * n,
        operand=OPERANDS[format],
        quantise=quantise,
        version=installed_version(package) or "of unknown version",
    )


def _random_words(shape: tuple[int, int], device: Any) -> Tensor:
    import torch

    return torch.randint(-(1 << 31), (1 << 31) - 1, shape, dtype=torch.int32, device=device)
