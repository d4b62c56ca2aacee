"""What a 4-bit GEMM is compared with: torch in FP16, FP8 and INT8, and the pure read of the packed nibbles' bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from apex4_probe.errors import ApexError
from apex4_probe.kernels.launch import Function, chip, load_kernel
from apex4_probe.kernels.variant import Chip, Geometry
from apex4_probe.microbench.gemm_buffers import GemmBuffers
from apex4_probe.microbench.gemm_records import GemmCandidate, Prepared
from apex4_probe.microbench.gemm_timing import Call, Candidate
from apex4_probe.microbench.sources import probe_kernel
from apex4_probe.microbench.torch_quantise import EAGER, Quantise, fp8_rows, fused, int8_rows

if TYPE_CHECKING:
    from torch import Tensor

X = TypeVar("X")
W = TypeVar("W")
INT_MM_ROWS = 32  # torch._int_mm refuses up to 16 rows of the left operand; users pad
FP8_SINCE = (8, 9)  # torch._scaled_mm on e4m3 (Ada and newer)
# Entry, threads, loads in flight of a thread, CTAs an SM: 64 KB in flight an SM, which saturates HBM (H100, H200)
READS = (("slices", 512, 8, 2), ("strided", 1024, 4, 1))


def baseline(name: str, buffers: GemmBuffers, xs: Sequence[Tensor]) -> Prepared:
    """The baseline ``name`` on activations ``xs`` [m, k], FP16. Raises ApexError saying why it cannot run here."""
    builders: dict[str, Callable[[GemmBuffers, Sequence[Tensor]], Prepared]] = {
        "fp16": _fp16,
        "fp8": _fp8,
        "int8": _int8,
        "read": _read,
    }
    if name not in builders:
        raise ApexError(f"no baseline {name!r:.40}: expected {', '.join(builders)}")
    return builders[name](buffers, xs)


def _fp16(buffers: GemmBuffers, xs: Sequence[Tensor]) -> Prepared:
    from torch.nn.functional import linear

    n, k, m = buffers.n, buffers.k, len(xs[0])
    calls = [bound(linear, x, w) for x, w in pairs(xs, buffers.fp16)]
    moved = 2.0 * (n * k + m * k + m * n)
    return [GemmCandidate("fp16", "fp16", "none", calls, moved, "f16")], []


def _fp8(buffers: GemmBuffers, xs: Sequence[Tensor]) -> Prepared:
    """Row-wise scales, fast accumulation, BF16 out: the one output type that every torch version allows with them."""
    import torch

    here = chip(buffers.device.index)
    if here.version < FP8_SINCE:
        raise ApexError(f"compute capability {here.compute_capability} has no FP8 Tensor Cores")
    n, k, m = buffers.n, buffers.k, len(xs[0])
    if n % 16 or k % 16:
        raise ApexError("torch._scaled_mm wants N and K in multiples of 16")

    def multiply(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
        return torch._scaled_mm(x, weight.t(), x_scale, weight_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True)

    quantised = [fp8_rows(x) for x in xs]
    calls = [bound(multiply, *x, *weight) for x, weight in pairs(quantised, buffers.fp8)]
    key, how, quantiser = _quantiser("fp8", fp8_rows, xs, buffers.torch_compile)
    moved = n * k + 4.0 * n + m * k + 4.0 * m + 2.0 * m * n
    return [GemmCandidate("fp8", "fp8", "channel", calls, moved, "e4m3", how, quantise=key)], [quantiser]


def _int8(buffers: GemmBuffers, xs: Sequence[Tensor]) -> Prepared:
    """INT32 out, scales not applied: what torch offers."""
    import torch

    n, k, m = buffers.n, buffers.k, len(xs[0])
    if n % 8 or k % 8:
        raise ApexError("torch._int_mm wants N and K in multiples of 8")
    rows = m if m > 16 else INT_MM_ROWS
    quantised = [torch.nn.functional.pad(int8_rows(x)[0], (0, 0, 0, rows - m)) for x in xs]

    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        return torch._int_mm(x, weight.t())

    calls = [bound(multiply, x, weight) for x, weight in pairs(quantised, buffers.bytes_nk)]
    key, how, quantiser = _quantiser("int8", int8_rows, xs, buffers.torch_compile)
    moved = n * k + m * k + 4.0 * m * n
    tile = "" if rows == m else f"padded_to={rows}"
    return [GemmCandidate("int8", "int8", "channel", calls, moved, "s8", how, tile, quantise=key)], [quantiser]


def _read(buffers: GemmBuffers, _xs: Sequence[Tensor]) -> Prepared:
    """The nibbles of W4A8 per channel, packed: nothing but bytes that the kernels read too."""
    weights = [packed.data for packed in buffers.packed("w4a8", "channel")]
    here = chip(buffers.device.index)
    return [
        GemmCandidate("read", "read", "none", calls, float(weights[0].nbytes), tile=entry)
        for entry, calls in _read_calls(weights, here, buffers.device.index)
    ], []


def _read_calls(weights: Sequence[Tensor], here: Chip, device: int) -> Iterable[tuple[str, list[Call]]]:
    import torch

    sink = torch.zeros(1, dtype=torch.int32, device=weights[0].device)
    for entry, threads, in_flight, per_sm in READS:
        kernel = probe_kernel("read_weights.cu", here.target, THREADS=threads, IN_FLIGHT=in_flight, CTAS_PER_SM=per_sm)
        function = load_kernel(kernel, entry, "PPq", device)
        geometry = Geometry((here.sm_count * per_sm, 1, 1), threads, 0)

        def read(weight: Tensor, function: Function = function, geometry: Geometry = geometry) -> None:
            arguments = (weight.data_ptr(), sink.data_ptr(), weight.nbytes // 16)
            function.launch(geometry, arguments, torch.cuda.current_stream().cuda_stream)

        yield entry, [bound(read, weight) for weight in weights]


def _quantiser(format: str, function: Quantise, xs: Sequence[Tensor], compile: bool) -> tuple[str, str, Candidate]:
    """Key, remark and candidate of a quantiser in plain torch."""
    best, how = fused(function, xs[0]) if compile else (function, EAGER)
    key = f"quantise {format}"
    return key, f"quantised by {how}", Candidate(key, [bound(best, x) for x in xs])


def bound(function: Callable[..., object], *arguments: object) -> Call:
    return lambda: function(*arguments)


def pairs(xs: Sequence[X], weights: Sequence[W]) -> list[tuple[X, W]]:
    """Every weight once, the activations going round."""
    return [(xs[i % len(xs)], weight) for i, weight in enumerate(weights)]
