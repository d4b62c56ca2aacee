"""What stops a profile from being used on a machine, what only makes it doubtful, and what counts as drift."""

from __future__ import annotations

from typing import Any

import pytest
from sample_profile import predicted_profile, sample_device, sample_environment, sample_measurements, sample_profile

from apex4_probe import __version__
from apex4_probe.deployment import Measurement, Profile
from apex4_probe.errors import ProfileError
from apex4_probe.profile_file import seal
from apex4_probe.verification import compare, drift, ensure_usable

HERE = (sample_device(), sample_environment())


def profile(**changes: Any) -> Profile:
    return seal(sample_profile(tool_version=__version__, **changes))


def test_the_machine_it_was_written_on() -> None:
    result = compare(profile(), *HERE)
    assert (result.hard, result.soft, result.usable) == ((), (), True)
    assert ensure_usable(profile(), *HERE) == ()


@pytest.mark.parametrize(
    ("device", "field", "in_profile", "here"),
    [
        ({"compute_capability": "8.0"}, "device.compute_capability", "9.0", "8.0"),
        ({"name": "NVIDIA H200"}, "device.name", "NVIDIA H100 80GB HBM3", "NVIDIA H200"),
        ({"mig": "1g.10gb"}, "device.mig", "the whole GPU", "1g.10gb"),
        ({"sm_count": 114}, "device.sm_count", "132", "114"),
    ],
)
def test_hard(device: dict[str, Any], field: str, in_profile: str, here: str) -> None:
    machine = sample_device(**device)
    result = compare(profile(), machine, sample_environment())
    assert [(item.field, item.profile_value, item.machine_value) for item in result.hard] == [(field, in_profile, here)]
    assert not result.usable
    assert result.soft == ()
    with pytest.raises(ProfileError) as caught:
        ensure_usable(profile(), machine, sample_environment())
    assert f"{field} is {in_profile} in the profile and {here} here" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slice_of_another_shape() -> None:
    slice_profile = profile(device=sample_device(mig="1g.10gb", sm_count=16))
    result = compare(slice_profile, sample_device(mig="2g.20gb", sm_count=32), sample_environment())
    assert [item.field for item in result.hard] == ["device.mig", "device.sm_count"]
    assert compare(slice_profile, sample_device(mig="1g.10gb", sm_count=16), sample_environment()).usable


def test_every_hard_mismatch_is_named() -> None:
    machine = sample_device(name="NVIDIA A100-SXM4-80GB", compute_capability="8.0", sm_count=108)
    with pytest.raises(ProfileError) as caught:
        ensure_usable(profile(), machine, sample_environment())
    for part in (
        "device.compute_capability is 9.0 in the profile and 8.0 here",
        "device.name is NVIDIA H100 80GB HBM3 in the profile and NVIDIA A100-SXM4-80GB here",
        "device.sm_count is 132 in the profile and 108 here",
        "apex4-probe run",
    ):
        assert part in str(caught.value)


def test_contents_changed_after_writing() -> None:
    sealed = profile()
    changed = sealed.model_copy(update={"origin": "measured", "notes": ["forged"]})
    (mismatch,) = compare(changed, *HERE).hard
    assert (mismatch.field, mismatch.profile_value) == ("checksum", sealed.checksum)
    assert mismatch.machine_value == seal(changed).checksum != sealed.checksum
    assert compare(changed.model_copy(update={"checksum": ""}), *HERE).hard == ()  # never written: nothing to break


def test_schema_versions() -> None:
    (mismatch,) = compare(profile(schema_version="2.3"), *HERE).hard
    assert (mismatch.field, mismatch.profile_value, mismatch.machine_value) == ("schema_version", "2.3", "1.2")
    newer_minor = profile(schema_version="1.7").model_copy(update={"checksum": "covers fields that are ignored here"})
    assert compare(newer_minor, *HERE).hard == ()


@pytest.mark.parametrize(
    ("device", "environment", "field", "in_profile", "here"),
    [
        ({}, {"driver": "575.51"}, "environment.driver", "580.95.05", "575.51"),
        ({}, {"cuda_driver": "13.1"}, "environment.cuda_driver", "13.0", "13.1"),
        ({"power_limit_w": 629.0}, {}, "device.power_limit_w", "700", "629"),
        ({"power_limit_w": 771.0}, {}, "device.power_limit_w", "700", "771"),
        ({"ecc": False}, {}, "device.ecc", "True", "False"),
        ({"memory_mib": 65000}, {}, "device.memory_mib", "81559", "65000"),
    ],
)
def test_soft(device: dict[str, Any], environment: dict[str, Any], field: str, in_profile: str, here: str) -> None:
    result = compare(profile(), sample_device(**device), sample_environment(**environment))
    assert [(item.field, item.profile_value, item.machine_value) for item in result.soft] == [(field, in_profile, here)]
    assert result.usable
    assert ensure_usable(profile(), sample_device(**device), sample_environment(**environment)) == result.soft


@pytest.mark.parametrize(
    ("device", "environment"),
    [
        ({"power_limit_w": 630.0}, {}),
        ({"power_limit_w": 770.0}, {}),
        ({"power_limit_w": None, "ecc": None, "memory_mib": None}, {"driver": None, "cuda_driver": None}),
        ({"memory_mib": 81000, "max_sm_clock_mhz": 1755.0}, {"python": "3.12.1", "torch": None}),
    ],
)
def test_no_mismatch(device: dict[str, Any], environment: dict[str, Any]) -> None:
    assert compare(profile(), sample_device(**device), sample_environment(**environment)).soft == ()


def test_another_version_of_the_tool() -> None:
    (mismatch,) = compare(seal(sample_profile(tool_version="0.0.1")), *HERE).soft
    assert (mismatch.field, mismatch.profile_value, mismatch.machine_value) == ("tool_version", "0.0.1", __version__)


def test_a_predicted_profile_is_usable_and_says_what_it_is() -> None:
    result = compare(seal(predicted_profile(tool_version=__version__)), *HERE)
    assert [(item.field, item.profile_value) for item in result.soft] == [("origin", "predicted")]
    assert "apex4-probe run measures them here" in result.soft[0].why


def figure(
    value: float | None = 1000.0, per_clk: float | None = None, spread: float = 0.004, **changes: Any
) -> Measurement:
    fields: dict[str, Any] = {
        "name": "mma.s8.m16n8k32",
        "instruction": "IMMA.16832.S8.S8",
        "operands": "random",
        "regime": "burst",
        "value": value,
        "unit": "TOPS",
        "per_clk_per_sm": per_clk,
        "per_clk_unit": "MAC" if per_clk else None,
        "spread": spread,
        "origin": "measured",
    }
    return Measurement.model_validate({**fields, **changes})


@pytest.mark.parametrize(
    ("now", "spreads", "significant", "why"),
    [
        (
            1059.0,
            (0.004, 0.004),
            False,
            "5.9% above the profile, within the 6.0% that two runs on one card may differ by",
        ),
        (1061.0, (0.004, 0.004), True, "6.1% above the profile, more than the 6.0% that two runs on one card may"),
        (939.0, (0.0, 0.0), True, "6.1% below the profile, more than the 6.0%"),
        (910.0, (0.12, 0.08), False, "9.0% below the profile, within the 10.0% that both spreads allow"),
        (890.0, (0.12, 0.08), True, "11.0% below the profile, more than the 10.0% that both spreads allow"),
    ],
)
def test_drift_per_second(now: float, spreads: tuple[float, float], significant: bool, why: str) -> None:
    (found,) = drift([figure(1000.0, spread=spreads[0])], [figure(now, spread=spreads[1])])
    assert (found.name, found.unit) == ("mma.s8.m16n8k32 random burst", "TOPS")
    assert (found.before, found.now, found.ratio) == (1000.0, now, now / 1000)
    assert found.significant is significant
    assert found.why.startswith(why)


@pytest.mark.parametrize(("now", "significant"), [(2706.0, False), (2682.0, False), (2676.0, True), (2736.0, True)])
def test_drift_per_clock_shows_what_the_clock_hides(now: float, significant: bool) -> None:
    """The same rate at a lower clock is the card's mood; fewer operations a clock are not."""
    per_second, per_clock = drift([figure(1239.0, 2706.0)], [figure(1200.0, now)])
    assert (per_second.unit, per_second.significant) == ("TOPS", False)
    assert (per_clock.unit, per_clock.before, per_clock.now) == ("MAC/clk/SM", 2706.0, now)
    assert per_clock.significant is significant


def test_drift_compares_like_with_like() -> None:
    before = [figure(1000.0), figure(1200.0, operands="zeros"), figure(900.0, regime="sustained")]
    now = [figure(880.0, regime="sustained"), figure(1210.0, operands="zeros"), figure(5.0, name="ffma", operands=None)]
    assert [(found.name, found.before, found.now) for found in drift(before, now)] == [
        ("mma.s8.m16n8k32 random sustained", 900.0, 880.0),
        ("mma.s8.m16n8k32 zeros burst", 1200.0, 1210.0),
    ]
    assert drift([figure(origin="datasheet")], [figure()]) == []
    assert drift([figure()], [figure(origin="predicted")]) == []


def test_what_one_side_cannot_do_is_a_change() -> None:
    refused = figure(None, unsupported="SASS holds no such instruction")
    (lost,) = drift([figure()], [refused])
    assert (lost.before, lost.now, lost.ratio, lost.significant) == (1000.0, None, None, True)
    assert lost.why == "unsupported now: SASS holds no such instruction"
    (gained,) = drift([refused], [figure()])
    assert (gained.before, gained.now, gained.significant) == (None, 1000.0, True)
    assert drift([refused], [refused]) == []


def test_units_and_zeros_that_no_ratio_spans() -> None:
    (other_unit,) = drift([figure(unit="TFLOPS")], [figure()])
    assert (other_unit.ratio, other_unit.significant, other_unit.why) == (None, True, "the profile has it in TFLOPS")
    (from_zero,) = drift([figure(0.0)], [figure()])
    assert (from_zero.ratio, from_zero.significant) == (None, True)


def test_a_profile_does_not_drift_from_itself() -> None:
    figures = sample_measurements()
    found = drift(figures, figures)
    assert len(found) == sum(1 + (f.per_clk_per_sm is not None) for f in figures if f.value is not None)
    assert not any(item.significant for item in found)
    assert {item.ratio for item in found} == {1.0}
