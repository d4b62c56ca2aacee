"""The HTML page and the PNG figures of a profile."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hostile_profile import empty_profile, hostile_profile
from PIL import Image
from sample_profile import predicted_profile, sample_co_issue, sample_profile

from apex4_probe.deployment import Profile
from apex4_probe.predict_job import predict
from apex4_probe.reports import verdict, wording
from apex4_probe.reports.page import report_files
from apex4_probe.shipped import shipped_profiles

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
        if "style" in self._inside or "script" in self._inside:
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


@pytest.fixture(scope="module", params=["sample", "shipped H100"])
def shown(request: pytest.FixtureRequest) -> tuple[Profile, Reader]:
    """A profile and its page: the realistic sample, and what the tool itself measured and ships."""
    if request.param == "sample":
        profile = sample_profile()
    else:
        profile = next(p for p in shipped_profiles() if p.device.name == "NVIDIA H100 80GB HBM3")
    return profile, page_of(profile)[0]


def rows_named(reader: Reader, name: str) -> list[list[str]]:
    return [row for row in reader.rows if row and row[0] == name]


def same(cell: str, value: float | None, *, scale: float = 1.0, decimals: int | None = None) -> None:
    """The cell is ``value`` to the digits that it shows: rounding it to as many gives the same text back."""
    if value is None:
        assert cell == "–"
        return
    text = cell.lstrip("~").rstrip("%×")
    shown = len(text.partition(".")[2]) if decimals is None else decimals
    assert "e" not in text and f"{scale * value:.{shown}f}" == text, (cell, value)
    assert shown > 0 or abs(scale * value) >= 100 or scale * value == int(scale * value), (cell, value)


def test_every_throughput_figure_stands_on_the_page(shown: tuple[Profile, Reader]) -> None:
    profile, reader = shown
    assert {"Tensor Core", "CUDA Core", "Memory", "Launch latency"} <= {row[0] for row in reader.rows if len(row) == 1}
    rows = {(row[0], row[1]): row[2:] for row in reader.rows if len(row) == 10 and row[0] != "name"}
    figures = [figure for figure in profile.measurements if figure.value is not None]
    assert len(rows) == len(figures) > 10
    for figure in figures:
        run = ", ".join(part for part in (figure.operands, figure.regime) if part) or "–"
        value, spread, per_clock, peak, clock, throttle, sass, origin = rows[figure.name, run]
        number, unit = value.split(" ")
        assert unit == figure.unit
        same(number, figure.value)
        same(spread, figure.spread, scale=100, decimals=1)
        same(per_clock.split(" ")[0], figure.per_clk_per_sm)
        assert figure.per_clk_per_sm is None or per_clock.split(" ")[1] == figure.per_clk_unit
        same(peak, figure.peak_fraction, scale=100, decimals=1)
        assert clock == ("–" if figure.sm_clock_mhz is None else f"{figure.sm_clock_mhz:.0f}")
        assert throttle == (", ".join(figure.throttle).replace("_", " ") or "none")
        assert (sass == "emulated") == bool(figure.emulated)
        assert origin == "measured"


def test_co_issue_table_has_every_point(shown: tuple[Profile, Reader]) -> None:
    profile, reader = shown
    rows = [row for row in reader.rows if len(row) == 14 and row[0].startswith(("wgmma.", "mma."))]
    seen = {(row[0], row[1], row[2], k): cell for row in rows for k, cell in enumerate(row[3:12]) if cell}
    points = {
        (f"{p.mma} {p.shape}", wording.placement_name(p.placement), p.instruction, p.k): p.cycles_over_mma_alone
        for p in profile.co_issue
    }
    assert seen.keys() == points.keys()
    for key, ratio in points.items():
        assert seen[key] == f"{ratio:.2f}", key


def test_balance_table_equals_the_profile(shown: tuple[Profile, Reader]) -> None:
    profile, reader = shown
    rows = [row for row in reader.rows if len(row) == 16 and row[0] != "format"]
    assert len(rows) == len(profile.balance) > 0
    for row, item in zip(rows, profile.balance, strict=True):
        assert row[0] == f"{item.format.upper()} {item.granularity}"
        for cell, pipe in zip(row[3:9], ("tensor", "fma", "alu", "conversion", "shared", "issue"), strict=True):
            same(cell, item.pipes.get(pipe), scale=1000)
        for cell, cycles in zip(
            row[9:12], (item.cycles_full_overlap, item.cycles_expected, item.cycles_no_overlap), strict=True
        ):
            same(cell, cycles, scale=1000)
        same(row[12], item.over_channel, decimals=2)
        assert row[13] == item.bound_by


def test_layers_equal_the_profile(shown: tuple[Profile, Reader]) -> None:
    profile, reader = shown
    roles = {layer.role for layer in profile.layers}
    rows = [row for row in reader.rows if len(row) == 15 and row[0] in roles]
    times = [(layer, time) for layer in profile.layers for time in layer.times]
    assert len(rows) == len(times) > 0
    for row, (layer, time) in zip(rows, times, strict=True):
        assert row[:6] == [
            layer.role, f"{layer.n} × {layer.k}", layer.format.upper(), layer.granularity, str(layer.count), str(time.m)
        ]  # fmt: skip
        timed = time.origin == "measured"
        span = (None, None) if timed else (time.us_low, time.us_high)
        for cell, figure in zip(row[6:11], (time.us, *span, time.us_quantise, time.us_fp16), strict=True):
            assert cell.startswith("~") == (not timed and figure is not None)
            same(cell, figure)
        same(row[11].split(" ")[0], time.us_fp16 / time.us, decimals=2)
        assert row[12:15] == [time.bound_by, time.kernel or "–", time.origin]
    verdicts = [row for row in reader.rows if len(row) == 7 and row[0] in roles]
    assert [row[0] for row in verdicts] == [layer.role for layer in profile.layers]
    for row, layer in zip(verdicts, profile.layers, strict=True):
        for cell, time in zip(row[4:6], layer.times, strict=True):
            same(cell.split(" ")[0], time.us_fp16 / time.us, decimals=2)
        same(row[6], layer.margin, scale=100, decimals=1)


def test_verdict_table_adds_the_layers_up(shown: tuple[Profile, Reader]) -> None:
    profile, reader = shown
    for point in profile.workload.points:
        times = [(layer.count, time) for layer in profile.layers for time in layer.times if time.m == point.m]
        ratio = sum(c * t.us_fp16 for c, t in times) / sum(c * t.us for c, t in times)
        timed = all(time.origin == "measured" for _, time in times)
        row = rows_named(reader, f"{point.phase}, M = {point.m}")[0]
        assert row[1] == f"{'' if timed else '~'}{ratio:.2f}×"
        assert (row[2] == "–") == timed  # what was timed has no span between overlaps
    whole = rows_named(reader, "whole workload")[0]
    assert whole[1].lstrip("~") == f"{profile.decision.speedup_fp16:.2f}×"


def test_roofline_table_is_arithmetic_on_the_profile(shown: tuple[Profile, Reader]) -> None:
    profile, reader = shown
    read = next(figure.value for figure in profile.measurements if figure.name == "memory.read")
    rows = [row for row in reader.rows if len(row) == 9 and row[3] in ("FP16", "W4A8 g128i")]
    assert {row[2] for row in rows} == {"1", "16", "256", "2048", "4096"}
    assert read is not None
    for row in rows:
        n, k = (int(number) for number in row[1].split(" × "))
        m = int(row[2])
        weights = 2 * n * k if row[3] == "FP16" else n * k / 2 + 2 * n * k / 128 + 4 * n
        activations = 2 * m * k if row[3] == "FP16" else m * k + 4 * m
        intensity = 2 * m * n * k / (weights + activations + 2 * m * n)
        same(row[4], intensity)
        if row[6] == "memory":
            same(row[5], intensity * read / 1000)
        else:
            assert float(row[5]) <= intensity * read / 1000
    assert {row[6] for row in rows if row[2] == "1"} == {"memory"}
    assert {row[6] for row in rows if row[2] == "4096"} == {"Tensor Core"}


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
def test_page_loads_nothing_and_runs_only_its_own_script(make: Callable[[], Profile]) -> None:
    reader, html, _ = page_of(make())
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and a.get("http-equiv"))
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(scripts) == len([1 for tag, _ in reader.tags if tag == "script"]) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert policy == allowed
    assert {tag for tag, _ in reader.tags} & {"iframe", "object", "embed", "img", "base", "form"} == set()
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
    assert len(pictures) == len([1 for tag, _ in reader.tags if tag == "svg"]) == 8
    assert all(len(a["aria-label"] or "") > 40 for a in pictures)
    assert "prefers-color-scheme: dark" in html
    assert "currentColor" in html
    assert "#1f2328" not in html.split("</style>", 1)[1]
    assert "wgmma.s8.m64n256k32.rs" in "".join(reader.svg_text)


@pytest.mark.parametrize("make", [sample_profile, predicted_profile, hostile_profile])
def test_pngs_are_whole_and_of_readme_width(make: Callable[[], Profile]) -> None:
    files = report_files(make())
    names = {"verdict.png", "throughput.png", "co_issue.png", "balance.png", "roofline.png", "speedup.png"}
    if make is hostile_profile:
        names.remove("roofline.png")  # none of its figures has a name that a rate is known by
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


def test_the_page_draws_what_the_kernels_execute_where_they_were_counted() -> None:
    files = report_files(predict("A100"))
    html = files["report.html"].decode()
    assert "sass.png" in files and "<h2>What the kernels execute</h2>" in html
    reader = Reader()
    reader.feed(re.sub(r"<script>.*?</script>", "", html, flags=re.S))
    row = next(row for row in reader.rows if row[:2] == ["w4a4.mma.a128i", "64×64"] and len(row) == 10)
    assert row[2:4] == ["0.50", "1.00"]
    bounds = next(row for row in reader.rows if row[:2] == ["w4a4.mma.a128i", "64×64"] and row[3] == "4.00")
    assert bounds[2:] == ["1.00", "4.00", "1.50", "2.67", "1.37", "1.65"]
    assert "What the kernels execute" not in report_files(predict("H100"))["report.html"].decode()
