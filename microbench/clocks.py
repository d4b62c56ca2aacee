"""What the GPU's clock did while a sample ran: a thread asks NVML every few milliseconds."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from apex4_probe.nvml import Nvml

PERIOD_S = 0.005
# NVML lags behind the GPU: a sample is charged with what was said shortly after it, too. A guess, a few of our periods.
MARGIN_S = 0.025

# NVML API reference, nvmlClocksEventReasons. Idle, application clocks and the display say nothing about a sample.
POWER_CAP, HARDWARE_SLOWDOWN, SOFTWARE_THERMAL, HARDWARE_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
REASONS = {
    POWER_CAP: "power_cap",
    HARDWARE_SLOWDOWN: "hardware_slowdown",
    SOFTWARE_THERMAL: "software_thermal",
    HARDWARE_THERMAL: "hardware_thermal",
    POWER_BRAKE: "power_brake",
}
DISCARDED = frozenset({"hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake"})


def reason_names(mask: int) -> frozenset[str]:
    """Names of the reasons in NVML's bit mask that bear on a measurement."""
    return frozenset(name for bit, name in REASONS.items() if mask & bit)


@dataclass(frozen=True)
class Reading:
    at: float  # time.monotonic()
    temperature_c: float | None
    power_w: float | None
    reasons: frozenset[str]


@dataclass(frozen=True)
class Conditions:
    """Means and the union of throttle reasons over a window; None where NVML does not say."""

    temperature_c: float | None = None
    power_w: float | None = None
    throttle: frozenset[str] = frozenset()

    @property
    def disturbed(self) -> bool:
        """Whether heat or the hardware's own protection slowed the clock: such a sample says nothing about the chip."""
        return bool(self.throttle & DISCARDED)


class ClockSampler:
    """Context manager: samples NVML in the background. ``nvml`` and ``handle`` None: no NVML here, all is unknown."""

    def __init__(self, nvml: Nvml | None, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._readings: list[Reading] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="nvml", daemon=True)

    def __enter__(self) -> ClockSampler:
        if self._nvml is not None:
            self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def between(self, start: float, end: float) -> Conditions:
        """Conditions from ``start`` to ``end`` (time.monotonic()), with the last reading before and a margin after."""
        readings = self._readings
        first = max(bisect_left(readings, start, key=lambda reading: reading.at) - 1, 0)
        window = [reading for reading in readings[first:] if reading.at <= end + MARGIN_S]
        if not window:
            return Conditions()
        temperatures = [r.temperature_c for r in window if r.temperature_c is not None]
        powers = [r.power_w for r in window if r.power_w is not None]
        return Conditions(
            fmean(temperatures) if temperatures else None,
            fmean(powers) if powers else None,
            frozenset().union(*(reading.reasons for reading in window)),
        )

    def _sample(self) -> None:
        assert self._nvml is not None
        while not self._stop.wait(PERIOD_S):
            self._readings.append(
                Reading(
                    time.monotonic(),
                    self._nvml.temperature_c(self._handle),
                    self._nvml.power_w(self._handle),
                    reason_names(self._nvml.clock_event_reasons(self._handle) or 0),
                )
            )
