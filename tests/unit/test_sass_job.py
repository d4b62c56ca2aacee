"""bench --sass: what is asked, what is refused, what an SM holds, and what the tables and the figure say."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console
from test_sass_counts import hot_loop
from typer.testing import CliRunner

from apex4_probe import cli
from apex4_probe.architecture import architecture
from apex4_probe.bench_plan import matching
from apex4_probe.errors import ApexError
from apex4_probe.kernels.variant import tile
from apex4_probe.reports import figure_style
from apex4_probe.reports.sass_plot import largest, sass_figure
from apex4_probe.reports.sass_table import bounds_table, executed_table, not_counted, pipes_table
from apex4_probe.reports.sass_terminal import print_sass
from apex4_probe.sass_bounds import sass_records
from apex4_probe.sass_job import chip_of, parse_architectures, resident_ctas, tiles_of, warp_tile
from apex4_probe.sass_records import NotCounted, SassHeader, SassReport, parse_sass, sass_csv, sass_json


def report() -> SassReport:
    channel = hot_loop(
        variant="w4a4.test.channel", granularity="channel", strategy="none", dequantisation={}, widening={}, other={}
    )
    ada = hot_loop(arch="sm_89", compute_capability="8.9")
    small = hot_loop(warp_tile="64x32", accumulators=4096)
    loops = [channel, hot_loop(), small, ada]
    header = SassHeader(tool_version="0.1.0", nvrtc="13.5", disassembler="13.5.37", command="apex4-probe bench --sass")
    missing = [NotCounted(variant="w4a16.fp16.g128", arch=arch, why="no MMA of its own") for arch in ("sm_80", "sm_89")]
    return SassReport(header=header, records=sass_records(loops), loops=loops, not_counted=missing)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sass", "--check"], "--check does not go with --sass"),
        (["--sass", "--m", "16"], "--m does not go with --sass"),
        (["--sass", "--device", "0"], "--device does not go with --sass"),
        (["--sass", "--tiles", "best"], "which tile is fastest only a GPU tells"),
        (["--sass", "--arch", "sm_75"], "no kernels for Turing: INT4 exists as m8n8k32 only"),
        (["--sass", "--arch", "sm_99"], "'sm_99' is no known architecture; there are kernels for sm_80, sm_86"),
        (["--sass", "--variants", "nope*"], "'nope*' matches none of"),
        (
            ["--sass", "--variants", "w4a16.fp16.*"],
            "nothing can be counted: w4a16.fp16.channel on sm_80: it writes FP16",
        ),
        (["--arch", "sm_80"], "--arch belongs to --sass"),
    ],
)
def test_what_does_not_go_is_refused_in_a_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_architectures_by_target_or_compute_capability() -> None:
    assert [facts.target for facts in parse_architectures("8.6, SM_80,sm_90,sm_86")] == ["sm_86", "sm_80", "sm_90a"]


def test_the_tiles_are_the_defaults_of_a_large_gemm_and_a_decode_step() -> None:
    (variant,) = matching("w4a4.mma.g128")
    (small,) = matching("w4a8.small.channel")
    for cc, step in (("8.0", 256), ("8.6", 128)):
        (first, second), why = tiles_of(variant, chip_of(architecture(cc)), "default")
        assert (first["rows"], first["warp_tokens"], first["step"], why) == (128, 64, step, "")
        assert (second["rows"], second["warp_tokens"]) == (64, 32)
    tiles, _ = tiles_of(small, chip_of(architecture("8.0")), "default")
    assert [one["tokens"] for one in tiles] == [16], "it refuses the large one"
    every, _ = tiles_of(variant, chip_of(architecture("8.0")), "all")
    assert every == list(variant.tiles)


def test_warp_tiles() -> None:
    assert warp_tile(tile(rows=128, tokens=128, warp_rows=64, warp_tokens=64), 4) == (64, 64)
    assert warp_tile(tile(rows=128, tokens=64, warp_rows=32, stages=3), 4) == (32, 64)
    assert warp_tile(tile(rows=256, tokens=32, warps=8, row_warps=4), 8) == (64, 32)  # two groups of warps split K
    assert warp_tile(tile(rows=32, tokens=16, warps=4), 4) == (32, 16)


@pytest.mark.parametrize(
    ("cc", "registers", "shared", "threads", "ctas"),
    [
        ("8.0", 252, 69632, 128, 2),  # 256 registers a thread: eight warps
        ("8.0", 168, 40960, 128, 3),  # 12 warps
        ("8.6", 132, 65536, 128, 1),  # 100 KiB hold one
        ("8.6", 32, 0, 256, 6),  # 48 warps
        ("8.0", 32, 0, 32, 32),  # CTAs
        ("8.0", 32, 163 * 1024, 64, 1),
    ],
)
def test_what_an_sm_holds(cc: str, registers: int, shared: int, threads: int, ctas: int) -> None:
    assert resident_ctas(architecture(cc), registers, shared, threads) == ctas


def test_json_comes_back_and_damage_is_named() -> None:
    said = sass_json(report())
    assert parse_sass(said, "sass.json") == report()
    with pytest.raises(ApexError, match=r"sass.json: loops.0.accumulators: .*greater than 0"):
        parse_sass(said.replace('"accumulators": 16384', '"accumulators": 0'), "sass.json")


def test_csv_has_a_line_a_record_with_every_pipe_and_bound() -> None:
    rows = list(csv.DictReader(io.StringIO(sass_csv(report()))))
    assert len(rows) == 4
    assert (rows[1]["variant"], rows[1]["pipes.conversion"]) == ("w4a4.test.g128", "1024.0")
    assert rows[1]["bounds.overlap.over_channel"] == "2.0" and rows[3]["bounds.overlap.over_channel"] == ""


def test_tables() -> None:
    told = report()
    executed, pipes, bounds = (
        [row.cells for row in build(told.records, told.loops).rows]
        for build in (executed_table, pipes_table, bounds_table)
    )
    assert executed[0] == ("sm_80",) and executed[4] == ("sm_89",)
    # 0.25 loads; 0.125 slots and 0.25 other are the rest; dequantisation and widening together
    assert executed[2] == (
        "w4a4.test.g128", "64×64", "0.50", "3.50", "0.250", "0.375", "200", "65536", "0", "8",
    )  # fmt: skip
    assert pipes[2] == ("w4a4.test.g128", "64×64", "512", "576", "128", "1024", "512", "592")
    assert bounds[2] == ("w4a4.test.g128", "64×64", "2.00", "2.00", "4.25", "0.94", "2.69", "0.74")
    assert bounds[5][2] == "–", "sm_89 has no per-channel kernel here"
    assert not_counted(told.not_counted) == [("w4a16.fp16.g128", "no MMA of its own (sm_80, sm_89)")]


def test_the_terminal_holds_all_of_it_in_eighty_columns() -> None:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    print_sass(report(), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= 80
    for words in (
        "NVRTC 13.5",
        "What the hot loops execute",
        "Cycles of every pipe",
        "Between full overlap",
        "Not counted",
    ):
        assert words in text


def test_the_figure_draws_each_variants_largest_tile() -> None:
    told = report()
    drawn = largest(told.records, told.loops)
    assert [(record.arch, record.variant, loop.accumulators) for record, loop in drawn] == [
        ("sm_80", "w4a4.test.channel", 16384), ("sm_80", "w4a4.test.g128", 16384), ("sm_89", "w4a4.test.g128", 16384),
    ]  # fmt: skip
    figure = sass_figure(told.records, told.loops)
    assert figure is not None
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["sm_80", "sm_89"]
    labels = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert labels[1] == "2.0 – 0.9 – 0.7 × FP16"
    assert figure_style.to_png(figure).startswith(b"\x89PNG")
    assert sass_figure([], []) is None
