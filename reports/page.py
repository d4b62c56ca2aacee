"""One self-contained HTML page of a profile, and its figures as PNG."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from apex4_probe.deployment import Profile
from apex4_probe.health import Health, compare_with_shipped
from apex4_probe.reports import (
    co_issue_reading,
    co_issue_tables,
    health_words,
    kernel_tables,
    layer_tables,
    link_tables,
    page_shell,
    roofline,
    roofline_plot,
    sass_table,
    tables,
    verdict,
    verdict_plot,
    wording,
)
from apex4_probe.reports.co_issue_curves import KNEE_TOLERANCE
from apex4_probe.reports.page_shell import Picture
from apex4_probe.reports.tables import Table
from apex4_probe.sass_bounds import sass_records
from apex4_probe.sass_records import HotLoop, SassRecord, shipped_loops

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
NO_HEALTH = Health("", "", False, (), ())


def report_files(profile: Profile) -> dict[str, bytes]:
    """``report.html`` and a PNG for every figure the profile has data for, by file name; the caller writes them."""
    from apex4_probe.reports import figure_style

    drawn = _figures(profile)
    page = _render(
        profile, {name: _picture(profile, name, figure) for name, figure in drawn.items()}, _details(profile)
    )
    pictures = {f"{name}.png": figure_style.to_png(figure) for name, figure in drawn.items()}
    return {PAGE: page.encode("utf-8", "replace"), **pictures}


def _figures(profile: Profile) -> dict[str, Figure]:
    from apex4_probe.reports import co_issue_plots, figure_style, plots
    from apex4_probe.reports.sass_plot import sass_figure

    draw: dict[str, Callable[[Profile], Figure | None]] = {
        "verdict": verdict_plot.verdict_figure,
        "throughput": plots.throughput_figure,
        "co_issue": co_issue_plots.co_issue_figure,
        "balance": plots.balance_figure,
        "roofline": roofline_plot.roofline_figure,
        "speedup": plots.speedup_figure,
        "sass": lambda known: sass_figure(*counted(known)),
    }
    drawn = {name: function(profile) for name, function in draw.items()}
    found = {name: figure for name, figure in drawn.items() if figure is not None}
    for figure in found.values():
        figure_style.lay_out(figure)
    return found


def counted(profile: Profile) -> tuple[list[SassRecord], list[HotLoop]]:
    """What the catalogue's kernels were compiled to for this architecture, as it ships; empty: none were counted."""
    loops = [loop for loop in shipped_loops() if loop.compute_capability == profile.device.compute_capability]
    return sass_records(loops), loops


def _picture(profile: Profile, name: str, figure: Figure) -> Picture:
    from apex4_probe.reports import figure_style

    alt, caption = _words(profile)[name]
    return Picture(figure_style.to_svg(figure, f"fig-{name}"), name.replace("_", "-"), alt, caption)


def _details(profile: Profile) -> list[Picture]:
    from apex4_probe.reports import co_issue_plots, figure_style

    pictures = []
    for index, (title, figure) in enumerate(co_issue_plots.co_issue_details(profile).items()):
        alt = f"Co-issue curves of {title}: a panel per placement, a line per instruction; the table has the numbers."
        pictures.append(Picture(figure_style.to_svg(figure, f"fig-detail-{index}"), title, alt))
    return pictures


def _words(profile: Profile) -> dict[str, tuple[str, str]]:
    """Alt text and caption of every figure."""
    device = wording.clean(profile.device.name)
    solid = "Solid: measured. Hatched: predicted or from a datasheet."
    timed = verdict.times_origin(profile) == "measured"
    brings = "as timed" if timed else "with a line from no overlap of the pipes to full"
    spans = "as timed" if timed else "from no overlap to full overlap"
    return {
        "verdict": (
            f"Bars: {verdict.headline(profile)} Beside it what each granularity of scales costs in SM cycles.",
            f"{solid} Left: what the choice brings, {brings}. Right: cycles of "
            "each granularity over one scale per channel, by its cheapest strategy; in the green band a granularity "
            "costs nothing that matters.",
        ),
        "throughput": (
            f"Bars: throughput of Tensor Core, CUDA Core and memory on {device}, each beside its physical peak.",
            f"{solid} Dashed: the physical peak at the clock that the probe ran at. Whiskers: 10th to 90th percentile.",
        ),
        "co_issue": (
            f"Lines: cycles over the MMA alone against CUDA-core instructions per accumulator, on {device}.",
            "The Tensor Core works while CUDA Cores do something else. Where a curve is flat, that work hides behind "
            f"the MMA; the ring marks the knee, the last point up to which it costs at most {KNEE_TOLERANCE - 1:.0%}.",
        ),
        "balance": (
            f"Stacked bars: SM cycles of every pipe for each dequantisation strategy on {device}, and the expected.",
            f"{solid} Pipes are drawn end to end. The line under each bar reaches from full overlap of the pipes to "
            "none, the diamond is what the overlap makes of it; the factor compares with one scale per channel.",
        ),
        "roofline": (
            roofline_plot.alt_text(profile),
            "Left of the ridge memory decides, so fewer bits a weight pay; right of it the Tensor Core decides, unless "
            "dequantisation keeps the SMs busy for longer (the lower ceilings). Filled markers stand on the roof, the "
            "most that a layer can reach; crosses are where it was timed, three-pointed stars where the plan's "
            "predicted time puts it, quantising its activations included.",
        ),
        "sass": (
            f"Stacked bars: SM cycles of every pipe for each kernel's hot loop, compiled for {device}; three bounds.",
            "Counted in the kernels' machine code at the architecture's documented rates, per 1000 accumulators and "
            "128 of K; nothing was run. The line reaches from full overlap of the pipes to none, the diamond is the "
            "Tensor Core and dequantisation in sequence; beside it the three as speed-ups over FP16 at its peak.",
        ),
        "speedup": (
            f"Points: speed-up over FP16 of each layer role at each M on {device}, {spans}.",
            "Speed-up over FP16 of the chosen format, activation quantisation counted in. "
            + ("Timed." if timed else "Hollow: predicted."),
        ),
    }


def _render(profile: Profile, pictures: dict[str, Picture], details: list[Picture]) -> str:
    health = compare_with_shipped(profile)
    records, loops = counted(profile)
    shown: dict[str, Table] = {
        "verdict": verdict_plot.verdict_table(profile),
        "health": health_words.health_table(health or NO_HEALTH),
        "links": link_tables.profile_links_table(profile),
        "roofline": roofline.roofline_table(roofline.roofline(profile)),
        "device": tables.device_table(profile),
        "throughput": tables.throughput_table(profile),
        "rho": tables.rho_table(profile),
        "co_issue": co_issue_tables.co_issue_table(profile),
        "balance": tables.balance_table(profile),
        "sass_executed": sass_table.executed_table(records, loops),
        "sass_pipes": sass_table.pipes_table(records, loops),
        "sass_bounds": sass_table.bounds_table(records, loops),
        "layers": layer_tables.layer_table(profile),
        "layer_times": layer_tables.layer_times_table(profile),
        "packings": kernel_tables.packing_table(profile),
        "kernels": kernel_tables.kernel_table(profile),
        "gemm_timings": kernel_tables.gemm_timing_table(profile),
        "rejected": tables.rejected_table(profile),
        "environment": tables.environment_table(profile),
    }
    return page_shell.render(
        "report.html.j2",
        health=health_words.sentences(health) if health else [],
        co_issue_reading=co_issue_reading.reading(profile),
        headline=verdict.headline(profile),
        predicted=profile.origin == "predicted",
        provenance=verdict.provenance_line(profile),
        device=wording.clean(profile.device.name),
        model=wording.clean(profile.workload.model),
        decision=verdict.decision_facts(profile.decision),
        w4a4=verdict.w4a4_answer(profile),
        w4a4_facts=verdict.decision_facts(profile.w4a4) if profile.w4a4 else [],
        reasons=layer_tables.layer_reasons(profile),
        notes=[wording.prose(note) for note in profile.notes],
        warnings=[wording.prose(warning) for warning in profile.provenance.warnings],
        command=wording.prose(profile.provenance.command),
        tables=shown,
        pictures=pictures,
        details=details,
    )
