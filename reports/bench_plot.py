"""Speed-up over FP16 against the number of tokens, a panel a layer shape: what ``bench`` timed, as a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from apex4_probe.bench_records import Bench
from apex4_probe.deployment import GemmTiming
from apex4_probe.reports import figure_style as style
from apex4_probe.reports import wording
from apex4_probe.reports.bench_table import BASELINES, fastest_of, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PANEL_HEIGHT, LEGEND_ROW, REST = 2.7, 0.2, 0.5  # inches
LEGEND_COLUMNS = 4
COLUMNS = 2
COLOURS = {
    ("w4a8", "channel"): style.BLUE,
    ("w4a8", "g128i"): style.VERMILLION,
    ("w4a8", "g128r"): style.PURPLE,
    ("w4a8", "g128"): style.ORANGE,
    ("w4a16", "channel"): style.SKY,
    ("w4a16", "g128"): style.GREEN,
}
MARKERS = {"channel": "o", "g128i": "s", "g128r": "p", "a128i": "D", "g128": "^", "g64": "v", "g32": "<"}


@style.styled
def bench_figure(bench: Bench) -> Figure | None:
    """The fastest kernel of each format and granularity at every M, peers dashed. None: nothing has a speed-up."""
    method = next((record.method for record in bench.records), "interleaved")
    drawn = [r for r in bench.records if r.method == method and r.speedup_fp16 and r.variant not in ("fp16", "read")]
    if not drawn:
        return None
    shapes = list(dict.fromkeys((record.n, record.k) for record in drawn))
    rows = -(-len(shapes) // COLUMNS)
    columns = min(COLUMNS, len(shapes))
    legend_rows = -(-len({label(record) for record in drawn}) // LEGEND_COLUMNS)
    figure = style.new_figure(rows * PANEL_HEIGHT + legend_rows * LEGEND_ROW + REST)
    axes = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    speedups = [record.speedup_fp16 for record in drawn if record.speedup_fp16]
    handles: dict[str, Line2D] = {}
    for axis, (n, k) in zip(axes, shapes, strict=False):
        handles.update(_panel(axis, [record for record in drawn if (record.n, record.k) == (n, k)]))
        axis.set_title(f"N × K = {n} × {k}")
        style.ratio_axis(axis, "y", min(0.9, *speedups) / 1.1, max(1.1, *speedups) * 1.1)
        _tokens_axis(axis, sorted({record.m for record in drawn}))
    for axis in axes[len(shapes) :]:
        axis.set_visible(False)
    where = f"{wording.clip(bench.header.device.name, 40)}, {wording.clip(bench.header.model, 40)}"
    figure.supxlabel(f"M, tokens ({where})", fontsize=9)
    figure.supylabel("speed-up over FP16, GEMM alone", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=LEGEND_COLUMNS, fontsize=8)
    return figure


def curves(records: Iterable[GemmTiming]) -> dict[str, list[tuple[int, float]]]:
    """(M, speed-up over FP16) of one shape by line, M ascending; of several kernels that pack alike the fastest."""
    lines = fastest_of(records).items()
    return {name: sorted((m, speedup) for (_, _, m), speedup in points.items()) for name, points in lines}


def _panel(axis: Axes, records: Sequence[GemmTiming]) -> dict[str, Line2D]:
    kinds = {label(record): record for record in records}
    handles: dict[str, Line2D] = {}
    for name, points in curves(records).items():
        record = kinds[name]
        baseline, peer = record.variant in BASELINES, bool(record.version)
        colour = style.PURPLE if record.variant == "fp8" else style.GREY if baseline else _colour(record)
        (handles[name],) = axis.plot(
            [m for m, _ in points],
            [speedup for _, speedup in points],
            color=colour,
            linestyle="--" if peer else ":" if baseline else "-",
            linewidth=1.4,
            marker="x" if baseline else MARKERS.get(record.granularity, "P"),
            markersize=4,
            markerfacecolor=style.PAPER if peer else colour,
        )
    axis.axhline(1.0, color=style.INK, linewidth=0.8)
    return handles


def _colour(record: GemmTiming) -> str:
    """Groups of 64 and 32 have the colour of 128 and a marker of their own."""
    granularity = "g128" if record.granularity in ("g64", "g32") else record.granularity
    return COLOURS.get((record.format, granularity), style.GREY)


def _tokens_axis(axis: Axes, tokens: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    axis.set_xscale("log", base=2)
    axis.set_xlim(tokens[0] / 1.2, tokens[-1] * 1.2)
    axis.xaxis.set_major_locator(FixedLocator(list(tokens)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.tick_params(axis="x", labelsize=8)
