"""Which CUDA packages suit this machine's driver: the extra ``cuda13``, ``cuda12`` or none.

Standard library alone: ``make run`` executes this file before anything is installed (``python3
apex4_probe/cuda_extra.py`` prints the extra's name, or an empty line), and ``doctor`` asks it what to recommend.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

CUDA_DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def usable_cuda_version(load: Callable[[str], Any] = ctypes.CDLL) -> int | None:
    """CUDA version of the driver as CUDA encodes it (12040 is 12.4); None without a driver or without a GPU.

    From the driver library itself and not from nvidia-smi, which containers often lack.
    """
    try:
        driver = load(CUDA_DRIVER_LIBRARY)
    except OSError:
        return None
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return None
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value


def extra_for(cuda_version: int | None) -> str:
    """``cuda13``, ``cuda12``, or "" where the packages of neither would run."""
    if cuda_version is None or cuda_version < 12000:
        return ""
    return "cuda13" if cuda_version >= 13000 else "cuda12"


if __name__ == "__main__":
    print(extra_for(usable_cuda_version()))
