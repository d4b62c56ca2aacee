"""The page for owners: every prediction with its date, and the command that measures and sets beside."""

from __future__ import annotations

import re

import pytest
from hostile_profile import ATTACK
from sample_profile import predicted_profile, sample_profile
from test_compare import everything
from test_compare_page import compared

from apex4_probe.compare_records import Answer, Entry
from apex4_probe.reports.owners import COLUMNS, command, gain, owners_page


def page() -> str:
    written = owners_page(everything())
    assert written is not None
    return written


def rows() -> dict[str, list[str]]:
    lines = [line for line in page().splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip().replace("&#126;", "~") for cell in line.strip("|").split("|")] for line in lines]
    return {f"{row[0]}, {row[1].split()[0]}": row for row in cells}


def entry(label: str) -> Entry:
    return next(e for e in everything().entries if e.subject.label == label)


def answer(label: str) -> Answer:
    found = entry(label).answer
    assert found is not None
    return found


@pytest.mark.parametrize("label", ["GeForce RTX 3090", "A40", "L40S", "GeForce RTX 4090", "A100-SXM4-80GB", "A10"])
def test_a_row_holds_the_comparisons_figures_and_their_date(label: str) -> None:
    row = rows()[f"{label}, predicted"]
    assert re.fullmatch(r"predicted \d{4}-\d\d-\d\d", row[1])
    assert row[1].endswith(entry(label).subject.profile.created[:10])
    for cell, (_, format, granularity, straightforward) in zip(row[2:8], COLUMNS, strict=True):
        found = gain(answer(label), format, granularity, straightforward)
        if found is None:
            assert cell == "–" and format == "fp8"
            continue
        assert found.format == format and found.granularity == granularity
        assert cell.startswith(f"~{found.speedup:.2f}×")
        if found.low != found.high:
            assert cell.endswith(f"({found.low:.2f}–{found.high:.2f})")


def test_straightforward_and_ours_are_two_columns() -> None:
    a100 = answer("A100-SXM4-80GB")
    plain, ours = gain(a100, "w4a4", "g128", True), gain(a100, "w4a4", "g128", False)
    assert plain is not None and ours is not None
    assert (plain.strategy, ours.strategy) == ("i2f_fmul_ffma", "magic_ffma2")
    assert ours.speedup > 1.7 * plain.speedup  # conversion at 16 a clock against two FFMA
    assert plain.low < 0.8 < plain.speedup < 1.05


def test_verdicts_are_the_planners() -> None:
    assert rows()["GeForce RTX 3090, predicted"][8:] == ["W4A8 g128i", "W4A4 g128", "W4A4 g128"]
    assert rows()["A100-SXM4-80GB, predicted"][8:] == ["W4A8 g128i", "W4A4 mixed", "W4A4 g128"]
    assert rows()["L40S, predicted"][8:] == ["FP8", "W4A4 g128", "W4A4 g128"]
    t4 = rows()["Tesla T4, predicted"]
    assert t4[2:] == ["–"] * 6 + ["stay in FP16"] * 3


def test_a_section_has_reasons_flags_and_the_command() -> None:
    section = page().split("## L40S\n")[1].split("\n## ")[0]
    assert "Any format: FP8 is the fastest plan" in section
    assert "lists 733 INT4 TOPS" in section
    assert 'apex4-probe run --full --out my-gpu && apex4-probe compare my-gpu "L40S"' in section
    assert "decode at 16: ~" in section and "prefill of 2048: ~" in section


def test_what_was_measured_stands_behind_its_prediction() -> None:
    measured, predicted = sample_profile(), predicted_profile()
    written = owners_page(compared(measured, predicted))
    assert written is not None
    told = [line.split("|")[2].split()[0] for line in written.splitlines() if line.startswith("|")][2:]
    assert told == ["predicted", "measured"]
    assert written.count("\n## ") == 1


def test_without_a_prediction_there_is_no_page() -> None:
    measured = sample_profile()
    assert owners_page(compared(measured, measured.model_copy(update={"created": "2026-01-01T00:00:00+00:00"}))) is None


@pytest.mark.parametrize("name", ['x" && rm -rf ~ #', "$(reboot)", "`id`", "a\nb", "!!", ""])
def test_a_strangers_name_never_reaches_the_shell(name: str) -> None:
    assert command(name) == "apex4-probe run --full --out my-gpu && apex4-probe compare my-gpu PREDICTED.yaml"


def test_a_strangers_strings_are_text() -> None:
    fair = predicted_profile()
    hostile = fair.model_copy(
        update={"device": fair.device.model_copy(update={"name": ATTACK}), "tool_version": ATTACK}
    )
    written = owners_page(compared(hostile, fair))
    assert written is not None
    assert written.count("&#60;script&#62;alert(1)") >= 3, "row, heading and version"
    assert "<script" not in written and "\x1b" not in written
    assert written.count("PREDICTED.yaml") == 1
