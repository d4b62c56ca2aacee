"""What was tuned, on the terminal and on the page: every figure of the profile, and nothing where there is none."""

from __future__ import annotations

import io

import pytest
from hostile_profile import hostile_profile
from rich.console import Console
from sample_profile import predicted_profile, sample_profile

from apex4_probe.deployment import Profile
from apex4_probe.reports.kernel_tables import chosen_kernel_table, gemm_timing_table, kernel_table, packing_table
from apex4_probe.reports.layer_tables import layer_times_table
from apex4_probe.reports.page import report_files
from apex4_probe.reports.terminal import print_profile


def terminal(profile: Profile, width: int = 80) -> str:
    stream = io.StringIO()
    print_profile(profile, Console(file=stream, width=width, color_system=None, legacy_windows=False))
    return stream.getvalue()


def page(profile: Profile) -> str:
    return report_files(profile)["report.html"].decode()


def test_the_plans_kernels_with_what_they_bring_and_what_comes_next() -> None:
    profile = sample_profile()
    rows = chosen_kernel_table(profile).rows
    ours = [table for table in profile.kernels if (table.format, table.granularity) == ("w4a8", "g128i")]
    assert len(rows) == sum(len(table.kernels) for table in ours) == 8
    for row, (table, kernel) in zip(rows, [(t, k) for t in ours for k in t.kernels], strict=True):
        shape, m, variant, us, speedup, following, behind = row.cells
        assert (shape, m, variant) == (f"{table.n} × {table.k}", str(kernel.m_max), kernel.variant)
        assert float(us) == pytest.approx(kernel.us, rel=0.005)
        assert float(speedup.rstrip("×")) == pytest.approx(kernel.speedup, abs=0.005)
        assert kernel.runner_up is not None and kernel.runner_up_us is not None
        assert following == kernel.runner_up.split()[0]
        assert float(behind.rstrip("×")) == pytest.approx(kernel.runner_up_us / kernel.us, abs=0.005)


def test_every_packing_has_its_kernels_with_their_tiles_and_every_gemm_its_time() -> None:
    profile = sample_profile()
    kernels = [row for row in kernel_table(profile).rows if not row.section]
    assert len(kernels) == sum(len(table.kernels) for table in profile.kernels) == 24
    assert {row.cells[2] for row in kernels} == {k.tile for table in profile.kernels for k in table.kernels}
    headings = [row.cells[0] for row in kernel_table(profile).rows if row.section]
    assert len(headings) == len(profile.kernels) and headings[0] == "6144 × 4096, W4A8 g128i"


def test_every_gemm_has_its_time_under_its_shape_and_m_the_fastest_first() -> None:
    profile = sample_profile()
    sections: dict[str, list[tuple[str, ...]]] = {}
    for row in gemm_timing_table(profile).rows:
        if row.section:
            heading = row.cells[0]
        else:
            sections.setdefault(heading, []).append(row.cells)
            assert row.cells[-1] == "measured" and not row.predicted
    for timing in profile.gemm_timings:
        rows = sections[f"{timing.n} × {timing.k}, M = {timing.m}"]
        (cells,) = [cells for cells in rows if cells[:2] == (timing.variant, timing.tile or "–")]
        assert float(cells[2]) == pytest.approx(timing.us, rel=0.005)
        assert float(cells[3]) == pytest.approx(timing.us_quantise, rel=0.005)
    for rows in sections.values():
        totals = [float(cells[2]) + float(cells[3]) for cells in rows]
        assert totals == pytest.approx(sorted(totals), rel=0.005)
    assert sum(map(len, sections.values())) == len(profile.gemm_timings)


def test_which_format_is_fastest_at_how_many_tokens_and_by_how_much() -> None:
    profile = sample_profile()
    table = packing_table(profile)
    titles = [column.title for column in table.columns]
    assert titles[:2] == ["M", "FP16"] and titles[-2:] == ["fastest", "ahead by"]
    assert len(set(titles)) == len(titles)
    for row in table.rows:
        if row.section:
            n, k = (int(number) for number in row.cells[0].split(" × "))
            continue
        cells = dict(zip(titles, row.cells, strict=True))
        times: dict[str, float] = {}
        for timing in profile.gemm_timings:
            if (timing.n, timing.k, timing.m) == (n, k, int(cells["M"])) and timing.variant not in ("int8", "read"):
                name = timing.variant.upper() if timing.tile == "" else f"{timing.format.upper()} {timing.granularity}"
                times[name] = min(times.get(name, 1e9), timing.us + timing.us_quantise)
        assert {name: pytest.approx(float(cells[name]), rel=0.005) for name in times} == times
        first, second = sorted(times, key=lambda name: times[name])[:2]
        assert cells["fastest"] == first
        assert float(cells["ahead by"].rstrip("%")) == pytest.approx(100 * (times[second] / times[first] - 1), abs=0.06)


def test_a_layer_that_was_timed_names_its_kernel_and_origin() -> None:
    layer = sample_profile().layers[0]
    timed = layer.times[0].model_copy(update={"origin": "measured", "kernel": "w4a8.small.g128i rows=32"})
    profile = sample_profile(layers=[layer.model_copy(update={"times": [timed, layer.times[1]]})])
    measured, predicted = layer_times_table(profile).rows
    assert measured.cells[-2:] == ("w4a8.small.g128i rows=32", "measured") and not measured.predicted
    assert predicted.cells[-2:] == ("–", "predicted") and predicted.predicted


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_and_page_show_them(width: int) -> None:
    profile = sample_profile()
    shown = terminal(profile, width)
    assert "Which format at how many tokens" in shown and "Kernels of the plan" in shown and "w4a8.small.g128i" in shown
    assert all(len(line) <= width for line in shown.splitlines())
    html = page(profile)
    assert "Which format at how many tokens, as timed" in html
    assert "Kernels by layer shape, packing and number of tokens" in html
    assert "Every GEMM as it was timed, FP16 and FP8 among them" in html
    assert "rows=128,tokens=256,stages=4,split_k=1" in html


def test_a_profile_without_timings_shows_no_empty_table() -> None:
    profile = predicted_profile()
    assert "Kernels of the plan" not in terminal(profile) and "at how many tokens" not in terminal(profile)
    assert "Kernels by layer shape" not in page(profile) and "Every GEMM as it was timed" not in page(profile)
    stay = sample_profile(layers=[layer.model_copy(update={"format": "fp16"}) for layer in sample_profile().layers])
    assert "Kernels of the plan" not in terminal(stay) and "at how many tokens" in terminal(stay)


def test_a_strangers_names_are_harmless() -> None:
    html, shown = page(hostile_profile()), terminal(hostile_profile())
    assert "<script>alert" not in html and "\x1b" not in shown and "\u202e" not in html + shown
