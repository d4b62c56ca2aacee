"""`apex4-probe run` on a real GPU: its time, its repeatability, and what an H100 or H200 must show."""

import pytest

from apex4_probe.architecture import architecture
from apex4_probe.datasheets import for_device
from apex4_probe.deployment import CoIssue, Measurement, Profile

# Two runs on one card: cycles are exact, power and heat move the clock.
SAME_PER_CLOCK, SAME_PER_SECOND, SAME_RHO = 0.005, 0.06, 0.01


@pytest.fixture
def hopper(full: Profile) -> Profile:
    if full.device.compute_capability != "9.0" or full.device.mig:
        pytest.skip("the figures are those of a whole H100 or H200")
    return full


def figure(profile: Profile, name: str, operands: str | None = "random", regime: str = "burst") -> Measurement:
    return next(m for m in profile.measurements if (m.name, m.operands, m.regime) == (name, operands, regime))


def point(profile: Profile, mma: str, shape: str, placement: str, instruction: str, k: int) -> CoIssue:
    key = (mma, shape, placement, instruction, k)
    return next(c for c in profile.co_issue if (c.mma, c.shape, c.placement, c.instruction, c.k) == key)


def test_time(runs):
    assert runs["cold"][1] <= 150
    assert runs["warm"][1] <= 90
    assert runs["full"][1] <= 300


def test_two_runs_agree(runs):
    first, second = runs["cold"][0], runs["warm"][0]
    tensor = [m for m in first.measurements if m.name.startswith(("mma.", "wgmma.")) and m.value is not None]
    assert len(tensor) >= 5
    for m in tensor:
        again = next(o for o in second.measurements if (o.name, o.operands, o.regime) == (m.name, m.operands, m.regime))
        assert again.per_clk_per_sm == pytest.approx(m.per_clk_per_sm, rel=SAME_PER_CLOCK), m.name
        assert again.value == pytest.approx(m.value, rel=SAME_PER_SECOND), m.name
    assert second.rho["int8"].per_clock == pytest.approx(first.rho["int8"].per_clock, rel=SAME_RHO)


def test_every_figure_can_be_traced(full: Profile):
    for m in full.measurements:
        assert m.origin == "measured"
        if m.unsupported:
            assert m.value is None
            continue
        assert m.unit
        assert m.samples >= 5
        assert m.spread is not None
        if m.per_clk_per_sm is not None:
            assert m.sm_clock_mhz
            assert m.sass_verified
            assert m.instruction
    for c in full.co_issue:
        assert c.origin == "measured"
        assert c.sass_verified
        assert c.samples >= 5
        assert c.sm_clock_mhz
        assert (c.overlap is None) == (c.k == 0)


def test_no_reading_above_the_physical_peak(full: Profile):
    facts = architecture(full.device.compute_capability)
    for m in full.measurements:
        peak = facts.peak(m.name)
        if peak and m.per_clk_per_sm:
            assert m.per_clk_per_sm <= peak * 1.02, m.name


def test_hopper_throughput(hopper: Profile):
    assert figure(hopper, "mma.s8.m16n8k32").value >= 1200
    assert figure(hopper, "ffma").value >= 60
    assert figure(hopper, "i2f").per_clk_per_sm == pytest.approx(64, rel=0.05)
    assert figure(hopper, "wgmma.s8.m64n256k32.ss").per_clk_per_sm >= 4000
    assert figure(hopper, "wgmma.s8.m64n256k32.rs").per_clk_per_sm >= 4000
    assert figure(hopper, "wgmma.f16.m64n256k16.ss").per_clk_per_sm >= 2000
    listed = for_device(hopper.device.name).value("memory_gb_s")
    assert figure(hopper, "memory.copy", None).value >= 0.85 * listed


def test_hopper_emulates_int4_and_mma_sync_fp8(hopper: Profile):
    for m in hopper.measurements:
        if m.name.startswith("mma.s4") or m.name == "mma.e4m3.m16n8k32":
            assert m.emulated, m.name
        elif m.value is not None and m.emulated is not None:
            assert not m.emulated, m.name
    assert not hopper.rho["int4"].usable
    assert "emulated" in hopper.rho["int4"].reason
    assert all(layer.format != "w4a4" for layer in hopper.layers)


def test_hopper_co_issue(hopper: Profile):
    wide = ("wgmma.s8", "m64n256k32.rs")
    assert point(hopper, *wide, "at_issue", "ffma", 1).cycles_over_mma_alone <= 1.03
    assert point(hopper, *wide, "after_complete", "ffma", 1).cycles_over_mma_alone >= 1.35
    assert point(hopper, *wide, "other_warps", "ffma", 1).cycles_over_mma_alone <= 1.03
    assert point(hopper, *wide, "other_warps", "nop", 2).cycles_over_mma_alone <= 1.03
    assert point(hopper, *wide, "at_issue", "nop", 2).cycles_over_mma_alone <= 1.03
    assert point(hopper, "mma.s8", "m16n8k32", "same_warps", "ffma", 1).cycles_over_mma_alone >= 1.10
