"""What the figures draw, read back from the artists."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hostile_profile import empty_profile
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from sample_profile import predicted_profile, sample_profile

from apex4_probe.reports import co_issue_plots, plots


def opacity(patch: Patch) -> float:
    return to_rgba(patch.get_facecolor())[3]


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


def bars(axis: Axes) -> list[Rectangle]:
    """Bars of figures, without the dashed outlines of the peak."""
    found = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    return [patch for patch in found if opacity(patch) > 0 or patch.get_hatch()]


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def test_throughput_bars_have_the_profiles_lengths() -> None:
    axes = drawn(plots.throughput_figure(sample_profile())).axes
    assert [axis.get_title(loc="left") for axis in axes] == ["Tensor Core", "CUDA Core", "Memory"]
    values = {figure.name: figure.value for figure in reversed(sample_profile().measurements)}
    for axis in axes:
        names = [label.get_text() for label in axis.get_yticklabels()]
        widths = [bar.get_width() for bar in bars(axis)]
        assert len(names) == len(widths) > 0
        for name, width in zip(names, widths, strict=True):
            value = values[name]
            assert value is not None
            assert width == pytest.approx(value / 2 if name.startswith("ffma") else value)
        assert axis.get_xlabel()


def test_throughput_peak_outline_is_the_value_over_its_fraction() -> None:
    tensor = drawn(plots.throughput_figure(sample_profile())).axes[0]
    outlines = [p for p in tensor.patches if isinstance(p, Rectangle) and opacity(p) == 0]
    figure = next(figure for figure in sample_profile().measurements if figure.name == "mma.s8.m16n8k32")
    assert figure.value is not None and figure.peak_fraction is not None
    assert any(outline.get_width() == pytest.approx(figure.value / figure.peak_fraction) for outline in outlines)


def test_measured_is_solid_and_predicted_is_hatched() -> None:
    solid = bars(drawn(plots.throughput_figure(sample_profile())).axes[0])
    hatched = bars(drawn(plots.throughput_figure(predicted_profile())).axes[0])
    assert all(not bar.get_hatch() and opacity(bar) == 1 for bar in solid)
    assert all(bar.get_hatch() and opacity(bar) == 0 for bar in hatched)


def test_balance_interval_and_expected_time() -> None:
    profile = sample_profile()
    axis = drawn(plots.balance_figure(profile)).axes[0]
    group = [item for item in profile.balance if item.mma == profile.balance[0].mma]
    intervals = [xs(line) for line in axis.lines if line.get_marker() == "|"]
    diamonds = [xs(line)[0] for line in axis.lines if line.get_marker() == "D"]
    for item, (low, high), expected in zip(group, intervals, diamonds, strict=True):
        assert low == pytest.approx(1000 * item.cycles_full_overlap)
        assert high == pytest.approx(1000 * item.cycles_no_overlap)
        assert expected == pytest.approx(1000 * item.cycles_expected)


def test_speedup_points_and_log_axis() -> None:
    profile = sample_profile()
    axis = drawn(plots.speedup_figure(profile)).axes[0]
    assert axis.get_yscale() == "log"
    points = [ys(line)[0] for line in axis.lines if line.get_marker() in ("o", "s")]
    expected = [time.us_fp16 / time.us for layer in profile.layers for time in layer.times]
    assert points == pytest.approx(expected)
    assert axis.get_xticklabels()[0].get_text() == "q\nW4A8\ng128i"


def test_co_issue_curves_and_knee() -> None:
    figure = drawn(co_issue_plots.co_issue_figure(sample_profile()))
    panels = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert panels.keys() == {"wgmma.s8 m64n256k32.rs", "mma.s8 m16n8k32"}
    curve, knee = panels["mma.s8 m16n8k32"].lines
    points = [point for point in sample_profile().co_issue if point.mma == "mma.s8"]
    assert ys(curve) == pytest.approx([point.cycles_over_mma_alone for point in points])
    assert xs(knee) == [0]
    assert panels["mma.s8 m16n8k32"].get_yscale() == "log"


def test_hollow_markers_for_predicted_curves() -> None:
    measured = drawn(co_issue_plots.co_issue_figure(sample_profile())).axes[0].lines[0]
    predicted = drawn(co_issue_plots.co_issue_figure(predicted_profile())).axes[0].lines[0]
    assert measured.get_markerfacecolor() == measured.get_color()
    assert predicted.get_markerfacecolor() == "#ffffff"


def test_nothing_to_draw_is_none() -> None:
    empty = empty_profile()
    for draw in (plots.throughput_figure, plots.balance_figure, plots.speedup_figure, co_issue_plots.co_issue_figure):
        assert draw(empty) is None
    assert co_issue_plots.co_issue_details(empty) == {}


def test_importing_the_reports_imports_no_matplotlib() -> None:
    program = (
        "import sys; import apex4_probe.reports.page, apex4_probe.reports.plots, apex4_probe.reports.terminal;"
        "print([name for name in ('matplotlib', 'pandas', 'torch', 'cupy', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
