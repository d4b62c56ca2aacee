"""Which GPUs are here: NVML and CUDA (through CuPy) told as one record per GPU.

A GPU is numbered as CUDA numbers it, so ``--device 0`` is PyTorch's ``cuda:0`` and CUDA_VISIBLE_DEVICES holds. NVML
numbers differently; the two are matched by PCI address and, inside a GPU cut into MIG slices, by UUID.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from apex4_probe.architecture import OLDEST, architecture
from apex4_probe.cuda_extra import extra_for, usable_cuda_version
from apex4_probe.deployment import Device, Environment
from apex4_probe.errors import ApexError
from apex4_probe.nvml import Nvml, NvmlMissingError

# CUDA 12 runs on every driver from 525.60.13 on (CUDA Toolkit release notes, minor version compatibility).
OLDEST_CUDA, OLDEST_DRIVER = 12000, "525.60.13"
CUPY_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
BUSY_UTILISATION = 0.10  # a desktop draws a few per cent; a job that disturbs a measurement draws far more


class NoGpuError(ApexError):
    """There is no GPU that CUDA may use; what the tool can still do is predict."""


@dataclass(frozen=True)
class CudaDevice:
    """A GPU or MIG slice as the CUDA runtime describes it. ``uuid``: as many of its 16 bytes as CuPy hands out."""

    ordinal: int
    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    memory_bytes: int
    l2_bytes: int
    pci_bus_id: str
    uuid: bytes


@dataclass(frozen=True)
class LocalGpu:
    """One GPU (or MIG slice) of this machine. ``index``: CUDA's ordinal. ``uuid`` never enters a profile."""

    index: int
    uuid: str | None
    device: Device
    nvml_index: int | None  # the number that nvidia-smi shows
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_w: float | None
    temperature_c: float | None
    other_processes: int | None  # compute processes but this one; None: the driver does not say
    utilisation: float | None
    driver: str | None
    cuda: str | None

    @property
    def busy(self) -> str | None:
        """Why figures measured now may be low, in one sentence; None on an idle GPU."""
        if self.other_processes:
            noun = "process is" if self.other_processes == 1 else "processes are"
            return f"GPU {self.index} is busy: {self.other_processes} other compute {noun} on it, so figures may be low"
        if self.utilisation is not None and self.utilisation >= BUSY_UTILISATION:
            return f"GPU {self.index} is busy: {self.utilisation:.0%} utilised beforehand, so figures may be low"
        return None


@dataclass(frozen=True)
class LeftOut:
    """A GPU that was asked for and cannot be measured. ``index``: CUDA's number; None: CUDA does not show it."""

    index: int | None
    nvml_index: int | None
    name: str
    reason: str  # and what to do about it
    failed: bool  # False: it is set up so (MIG), which is no fault


@dataclass(frozen=True)
class Survey:
    gpus: tuple[LocalGpu, ...]
    left_out: tuple[LeftOut, ...]


def discover(
    selection: str | int | None = "0",
    *,
    nvml_library: Any = None,
    cuda_devices: Callable[[], list[CudaDevice]] | None = None,
    driver_cuda: Callable[[], int | None] = usable_cuda_version,
) -> list[LocalGpu]:
    """The GPUs that ``selection`` names: "0", "0,2", "all" (None is the first). The keywords are for tests.

    Raises NoGpuError where there is none to measure, ApexError where one is there and cannot be used.
    """
    found = survey(selection, nvml_library=nvml_library, cuda_devices=cuda_devices, driver_cuda=driver_cuda)
    unusable = [item.reason for item in found.left_out if item.index is not None]
    if unusable:
        raise ApexError(unusable[0])
    return list(found.gpus)


def survey(
    selection: str | int | None = "0",
    *,
    nvml_library: Any = None,
    cuda_devices: Callable[[], list[CudaDevice]] | None = None,
    driver_cuda: Callable[[], int | None] = usable_cuda_version,
) -> Survey:
    """As ``discover``, but a GPU that cannot be used stands beside those that can, with its reason.

    "all" also names the GPUs that NVML lists and CUDA does not show, unless CUDA_VISIBLE_DEVICES hides them on purpose.
    """
    try:
        with Nvml(nvml_library) as nvml:
            _require_driver(nvml.driver_version(), nvml.cuda_version())
            if nvml.device_count() == 0:
                raise NoGpuError("the NVIDIA driver sees no GPU")
            visible = (cuda_devices or partial(devices_of_cupy, nvml.cuda_version()))()
            if not visible:
                raise _nothing_visible(nvml)
            gpus: list[LocalGpu] = []
            left_out: list[LeftOut] = []
            for ordinal in select(selection, len(visible)):
                cuda = visible[ordinal]
                try:
                    gpus.append(_local_gpu(nvml, cuda))
                except ApexError as error:
                    left_out.append(LeftOut(ordinal, None, cuda.name, str(error), failed=True))
            if str(selection).strip().lower() == "all" and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
                left_out += _not_shown(nvml, visible, gpus)
            return Survey(tuple(gpus), tuple(left_out))
    except NvmlMissingError as error:
        if driver_cuda() is not None:
            raise ApexError(
                "CUDA sees a GPU and NVML is not available, so clocks could not be watched; in a container set "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            ) from error
        raise NoGpuError(str(error)) from error


def select(selection: str | int | None, count: int) -> list[int]:
    """Ordinals named by "0", "0,2" or "all", in the order given. Raises ApexError naming what does not exist."""
    text = "0" if selection is None else str(selection).strip().lower()
    if text == "all":
        return list(range(count))
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,4}", part) for part in parts):
        raise ApexError(f'--device {selection}: expected a number, several joined by commas, or "all"')
    ordinals = list(dict.fromkeys(int(part) for part in parts))
    for ordinal in ordinals:
        if ordinal >= count:
            there = "only GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
            raise ApexError(f"--device {selection}: there is no GPU {ordinal}; CUDA sees {there} here")
    return ordinals


def devices_of_cupy(driver_cuda: int | None) -> list[CudaDevice]:
    """What the CUDA runtime shows, without creating a context. Raises ApexError when CuPy is missing or too new."""
    try:
        from cupy.cuda import runtime
    except ImportError as error:
        extra = extra_for(driver_cuda) or "cuda12"
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise ApexError(f"a GPU is here and CuPy is not installed: pip install 'apex4-probe[{extra}]'") from error
        raise ApexError(f"CuPy cannot be imported ({error}): pip install 'apex4-probe[{extra}]'") from error
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        status = str(error).split(":", maxsplit=1)[0]
        if status == "cudaErrorNoDevice":
            return []
        if status == "cudaErrorInsufficientDriver":
            needs, has = runtime.runtimeGetVersion(), driver_cuda or runtime.driverGetVersion()
            raise ApexError(
                f"the driver runs CUDA {_dotted(has)} and the installed CuPy needs {needs // 1000}: update it, or "
                f"pip uninstall cupy-cuda{needs // 1000}x and pip install 'apex4-probe[{extra_for(has) or 'cuda12'}]'"
            ) from error
        raise ApexError(f"CUDA cannot be initialised ({error}); check nvidia-smi and the kernel log (dmesg)") from error
    return [_cuda_device(runtime, ordinal) for ordinal in range(count)]


def environment(driver: str | None = None, cuda: str | None = None) -> Environment:
    """Versions of everything that shapes a measurement; None for what is not installed. Does not import torch."""
    from apex4_probe.kernels.compile import nvrtc_version
    from apex4_probe.kernels.sass import disassembler

    nvrtc = nvdisasm = None
    with suppress(ApexError):
        nvrtc = "{}.{}".format(*nvrtc_version())
    with suppress(ApexError):
        nvdisasm = disassembler()[1]
    return Environment(
        driver=driver,
        cuda_driver=cuda,
        nvrtc=nvrtc,
        cupy=installed_version(*CUPY_PACKAGES),
        torch=installed_version("torch"),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}" + (" (WSL2)" if is_wsl() else ""),
        disassembler=None if nvdisasm is None else f"nvdisasm {nvdisasm}",
    )


def is_wsl() -> bool:
    return "microsoft" in platform.release().lower()


def _require_driver(driver: str | None, cuda: int | None) -> None:
    if cuda is not None and cuda < OLDEST_CUDA:
        raise ApexError(
            f"driver {driver or 'of unknown version'} runs CUDA {_dotted(cuda)} and this tool needs "
            f"CUDA {_dotted(OLDEST_CUDA)}: update the driver to {OLDEST_DRIVER} or newer"
        )


def _nothing_visible(nvml: Nvml) -> NoGpuError:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return NoGpuError(f"CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU of this machine")
    handles = [nvml.handle(index) for index in range(nvml.device_count())]
    if any(nvml.mig_enabled(handle) and not nvml.mig_slices(handle) for handle in handles if handle is not None):
        return NoGpuError("the GPU is in MIG mode and has no slice (create one: nvidia-smi mig -cgi … -C)")
    return NoGpuError("NVML lists a GPU and CUDA sees none (check that /dev/nvidia* and nvidia-uvm are accessible)")


def _not_shown(nvml: Nvml, visible: Sequence[CudaDevice], gpus: Sequence[LocalGpu]) -> list[LeftOut]:
    """GPUs that NVML lists and none of CUDA's devices is on, with the reason as far as NVML knows it."""
    shown = {gpu.nvml_index for gpu in gpus}
    for cuda in visible:
        with suppress(ApexError):
            board = nvml.handle_by_pci_bus_id(cuda.pci_bus_id)
            shown.add(None if board is None else nvml.index(board))
    found = []
    for index in range(nvml.device_count()):
        if index in shown:
            continue
        try:
            board = nvml.handle(index)
            name = nvml.name(board) or "GPU"
            slices = nvml.mig_slices(board) if nvml.mig_enabled(board) else None
        except ApexError as error:
            found.append(LeftOut(None, index, "GPU", str(error), failed=True))
            continue
        found.append(LeftOut(None, index, name, _why_not_shown(nvml, slices), failed=slices is None))
    return found


def _why_not_shown(nvml: Nvml, slices: Sequence[Any] | None) -> str:
    if slices is None:
        return "CUDA does not show it to this process (nvidia-smi and the kernel log, dmesg, may say why)"
    if not slices:
        return "it is in MIG mode and has no slice (create one: nvidia-smi mig -cgi … -C)"
    uuid = nvml.uuid(slices[0]) or "MIG-…"
    return (
        f"it is cut into {len(slices)} MIG slice{'s' if len(slices) > 1 else ''}, of which CUDA shows a process one at "
        f"most: measure one by itself, CUDA_VISIBLE_DEVICES={uuid} apex4-probe run"
    )


def _cuda_device(runtime: Any, ordinal: int) -> CudaDevice:
    properties = runtime.getDeviceProperties(ordinal)
    name = properties["name"]
    return CudaDevice(
        ordinal=ordinal,
        name=name.decode() if isinstance(name, bytes) else str(name),
        compute_capability=(int(properties["major"]), int(properties["minor"])),
        sm_count=int(properties["multiProcessorCount"]),
        memory_bytes=int(properties["totalGlobalMem"]),
        l2_bytes=int(properties["l2CacheSize"]),
        pci_bus_id=runtime.deviceGetPCIBusId(ordinal),
        uuid=bytes(properties.get("uuid", b""))[:16],
    )


def _local_gpu(nvml: Nvml, cuda: CudaDevice) -> LocalGpu:
    if cuda.compute_capability < OLDEST:
        raise ApexError(
            f"GPU {cuda.ordinal} ({cuda.name}, compute capability {_capability(cuda)}) has no INT8 or INT4 Tensor "
            "Cores; the oldest that this tool measures is 7.5 (Turing)"
        )
    board = nvml.handle_by_pci_bus_id(cuda.pci_bus_id)
    if board is None:
        board = _same_uuid(nvml, cuda, [nvml.handle(index) for index in range(nvml.device_count())])
    if board is None:
        raise ApexError(
            f"NVML does not know GPU {cuda.ordinal} ({cuda.name}) at {cuda.pci_bus_id}: its clocks cannot be watched"
        )
    slice_ = _same_uuid(nvml, cuda, nvml.mig_slices(board)) if nvml.mig_enabled(board) else None
    here = board if slice_ is None else slice_
    processes = nvml.compute_processes(here)
    cuda_version = nvml.cuda_version()
    return LocalGpu(
        index=cuda.ordinal,
        uuid=nvml.uuid(here),
        device=_device(nvml, cuda, board, slice_),
        nvml_index=nvml.index(board),
        sm_clock_mhz=nvml.sm_clock_mhz(board),
        memory_clock_mhz=nvml.memory_clock_mhz(board),
        power_w=nvml.power_w(board),
        temperature_c=nvml.temperature_c(board),
        other_processes=None if processes is None else len(set(processes) - {os.getpid()}),
        utilisation=nvml.utilisation(here),
        driver=nvml.driver_version(),
        cuda=None if cuda_version is None else _dotted(cuda_version),
    )


def _device(nvml: Nvml, cuda: CudaDevice, board: Any, slice_: Any) -> Device:
    """The board's name and limits; SMs, memory and L2 of what CUDA may use, which on a MIG slice is less."""
    mig = _mig_profile(nvml, cuda, slice_) if nvml.mig_enabled(board) else None
    memory = cuda.memory_bytes if mig else nvml.memory_bytes(board) or cuda.memory_bytes
    return Device(
        name=nvml.name(board) or cuda.name,
        compute_capability=_capability(cuda),
        architecture=architecture(_capability(cuda)).name,
        sm_count=cuda.sm_count,
        memory_mib=round(memory / 2**20),
        l2_mib=cuda.l2_bytes / 2**20,
        mig=mig,
        ecc=nvml.ecc(board),
        power_limit_w=nvml.power_limit_w(board),
        max_sm_clock_mhz=nvml.max_sm_clock_mhz(board),
        max_memory_clock_mhz=nvml.max_memory_clock_mhz(board),
    )


def _mig_profile(nvml: Nvml, cuda: CudaDevice, slice_: Any) -> str:
    """ "1g.10gb" from names such as "NVIDIA H100 80GB HBM3 MIG 1g.10gb"; the SM count where neither name says it."""
    names = (cuda.name, "" if slice_ is None else nvml.name(slice_) or "")
    found = [match.group(1) for name in names if (match := re.search(r"\bMIG (\S+)", name))]
    return found[0] if found else f"{cuda.sm_count} SMs"


def _same_uuid(nvml: Nvml, cuda: CudaDevice, handles: Sequence[Any]) -> Any:
    """The handle whose UUID begins with CUDA's bytes (CuPy cuts them at the first zero byte), if it is the only one."""
    if not cuda.uuid:
        return None
    known = [handle for handle in handles if handle is not None]
    matches = [handle for handle in known if _uuid_bytes(nvml.uuid(handle)).startswith(cuda.uuid)]
    return matches[0] if len(matches) == 1 else None


def _uuid_bytes(text: str | None) -> bytes:
    """ "GPU-…" or "MIG-…" to 16 bytes; empty for the older "MIG-GPU-…/1/0" form, which holds the board's UUID."""
    match = re.fullmatch(r"(?:GPU|MIG)-([0-9a-fA-F-]{36})", text or "")
    return bytes.fromhex(match.group(1).replace("-", "")) if match else b""


def _capability(cuda: CudaDevice) -> str:
    return f"{cuda.compute_capability[0]}.{cuda.compute_capability[1]}"


def _dotted(cuda_version: int) -> str:
    return f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"


def installed_version(*packages: str) -> str | None:
    """Of the first of these distributions that is installed, without importing it."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None
