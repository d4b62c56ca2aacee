"""What a prediction assumes, in a few sentences computed from the sources that its records carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from apex4_probe.datasheets import Datasheet
from apex4_probe.deployment import CoIssue, Measurement, StrategyBalance

UNSOURCED = "unsourced"
ASSUMED = "assumed: "


def assumptions(
    sheet: Datasheet,
    measurements: Iterable[Measurement],
    co_issue: Sequence[CoIssue],
    balance: Sequence[StrategyBalance],
) -> tuple[str, ...]:
    """One sentence for each kind of origin: listed, scaled from the architecture, assumed, carried over, counted."""
    figures = [m for m in measurements if m.value is not None and m.origin != "measured"]
    return (
        *_datasheet(sheet, figures),
        *_computed(figures),
        *_carried_over(co_issue, balance),
        *_counted(balance),
    )


def _datasheet(sheet: Datasheet, figures: Sequence[Measurement]) -> Iterator[str]:
    listed = [m for m in figures if m.origin == "datasheet"]
    for source, members in _by_source(listed).items():
        if UNSOURCED not in source:
            yield f"Assumed: {_names(members)} as listed, at the listed clock ({source})."
    doubtful = [key for key, figure in sheet.figures.items() if UNSOURCED in figure.source]
    if doubtful:
        yield f"Assumed, from cloud and shop listings only, since no vendor document was found: {', '.join(doubtful)}."
    derived = [key for key in ("sm_count", "boost_clock_mhz") if sheet.value(key) is None]
    if derived:
        yield f"Assumed: {' and '.join(derived)}, not listed, as the listed FP32 rate implies."
    if sheet.note:
        yield f"About the datasheet: {sheet.note}"


def _computed(figures: Sequence[Measurement]) -> Iterator[str]:
    """What the datasheet does not list: by the architecture's rates, by analogy, or as another GPU does."""
    predicted = [m for m in figures if m.origin == "predicted"]
    analogies = _by_source([m for m in predicted if (m.source or "").startswith(ASSUMED)])
    scaled = [m for m in predicted if m.per_clk_per_sm and not (m.source or "").startswith(ASSUMED)]
    elsewhere = _by_source([m for m in predicted if not m.per_clk_per_sm])
    if scaled:
        yield (
            f"Assumed: {_names(scaled)} at the documented rate of the architecture or of a listed sibling, times SMs "
            "and clock; every record names its source."
        )
    if analogies:
        told = (f"{_names(members)} ({source.removeprefix(ASSUMED)})" for source, members in analogies.items())
        yield f"Assumed by analogy, since nobody documents it: {'; '.join(told)}."
    if elsewhere:
        told = (f"{_names(members)} ({source})" for source, members in elsewhere.items())
        yield f"Assumed: {'; '.join(told)}."


def _carried_over(co_issue: Sequence[CoIssue], balance: Sequence[StrategyBalance]) -> Iterator[str]:
    donors = dict.fromkeys(
        (point.source or "").partition(": ")[0] for point in co_issue if point.origin == "predicted" and point.source
    )
    if donors:
        overlaps = [item.overlap for item in balance if item.overlap_origin == "predicted"]
        between = f", {min(overlaps):.2f} to {max(overlaps):.2f} of the shorter" if overlaps else ""
        yield (
            f"Assumed: the pipes overlap as measured elsewhere ({'; '.join(donors)}{between}); the interval of every "
            "time and speed-up runs from full overlap to none."
        )
    elif balance:
        yield (
            "Assumed: no overlap of the pipes, since no measured GPU with such co-issue points ships; the interval of "
            "every time and speed-up runs from full overlap to none."
        )


def _counted(balance: Sequence[StrategyBalance]) -> Iterator[str]:
    counted = dict.fromkeys(item.source.partition(";")[0] for item in balance)
    if counted:
        yield f"Assumed: kernels whose pipes take what they execute at these rates ({'; '.join(counted)})."


def _by_source(figures: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for figure in figures:
        found.setdefault(figure.source or "no source given", []).append(figure)
    return found


def _names(members: Sequence[Measurement]) -> str:
    return ", ".join(dict.fromkeys(m.name for m in members))
