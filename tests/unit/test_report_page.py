"""The HTML page and the PNG figures of a profile."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hostile_profile import empty_profile, hostile_profile
from PIL import Image
from sample_profile import predicted_profile, sample_co_issue, sample_profile

from apex4_probe.deployment import Profile
from apex4_probe.reports import verdict, wording
from apex4_probe.reports.page import report_files

VOID = {"meta", "link", "br", "img", "input", "hr", "use", "path"}


class Reader(HTMLParser):
    """Tags, attributes, tables as lists of cells, and the text outside style and svg."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.svg_text: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        (self.svg_text if "svg" in self._inside else self.text).append(data)
        if self._inside and self._inside[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def page_of(profile: Profile) -> tuple[Reader, str, dict[str, bytes]]:
    files = report_files(profile)
    html = files["report.html"].decode("utf-8")
    reader = Reader()
    reader.feed(html)
    return reader, html, files


@pytest.fixture(scope="module")
def measured() -> tuple[Reader, str, dict[str, bytes]]:
    return page_of(sample_profile())


def rows_named(reader: Reader, name: str) -> list[list[str]]:
    return [row for row in reader.rows if row and row[0] == name]


def test_every_throughput_figure_stands_on_the_page(measured: tuple[Reader, str, dict[str, bytes]]) -> None:
    reader = measured[0]
    shown = iter([row for row in reader.rows if len(row) == 10 and row[0] != "name"])
    order = ("Tensor Core", "CUDA Core", "Memory", "Launch latency")
    figures = [figure for figure in sample_profile().measurements if figure.value is not None]
    assert {heading for heading in order} <= {row[0] for row in reader.rows if len(row) == 1}
    for figure in figures:
        name, run, value, spread, per_clock, peak, clock, throttle, _, origin = next(shown)
        assert name == figure.name
        assert run == ", ".join(part for part in (figure.operands, figure.regime) if part)
        number, unit = value.split(" ")
        assert unit == figure.unit
        assert figure.value is not None and float(number) == pytest.approx(figure.value, rel=5e-3)
        assert figure.spread is not None and float(spread.rstrip("%")) == pytest.approx(100 * figure.spread, abs=0.05)
        if figure.per_clk_per_sm is None:
            assert per_clock == "–"
        else:
            assert float(per_clock.split(" ")[0]) == pytest.approx(figure.per_clk_per_sm, rel=5e-3)
            assert per_clock.split(" ")[1] == figure.per_clk_unit
        if figure.peak_fraction is None:
            assert peak == "–"
        else:
            assert float(peak.rstrip("%")) == pytest.approx(100 * figure.peak_fraction, abs=0.05)
        assert float(clock) == figure.sm_clock_mhz
        assert throttle == ("power cap" if figure.throttle else "none")
        assert origin == "measured"
    assert next(shown, None) is None


def test_co_issue_table_has_every_point(measured: tuple[Reader, str, dict[str, bytes]]) -> None:
    points = {
        (f"{p.mma} {p.shape}", wording.placement_name(p.placement), p.instruction, p.k): p.cycles_over_mma_alone
        for p in sample_co_issue()
    }
    seen = {}
    for row in measured[0].rows:
        if len(row) == 14 and row[0].startswith(("wgmma.", "mma.")):
            for k, cell in enumerate(row[3:12]):
                seen[row[0], row[1], row[2], k] = float(cell)
    assert seen.keys() == points.keys()
    for key, ratio in points.items():
        assert seen[key] == pytest.approx(ratio, abs=0.006), key


def test_balance_table_equals_the_profile(measured: tuple[Reader, str, dict[str, bytes]]) -> None:
    rows = [row for row in measured[0].rows if len(row) == 16 and row[0] != "format"]
    assert len(rows) == len(sample_profile().balance)
    for row, item in zip(rows, sample_profile().balance, strict=True):
        assert row[0] == f"{item.format.upper()} {item.granularity}"
        assert row[3] == f"{1000 * item.pipes['tensor']:.1f}"
        assert float(row[9]) == pytest.approx(1000 * item.cycles_full_overlap, rel=5e-3)
        assert float(row[10]) == pytest.approx(1000 * item.cycles_expected, rel=5e-3)
        assert float(row[11]) == pytest.approx(1000 * item.cycles_no_overlap, rel=5e-3)
        assert row[12] == f"{item.over_channel:.2f}×"
        assert row[13] == item.bound_by


def test_layer_times_equal_the_profile(measured: tuple[Reader, str, dict[str, bytes]]) -> None:
    rows = [row for row in measured[0].rows if len(row) == 14 and row[13] == "predicted"]
    times = [(layer, time) for layer in sample_profile().layers for time in layer.times]
    assert len(rows) == len(times)
    for row, (layer, time) in zip(rows, times, strict=True):
        assert row[0] == layer.role
        assert row[1] == f"{layer.n} × {layer.k}"
        assert row[5] == str(time.m)
        assert row[6].startswith("~")
        assert float(row[6][1:]) == pytest.approx(time.us, rel=5e-3)
        assert float(row[10][1:]) == pytest.approx(time.us_fp16, rel=5e-3)


def test_verdict_device_and_reproduction(measured: tuple[Reader, str, dict[str, bytes]]) -> None:
    reader, html, _ = measured
    text = " ".join("".join(reader.text).split())
    assert text.index(verdict.headline(sample_profile())) < text.index("Throughput against")
    assert html.count(f"<h1>{verdict.headline(sample_profile())}</h1>") == 1
    for word in ("NVIDIA H100 80GB HBM3", "132", "81559 MiB", "580.95.05", "apex4-probe run", "dequantisation alone"):
        assert word in text
    emulated = ["rho (INT4)", "emulated, not usable (mma s4 becomes INT8 and logic instructions on this GPU)"]
    assert rows_named(reader, "rho (INT4)") == [emulated]
    absent = "unsupported: block-scaled FP4 needs compute capability 12.x; this GPU has 9.0"
    assert rows_named(reader, "mma.mxf4nvf4.m16n8k64") == [["mma.mxf4nvf4.m16n8k64", absent]]


@pytest.mark.parametrize("make", [sample_profile, predicted_profile, hostile_profile, empty_profile])
def test_page_loads_nothing_and_runs_nothing(make: Callable[[], Profile]) -> None:
    reader, html, _ = page_of(make())
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {tag for tag, _ in reader.tags} & {"script", "iframe", "object", "embed", "img", "base", "form"} == set()
    for tag, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "action", "srcset"):
                assert value is not None and value.startswith(("#", "data:")), (tag, name, value)
    styles = "".join(re.findall(r"<style.*?</style>", html, re.S)) + "".join(re.findall(r'style="[^"]*"', html))
    assert "@import" not in styles
    assert all(url.startswith("#") for url in re.findall(r"url\(['\"]?([^)]*)", styles))


def test_ids_are_unique_and_references_resolve(measured: tuple[Reader, str, dict[str, bytes]]) -> None:
    ids = [a["id"] for _, a in measured[0].tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', measured[1])
    assert used and set(used) <= set(ids)


def test_figures_have_alt_text_and_follow_the_colour_scheme(measured: tuple[Reader, str, dict[str, bytes]]) -> None:
    reader, html, _ = measured
    pictures = [a for _, a in reader.tags if a.get("role") == "img"]
    assert len(pictures) == len([1 for tag, _ in reader.tags if tag == "svg"]) == 6
    assert all(len(a["aria-label"] or "") > 40 for a in pictures)
    assert "prefers-color-scheme: dark" in html
    assert "currentColor" in html
    assert "#1f2328" not in html.split("</style>", 1)[1]
    assert "wgmma.s8.m64n256k32.rs" in "".join(reader.svg_text)


@pytest.mark.parametrize("make", [sample_profile, predicted_profile, hostile_profile])
def test_pngs_are_whole_and_of_readme_width(make: Callable[[], Profile]) -> None:
    files = report_files(make())
    names = {"throughput.png", "co_issue.png", "balance.png", "speedup.png"}
    assert files.keys() == {"report.html"} | names
    for name in names:
        with Image.open(io.BytesIO(files[name])) as picture:
            picture.load()
            assert (picture.format, picture.width) == ("PNG", 1280)
            lightest, darkest = picture.convert("L").getextrema()[::-1]
            assert lightest == 255 and darkest < 60


def test_predicted_is_marked() -> None:
    reader, html, _ = page_of(predicted_profile())
    assert "Predicted: nothing on this page was measured." in html
    throughput = [row for row in reader.rows if len(row) == 10 and row[0] != "name"]
    assert throughput
    assert all(row[2].startswith("~") and row[-1] == "predicted" for row in throughput)
    assert "Predicted: nothing on this page was measured." not in page_of(sample_profile())[1]
    assert any(tag == "pattern" for tag, _ in reader.tags)  # hatching


def test_hostile_strings_are_shown_as_text() -> None:
    reader, html, _ = page_of(hostile_profile())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    text = "".join(reader.text)
    assert "<script>alert(1)</script>[bold]b[/bold] $\\frac{ ]]> --> \\x1b[31mred\\x07" in text
    assert "<script>ale" in "".join(reader.svg_text)
    assert "A" * 700 not in html
    assert len(html) < 1_000_000


def test_missing_sections_are_said_to_be_missing() -> None:
    reader, _, files = page_of(empty_profile())
    assert files.keys() == {"report.html"}
    text = "".join(reader.text)
    for sentence in ("No measurements", "No rho", "No balance", "Not measured", "No layers", "does not answer"):
        assert sentence in text


def test_thousands_of_co_issue_points_stay_small() -> None:
    template = sample_co_issue()[0]
    instructions = ("nop", "ffma", "ffma3", "fadd", "imad", "lop3", "i2f_ffma", "mix.imad", "mix.magic_ffma2")
    points = [
        template.model_copy(
            update={"shape": f"m64n{n}k32.{a}", "placement": placement, "instruction": instruction, "k": k}
        )
        for n in (64, 128, 256)
        for a in ("rs", "ss")
        for placement in ("other_warps", "at_issue", "after_complete", "no_handover", "same_warps")
        for instruction in instructions
        for k in range(9)
    ]
    assert len(points) == 2430
    reader, html, files = page_of(sample_profile(co_issue=points))
    assert sum(map(len, files.values())) < 2_000_000
    assert len(html) < 1_000_000
    assert len([row for row in reader.rows if len(row) == 14 and row[0].startswith("wgmma.s8 ")]) == len(points) / 9


def test_pages_do_not_differ_between_runs() -> None:
    assert report_files(sample_profile()) == report_files(sample_profile())
