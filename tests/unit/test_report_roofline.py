"""The roofline: its roofs, its points, and what is drawn of them."""

from __future__ import annotations

import numpy as np
import pytest
from hostile_profile import empty_profile, hostile_profile
from sample_profile import predicted_profile, sample_profile

from apex4_probe.deployment import Profile
from apex4_probe.reports.roofline import LayerPoint, Roofline, ceiling_name, layer_bytes, roofline, roofline_table
from apex4_probe.reports.roofline_plot import alt_text, roofline_figure


def lines_of(profile: Profile) -> Roofline:
    lines = roofline(profile)
    assert lines is not None
    return lines


def point(lines: Roofline, role: str, m: int, fmt: str) -> LayerPoint:
    return next(p for p in lines.points if role in p.roles.split(", ") and p.m == m and p.format == fmt)


def test_bytes_of_a_layer() -> None:
    assert layer_bytes(1, 4096, 4096, "fp16", "none") == 2 * 4096 * 4096 + 2 * 4096 + 2 * 4096
    packed = 4096 * 4096 / 2 + 4 * 4096 + 2 * 4096 * 4096 / 128
    assert layer_bytes(16, 4096, 4096, "w4a8", "g128i") == packed + 16 * 4096 + 4 * 16 + 2 * 16 * 4096


def test_roofs_are_the_measured_rates() -> None:
    lines = lines_of(sample_profile())
    values = {figure.name: figure.value for figure in sample_profile().measurements if figure.operands != "zeros"}
    roofs = {ceiling_name(ceiling): ceiling for ceiling in lines.ceilings}
    assert lines.read_gb_s == values["memory.read"]
    burst = next(f for f in sample_profile().measurements if f.name == "wgmma.s8.m64n256k32.rs" and f.regime == "burst")
    assert roofs["INT8 Tensor Core"].tops == pytest.approx(burst.value)
    assert {roofs[name].origin for name in ("FP16 Tensor Core", "INT8 Tensor Core")} == {"measured"}
    float_scales = [ceiling for ceiling in lines.ceilings if ceiling.granularity == "g128"]
    best = min(item.cycles_expected for item in sample_profile().balance if item.granularity == "g128")
    tensor = next(item for item in sample_profile().balance if item.granularity == "g128").pipes["tensor"]
    assert [c.tops for c in float_scales] == [pytest.approx(roofs["INT8 Tensor Core"].tops * tensor / best, rel=2e-3)]


def test_points_lie_under_the_lower_roof() -> None:
    lines = lines_of(sample_profile())
    one, many = point(lines, "gate", 1, "w4a8"), point(lines, "gate", 4096, "w4a8")
    assert one.bound == pytest.approx(one.intensity * lines.read_gb_s / 1000) and one.bound_by == "memory"
    assert many.bound_by == "Tensor Core"
    assert one.intensity / point(lines, "gate", 1, "fp16").intensity == pytest.approx(
        3.87, abs=0.01
    )  # 16 bits to 4 and scales
    assert {p.m for p in lines.points} >= {1, 16, 256, 4096}


def test_planned_times_become_rates() -> None:
    profile = sample_profile()
    lines = lines_of(profile)
    layer = next(layer for layer in profile.layers if layer.role == "down")
    time = next(time for time in layer.times if time.m == 2048)
    operations = 2 * 2048 * layer.n * layer.k
    assert point(lines, "down", 2048, "w4a8").planned == pytest.approx(operations / time.us / 1e6)
    assert point(lines, "down", 2048, "fp16").planned == pytest.approx(operations / time.us_fp16 / 1e6)
    assert point(lines, "down", 256, "w4a8").planned is None


def timed(profile: Profile) -> Profile:
    """Its times as if they had been measured; o's, of q's shape but in a GEMM of its own, twice as long."""
    layers = [
        layer.model_copy(
            update={
                "times": [
                    time.model_copy(update={"origin": "measured", "us": time.us * (2 if layer.role == "o" else 1)})
                    for time in layer.times
                ]
            }
        )
        for layer in profile.layers
    ]
    return profile.model_copy(update={"layers": layers})


def test_what_was_timed_is_marked_and_layers_of_one_shape_keep_their_own_times() -> None:
    profile = timed(sample_profile())
    lines = lines_of(profile)
    q, o = point(lines, "q", 2048, "w4a8"), point(lines, "o", 2048, "w4a8")
    assert (q.planned_origin, o.planned_origin) == ("measured", "measured")
    assert q.roles == "q" and o.planned == pytest.approx(2 * 2048 * 4096 * 4096 / (profile.layers[3].times[1].us * 1e6))
    cells = {(row.cells[0], row.cells[2], row.cells[3]): row.cells[7] for row in roofline_table(lines).rows}
    assert float(cells["o", "2048", "W4A8 g128i"]) == pytest.approx(o.planned or 0, abs=0.5)  # no ~ before it
    figure = roofline_figure(profile)
    assert figure is not None
    marks = [line.get_marker() for line in figure.axes[0].lines]
    assert (marks.count("x"), marks.count("1")) == (len([p for p in lines.points if p.planned]), 0)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "as timed" in told and "at the predicted time" not in told


def test_a_plan_without_integers_still_shows_what_they_would_do() -> None:
    stay = [layer.model_copy(update={"format": "fp16", "granularity": "none"}) for layer in sample_profile().layers]
    lines = lines_of(sample_profile(layers=stay))
    assert {(p.format, p.granularity) for p in lines.points} == {("fp16", "none"), ("w4a8", "channel")}
    untimed = lines_of(sample_profile(layers=stay, gemm_timings=[]))
    assert all(p.planned is None for p in untimed.points if p.format == "w4a8")


def test_what_was_timed_beside_the_plan_is_drawn_at_the_rate_of_the_whole_gemm() -> None:
    stay = [layer.model_copy(update={"format": "fp16", "granularity": "none"}) for layer in sample_profile().layers]
    profile = sample_profile(layers=stay)
    lines = lines_of(profile)
    (timing,) = [t for t in profile.gemm_timings if (t.variant, t.n, t.m) == ("w4a8.mma.channel", 28672, 2048)]
    gate, k = point(lines, "gate", 2048, "w4a8"), point(lines, "k", 2048, "w4a8")
    assert gate.planned == pytest.approx(2e-6 * 2048 * 28672 * 4096 / (timing.us + timing.us_quantise))
    (fused,) = [t for t in profile.gemm_timings if (t.variant, t.n, t.m) == ("w4a8.mma.channel", 6144, 2048)]
    assert k.planned == pytest.approx(2e-6 * 2048 * 6144 * 4096 / (fused.us + fused.us_quantise))
    assert (gate.planned_origin, k.planned_origin) == ("measured", "measured")
    assert point(lines, "gate", 256, "w4a8").planned is None


def test_predicted_figures_are_predicted() -> None:
    lines = lines_of(predicted_profile())
    assert lines.bandwidth_origin == "predicted"
    assert {p.origin for p in lines.points} == {"predicted"}


@pytest.mark.parametrize("profile", [empty_profile(), hostile_profile(), sample_profile(layers=[])])
def test_without_rates_or_layers_there_is_none(profile: Profile) -> None:
    assert roofline(profile) is None
    assert roofline_figure(profile) is None
    assert alt_text(profile) == ""


def test_the_figure_shows_every_point_and_roof() -> None:
    lines = lines_of(sample_profile())
    figure = roofline_figure(sample_profile())
    assert figure is not None
    axis = figure.axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    drawn = {
        (float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0]))
        for line in axis.lines
        if line.get_marker() in ("o", "s", "^", "D")
    }
    assert drawn == {(p.intensity, p.bound) for p in lines.points if p.m in (1, 16, 256, 4096)}
    marks = [line.get_marker() for line in axis.lines]
    assert (marks.count("x"), marks.count("1")) == (0, len([p for p in lines.points if p.planned]))
    texts = [text.get_text() for text in axis.texts]
    for ceiling in lines.ceilings:
        assert any(ceiling_name(ceiling) in text for text in texts)
    assert "INT8 Tensor Core" in alt_text(sample_profile()) and "at M = 1: memory" in alt_text(sample_profile())
