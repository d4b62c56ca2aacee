"""One linear layer on the GPU: activations quantised where the format wants it, then the variant's kernel.

Everything is enqueued on torch's current stream and nothing waits. What a call needs beside its operands (quantised
activations, workspace, output) comes from torch's allocator; kernels and geometries are made once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from weakref import WeakSet

import torch

from apex4_probe.errors import ApexError
from apex4_probe.kernels import catalogue, launch, quantise, tensor_map
from apex4_probe.kernels.compile import compile_all
from apex4_probe.kernels.packing import (
    ACTIVATION_DTYPES,
    ALIGNMENT,
    PackedWeight,
    check_activations,
    check_is_packed,
    check_packed,
)
from apex4_probe.kernels.quantise import QuantisedActivations, activation_kind
from apex4_probe.kernels.quantised_weight import LARGEST_TENSOR, check_tensor
from apex4_probe.kernels.variant import Shape, Tile, Variant

ENTRY = "gemm"
SIGNATURE = "PPPPPPPPiii"  # weights, row_scale, x, x_scale, x_sum, bias, out, workspace, m, n, k
WITH_MAP = f"{SIGNATURE}{tensor_map.TENSOR_MAP_BYTES}s"  # and a tensor map of out

_checked: WeakSet[PackedWeight] = WeakSet()  # those that check_packed has passed; they are frozen


@dataclass(frozen=True)
class _Prepared:
    call: launch.Launch
    workspace_bytes: int
    then_fp16: bool
    out_map: Callable[[int], bytes] | None  # of out at an address, where the kernel takes one


def gemm(
    x: torch.Tensor | QuantisedActivations,
    packed: PackedWeight,
    variant: Variant,
    tile: Tile,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """y [M, N] = x [M, K] times the transpose of the packed weight, plus ``bias`` [N], by one variant and tile.

    ``x``: fp16 or bf16, quantised first where the variant wants it, or quantised already; ``dtype`` then says what y is
    (fp16 where it and ``out`` are None). ``out``: where y goes, memory that x does not share; else a new tensor.
    ``pdl``: the first kernel may begin before the one ahead of it on the stream has ended (programmatic dependent
    launch; nothing before Hopper); never directly behind what wrote the weight, which may be read early. Inference
    only: y carries no gradient.

    ValueError naming the argument that does not fit. ApexError for a tile that cannot run the shape here, for a kernel
    that does not compile, and during the capture of a CUDA graph for one that is not loaded yet.
    """
    if isinstance(x, QuantisedActivations):
        dtype = dtype or (torch.float16 if out is None else out.dtype)
        m, device = _check_quantised(x, packed, variant, dtype, bias)
    else:
        if dtype not in (None, x.dtype):
            raise ValueError(f"dtype is {dtype} and y has that of x, {x.dtype}")
        dtype = x.dtype
        m, device = check_call(x, packed, bias)
        x = x.view(m, packed.k)
    if (variant.format, variant.granularity) != (packed.format, packed.granularity):
        raise ValueError(
            f"variant {variant.name} multiplies {variant.format} {variant.granularity} weights, and packed is "
            f"{packed.format} {packed.granularity}"
        )
    if out is None:
        out = torch.empty((m, packed.n), dtype=dtype, device=packed.device)
    else:
        _check_out(out, m, packed.n, dtype, device)
    if m:
        enqueue(x, packed, variant, tile, bias, out, device, pdl)
    return out


def precompile(
    picks: Iterable[tuple[Variant, Tile]],
    device: int,
    *,
    dtype: torch.dtype = torch.float16,
    quantisers: Iterable[tuple[int, int | None]] = (),
) -> None:
    """Compile, a thread a core, and load what calls on a GPU will launch: before a CUDA graph is captured, or a server
    takes its first request.

    ``dtype``: of x and y. ``quantisers``: pairs of K and Hadamard size of the weights whose activations are quantised,
    as each of the picks wants it. Raises CompileError naming the variant.
    """
    target, bf16 = launch.chip(device).target, dtype == torch.bfloat16
    picks, rows = list(picks), list(quantisers)
    gemms = dict.fromkeys(catalogue.kernel(variant, tile, target, bf16) for variant, tile in picks)
    kinds = dict.fromkeys(activation_kind(variant) for variant, _ in picks)
    others = dict.fromkeys(
        quantise.kernel_for(kind, bf16, hadamard, k, target) for kind in kinds if kind for k, hadamard in rows
    )
    compile_all([*gemms, *others])
    for variant, tile in dict.fromkeys(picks):
        _load(variant, tile, target, bf16, device)
    for kernel in others:
        launch.load_kernel(kernel, quantise.ENTRY, quantise.SIGNATURE, device)


def check_call(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None) -> tuple[int, int]:
    """M and the GPU of x [..., K] times ``packed``. ValueError naming the argument that does not fit."""
    _check_weight(packed)
    check_activations(x, packed.k)
    device = launch.cuda_device("x", x)
    if not x.is_contiguous():
        raise ValueError(f"x must be contiguous, but has strides {x.stride()} for {list(x.shape)}: call contiguous()")
    if x.data_ptr() % ALIGNMENT:
        raise ValueError(f"x must be aligned to {ALIGNMENT} bytes: a view into the midst of a tensor may need clone()")
    m = x.numel() // packed.k
    _check_rest(m, packed, x.dtype, bias, device)
    return m, device


def _check_quantised(
    x: QuantisedActivations, packed: PackedWeight, variant: Variant, dtype: torch.dtype, bias: torch.Tensor | None
) -> tuple[int, int]:
    if dtype not in ACTIVATION_DTYPES:
        raise ValueError(f"dtype must be fp16 or bf16, not {dtype}")
    _check_weight(packed)
    if x.kind != activation_kind(variant):
        raise ValueError(f"x is quantised to {x.kind}, which {variant.name} does not multiply")
    if x.k != packed.k:
        raise ValueError(f"x has K = {x.k}, and packed has K = {packed.k}")
    device = launch.cuda_device("x", x.data)
    _check_rest(x.m, packed, dtype, bias, device)
    return x.m, device


def _check_weight(packed: PackedWeight) -> None:
    check_is_packed(packed)
    if packed not in _checked:
        check_packed(packed)
        _checked.add(packed)


def _check_rest(m: int, packed: PackedWeight, dtype: torch.dtype, bias: torch.Tensor | None, device: int) -> None:
    if (there := launch.cuda_device("packed", packed.data)) != device:
        raise ValueError(f"packed is on cuda:{there} and x on cuda:{device}: move one with to()")
    if m * max(packed.n, packed.k) >= LARGEST_TENSOR:
        raise ValueError(
            f"x has {m} tokens, too many for N = {packed.n}, K = {packed.k}: M * N and M * K must be below 2^31"
        )
    if bias is not None:
        check_tensor("bias", bias)
        if bias.dtype != dtype or tuple(bias.shape) != (packed.n,) or not bias.is_contiguous():
            raise ValueError(
                f"bias must be contiguous {dtype} [{packed.n}], not {bias.dtype} {list(bias.shape)} with strides "
                f"{bias.stride()}"
            )
        if launch.cuda_device("bias", bias) != device:
            raise ValueError(f"bias is on {bias.device} and x on cuda:{device}")
        if bias.data_ptr() % ALIGNMENT:
            raise ValueError(f"bias must be aligned to {ALIGNMENT} bytes")


def _check_out(out: torch.Tensor, m: int, n: int, dtype: torch.dtype, device: int) -> None:
    if out.dtype != dtype or tuple(out.shape) != (m, n) or not out.is_contiguous():
        raise ValueError(
            f"out must be contiguous {dtype} [{m}, {n}], not {out.dtype} {list(out.shape)} with strides {out.stride()}"
        )
    if launch.cuda_device("out", out) != device:
        raise ValueError(f"out is on {out.device} and x on cuda:{device}")
    if out.data_ptr() % ALIGNMENT:
        raise ValueError(f"out must be aligned to {ALIGNMENT} bytes")


def enqueue(
    x: torch.Tensor | QuantisedActivations,
    packed: PackedWeight,
    variant: Variant,
    tile: Tile,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    device: int,
    pdl: bool = False,
) -> None:
    """``gemm`` without its checks: x [M, K] as ``check_call`` passes it, with at least one token, ``out`` [M, N] beside
    it on ``device``, and a variant for weights packed so."""
    if torch.cuda.current_device() != device:
        with torch.cuda.device(device):
            enqueue(x, packed, variant, tile, bias, out, device, pdl)
        return
    m, n = out.shape[0], packed.n
    kind = activation_kind(variant)
    if kind is not None and isinstance(x, torch.Tensor):
        x = quantise.quantise(x, kind=kind, clip=packed.act_clip, hadamard=packed.hadamard, pdl=pdl)
        # Safe whatever the caller said: all that the kernel may read early is the weight, and the quantiser begins only
        # after what wrote that has ended, unless the caller promised that nothing did.
        pdl = True
    ready = _prepared(variant.name, tile, m, n, packed.k, out.dtype == torch.bfloat16, pdl, device)
    workspace = None
    if ready.workspace_bytes:
        workspace = torch.empty(ready.workspace_bytes, dtype=torch.uint8, device=out.device)
    if isinstance(x, QuantisedActivations):
        operand = x.data.data_ptr(), _address(x.scale), _address(x.row_sum)
    else:
        operand = x.data_ptr(), 0, 0
    ready.call(
        launch.current_stream(device),
        packed.data.data_ptr(),
        packed.row_scale.data_ptr(),
        *operand,
        _address(bias),
        out.data_ptr(),
        _address(workspace),
        m,
        n,
        packed.k_padded,
        *((ready.out_map(out.data_ptr()),) if ready.out_map else ()),
    )
    if ready.then_fp16:
        assert workspace is not None and isinstance(x, torch.Tensor)
        _multiply_dense(x.detach(), workspace.view(out.dtype)[: n * packed.k].view(n, packed.k), bias, out)


def _multiply_dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(bias.detach(), x, weight.T, out=out)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@lru_cache(maxsize=launch.PREPARED)
def _prepared(name: str, tile: Tile, m: int, n: int, k: int, bf16: bool, pdl: bool, device: int) -> _Prepared:
    """By the variant's name, which is hashed faster than its record."""
    variant, chip, shape = catalogue.by_name(name), launch.chip(device), Shape(m, n, k)
    tile = catalogue.tile_named(variant, tile.name)
    if reason := variant.refuses(tile, shape, chip):
        raise ApexError(f"{name} {tile.name} cannot run {shape.text} on {chip.target}: {reason}")
    geometry = variant.geometry(tile, shape, chip)
    function = _load(variant, tile, chip.target, bf16, device)
    out_map = partial(tensor_map.of_output, function.cuda, m, n, variant.out_box(tile)) if variant.out_box else None
    return _Prepared(launch.prepared(function, geometry, pdl), geometry.workspace_bytes, variant.then_fp16, out_map)


def _load(variant: Variant, tile: Tile, target: str, bf16: bool, device: int) -> launch.Function:
    signature = WITH_MAP if variant.out_box else SIGNATURE
    return launch.load_kernel(catalogue.kernel(variant, tile, target, bf16), ENTRY, signature, device)
