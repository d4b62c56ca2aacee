"""The axes of apex.plot: what is drawn is what the profile holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hostile_profile import empty_profile, hostile_profile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sample_profile import predicted_profile, sample_profile

import apex4_probe as apex
from apex4_probe.errors import ApexError
from apex4_probe.reports import layer_tables, tables
from apex4_probe.reports.axes import co_issue_lines

PLOTS = ("throughput", "co_issue", "balance", "speedup")


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    import matplotlib.pyplot as plt

    mpl.use("agg")
    yield
    plt.close("all")


def new_axes() -> Axes:
    return Figure(figsize=(8, 4)).add_subplot()


def draw(name: str) -> Callable[..., Axes]:
    return getattr(apex.plot, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PLOTS)
def test_it_draws_where_it_is_told_and_returns_the_axes(name: str) -> None:
    import matplotlib.pyplot as plt

    target = new_axes()
    assert draw(name)(sample_profile(), ax=target) is target
    assert target.has_data()
    assert "H100" in target.get_title(loc="left") + target.get_title()
    assert plt.get_fignums() == []  # no figure of its own beside
    own = draw(name)(sample_profile())
    assert isinstance(own, Axes) and plt.get_fignums() == [own.get_figure().number]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PLOTS)
def test_nothing_to_draw_is_one_sentence_and_leaves_no_figure(name: str) -> None:
    import matplotlib.pyplot as plt

    with pytest.raises(ApexError, match="this profile holds no"):
        draw(name)(empty_profile())
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", PLOTS)
def test_hostile_names_are_text(name: str) -> None:
    target = draw(name)(hostile_profile(), ax=new_axes())
    figure: Any = target.get_figure()
    figure.canvas.draw()
    texts = [text.get_text() for text in (*target.get_yticklabels(), *target.get_xticklabels(), target.title)]
    assert all("\x1b" not in text and len(text) < 200 for text in texts)


@pytest.mark.parametrize("family", ["Tensor Core", "CUDA Core", "Memory"])
def test_bars_are_the_primary_figures(family: Any) -> None:
    profile = sample_profile()
    target = apex.plot.throughput(profile, family, ax=new_axes())
    primary = [
        m for m in profile.measurements if tables.family(m) == family and tables.is_primary(m) and m.value is not None
    ]
    expected = [(m.value or 0) / (2 if family == "CUDA Core" and m.unit == "TFLOPS" else 1) for m in primary]
    assert [bar.get_width() for bar in target.patches] == pytest.approx(expected)  # type: ignore[attr-defined]
    labels = [label.get_text().removesuffix(" (emulated)") for label in target.get_yticklabels()]
    assert labels == [m.name for m in primary]


def test_measured_is_solid_and_predicted_hatched() -> None:
    solid = apex.plot.throughput(sample_profile(), ax=new_axes()).patches
    hatched = apex.plot.throughput(predicted_profile(), ax=new_axes()).patches
    assert {bar.get_hatch() for bar in solid} == {None}
    assert None not in {bar.get_hatch() for bar in hatched}


def test_co_issue_lines_are_the_curves_of_one_loop() -> None:
    profile = sample_profile()
    curves = co_issue_lines(profile, None, None, None)
    assert len({(curve.mma, curve.shape) for curve in curves}) == 1
    target = apex.plot.co_issue(profile, ax=new_axes())
    assert len(target.get_lines()) == len(curves)
    for line, curve in zip(target.get_lines(), curves, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), curve.ks)
        np.testing.assert_array_equal(line.get_ydata(), curve.ratios)
    with pytest.raises(ApexError, match=r"no co-issue curve of mma\.s4.*this profile has "):
        apex.plot.co_issue(profile, mma="mma.s4", ax=new_axes())


def test_balance_marks_the_expected_cycles() -> None:
    profile = sample_profile()
    target = apex.plot.balance(profile, ax=new_axes())
    marks = [float(np.asarray(line.get_xdata())[0]) for line in target.get_lines() if line.get_marker() == "D"]
    assert marks == pytest.approx([1000 * item.cycles_expected for item in profile.balance])
    intervals = [list(np.asarray(line.get_xdata())) for line in target.get_lines() if line.get_marker() == "|"]
    expected = [[1000 * item.cycles_full_overlap, 1000 * item.cycles_no_overlap] for item in profile.balance]
    assert np.allclose(intervals, expected)
    with pytest.raises(ApexError, match="no balance of fp8"):
        apex.plot.balance(profile, format="fp8", ax=new_axes())


def test_speedups_are_the_times_of_the_layers() -> None:
    profile = sample_profile()
    target = apex.plot.speedup(profile, ax=new_axes())
    points = sorted(
        float(np.asarray(line.get_ydata())[0]) for line in target.get_lines() if line.get_linestyle() == "None"
    )
    expected = sorted(layer_tables.speedup(time) or 0 for layer in profile.layers for time in layer.times)
    assert points == pytest.approx(expected)


def test_an_unknown_family_is_one_sentence() -> None:
    with pytest.raises(ApexError, match="no family 'GPU'"):
        apex.plot.throughput(sample_profile(), "GPU", ax=new_axes())  # type: ignore[arg-type]


def test_the_callers_style_is_left_alone() -> None:
    before = dict(mpl.rcParams)
    apex.plot.throughput(sample_profile(), ax=new_axes())
    assert dict(mpl.rcParams) == before
