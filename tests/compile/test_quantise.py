"""The activation quantiser: how rows are split over threads, what its machine code holds, and what it refuses."""

from functools import cache

import numpy as np
import pytest
import torch

from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import Kernel, compile_kernel
from apex4_probe.kernels.hadamard import LARGEST_BLOCK
from apex4_probe.kernels.quantise import (
    CHUNK,
    INT8_KINDS,
    KINDS,
    MOST_WARPS,
    PARTITION_REGISTERS,
    SM_PARTITIONS,
    RowSplit,
    geometry,
    kernel_for,
    quantise,
    row_split,
)

TARGETS = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"]
SMALLEST_SHARED = 99 * 1024  # CUDA C++ Programming Guide, compute capabilities: of a CTA, 8.6, 8.9 and 12.0
STATIC_SHARED = 2 * 4 * 32 * 4  # the source's ``maxima`` and ``sums``

# (kind, bf16, hadamard, K): each way to round, group and split at least once, the largest of every register class.
CASES = [
    ("int8", False, None, 4096),
    ("int8", True, None, 14336),
    ("int8", False, None, 65536),
    ("int8", False, 64, 576),
    ("int8", True, 1024, 4096),
    ("int8", False, 4096, 4096),
    ("int8", True, 2048, 14336),
    ("int8", True, 4096, 28672),
    ("int8", False, 8192, 8192),
    ("int8", False, 16384, 16384),
    ("int8", True, 128, 65536),
    ("int8", False, 32768, 32768),
    ("int8", False, 32768, 65536),
    ("int8_wgmma", False, None, 4096),
    ("int8_wgmma", True, None, 65536),
    ("int8_wgmma", True, 4096, 4096),
    ("int8_wgmma", False, 32768, 65536),
    ("int4", True, None, 4096),
    ("int4", False, 4096, 4096),
    ("int4_g128", False, None, 14336),
    ("int4_g64", True, None, 4096),
    ("int4_g32", True, 4096, 4096),
    ("int4_g32", False, 32768, 65536),
    ("int4_a128i", False, None, 4096),
    ("int4_a128i", False, None, 65536),
    ("int4_a128i", True, 4096, 4096),
    ("int4_a128i", True, 2048, 14336),
]


@cache
def compiled(kernel: Kernel) -> tuple[sass.Listing, int]:
    """Machine code and registers a thread."""
    image = compile_kernel(kernel).image
    return sass.disassemble(image)["quantise"], sass.registers(image)


def macros(kernel: Kernel) -> dict[str, int]:
    return {name: int(value) for name, value in (option[2:].split("=") for option in kernel.options)}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "bf16", "hadamard", "k"), CASES)
def test_a_row_stays_in_registers(kind, bf16, hadamard, k, target):
    kernel = kernel_for(kind, bf16, hadamard, k, target)
    split = row_split(k, hadamard)
    listing, used = compiled(kernel)
    counts = listing.count(listing.instructions)
    assert not listing.has_local_memory()
    loads = sass.matching(counts, r"LDG\.E.*128")
    assert loads == sass.matching(counts, "LDG")
    if split.segments == 1:
        assert loads == split.vectors
    else:
        assert loads >= split.vectors  # how the loop over segments is unrolled is ptxas' affair
    if split.segments == 1:
        assert sass.matching(counts, r"STG\.E\.64") == (split.vectors if kind in INT8_KINDS else 0)
    assert sass.matching(counts, r"F2I") <= split.vectors  # only the integer scales of groups, a conversion a vector

    allocated = -(-used // 8) * 8  # registers are handed out by eights, warps dealt out to four partitions
    warps = macros(kernel)["CTAS"] * split.rows * split.warps
    assert warps <= SM_PARTITIONS * (PARTITION_REGISTERS // (allocated * 32))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("hadamard", "shuffles", "exchanged"), [(64, 3, 0), (128, 4, 0), (1024, 5, 0), (2048, 5, 1), (4096, 5, 1)]
)
def test_hadamard_shuffles_within_a_warp_and_swaps_beyond(target, hadamard, shuffles, exchanged):
    split = row_split(4096, hadamard)
    listing, _ = compiled(kernel_for("int8", False, hadamard, 4096, target))
    counts = listing.count(listing.instructions)
    elements = split.vectors * 8
    barriers = sass.matching(counts, r"BAR\.") - exchanged
    assert barriers == 2  # for the maximum and for the sum
    assert sass.matching(counts, "SHFL") == shuffles * elements
    assert sass.matching(counts, r"LDS.*\.128") == exchanged * elements // 4
    assert sass.matching(counts, r"STS.*\.128") == exchanged * elements // 4


@pytest.mark.slow
def test_occupancy_that_the_source_states():
    def rows_an_sm(k: int, hadamard: int | None) -> int:
        return row_split(k, hadamard).rows * macros(kernel_for("int8", False, hadamard, k, "sm_90a"))["CTAS"]

    assert [rows_an_sm(4096, None), rows_an_sm(14336, None)] == [12, 3]
    assert [rows_an_sm(4096, 1024), rows_an_sm(4096, 4096), rows_an_sm(14336, 2048)] == [8, 8, 2]


@pytest.mark.parametrize("target", ["sm_80", "sm_89"])
def test_dependent_launch_only_where_it_exists(target):
    names = {i.opcode for i in compiled(kernel_for("int8", False, None, 4096, target))[0].instructions}
    assert not any(name.startswith(("ACQBULK", "PREEXIT")) for name in names)


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a", "sm_120a"])
def test_waits_for_the_kernel_before_it_first_of_all_loads(target):
    names = [i.opcode for i in compiled(kernel_for("int8", False, None, 4096, target))[0].instructions]
    first_access = next(i for i, name in enumerate(names) if name.startswith(("LDG", "STG")))
    assert "PREEXIT" in names[:first_access]
    assert any(name.startswith("ACQBULK") for name in names[:first_access])


def powers_of_two(k: int) -> list[int]:
    return [size for size in (1 << i for i in range(6, 16)) if k % size == 0 and size <= LARGEST_BLOCK]


def test_every_row_is_covered_by_threads_that_a_cta_can_have():
    for k in range(32, 65536 + 1, 32):
        for hadamard in (None, *powers_of_two(k)):
            split = row_split(k, hadamard)
            held = split.segments * split.warps * split.vectors * CHUNK
            assert held >= k, (k, hadamard, split)
            assert split.warps * split.rows <= MOST_WARPS
            assert split.segments == 1 or (hadamard is not None and k > 32768)
            assert held < 2 * k or split.warps == 1 or split.segments > 1, (k, hadamard, split)
            assert geometry(1, k, hadamard).shared_bytes + STATIC_SHARED <= SMALLEST_SHARED


def test_a_block_never_straddles_what_is_transformed_together():
    """A warp's own vectors hold whole blocks, or a block takes whole warps of one segment, no more than can swap."""
    for k in range(64, 65536 + 1, 64):
        for hadamard in powers_of_two(k):
            split = row_split(k, hadamard)
            of_warp = split.vectors * CHUNK
            if hadamard <= of_warp:
                assert of_warp % hadamard == 0
            else:
                block_warps = hadamard // of_warp
                assert split.warps % block_warps == 0, (k, hadamard, split)
                assert block_warps <= split.vectors
                assert (split.warps * of_warp * split.segments) % hadamard == 0


def transform_as_threads_do(x: np.ndarray, hadamard: int, split: RowSplit) -> np.ndarray:
    """The source's index arithmetic on one row: butterflies over lanes and j, the swap, what each warp holds then."""
    size = split.segments * split.warps * split.vectors * CHUNK
    padded = np.zeros(size, np.float32)
    padded[: x.size] = x
    held = padded.reshape(split.segments, split.warps, split.vectors, 32, 8)

    def butterfly(values: np.ndarray, axis: int, stride: int) -> np.ndarray:
        index = np.arange(values.shape[axis])
        other = np.take(values, index ^ stride, axis)
        upper = (index & stride > 0).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        return np.where(upper, other - values, values + other)

    for bit in range(3):
        held = butterfly(held, 4, 1 << bit)
    for bit in range(5):
        if 8 << bit < hadamard:
            held = butterfly(held, 3, 1 << bit)
    stride = 1
    while stride < split.vectors and stride * CHUNK < hadamard:
        held = butterfly(held, 2, stride)
        stride *= 2
    mask = max(hadamard // (CHUNK * split.vectors), 1) - 1
    warp, j = np.meshgrid(np.arange(split.warps), np.arange(split.vectors), indexing="ij")
    chunk = ((warp & ~mask) | (j & mask)) * split.vectors + ((j & ~mask) | (warp & mask))
    flat = held.reshape(split.segments, split.warps * split.vectors, 32, 8)
    held = flat[:, chunk]
    stride = 1
    while stride <= mask:
        held = butterfly(held, 2, stride)
        stride *= 2
    result = np.empty_like(flat)
    result[:, chunk] = held
    return result.reshape(-1)[: x.size]


@pytest.mark.parametrize(
    ("k", "hadamard"),
    [
        *[(576, 64), (896, 128), (4096, 256), (4096, 1024), (14336, 2048), (4096, 4096), (28672, 4096), (40960, 8192)],
        *[(16384, 16384), (49152, 16384), (32768, 32768), (65536, 32768), (65536, 1024)],
    ],
)
def test_swapped_halves_give_the_transform(k, hadamard):
    x = np.random.default_rng(k + hadamard).integers(-128, 128, k).astype(np.float32)  # sums are exact
    matrix = np.array([[1]], np.float32)
    while matrix.shape[0] < 64:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    expected = x.reshape(-1, hadamard // 64, 64) @ matrix  # the low six bits of k, then the others
    high = np.array([[1]], np.float32)
    while high.shape[0] < hadamard // 64:
        high = np.block([[high, high], [high, -high]])
    expected = (high @ expected).reshape(-1)
    np.testing.assert_array_equal(transform_as_threads_do(x, hadamard, row_split(k, hadamard)), expected)


def test_geometry_covers_tokens():
    assert geometry(1, 4096, None).grid == (1, 1, 1)
    assert geometry(9, 512, None) == geometry(12, 512, None)
    assert geometry(9, 512, None).grid == (3, 1, 1)
    assert geometry(4096, 14336, None).grid == (4096, 1, 1)


def test_geometry_holds_what_changes_warps():
    assert geometry(7, 4096, 1024).shared_bytes == 0
    assert geometry(7, 14336, 2048).shared_bytes == 14336 * 4 // 2
    assert geometry(7, 4096, 4096).shared_bytes == 4096 * 4 * 3 // 4
    assert geometry(7, 16384, 16384).shared_bytes == 16384 * 4 * 7 // 8 // 2


def test_rows_that_are_split_alike_share_a_kernel():
    assert kernel_for("int8", False, None, 4000, "sm_80") == kernel_for("int8", False, None, 4096, "sm_80")
    different = {kernel_for(kind, bf16, None, 4096, "sm_80").options for kind in KINDS for bf16 in (False, True)}
    assert len(different) == 2 * len(KINDS)


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.zeros(2, 64), {}, "x must be fp16 or bf16, not torch.float32"),
        (torch.zeros(64, dtype=torch.float16), {}, r"x must be \[M, K\], not \[64\]"),
        (torch.zeros(2, 48, dtype=torch.float16), {}, "x: K must be a multiple of 32 for int8 .* not 48"),
        (torch.zeros(2, 0, dtype=torch.float16), {}, "x: K must be a multiple of 32"),
        (torch.zeros(1, 65568, dtype=torch.float16), {}, "at most 65536, not 65568"),
        (torch.zeros(2, 192, dtype=torch.float16), {"kind": "int4_a128i"}, "multiple of 128 for int4_a128i"),
        (torch.zeros(1, 65536, dtype=torch.bfloat16).expand(32769, -1), {}, r"2\^31 elements, but is 32769 x 65536"),
        (torch.zeros(64, 64, dtype=torch.float16).T[:, :32], {}, "x must be contiguous"),
        (torch.zeros(2, 64, dtype=torch.float16), {}, "x is on cpu"),
        (torch.zeros(2, 64, dtype=torch.float16), {"kind": "int3"}, "kind must be one of int8, .* not 'int3'"),
        (torch.zeros(2, 64, dtype=torch.float16), {"clip": 0.0}, r"clip must lie in \(0, 1\], not 0.0"),
        (torch.zeros(2, 64, dtype=torch.float16), {"clip": 1.01}, "clip must lie"),
        (torch.zeros(2, 64, dtype=torch.float16), {"clip": float("nan")}, "clip must lie"),
        (torch.zeros(2, 64, dtype=torch.float16), {"clip": True}, "clip must lie"),
        (torch.zeros(2, 64, dtype=torch.float16), {"hadamard": 128}, "hadamard must be .* divides K = 64, not 128"),
        (torch.zeros(2, 96, dtype=torch.float16), {"hadamard": 96}, "hadamard must be .* power of two"),
        (torch.zeros(2, 64, dtype=torch.float16), {"hadamard": 32}, "hadamard must be .* from 64"),
        (torch.zeros(1, 65536, dtype=torch.float16), {"hadamard": 65536}, "hadamard must be .* to 32768 .* not 65536"),
    ],
)
def test_bad_input_is_refused_by_name(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        quantise(x, **{"kind": "int8", **arguments})
