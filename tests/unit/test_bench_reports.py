"""The bench's table and plot, from recorded times."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sample_bench import SHAPES, sample_bench

from apex4_probe.reports import figure_style
from apex4_probe.reports.bench_plot import bench_figure, curves, label
from apex4_probe.reports.bench_table import bench_tables, chain_table, mean_tables, refusals
from apex4_probe.reports.bench_terminal import print_bench
from apex4_probe.selection import best_tiles


def printed(width: int, bench: object = None) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_bench(bench or sample_bench(), console)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_section_a_size_with_baselines_first_and_then_the_fastest() -> None:
    (table,) = bench_tables(sample_bench())
    sections = [row.cells[0] for row in table.rows if row.section]
    assert sections[:2] == ["6144 × 4096, M = 1", "6144 × 4096, M = 16"] and len(sections) == 6
    names = [row.cells[0] for row in table.rows[1:9]]
    assert names == [
        "pure read", "torch FP8", "torch INT8", "torch FP16",
        "w4a8.small.channel", "w4a8.small.g128i", "w4a8.mma.channel", "humming.w4a8.g128 0.1.19",
    ]  # fmt: skip


def test_a_row_s_figures() -> None:
    (table,) = bench_tables(sample_bench())
    titles = [column.title for column in table.columns]
    row = dict(zip(titles, table.rows[5].cells, strict=True))
    # 6144 * 4096 / 1e6 + 0.01 = 25.176 us, a quarter of it 6.294; 2 * 6144 * 4096 operations in it: 8.0 T op/s
    assert row == {
        "variant": "w4a8.small.channel", "tile": "rows=32,warps=16", "µs": "6.29", "spread": "1.2%", "T op/s": "8.00",
        "GB/s": "2500", "of roof": "88%", "× FP16": "4.00", "× FP8": "2.40", "µs quantise": "1.50", "exact": "yes",
    }  # fmt: skip


def test_where_there_is_no_room_for_tiles_every_row_is_one_line() -> None:
    (table,) = bench_tables(sample_bench(), tiles=False)
    assert [column.title for column in table.columns][:2] == ["variant", "µs"]
    assert table.rows[1].cells[:2] == ("pure read slices", "5.04")  # a fifth of 25.176; what it ran on is told
    assert table.rows[5].cells[:2] == ("w4a8.small.channel", "6.29")
    lines = printed(80).splitlines()
    (line,) = [line for line in lines if "w4a8.small.channel" in line and " 6.29 " in line]
    assert line.split() == ["w4a8.small.channel", "6.29", "1.2%", "8.00", "2500", "88%", "4.00", "2.40", "1.50", "yes"]
    assert "rows=32" not in printed(80) and "rows=32,warps=16" in printed(160)
    assert "which bench.csv names" in " ".join(printed(80).split())


def test_means_over_all_shapes_are_of_the_fastest_kernel_of_each_packing() -> None:
    bench = sample_bench()
    # small.channel has 4: it stays the best of the first shape
    other = {(4096, 14336, 1024, "w4a8.mma.channel"): 2.0, (6144, 4096, 1024, "w4a8.mma.channel"): 8.0}
    changed = [
        record.model_copy(
            update={"speedup_fp16": other.get((record.n, record.k, record.m, record.variant), record.speedup_fp16)}
        )
        for record in bench.records
    ]
    (table,) = mean_tables(bench.model_copy(update={"records": changed}))
    assert [column.title for column in table.columns] == ["packing", "M = 1", "M = 16", "M = 1024"]
    rows = {row.cells[0]: row.cells[1:] for row in table.rows}
    assert rows["W4A8 channel"] == ("4.00", "4.00", "5.66")  # the square root of 4 times 8
    assert rows["W4A8 g128i"] == ("3.12", "3.12", "3.12") and rows["humming.w4a8.g128 0.1.19"][0] == "2.00"
    assert "torch FP16" not in rows and "pure read" not in rows
    assert table.title == "× FP16 over all shapes, all candidates in turn" and table.title in printed(80)


def test_a_mean_needs_every_shape_and_two_large_m_have_one_of_their_own() -> None:
    bench = sample_bench()
    later = [record.model_copy(update={"m": 4096}) for record in bench.records if record.m == 1024]
    lacking = [r for r in bench.records if (r.variant, r.k, r.m) != ("w4a8.small.g128i", 14336, 1024)]
    (table,) = mean_tables(bench.model_copy(update={"records": [*lacking, *later]}))
    assert [column.title for column in table.columns][3:] == ["M = 1024", "M = 4096", "M ≥ 1024"]
    rows = {row.cells[0]: row.cells[1:] for row in table.rows}
    assert rows["W4A8 g128i"] == ("3.12", "3.12", "–", "3.12", "–")
    assert rows["torch FP8"][-1] == "1.67"


def test_one_shape_has_no_means() -> None:
    bench = sample_bench()
    assert not mean_tables(bench.model_copy(update={"records": [r for r in bench.records if r.n == 6144]}))


def test_of_a_variant_s_tiles_the_fastest_is_shown() -> None:
    shown = best_tiles(sample_bench().records)
    assert [record.tile for record in shown if record.variant == "w4a8.small.channel"] == ["rows=32,warps=16"] * 6


def test_a_wrong_output_is_loud_and_what_was_not_checked_has_no_column() -> None:
    bench = sample_bench()
    wrong = bench.model_copy(update={"records": [r.model_copy(update={"exact": False}) for r in bench.records]})
    assert {row.cells[-1] for row in bench_tables(wrong)[0].rows if not row.section} == {"NO"}
    unchecked = bench.model_copy(update={"records": [r.model_copy(update={"exact": None}) for r in bench.records]})
    assert "exact" not in [column.title for column in bench_tables(unchecked)[0].columns]


def test_methods_are_never_mixed() -> None:
    bench = sample_bench()
    slower = [r.model_copy(update={"method": "sustained", "us": r.us * 1.1}) for r in bench.records]
    both = bench.model_copy(update={"records": [*bench.records, *slower]})
    first, second = bench_tables(both)
    assert first.rows == bench_tables(bench)[0].rows
    assert second.rows[5].cells[2] == "6.92"
    assert second.title == "GEMMs, each candidate back to back"


def test_the_chain_says_what_dependent_launch_saves() -> None:
    rows = [row.cells for row in chain_table(sample_bench()).rows]
    assert rows == [("1", "40.0", "32.0", "8.00", "120", "3.75"), ("16", "44.0", "–", "–", "–", "–")]
    assert "Kernels: w4a8.small.channel; bench.json has the tile" in chain_table(sample_bench()).caption


def test_the_same_refusal_at_many_places_is_told_once() -> None:
    assert refusals(sample_bench()) == [
        ("marlin.w4a16.g128", "not installed: pip install vllm (6144 × 4096; M = 1)"),
        ("w4a8.small.channel", "M = 1024 is beyond 64 (4096 × 14336, 6144 × 4096; M = 1024)"),
    ]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_terminal_holds_every_figure_at_every_width(width: int) -> None:
    text = printed(width)
    assert max(len(line) for line in text.splitlines()) <= width
    for expected in ("6.29", "8.00", "2500", "88%", "4.00", "2.40", "32.0", "not installed"):
        assert expected in text
    assert "llama-3-8b" in text.splitlines()[0]


def test_nothing_timed_is_said() -> None:
    bench = sample_bench().model_copy(update={"records": [], "chains": []})
    assert "Nothing could be timed" in printed(100, bench)
    assert bench_figure(bench) is None


def test_hostile_names_are_shown_harmlessly() -> None:
    bench = sample_bench()
    evil = bench.records[4].model_copy(update={"variant": "a\x1b[31mb", "version": "[bold]\u202e"})
    text = printed(160, bench.model_copy(update={"records": [evil]}))
    assert "\x1b" not in text and "\u202e" not in text and "[bold]" in text


def test_a_line_a_packing_the_fastest_of_ours() -> None:
    lines = curves(r for r in sample_bench().records if (r.n, r.k) == SHAPES[0] and r.variant not in ("fp16", "read"))
    assert list(lines) == ["torch FP8", "torch INT8", "W4A8 channel", "W4A8 g128i", "humming.w4a8.g128 0.1.19"]
    assert lines["W4A8 channel"] == [(1, 4.0), (16, 4.0), (1024, 4.0)]
    assert lines["humming.w4a8.g128 0.1.19"] == [(1, 2.0), (16, 2.0), (1024, 2.0)]


def test_the_figure_has_a_panel_a_shape_and_a_line_a_packing() -> None:
    bench = sample_bench()
    figure = bench_figure(bench)
    assert figure is not None
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in panels] == ["N × K = 6144 × 4096", "N × K = 4096 × 14336"]
    for axis in panels:
        assert axis.get_xscale() == axis.get_yscale() == "log"
        drawn = [tuple(line.get_xdata()) for line in axis.lines]
        assert drawn.count((1, 16, 1024)) == 5
        low, high = axis.get_ylim()
        assert low < 1.0 and high > 4.0
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == list(dict.fromkeys(label(r) for r in bench.records if r.variant not in ("fp16", "read")))
    assert figure_style.to_png(figure)[:4] == b"\x89PNG"
