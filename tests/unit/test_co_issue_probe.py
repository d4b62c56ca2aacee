"""The co-issue arithmetic on a simulated SM: ratios, overlap, baseline, the slowest SM."""

from __future__ import annotations

import pytest

from apex4_probe.architecture import architecture
from apex4_probe.deployment import CoIssue
from apex4_probe.kernels.compile import Cubin
from apex4_probe.microbench import co_issue
from apex4_probe.microbench.clocks import Conditions
from apex4_probe.microbench.co_issue import CoIssueProbe, Curve, Loop
from apex4_probe.microbench.execution import Sample

MMA, WORK = 1000.0, 300.0  # cycles an iteration: the Tensor Core, and one pass of CUDA-core work
CLOCK_HZ = 1.5e9


class SimulatedGpu:
    """``hidden``: cycles of work behind the Tensor Core. On the slowest SM everything takes ``lag`` times as long."""

    def __init__(self, hidden: float, lag: float = 1.0) -> None:
        self.architecture = architecture("9.0")
        self.hidden, self.lag = hidden, lag

    def operands(self, _kind: str) -> None:
        return None

    def function(self, cubin: Cubin) -> str:
        return cubin.kernel.name

    def conditions(self, _since: float) -> Conditions:
        return Conditions()

    def launch(self, name: str, _threads: int, _operands: None, iterations: int, extra: tuple[int]) -> Sample:
        work = extra[0] * WORK
        cycles = MMA + max(0.0, work - self.hidden) if "WITH_MMA=1" in name else work
        return Sample(cycles * iterations, cycles * iterations / CLOCK_HZ, cycles * self.lag * iterations)


def measured(gpu: SimulatedGpu, ks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> list[CoIssue]:
    monkeypatch.setattr(co_issue, "verify", lambda *_: True)
    curve = Curve(Loop("s8"), "same_warps", "ffma", ks)
    kernels = [curve.kernel("sm_90a", True), curve.kernel("sm_90a", False), curve.free_running.kernel("sm_90a", True)]
    cubins = {kernel: Cubin(kernel, b"", None, "") for kernel in kernels}
    return CoIssueProbe(gpu, cubins).measure(curve)  # type: ignore[arg-type]  # simulated


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        (0.0, [(1.0, None), (1.3, 0.0), (2.2, 0.0)]),  # nothing hides: the sum
        (200.0, [(1.0, None), (1.1, 2 / 3), (2.0, 0.2)]),  # at k = 4 the MMA is the shorter
        (1e9, [(1.0, None), (1.0, 1.0), (1.0, 1.2)]),
    ],
)
def test_ratio_and_overlap(hidden: float, expected: list, monkeypatch: pytest.MonkeyPatch) -> None:
    records = measured(SimulatedGpu(hidden), (0, 1, 4), monkeypatch)
    for record, (ratio, overlap) in zip(records, expected, strict=True):
        assert record.cycles_over_mma_alone == pytest.approx(ratio, rel=1e-6)
        assert record.overlap == (None if overlap is None else pytest.approx(overlap, rel=1e-6))
        assert record.wall_over_mma_alone == pytest.approx(ratio, rel=1e-6)
    assert [r.cuda_over_mma_alone for r in records] == [None, pytest.approx(0.3), pytest.approx(1.2)]


def test_the_slowest_sm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    records = measured(SimulatedGpu(0.0, lag=1.25), (1,), monkeypatch)
    assert records[0].sm_spread == pytest.approx(0.25)
    assert records[0].cycles_over_mma_alone == pytest.approx(1.3)  # of one SM's own baseline, lag over lag


def test_every_record_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = measured(SimulatedGpu(0.0), (2,), monkeypatch)
    assert (record.mma, record.shape, record.placement, record.instruction, record.k) == (
        "mma.s8",
        "m16n8k32",
        "same_warps",
        "ffma",
        2,
    )
    assert record.samples == co_issue.SAMPLES
    assert record.sm_clock_mhz == pytest.approx(1500)
    assert record.spread == 0
    assert record.sass_verified
    assert record.origin == "measured"
