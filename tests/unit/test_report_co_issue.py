"""What the page says about the co-issue curves is what their records say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hostile_profile import empty_profile, hostile_profile
from sample_profile import predicted_profile, sample_profile

from apex4_probe.deployment import CoIssue
from apex4_probe.reports.co_issue_reading import reading
from apex4_probe.shipped import shipped_profiles


def curve(
    ratios: Sequence[float],
    alone: Sequence[float],
    *,
    mma: str = "wgmma.s8",
    shape: str = "m64n256k32.rs",
    placement: str = "at_issue",
    sm_spread: float = 0.0,
) -> list[CoIssue]:
    return [
        CoIssue.model_validate(
            {
                "mma": mma, "shape": shape, "placement": placement, "instruction": "ffma", "k": k,
                "cycles_over_mma_alone": ratio, "cuda_over_mma_alone": cuda, "sm_spread": sm_spread,
                "origin": "measured",
            }
        )
        for k, (ratio, cuda) in enumerate(zip(ratios, alone, strict=True))
    ]  # fmt: skip


def said(*curves: list[CoIssue]) -> list[str]:
    return reading(sample_profile(co_issue=[point for points in curves for point in points]))


def test_the_knee_and_what_lies_beyond_it() -> None:
    assert said(curve([1.0, 1.01, 1.34, 1.60], [0, 0.31, 0.57, 0.83])) == [
        "Beside wgmma.s8 m64n256k32.rs, hand-over at issue, FFMA is free up to the knee at k = 1 (1.01 times the MMA "
        "alone), and k = 2 costs 34%. Every further one adds 0.26 of the MMA's time, 100% of what it takes by itself: "
        "nothing more hides."
    ]


@pytest.mark.parametrize(
    ("ratios", "sentence"),
    [
        ([1.0, 1.17, 1.35], "FFMA is not free: k = 1 costs 17%, so the knee is at 0."),
        ([1.0, 1.0, 1.02], "FFMA is still free at k = 2, the most that was tried."),
        ([1.16, 1.39, 1.63], "the loop takes 1.16 times the MMA alone at k = 0 already: there is no knee."),
    ],
)
def test_other_knees(ratios: list[float], sentence: str) -> None:
    (text,) = said(curve(ratios, [0, 0.25, 0.43]))
    assert sentence in text


def test_part_of_the_work_may_go_on_hiding() -> None:
    (text,) = said(curve([1.0, 1.2, 1.3, 1.4], [0, 0.4, 0.6, 0.8]))
    assert "adds 0.10 of the MMA's time, 50% of what it takes by itself: 50% of it still hides" in text


def test_the_placement_where_a_gemm_works_and_hides_most_is_told_of() -> None:
    late = curve([1.2, 1.4, 1.6], [0, 0.3, 0.6], placement="after_complete")
    issue = curve([1.0, 1.0, 1.3], [0, 0.3, 0.6])
    assert "hand-over at issue" in said(late, issue)[0]


def handed_over(costs: dict[int, float]) -> list[CoIssue]:
    curves = [
        curve([1 + cost, 1.9], [0, 0.5], shape=f"m64n{n}k32.rs", placement="after_complete")
        for n, cost in costs.items()
    ]
    return [point for points in curves for point in points]


def test_a_fixed_cost_a_hand_over_shows_as_one_over_n() -> None:
    text = said(handed_over({64: 0.64, 128: 0.32, 256: 0.16}))[-1]
    assert "costs 64%, 32% and 16% at n = 64, 128 and 256" in text
    assert "as 1/n" in text and "about 82 SM cycles each" in text  # 0.16 x 4 x 64 x 256 x 32 / 4095


@pytest.mark.parametrize(
    "costs", [{64: 0.64, 128: 0.40, 256: 0.30}, {64: 0.64, 128: 0.32}, {64: 0.0, 128: 0.0, 256: 0.0}]
)
def test_otherwise_nothing_is_said_of_it(costs: dict[int, float]) -> None:
    assert not any("1/n" in text for text in said(handed_over(costs)))


def test_sms_that_differ_are_explained_only_where_nothing_hands_over() -> None:
    steady = curve([1.0, 1.0, 1.3], [0, 0.3, 0.6])
    free = curve([1.0, 1.2, 1.4], [0, 0.3, 0.6], placement="no_handover", sm_spread=0.6)
    other = curve([1.0, 1.2, 1.4], [0, 0.3, 0.6], placement="other_warps", sm_spread=0.3)
    assert not any("slowest SM" in text for text in said(steady))
    alone = said(steady, free)[-1]
    assert "up to 60% more cycles" in alone and "fall into step on some SMs only" in alone
    both = said(steady, free, other)[-1]
    assert both.startswith("SMs differ in 2 of the curves (in other warps, no hand-over)") and "into step" not in both


def test_the_shipped_profile_tells_its_knee_its_hand_overs_and_its_sms() -> None:
    h100 = next(profile for profile in shipped_profiles() if profile.device.name == "NVIDIA H100 80GB HBM3")
    text = " ".join(reading(h100))
    assert "the knee at k = 1" in text and "as 1/n" in text and "into step on some SMs only" in text


def test_predicted_curves_say_so_and_none_say_nothing() -> None:
    assert "(predicted)" in reading(predicted_profile())[0]
    assert reading(empty_profile()) == []
    assert all(len(text) < 1000 and "\x1b" not in text for text in reading(hostile_profile()))
