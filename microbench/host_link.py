"""Copies between this GPU and pinned memory of its host: what the slot gives, and whether it is trained as it could be.

A card in a slot of fewer lanes, or one whose link came up a generation lower, computes like its neighbours and loads
weights, activations and KV cache at half their speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apex4_probe.deployment import Measurement
from apex4_probe.microbench.bandwidth import BUDGET_S, Regime, record
from apex4_probe.microbench.execution import Gpu, Series

BYTES = 1 << 28  # 5 ms on sixteen lanes of PCIe 5, a thousand times what starting a copy costs
DESCRIPTIONS = {
    "host.to_device": "pinned host memory copied to the GPU over PCIe or the host's own link",
    "host.from_device": "the GPU's memory copied to pinned host memory",
}


@dataclass(frozen=True)
class HostCopy:
    """One direction, ready to be timed: bursts, or back to back for a number of seconds."""

    gpu: Gpu
    name: str
    work: Callable[[], None]
    bytes: int

    def burst(self) -> Measurement:
        self.work()
        return self._record(self.gpu.sample(lambda: self.gpu.timed(self.work), BUDGET_S), "burst")

    def sustained(self, seconds: float) -> Measurement:
        return self._record(self.gpu.sustained(lambda: self.gpu.timed(self.work), seconds), "sustained")

    def _record(self, series: Series, regime: Regime) -> Measurement:
        """The link as it is trained right after the copies: an idle GPU lets it fall back to the first generation."""
        labels: dict[str, int | float | str] = {"bytes": self.bytes, **_trained(self.gpu)}
        return record(self.name, series, self.bytes / series.wall_s / 1e9, "GB/s", labels, regime=regime)


def measure(gpu: Gpu) -> list[Measurement]:
    """Both directions, one after the other; where the host gives no pinned memory, the reason."""
    try:
        return [copy.burst() for copy in copies(gpu)]
    except MemoryError as error:
        return [
            Measurement(name=name, instruction="", unit="GB/s", origin="measured", unsupported=str(error))
            for name in DESCRIPTIONS
        ]


def copies(gpu: Gpu) -> list[HostCopy]:
    """``host.to_device`` and ``host.from_device``. Raises MemoryError where the host gives no pinned memory."""
    import cupy

    runtime = cupy.cuda.runtime
    free, _total = runtime.memGetInfo()
    size = min(BYTES, free // 8)
    try:
        host = cupy.cuda.alloc_pinned_memory(size)
    except runtime.CUDARuntimeError as error:
        raise MemoryError(f"no {size >> 20} MiB of pinned host memory: {error}") from error
    device = cupy.cuda.alloc(size)

    def copy(target: Any, source: Any, kind: int) -> Callable[[], None]:
        # The closure keeps both buffers alive.
        return lambda: runtime.memcpyAsync(target.ptr, source.ptr, size, kind, cupy.cuda.get_current_stream().ptr)

    return [
        HostCopy(gpu, "host.to_device", copy(device, host, runtime.memcpyHostToDevice), size),
        HostCopy(gpu, "host.from_device", copy(host, device, runtime.memcpyDeviceToHost), size),
    ]


def _trained(gpu: Gpu) -> dict[str, int | float | str]:
    """PCIe generation and width now, and what GPU and slot could; empty where NVML does not say."""
    if gpu.nvml is None:
        return {}
    now, best = gpu.nvml.pcie_link(gpu.nvml_handle), gpu.nvml.max_pcie_link(gpu.nvml_handle)
    found: dict[str, int | float | str] = {}
    if now is not None:
        found |= {"pcie_generation": now[0], "pcie_width": now[1]}
    if best is not None:
        found |= {"pcie_max_generation": best[0], "pcie_max_width": best[1]}
    return found
