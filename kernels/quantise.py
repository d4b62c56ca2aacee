"""The activation quantiser: fp16 or bf16 rows to INT8 or INT4 in operand order, Hadamard transform included.

Arithmetic: ``reference.py``, to the bit. Layouts: ``formats.py``. How a row is split over threads: ``row_split``
here, what each thread does: ``cuda/quantise.cu``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, get_args

import torch

from apex4_probe.kernels.compile import Kernel, cuda_header
from apex4_probe.kernels.formats import BLOCK_K, BLOCK_TOKENS, NIBBLE_BYTES, TOKEN_TILE, Granularity
from apex4_probe.kernels.hadamard import check_hadamard
from apex4_probe.kernels.launch import PREPARED, Launch, chip, cuda_device, current_stream, load_kernel, prepared
from apex4_probe.kernels.packing import LARGEST_K, SMALLEST_K_STEP
from apex4_probe.kernels.quantised_weight import LARGEST_TENSOR
from apex4_probe.kernels.variant import Geometry, Variant

Kind = Literal["int8", "int8_wgmma", "int4", "int4_g128", "int4_g64", "int4_g32", "int4_a128i"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# K of what shares a scale; None: the token. a128i has a scale per token besides.
KIND_GROUP: dict[Kind, int | None] = {
    "int8": None,
    "int8_wgmma": None,
    "int4": None,
    "int4_g128": 128,
    "int4_g64": 64,
    "int4_g32": 32,
    "int4_a128i": 128,
}
INTEGER_GROUPS: Kind = "int4_a128i"
W4A4_KINDS: dict[Granularity, Kind] = {
    "channel": "int4",
    "a128i": "int4_a128i",
    "g128": "int4_g128",
    "g64": "int4_g64",
    "g32": "int4_g32",
}
INT8_KINDS: tuple[Kind, ...] = ("int8", "int8_wgmma")  # the same numbers in two orders

ENTRY = "quantise"
SIGNATURE = "PPPPiif"  # x, data, scale, row_sum, m, k, clip

DTYPES = (torch.float16, torch.bfloat16)
ALIGNMENT = 16  # bytes of a thread's load
WARP = 32
CHUNK = 256  # k of a warp's load
CTA_WARPS = 4  # rows shorter than this many warps share a CTA
MOST_WARPS = 32  # of a CTA
VECTORS = 4  # loads a thread has in flight: enough for the row to be in registers as early as memory allows
# CUDA C++ Programming Guide, compute capabilities: from 8.0 on; warps are those of 8.6, 8.9 and 12.0.
SM_PARTITIONS, PARTITION_REGISTERS, SM_WARPS = 4, 16384, 48
MOST_WARPS_SWAPPED_WHOLE = 4  # of a block, as in the source: beyond, warps swap half a vector at a time
TRANSFORM_CHUNKS = 128  # a transformed row of 32768 takes half the register file in fp32, and the rest is temporaries


@dataclass(frozen=True, eq=False)
class QuantisedActivations:
    """x [m, k] as kernels read it.

    ``data``: uint8, 1-D, in an order of ``formats.py``, scales of groups included; int8: ceil(k / 128) * ceil(m / 8)
    tiles of 1024 bytes; int4: ceil(k / 128) * ceil(m / 32) blocks. ``scale``: fp32 [m], not for ``int4_g…``.
    ``row_sum``: int32 [m], int8 only.
    """

    kind: Kind
    m: int
    k: int
    data: torch.Tensor
    scale: torch.Tensor | None
    row_sum: torch.Tensor | None


@dataclass(frozen=True)
class RowSplit:
    """A row over threads: ``segments`` one after the other, ``warps`` side by side, ``vectors`` of 8 k a thread, and
    ``rows`` a CTA."""

    vectors: int
    warps: int
    rows: int
    segments: int


def quantise(
    x: torch.Tensor, *, kind: Kind, clip: float = 1.0, hadamard: int | None = None, pdl: bool = False
) -> QuantisedActivations:
    """Quantises ``x`` [M, K] (fp16 or bf16, contiguous, on a GPU) on torch's current stream; nothing waits.

    ``clip``: in (0, 1], the share of the largest magnitude that still has a code of its own. ``hadamard``: size of the
    block transform before, a power of two from 64 to 32768 that divides K. ``pdl``: may begin before the kernel ahead
    of it on the stream has ended. M = 0 gives empty tensors.

    ValueError naming the argument: another dtype, device, rank or stride, x not on 16 bytes, K not a multiple of 32 (of
    the group where groups have scales) or beyond 65536, more than 2^31 elements. ApexError during the capture of a CUDA
    graph where the kernel is not loaded yet.
    """
    device = _check(x, kind, clip, hadamard)
    m, k = x.shape
    activations = _empty(kind, m, k, x.device)
    if m == 0:
        return activations
    if torch.cuda.current_device() != device:
        with torch.cuda.device(device):
            _enqueue(x, activations, clip, hadamard, pdl, device)
    else:
        _enqueue(x, activations, clip, hadamard, pdl, device)
    return activations


def activation_kind(variant: Variant) -> Kind | None:
    """How a variant's activations are quantised, and in what order they lie; None: they are not."""
    if variant.activations:
        return variant.activations
    if variant.format == "w4a16":
        return None
    return "int8" if variant.format == "w4a8" else W4A4_KINDS[variant.granularity]


def kernel_for(kind: Kind, bf16: bool, hadamard: int | None, k: int, target: str) -> Kernel:
    """The translation unit that quantises rows of ``k``; many K share one. ``target``: an NVRTC architecture."""
    split = row_split(k, hadamard)
    macros = {
        "BITS": 8 if kind in INT8_KINDS else 4,
        "WGMMA": int(kind == "int8_wgmma"),
        "GROUP": KIND_GROUP[kind] or 0,
        "INTEGER_GROUPS": int(kind == INTEGER_GROUPS),
        "IN_BF16": int(bf16),
        "HADAMARD": hadamard or 0,
        "VECTORS": split.vectors,
        "WARPS": split.warps,
        "ROWS": split.rows,
        "SEGMENTS": split.segments,
        "CTAS": _ctas(kind, hadamard, split),
    }
    name = f"quantise {kind} {'bf16' if bf16 else 'fp16'} hadamard={hadamard} {split.vectors}x{split.warps}"
    return Kernel(name, _source(), target, options=tuple(f"-D{name}={value}" for name, value in macros.items()))


@lru_cache(maxsize=PREPARED)
def geometry(m: int, k: int, hadamard: int | None) -> Geometry:
    """One CTA for every ``rows`` tokens; shared memory where warps swap parts of a block."""
    split = row_split(k, hadamard)
    block_warps = max(1, (hadamard or 1) // (split.vectors * CHUNK))
    moving = split.warps * split.vectors * (block_warps - 1) // block_warps  # chunks; the others stay where they are
    row_bytes = moving * CHUNK * 4
    if block_warps > MOST_WARPS_SWAPPED_WHOLE:
        row_bytes //= 2
    return Geometry(
        grid=(-(-m // split.rows), 1, 1),
        threads=split.rows * split.warps * WARP,
        shared_bytes=split.rows * row_bytes,
    )


def row_split(k: int, hadamard: int | None) -> RowSplit:
    """How the kernel holds a row of ``k``."""
    chunks = -(-k // CHUNK)
    vectors, most_chunks = _vectors(chunks, hadamard)
    while vectors > 1 and vectors // 2 >= chunks:
        vectors //= 2
    block_warps = max(1, (hadamard or 1) // (vectors * CHUNK))  # a block does not straddle segments
    warps = -(-chunks // vectors)
    segments = -(-warps * vectors // most_chunks)
    warps = -(-warps // segments // block_warps) * block_warps
    return RowSplit(vectors, warps, rows=max(1, CTA_WARPS // warps), segments=segments)


def _vectors(chunks: int, hadamard: int | None) -> tuple[int, int]:
    """Vectors of a thread, and the most chunks that a CTA holds at once.

    With a transform the row is in fp32. Four vectors are the fastest wherever warps can swap what lies between them
    (they swap as many bits of K as the vectors of a thread have); eight take 9 to 32 % longer (measured, H100,
    M = 4096, K = 4096 … 28672, blocks of 128 to 4096).
    """
    if hadamard is None:
        vectors = VECTORS if chunks <= MOST_WARPS // 2 * VECTORS else 2 * VECTORS
        return vectors, MOST_WARPS * 2 * VECTORS
    if hadamard <= VECTORS**2 * CHUNK:
        return VECTORS, TRANSFORM_CHUNKS
    return 2 * VECTORS if hadamard <= (2 * VECTORS) ** 2 * CHUNK else 4 * VECTORS, TRANSFORM_CHUNKS


def _ctas(kind: Kind, hadamard: int | None, split: RowSplit) -> int:
    """CTAs that an SM shall hold: what the row takes in registers and the temporaries that ptxas needs beside it."""
    registers = 4 * split.vectors + 24 if hadamard is None else 8 * split.vectors + 32
    if kind == INTEGER_GROUPS:
        registers += 8  # two divisions a vector, of which ptxas interleaves several
    warps = SM_PARTITIONS * (PARTITION_REGISTERS // (registers * WARP))
    return max(1, min(SM_WARPS, warps) // (split.rows * split.warps))


def _enqueue(
    x: torch.Tensor, to: QuantisedActivations, clip: float, hadamard: int | None, pdl: bool, device: int
) -> None:
    launch = _launch(to.kind, x.dtype == torch.bfloat16, hadamard, to.m, to.k, pdl, device)
    launch(
        current_stream(device),
        x.data_ptr(),
        to.data.data_ptr(),
        0 if to.scale is None else to.scale.data_ptr(),
        0 if to.row_sum is None else to.row_sum.data_ptr(),
        to.m,
        to.k,
        clip,
    )


@lru_cache(maxsize=PREPARED)
def _launch(kind: Kind, bf16: bool, hadamard: int | None, m: int, k: int, pdl: bool, device: int) -> Launch:
    kernel = kernel_for(kind, bf16, hadamard, k, chip(device).target)
    return prepared(load_kernel(kernel, ENTRY, SIGNATURE, device), geometry(m, k, hadamard), pdl)


def _empty(kind: Kind, m: int, k: int, device: torch.device) -> QuantisedActivations:
    group, k_blocks = KIND_GROUP[kind], -(-k // BLOCK_K)
    if kind in INT8_KINDS:
        size = k_blocks * -(-m // TOKEN_TILE) * BLOCK_K * TOKEN_TILE
    else:
        scales = BLOCK_K // group * BLOCK_TOKENS * 4 if group else 0
        size = k_blocks * -(-m // BLOCK_TOKENS) * (NIBBLE_BYTES + scales)
    has_token_scale = group is None or kind == INTEGER_GROUPS
    return QuantisedActivations(
        kind,
        m,
        k,
        data=torch.empty(size, dtype=torch.uint8, device=device),
        scale=torch.empty(m, dtype=torch.float32, device=device) if has_token_scale else None,
        row_sum=torch.empty(m, dtype=torch.int32, device=device) if kind in INT8_KINDS else None,
    )


def _check(x: torch.Tensor, kind: Kind, clip: float, hadamard: int | None) -> int:
    """The CUDA device of ``x``. ValueError as ``quantise``."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be fp16 or bf16, not {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"x must be [M, K], not {list(x.shape)}")
    m, k = x.shape
    step = KIND_GROUP[kind] or SMALLEST_K_STEP
    if k == 0 or k % step or k > LARGEST_K:
        raise ValueError(f"x: K must be a multiple of {step} for {kind} and at most {LARGEST_K}, not {k}")
    if m * k > LARGEST_TENSOR:
        raise ValueError(f"x must not have more than 2^31 elements, but is {m} x {k}")
    if isinstance(clip, bool) or not isinstance(clip, (int, float)) or not 0 < clip <= 1:
        raise ValueError(f"clip must lie in (0, 1], not {clip!r}")
    check_hadamard(hadamard, k)
    if not x.is_contiguous():
        raise ValueError(f"x must be contiguous, but has strides {x.stride()} for {list(x.shape)}: call contiguous()")
    device = cuda_device("x", x)
    if x.data_ptr() % ALIGNMENT:
        raise ValueError(f"x must be aligned to {ALIGNMENT} bytes: a view into the midst of a tensor may need clone()")
    return device


@cache
def _source() -> str:
    return cuda_header("quantise.cu")[1]
