from __future__ import annotations

from typing import Any

import pytest

from apex4_probe.co_issue_notes import note
from apex4_probe.deployment import CoIssue
from apex4_probe.shipped import nearest

AT_ISSUE = {"mma": "wgmma.s8", "shape": "m64n256k32.rs", "placement": "at_issue"}
AFTER = {**AT_ISSUE, "placement": "after_complete"}
SYNC = {"mma": "mma.s8", "shape": "m16n8k32", "placement": "same_warps"}


def curve(place: dict[str, str], both: dict[int, float], alone: dict[int, float] | None = None) -> list[CoIssue]:
    points: list[dict[str, Any]] = [
        {**place, "instruction": "ffma", "k": k, "cycles_over_mma_alone": ratio, "origin": "measured"}
        for k, ratio in both.items()
    ]
    return [CoIssue(**point, cuda_over_mma_alone=(alone or {}).get(point["k"])) for point in points]


@pytest.mark.parametrize(
    ("both", "told"),
    [
        ({0: 1.0, 1: 1.01, 2: 1.34, 4: 1.9}, "up to k = 1 is free, k = 2 costs 34%"),
        ({4: 1.2, 2: 1.02, 1: 1.0}, "up to k = 2 is free, k = 4 costs 20%"),
        ({0: 1.0, 1: 1.3}, "handed over at issue, k = 1 costs 30%"),
        ({0: 1.0, 1: 1.0, 2: 1.01}, "handed over at issue, k = 2 is still free"),
    ],
)
def test_how_much_is_free_behind_wgmma(both: dict[int, float], told: str) -> None:
    text = note(curve(AT_ISSUE, both))
    assert told in text and text.endswith(".")


def test_the_late_hand_over_and_mma_sync() -> None:
    text = note([*curve(AFTER, {0: 1.16, 1: 1.39}), *curve(SYNC, {1: 1.2, 2: 1.35, 4: 1.65}, {1: 0.3, 2: 0.5, 4: 0.8})])
    assert "after the last wgmma is complete, k = 0 costs 16% and k = 1 costs 39%" in text
    assert "k = 1 costs 20% and 90% of every further FFMA is visible" in text


def test_nothing_is_said_of_points_that_were_not_measured_or_are_of_another_mma() -> None:
    predicted = [p.model_copy(update={"origin": "predicted"}) for p in curve(AT_ISSUE, {1: 1.0, 2: 1.3})]
    assert note(predicted) == ""
    assert note(curve({**AT_ISSUE, "mma": "wgmma.f16"}, {1: 1.0, 2: 1.3})) == ""
    assert note([]) == ""


def test_the_shipped_h100_says_what_the_probe_found() -> None:
    h100 = nearest("9.0", "wgmma")
    assert h100 is not None
    assert "handed over at issue, up to k = 1 is free, k = 2 costs" in note(h100.co_issue)
