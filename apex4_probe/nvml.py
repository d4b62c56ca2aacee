"""NVML behind one small class: every pynvml call of discovery, and what its errors mean.

A field that a part does not report (laptop power limits, unified-memory sizes, anything inside a container without the
right) is ``None`` here; a GPU that has fallen off the bus is an error.
"""

from __future__ import annotations

from importlib import import_module
from types import TracebackType
from typing import Any

from apex4_probe.errors import ApexError


class NvmlMissingError(ApexError):
    """No NVML library, or no driver loaded behind it: there is no NVIDIA GPU that could be asked."""


class Nvml:
    """An open NVML session, used as a context manager. ``library``: pynvml, or a test's stand-in for it."""

    def __init__(self, library: Any = None) -> None:
        if library is None:
            library = import_module("pynvml")
        self._library: Any = library

    def __enter__(self) -> Nvml:
        """Raises NvmlMissingError without a driver, ApexError when NVML is there and refuses."""
        library = self._library
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            code = getattr(error, "value", None)
            if code == library.NVML_ERROR_LIBRARY_NOT_FOUND:
                raise NvmlMissingError("no NVIDIA driver found (NVML: library not found)") from error
            if code == library.NVML_ERROR_DRIVER_NOT_LOADED:
                raise NvmlMissingError("the NVIDIA driver is not loaded (NVML: driver not loaded)") from error
            if code == library.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
                raise ApexError(
                    "the NVIDIA driver was updated while an older one is still loaded (NVML: driver/library version "
                    "mismatch); reboot, or reload the nvidia kernel modules"
                ) from error
            raise ApexError(f"NVML cannot be opened: {error}; check nvidia-smi") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.nvmlShutdown()

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The answer, or None where this part, driver or container does not give one."""
        library = self._library
        try:
            return getattr(library, function)(*arguments)
        except library.NVMLError as error:
            if getattr(error, "value", None) in (library.NVML_ERROR_GPU_IS_LOST, library.NVML_ERROR_RESET_REQUIRED):
                raise ApexError(
                    f"the driver has lost the GPU ({error}); reset it (nvidia-smi --gpu-reset) or reboot"
                ) from error
            return None

    def driver_version(self) -> str | None:
        return _text(self._ask("nvmlSystemGetDriverVersion"))

    def cuda_version(self) -> int | None:
        """As CUDA encodes it: 12040 is 12.4."""
        version = self._ask("nvmlSystemGetCudaDriverVersion_v2")
        return None if version is None else int(version)

    def device_count(self) -> int:
        return int(self._ask("nvmlDeviceGetCount") or 0)

    def handle(self, index: int) -> Any:
        return self._ask("nvmlDeviceGetHandleByIndex", index)

    def handle_by_pci_bus_id(self, bus_id: str) -> Any:
        """The GPU at that address, None where NVML does not know it (some integrated parts have no PCI address)."""
        return self._ask("nvmlDeviceGetHandleByPciBusId", bus_id.encode())

    def index(self, handle: Any) -> int | None:
        """The number that nvidia-smi shows."""
        index = self._ask("nvmlDeviceGetIndex", handle)
        return None if index is None else int(index)

    def mig_enabled(self, handle: Any) -> bool:
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        return mode is not None and mode[0] == 1

    def mig_slices(self, handle: Any) -> list[Any]:
        """Handles of the slices that exist; a slot without a slice answers "not found" and is left out."""
        slots = int(self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
        found = [self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot) for slot in range(slots)]
        return [slice_ for slice_ in found if slice_ is not None]

    def name(self, handle: Any) -> str | None:
        return _text(self._ask("nvmlDeviceGetName", handle))

    def uuid(self, handle: Any) -> str | None:
        return _text(self._ask("nvmlDeviceGetUUID", handle))

    def memory_bytes(self, handle: Any) -> int | None:
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        return None if memory is None else int(memory.total)

    def ecc(self, handle: Any) -> bool | None:
        mode = self._ask("nvmlDeviceGetEccMode", handle)
        return None if mode is None else mode[0] == 1

    def power_limit_w(self, handle: Any) -> float | None:
        """The limit in force, which a laptop's or a server's power management may have set below the card's own."""
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        if limit is None:
            limit = self._ask("nvmlDeviceGetPowerManagementLimit", handle)
        return None if limit is None else limit / 1000

    def power_w(self, handle: Any) -> float | None:
        power = self._ask("nvmlDeviceGetPowerUsage", handle)
        return None if power is None else power / 1000

    def temperature_c(self, handle: Any) -> float | None:
        return _number(self._ask("nvmlDeviceGetTemperature", handle, self._library.NVML_TEMPERATURE_GPU))

    def sm_clock_mhz(self, handle: Any) -> float | None:
        return _number(self._ask("nvmlDeviceGetClockInfo", handle, self._library.NVML_CLOCK_SM))

    def memory_clock_mhz(self, handle: Any) -> float | None:
        return _number(self._ask("nvmlDeviceGetClockInfo", handle, self._library.NVML_CLOCK_MEM))

    def max_sm_clock_mhz(self, handle: Any) -> float | None:
        return _number(self._ask("nvmlDeviceGetMaxClockInfo", handle, self._library.NVML_CLOCK_SM))

    def max_memory_clock_mhz(self, handle: Any) -> float | None:
        return _number(self._ask("nvmlDeviceGetMaxClockInfo", handle, self._library.NVML_CLOCK_MEM))

    def clock_event_reasons(self, handle: Any) -> int | None:
        """Bit mask of why the clock is not higher (nvmlClocksEventReasons)."""
        mask = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return None if mask is None else int(mask)

    def compute_processes(self, handle: Any) -> tuple[int, ...] | None:
        """Process ids with a CUDA context here; None where the driver does not say (WSL2)."""
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses", handle)
        return None if processes is None else tuple(int(process.pid) for process in processes)

    def pcie_link(self, handle: Any) -> tuple[int, int] | None:
        """Generation and width of the link to the host as it is trained now; an idle GPU lowers the generation."""
        generation = self._ask("nvmlDeviceGetCurrPcieLinkGeneration", handle)
        width = self._ask("nvmlDeviceGetCurrPcieLinkWidth", handle)
        return None if generation is None or width is None else (int(generation), int(width))

    def max_pcie_link(self, handle: Any) -> tuple[int, int] | None:
        """Generation and width that GPU and slot could train to."""
        generation = self._ask("nvmlDeviceGetMaxPcieLinkGeneration", handle)
        width = self._ask("nvmlDeviceGetMaxPcieLinkWidth", handle)
        return None if generation is None or width is None else (int(generation), int(width))

    def common_ancestor(self, first: Any, second: Any) -> int | None:
        """How far apart two GPUs are in the PCIe tree (nvmlGpuTopologyLevel): 0 one board … 50 between CPUs."""
        level = self._ask("nvmlDeviceGetTopologyCommonAncestor", first, second)
        return None if level is None else int(level)

    def nvlink_peers(self, first: Any, second: Any) -> bool:
        """Whether the driver offers peer access from one to the other over NVLink, through NVSwitches too."""
        library = self._library
        status = self._ask("nvmlDeviceGetP2PStatus", first, second, library.NVML_P2P_CAPS_INDEX_NVLINK)
        return bool(status == library.NVML_P2P_STATUS_OK)

    def nvlink_ends(self, handle: Any) -> list[str | None]:
        """PCI address at the far end of each active NVLink; None where the driver does not say."""
        library = self._library
        active = [
            link
            for link in range(library.NVML_NVLINK_MAX_LINKS)
            if self._ask("nvmlDeviceGetNvLinkState", handle, link) == library.NVML_FEATURE_ENABLED
        ]
        ends = [self._ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link) for link in active]
        return [None if end is None else _text(end.busId) for end in ends]

    def pci_bus_id(self, handle: Any) -> str | None:
        info = self._ask("nvmlDeviceGetPciInfo", handle)
        return None if info is None else _text(info.busId)

    def utilisation(self, handle: Any) -> float | None:
        """Share of the last sample period (up to a second) in which a kernel ran, 0 … 1."""
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        return None if rates is None else rates.gpu / 100


def _text(answer: Any) -> str | None:
    """Older nvidia-ml-py answers bytes."""
    if answer is None:
        return None
    return answer.decode() if isinstance(answer, bytes) else str(answer)


def _number(answer: Any) -> float | None:
    return None if answer is None else float(answer)
