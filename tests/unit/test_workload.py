from __future__ import annotations

import pytest

from apex4_probe.deployment import WorkloadPoint
from apex4_probe.errors import ApexError
from apex4_probe.workload import MAX_TOKENS, describe, parse_workload


def test_the_default_is_a_decode_step_of_16_and_a_prefill_of_2048() -> None:
    assert parse_workload() == [
        WorkloadPoint(phase="decode", m=16, weight=1),
        WorkloadPoint(phase="prefill", m=2048, weight=1),
    ]


@pytest.mark.parametrize(
    ("text", "phase", "m", "weight"),
    [
        ("decode:1", "decode", 1, 1.0),
        (" PREFILL:4096*0.5 ", "prefill", 4096, 0.5),
        ("decode:16*3", "decode", 16, 3.0),
        (f"prefill:{MAX_TOKENS}", "prefill", MAX_TOKENS, 1.0),
    ],
)
def test_a_point(text: str, phase: str, m: int, weight: float) -> None:
    assert [point.model_dump() for point in parse_workload(text)] == [{"phase": phase, "m": m, "weight": weight}]


def test_order_is_kept() -> None:
    assert [point.m for point in parse_workload("prefill:512,decode:8,decode:64*2")] == [512, 8, 64]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not phase:tokens"),
        ("decode", "'decode' is not phase:tokens"),
        ("decode:16,", "'' is not phase:tokens"),
        ("decode:x", "'decode:x' is not phase:tokens"),
        ("decode:-1", "'decode:-1' is not phase:tokens"),
        ("decode:16*", r"'decode:16\*' is not phase:tokens"),
        ("decode:16*-2", "is not phase:tokens"),
        ("decode:١٦", "is not phase:tokens"),
        ("train:16", "unknown phase 'train'"),
        ("decode:0", "asks for 0 tokens"),
        (f"prefill:{MAX_TOKENS + 1}", f"asks for {MAX_TOKENS + 1} tokens"),
        ("decode:16*0", "must be a number above 0"),
        ("decode:16*1.2.3", "must be a number above 0"),
        ("decode:16,decode:16*2", "names a point twice"),
        (",".join(f"decode:{m}" for m in range(1, 70)), "has 69 points"),
    ],
)
def test_what_cannot_be_understood_is_named(text: str, message: str) -> None:
    with pytest.raises(ApexError, match=message):
        parse_workload(text)


def test_in_words() -> None:
    assert [describe(point) for point in parse_workload()] == ["decode at 16", "prefill of 2048"]
