"""Which of several recorded GPUs is the odd one out, by how much, and which cause the records support."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from recorded_host import H200, LIMITED, WHOLE, Recorded, link, profile_of, unusable
from sample_profile import sample_device

from apex4_probe.deployment import Measurement, Profile
from apex4_probe.host_findings import groups, odd_ones, poor_links, typical
from apex4_probe.host_records import HostLink, Odd


def host(*recorded: Recorded) -> dict[int, Profile]:
    return {index: profile_of(gpu) for index, gpu in enumerate(recorded)}


def edited(profile: Profile, only: str, factor: float = 1.0, **fields: Any) -> Profile:
    """The figures whose name begins with ``only`` times ``factor``, with fields replaced."""

    def edit(figure: Measurement) -> Measurement:
        if figure.value is None or not figure.name.startswith(only):
            return figure
        return figure.model_copy(update={"value": factor * figure.value, **fields})

    return profile.model_copy(update={"measurements": [edit(figure) for figure in profile.measurements]})


def names(odd: Odd) -> set[str]:
    return {figure.name for figure in odd.figures}


def test_equal_gpus_have_no_odd_one() -> None:
    assert odd_ones(host(*[WHOLE] * 8)) == []


@pytest.mark.parametrize(("factor", "odd"), [(0.95, []), (0.93, [3]), (1.05, []), (1.07, [3])])
def test_the_spread_of_two_runs_is_allowed_and_more_is_named(factor: float, odd: list[int]) -> None:
    found = odd_ones(host(WHOLE, WHOLE, WHOLE, Recorded(factor=factor)))
    assert [item.index for item in found] == odd
    assert all(not figure.beyond_cards for item in found for figure in item.figures)  # 6 % … 11 %: cards may differ so


def test_a_wide_spread_hides_a_difference() -> None:
    slow = edited(profile_of(WHOLE), "memory.read", 0.8, spread=0.6)
    assert odd_ones({0: profile_of(WHOLE), 1: slow}) == []


def test_of_eight_the_slow_one_is_odd_whichever_it_is() -> None:
    for slow in range(8):
        found = odd_ones(host(*[LIMITED if index == slow else WHOLE for index in range(8)]))
        assert [item.index for item in found] == [slow]
        assert found[0].reference != slow
        assert all(figure.beyond_cards for figure in found[0].figures)


def test_of_two_the_faster_one_is_the_reference() -> None:
    for order in ((WHOLE, LIMITED), (LIMITED, WHOLE)):
        (odd,) = odd_ones(host(*order))
        assert order[odd.index] is LIMITED and order[odd.reference] is WHOLE
    assert typical(host(WHOLE, WHOLE)) == 0


def test_one_fast_card_does_not_make_the_others_odd() -> None:
    (odd,) = odd_ones(host(Recorded(factor=1.3), WHOLE, WHOLE))
    assert odd.index == 0
    assert all(figure.ratio > 1 and not figure.shortfall for figure in odd.figures)
    assert odd.causes == []


def test_models_are_not_held_against_each_other() -> None:
    profiles = host(WHOLE, Recorded(H200, factor=0.5), Recorded(sample_device(mig="3g.40gb", sm_count=60)))
    assert groups(profiles) == [[0], [1], [2]]
    assert odd_ones(profiles) == []
    assert groups(host(WHOLE, Recorded(H200), WHOLE)) == [[0, 2], [1]]


def test_the_causes_are_those_that_the_records_show() -> None:
    (odd,) = odd_ones(host(WHOLE, LIMITED))
    assert [cause.partition(":")[0] for cause in odd.causes] == ["clock", "power limit", "power cap"]
    short = len({figure.name for figure in odd.figures})
    assert odd.causes[0] == (
        f"clock: the SM ran at 0.70 times the clock on GPU 0, which accounts for {short} of the {short} shortfalls"
    )
    assert odd.differences == ["power limit: 350 W here, 700 W on GPU 0"]


def test_heat_another_process_and_a_narrow_slot_are_causes_too() -> None:
    hot = edited(profile_of(WHOLE), "wgmma.", 0.8, temperature_c=88.0, throttle=["software_thermal"], discarded=2)
    (odd,) = odd_ones({0: profile_of(WHOLE), 1: hot})
    assert [cause.partition(":")[0] for cause in odd.causes] == ["heat"]
    busy = edited(profile_of(WHOLE), "memory.", 0.5)
    warning = "GPU 1 is busy: 2 other compute processes are on it, so figures may be low"
    busy = busy.model_copy(update={"provenance": busy.provenance.model_copy(update={"warnings": [warning]})})
    (odd,) = odd_ones({0: profile_of(WHOLE), 1: busy})
    assert odd.causes == [f"other processes: {warning}"]
    assert names(odd) == {"memory.copy burst", "memory.read burst"}
    (odd,) = odd_ones(host(WHOLE, replace(WHOLE, generation=3), WHOLE))
    assert names(odd) == {"host.to_device burst"}
    assert odd.causes == odd.differences == ["host link: PCIe 3 x16 here, PCIe 5 x16 on GPU 0"]


def test_a_difference_in_set_up_is_told_though_no_figure_shows_it() -> None:
    (odd,) = odd_ones(host(WHOLE, WHOLE, Recorded(sample_device(ecc=False, power_limit_w=650.0))))
    assert (odd.index, odd.figures, odd.causes) == (2, [], [])
    assert odd.differences == ["power limit: 650 W here, 700 W on GPU 0", "ECC: off here, on on GPU 0"]


def test_fewer_nvlinks_are_a_difference() -> None:
    profiles = {index: profile_of(WHOLE, links=[link(1 - index, nvlinks=count)]) for index, count in ((0, 18), (1, 12))}
    (odd,) = odd_ones(profiles)
    assert odd.differences == ["NVLinks: 12 here, 18 on GPU 0"]


def test_what_one_of_them_could_not_measure_is_told() -> None:
    lost = profile_of(WHOLE)
    figures = [
        figure.model_copy(update={"value": None, "unsupported": "no memory"}) if figure.name == "l2.read" else figure
        for figure in lost.measurements
    ]
    (odd,) = odd_ones({0: profile_of(WHOLE), 1: lost.model_copy(update={"measurements": figures})})
    assert odd.differences == ["l2.read burst: unsupported now: no memory"]


def test_the_latency_of_the_host_makes_no_gpu_odd() -> None:
    assert odd_ones({0: profile_of(WHOLE), 1: edited(profile_of(WHOLE), "launch.stream", 3.0)}) == []
    (odd,) = odd_ones({0: profile_of(WHOLE), 1: edited(profile_of(WHOLE), "launch.graph", 3.0)})
    assert [(figure.shortfall, round(figure.loss, 2)) for figure in odd.figures] == [(True, 0.33)]


def test_the_worst_figure_comes_first() -> None:
    worse = edited(edited(profile_of(WHOLE), "memory.copy", 0.5), "memory.read", 0.8)
    (odd,) = odd_ones({0: profile_of(WHOLE), 1: worse})
    assert [(figure.name, round(figure.ratio, 2)) for figure in odd.figures] == [
        ("memory.copy burst", 0.5),
        ("memory.read burst", 0.8),
    ]


def pair(first: int, second: int, rate: float = 370.0, **fields: Any) -> HostLink:
    return HostLink(first=first, link=link(second, rate, **fields))


def test_a_pair_behind_the_others_of_its_kind_is_named() -> None:
    even = [pair(0, 1), pair(0, 2), pair(1, 2)]
    assert poor_links(even) == []
    assert poor_links([pair(0, 1, 360.0), *even[1:]]) == []  # within what two runs differ by
    assert poor_links([*even[:2], pair(1, 2, from_peer_gb_per_s=180.0)]) == [
        "GPU 1 and GPU 2: 180 GB/s in the slower direction, where such pairs of this host reach 370 GB/s"
    ]
    far = pair(1, 2, 22.0, path="between_cpus", nvlinks=None)
    assert poor_links([*even[:2], far]) == []  # another way has another speed
    broken = HostLink(first=1, link=unusable(2))
    assert poor_links([*even[:2], broken]) == ["GPU 1 and GPU 2: copied data arrive changed"]
