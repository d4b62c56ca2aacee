"""What `show` prints to be pasted: read back and compared with the profile."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hostile_profile import ATTACK, empty_profile, hostile_profile
from markdown_it import MarkdownIt
from rich.console import Console
from sample_profile import predicted_profile, sample_profile
from typer.testing import CliRunner

from apex4_probe import cli
from apex4_probe.deployment import CoIssue, Profile
from apex4_probe.descriptions import INSTRUCTIONS, PIPES, PLACEMENTS, UNKNOWN, descriptions
from apex4_probe.microbench import bandwidth, co_issue
from apex4_probe.microbench.instructions import PROBES
from apex4_probe.profile_file import load_profile, seal, write_profile
from apex4_probe.reports import paste, tables, wording
from apex4_probe.reports.kernel_tables import chosen_kernel_table, packing_table
from apex4_probe.show_job import described, pasted, show_job

ROOT = Path(__file__).resolve().parents[2]
MEASURED = sorted((ROOT / "profiles" / "measured").glob("*/profile.yaml"))
FORMATS = ("md", "csv", "json")
MAKERS = [sample_profile, predicted_profile, hostile_profile, empty_profile]


def tables_in(markdown: str) -> list[list[list[str]]]:
    """Every table of a Markdown text as rows of cells, as GitHub's syntax splits them."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if not line.startswith("|"):
            if found[-1]:
                found.append([])
            continue
        cells = [html.unescape(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        found[-1].append(cells)
    return [table for table in found if table]


def profiles() -> list[Profile]:
    return [load_profile(path) for path in MEASURED] + [sample_profile(), predicted_profile()]


@pytest.mark.parametrize("profile", profiles(), ids=lambda profile: f"{profile.device.name} {profile.origin}")
def test_markdown_holds_every_figure_of_the_profile(profile: Profile) -> None:
    head, rule, *rows = tables_in(paste.markdown(profile))[0]
    assert len(rows) == len(profile.measurements) > 0
    assert {len(row) for row in (head, rule, *rows)} == {len(head)}
    at = {title: index for index, title in enumerate(head)}
    for row, figure in zip(rows, profile.measurements, strict=True):
        assert all(row), "a cell is blank"
        assert row[at["name"]] == figure.name
        assert row[at["origin"]] == figure.origin
        value = row[at["value"]]
        if figure.value is None:
            assert value == f"unsupported: {wording.prose(figure.unsupported or '')}"
            continue
        number, _, plus_minus = value.partition(" ± ")
        assert number.startswith("~") == (figure.origin == "predicted")
        assert float(number.lstrip("~")) == pytest.approx(figure.value, rel=5e-3)
        assert bool(plus_minus) == (figure.spread is not None)
        if figure.spread is not None:
            assert float(plus_minus) == pytest.approx(figure.value * figure.spread / 2, rel=5e-3, abs=1e-12)


def test_markdown_holds_the_timed_kernels() -> None:
    profile = sample_profile()
    by_first = {table[0][0]: table for table in tables_in(paste.markdown(profile))}
    times, kernels = by_first["M"], by_first["N × K"]
    assert times[0] == [column.title for column in packing_table(profile).columns]
    assert [row[0] for row in times[2:]] == [row.cells[0] for row in packing_table(profile).rows]
    assert [row[2:4] for row in kernels[2:]] == [list(row.cells[2:4]) for row in chosen_kernel_table(profile).rows]
    assert len(kernels) > 2 and len(times) > 2


def test_markdown_says_above_the_table_what_it_is_of() -> None:
    profile = sample_profile()
    above = paste.markdown(profile).partition("\n\n")[0]
    assert profile.device.name in above
    assert f"driver: {profile.environment.driver}" in above
    assert f"apex4-probe {profile.tool_version}" in above
    assert "± is half of the distance from the 10th to the 90th percentile" in above
    assert "PREDICTED" in paste.markdown(predicted_profile()).partition("\n\n")[0]


@pytest.mark.parametrize("profile", profiles(), ids=lambda profile: f"{profile.device.name} {profile.origin}")
def test_csv_reads_back_to_the_last_digit(profile: Profile) -> None:
    rows = list(csv.DictReader(io.StringIO(paste.comma_separated(profile))))
    assert len(rows) == len(profile.measurements)
    for row, figure in zip(rows, profile.measurements, strict=True):
        fields = figure.model_dump()
        assert row["device"] == profile.device.name
        assert (row["name"], row["unit"], row["origin"]) == (figure.name, figure.unit, figure.origin)
        for name in ("spread", "per_clk_per_sm", "peak_fraction", "sm_clock_mhz", "power_w"):
            assert (float(row[name]) if row[name] else None) == fields[name]
        if figure.value is None:
            assert math.isnan(float(row["value"]))  # neither blank nor zero
            assert row["unsupported"] == f"unsupported: {wording.prose(figure.unsupported or '')}"
        else:
            assert float(row["value"]) == figure.value
            assert row["unsupported"] == ""


@pytest.mark.parametrize("make", MAKERS)
def test_json_reads_back_to_the_profile(make: type) -> None:
    profile = seal(make())
    text = paste.as_json(profile)
    assert text.isascii()
    assert Profile.model_validate(json.loads(text)) == profile


# strings of strangers


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("write", [pasted, described])
def test_no_format_carries_an_escape_sequence(format: str, write: object) -> None:
    text = write(hostile_profile(), format)  # type: ignore[operator]
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text) is None


@pytest.mark.parametrize("write", [pasted, described])
def test_markdown_of_a_hostile_profile_is_text_in_cells(write: object) -> None:
    hostile = hostile_profile()
    text = write(hostile, "md")  # type: ignore[operator]
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    tags = set(re.findall(r"<(/?[a-z0-9]+)", rendered))
    allowed = {"table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li", "strong"}
    assert {tag.lstrip("/") for tag in tags} <= allowed
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in rendered  # shown, as text
    assert "https://" not in text  # no bare address that becomes a link
    for table in tables_in(text):
        assert {len(row) for row in table} == {len(table[0])}
        assert all(cell for row in table for cell in row)


@pytest.mark.parametrize(
    "cell",
    [
        "a|b",
        "a\\|b",
        "`a`",
        "**a**",
        "_a_",
        "<b>&amp;",
        "[a](b)",
        "![a](b)",
        "~~a~~",
        "a\nb\n\n# c",
        "$x$",
        "@someone",
        ATTACK,
    ],
)
def test_a_cell_reads_back_as_it_was(cell: str) -> None:
    shown = wording.clean(cell)
    table = tables.Table("t", tables.columns_of("x", "y"), (tables.Row((shown, "z")),))
    text = paste.markdown_table(table)
    _, _, (first, second) = tables_in(text)[0]
    assert (first, second) == (" ".join(shown.split()), "z")
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    body = html.unescape(re.sub(r"</?(?:table|thead|tbody|tr|th|td)[^>]*>", "", rendered))
    assert body.split() == ["x", "y", *shown.split(), "z"]


def test_csv_of_a_hostile_profile_holds_no_formula() -> None:
    good = sample_profile()
    figures = [
        figure.model_copy(update={"name": name, "unit": ATTACK})
        for figure, name in zip(good.measurements, ("=1+1", "@x", "+1", "-1", ATTACK), strict=False)
    ]
    rows = list(csv.DictReader(io.StringIO(paste.comma_separated(good.model_copy(update={"measurements": figures})))))
    assert [row["name"] for row in rows[:4]] == ["'=1+1", "'@x", "'+1", "'-1"]
    assert all(not re.match(r"[=+@-]", cell) for row in rows for name, cell in row.items() if name != "value")


@pytest.mark.parametrize("format", ["table", *FORMATS])
@pytest.mark.parametrize("describe", [False, True])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_every_format_prints_in_every_encoding(format: str, describe: bool, make: type, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    show_job(make(), format, describe, Console(file=stream, width=80))  # type: ignore[arg-type]
    stream.flush()
    assert b"\x1b" not in raw.getvalue()
    assert len(raw.getvalue()) > 0


# --describe


def test_every_number_that_the_tool_measures_is_described() -> None:
    figure = sample_profile().measurements[0]
    named = {
        **{probe.name: probe.unit for probe in PROBES},
        **{name: "us" if name.startswith("launch") else "GB/s" for name in bandwidth.DESCRIPTIONS},
    }
    measurements = [figure.model_copy(update={"name": name, "unit": unit}) for name, unit in named.items()]
    sentences = dict(descriptions(sample_profile(measurements=measurements)))
    assert set(named) <= set(sentences)
    for sentence in sentences.values():
        assert sentence != UNKNOWN
        assert re.fullmatch(r"[A-Z].{20,}\.", sentence)
        assert not sentence[:-1].endswith(".")
    assert set(INSTRUCTIONS) == set(co_issue.WORK)
    assert set(PLACEMENTS) == {"other_warps", "at_issue", "after_complete", "no_handover", "same_warps"}
    assert set(PIPES) == set(tables.PIPES)
    assert sentences["memory.read"] == "Bandwidth of device memory read once, 10^9 bytes per second."


def test_a_name_that_is_not_known_says_so() -> None:
    point = CoIssue(
        mma="mma.s8", shape="m16n8k32", placement="same_warps", instruction="new", k=0,
        cycles_over_mma_alone=1.0, origin="predicted",
    )  # fmt: skip
    assert dict(descriptions(sample_profile(co_issue=[point])))["co_issue new"] == UNKNOWN


def test_describe_covers_each_number_once_in_every_format() -> None:
    profile = sample_profile()
    expected = dict(descriptions(profile))
    assert len(descriptions(profile)) == len(expected)
    assert {m.name for m in profile.measurements} <= set(expected)
    assert json.loads(described(profile, "json")) == expected
    assert dict(list(csv.reader(io.StringIO(described(profile, "csv"))))[1:]) == expected  # type: ignore[arg-type]
    assert {name: what for name, what in tables_in(described(profile, "md"))[0][2:]} == expected


# the verb


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    write_profile(sample_profile(), tmp_path / "profile.yaml")
    return tmp_path


def show(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["show", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_verb_prints_each_format(saved: Path) -> None:
    profile = load_profile(saved / "profile.yaml")
    for format in FORMATS:
        assert show(str(saved), "--format", format) == (0, pasted(profile, format), "")
        assert show(str(saved), "--format", format, "--describe") == (0, described(profile, format), "")
    assert show(str(saved), "--json") == show(str(saved), "--format", "json")
    assert show(str(saved)) == show(str(saved), "--format", "table")


def test_json_and_another_format_exclude_each_other(saved: Path) -> None:
    code, out, err = show(str(saved), "--json", "--format", "md")
    assert (code, out) == (2, "")
    assert "--json and --format md exclude each other" in err
    assert show(str(saved), "--format", "xml")[0] == 2


def test_describe_needs_no_cuda_package(saved: Path) -> None:
    code = (
        "import sys; sys.argv = ['apex4-probe', 'show', sys.argv[1], '--describe']\n"
        "from apex4_probe.cli import main\n"
        "try: main()\n"
        "finally: print(*{'cupy', 'torch', 'pandas', 'matplotlib', 'pynvml'} & set(sys.modules), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert answer.stderr.strip() == ""
    assert "Rate of dense INT8" in answer.stdout


def test_the_issue_template_asks_for_the_table() -> None:
    template = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "measurement.yml").read_text())
    table = next(part for part in template["body"] if part.get("id") == "table")
    assert "apex4-probe show DIR --format md" in table["attributes"]["description"]
    assert table["validations"]["required"] is True
    assert "render" not in table["attributes"]  # rendered as a table, not shown as source
