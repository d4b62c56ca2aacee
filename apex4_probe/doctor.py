"""What is installed here, what is missing, and the command that mends it.

Each check is a function that returns one finding and never raises. ``required`` marks what ``run`` cannot do without on
a GPU that is present; on a machine without one everything is optional.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from apex4_probe.cuda_extra import extra_for, usable_cuda_version
from apex4_probe.discovery import CUPY_PACKAGES, LocalGpu, NoGpuError, discover, installed_version, is_wsl
from apex4_probe.errors import ApexError

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["ok", "missing", "warning"]

TINY_KERNEL = 'extern "C" __global__ void tiny(float *x) { x[threadIdx.x] += 1.0f; }'
TINY_TARGET = "sm_80"  # known to every NVRTC of CUDA 12 and 13


@dataclass(frozen=True)
class Finding:
    what: str
    state: State
    detail: str
    mend: str = ""  # a command, or what to do
    required: bool = False


def examine(find_gpus: Callable[[str], list[LocalGpu]] = discover) -> list[Finding]:
    """Every check, in the order in which they build on one another."""
    gpus, driver = examine_gpus(find_gpus)
    needed = driver.required
    extra = extra_for(usable_cuda_version()) or "cuda13"
    findings = [driver, *(examine_gpu(gpu) for gpu in gpus)]
    if is_wsl():
        findings.append(
            Finding(
                "WSL2",
                "warning",
                "its driver does not name the processes on a GPU, so a busy one is noticed by utilisation alone",
            )
        )
    findings += [
        examine_package("CuPy", CUPY_PACKAGES, f"pip install 'apex4-probe[{extra}]'", needed),
        examine_nvrtc(extra, needed),
        examine_disassembler(),
        examine_cache(),
        examine_package("torch", ("torch",), "pip install torch", required=False, purpose="only to use the kernels"),
    ]
    return findings


def examine_gpus(find_gpus: Callable[[str], list[LocalGpu]]) -> tuple[list[LocalGpu], Finding]:
    try:
        gpus = find_gpus("all")
    except NoGpuError as error:
        return [], Finding("GPU", "missing", f"{error}; run predicts instead", 'apex4-probe run --like "RTX 3090"')
    except ApexError as error:
        return [], Finding("GPU", "missing", str(error), required=True)  # the sentence says what to do
    which = "one GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs (run takes GPU 0, or --device 0,1, or --device all)"
    return gpus, Finding("GPU", "ok", f"driver {gpus[0].driver}, CUDA {gpus[0].cuda}, {which}", required=True)


def examine_gpu(gpu: LocalGpu) -> Finding:
    device = gpu.device
    detail = f"{device.name}, compute capability {device.compute_capability}, {device.sm_count} SMs"
    if device.mig:
        detail += f", MIG slice {device.mig}"
    if gpu.busy:
        return Finding(f"GPU {gpu.index}", "warning", f"{detail}; {gpu.busy}", "nvidia-smi shows what runs there")
    return Finding(f"GPU {gpu.index}", "ok", detail)


def examine_package(what: str, packages: tuple[str, ...], mend: str, required: bool, purpose: str = "") -> Finding:
    version = installed_version(*packages)
    if version is None:
        return Finding(what, "missing", "not installed" + (f" ({purpose})" if purpose else ""), mend, required)
    return Finding(what, "ok", version, required=required)


def examine_nvrtc(extra: str, required: bool) -> Finding:
    """Really compiles, since an NVRTC without its builtins library answers its version and nothing else."""
    from apex4_probe.kernels.compile import Kernel, compile_kernel, nvrtc_version

    # A source that no cache has seen, taken out of the cache again.
    source = f"// {secrets.token_hex(8)}\n{TINY_KERNEL}"
    try:
        version = "{}.{}".format(*nvrtc_version())
        cubin = compile_kernel(Kernel("doctor", source, TINY_TARGET))
    except ApexError as error:
        return Finding("NVRTC", "missing", str(error), f"pip install 'apex4-probe[{extra}]'", required)
    if cubin.path is not None:
        cubin.path.unlink(missing_ok=True)
    return Finding("NVRTC", "ok", f"{version}, compiles for {TINY_TARGET}", required=required)


def examine_disassembler() -> Finding:
    """Optional: without it a figure is reported as not verified."""
    from apex4_probe.kernels.sass import disassembler

    try:
        path, version = disassembler()
    except ApexError as error:
        return Finding("disassembler", "missing", str(error), "pip install nvidia-cuda-nvdisasm")
    return Finding("disassembler", "ok", f"{path.name} {version}")


def examine_cache() -> Finding:
    """Optional: without it every run compiles its kernels again."""
    from apex4_probe.kernels.disk_cache import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("cache folder", "warning", f"{folder}: {error.strerror}", "export APEX4_PROBE_CACHE=FOLDER")
    return Finding("cache folder", "ok", str(folder))


def healthy(findings: Sequence[Finding]) -> bool:
    return not any(finding.required and finding.state == "missing" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]}, indent=2)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "missing": "red", "warning": "yellow"}
    table = Table("", "", "found", "to mend it", box=box.SIMPLE_HEAD)
    for finding in findings:
        optional = finding.state == "missing" and not finding.required
        state = Text("absent", style="yellow") if optional else Text(finding.state, style=style[finding.state])
        cells = (finding.what, state, finding.detail, finding.mend)
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    console.print(table)
