"""The profiles that ship: readable, measured, and the nearest one found by rule. Their exact figures are not tested."""

from __future__ import annotations

import pytest

from apex4_probe import shipped
from apex4_probe.deployment import Profile
from apex4_probe.kernels import catalogue
from apex4_probe.overlap import PROXIES, carry_over
from apex4_probe.rates import Rates


def like(compute_capability: str, name: str, mmas: tuple[str, ...]) -> Profile:
    """The first shipped profile, passed off as another GPU's that has co-issue points of ``mmas`` alone."""
    first = shipped.shipped_profiles()[0]
    device = first.device.model_copy(update={"compute_capability": compute_capability, "name": name})
    points = [point for point in first.co_issue if point.mma in mmas]
    return first.model_copy(update={"device": device, "co_issue": points})


def test_every_shipped_profile_was_measured_in_full_and_is_read_once() -> None:
    profiles = shipped.shipped_profiles()
    assert "NVIDIA H100 80GB HBM3" in {profile.device.name for profile in profiles}
    for profile in profiles:
        assert (profile.origin, profile.provenance.mode) == ("measured", "full")
        assert any(point.origin == "measured" for point in profile.co_issue)
    assert shipped.shipped_profiles() is profiles


def test_kernels_that_a_shipped_profile_chose_are_in_the_catalogue() -> None:
    """Whoever takes a tile out of the catalogue must measure again: ``linear`` refuses a profile that names it."""
    chosen = [kernel for profile in shipped.shipped_profiles() for table in profile.kernels for kernel in table.kernels]
    assert chosen
    for kernel in chosen:
        assert catalogue.tile_named(catalogue.by_name(kernel.variant), kernel.tile).name == kernel.tile


@pytest.mark.parametrize("family", ["mma", "wgmma"])
@pytest.mark.parametrize("strategy", PROXIES)
def test_a_shipped_hopper_has_a_point_for_every_strategy(strategy: str, family: shipped.Family) -> None:
    h100 = shipped.nearest("9.0", family)
    assert h100 is not None
    found = carry_over(strategy, "s8", family, Rates.of(h100.device, h100.measurements))
    assert found is not None and found.instruction == PROXIES[strategy][0][0]


@pytest.mark.parametrize(
    ("compute_capability", "family", "device"),
    [
        ("8.0", "mma", "A"),  # the same
        ("8.6", "mma", "B"),
        ("8.9", "mma", "B"),  # the nearest minor version
        ("8.7", "mma", "B"),
        ("7.5", "mma", "B"),  # minor 5 is nearer to 6 than to 0
        ("9.0", "mma", "C"),
        ("10.0", "mma", "C"),
        ("12.0", "mma", "C"),
        ("8.0", "wgmma", "C"),  # the only one with wgmma
    ],
)
def test_the_nearest_is_the_same_compute_capability_then_major_then_minor(
    compute_capability: str, family: shipped.Family, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = (like("9.0", "C", ("mma.s8", "wgmma.s8")), like("8.6", "B", ("mma.s8",)), like("8.0", "A", ("mma.s8",)))
    monkeypatch.setattr(shipped, "shipped_profiles", lambda: profiles)
    found = shipped.nearest(compute_capability, family)
    assert found is not None and found.device.name == device


def test_predicted_points_and_none_at_all_are_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    only = like("8.0", "A", ("mma.s8",))
    predicted = [point.model_copy(update={"origin": "predicted"}) for point in only.co_issue]
    monkeypatch.setattr(shipped, "shipped_profiles", lambda: (only.model_copy(update={"co_issue": predicted}),))
    assert shipped.nearest("8.0", "mma") is None
    assert shipped.nearest("8.0", "wgmma") is None
