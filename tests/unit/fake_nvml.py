"""A stand-in for pynvml whose machine is described by records: what discovery asks, answered as real parts answer it.

Its exceptions and constants are pynvml's own, so that a renamed error code would show.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pynvml


@dataclass(frozen=True)
class Board:
    """None: the driver answers "not supported"."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-11112222-3333-4444-5555-666677778888"
    bus_id: str = "0000:1B:00.0"
    memory: int | None = 81559 * 2**20
    ecc: bool | None = True
    power_limit_mw: int | None = 700_000
    power_mw: int | None = 71_500
    temperature: int | None = 34
    sm_clock: int | None = 345
    max_sm_clock: int | None = 1980
    memory_clock: int | None = 2619
    processes: tuple[int, ...] | None = ()
    utilisation: int | None = 0
    mig: bool | None = None
    slices: tuple[Board | None, ...] = ()  # None: an empty slot
    lost: bool = False
    nvlinks: tuple[str | None, ...] = ()  # PCI address at the far end of each active one; None: not told
    pcie: tuple[int, int] | None = (5, 16)


class FakeNvml:
    """``boards`` in NVML's order. ``init_error``: what nvmlInit raises, as an NVML error code."""

    def __init__(
        self,
        *boards: Board,
        init_error: int | None = None,
        driver: str | bytes = "580.95.05",
        cuda: int = 13000,
        level: int | None = 50,
        nvlink_peers: bool = False,
    ) -> None:
        self.boards, self.init_error, self.driver, self.cuda = boards, init_error, driver, cuda
        self.level, self.nvlink_peers = level, nvlink_peers
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("NVML_", "NVMLError")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes:  # noqa: N802
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Board:  # noqa: N802
        if self.boards[index].lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.boards[index]

    def nvmlDeviceGetPciInfo(self, board: Board) -> Any:  # noqa: N802
        return SimpleNamespace(busId=board.bus_id.encode())

    def nvmlDeviceGetTopologyCommonAncestor(self, _first: Board, _second: Board) -> int:  # noqa: N802
        return supported(self.level, _first)

    def nvmlDeviceGetP2PStatus(self, _first: Board, _second: Board, index: int) -> int:  # noqa: N802
        assert index == pynvml.NVML_P2P_CAPS_INDEX_NVLINK
        return pynvml.NVML_P2P_STATUS_OK if self.nvlink_peers else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED

    def nvmlDeviceGetNvLinkState(self, board: Board, number: int) -> int:  # noqa: N802
        if not board.nvlinks:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(number < len(board.nvlinks))

    def nvmlDeviceGetNvLinkRemotePciInfo(self, board: Board, number: int) -> Any:  # noqa: N802
        return SimpleNamespace(busId=supported(board.nvlinks[number], board))

    def nvmlDeviceGetCurrPcieLinkGeneration(self, board: Board) -> int:  # noqa: N802
        return supported(board.pcie, board)[0]

    def nvmlDeviceGetCurrPcieLinkWidth(self, board: Board) -> int:  # noqa: N802
        return supported(board.pcie, board)[1]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, board: Board) -> int:  # noqa: N802
        return 5

    def nvmlDeviceGetMaxPcieLinkWidth(self, board: Board) -> int:  # noqa: N802
        return 16

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: bytes) -> Board:  # noqa: N802
        found = [board for board in self.boards if board.bus_id.lower() == bus_id.decode().lower()]
        if not found:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found[0]

    def nvmlDeviceGetIndex(self, board: Board) -> int:  # noqa: N802
        return self.boards.index(board)

    def nvmlDeviceGetMigMode(self, board: Board) -> list[int]:  # noqa: N802
        return [int(supported(board.mig, board))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, board: Board) -> int:  # noqa: N802
        return len(board.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, board: Board, slot: int) -> Board:  # noqa: N802
        found = board.slices[slot]
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def nvmlDeviceGetName(self, board: Board) -> str:  # noqa: N802
        return supported(board.name, board)

    def nvmlDeviceGetUUID(self, board: Board) -> str:  # noqa: N802
        return board.uuid

    def nvmlDeviceGetMemoryInfo(self, board: Board) -> Any:  # noqa: N802
        return SimpleNamespace(total=supported(board.memory, board))

    def nvmlDeviceGetEccMode(self, board: Board) -> list[int]:  # noqa: N802
        return [int(supported(board.ecc, board))] * 2

    def nvmlDeviceGetEnforcedPowerLimit(self, board: Board) -> int:  # noqa: N802
        return supported(board.power_limit_mw, board)

    nvmlDeviceGetPowerManagementLimit = nvmlDeviceGetEnforcedPowerLimit  # noqa: N815

    def nvmlDeviceGetPowerUsage(self, board: Board) -> int:  # noqa: N802
        return supported(board.power_mw, board)

    def nvmlDeviceGetTemperature(self, board: Board, sensor: int) -> int:  # noqa: N802
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return supported(board.temperature, board)

    def nvmlDeviceGetClockInfo(self, board: Board, kind: int) -> int:  # noqa: N802
        return supported(board.sm_clock if kind == pynvml.NVML_CLOCK_SM else board.memory_clock, board)

    def nvmlDeviceGetMaxClockInfo(self, board: Board, kind: int) -> int:  # noqa: N802
        return supported(board.max_sm_clock if kind == pynvml.NVML_CLOCK_SM else board.memory_clock, board)

    def nvmlDeviceGetComputeRunningProcesses(self, board: Board) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in supported(board.processes, board)]

    def nvmlDeviceGetUtilizationRates(self, board: Board) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=supported(board.utilisation, board), memory=0)


def supported(value: Any, board: Board) -> Any:
    if board.lost:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value
