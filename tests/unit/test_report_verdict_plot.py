"""The picture under the headline shows what the profile holds."""

from __future__ import annotations

import numpy as np
import pytest
from hostile_profile import empty_profile
from matplotlib.patches import Rectangle
from sample_profile import predicted_profile, sample_profile

from apex4_probe.reports.layer_tables import workload_speedups
from apex4_probe.reports.verdict_plot import cheapest, verdict_figure, verdict_table


def test_speedups_add_up_layers_and_counts() -> None:
    profile = sample_profile()
    decode, prefill, whole = workload_speedups(profile)
    times = [(layer.count, time) for layer in profile.layers for time in layer.times if time.m == 2048]
    fp16 = sum(count * time.us_fp16 for count, time in times)
    assert (decode.label, prefill.label) == ("decode, M = 16", "prefill, M = 2048")
    assert prefill.value == pytest.approx(fp16 / sum(count * time.us for count, time in times))
    assert prefill.low == pytest.approx(fp16 / sum(count * time.us_high for count, time in times))
    assert prefill.high == pytest.approx(fp16 / sum(count * time.us_low for count, time in times))
    assert (whole.value, whole.low, whole.high) == (1.92, 1.42, 2.04)


def test_a_point_that_some_layer_lacks_is_left_out() -> None:
    layers = list(sample_profile().layers)
    layers[0] = layers[0].model_copy(update={"times": layers[0].times[1:]})
    assert [item.label for item in workload_speedups(sample_profile(layers=layers))] == [
        "prefill, M = 2048",
        "whole workload",
    ]


def test_one_strategy_a_granularity_the_cheapest() -> None:
    balance = sample_profile().balance
    chosen = cheapest(sample_profile())
    assert len({item.granularity for item in chosen}) == len(chosen) > 1
    assert {item.format for item in chosen} == {"w4a8"}
    for item in chosen:
        rivals = [b for b in balance if (b.format, b.granularity) == (item.format, item.granularity)]
        assert item.cycles_expected == min(rival.cycles_expected for rival in rivals)


@pytest.mark.parametrize("make", [sample_profile, predicted_profile])
def test_bars_have_the_tables_lengths(make: object) -> None:
    profile = make()  # type: ignore[operator]
    figure = verdict_figure(profile)
    assert figure is not None
    lengths = [
        [bar.get_width() for bar in axis.patches if isinstance(bar, Rectangle) and abs(bar.get_height() - 0.6) < 1e-9]
        for axis in figure.axes
    ]
    values = [item.value for item in workload_speedups(profile)], [item.over_channel for item in cheapest(profile)]
    assert lengths == [pytest.approx(column) for column in values]
    spans = [np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert spans == [
        pytest.approx([item.low, item.high]) for item in workload_speedups(profile) if item.high > item.low
    ]
    cells = [row.cells for row in verdict_table(profile).rows if not row.section]
    assert [cell[1] for cell in cells[:3]] == [f"~{value:.2f}×" for value in values[0]]


def test_an_empty_profile_has_no_picture() -> None:
    assert verdict_figure(empty_profile()) is None
    assert verdict_table(empty_profile()).rows == ()
