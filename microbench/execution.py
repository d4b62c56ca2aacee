"""Running a probe on one GPU: launch, cycles from inside the kernel, wall time around it, conditions beside it.

The one place, with bandwidth.py, that opens a CUDA event. A CTA asks for more than half of an SM's shared memory, so
that a grid of one CTA an SM never puts two on one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np

from apex4_probe.architecture import Architecture, architecture
from apex4_probe.errors import ApexError
from apex4_probe.kernels.compile import Cubin, load
from apex4_probe.microbench.clocks import MARGIN_S, ClockSampler, Conditions
from apex4_probe.microbench.operands import Kind, operand_words
from apex4_probe.microbench.stopping import MIN_SAMPLES, StoppingRule, spread
from apex4_probe.nvml import Nvml, NvmlMissingError

MAX_THREADS, MAX_WARPS = 1024, 32
# CUDA-core bursts read within this of the maximum clock (H100, H200; HFMA2 once at 0.978).
CLOCK_TOLERANCE = 0.02
# A burst of Tensor Core work holds one clock for some 30 ms after a pause, then the power cap lowers it by 5 to 8 %
# (fp16 wgmma on random data, H200: 1720 MHz, then 1570 to 1630). So a burst is short, and the next one waits.
BURST_LAUNCHES = 8
IDLE_S = 0.2
MAX_DISCARDED = 50  # a GPU that is thermally limited throughout is measured as it is, and says so


@dataclass(frozen=True)
class Sample:
    """One launch. ``cycles``: the median SM's; ``slowest_cycles``: those of the SM that the launch waits for.

    ``wall_s``: between two events on the stream, launch latency included. ``start``, ``end``: time.monotonic().
    """

    cycles: float
    wall_s: float
    slowest_cycles: float = float("nan")
    start: float = 0.0
    end: float = 0.0

    @property
    def sm_clock_mhz(self) -> float:
        """The clock that the kernel itself saw."""
        return self.cycles / self.wall_s / 1e6


@dataclass(frozen=True)
class Series:
    """Samples of one configuration, those that heat disturbed left out (``discarded`` of them)."""

    samples: tuple[Sample, ...]
    conditions: Conditions
    max_sm_clock_mhz: float | None
    discarded: int = 0

    @property
    def cycles(self) -> float:
        return median(s.cycles for s in self.samples)

    @property
    def wall_s(self) -> float:
        return median(s.wall_s for s in self.samples)

    @property
    def spread(self) -> float:
        return spread([s.wall_s for s in self.samples])

    @property
    def sm_clock_mhz(self) -> float:
        return median(s.sm_clock_mhz for s in self.samples)

    @property
    def throttle(self) -> list[str]:
        """Why the clock was lower than it may be; empty where it was not. NVML speaks of the last tenths of a second,
        so
        a reason without a lower clock belongs to what ran before, and a burst is slowed long before NVML has a
        reason."""
        known = self.max_sm_clock_mhz
        if known is not None and self.sm_clock_mhz >= known * (1 - CLOCK_TOLERANCE):
            return []
        return sorted(self.conditions.throttle) or ([] if known is None else ["clock_below_maximum"])


class Gpu:
    """One CUDA device, opened for measuring; a context manager. ``index``: CUDA's ordinal."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._stack = ExitStack()
        self._operands: dict[tuple[Kind, bool], Any] = {}

    def __enter__(self) -> Gpu:
        import cupy

        self._stack.enter_context(cupy.cuda.Device(self.index))
        properties = cupy.cuda.runtime.getDeviceProperties(self.index)
        self.architecture: Architecture = architecture(f"{properties['major']}.{properties['minor']}")
        self.sm_count = int(properties["multiProcessorCount"])
        self.l2_bytes = int(properties["l2CacheSize"])
        self.shared_bytes = int(properties["sharedMemPerBlockOptin"])
        nvml, handle = self.nvml, self.nvml_handle = self._open_nvml(cupy.cuda.runtime.deviceGetPCIBusId(self.index))
        self.max_sm_clock_mhz = nvml.max_sm_clock_mhz(handle) if nvml else None
        memory_clock = nvml.max_memory_clock_mhz(handle) if nvml else None
        # GB/s: two transfers a clock on every memory that NVML reports (GDDR6X's clock is told doubled, HBM's is not)
        self.memory_peak_gb_s = memory_clock and 2 * memory_clock * int(properties["memoryBusWidth"]) / 8 / 1e3
        self._sampler = self._stack.enter_context(ClockSampler(nvml, handle))
        self._stamps = cupy.zeros((self.sm_count, MAX_WARPS, 2), cupy.uint64)  # start and stop of every warp
        self._sink = cupy.zeros(self.sm_count * MAX_THREADS, cupy.uint32)
        self._events = cupy.cuda.Event(), cupy.cuda.Event()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def operands(self, kind: Kind, zeros: bool = False) -> Any:
        """The operand buffer on the device."""
        import cupy

        if (kind, zeros) not in self._operands:
            self._operands[kind, zeros] = cupy.asarray(operand_words(kind, zeros=zeros))
        return self._operands[kind, zeros]

    def function(self, cubin: Cubin) -> Any:
        """The kernel ``probe`` of a cubin, allowed all the shared memory of an SM."""
        function = load(cubin).get_function("probe")
        function.max_dynamic_shared_size_bytes = self.shared_bytes
        return function

    def launch(self, function: Any, threads: int, operands: Any, iterations: int, extra: Sequence[int] = ()) -> Sample:
        """Run a probe once, one CTA an SM, and wait. ``extra``: further int arguments of the kernel."""
        arguments = (operands, self._stamps, self._sink, np.int32(iterations), *(np.int32(value) for value in extra))
        sample = self.timed(lambda: function((self.sm_count,), (threads,), arguments, shared_mem=self.shared_bytes))
        stamps = self._stamps.get()[:, : threads // 32]
        elapsed = stamps[:, :, 1].max(axis=1) - stamps[:, :, 0].min(axis=1)
        return replace(sample, cycles=float(np.median(elapsed)), slowest_cycles=float(elapsed.max()))

    def timed(self, work: Callable[[], None]) -> Sample:
        """Wall time of ``work`` on the current stream by events. Cycles are not known here: NaN."""
        import cupy

        before, after = self._events
        start = time.monotonic()
        before.record()
        work()
        after.record()
        after.synchronize()
        wall_s = cupy.cuda.get_elapsed_time(before, after) / 1e3
        return Sample(float("nan"), wall_s, start=start, end=time.monotonic())

    def sample(self, once: Callable[[], Sample], budget_s: float, min_samples: int = MIN_SAMPLES) -> Series:
        """Bursts from idle until the stopping rule is satisfied. Samples disturbed by heat are counted and repeated."""
        rule = StoppingRule(budget_s, min_samples)
        kept: list[Sample] = []
        discarded = 0
        while not rule.done:
            time.sleep(IDLE_S)
            once()  # the clock rises from idle while this one runs
            for _ in range(BURST_LAUNCHES):
                sample = once()
                if discarded < MAX_DISCARDED and self._sampler.between(sample.start, sample.end).disturbed:
                    discarded += 1
                    continue
                kept.append(sample)
                rule.add(1.0 if np.isnan(sample.cycles) else sample.cycles, sample.wall_s)
        time.sleep(MARGIN_S)  # NVML speaks of the past
        counted = tuple(kept[-rule.window :])
        return Series(counted, self.conditions(counted[0].start), self.max_sm_clock_mhz, discarded)

    def sustained(self, once: Callable[[], Sample], duration_s: float) -> Series:
        """Call ``once`` back to back for ``duration_s``; the first half, in which the clock settles, is not counted. Of
        the rest, samples that heat disturbed are left out and counted, unless it disturbed them all."""
        samples: list[Sample] = []
        end = time.monotonic() + duration_s
        while not samples or samples[-1].end < end:
            samples.append(once())
        settled = samples[len(samples) // 2 :]
        kept = [s for s in settled if not self._sampler.between(s.start, s.end).disturbed] or settled
        conditions = self.conditions(settled[0].start)
        return Series(tuple(kept), conditions, self.max_sm_clock_mhz, len(settled) - len(kept))

    def conditions(self, since: float) -> Conditions:
        """Conditions from ``since`` (time.monotonic()) until now."""
        return self._sampler.between(since, time.monotonic())

    def _open_nvml(self, bus_id: str) -> tuple[Nvml | None, Any]:
        try:
            nvml = self._stack.enter_context(Nvml())
        except (NvmlMissingError, ApexError):
            return None, None  # CUDA without NVML: some integrated parts and containers; clocks come from the kernel
        handle = nvml.handle_by_pci_bus_id(bus_id)
        return (nvml, handle) if handle is not None else (None, None)
