"""A profile as text to paste: Markdown for an issue, CSV for a spreadsheet, JSON for a program.

A profile is a file that strangers send, and what is pasted is rendered elsewhere: no string of it reaches the output
as markup, as a formula or as a terminal escape.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence

from apex4_probe.deployment import Measurement, Profile
from apex4_probe.reports import co_issue_tables, kernel_tables, layer_tables, link_tables, tables, verdict, wording
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

SPREAD_NOTE = (
    "± is half of the distance from the 10th to the 90th percentile of the samples; ~ before a figure: it was predicted"
)
# Everything that Markdown, its table syntax, its extensions or HTML read as more than text.
_MARKUP = re.compile(
    r"[&<>|`\\*\[\]$@#]"
    r"|(?<![\s(])~|~(?!\d)"  # "~1.32" stays: a tilde before a figure opens nothing
    r"|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])"  # inside a word an underscore is one
    r"|(?<=\w):(?=//)|(?<=\bwww)\.",  # a bare address would become a link
    re.IGNORECASE,
)
_FORMULA = re.compile(r"[=+\-@\t\r]")  # at the start of a cell a spreadsheet reads a formula


def markdown(profile: Profile) -> str:
    """Device, driver and tool version; then as tables measurements, links, rho, co-issue, timed kernels, verdict."""
    parts = [*about_lines(profile), "", markdown_table(measurement_table(profile))]
    more = [
        link_tables.profile_links_table(profile),
        tables.rho_table(profile),
        kernel_tables.packing_table(profile),
        layer_tables.layer_table(profile),
        kernel_tables.chosen_kernel_table(profile),
    ]
    if profile.co_issue:
        more.insert(2, co_issue_tables.co_issue_summary(profile)[0])
    for table in more:
        if table.rows:
            parts += ["", f"**{escaped(table.title)}**", "", markdown_table(table)]
    parts += ["", escaped(verdict.headline(profile))]
    return "\n".join(parts) + "\n"


def about_lines(profile: Profile) -> list[str]:
    """What must be known to compare two pasted tables: device, driver and versions, origin, date, warnings."""
    device, environment, provenance = profile.device, profile.environment, profile.provenance
    mig = f", MIG slice {wording.clean(device.mig)}" if device.mig else ""
    power = "" if device.power_limit_w is None else f", {device.power_limit_w:g} W"
    silicon = f"compute capability {device.compute_capability}, {device.sm_count} SMs{power}{mig}"
    driver = wording.clean(environment.driver) if environment.driver else "not reported"
    cuda = f", CUDA {wording.clean(environment.cuda_driver)}" if environment.cuda_driver else ""
    commit = f" ({wording.clean(provenance.commit)})" if provenance.commit else ""
    origin = "measured" if profile.origin == "measured" else "PREDICTED, nothing was measured"
    facts = [
        ("device", f"{wording.clean(device.name)} ({silicon})"),
        ("driver", driver + cuda),
        ("tool", f"apex4-probe {wording.clean(profile.tool_version)}{commit}"),
        ("origin", f"{origin}, {wording.clean(profile.created)}, mode {provenance.mode}"),
        *(("warning", wording.prose(warning)) for warning in provenance.warnings),
        ("reading", SPREAD_NOTE),
    ]
    return [f"- {label}: {escaped(text)}" for label, text in facts]


def measurement_table(profile: Profile) -> Table:
    """Every measurement with its ± beside it; what cannot run here says why in the place of its value."""
    rows = tuple(_measurement_row(figure) for figure in profile.measurements)
    titles = ("name", "operands", "regime", "#value", "unit", "#per clk and SM", "#of peak", "#SM MHz", "throttle")
    return Table("Measurements", columns_of(*titles, "origin"), rows)


def _measurement_row(figure: Measurement) -> Row:
    conditions = (wording.clean(figure.name), figure.operands or ABSENT, figure.regime or ABSENT)
    if figure.value is None:
        reason = f"unsupported: {wording.prose(figure.unsupported or 'no reason given')}"
        unit = wording.clean(figure.unit) or ABSENT
        return Row((*conditions, reason, unit, ABSENT, ABSENT, ABSENT, ABSENT, figure.origin))
    per_clock = wording.number(figure.per_clk_per_sm, figure.origin)
    state = wording.throttle(figure.throttle) if figure.origin == "measured" else ABSENT
    cells = (
        *conditions,
        plus_minus(figure),
        f"{wording.clean(figure.unit)} (emulated)" if figure.emulated else wording.clean(figure.unit) or ABSENT,
        per_clock if per_clock == ABSENT or not figure.per_clk_unit else f"{per_clock} {figure.per_clk_unit}",
        wording.percent(figure.peak_fraction),
        ABSENT if figure.sm_clock_mhz is None else f"{figure.sm_clock_mhz:.0f}",
        state,
        figure.origin,
    )
    return Row(cells, predicted=figure.origin == "predicted")


def plus_minus(figure: Measurement) -> str:
    """``1354 ± 2.7``: the value and half of its spread; the value alone where there is no spread."""
    value = wording.number(figure.value, figure.origin)
    if figure.spread is None or figure.value is None:
        return value
    return f"{value} ± {wording.number(figure.value * figure.spread / 2)}"


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown; a section or a remark becomes a row whose other cells say that they are empty."""
    width = len(table.columns)
    rules = ("---:" if column.numeric else "---" for column in table.columns)
    lines = [_line(column.title for column in table.columns), f"|{'|'.join(rules)}|"]
    for row in table.rows:
        cells = [row.cells[0], row.remark] if row.remark else list(row.cells)
        cells += [ABSENT] * (width - len(cells))
        lines.append(_line(cell or ABSENT for cell in cells))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(escaped(cell) for cell in cells)} |"


def escaped(text: str) -> str:
    """Text for a Markdown document: its markup as character references, which every renderer shows as characters."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


CSV_COLUMNS = (
    "device", "driver", "tool_version", "created", "name", "operands", "regime", "value", "unit", "spread",
    "per_clk_per_sm", "per_clk_unit", "peak_fraction", "samples", "discarded", "sm_clock_mhz", "temperature_c",
    "power_w", "throttle", "emulated", "sass_verified", "origin", "source", "unsupported",
)  # fmt: skip


def comma_separated(profile: Profile) -> str:
    """One measurement a line, every digit of the profile; the value of what cannot run here is NaN, beside its reason.

    Device, driver and versions stand in every line, so that files of several GPUs can be put under each other.
    """
    about = (profile.device.name, profile.environment.driver, profile.tool_version, profile.created)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for figure in profile.measurements:
        fields = figure.model_dump()
        fields["throttle"] = " ".join(figure.throttle)
        fields["value"] = math.nan if figure.value is None else figure.value
        fields["unsupported"] = None if figure.unsupported is None else f"unsupported: {figure.unsupported}"
        writer.writerow([_cell(value) for value in (*about, *(fields[name] for name in CSV_COLUMNS[len(about) :]))])
    return buffer.getvalue()


def described_csv(sentences: Sequence[tuple[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([("name", "measures"), *((_cell(name), _cell(what)) for name, what in sentences)])
    return buffer.getvalue()


def described_table(sentences: Sequence[tuple[str, str]]) -> Table:
    rows = tuple(Row((wording.clean(name), what)) for name, what in sentences)
    return Table("What each number measures", columns_of("name", "measures"), rows)


def _cell(value: object) -> object:
    """Numbers as Python prints them, which reads back exactly; text harmless to terminal and spreadsheet."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value) if isinstance(value, float) else value
    text = wording.prose(value)
    return f"'{text}" if _FORMULA.match(text) else text


def as_json(profile: Profile) -> str:
    """The profile's fields, in ASCII: a terminal that prints it sees no escape sequence."""
    return json.dumps(profile.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"


def described_json(sentences: Sequence[tuple[str, str]]) -> str:
    return json.dumps(dict(sentences), indent=2) + "\n"
