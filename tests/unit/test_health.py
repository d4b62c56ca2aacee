"""A profile beside the shipped one of its device: what is a shortfall, and which cause the records support."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from sample_profile import predicted_profile

from apex4_probe import health, shipped
from apex4_probe.deployment import Measurement, Profile
from apex4_probe.health import Health, compare, compare_with_shipped, summary
from apex4_probe.reports import health_words
from apex4_probe.reports.terminal import print_profile


@pytest.fixture(scope="module")
def h100() -> Profile:
    return next(profile for profile in shipped.shipped_profiles() if profile.device.name == "NVIDIA H100 80GB HBM3")


def changed(profile: Profile, factor: float = 1.0, only: str = "", **fields: Any) -> Profile:
    """The profile with the values called ``only`` (all: "") times ``factor`` and fields of their records replaced."""

    def edit(figure: Measurement) -> Measurement:
        if figure.value is None or not figure.name.startswith(only):
            return figure
        return figure.model_copy(update={"value": factor * figure.value, **fields})

    return profile.model_copy(
        update={"measurements": [edit(figure) for figure in profile.measurements], "checksum": "another"}
    )


def named(found: Health, name: str) -> health.Compared:
    return next(figure for figure in found.figures if figure.name == name and "/clk" not in figure.unit)


def test_the_shipped_profile_is_told_to_be_itself(h100: Profile) -> None:
    found = compare_with_shipped(h100)
    assert found == Health("NVIDIA H100 80GB HBM3", h100.created, True, (), ())
    assert (
        summary(found)
        == "This is the shipped profile of NVIDIA H100 80GB HBM3 itself, so there is nothing to set beside it."
    )


def test_no_opinion_without_a_shipped_profile_of_the_same_part(h100: Profile) -> None:
    assert compare_with_shipped(predicted_profile()) is None
    for update in ({"name": "NVIDIA H100 PCIe"}, {"mig": "1g.10gb"}, {"sm_count": 114}):
        other = h100.model_copy(update={"device": h100.device.model_copy(update=update)})
        assert compare_with_shipped(other) is None


def test_an_equal_card_is_healthy_and_every_figure_is_beside(h100: Profile) -> None:
    found = compare_with_shipped(changed(h100))
    assert found is not None
    valued = [figure for figure in h100.measurements if figure.value is not None]
    per_clock = [figure for figure in valued if figure.per_clk_per_sm is not None]
    assert len(found.figures) == len(valued) + len(per_clock)
    assert all(figure.ratio == 1 and figure.reading == "same" for figure in found.figures)
    assert summary(found).startswith(f"None of {len(found.figures)} figures falls short")
    assert found.causes == ()


@pytest.mark.parametrize(
    ("factor", "reading"),
    [(0.90, "same"), (0.88, "lower"), (1.10, "same"), (1.12, "higher")],  # 6 % of noise and 5 % between cards: 11 %
)
def test_noise_and_the_difference_between_cards_are_allowed_per_second(
    h100: Profile, factor: float, reading: str
) -> None:
    found = compare(changed(h100, factor, "mma.s8"), h100)
    figure = named(found, "mma.s8.m16n8k32 random burst")
    assert (figure.reading, figure.ratio) == (reading, pytest.approx(factor))
    assert figure.shortfall == (reading == "lower")
    assert named(found, "memory.read burst").reading == "same"


def test_cycles_are_held_to_the_floor_alone(h100: Profile) -> None:
    mma = next(figure for figure in h100.measurements if figure.name == "mma.s8.m16n8k32")
    assert mma.per_clk_per_sm is not None
    slower = changed(h100, 1.0, "mma.s8", per_clk_per_sm=0.97 * mma.per_clk_per_sm)
    found = [figure for figure in compare(slower, h100).figures if figure.name == "mma.s8.m16n8k32 random burst"]
    assert [(figure.unit, figure.reading) for figure in found] == [("TOPS", "same"), ("MAC/clk/SM", "lower")]


def test_a_longer_latency_is_worse_not_higher(h100: Profile) -> None:
    slow = compare(changed(h100, 1.5, "launch.graph"), h100)
    assert named(slow, "launch.graph burst").reading == "worse"
    assert [figure.name for figure in slow.shortfalls] == ["launch.graph burst"]
    assert named(compare(changed(h100, 0.5, "launch.graph"), h100), "launch.graph burst").reading == "better"


def test_a_wide_spread_hides_a_difference(h100: Profile) -> None:
    unsteady = changed(h100, 0.80, "memory.read", spread=0.6)
    assert named(compare(unsteady, h100), "memory.read burst").reading == "same"


def test_what_no_longer_runs_is_a_shortfall(h100: Profile) -> None:
    gone = [
        figure.model_copy(update={"value": None, "unsupported": "no memory"}) if figure.name == "l2.read" else figure
        for figure in h100.measurements
    ]
    found = compare(h100.model_copy(update={"measurements": gone, "checksum": ""}), h100)
    assert [(figure.name, figure.reading) for figure in found.shortfalls] == [("l2.read burst", "changed")]
    assert "1 of " in summary(found)


def test_nothing_recorded_means_no_cause(h100: Profile) -> None:
    found = compare(changed(h100, 0.7, "memory."), h100)
    assert len(found.shortfalls) == 2 and found.causes == ()
    assert health_words.sentences(found)[1].startswith("Nothing that this profile records explains it")


def cause(profile: Profile, h100: Profile, word: str) -> str:
    found = [text for text in compare(profile, h100).causes if text.startswith(f"{word}: ")]
    assert len(found) == 1, compare(profile, h100).causes
    return found[0].partition(": ")[2]


def test_causes_are_those_that_the_records_show(h100: Profile) -> None:
    slow = changed(h100, 0.7, "wgmma.s8", throttle=[])
    clocks = [
        figure.model_copy(update={"sm_clock_mhz": 0.7 * (figure.sm_clock_mhz or 0), "throttle": ["power_cap"]})
        if figure.name.startswith("wgmma.s8")
        else figure
        for figure in slow.measurements
    ]
    throttled = slow.model_copy(update={"measurements": clocks})
    assert cause(throttled, h100, "clock") == (
        "the SM ran at 0.70 times the clock when the shipped profile was measured, which accounts for 4 of the 4 "
        "shortfalls"
    )
    assert cause(throttled, h100, "power cap") == "4 of the 4 ran into it"
    limited = slow.model_copy(update={"device": slow.device.model_copy(update={"power_limit_w": 350.0})})
    assert cause(limited, h100, "power limit") == "350 W here, 700 W when the shipped profile was measured"
    hot = changed(h100, 0.7, "wgmma.s8", temperature_c=91.0)
    wgmma = [figure for figure in h100.measurements if figure.name.startswith("wgmma.s8")]
    coldest = min(figure.temperature_c for figure in wgmma if figure.temperature_c is not None)
    assert cause(hot, h100, "heat") == f"up to 91 °C here, {coldest:.0f} °C when the shipped profile was measured"
    thermal = changed(h100, 0.7, "wgmma.s8", throttle=["software_thermal"], discarded=3)
    assert cause(thermal, h100, "heat") == (
        "4 of the 4 ran under a thermal or hardware slowdown, and 12 samples were discarded for one"
    )
    warning = "GPU 0 is busy: 2 other compute processes on it, so figures may be low"
    busy = slow.model_copy(update={"provenance": slow.provenance.model_copy(update={"warnings": [warning]})})
    assert cause(busy, h100, "other processes") == warning
    driver = slow.model_copy(update={"environment": slow.environment.model_copy(update={"driver": "535.1"})})
    assert cause(driver, h100, "driver").startswith("535.1 here, ")
    assert compare(slow, h100).causes == ()


def test_no_cause_is_sought_where_nothing_falls_short(h100: Profile) -> None:
    faster = compare(changed(h100, 1.3, "mma.", temperature_c=95.0, throttle=["power_cap"]), h100)
    assert faster.causes == () and faster.shortfalls == ()
    assert {figure.reading for figure in faster.figures} == {"same", "higher"}


def test_the_table_sets_every_figure_beside_the_shipped_one(h100: Profile) -> None:
    found = compare(changed(h100, 0.5, "memory.copy"), h100)
    rows = {(row.cells[0], row.cells[3]): row.cells for row in health_words.health_table(found).rows}
    copy = next(figure for figure in h100.measurements if figure.name == "memory.copy")
    assert copy.value is not None
    assert rows["memory.copy burst", "GB/s"][1:6] == (
        f"{0.5 * copy.value:.0f}", f"{copy.value:.0f}", "GB/s", "0.50×", "significantly lower"
    )  # fmt: skip
    assert rows["memory.read burst", "GB/s"][4:6] == ("1.00×", "not significant")
    assert [row.cells[0] for row in health_words.significant_table(found).rows] == ["memory.copy burst"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_what_falls_short(h100: Profile, width: int) -> None:
    stream, slower = io.StringIO(), changed(h100, 0.5, "memory.copy")
    print_profile(slower, Console(file=stream, width=width))
    text = " ".join(stream.getvalue().split())
    assert "Is this GPU healthy?" in text
    found = compare_with_shipped(slower)
    assert found is not None
    short = [figure.name for figure in found.figures if figure.shortfall]
    assert short[0] == "memory.copy burst" and {name.split()[0] for name in short} == {"memory.copy"}
    assert f"{len(short)} of {len(found.figures)} figures fall short of the shipped profile" in text
    assert "memory.copy burst" in text and "0.50×" in text
