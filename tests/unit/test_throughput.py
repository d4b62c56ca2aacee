"""Measuring an instruction probe on a GPU that is simulated: rates, the plateau, rejected readings, regimes."""

from types import SimpleNamespace

import numpy as np
import pytest

from apex4_probe.architecture import architecture
from apex4_probe.kernels.compile import Cubin
from apex4_probe.microbench import throughput
from apex4_probe.microbench.clocks import Conditions
from apex4_probe.microbench.execution import Sample, Series
from apex4_probe.microbench.instructions import PROBES
from apex4_probe.microbench.sass_gate import Gate

CLOCK_HZ = 1.5e9
PROBE = next(p for p in PROBES if p.name == "mma.s8.m16n8k32")


class SimulatedGpu:
    """An SM that does ``rate`` MAC a clock once eight warps run, and half of it with four."""

    def __init__(self, rate: float) -> None:
        self.architecture = architecture("9.0")
        self.sm_count = 10
        self.rate = rate
        self.asked: list[tuple[str, bool]] = []

    def operands(self, _kind: str, zeros: bool = False) -> str:
        return "zeros" if zeros else "random"

    def function(self, cubin: Cubin) -> str:
        return cubin.kernel.name

    def launch(self, _function: str, threads: int, _operands: str, iterations: int) -> Sample:
        work = PROBE.work * (threads // 32) * 64 * iterations
        cycles = work / (self.rate if threads >= 256 else self.rate / 2)
        return Sample(cycles, cycles / CLOCK_HZ)

    def sample(self, once, _budget: float) -> Series:
        return Series(tuple(once() for _ in range(16)), Conditions(), max_sm_clock_mhz=1500)

    sustained = sample


@pytest.fixture(autouse=True)
def verified(monkeypatch):
    monkeypatch.setattr(throughput, "gate", lambda *_: Gate("IMMA.16832.S8.S8", True, False, 1.05))


def prepared(gpu: SimulatedGpu) -> throughput.PreparedProbe:
    configurations = PROBE.configurations(gpu.architecture)
    return throughput.prepare(gpu, PROBE, [(c, Cubin(c.kernel, b"", None, "")) for c in configurations])


def test_rate_per_clock_and_per_second():
    burst = prepared(SimulatedGpu(2730.0)).bursts()[0]
    assert burst.per_clk_per_sm == pytest.approx(2730)
    assert burst.value == pytest.approx(2730 * 2 * 10 * CLOCK_HZ / 1e12)  # two operations, ten SMs
    assert burst.sm_clock_mhz == pytest.approx(1500)
    assert burst.peak_fraction == pytest.approx(2730 / 4096)
    assert burst.unit == "TOPS"


def test_the_plateau_is_found_and_its_width_told():
    ready = prepared(SimulatedGpu(2730.0))
    assert ready.configuration.threads >= 256
    assert ready.plateau == "4 of 6 configurations"


def test_leading_probe_has_three_figures_and_sustained_is_apart():
    ready = prepared(SimulatedGpu(2730.0))
    found = [*ready.bursts(), *ready.sustained()]
    assert [(m.operands, m.regime) for m in found] == [("random", "burst"), ("zeros", "burst"), ("random", "sustained")]


@pytest.mark.parametrize(("rate", "accepted"), [(4096 * 1.019, True), (4096 * 1.021, False)])
def test_a_reading_above_the_physical_peak_is_refused(rate, accepted):
    burst = prepared(SimulatedGpu(rate)).bursts()[0]
    assert (burst.value is not None) is accepted
    if not accepted:
        assert "reading rejected" in burst.unsupported
        assert "4096" in burst.unsupported


def test_an_emulated_probe_is_labelled_and_not_explored_further(monkeypatch):
    monkeypatch.setattr(throughput, "gate", lambda *_: Gate("IMMA.16832.S8.S8", True, True, 200.0))
    ready = prepared(SimulatedGpu(100.0))
    found = [*ready.bursts(), *ready.sustained()]
    assert len(found) == 1
    assert found[0].emulated


def test_without_a_disassembler_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(throughput, "gate", lambda *_: None)
    burst = prepared(SimulatedGpu(2730.0)).bursts()[0]
    assert burst.sass_verified is None
    assert burst.emulated is None
    assert burst.instruction == ""


def test_sustained_leaves_out_what_heat_disturbed(monkeypatch):
    from apex4_probe.microbench.execution import Gpu

    now = iter(np.arange(0, 10, 0.1))
    hot = SimpleNamespace(
        between=lambda start, _end: Conditions(throttle=frozenset({"software_thermal"} if start < 0.8 else ()))
    )
    gpu = Gpu.__new__(Gpu)
    gpu._sampler, gpu.max_sm_clock_mhz = hot, None
    monkeypatch.setattr("time.monotonic", lambda: 0.0)

    def once() -> Sample:
        start = float(next(now))
        return Sample(1.0, 1.0, start=start, end=start + 0.1)

    series = gpu.sustained(once, duration_s=1.0)
    assert series.discarded == 3
    assert [round(s.start, 1) for s in series.samples] == [0.8, 0.9]
