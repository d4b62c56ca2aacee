"""One self-contained HTML page of a profile, and its figures as PNG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from apex4_probe.deployment import Profile
from apex4_probe.reports import co_issue_tables, layer_tables, tables, verdict, wording
from apex4_probe.reports.co_issue_curves import KNEE_TOLERANCE
from apex4_probe.reports.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"


@dataclass(frozen=True)
class Picture:
    """A figure as the page inlines it: ``svg`` is made by us from escaped text, so it is safe to insert as it is."""

    svg: str
    alt: str
    caption: str


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
    from apex4_probe.reports import co_issue_plots, plots

    draw: dict[str, Callable[[Profile], Figure | None]] = {
        "throughput": plots.throughput_figure,
        "co_issue": co_issue_plots.co_issue_figure,
        "balance": plots.balance_figure,
        "speedup": plots.speedup_figure,
    }
    drawn = {name: function(profile) for name, function in draw.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _picture(profile: Profile, name: str, figure: Figure) -> Picture:
    from apex4_probe.reports import figure_style

    alt, caption = _words(profile)[name]
    return Picture(figure_style.to_svg(figure, f"fig-{name}"), alt, caption)


def _details(profile: Profile) -> list[Picture]:
    from apex4_probe.reports import co_issue_plots, figure_style

    pictures = []
    for index, (title, figure) in enumerate(co_issue_plots.co_issue_details(profile).items()):
        alt = f"Co-issue curves of {title}: a panel per placement, a line per instruction; the table has the numbers."
        pictures.append(Picture(figure_style.to_svg(figure, f"fig-detail-{index}"), alt, title))
    return pictures


def _words(profile: Profile) -> dict[str, tuple[str, str]]:
    """Alt text and caption of every figure."""
    device = wording.clean(profile.device.name)
    solid = "Solid: measured. Hatched: predicted or from a datasheet."
    return {
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
        "speedup": (
            f"Points: speed-up over FP16 of each layer role at each M on {device}, from no overlap to full overlap.",
            "Speed-up over FP16 of the chosen format, activation quantisation counted in. Hollow: predicted.",
        ),
    }


def _render(profile: Profile, pictures: dict[str, Picture], details: list[Picture]) -> str:
    from jinja2 import DictLoader, Environment, StrictUndefined

    name = "report.html.j2"
    source = (files("apex4_probe.reports") / "templates" / name).read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({name: source}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown: dict[str, Table] = {
        "device": tables.device_table(profile),
        "throughput": tables.throughput_table(profile),
        "rho": tables.rho_table(profile),
        "co_issue": co_issue_tables.co_issue_table(profile),
        "balance": tables.balance_table(profile),
        "layers": layer_tables.layer_table(profile),
        "layer_times": layer_tables.layer_times_table(profile),
        "rejected": tables.rejected_table(profile),
        "environment": tables.environment_table(profile),
    }
    return environment.get_template(name).render(
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
