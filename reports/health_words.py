"""The health check in sentences and as a table."""

from __future__ import annotations

from collections.abc import Sequence

from apex4_probe.health import Compared, Health, summary
from apex4_probe.reports import wording
from apex4_probe.reports.tables import Column, Row, Table, columns_of

CAPTION = (
    "Ratio: here over shipped. Not significant where the difference is within what two runs on one card and their "
    "spreads allow and, per second, the 5 % by which two cards of one name differ."
)


def sentences(health: Health) -> list[str]:
    """The finding, and what a shortfall may mean as far as the profile's own fields tell."""
    found = [wording.prose(summary(health))]
    if not health.shortfalls:
        return found
    if health.causes:
        found.append(f"What this profile itself shows of a cause: {wording.prose('; '.join(health.causes))}.")
    else:
        found.append(
            "Nothing that this profile records explains it: clocks, power limit, temperatures, other processes and "
            "driver are as in the shipped one. Measure again with the GPU otherwise idle before concluding anything."
        )
    return found


def health_table(health: Health) -> Table:
    """Every figure beside the shipped one."""
    return _table(health.figures)


def significant_table(health: Health) -> Table:
    """The figures that differ significantly alone, for places with little room."""
    return _table([figure for figure in health.figures if figure.significant])


def _table(figures: Sequence[Compared]) -> Table:
    titles = ("#here", "#shipped", "unit", "#ratio", "reading", "bound")
    columns = (Column("figure", name=True), *columns_of(*titles))
    return Table("Beside the shipped profile", columns, tuple(map(_row, figures)), CAPTION)


def _row(figure: Compared) -> Row:
    return Row(
        (
            wording.clean(figure.name),
            wording.number(figure.here),
            wording.number(figure.shipped),
            wording.clean(figure.unit),
            wording.times(figure.ratio),
            "not significant" if figure.reading == "same" else f"significantly {figure.reading}",
            wording.prose(figure.why),
        )
    )
