"""What 4-bit weights can be packed as: formats, granularities, and the order in which packed bytes lie.

A granularity is both a packing of the weights and a way to quantise the activations:

    channel   float per weight row                       float per token
    a128i     float per weight row                       integer 1 … 16 per token and group, float per token (w4a4)
    g128      float per weight row and group of 128      float per token (w4a4: per token and group)
    g128i     integer 1 … 16 and a zero per row and      float per token (w4a8)
              group, float per row
    g128r     sixteenths 1 … 256 and a zero per row      float per token (w4a8)
              and group, float per row; products are
              rounded to integers
    g64, g32  as g128, with smaller groups

K is a multiple of 32 (w4a16: 128) and of the group, but for g128i and g128r, whose last group may be short: it has a
scale and a zero like any other, from the weights that it does have.

Layout of w4a8 and w4a16 weights [N, K] (``LAYOUT_VERSION``): one order for every granularity and every M, that of an
MMA's operand A with 16 rows, so that a thread gets what it multiplies by one 16-byte load and no shuffle.

    block      32 rows x 128 of K, blocks ordered [N / 32][ceil(K / 128)]
      nibbles  [tile 2][half 2][lane 32][word 4] of 32 bit, 2048 bytes; lane = 4 * g + c
               tile t, half, lane (g, c), word 2 * s + h, byte p, nibble r (0: low) hold the 4-bit code of
               row 32 * nb + 16 * t + 8 * r + g,  k = 128 * kb + 64 * half + 32 * s + 8 * c + 4 * h + BYTE_ORDER[p]
      scales   [128 / group][tile 2][g 8] words of 32 bit, none for channel
               float groups:  fp16 of row g in the low half, of row g + 8 in the high half
               g128i, g128r:  bytes scale(g), zero(g), scale(g + 8), zero(g + 8)

A code is the value plus 8. An MMA step of 32 covers exactly k = 32 * i … 32 * i + 31, so groups of 32 can be told
apart; bytes 1 and 2 change places because ``word & 0x000F000F`` and ``(word >> 8) & 0x000F000F`` are then pairs of
consecutive k, as FP16 operands need them. K beyond the weight's own (to a whole block) is filled with zero weights;
a short last group of g128i or g128r with code 0, which under every legal scale gives a byte that carries nowhere. What
it is worth does not matter: activations are zeros there, and no word holds both, for K is a multiple of 32.

INT8 activations [M, K] (``quantise.cu`` writes, every w4a8 kernel reads) lie in the order of operand B:

    [ceil(K / 128)][ceil(M / 8)][half 2][g 8][c 4][word 4] of 32 bit
               half, g, c, word 2 * s + h, byte p hold token 8 * mt + g and the same k as above

so that any number of tokens of one block of K is one contiguous piece. K beyond the activations' own holds zeros;
tokens beyond M hold anything.

Both operands of w4a4 lie in the fragment order of ``mma.m16n8k64`` s4, in blocks of 32 (rows or tokens) x 128 of K of
the same size, nibbles in two's complement (code ^ 8), so that one scheme of copies serves both:

    weights      [N / 32][ceil(K / 128)] blocks
      nibbles    [tile 2][half 2][lane 32][word 4] of 32 bit, 2048 bytes; lane = 4 * g + c
                 tile t, half, lane (g, c), word 2 * s + r, nibble j (0: lowest) hold
                 row 32 * nb + 16 * t + 8 * r + g,  k = 128 * kb + 64 * half + 32 * s + 8 * c + j
                 (words 0 … 3 are the operand A of an MMA of 64, words 0, 1 and 2, 3 those of two of 32)
      scales     g128: [scale, offset][g 8][tile 2][r 2] of fp32, the fp16 scale and ``MAGIC`` * -scale, which is exact;
                 128 bytes each, so that a kernel without magic numbers leaves the offsets alone
                 g64, g32: as w4a8. channel, a128i: none
    activations  [ceil(K / 128)][ceil(M / 32)] blocks
      nibbles    [tile 4][lane 32][word 4] of 32 bit, 2048 bytes
                 tile j, lane (g, c), word 2 * half + s, nibble i hold
                 token 32 * mb + 8 * j + g,  k = 128 * kb + 64 * half + 32 * s + 8 * c + i
      scales     [128 / group][tile pair 2][c 4][tile 2][e 2] of 32 bit, fp32 or, a128i, INT32; channel: none
                 pair p, c, tile q, e hold that of token 32 * mb + 16 * p + 8 * q + 2 * c + e: what a lane of the MMA's
                 accumulators needs for 16 tokens is one load of 16 bytes

K beyond the activations' own holds zeros, scales included; tokens beyond M hold anything.

INT8 activations for kernels that read operand B by wgmma (sm_90a): the same pieces in another order

    [ceil(K / 128)][ceil(M / 8)][g 8][chunk 8][c 4][p 4] bytes
               token 8 * mt + g, chunk (2 * i + h) ^ g, c, p hold k = 128 * kb + 32 * i + 8 * c + 4 * h + BYTE_ORDER[p]

a K-major tile of 128 bytes a token under the Tensor Core's 128-byte swizzle (PTX ISA, matrix descriptors): step i of 32
multiplies what word 2 * i + h of thread (g, c) holds, so that weights in registers need no exchange for it either.
"""

from __future__ import annotations

from typing import Literal

Format = Literal["w4a4", "w4a8", "w4a16"]
Granularity = Literal["channel", "a128i", "g128", "g64", "g32", "g128i", "g128r"]

LAYOUT_VERSION = 2
BLOCK_ROWS, BLOCK_K = 32, 128
TILE_ROWS = 16  # of an MMA's operand A
TOKEN_TILE = 8  # of its operand B
BYTE_ORDER = (0, 2, 1, 3)
BLOCK_TOKENS = 32  # of INT4 activations
MAGIC = 1.5 * 2.0**23  # the float to whose bits an integer below 2^22 can be added: its value rises by the integer
NIBBLE_BYTES = BLOCK_ROWS * BLOCK_K // 2

GROUP: dict[Granularity, int | None] = {
    "channel": None,
    "a128i": 128,
    "g128": 128,
    "g64": 64,
    "g32": 32,
    "g128i": 128,
    "g128r": 128,
}
TWO_LEVEL: tuple[Granularity, ...] = ("g128i", "g128r")  # group scales that are applied before the MMA, in one byte
GRANULARITIES: dict[Format, tuple[Granularity, ...]] = {
    "w4a4": ("channel", "a128i", "g128", "g64", "g32"),
    "w4a8": ("channel", "g128i", "g128r", "g128", "g64", "g32"),
    "w4a16": ("channel", "g128", "g64", "g32"),
}


def weight_group(granularity: Granularity) -> int | None:
    """Weights that share a group scale along K; None: only the row's (``a128i`` groups the activations alone)."""
    return None if granularity == "a128i" else GROUP[granularity]


def has_offsets(format: Format, granularity: Granularity) -> bool:
    """Whether packed weights hold fp32 scales, and their offsets beside them."""
    return (format, granularity) == ("w4a4", "g128")


def block_bytes(granularity: Granularity, format: Format = "w4a8") -> int:
    """Bytes of one packed block of weights: nibbles, then its groups' scales. w4a16's blocks are those of w4a8."""
    group = weight_group(granularity)
    if group is None:
        return NIBBLE_BYTES
    return NIBBLE_BYTES + BLOCK_K // group * BLOCK_ROWS * (8 if has_offsets(format, granularity) else 2)


def token_block_bytes(granularity: Granularity) -> int:
    """Bytes of one block of 32 tokens x 128 of K of INT4 activations: nibbles, then its groups' scales."""
    group = GROUP[granularity]
    return NIBBLE_BYTES + (BLOCK_K // group * BLOCK_TOKENS * 4 if group else 0)
