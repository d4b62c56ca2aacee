"""What every kernel must compute, slowly and on any device: activation quantisers and the linear layer.

Integer parts are exact and the fp32 steps are those of the kernels, one rounding each and in the same order, so a
kernel whose arithmetic is integer agrees to the bit. All of it in fp32; ``rint`` rounds halves to even; a quotient is
an IEEE division; ``inv`` is 0 where it would not be finite (nothing to scale: an absmax of zero, or next to it).

    values        x as fp32; with ``hadamard`` = h: hadamard_transform(x, h), and the scale below, as its last step,
                  times fp32(1 / sqrt(h))
    int8          a = max |values| of the token * clip      scale = a / 127          inv = 127 / a
                  q = clamp(rint(values * inv), -127, 127)    row_sum = sum of q (INT32)
    int4          a = max |values| of the token * clip      scale = a / 7            inv = 7 / a
                  q = clamp(rint(values * inv), -8, 7)        per group likewise, a scale for every token and group
    int4, a128i   a_g = max |values| of the group * clip      t = max a_g / 112        scale = t
                  s_g = clamp(ceil(a_g / (7 * t)), 1, 16)     inv = 1 / (s_g * t)      (0 / 0: s_g = 1)
                  q = clamp(rint(values * inv), -8, 7)        x is about q * s_g * scale

A token (a group, where groups have scales of their own) that holds NaN or infinity after the transform has scale NaN,
so that its outputs are NaN; its q, row_sum and s_g mean nothing (here 0, 0, 1).

    w4a8 channel, g128i, g128r; w4a4 channel, a128i  S = the integer sum over K, f = fp32(S)
    w4a8 g128, g64, g32                             f = fma(fp32(S_j), group_scale_j, f), j ascending from f = 0
    w4a4 g128, g64, g32                             f = fma(fp32(S_j) * group_scale_j, activation scale_j, f)
    w4a16                                           f = fma(P_j, group_scale_j, f), P_j = the products of group j summed
                                                    in fp32 in any order (here: rounded once); channel: f = P
    y = round(fma(f, token_scale * row_scale, bias)) to the output type; token_scale is 1 where no token has one scale
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from apex4_probe.kernels.formats import BLOCK_K, BLOCK_TOKENS, BYTE_ORDER, TOKEN_TILE, weight_group
from apex4_probe.kernels.hadamard import check_hadamard, hadamard_transform, normalisation
from apex4_probe.kernels.packing import PackedWeight, check_act_clip, check_activations, check_packed, unpack
from apex4_probe.kernels.quantised_weight import LARGEST_INTEGER_SCALE, QuantisedWeight, check_tensor

INT8_MAX, INT4_MAX, INT4_MIN = 127, 7, -8
ELEMENTS_AT_ONCE = 1 << 24  # of float64 weights or outputs


def quantise_int8(
    x: torch.Tensor, clip: float = 1.0, hadamard: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``x`` [M, K] per token: q int8 [M, K], scale fp32 [M], row_sum int32 [M]. ValueError: clip, hadamard."""
    values, rotation = _values(x, hadamard, clip)
    q, scale = _quantise(values, clip, -INT8_MAX, INT8_MAX, rotation)
    return q, scale, q.sum(1, dtype=torch.int32)


def quantise_int4(
    x: torch.Tensor, clip: float = 1.0, hadamard: int | None = None, group: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` [M, K]: q int8 [M, K] in -8 … 7; scale fp32 [M] per token or, with ``group``, [M, K / group].

    ValueError: clip, hadamard.
    """
    values, rotation = _values(x, hadamard, clip)
    grouped = values if group is None else values.reshape(x.shape[0], x.shape[1] // group, group)
    q, scale = _quantise(grouped, clip, INT4_MIN, INT4_MAX, rotation)
    return q.reshape(x.shape), scale


def quantise_int4_a128i(
    x: torch.Tensor, clip: float = 1.0, hadamard: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``x`` [M, K]: q int8 [M, K] in -8 … 7, scale fp32 [M], group_scale uint8 [M, K / 128] in 1 … 16.

    ValueError: clip, hadamard.
    """
    values, rotation = _values(x, hadamard, clip)
    groups = values.reshape(x.shape[0], x.shape[1] // 128, 128)
    finite = torch.isfinite(values).all(1)
    of_group = torch.where(finite[:, None], groups.abs().amax(2), 0.0) * _fp32(clip, x)
    scale = of_group.amax(1) / _fp32(float(INT4_MAX * LARGEST_INTEGER_SCALE), x)
    steps = torch.ceil(of_group / (_fp32(float(INT4_MAX), x) * scale[:, None]))
    group_scale = torch.where(steps.isnan(), 1.0, steps).clamp(1, LARGEST_INTEGER_SCALE)  # NaN: 0 / 0, a token of zeros
    inverse = _finite_or_zero(_fp32(1.0, x) / (group_scale * scale[:, None]))
    q = _rounded(groups, inverse[..., None], INT4_MIN, INT4_MAX, finite[:, None, None])
    scale = torch.where(finite, scale if rotation is None else scale * rotation, torch.nan)
    return q.reshape(x.shape), scale, group_scale.to(torch.uint8)


def arrange_int8(q: torch.Tensor) -> torch.Tensor:
    """``q`` int8 [M, K] as the bytes (uint8, 1-D) that w4a8 kernels read: ``formats.py``, tokens beyond M zero."""
    m, k = q.shape
    padded = torch.nn.functional.pad(q, (0, -k % BLOCK_K, 0, -m % TOKEN_TILE))
    #                    mt  g           kb  half s c  h  k of a word
    parts = padded.view(-1, TOKEN_TILE, padded.shape[1] // BLOCK_K, 2, 2, 4, 2, 4)[..., list(BYTE_ORDER)]
    return parts.permute(2, 0, 3, 1, 5, 4, 6, 7).contiguous().view(torch.uint8).view(-1)


def arrange_int8_wgmma(q: torch.Tensor) -> torch.Tensor:
    """As ``arrange_int8``, in the order that kernels on wgmma read."""
    m, k = q.shape
    padded = torch.nn.functional.pad(q, (0, -k % BLOCK_K, 0, -m % TOKEN_TILE))
    #                    mt  g           kb                           i  c  h  k of a word
    parts = padded.view(-1, TOKEN_TILE, padded.shape[1] // BLOCK_K, 4, 4, 2, 4)[..., list(BYTE_ORDER)]
    chunks = parts.permute(2, 0, 1, 3, 5, 4, 6).reshape(padded.shape[1] // BLOCK_K, -1, TOKEN_TILE, 8, 16)
    token, place = torch.arange(TOKEN_TILE)[:, None], torch.arange(8)
    return chunks[:, :, token, place ^ token].contiguous().view(torch.uint8).view(-1)


def arrange_int4(q: torch.Tensor, group_scale: torch.Tensor | None = None) -> torch.Tensor:
    """``q`` int8 [M, K] in -8 … 7 as the bytes (uint8, 1-D) w4a4 kernels read: ``formats.py``; tokens beyond M zero.

    ``group_scale``: fp32 or, of a128i, any integer type, [M, K / group].
    """
    m, k = q.shape
    padded = torch.nn.functional.pad(q, (0, -k % BLOCK_K, 0, -m % BLOCK_TOKENS))
    token_blocks, k_blocks = padded.shape[0] // BLOCK_TOKENS, padded.shape[1] // BLOCK_K
    #                                           mb            j  g           kb half s c byte of a word
    parts = pack_int4(padded).view(token_blocks, 4, TOKEN_TILE, k_blocks, 2, 2, 4, 4)
    nibbles = parts.permute(3, 0, 1, 2, 6, 4, 5, 7).reshape(k_blocks, token_blocks, -1)
    if group_scale is None:
        return nibbles.reshape(-1)
    scales = group_scale if group_scale.dtype == torch.float32 else group_scale.to(torch.int32)
    per_block = BLOCK_K * scales.shape[1] // k
    scales = torch.nn.functional.pad(scales, (0, -scales.shape[1] % per_block, 0, -m % BLOCK_TOKENS))
    #                  mb            p  q  c  e  kb        group
    parts = scales.view(token_blocks, 2, 2, 4, 2, k_blocks, per_block).permute(5, 0, 6, 1, 3, 2, 4).contiguous()
    return torch.cat((nibbles, parts.view(torch.uint8).view(k_blocks, token_blocks, -1)), -1).view(-1)


def pack_int4(q: torch.Tensor) -> torch.Tensor:
    """``q`` int8 [M, K] in -8 … 7 as uint8 [M, K / 2]: two's complement, the lower k in the low nibble."""
    nibbles = q.view(torch.uint8) & 15
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def reference_linear(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y [..., N] = x [..., K] @ weight.T + bias as the kernels compute it, in x's type (fp16 or bf16), on x's device.

    Slow, without limits on M, the number of tokens. Equal to the kernels' output to the bit where their sums are
    integers; for w4a16, whose fp32 sums have no order, within what ``reference_linear64`` allows. Carries no gradient.

    ValueError, naming the argument: ``x`` or ``bias`` of another shape, type or device, a packed weight that this
    version cannot read.
    """
    check_operands(x, packed, bias)
    leading, x = x.shape[:-1], x.detach().reshape(-1, packed.k)
    activations = _activations(x, packed)
    y = torch.empty(x.shape[0], packed.n, dtype=x.dtype, device=x.device)
    addend = torch.zeros(packed.n, device=x.device) if bias is None else bias.detach().to(torch.float32)
    token_scale = activations.token_scale[:, None]
    for rows, weight in _pieces(packed, x.shape[0]):
        result = _accumulated(activations, weight)
        y[:, rows] = _fma(result, token_scale * weight.row_scale, addend[rows]).to(x.dtype)
    return y.view(*leading, packed.n)


def reference_linear64(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same product of quantised activations and weight in float64 [..., N]: what others are held to."""
    check_operands(x, packed, bias)
    leading, x = x.shape[:-1], x.detach().reshape(-1, packed.k)
    activations = _activations(x, packed)
    values = activations.values * activations.token_scale.to(torch.float64)[:, None]
    if activations.group_scale is not None:
        values *= activations.group_scale.to(torch.float64).repeat_interleave(activations.group, dim=1)
    y = torch.empty(x.shape[0], packed.n, dtype=torch.float64, device=x.device)
    for rows, weight in _pieces(packed, x.shape[0]):
        y[:, rows] = values @ weight.dequantised().T
    return (y if bias is None else y + bias.detach().to(torch.float64)).view(*leading, packed.n)


def check_operands(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None) -> None:
    """ValueError, naming the argument, unless x [..., K] and bias [N] suit a readable ``packed``."""
    check_packed(packed)
    check_activations(x, packed.k)
    if x.device != packed.device:
        raise ValueError(f"x must be on {packed.device} like the packed weight, not on {x.device}: move one with to()")
    if bias is not None:
        check_tensor("bias", bias)
    if bias is not None and (bias.dtype != x.dtype or tuple(bias.shape) != (packed.n,) or bias.device != x.device):
        raise ValueError(
            f"bias must be {x.dtype} [{packed.n}] on {x.device}, not {bias.dtype} {list(bias.shape)} on {bias.device}"
        )


@dataclass(frozen=True, eq=False)
class _Activations:
    """``values``: float64 [M, K]; integers, with a128i's group scales, unless w4a16. ``group_scale``: fp32 [M, G]."""

    values: torch.Tensor
    token_scale: torch.Tensor
    group_scale: torch.Tensor | None = None
    group: int = 0


def _activations(x: torch.Tensor, packed: PackedWeight) -> _Activations:
    ones = torch.ones(x.shape[0], device=x.device)
    if packed.format == "w4a16":
        return _Activations(x.to(torch.float64), ones)
    if packed.format == "w4a8":
        q, scale, _ = quantise_int8(x, packed.act_clip, packed.hadamard)
        return _Activations(q.to(torch.float64), scale)
    if packed.granularity == "a128i":
        q, scale, group_scale = quantise_int4_a128i(x, packed.act_clip, packed.hadamard)
        return _Activations(q.to(torch.float64) * group_scale.repeat_interleave(128, dim=1), scale)
    group = weight_group(packed.granularity)
    q, scale = quantise_int4(x, packed.act_clip, packed.hadamard, group)
    if group is None:
        return _Activations(q.to(torch.float64), scale)
    return _Activations(q.to(torch.float64), ones, scale, group)


def _pieces(packed: PackedWeight, m: int) -> Iterator[tuple[slice, QuantisedWeight]]:
    """The weight in runs of rows, so that neither it in float64 nor their outputs take much memory."""
    weight = unpack(packed)
    count = max(1, ELEMENTS_AT_ONCE // max(packed.k, m))
    for first in range(0, packed.n, count):
        rows = slice(first, min(first + count, packed.n))
        yield rows, weight.rows(rows)


def _accumulated(activations: _Activations, weight: QuantisedWeight) -> torch.Tensor:
    """f, fp32 [M, N]. Products of integers are summed in float64, whose 53 bits hold every partial sum exactly."""
    integers = weight.integers().to(torch.float64)
    if weight.group_scale is None:
        return (activations.values @ integers.T).to(torch.float32)
    groups = weight.group_scale.shape[1]
    result = torch.zeros(activations.values.shape[0], weight.n, device=integers.device)
    pairs = zip(activations.values.chunk(groups, 1), integers.chunk(groups, 1), strict=True)
    for j, (values, columns) in enumerate(pairs):
        total = (values @ columns.T).to(torch.float32)
        scale = weight.group_scale[:, j].to(torch.float32)
        if activations.group_scale is None:
            result = _fma(total, scale, result)
        else:
            result = _fma(total * scale, activations.group_scale[:, j, None], result)
    return result


def _values(x: torch.Tensor, hadamard: int | None, clip: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    check_hadamard(hadamard, x.shape[1])
    check_act_clip(clip)
    values = x.to(torch.float32)
    if hadamard is None:
        return values, None
    return hadamard_transform(values, hadamard), _fp32(normalisation(hadamard), x)


def _quantise(
    values: torch.Tensor, clip: float, low: int, high: int, rotation: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale for the last axis."""
    finite = torch.isfinite(values).all(-1)
    absmax = torch.where(finite, values.abs().amax(-1), 0.0) * _fp32(clip, values)
    scale = absmax / _fp32(float(high), values)
    inverse = _finite_or_zero(_fp32(float(high), values) / absmax)
    q = _rounded(values, inverse[..., None], low, high, finite[..., None])
    return q, torch.where(finite, scale if rotation is None else scale * rotation, torch.nan)


def _rounded(values: torch.Tensor, inverse: torch.Tensor, low: int, high: int, finite: torch.Tensor) -> torch.Tensor:
    return torch.where(finite, torch.round(values * inverse).clamp(low, high), 0.0).to(torch.int8)


def _fp32(value: float, like: torch.Tensor) -> torch.Tensor:
    """A tensor, for torch turns a division with a Python number into a product with a reciprocal on a GPU."""
    return torch.full((1,), value, dtype=torch.float32, device=like.device)


def _finite_or_zero(values: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isfinite(values), values, 0.0)


def _fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """fp32(a * b + c) with one rounding, of fp32 tensors.

    float64 holds a * b exactly. The sum with c is rounded to odd in float64 (Boldo and Melquiond, 2008: rounding that
    to fp32 is then as good as rounding once): where the sum was inexact and its last bit even, the neighbour on the
    side of the error is the odd one.
    """
    product, addend = a.to(torch.float64) * b.to(torch.float64), c.to(torch.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)  # Knuth's exact error of an addition
    bits = total.view(torch.int64)
    to_odd = torch.isfinite(total) & (error != 0) & (bits & 1 == 0)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(to_odd, bits + step, bits).view(torch.float64).to(torch.float32)
