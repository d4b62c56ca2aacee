"""The whole of what ``run`` measures, in order, on a simulated GPU: bursts before sustained rates, nothing left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from apex4_probe.architecture import architecture
from apex4_probe.deployment import Measurement
from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import Cubin, Kernel
from apex4_probe.microbench import bandwidth, co_issue, host_link, suite
from apex4_probe.microbench.clocks import Conditions
from apex4_probe.microbench.execution import Sample, Series

CLOCK_HZ = 1.5e9


class SimulatedGpu:
    """Takes a million cycles an iteration, whatever is asked of it, and remembers what that was."""

    compute_capability = "9.0"

    def __init__(self, _index: int) -> None:
        self.architecture = architecture(self.compute_capability)
        self.sm_count = 132
        self.regimes: list[str] = []

    def __enter__(self) -> SimulatedGpu:
        opened.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def operands(self, _kind: str, zeros: bool = False) -> str:
        return "zeros" if zeros else "random"

    def function(self, cubin: Cubin) -> str:
        return cubin.kernel.name

    def conditions(self, _since: float) -> Conditions:
        return Conditions()

    def launch(self, _name: str, _threads: int, _data: str, iterations: int, extra: Sequence[int] = (0,)) -> Sample:
        cycles = 1e6 * iterations * (1 + sum(extra))
        return Sample(cycles, cycles / CLOCK_HZ, cycles)

    def sample(self, once: Callable[[], Sample], _budget_s: float) -> Series:
        self.regimes.append("burst")
        return Series(tuple(once() for _ in range(16)), Conditions(), max_sm_clock_mhz=1500)

    def sustained(self, once: Callable[[], Sample], _duration_s: float) -> Series:
        self.regimes.append("sustained")
        return Series((once(),), Conditions(), max_sm_clock_mhz=1500, discarded=3)


opened: list[SimulatedGpu] = []


def compiled(kernels: Sequence[Kernel], _done: Callable[[int, int], None] = lambda _n, _of: None) -> list[Cubin]:
    return [Cubin(kernel, b"", None, "") for kernel in kernels]


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    opened.clear()
    monkeypatch.setattr(suite, "Gpu", SimulatedGpu)
    monkeypatch.setattr(suite, "compile_all", compiled)
    monkeypatch.setattr(co_issue, "compile_all", compiled)
    monkeypatch.setattr(sass, "disassemble_all", lambda _images: None)
    monkeypatch.setattr(host_link, "measure", lambda _gpu: [figure("host.to_device")])
    monkeypatch.setattr(bandwidth, "measure", lambda _gpu: [figure("memory.copy"), figure("launch.stream", spread=0.5)])

    def missing(_image: bytes) -> Any:
        raise sass.DisassemblyError("no nvdisasm found")

    monkeypatch.setattr(sass, "disassemble", missing)
    monkeypatch.setattr(sass, "disassembler", lambda: missing(b""))


def figure(name: str, spread: float = 0.01) -> Measurement:
    return Measurement(name=name, instruction="", unit="GB/s", value=1.0, spread=spread, origin="measured")


@pytest.mark.parametrize("full", [False, True])
def test_everything_is_measured_and_bursts_come_first(full: bool) -> None:
    steps: list[tuple[str, float]] = []
    found = suite.measure(0, full=full, progress=lambda what, share: steps.append((what, share)))
    (gpu,) = opened
    assert gpu.regimes == sorted(gpu.regimes), "burst sorts before sustained"
    names = {m.name for m in found.measurements}
    assert {"wgmma.s8.m64n256k32.ss", "mma.s4.m16n8k64", "ffma", "i2f", "memory.copy", "host.to_device"} <= names
    sustained = {m.name for m in found.measurements if m.regime == "sustained"}
    assert {"wgmma.s8.m64n256k32.ss", "wgmma.f16.m64n256k16.ss", "mma.s8.m16n8k32"} <= sustained
    expected = sum(len(curve.ks) for curve in co_issue.curves(gpu.architecture, full))
    assert len(found.co_issue) == expected
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert (shares[0], steps[-1]) == (0.0, ("measured", 1.0))
    assert any("sustained" in what for what, _ in steps)


def test_what_the_architecture_lacks_is_a_row_with_its_reason() -> None:
    found = suite.measure(0)
    refused = {m.name: m.unsupported for m in found.measurements if m.unsupported}
    assert "before Blackwell" in (refused["mma.mxf4.m16n8k64"] or "")


def test_warnings_name_what_disturbed_the_run_and_only_that() -> None:
    warnings = " ".join(suite.measure(0).warnings)
    assert "no nvdisasm found" in warnings
    assert "samples were taken while heat or a power brake slowed the GPU" in warnings
    assert "launch.stream" not in warnings  # the host's latency is never steady


def test_measuring_again_takes_only_what_was_named() -> None:
    found = suite.remeasure(0, {"mma.s8.m16n8k32", "memory.copy", "host.to_device"})
    assert {m.name for m in found} == {"mma.s8.m16n8k32", "memory.copy", "host.to_device"}
    assert {m.regime for m in found if m.name == "mma.s8.m16n8k32"} == {"burst", "sustained"}


def test_every_probe_has_one_plain_sentence() -> None:
    for probe in suite.PROBES:
        assert len(suite.describe(probe.name)) > 10
    assert suite.describe("memory.copy") and suite.describe("host.from_device")
    assert suite.describe("nonsense") == ""
