"""CUDA C++ to a cubin by NVRTC, kept on disk, loaded through CuPy.

One way to compile for the probes and for the kernel catalogue. A cubin is found again by everything that shaped it:
source, headers, options, target and NVRTC version. The loader ignores the digest that follows the cubin in its file.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from apex4_probe.errors import ApexError
from apex4_probe.kernels import disk_cache

OPTIONS = ("--std=c++17", "-default-device")  # -default-device: host-only overloads would otherwise leak into templates


class CompileError(ApexError):
    """NVRTC refused a source; the message names the kernel, the target and the compiler's first error line."""


@dataclass(frozen=True)
class Kernel:
    """A translation unit and what shapes its machine code. ``target``: an NVRTC architecture such as ``sm_90a``."""

    name: str
    source: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()  # (include name, text)
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cubin:
    kernel: Kernel
    image: bytes = field(repr=False)
    path: Path | None  # None: the cache folder cannot be written
    log: str  # NVRTC's and ptxas' warnings; empty when it came from the cache


def cuda_header(name: str) -> tuple[str, str]:
    """A header of ``kernels/cuda`` as a (name, text) pair for :class:`Kernel`."""
    return name, (files("apex4_probe.kernels") / "cuda" / name).read_text(encoding="utf-8")


@cache
def nvrtc_version() -> tuple[int, int]:
    """(major, minor) of the NVRTC that compiles. Raises ApexError when CuPy or NVRTC is missing."""
    version: tuple[int, int] = _nvrtc().getVersion()
    return version


def compile_kernel(kernel: Kernel) -> Cubin:
    """The cubin of ``kernel``, from the cache or freshly compiled. Raises CompileError."""
    key = _key(kernel)
    if (image := disk_cache.read("cubin", key)) is not None:
        return Cubin(kernel, image, disk_cache.path_of("cubin", key), "")
    image, log = _compile(kernel)
    return Cubin(kernel, image, disk_cache.write("cubin", key, image), log)


def compile_all(kernels: Sequence[Kernel], done: Callable[[int, int], None] = lambda _n, _of: None) -> list[Cubin]:
    """Compile many at once, a thread a core: NVRTC releases the GIL. ``done(n, of)`` is called as they finish."""
    finished: list[Cubin] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for cubin in pool.map(compile_kernel, kernels):
            finished.append(cubin)
            done(len(finished), len(kernels))
    return finished


def load(cubin: Cubin) -> Any:
    """A ``cupy.RawModule`` of the cubin on the current device."""
    import cupy

    if cubin.path is not None:
        return cupy.RawModule(path=str(cubin.path))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:  # no cache folder: the driver still wants a path
        file.write(cubin.image)
        file.flush()
        module = cupy.RawModule(path=file.name)
        module.compile()
        return module


def _key(kernel: Kernel) -> str:
    headers = [part for header in kernel.headers for part in header]
    version = "nvrtc {}.{}".format(*nvrtc_version())
    return disk_cache.key_of(kernel.source, *headers, *OPTIONS, *kernel.options, kernel.target, version)


def _compile(kernel: Kernel) -> tuple[bytes, str]:
    nvrtc = _nvrtc()
    names = [name.encode() for name, _ in kernel.headers]
    texts = [text.encode() for _, text in kernel.headers]
    program = nvrtc.createProgram(kernel.source, f"{kernel.name}.cu", texts, names)
    options = [f"--gpu-architecture={kernel.target}", *OPTIONS, *kernel.options]
    try:
        nvrtc.compileProgram(program, options)
        log: str = nvrtc.getProgramLog(program)
        # CuPy treats the image as a C string and drops its last byte, which is the ELF's own.
        return nvrtc.getCUBIN(program) + b"\0", log
    except nvrtc.NVRTCError as error:
        lines = nvrtc.getProgramLog(program).splitlines() or [str(error)]
        blamed = [
            line for line in lines if re.search(r"\berror\b", line)
        ] or lines  # "aborted due to errors" says nothing
        first = blamed[0]
        version = "{}.{}".format(*nvrtc_version())
        raise CompileError(
            f"NVRTC {version} cannot compile {kernel.name} for {kernel.target}: {first.strip()}"
        ) from None
    finally:
        nvrtc.destroyProgram(program)


def _nvrtc() -> Any:
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        raise ApexError(
            f"cannot compile CUDA kernels: {str(error).splitlines()[0]}; install apex4-probe[cuda13] or [cuda12], "
            "whichever CUDA major version your driver supports"
        ) from None
    return nvrtc
