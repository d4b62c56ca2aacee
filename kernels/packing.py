"""Weights packed into the order in which threads load them; ``formats.py`` says what that order is.

``w4a8`` and ``w4a16`` share its layout; ``w4a4`` has the same blocks of 32 rows x 128 of K, but its nibbles are what
``mma.m16n8k64`` s4 takes as operand A without an instruction between, and g128's scales are what its FFMAs take.

Bounds. K is at most 65536, and with it every sum fits INT32 in whatever order it is taken, since the sum of the
absolute products does:

    w4a8 g128i,     unsigned byte x INT8   255 * 127 * K <= 2 122 383 360 < 2^31; minus 128 * sum(x), which is at most
         g128r      128 * 127 * K < 2^31, it is a sum of signed bytes x INT8, at most 128 * 127 * K again
    w4a8 channel    likewise: codes where they lie are 0 … 15 or, sixteen times too large, 0 … 240
    w4a8 g128, …    16 * (-8 … 7) x INT8 over one group: 128 * 127 * 128 < 2^21, which fp32 holds exactly, too
    w4a4            (-8 … 7)^2             64 * K; a128i, times a group scale of at most 16: 1024 * K < 2^31

Of g128i and g128r ``check_quantised`` holds the byte to 0 … 255 for the codes that a group has. A short last group is
filled up with code 0, whose byte is the group's zero: it carries no further, and activations, zeros there, add nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from apex4_probe.kernels.formats import (
    BLOCK_K,
    BLOCK_ROWS,
    BYTE_ORDER,
    GRANULARITIES,
    GROUP,
    LAYOUT_VERSION,
    MAGIC,
    NIBBLE_BYTES,
    TWO_LEVEL,
    Format,
    Granularity,
    block_bytes,
    has_offsets,
    weight_group,
)
from apex4_probe.kernels.hadamard import check_hadamard, hadamard_transform, normalisation
from apex4_probe.kernels.quantised_weight import (
    CODE_ZERO,
    LARGEST_INTEGER_SCALE,
    LARGEST_TENSOR,
    SIXTEENTHS,
    QuantisedWeight,
    check_quantised,
    check_tensor,
    check_weight,
    quantise_weight,
)

LARGEST_K = 65536
SMALLEST_K_STEP = 32  # of one INT8 MMA
FAMILY = "mma"  # operands of mma.sync, which every architecture from 8.0 on has; the only order so far
ALIGNMENT = 16  # bytes of a thread's widest load and store
ACTIVATION_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight [n, k] that kernels can load. Make one with ``pack``, ``pack_quantised`` or ``random_packed``.

    ``data``: uint8 [n / 32 * ceil(k / 128) * block bytes]. ``row_scale``: fp32 [n]. ``hadamard``: size of the block
    Hadamard transform that the activations need (the weight has it already), ``act_clip``: what their largest magnitude
    is multiplied by before it becomes a scale; the weight's quality holds only with both. ``arch``: the family of
    architectures whose order ``data`` has.
    """

    format: Format
    granularity: Granularity
    n: int
    k: int
    data: torch.Tensor = field(repr=False)
    row_scale: torch.Tensor = field(repr=False)
    hadamard: int | None
    act_clip: float
    arch: str
    layout_version: int

    @property
    def k_padded(self) -> int:
        """``k`` to whole blocks of 128. Weights beyond ``k`` have code 0 (g128i, g128r) or the value 0."""
        return -(-self.k // BLOCK_K) * BLOCK_K

    @property
    def nbytes(self) -> int:
        """Bytes of device memory, row scales included."""
        return self.data.numel() + 4 * self.row_scale.numel()

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device | str) -> PackedWeight:
        return replace(self, data=self.data.to(device), row_scale=self.row_scale.to(device))


def check_is_packed(packed: object) -> None:
    """ValueError unless ``packed`` is a PackedWeight."""
    if not isinstance(packed, PackedWeight):
        raise ValueError(f"packed must be a PackedWeight, as pack returns it, not {type(packed).__name__}")


def check_activations(x: torch.Tensor, k: int) -> None:
    """ValueError unless ``x`` is a tensor [..., k] of fp16 or bf16."""
    check_tensor("x", x)
    if x.dtype not in ACTIVATION_DTYPES:
        raise ValueError(f"x must be fp16 or bf16, not {x.dtype}: convert it with half() or bfloat16()")
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"x must be [..., {k}], the packed weight's K, not {list(x.shape)}")


def check_packed(packed: PackedWeight) -> None:
    """What every consumer calls first. ValueError, naming the field, unless this version can read ``packed``.

    Reads no values, so it costs no synchronisation.
    """
    check_is_packed(packed)
    if packed.layout_version != LAYOUT_VERSION:
        raise ValueError(
            f"packed.layout_version is {packed.layout_version}; this version reads {LAYOUT_VERSION}: pack again"
        )
    _check_arch(packed.arch)
    _check_format(packed.format, packed.granularity)
    _check_shape("packed", packed.format, packed.n, packed.k)
    blocks = packed.n // BLOCK_ROWS * (packed.k_padded // BLOCK_K)
    for name, tensor, dtype, size in (
        ("data", packed.data, torch.uint8, blocks * block_bytes(packed.granularity, packed.format)),
        ("row_scale", packed.row_scale, torch.float32, packed.n),
    ):
        if tensor.dtype != dtype or tuple(tensor.shape) != (size,) or not tensor.is_contiguous():
            raise ValueError(
                f"packed.{name} must be contiguous {dtype} [{size}], not {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.data_ptr() % ALIGNMENT:
            raise ValueError(f"packed.{name} must be aligned to {ALIGNMENT} bytes")
    if packed.data.device != packed.row_scale.device:
        raise ValueError(f"packed.row_scale must be on {packed.data.device} like data, not {packed.row_scale.device}")


def pack(
    weight: torch.Tensor,
    *,
    format: Format,
    granularity: Granularity,
    hadamard: int | None = None,
    act_clip: float = 1.0,
    arch: str | None = None,
) -> PackedWeight:
    """Rounds ``weight`` [N, K] (fp16, bf16 or fp32, any strides, any device) to 4 bits and packs it where it lies.

    ``hadamard``: rotate blocks of that many inputs, here and in every activation later: x @ weight.T stays what it is.
    ``arch``: None or "mma". CPU and GPU give the same bytes.

    ValueError, naming the argument: no tensor, another dtype or rank, N not a multiple of 32, K not one of 32 and, but
    for g128i and g128r, of the group (of 128 for w4a16, whose activations are read as they are) or above 65536, NaN or
    infinity, more than 2^31 elements, an unknown format, granularity or family, a Hadamard size other than a power of
    two from 64 to 32768 that divides K, ``act_clip`` outside (0, 1], either of both where activations are not quantised
    (w4a16).
    """
    check_weight(weight, granularity)
    _check_request(format, granularity, weight.shape[0], weight.shape[1], hadamard, act_clip, arch)
    weight = weight.detach()
    if hadamard is not None:
        weight = hadamard_transform(weight.to(torch.float32), hadamard) * normalisation(hadamard)
    quantised = quantise_weight(weight, granularity)
    return pack_quantised(quantised, format=format, hadamard=hadamard, act_clip=act_clip, arch=arch)


def pack_quantised(
    quantised: QuantisedWeight,
    *,
    format: Format,
    hadamard: int | None = None,
    act_clip: float = 1.0,
    arch: str | None = None,
) -> PackedWeight:
    """Packs codes and scales that exist already. ``hadamard``: the rotation that ``quantised`` has been given.

    ValueError as ``pack``, and for codes and scales outside what ``QuantisedWeight`` allows.
    """
    check_quantised(quantised)
    n, k = quantised.n, quantised.k
    _check_request(format, quantised.granularity, n, k, hadamard, act_clip, arch)
    row_blocks, k_blocks = n // BLOCK_ROWS, -(-k // BLOCK_K)
    filling = _filling(quantised.granularity)
    codes = torch.nn.functional.pad(quantised.codes.contiguous(), (0, k_blocks * BLOCK_K - k), value=filling)
    blocks = torch.empty(
        row_blocks, k_blocks, block_bytes(quantised.granularity, format), dtype=torch.uint8, device=codes.device
    )
    blocks[..., :NIBBLE_BYTES] = _nibbles_w4a4(codes) if format == "w4a4" else _nibbles(codes)
    scales = _scale_bytes(quantised, has_offsets(format, quantised.granularity))
    if scales is not None:
        blocks[..., NIBBLE_BYTES:] = scales
    return PackedWeight(
        format,
        quantised.granularity,
        n,
        k,
        blocks.view(-1),
        quantised.row_scale.clone(memory_format=torch.contiguous_format),  # owned, and so aligned
        hadamard,
        act_clip,
        arch or FAMILY,
        LAYOUT_VERSION,
    )


def unpack(packed: PackedWeight) -> QuantisedWeight:
    """The inverse of ``pack_quantised``, padding dropped. ValueError: ``check_packed``."""
    check_packed(packed)
    group = weight_group(packed.granularity)
    row_blocks, k_blocks = packed.n // BLOCK_ROWS, packed.k_padded // BLOCK_K
    blocks = packed.data.view(row_blocks, k_blocks, -1)
    nibbles = blocks[..., :NIBBLE_BYTES]
    codes = (_codes_w4a4(nibbles) if packed.format == "w4a4" else _codes(nibbles))[:, : packed.k].contiguous()
    if group is None:
        return QuantisedWeight(packed.granularity, codes, packed.row_scale)
    if has_offsets(packed.format, packed.granularity):
        floats = blocks[..., NIBBLE_BYTES:].contiguous().view(torch.float32).view(row_blocks, k_blocks, 2, 8, 2, 2)
        scales = floats[:, :, 0].permute(0, 3, 4, 2, 1).reshape(packed.n, -1)  # [nb, kb, g, t, r] -> [nb, t, r, g, kb]
        return QuantisedWeight(packed.granularity, codes, packed.row_scale, scales.to(torch.float16))
    # [nb, kb, j, t, g, r, byte 2] -> [nb, t, r, g, kb, j, byte 2]
    words = blocks[..., NIBBLE_BYTES:].view(row_blocks, k_blocks, BLOCK_K // group, 2, 8, 2, 2)
    halves = words.permute(0, 3, 5, 4, 1, 2, 6).reshape(packed.n, -1, 2)[:, : -(-packed.k // group)].contiguous()
    if packed.granularity in TWO_LEVEL:
        scale, zero = halves[..., 0].contiguous(), halves[..., 1].contiguous()
        return QuantisedWeight(packed.granularity, codes, packed.row_scale, None, scale, zero)
    return QuantisedWeight(packed.granularity, codes, packed.row_scale, halves.view(torch.float16)[..., 0])


def random_packed(
    n: int,
    k: int,
    format: Format,
    granularity: Granularity,
    device: torch.device | str,
    generator: torch.Generator | None = None,
) -> PackedWeight:
    """Random codes under random legal scales, made as packed bytes on ``device``: weights to time or to test kernels.

    Row scales lie in [1e-3, 2e-3), group scales in [1/4, 1], integer ones and their zeros anywhere they may. ValueError
    as ``pack``.
    """
    _check_request(format, granularity, n, k, None, 1.0, None)
    row_blocks, k_blocks = n // BLOCK_ROWS, -(-k // BLOCK_K)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=device, generator=generator)

    shape = (row_blocks, k_blocks, block_bytes(granularity, format))
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)
    if k % BLOCK_K:  # both orders have, from the second axis up: tile, half, lane, step of 32, its 8 bytes
        steps = blocks[:, -1, :NIBBLE_BYTES].view(row_blocks, 2, 2, 32, 2, 8)
        filling = _filling(granularity) ^ (8 if format == "w4a4" else 0)
        for step in range(k % BLOCK_K // SMALLEST_K_STEP, 4):
            steps[:, :, step // 2, :, step % 2] = filling | filling << 4
    halves = blocks[..., NIBBLE_BYTES:]
    count = halves.shape[-1] // 2
    if has_offsets(format, granularity):
        scale = (1 - 0.75 * uniform(row_blocks, k_blocks, BLOCK_ROWS)).to(torch.float16).to(torch.float32)
        halves.copy_(torch.cat((scale, -MAGIC * scale), -1).view(torch.uint8))
    elif granularity == "g128i":
        scale = torch.floor(uniform(row_blocks, k_blocks, count) * LARGEST_INTEGER_SCALE) + 1
        zero = torch.floor(uniform(row_blocks, k_blocks, count) * (256 - 15 * scale))
        halves.copy_(torch.stack((scale, zero), -1).flatten(-2))
    elif granularity == "g128r":
        scale = torch.floor(uniform(row_blocks, k_blocks, count) * 256)
        zero = torch.floor(uniform(row_blocks, k_blocks, count) * (256 - torch.ceil((scale + 1) * (15 / SIXTEENTHS))))
        halves.copy_(torch.stack((scale, zero), -1).flatten(-2))
    elif count:
        scale = 1 - 0.75 * uniform(row_blocks, k_blocks, count)
        if k % BLOCK_K:
            scale[:, -1, k % BLOCK_K * count // BLOCK_K :] = 1.0
        halves.copy_(scale.to(torch.float16).view(torch.uint8))
    row_scale = (1 + uniform(n)) * 1e-3
    return PackedWeight(format, granularity, n, k, blocks.view(-1), row_scale, None, 1.0, FAMILY, LAYOUT_VERSION)


def check_act_clip(act_clip: float) -> None:
    """ValueError unless ``act_clip`` lies in (0, 1]."""
    if isinstance(act_clip, bool) or not isinstance(act_clip, (int, float)) or not 0 < act_clip <= 1:
        raise ValueError(f"act_clip must lie in (0, 1], not {act_clip!r}")


def _check_request(
    format: Format, granularity: Granularity, n: int, k: int, hadamard: int | None, act_clip: float, arch: str | None
) -> None:
    _check_format(format, granularity)
    _check_shape("weight", format, n, k)
    group = GROUP[granularity]  # of the activations, too
    if group and granularity not in TWO_LEVEL and k % group:
        raise ValueError(f"weight: K = {k} must be a multiple of the group of {group}")
    check_hadamard(hadamard, k)
    check_act_clip(act_clip)
    if format == "w4a16" and (hadamard is not None or act_clip != 1):
        name = "act_clip" if hadamard is None else "hadamard"
        raise ValueError(f"{name}: w4a16 multiplies activations as they are; it is for w4a8 and w4a4")
    if arch is not None:
        _check_arch(arch)


def _filling(granularity: Granularity) -> int:
    """The code of weights beyond K. Under a scale that is legal for smaller codes, 8 could leave its byte."""
    return 0 if granularity in TWO_LEVEL else CODE_ZERO


def _check_arch(arch: str) -> None:
    if arch != FAMILY:
        raise ValueError(f"arch must be {FAMILY!r}, the one family that weights are packed for, not {arch!r}")


def _check_format(format: Format, granularity: Granularity) -> None:
    if format not in tuple(GRANULARITIES):  # a tuple compares where a dict would want to hash
        raise ValueError(f"format must be one of {', '.join(GRANULARITIES)}, not {format!r}")
    if granularity not in GRANULARITIES[format]:
        legal = ", ".join(GRANULARITIES[format])
        raise ValueError(f"granularity must be one of {legal} for {format}, not {granularity!r}")


def _check_shape(name: str, format: Format, n: int, k: int) -> None:
    step = BLOCK_K if format == "w4a16" else SMALLEST_K_STEP
    if n <= 0 or n % BLOCK_ROWS:
        raise ValueError(f"{name}: N = {n} must be a positive multiple of {BLOCK_ROWS}")
    if k <= 0 or k % step:
        raise ValueError(f"{name}: K = {k} must be a positive multiple of {step} for {format}")
    if k > LARGEST_K:
        raise ValueError(f"{name}: K = {k} must not exceed {LARGEST_K}, where INT32 sums could overflow")
    if n * k > LARGEST_TENSOR:
        raise ValueError(f"{name} must not have more than 2^31 elements, but is {n} x {k}")


# codes uint8 [N, K], K a multiple of 128 <-> bytes uint8 [nb, kb, 2048]


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    n, k = codes.shape
    #                  nb             t  r  g  kb           half s c  h  q
    parts = codes.view(n // BLOCK_ROWS, 2, 2, 8, k // BLOCK_K, 2, 2, 4, 2, 4)[..., list(BYTE_ORDER)]
    low, high = parts.permute(2, 0, 4, 1, 5, 3, 7, 6, 8, 9).unbind(0)  # r; nb kb t half g c s h p
    return (low | (high << 4)).reshape(n // BLOCK_ROWS, k // BLOCK_K, NIBBLE_BYTES)


def _codes(nibbles: torch.Tensor) -> torch.Tensor:
    row_blocks, k_blocks, _ = nibbles.shape
    #                          nb          kb        t half g c s h p
    packed = nibbles.reshape(row_blocks, k_blocks, 2, 2, 8, 4, 2, 2, 4)
    parts = torch.stack((packed & 15, packed >> 4))  # r nb kb t half g c s h p
    position = [BYTE_ORDER.index(q) for q in range(4)]
    codes = parts[..., position].permute(1, 3, 0, 5, 2, 4, 7, 6, 8, 9)
    return codes.reshape(row_blocks * BLOCK_ROWS, k_blocks * BLOCK_K)


def _nibbles_w4a4(codes: torch.Tensor) -> torch.Tensor:
    n, k = codes.shape
    #                          nb             t  r  g  kb           half s c  byte nibble
    parts = (codes ^ 8).view(n // BLOCK_ROWS, 2, 2, 8, k // BLOCK_K, 2, 2, 4, 4, 2)
    low, high = parts.permute(9, 0, 4, 1, 5, 3, 7, 6, 2, 8).unbind(0)  # nibble; nb kb t half g c s r byte
    return (low | (high << 4)).reshape(n // BLOCK_ROWS, k // BLOCK_K, NIBBLE_BYTES)


def _codes_w4a4(nibbles: torch.Tensor) -> torch.Tensor:
    row_blocks, k_blocks, _ = nibbles.shape
    #                          nb          kb        t half g c s r byte
    packed = nibbles.reshape(row_blocks, k_blocks, 2, 2, 8, 4, 2, 2, 4)
    parts = torch.stack((packed & 15, packed >> 4), dim=-1) ^ 8
    codes = parts.permute(0, 2, 7, 4, 1, 3, 6, 5, 8, 9)
    return codes.reshape(row_blocks * BLOCK_ROWS, k_blocks * BLOCK_K)


def _scale_bytes(quantised: QuantisedWeight, offsets: bool) -> torch.Tensor | None:
    """uint8 [nb, kb, bytes of scales]; padding gets scales of zero weights (float 1; groups of 128 have none)."""
    group = weight_group(quantised.granularity)
    if group is None:
        return None
    if offsets:
        assert quantised.group_scale is not None
        scale = quantised.group_scale.to(torch.float32).reshape(quantised.n // BLOCK_ROWS, 2, 2, 8, -1)
        ordered = scale.permute(0, 4, 3, 1, 2).flatten(2)  # [nb, t, r, g, kb] -> [nb, kb, g, t, r]
        return torch.cat((ordered, -MAGIC * ordered), -1).view(torch.uint8)
    if quantised.integer_scale is not None and quantised.zero is not None:
        halves = torch.stack((quantised.integer_scale, quantised.zero), dim=-1)
    else:
        assert quantised.group_scale is not None
        per_block = BLOCK_K // group
        missing = -quantised.group_scale.shape[1] % per_block
        padded = torch.nn.functional.pad(quantised.group_scale, (0, missing), value=1.0)
        halves = padded.contiguous().view(torch.uint8).view(quantised.n, -1, 2)
    # [nb, t, r, g, kb, j, byte 2] -> [nb, kb, j, t, g, r, byte 2]
    words = halves.view(quantised.n // BLOCK_ROWS, 2, 2, 8, -1, BLOCK_K // group, 2)
    return words.permute(0, 4, 5, 1, 3, 2, 6).flatten(2)
