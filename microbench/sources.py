"""From a probe's file and a few numbers to a Kernel: every probe is one CUDA source whose parameters are macros."""

from __future__ import annotations

from importlib.resources import files

from apex4_probe.kernels.compile import Kernel, cuda_header
from apex4_probe.kernels.wgmma import Wgmma
from apex4_probe.microbench.operands import RANDOM_WORDS

_HEADERS = ("probe.cuh", "cuda_work.cuh")
_SHARED_HEADERS = ("mma.cuh", "warpgroup.cuh")


def read(name: str) -> str:
    """A file of ``microbench/probes``."""
    return (files("apex4_probe.microbench") / "probes" / name).read_text(encoding="utf-8")


def probe_kernel(file: str, target: str, wgmma: Wgmma | None = None, **macros: int | str) -> Kernel:
    """The kernel ``probe`` of ``file`` with ``macros`` defined, for an NVRTC ``target``."""
    defines = "".join(f"#define {name} {value}\n" for name, value in {"RANDOM_WORDS": RANDOM_WORDS, **macros}.items())
    source = read(file)
    used = [name for name in (*_HEADERS, *_SHARED_HEADERS) if f'"{name}"' in source]
    headers = [(name, read(name)) if name in _HEADERS else cuda_header(name) for name in used]
    if wgmma is not None:
        headers.append(("wgmma.cuh", wgmma.header()))
    label = " ".join([file, *(f"{name}={value}" for name, value in macros.items())])
    return Kernel(label, defines + source, target, tuple(headers))
