"""The NVML sampler: what a window of readings says, and which throttle reasons disturb a sample."""

import time
from types import SimpleNamespace

import pytest

from apex4_probe.microbench.clocks import ClockSampler, Conditions, Reading, reason_names
from apex4_probe.microbench.execution import Sample, Series


@pytest.mark.parametrize(
    ("mask", "names", "disturbed"),
    [
        (0x0, set(), False),
        (0x1, set(), False),  # idle
        (0x4, {"power_cap"}, False),  # kept and labelled
        (0x8, {"hardware_slowdown"}, True),
        (0x20, {"software_thermal"}, True),
        (0x40 | 0x8, {"hardware_thermal", "hardware_slowdown"}, True),
        (0x80, {"power_brake"}, True),
    ],
)
def test_reasons(mask, names, disturbed):
    assert reason_names(mask) == names
    assert Conditions(throttle=reason_names(mask)).disturbed is disturbed


def test_window_takes_the_reading_before_and_those_within():
    sampler = ClockSampler(None, None)
    sampler._readings = [
        Reading(1.0, 40.0, 100.0, frozenset({"power_cap"})),
        Reading(2.0, 50.0, 200.0, frozenset()),
        Reading(3.0, 60.0, 300.0, frozenset({"hardware_thermal"})),
        Reading(9.0, 90.0, 900.0, frozenset({"power_brake"})),
    ]
    conditions = sampler.between(2.5, 3.5)
    assert (conditions.temperature_c, conditions.power_w) == (55.0, 250.0)
    assert conditions.throttle == {"hardware_thermal"}


def test_without_nvml_all_is_unknown():
    with ClockSampler(None, None) as sampler:
        assert sampler.between(0, time.monotonic()) == Conditions()


def test_sampler_reads_in_the_background():
    nvml = SimpleNamespace(temperature_c=lambda _h: 41.0, power_w=lambda _h: None, clock_event_reasons=lambda _h: 0x4)
    start = time.monotonic()
    with ClockSampler(nvml, "handle") as sampler:
        deadline = start + 5
        while sampler.between(start, time.monotonic()) == Conditions() and time.monotonic() < deadline:
            time.sleep(0.005)
        conditions = sampler.between(start, time.monotonic())
    assert conditions == Conditions(41.0, None, frozenset({"power_cap"}))


@pytest.mark.parametrize(
    ("clock", "reasons", "expected"),
    [
        (1975, {"power_cap"}, []),  # a reason that lowered nothing belongs to what ran before
        (1700, {"power_cap"}, ["power_cap"]),
        (1700, set(), ["clock_below_maximum"]),  # slowed before NVML knew why
    ],
)
def test_throttle_needs_a_lower_clock(clock, reasons, expected):
    sample = Sample(cycles=clock * 1e6 * 1e-3, wall_s=1e-3)
    series = Series((sample,), Conditions(throttle=frozenset(reasons)), max_sm_clock_mhz=1980)
    assert series.sm_clock_mhz == pytest.approx(clock)
    assert series.throttle == expected
