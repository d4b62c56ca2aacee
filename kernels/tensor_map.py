"""Tensor maps: how a matrix lies in memory, for the unit that copies boxes of it (Hopper and later).

The driver encodes them on the host (CUDA Driver API, ``cuTensorMapEncodeTiled``); a kernel takes one as an argument.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

from apex4_probe.errors import ApexError
from apex4_probe.kernels.launch import PREPARED
from apex4_probe.kernels.variant import Box

TENSOR_MAP_BYTES = 128  # CUtensorMap
# cuda.h: enumerators of CUtensorMapDataType, -Interleave, -Swizzle, -L2promotion and -FloatOOBfill
UINT16, INTERLEAVE_NONE, SWIZZLE_128B, PROMOTION_NONE, FILL_NONE = 1, 0, 3, 0, 0


@lru_cache(maxsize=PREPARED)
def of_output(cuda: Any, m: int, n: int, box: Box, address: int) -> bytes:
    """CUtensorMap of a contiguous matrix [m, n] of 16-bit elements at ``address``, for copies of ``box`` from shared
    memory in which rows are 128 bytes, swizzled. ``cuda``: libcuda. Raises ApexError where the driver refuses.

    Kept by its arguments: a layer writes to the few addresses that torch's allocator gives it again and again.
    """
    aligned = ctypes.create_string_buffer(TENSOR_MAP_BYTES + 64)
    start = -(-ctypes.addressof(aligned) // 64) * 64  # the driver wants 64 bytes
    ones = (ctypes.c_uint32 * 2)(1, 1)
    status = cuda.cuTensorMapEncodeTiled(
        ctypes.c_void_p(start),
        UINT16,
        ctypes.c_uint32(2),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(n, m),
        (ctypes.c_uint64 * 1)(2 * n),
        (ctypes.c_uint32 * 2)(box.rows, box.tokens),
        ones,
        INTERLEAVE_NONE,
        SWIZZLE_128B,
        PROMOTION_NONE,
        FILL_NONE,
    )
    if status:
        raise ApexError(f"no tensor map for an output [{m}, {n}] at {address:#x}: CUDA error {status}")
    return ctypes.string_at(start, TENSOR_MAP_BYTES)
