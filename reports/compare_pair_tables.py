"""Two profiles of one device as a table and a sentence: what changed, and whether that is more than noise."""

from __future__ import annotations

from apex4_probe.compare_records import Pair
from apex4_probe.reports import wording
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

SIGNIFICANCE = {
    "same": "not significant",
    "changed": "changed",
    "beyond cards": "changed, beyond cards",
    "prediction": "measured against predicted",
}


def pair_table(pair: Pair) -> Table:
    """What changed between two profiles of one device, significant changes first."""
    order = ("beyond cards", "changed", "prediction", "same")
    rows = []
    for change in sorted(pair.changes, key=lambda change: order.index(change.significance)):
        shift = ABSENT if change.ratio is None else f"{100 * (change.ratio - 1):+.1f}%"
        cells = (
            wording.clean(change.figure),
            wording.clean(change.unit),
            wording.number(change.first),
            wording.number(change.second),
            shift,
            wording.percent(change.bound),
            SIGNIFICANCE[change.significance],
            wording.prose(change.why),
        )
        rows.append(Row(cells))
    titles = ("figure", "unit", "#first", "#second", "#change", "#noise", "significant", "why")
    name = f"{wording.clip(pair.first.label, 60)} and {wording.clip(pair.second.label, 60)}"
    return Table(name, columns_of(*titles), tuple(rows), wording.prose(pair.caution))


def pair_summary(pair: Pair) -> str:
    """One sentence: how many figures changed, and whether more than two cards of one name differ by."""
    counts = {kind: sum(change.significance == kind for change in pair.changes) for kind in SIGNIFICANCE}
    if not pair.changes:
        return "No figure is measured in both."
    if counts["prediction"]:
        ratios = [change.ratio for change in pair.changes if change.ratio]
        off = sorted(abs(ratio - 1) for ratio in ratios)
        return f"{len(ratios)} figures in both; the median differs by {100 * off[len(off) // 2]:.1f}%."
    return (
        f"Of {len(pair.changes)} figures {counts['same']} did not change significantly, {counts['changed']} changed by "
        f"no more than two cards of one name may differ, {counts['beyond cards']} by more."
    )


def difference_facts(pair: Pair) -> list[tuple[str, str]]:
    """Which profile is which, and every field of device and environment in which they differ."""
    where = f"first {wording.clean(pair.first.where)}, second {wording.clean(pair.second.where)}"
    fields = [
        (
            wording.clean(item.field),
            f"{wording.clean(item.first)} → {wording.clean(item.second)}: {wording.prose(item.why)}",
        )
        for item in pair.differences
    ]
    return [("profiles", where), *fields]
