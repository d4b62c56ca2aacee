"""Bandwidth of device memory, L2 and shared memory, and what a launch costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from apex4_probe.deployment import Measurement
from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import Cubin, compile_kernel, load
from apex4_probe.microbench.execution import Gpu, Series
from apex4_probe.microbench.instructions import PEAK_TOLERANCE
from apex4_probe.microbench.sass_gate import check
from apex4_probe.microbench.sources import probe_kernel

Regime = Literal["burst", "sustained"]

VECTOR_BYTES = 16
THREADS = 512
IN_FLIGHT = (1, 2, 4, 8)  # 16-byte loads of a thread before the first use; swept
CTAS_PER_SM = (1, 2, 4, 1 << 16)  # swept; the last means one CTA a chunk
BUFFER_BYTES = 1 << 32  # far beyond every L2, so long that ramps do not count; less where the GPU is small
L2_SHARE = 0.2  # of the L2 that the resident buffer takes: well inside one partition of those that have two
LAUNCHES = 256
SHARED_ITERATIONS, SHARED_LOADS, SHARED_THREADS = 4096, 16, 1024
BUDGET_S = 0.08

DESCRIPTIONS = {
    "memory.copy": "device memory copied to device memory, bytes read plus bytes written",
    "memory.read": "device memory read once",
    "l2.read": "a buffer that fits the L2 read again and again",
    "shared.read": "shared memory read by 16-byte loads without bank conflicts",
    "launch.graph": "time of one empty kernel in a CUDA graph of 256",
    "launch.stream": "time of one empty kernel launched on a stream, 256 in a row",
}


@dataclass(frozen=True)
class _Timed:
    """One way to spend wall time: ``work`` moves ``amount`` bytes, or launches ``amount`` kernels."""

    name: str
    work: Callable[[], None]
    amount: int
    configuration: dict[str, int | float | str]


def measure(gpu: Gpu) -> list[Measurement]:
    """All of the above on ``gpu``."""
    cubins = {n: compile_kernel(probe_kernel("memory.cu", gpu.architecture.target, IN_FLIGHT=n)) for n in IN_FLIGHT}
    modules = {n: load(cubin) for n, cubin in cubins.items()}
    first = modules[IN_FLIGHT[0]]
    found = [_bandwidth(gpu, candidates) for candidates in _memory(gpu, modules)]
    found.append(_shared(gpu, first, cubins[IN_FLIGHT[0]]))
    return found + [_latency(gpu, timed) for timed in _launches(gpu, first)]


def _memory(gpu: Gpu, modules: dict[int, Any]) -> list[list[_Timed]]:
    """For copy, read and L2: every way to do it that the sweep tries."""
    import cupy

    free, _total = cupy.cuda.runtime.memGetInfo()
    size = min(BUFFER_BYTES, free // 8)
    source, target = (cupy.random.randint(0, 1 << 31, size // 4, cupy.int32) for _ in range(2))
    sink = cupy.zeros(gpu.sm_count * max(CTAS_PER_SM[:-1]) * THREADS, cupy.uint32)
    found: dict[str, list[_Timed]] = {"memory.copy": [], "memory.read": [], "l2.read": []}
    for in_flight, per_sm in product(IN_FLIGHT, CTAS_PER_SM):
        chunk = THREADS * in_flight * VECTOR_BYTES
        chunks, resident = size // chunk, int(gpu.l2_bytes * L2_SHARE) // chunk
        rounds = max(1, chunks // resident)
        grid = min(gpu.sm_count * per_sm, chunks)
        labels: dict[str, int | float | str] = {"in_flight": in_flight, "ctas": grid}

        def launch(
            name: str, *arguments: Any, module: Any = modules[in_flight], grid: int = grid
        ) -> Callable[[], None]:
            function = module.get_function(name)
            return lambda: function((grid,), (THREADS,), arguments)

        copied = chunks * chunk
        found["memory.copy"].append(
            _Timed(
                "memory.copy", launch("copy", target, source, np.int32(chunks)), 2 * copied, labels | {"bytes": copied}
            )
        )
        if per_sm == CTAS_PER_SM[-1]:
            continue  # reading leaves one word a thread: with a CTA a chunk that would be a stream of its own
        for name, n, turns in (("memory.read", chunks, 1), ("l2.read", resident, rounds)):
            work = launch("read", sink, source, np.int32(n), np.int32(turns))
            found[name].append(_Timed(name, work, n * chunk * turns, labels | {"bytes": n * chunk, "rounds": turns}))
    return list(found.values())


def sustained_copy(gpu: Gpu) -> Callable[[float], Measurement]:
    """``memory.copy`` in its fastest configuration, ready to be run back to back for as many seconds as asked."""
    cubins = {n: compile_kernel(probe_kernel("memory.cu", gpu.architecture.target, IN_FLIGHT=n)) for n in IN_FLIGHT}
    copies = _memory(gpu, {n: load(cubin) for n, cubin in cubins.items()})[0]
    timed = _fastest(gpu, copies)
    return lambda seconds: _judged(gpu, timed, gpu.sustained(lambda: gpu.timed(timed.work), seconds), "sustained")


def _bandwidth(gpu: Gpu, candidates: list[_Timed]) -> Measurement:
    timed = _fastest(gpu, candidates)
    return _judged(gpu, timed, gpu.sample(lambda: gpu.timed(timed.work), BUDGET_S), "burst")


def _fastest(gpu: Gpu, candidates: list[_Timed]) -> _Timed:
    def quick(timed: _Timed) -> float:
        timed.work()
        return timed.amount / min(gpu.timed(timed.work).wall_s for _ in range(3))

    return max(candidates, key=quick)


def _judged(gpu: Gpu, timed: _Timed, series: Series, regime: Regime) -> Measurement:
    """``unsupported`` when the reading is above what memory clock and bus width allow."""
    value = timed.amount / series.wall_s / 1e9
    peak = gpu.memory_peak_gb_s if timed.name.startswith("memory.") else None
    if peak is not None and value > peak * (1 + PEAK_TOLERANCE):
        reason = f"reading rejected: {value:.0f} GB/s where bus width and memory clock allow {peak:.0f}"
        return Measurement(name=timed.name, instruction="", unit="GB/s", origin="measured", unsupported=reason)
    fraction = value / peak if peak else None
    return record(timed.name, series, value, "GB/s", timed.configuration, peak_fraction=fraction, regime=regime)


def _shared(gpu: Gpu, module: Any, cubin: Cubin) -> Measurement:
    function = module.get_function("shared_read")
    function.max_dynamic_shared_size_bytes = gpu.shared_bytes
    operands = gpu.operands("int")
    gpu.launch(function, SHARED_THREADS, operands, SHARED_ITERATIONS)
    series = gpu.sample(lambda: gpu.launch(function, SHARED_THREADS, operands, SHARED_ITERATIONS), BUDGET_S)
    amount = SHARED_THREADS * VECTOR_BYTES * SHARED_LOADS * SHARED_ITERATIONS  # of one SM
    per_clock = amount / series.cycles
    peak = gpu.architecture.peak("shared.read")
    if peak is not None and per_clock > peak * (1 + PEAK_TOLERANCE):
        reason = f"reading rejected: {per_clock:.1f} bytes per clock and SM where the physical peak is {peak:g}"
        return Measurement(name="shared.read", instruction="", unit="GB/s", origin="measured", unsupported=reason)
    found = record(
        "shared.read",
        series,
        amount * gpu.sm_count / series.wall_s / 1e9,
        "GB/s",
        {"warps": SHARED_THREADS // 32},
        peak_fraction=per_clock / peak if peak else None,
    )
    try:
        gate = check(
            sass.disassemble(cubin.image)["shared_read"], r"LDS\.", SHARED_LOADS, overhead=3.0
        )  # two LOP3 a load
        facts: dict[str, Any] = {"instruction": gate.instruction, "sass_verified": gate.verified}
    except sass.DisassemblyError:
        facts = {}
    clocks = {
        "per_clk_per_sm": per_clock,
        "per_clk_unit": "B",
        "sm_clock_mhz": series.sm_clock_mhz,
        "throttle": series.throttle,
    }
    return found.model_copy(update=facts | clocks)


def _launches(gpu: Gpu, module: Any) -> list[_Timed]:
    import cupy

    empty = module.get_function("empty")

    def launch() -> None:
        for _ in range(LAUNCHES):
            empty((gpu.sm_count,), (128,), ())

    launch()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        launch()
        graph = stream.end_capture()
    current = cupy.cuda.get_current_stream()
    graph.launch(current)
    labels: dict[str, int | float | str] = {"launches": LAUNCHES}
    return [
        _Timed("launch.graph", lambda: graph.launch(current), LAUNCHES, labels),
        _Timed("launch.stream", launch, LAUNCHES, labels),
    ]


def _latency(gpu: Gpu, timed: _Timed) -> Measurement:
    timed.work()
    series = gpu.sample(lambda: gpu.timed(timed.work), BUDGET_S)
    return record(timed.name, series, series.wall_s / timed.amount * 1e6, "us", timed.configuration)


def record(
    name: str,
    series: Series,
    value: float,
    unit: str,
    configuration: dict[str, int | float | str],
    peak_fraction: float | None = None,
    regime: Regime = "burst",
) -> Measurement:
    """A figure that comes from wall time alone."""
    return Measurement(
        name=name,
        instruction="",
        value=value,
        unit=unit,
        peak_fraction=peak_fraction,
        samples=len(series.samples),
        discarded=series.discarded,
        spread=series.spread,
        temperature_c=series.conditions.temperature_c,
        power_w=series.conditions.power_w,
        throttle=sorted(series.conditions.throttle),
        configuration=configuration,
        regime=regime,
        origin="measured",
    )
