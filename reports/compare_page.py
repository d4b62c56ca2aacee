"""One self-contained HTML page of a comparison, and its figures as PNG and SVG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from apex4_probe.compare_records import Comparison
from apex4_probe.reports import compare_curves, compare_dots, compare_rho_plot, owners, wording
from apex4_probe.reports import compare_pair_tables as pair_tables
from apex4_probe.reports import compare_tables as tables
from apex4_probe.reports import compare_words as words
from apex4_probe.reports import figure_style as style
from apex4_probe.reports.co_issue_curves import KNEE_TOLERANCE
from apex4_probe.reports.host_tables import HostSection
from apex4_probe.reports.page_shell import Picture, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "compare.html"
FIGURES: dict[str, Callable[[Comparison], Figure | None]] = {
    "rho": compare_rho_plot.rho_figure,
    "throughput": compare_dots.throughput_figure,
    "speedup": compare_dots.gain_figure,
    "times": compare_dots.time_figure,
    "co_issue": compare_curves.co_issue_figure,
}


def comparison_files(comparison: Comparison, host: HostSection | None = None) -> dict[str, bytes]:
    """``compare.html``, a PNG and an SVG of every figure that there is data for, and ``owners.md`` where something is
    predicted, by file name; the page last. ``host``: what the page begins with where the GPUs are those of one host."""
    drawn = {name: draw(comparison) for name, draw in FIGURES.items()}
    files: dict[str, bytes] = {}
    pictures: dict[str, Picture] = {}
    for name, figure in drawn.items():
        if figure is not None:
            _lay_out(figure)
            title, alt, caption = _words(comparison)[name]
            svg = style.to_svg(figure, f"fig-{name}")
            pictures[name] = Picture(svg, title, alt, caption)
            files[f"{name}.png"] = style.to_png(figure)
            files[f"{name}.svg"] = _svg_file(svg)
    if (for_owners := owners.owners_page(comparison)) is not None:
        files[owners.PAGE] = for_owners.encode("utf-8", "replace")
    return {**files, PAGE: _page(comparison, pictures, host).encode("utf-8", "replace")}


def headline(comparison: Comparison) -> str:
    """How many profiles, and how many answers of which kind."""
    answers = [entry.answer for entry in comparison.entries if entry.answer is not None]
    count = len(comparison.entries)
    native = [a for a in answers if a.w4a4.format == "w4a4"]
    fine = sum(wording.verdict_word(a.w4a4.format, a.w4a4.granularity) == "fine" for a in native)
    plain = sum(wording.verdict_word(a.plain.format, a.plain.granularity) == "fine" for a in native)
    model = wording.clean(comparison.workload.model)
    if not native:
        fastest = Counter(wording.format_name(answer.decision.format) for answer in answers)
        told = ", ".join(f"{name} on {times}" for name, times in fastest.most_common())
        return f"{count} GPU profiles, {model}: W4A4 pays on none of them; fastest is {told or 'unknown'}."
    return (
        f"{count} GPU profiles, {model}: W4A4 with fine group scales pays on {fine} of them, on {plain} with the "
        "paper's plain dequantisation."
    )


def sources(comparison: Comparison) -> str:
    measured = sum(words.is_measured(entry) for entry in comparison.entries)
    return f"{measured} measured, {len(comparison.entries) - measured} predicted from datasheets."


@style.styled
def _lay_out(figure: Figure) -> None:
    """Once for all three files: laying out costs more than drawing."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")


def _svg_file(inline: str) -> bytes:
    """The page's drawing as a file of its own: with its namespace, on white, the page's colours written out."""
    for page, fixed in (("currentColor", style.INK), ("var(--rule)", style.RULE), ("var(--paper)", style.PAPER)):
        inline = inline.replace(page, fixed)
    paper = f'<rect width="100%" height="100%" fill="{style.PAPER}"/>'
    head, body = inline.removeprefix("<svg ").split(">", 1)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{paper}{body}'.encode("utf-8", "replace")


def _words(comparison: Comparison) -> dict[str, tuple[str, str, str]]:
    """Title, alt text and caption of every figure."""
    count = len(comparison.entries)
    workload = ", ".join(words.point_name(*point) for point in words.points(comparison)[:4])
    return {
        "rho": (
            "rho across GPUs",
            f"Above, two maps of which granularity has the best expected quality at each rho and wanted speed-up over "
            f"FP16: W4A16, fine, mixed, coarse or FP16. Below, the rho of {count} profiles, coloured by their answer.",
            "At a wanted speed-up the map names the best expected quality among the W4A16 and W4A4 plans that reach "
            f"it. Markers below: each GPU's own answer at {comparison.workload.min_speedup:g}×. "
            f"{comparison.map.assumption}",
        ),
        "throughput": (
            "Throughput",
            f"Dots: Tensor Core and CUDA Core throughput of {count} profiles, per second, per clock and SM, per watt.",
            "Solid: measured. Hollow: from a datasheet or predicted; per watt it is solid only where throughput and "
            "power were measured under the same sustained load, hollow over the datasheet's power.",
        ),
        "speedup": (
            "Speed-up over FP16 by granularity",
            f"Dots with intervals: speed-up over FP16 of each granularity on {count} profiles, a panel a granularity.",
            f"Workload: {workload}. What was not timed is predicted, from measured rates where the row says "
            "measured; the line runs from no overlap of the pipes to full overlap.",
        ),
        "times": (
            "Expected time of a step",
            f"Dots: milliseconds of all linear layers in the chosen format and in FP16 on {count} profiles.",
            "Hollow: predicted, from measured rates where the row says measured. The colour is the chosen format.",
        ),
        "co_issue": (
            "Co-issue curves overlaid",
            "Lines: cycles over the MMA alone against CUDA-core instructions per accumulator, a panel for each loop "
            "that two profiles share, a line a profile.",
            f"Only curves of the same MMA, shape, placement and instruction. The band is free: at most "
            f"{KNEE_TOLERANCE:.2f}× the MMA alone.",
        ),
    }


def _page(comparison: Comparison, pictures: dict[str, Picture], host: HostSection | None) -> str:
    pairs = [
        {
            "table": pair_tables.pair_table(pair),
            "summary": pair_tables.pair_summary(pair),
            "caution": wording.prose(pair.caution),
            "differences": pair_tables.difference_facts(pair),
        }
        for pair in comparison.pairs
    ]
    return render(
        "compare.html.j2",
        headline=headline(comparison),
        sources=sources(comparison),
        remarks=[wording.prose(remark) for remark in comparison.remarks],
        notes=tables.notes(comparison),
        tables={
            "verdict": tables.verdict_table(comparison),
            "rho": tables.rho_table(comparison),
            "regions": tables.region_table(comparison),
            "throughput": tables.throughput_table(comparison),
            "speedup": tables.gain_table(comparison),
            "times": tables.time_table(comparison),
            "cost": tables.cost_table(comparison),
            "co_issue": compare_curves.co_issue_table(comparison),
        },
        pictures=pictures,
        pairs=pairs,
        model=wording.clean(comparison.workload.model),
        command=wording.prose(comparison.command),
        host=host,
    )
