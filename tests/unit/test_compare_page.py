"""The page, figures, CSV and JSON of a comparison: every number the data's, strangers' strings as text."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from functools import cache
from xml.etree import ElementTree

import pytest
from hostile_profile import ATTACK, empty_profile, hostile_profile
from PIL import Image
from rich.console import Console
from sample_profile import predicted_profile, sample_device, sample_environment, sample_profile
from test_compare import QUESTION, everything
from test_report_page import Reader

from apex4_probe.compare_job import Wishes, _compared, as_csv, as_json
from apex4_probe.compare_records import Comparison
from apex4_probe.comparison import compare_profiles, labelled
from apex4_probe.deployment import Profile
from apex4_probe.reports import compare_curves, compare_words, wording
from apex4_probe.reports.compare_page import comparison_files, headline
from apex4_probe.reports.compare_terminal import print_comparison

FIGURES = ("rho", "throughput", "speedup", "times", "co_issue")


@cache
def files() -> dict[str, bytes]:
    return comparison_files(everything())


def read(page: bytes) -> Reader:
    reader = Reader()
    reader.feed(re.sub(r"<script>.*?</script>", "", page.decode("utf-8"), flags=re.S))
    return reader


@cache
def tables() -> list[list[list[str]]]:
    """Rows of cells of every table of the page, in its order: its header row first."""
    found = []
    for table in re.findall(r"<table.*?</table>", files()["compare.html"].decode("utf-8"), re.S):
        reader = Reader()
        reader.feed(table)
        found.append(reader.rows)
    return found


def table(*titles: str) -> list[list[str]]:
    return next(rows[1:] for rows in tables() if rows[0][: len(titles)] == list(titles))


def compared(*profiles: Profile) -> Comparison:
    return compare_profiles(labelled([(p, "given") for p in profiles]), QUESTION.workload, QUESTION.model)


def figures(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]


def same(cell: str, value: float) -> bool:
    """Equal to the digits that the cell shows."""
    digits = cell.partition(".")[2]
    return float(cell) == pytest.approx(value, abs=0.5001 * 10 ** -len(digits), rel=5.001e-3 if not digits else 0)


def test_a_page_over_all_devices_is_quick_and_small() -> None:
    start = time.process_time()  # CPU time: other processes must not decide
    page = comparison_files(_compared(Wishes(every=True), []))["compare.html"]
    assert time.process_time() - start <= 5
    assert len(page) <= 3_000_000


def test_answers_on_the_page_are_the_datas() -> None:
    rows = table("device", "origin", "rho INT4")
    assert len(rows) == len(everything().entries)
    for row, entry in zip(rows, everything().entries, strict=True):
        assert entry.answer is not None
        assert row[0] == compare_words.beside_origin(entry)
        assert row[1] == entry.subject.profile.origin
        rho = entry.subject.profile.rho["int4"]
        if rho.usable:
            assert rho.datasheet is not None and same(row[2], rho.datasheet)
        else:
            assert row[2] in ("emulated", "in hardware")
        for cells, decision in (
            (row[3:5], entry.answer.decision),
            (row[5:7], entry.answer.w4a4),
            (row[7:9], entry.answer.plain),
        ):
            if decision.format == "fp16":
                assert cells == ["FP16", "–"]
                continue
            assert decision.granularity in (cells[0].partition(" ")[2].strip("()"), cells[0], "none")
            low, high = decision.speedup_fp16_interval or (None, None)
            shown = figures(cells[1])
            assert cells[1].startswith("~") == (decision.speedup_fp16_interval is not None)  # None: timed
            assert shown[0] == round(decision.speedup_fp16 or 0, 2)
            assert shown[1:] in ([], [round(low or 0, 2), round(high or 0, 2)])
            assert shown[1:] or round(low or 0, 2) == round(high or 0, 2)


def test_throughput_on_the_page_is_the_datas() -> None:
    rates = [(e, r) for e in everything().entries for r in e.rates]
    rows = table("device", "profile", "kind")
    assert len(rows) == len(rates)
    for row, (entry, rate) in zip(rows, rates, strict=True):
        if rate.tops is None:
            assert row[1].startswith(f"{rate.kind}: ")
            continue
        assert row[2:4] == [rate.kind, rate.instruction]
        for cell, value in zip(row[4:8], (rate.tops, rate.per_clk, rate.per_watt, rate.watts), strict=True):
            assert value is not None and same(cell.lstrip("~"), value), (entry.subject.label, rate.kind)
        assert row[8] == rate.watts_are
        assert row[9] == rate.origin
        assert row[6].startswith("~") is not rate.watts_measured


def test_speedups_times_costs_and_rho_on_the_page_are_the_datas() -> None:
    rows = {(row[0], row[1]): row for row in table("device", "rates", "W4A4 channel")}
    for entry in everything().entries:
        assert entry.answer is not None
        if entry.answer.gains:
            row = rows[compare_words.beside_origin(entry), entry.subject.profile.origin]
            values = sorted(figures(cell)[0] for cell in row[2:] if cell != "–")
            assert values == sorted(round(gain.speedup, 2) for gain in entry.answer.gains)
    times = [t for e in everything().entries if e.answer for t in e.answer.times]
    for row, moment in zip(table("device", "rates", "format", "at"), times, strict=True):
        expected = (moment.us, moment.us_low, moment.us_high, moment.us_fp16)
        assert all(same(cell.lstrip("~"), us / 1e3) for cell, us in zip(row[4:8], expected, strict=True))
        assert same(row[8].lstrip("~"), 1e6 * moment.m / moment.us)
    costs = [c for e in everything().entries for c in e.costs]
    for row, cost in zip(table("device", "rates", "at", "USD/h a GPU"), costs, strict=True):
        expected_usd = (cost.usd_per_hour, cost.usd, cost.usd_low, cost.usd_high, cost.usd_fp16)
        assert all(same(cell.lstrip("~"), usd) for cell, usd in zip(row[3:], expected_usd, strict=True))
    figures_of_rho = [(e, f) for e in everything().entries for f in e.subject.profile.rho.values()]
    for row, (_, figure) in zip(table("device", "origin", "operands"), figures_of_rho, strict=True):
        if figure.usable:
            for cell, value in zip(row[3:], (figure.datasheet, figure.measured, figure.per_clock), strict=True):
                assert cell == "–" if value is None else same(cell.lstrip("~"), value)
        else:
            assert len(row) == 2


def test_a_speed_up_that_was_timed_has_no_tilde_and_no_interval() -> None:
    decision = sample_profile().decision.model_copy(update={"speedup_fp16": 1.734})
    predicted = decision.model_copy(update={"speedup_fp16_interval": (1.5, 1.9)})
    timed = decision.model_copy(update={"speedup_fp16_interval": None})
    assert [compare_words.speedup(one) for one in (predicted, timed)] == ["~1.73× (1.50–1.90)", "1.73×"]
    assert [compare_words.short_speedup(one) for one in (predicted, timed)] == ["~1.73×", "1.73×"]


def test_regions_changes_and_curves_on_the_page_are_the_datas() -> None:
    shown = [figures(row[3].replace("W4A16", "").replace("FP16", "")) for row in table("group scales by", "at", "rho")]
    bounds = [r.high for r in everything().map.regions if r.format != "fp16"]
    flat = [n for numbers in shown for n in numbers if n != 128]  # 128: in the names of granularities
    assert flat == [float(f"{bound:.2f}") for bound in bounds]
    changes = {(c.figure, c.unit): c for pair in everything().pairs for c in pair.changes}
    rows = [row for rows in tables() if rows[0][0] == "figure" for row in rows[1:]]
    assert len(rows) == sum(len(pair.changes) for pair in everything().pairs) > 20
    assert all((row[0], row[1]) in changes for row in rows)
    shared = compare_curves.shared_curves(everything())
    drawn = [(i, curve) for key in compare_curves.leading(shared) for i, curve in shared[key]]
    for row, (index, curve) in zip(table("device", "MMA", "instruction"), drawn, strict=True):
        assert row[0] == compare_words.label(everything().entries[index])
        assert row[1] == f"{curve.mma} {curve.shape}"
        for cell, ratio in zip(row[3:], curve.ratios, strict=False):
            assert float(cell) == pytest.approx(ratio, abs=0.00501)


def test_measured_and_predicted_are_told_apart_everywhere() -> None:
    page = files()["compare.html"].decode("utf-8")
    for entry in everything().entries:
        name = re.escape(compare_words.beside_origin(entry))
        rows = re.findall(rf'<tr( class="predicted")?><th scope="row">{name}</th><td>(measured|predicted)</td>', page)
        assert rows
        assert all(bool(marked) == (origin == "predicted") for marked, origin in rows if origin)
    svg = files()["throughput.svg"].decode()
    assert "measured" in svg and "datasheet or predicted" in svg


def test_figures_are_png_and_svg_files_and_stand_in_the_page_with_alt_text() -> None:
    assert set(files()) == {"compare.html", "owners.md", *(f"{n}.{e}" for n in FIGURES for e in ("png", "svg"))}
    assert list(files())[-1] == "compare.html"
    for name in FIGURES:
        with Image.open(io.BytesIO(files()[f"{name}.png"])) as picture:
            picture.load()
            assert picture.width == 1280
            lightest, darkest = picture.convert("L").getextrema()[::-1]
            assert lightest == 255 and darkest < 60
        root = ElementTree.fromstring(files()[f"{name}.svg"])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert b"currentColor" not in files()[f"{name}.svg"] and b"var(--" not in files()[f"{name}.svg"]
    pictures = [a for _, a in read(files()["compare.html"]).tags if a.get("role") == "img"]
    assert len(pictures) == len(FIGURES)
    assert all(len(a["aria-label"] or "") > 60 for a in pictures)


def test_the_page_loads_nothing_and_its_ids_are_unique() -> None:
    reader = read(files()["compare.html"])
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    for tag, attributes in reader.tags:
        assert tag not in ("iframe", "object", "embed", "img", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "action"):
                assert value is not None and value.startswith(("#", "data:"))
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_curves_are_laid_over_each_other_only_where_the_loop_is_the_same() -> None:
    other = sample_profile(device=sample_device(name="Other"))
    assert compare_curves.shared_curves(compared(sample_profile(), other))
    moved = [point.model_copy(update={"placement": "other_warps", "shape": "m64n8k32.rs"}) for point in other.co_issue]
    foreign = compared(sample_profile(), other.model_copy(update={"co_issue": moved}))
    assert compare_curves.shared_curves(foreign) == {}
    assert "co_issue.png" not in comparison_files(foreign)
    assert "no curves can be laid over each other" in comparison_files(foreign)["compare.html"].decode()


def test_hostile_strings_are_text_on_page_terminal_and_csv() -> None:
    formula = sample_profile(device=sample_device(name='=HYPERLINK("https://evil.example")'))
    again = hostile_profile().model_copy(update={"environment": sample_environment(driver=ATTACK + "2")})
    comparison = compared(hostile_profile(), again, formula)
    page = comparison_files(comparison)["compare.html"].decode("utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", re.sub("<script>.*?</script>", "", page))
    assert {tag for tag, _ in read(page.encode()).tags} & {"iframe", "object", "b"} == set()
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "A" * 700 not in page and len(page) < 1_000_000
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    print_comparison(comparison, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in printed and "\x07" not in printed and "\u202e" not in printed
    assert "<script>" in printed.replace("\n", "")
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())
    assert "\x1b" not in as_csv(comparison)


def test_missing_sections_are_said_to_be_missing() -> None:
    page = comparison_files(compared(empty_profile(), empty_profile()))["compare.html"].decode()
    for sentence in ("no plan: ", "No profile here has a usable rho", "No quantised plan", "No figure is measured"):
        assert sentence in page
    old = sample_profile(schema_version="1.0", rho={}, co_issue=[], balance=[], w4a4=None)
    comparison = compared(old, predicted_profile())
    assert "no rho in this profile" in comparison_files(comparison)["compare.html"].decode()


def test_csv_and_json_hold_the_unrounded_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(everything()))))
    data = json.loads(as_json(everything()))
    assert len(rows) == len(data["profiles"]) == len(everything().entries)
    for row, record, entry in zip(rows, data["profiles"], everything().entries, strict=True):
        assert entry.answer is not None
        assert row["label"] == record["label"] == entry.subject.label
        assert float(row["decision_speedup"]) == pytest.approx(entry.answer.decision.speedup_fp16, rel=1e-12)
        assert record["plain_speedup"] == pytest.approx(entry.answer.plain.speedup_fp16, rel=1e-12)
    assert len(data["throughput"]) == sum(len(e.rates) for e in everything().entries)
    assert data["throughput"][0]["tops"] is None  # INT4 of an H100: absent, neither zero nor emulated
    assert len(data["costs"]) == 2
    assert wording.ABSENT not in as_csv(everything())


def test_pages_do_not_differ_between_runs() -> None:
    comparison = compared(sample_profile(), predicted_profile())
    assert comparison_files(comparison) == comparison_files(comparison)


def test_the_headline_counts_answers() -> None:
    assert headline(everything()).startswith(f"{len(everything().entries)} GPU profiles, llama-3-8b: W4A4 with fine")
    assert headline(compared(sample_profile(), predicted_profile())) == (
        "2 GPU profiles, llama-3-8b: W4A4 pays on none of them; fastest is W4A8 on 2."
    )
    assert "fastest is unknown" in headline(compared(empty_profile(), empty_profile()))
