"""The README's figures of Hopper are those of the shipped profile, to the digits it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apex4_probe.bench_records import load_bench
from apex4_probe.deployment import Profile
from apex4_probe.profile_file import load_profile
from apex4_probe.reports.bench_table import mean_tables

ROOT = Path(__file__).resolve().parents[2]
WIDE, SYNC = ("wgmma.s8", "m64n256k32.rs"), ("mma.s8", "m16n8k32")
ROWS = {
    "in other warps": (*WIDE, "other_warps"),
    "in place, Tensor Core handed over at issue": (*WIDE, "at_issue"),
    "in place, handed over after completion": (*WIDE, "after_complete"),
    "in place, mma.sync": (*SYNC, "same_warps"),
}
COLUMNS = (("ffma", 0), ("ffma", 1), ("ffma", 2), ("imad", 1), ("nop", 2))
RATES = {
    "wgmma INT8": "wgmma.s8.m64n256k32.ss",
    "wgmma FP16": "wgmma.f16.m64n256k16.ss",
    "mma.sync INT8": "mma.s8.m16n8k32",
    "mma.sync INT4": "mma.s4.m16n8k64",
}


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(ROOT / "profiles" / "measured" / "h100-80gb-hbm3" / "profile.yaml")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    """The README's table rows by their first cell."""
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize("label", ROWS)
def test_co_issue(rows: dict[str, list[str]], profile: Profile, label: str) -> None:
    for shown, (instruction, k) in zip(rows[label], COLUMNS, strict=True):
        key = (*ROWS[label], instruction, k)
        point = next(p for p in profile.co_issue if (p.mma, p.shape, p.placement, p.instruction, p.k) == key)
        assert float(shown) == pytest.approx(point.cycles_over_mma_alone, abs=0.01)  # two digits, and rounding


@pytest.mark.parametrize("label", RATES)
def test_rates(rows: dict[str, list[str]], profile: Profile, label: str) -> None:
    figure = next(m for m in profile.measurements if m.name == RATES[label])
    assert figure.per_clk_per_sm is not None
    assert float(rows[label][0]) == pytest.approx(figure.per_clk_per_sm, rel=0.001)
    if share := re.match(r"(\d+) %", rows[label][1]):
        assert figure.peak_fraction == pytest.approx(int(share[1]) / 100, abs=0.006)


TIMED = (("w4a8", "channel"), ("w4a8", "g128i"), ("w4a16", "g128"), ("fp8", None))


@pytest.mark.parametrize("shape", ["6144 x 4096", "4096 x 4096", "28672 x 4096", "4096 x 14336"])
def test_speedups_of_kernels(rows: dict[str, list[str]], profile: Profile, shape: str) -> None:
    n, k = (int(number) for number in shape.split(" x "))

    def us(m: int, format: str, granularity: str | None) -> float:
        timings = [t for t in profile.gemm_timings if (t.n, t.k, t.m, t.format) == (n, k, m, format)]
        return min(t.us for t in timings if granularity in (None, t.granularity))

    for m, cell in zip((1, 16, 64, 2048), rows[shape], strict=True):
        for shown, kind in zip(cell.split(" / "), TIMED, strict=True):
            assert float(shown) == pytest.approx(us(m, "fp16", None) / us(m, *kind), abs=0.006)


MEANS = {"W4A8 channel": "channel", "W4A8 g128i": "g128i", "W4A8 g128r": "g128r", "torch FP8": "FP8"}


@pytest.mark.parametrize("packing", MEANS)
def test_geometric_means_over_seven_shapes(rows: dict[str, list[str]], packing: str) -> None:
    """Of the shipped benches, as bench itself tells them; every output in them was checked."""
    folder = ROOT / "profiles" / "measured" / "h100-80gb-hbm3"
    few, many = (load_bench(folder / name / "bench.json") for name in ("few-tokens", "many-tokens"))
    assert all(record.exact is not False for bench in (few, many) for record in bench.records)
    in_turn = [mean_tables(bench)[0] for bench in (few, many)]
    columns = [column.title.removeprefix("M = ") for table in in_turn for column in table.columns[1:]]
    figures = [cell for table in in_turn for row in table.rows if row.cells[0] == packing for cell in row.cells[1:]]
    assert columns == [*rows["M"], "M ≥ 1024"]
    assert figures[:-1] == rows[packing]
    alone = {row.cells[0]: row.cells[-1] for row in mean_tables(many)[1].rows}
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (sentence,) = re.findall(r"by itself for 0\.2 s, all M from 1024 on: ([^.]*(?:\.\d[^.]*)*)\.", text)
    assert f"{MEANS[packing]} {alone[packing]}" in sentence


def test_the_plan_s_speed_up(profile: Profile) -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    decision = profile.decision
    assert (decision.format, decision.granularity) == ("w4a8", "g128i")
    assert decision.speedup_fp16 is not None
    assert f"is W4A8 g128i, {decision.speedup_fp16:.2f} times FP16" in text


def test_a_hand_over_after_completion_costs_the_same_cycles_for_every_tile(profile: Profile) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"costs (\d+) cycles whatever the tile \(([\d, ]+) % for n = 256, 128, 64\)", text)
    assert said
    for n, percent in zip((256, 128, 64), said[2].split(","), strict=True):
        key = ("wgmma.s8", f"m64n{n}k32.rs", "after_complete", "ffma", 0)
        point = next(p for p in profile.co_issue if (p.mma, p.shape, p.placement, p.instruction, p.k) == key)
        extra = point.cycles_over_mma_alone - 1
        assert extra * 100 == pytest.approx(int(percent), abs=0.6)
        alone = 2 * 4 * 64 * n * 32 / 4095  # two warpgroups, four K-steps, the measured rate
        assert extra * alone / 2 == pytest.approx(int(said[1]), abs=1.5)


def test_in_step_on_some_sms(profile: Profile) -> None:
    key = ("wgmma.f16", "m64n256k16.rs", "no_handover", "ffma", 1)
    point = next(p for p in profile.co_issue if (p.mma, p.shape, p.placement, p.instruction, p.k) == key)
    assert point.sm_spread == pytest.approx(0.25, abs=0.015)
    assert point.cycles_over_mma_alone / (1 + point.sm_spread) == pytest.approx(1.0, abs=0.01)


def test_an_h200_differs_in_no_ratio_by_more_than_one_per_cent(profile: Profile) -> None:
    other = load_profile(ROOT / "profiles" / "measured" / "h200" / "profile.yaml")
    theirs = {(p.mma, p.shape, p.placement, p.instruction, p.k): p.cycles_over_mma_alone for p in other.co_issue}
    for mma, shape, placement in ROWS.values():
        for instruction, k in COLUMNS:
            point = theirs[mma, shape, placement, instruction, k]
            ours = next(
                p.cycles_over_mma_alone
                for p in profile.co_issue
                if (p.mma, p.shape, p.placement, p.instruction, p.k) == (mma, shape, placement, instruction, k)
            )
            assert point == pytest.approx(ours, rel=0.01)
