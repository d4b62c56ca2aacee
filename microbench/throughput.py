"""Measuring an instruction probe: sweep, then bursts from idle, and for the leading ones the sustained rate.

Warps and instruction-level parallelism are swept; the best configuration is reported, with how many others reach the
same: a lone peak would be no plateau. Burst and sustained are two figures. Bursts of all probes come first and the
sustained ones last: two seconds at the power cap heat a card enough to slow the bursts that follow by several per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from apex4_probe.deployment import Measurement
from apex4_probe.kernels.compile import Cubin
from apex4_probe.microbench.execution import Gpu, Sample, Series
from apex4_probe.microbench.instructions import PEAK_TOLERANCE, Configuration, InstructionProbe, gate, unsupported
from apex4_probe.microbench.sass_gate import Gate

PLATEAU = 0.01  # configurations this near to the best are on the plateau
TARGET_S = 1.5e-3  # of one launch: a thousand times its latency, a twentieth of the power controller's reaction
BURST_BUDGET_S = 0.08  # of samples, the pauses between bursts not counted
SUSTAINED_S = 2.0  # of back-to-back launches; the first half lets the clock settle under the power cap


@dataclass(frozen=True)
class PreparedProbe:
    """A probe in its best configuration, loaded, with the number of iterations that fills a launch.

    ``found``: what its machine code says, None without a disassembler. ``plateau``: how wide the plateau is, in words.
    """

    gpu: Gpu
    probe: InstructionProbe
    configuration: Configuration
    function: Any
    iterations: int
    found: Gate | None
    plateau: str

    def bursts(self) -> list[Measurement]:
        """On random operands; leading probes also on zeros."""
        found = [self._measure("random", "burst")]
        if self.leads:
            found.append(self._measure("zeros", "burst"))
        return found

    def sustained(self, duration_s: float = SUSTAINED_S) -> list[Measurement]:
        """At the clock that the power cap leaves; leading probes only."""
        return [self._measure("random", "sustained", duration_s)] if self.leads else []

    @property
    def leads(self) -> bool:
        """Whether it is also measured on zeros, and sustained: not where the instruction is emulated."""
        return self.probe.leading and not (self.found and self.found.emulated)

    def _measure(
        self,
        operands: Literal["random", "zeros"],
        regime: Literal["burst", "sustained"],
        duration_s: float = SUSTAINED_S,
    ) -> Measurement:
        data = self.gpu.operands(self.probe.kind, zeros=operands == "zeros")

        def once() -> Sample:
            return self.gpu.launch(self.function, self.configuration.threads, data, self.iterations)

        series = self.gpu.sample(once, BURST_BUDGET_S) if regime == "burst" else self.gpu.sustained(once, duration_s)
        return self._record(series).model_copy(update={"operands": operands, "regime": regime})

    def _record(self, series: Series) -> Measurement:
        """``unsupported`` when the reading is above what the silicon can do."""
        work = self.probe.work_per_iteration(self.configuration, self.gpu.architecture) * self.iterations  # of one SM
        per_clock = work / series.cycles
        peak = self.gpu.architecture.peak(self.probe.name)
        if peak is not None and per_clock > peak * (1 + PEAK_TOLERANCE):
            reason = f"reading rejected: {per_clock:.1f} per clock and SM where the physical peak is {peak:g}"
            return unsupported(self.probe, reason)
        found = self.found
        return Measurement(
            name=self.probe.name,
            instruction=found.instruction if found else "",
            emulated=found.emulated if found else None,
            sass_verified=found.verified if found else None,
            value=work * self.gpu.sm_count / series.wall_s * self.probe.operations / 1e12,
            unit=self.probe.unit,
            per_clk_per_sm=per_clock,
            per_clk_unit="MAC" if self.probe.is_mma else "instr",
            peak_fraction=per_clock / peak if peak else None,
            samples=len(series.samples),
            discarded=series.discarded,
            spread=series.spread,
            sm_clock_mhz=series.sm_clock_mhz,
            temperature_c=series.conditions.temperature_c,
            power_w=series.conditions.power_w,
            throttle=series.throttle,
            configuration={
                **dict(self.configuration.labels),
                "plateau": self.plateau,
                **({"sass_per_operation": round(found.per_operation, 3)} if found else {}),
                **({"sass": found.why} if found and found.why else {}),
            },
            origin="measured",
        )


def prepare(gpu: Gpu, probe: InstructionProbe, compiled: Sequence[tuple[Configuration, Cubin]]) -> PreparedProbe:
    """Load every configuration, time each once, keep the best."""
    operands = gpu.operands(probe.kind)
    swept = []
    for configuration, cubin in compiled:
        function = gpu.function(cubin)
        iterations = _iterations(gpu, function, configuration.threads, operands)
        cycles = gpu.launch(function, configuration.threads, operands, iterations).cycles
        rate = probe.work_per_iteration(configuration, gpu.architecture) * iterations / cycles
        swept.append((rate, configuration, cubin, function, iterations))
    best, configuration, cubin, function, iterations = max(swept, key=lambda entry: entry[0])
    on_plateau = sum(rate >= best * (1 - PLATEAU) for rate, *_ in swept)
    plateau = f"{on_plateau} of {len(swept)} configurations"
    found = gate(probe, configuration, cubin, gpu.architecture)
    return PreparedProbe(gpu, probe, configuration, function, iterations, found, plateau)


def _iterations(gpu: Gpu, function: Any, threads: int, operands: Any) -> int:
    """As many as fill TARGET_S; the first launch also loads the code."""
    gpu.launch(function, threads, operands, 8)
    few, many = (gpu.launch(function, threads, operands, n).wall_s for n in (16, 144))
    return max(16, round(TARGET_S / max((many - few) / 128, 1e-8)))
