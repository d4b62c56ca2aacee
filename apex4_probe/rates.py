"""How fast this GPU is at one thing: the measurement where there is one, else the datasheet or the architecture.

Every figure keeps its origin, so that what is computed from it can say what it rests on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from apex4_probe.architecture import Architecture, architecture
from apex4_probe.deployment import Device, Measurement, Origin
from apex4_probe.errors import ApexError

Operand = Literal["s4", "s8", "f16", "e4m3"]

ORIGINS: tuple[Origin, ...] = ("measured", "datasheet", "predicted")  # the better first
MMA_SYNC: dict[Operand, tuple[str, ...]] = {
    "s4": ("mma.s4.m16n8k64", "mma.s4.m16n8k32", "mma.s4.m8n8k32"),
    "s8": ("mma.s8.m16n8k32", "mma.s8.m8n8k16"),
    "f16": ("mma.f16.m16n8k16", "mma.f16.m16n8k8"),
    "e4m3": ("mma.e4m3.m16n8k32",),
}
WGMMA: dict[Operand, tuple[str, ...]] = {
    "s8": ("wgmma.s8.m64n256k32.rs", "wgmma.s8.m64n256k32.ss"),
    "f16": ("wgmma.f16.m64n256k16.ss",),
    "e4m3": ("wgmma.e4m3.m64n256k32.ss",),
}
READ_OVER_DATASHEET = 3060 / 3350  # pure read of 235 MB over the datasheet bandwidth; measured, H100 80GB HBM3
READ_OVER_COPY = 3060 / 2945  # pure read over copy (read + write); measured, H100 80GB HBM3
GRAPH_LAUNCH_US = 1.0  # an empty kernel in a CUDA graph; measured, H100 80GB HBM3


@dataclass(frozen=True)
class Throughput:
    """``per_clk``: MAC or thread-instructions per SM cycle and SM. ``clock_mhz``: the SM clock under this load."""

    name: str
    per_clk: float
    clock_mhz: float
    origin: Origin
    source: str


@dataclass(frozen=True)
class Figure:
    value: float
    origin: Origin
    source: str


def worst(origins: Iterable[Origin]) -> Origin:
    """The weakest origin among what a figure was computed from; ``predicted`` if that is nothing."""
    return max(origins, key=ORIGINS.index, default="predicted")


@dataclass(frozen=True)
class Rates:
    """Looks figures up; computes nothing but unit conversions."""

    device: Device
    architecture: Architecture
    measurements: tuple[Measurement, ...]

    @classmethod
    def of(cls, device: Device, measurements: Iterable[Measurement]) -> Rates:
        """Raises ApexError for a compute capability that is not known."""
        return cls(device, architecture(device.compute_capability), tuple(measurements))

    def find(self, name: str) -> Measurement | None:
        """The primary figure called ``name``: random operands, burst; None where it is missing or unsupported."""
        primary = [
            m
            for m in self.measurements
            if m.name == name and m.value is not None and m.operands != "zeros" and m.regime != "sustained"
        ]
        return min(primary, key=lambda m: ORIGINS.index(m.origin), default=None)

    @property
    def clock_mhz(self) -> float:
        """The highest SM clock, or the highest that a measurement saw where NVML does not tell."""
        seen = max((m.sm_clock_mhz for m in self.measurements if m.sm_clock_mhz), default=None)
        clock = self.device.max_sm_clock_mhz or seen
        if not clock:
            raise ApexError(f"{self.device.name}: neither the driver nor a measurement tells the SM clock")
        return clock

    def native(self, name: str) -> bool:
        """Whether the hardware executes ``name``. The SASS of a measurement decides; without one, the architecture."""
        measured = [m.emulated for m in self.measurements if m.name == name and m.emulated is not None]
        return not any(measured) if measured else self.architecture.support(name).level == "native"

    def tensor(self, operand: Operand) -> Throughput | None:
        """The best Tensor Core rate of the instructions that GEMMs on this architecture use; None: not in hardware."""
        if self.architecture.tcgen05:  # mma.sync is no peak here, whatever it measured
            peak = self._from_architecture(f"tcgen05.{operand}", f"mma.{operand}")
            if peak is not None or self.architecture.rates[f"mma.{operand}"].absent:
                return peak
        wide = [name for name in WGMMA.get(operand, ()) if self.native(name)]
        names = wide or [name for name in MMA_SYNC[operand] if self.native(name)]
        found = [rate for name in names if (rate := self._measured(name)) is not None]
        if found:
            best = min(ORIGINS.index(rate.origin) for rate in found)
            return max((rate for rate in found if ORIGINS.index(rate.origin) == best), key=lambda rate: rate.per_clk)
        for name in names:
            if (rate := self._from_architecture(name, self.architecture.support(name).rate)) is not None:
                return rate
        return None

    def kernel_tensor(self, operand: Operand) -> Throughput | None:
        """The rate that our kernels build on: as ``tensor``, but wgmma s8 with widened weights in registers."""
        best = self.tensor(operand)
        if operand == "s8" and best is not None and best.name == "wgmma.s8.m64n256k32.ss":
            return self._measured("wgmma.s8.m64n256k32.rs") or best
        return best

    def instruction(self, name: str) -> Throughput:
        """Thread-instructions per cycle and SM of a CUDA-core instruction, or MAC of an MMA by its own name.

        ApexError: neither measured nor known of the architecture.
        """
        rate = self._measured(name) or self._from_architecture(name, self.architecture.support(name).rate)
        if rate is None:
            raise ApexError(f"{self.device.name}: the rate of {name} is neither measured nor in architectures.yaml")
        return rate

    def limit(self, key: str) -> float:
        """Per cycle and SM: ``issue`` slots of thread-instructions or ``shared_bytes``."""
        value = self.architecture.rates[key].for_prediction
        if value is None:
            raise ApexError(f"profiles/architectures.yaml: {self.architecture.compute_capability} has no {key}")
        return value

    def read_bandwidth(self) -> Figure:
        """GB/s of a long pure read. ApexError: no bandwidth is known."""
        if (read := self.find("memory.read")) is not None and read.value:
            return Figure(read.value, read.origin, "memory.read")
        if (copy := self.find("memory.copy")) is not None and copy.value:
            return Figure(copy.value * READ_OVER_COPY, "predicted", "memory.copy, as pure reading compares on an H100")
        raise ApexError(f"{self.device.name}: without a measured memory bandwidth nothing can be planned")

    def launch_us(self) -> Figure:
        launch = self.find("launch.graph")
        if launch is not None and launch.value is not None:
            return Figure(launch.value, launch.origin, "launch.graph")
        return Figure(GRAPH_LAUNCH_US, "predicted", "as measured on an H100")

    def _measured(self, name: str) -> Throughput | None:
        measurement = self.find(name)
        if measurement is None or measurement.emulated or measurement.value is None:
            return None
        clock = measurement.sm_clock_mhz or self.clock_mhz
        per_clk = measurement.per_clk_per_sm
        if per_clk is None:  # value is in 10^12 operations a second; a MAC and an FMA count two
            operations = 1 if measurement.unit == "Tinstr/s" else 2
            per_clk = measurement.value * 1e6 / (operations * clock * self.device.sm_count)
        if per_clk <= 0:
            return None
        return Throughput(name, per_clk, clock, measurement.origin, measurement.source or name)

    def _from_architecture(self, name: str, key: str) -> Throughput | None:
        rate = self.architecture.rates[key]
        if not rate.for_prediction:
            return None
        origin: Origin = "datasheet" if rate.value is not None else "predicted"
        return Throughput(name, rate.for_prediction, self.clock_mhz, origin, rate.source)
