"""Tables and sentences on a rich console: plain text, never markup, fitted to the width at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from apex4_probe.reports.tables import Row, Table

ASCII = str.maketrans(
    {
        "×": "x", "–": "-", "−": "-", "±": "+/-", "≥": ">=", "≤": "<=",
        "…": "...", "·": "/", "≈": "~", "µ": "u", "→": "->",
    }
)  # fmt: skip
LONGEST_NAME = 26  # characters of a name that is kept whole: wgmma.e4m3.m64n256k32.ss has 24
NARROWEST = 6  # characters below which a column of words is not squeezed


class ConsoleTables:
    """Writes in what the console's encoding can carry; a row's cells fold inside their column, no table overflows."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._unicode = console.encoding.lower().replace("-", "").startswith("utf")

    def text(self, content: str, style: str = "") -> Text:
        if not self._unicode:
            content = content.translate(ASCII).encode("ascii", "backslashreplace").decode("ascii")
        return Text(content, style=style, overflow="fold")

    def sentence(self, content: str, style: str = "", indent: int = 0) -> None:
        room = max(1, self.console.width - indent)
        for line in self.text(content, style).wrap(self.console, room, overflow="fold"):
            self.console.print(Text(" " * indent) + line)

    def heading(self, title: str) -> None:
        self.console.print()
        self.sentence(title, style="bold")

    def absent(self, title: str, what: str) -> None:
        """A heading, and the sentence that stands where a table would."""
        self.heading(title)
        self.sentence(what, indent=2)

    def facts(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Label and text in two columns, the label at most a third of the width."""
        widest = max((cell_len(label) for label, _ in pairs), default=0)
        grid = RichTable.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=min(widest, self.console.width // 3), overflow="fold")
        grid.add_column(overflow="fold")
        for label, content in pairs:
            grid.add_row(self.text(label), self.text(content))
        self.console.print(Padding(grid, (0, 0, 0, 2), expand=False))

    def table(self, table: Table) -> None:
        """Title, rows under their section headings, remarks gathered by their sentence, caption."""
        self.heading(table.title)
        data = [row for row in table.rows if not row.remark and not row.section]
        if data:
            self._print_rows(table, self._fit(table, data))
        for remark, names in _remarks(table.rows).items():
            self.sentence(f"{', '.join(names)} – {remark}", indent=2)
        if table.caption and table.rows:
            self.sentence(table.caption, style="dim", indent=2)

    def _fit(self, table: Table, data: Sequence[Row]) -> list[int]:
        """Column widths: as wide as the content; prose is squeezed until the table fits, then names, then figures."""
        columns = range(len(table.columns))
        widths = [max(cell_len(self.text(row.cells[i]).plain) for row in data) for i in columns]
        titles = [max(map(cell_len, self.text(table.columns[i].title).plain.split())) for i in columns]
        widths = [max(pair) for pair in zip(widths, titles, strict=True)]
        room = self.console.width - 2 - (len(widths) - 1)
        while sum(widths) > room:
            wide = [i for i in columns if widths[i] > NARROWEST]
            words = [i for i in wide if not table.columns[i].numeric]
            prose = [i for i in words if not table.columns[i].name or widths[i] > LONGEST_NAME]
            squeezable = prose or words or wide
            if not squeezable:
                break
            widths[max(squeezable, key=lambda i: widths[i])] -= 1
        return widths

    def _print_rows(self, table: Table, widths: Sequence[int]) -> None:
        """Header and rule once, then a run of rows per section, all in the same widths."""
        gap = 2 if 2 + sum(widths) + 2 * (len(widths) - 1) <= self.console.width else 1
        titles = [self.text(column.title) for column in table.columns]
        self._grid(table, widths, gap, [titles], vertical="bottom")
        rule = "─" if self._unicode else "-"
        self.sentence(rule * (sum(widths) + gap * (len(widths) - 1)), indent=2)
        run: list[list[Text]] = []
        for index, row in enumerate(table.rows):
            if not row.section and not row.remark:
                run.append([self.text(cell) for cell in row.cells])
            elif row.section and _has_data(table.rows[index + 1 :]):
                self._grid(table, widths, gap, run)
                self.sentence(row.cells[0], style="bold", indent=2)
                run = []
        self._grid(table, widths, gap, run)

    def _grid(
        self,
        table: Table,
        widths: Sequence[int],
        gap: int,
        rows: Sequence[Sequence[Text]],
        *,
        vertical: Literal["top", "bottom"] = "top",
    ) -> None:
        if not rows:
            return
        grid = RichTable.grid(padding=(0, gap, 0, 0))
        for column, width in zip(table.columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.numeric else "left"
            grid.add_column(justify=justify, vertical=vertical, overflow="fold", width=width)
        for row in rows:
            grid.add_row(*row)
        self.console.print(Padding(grid, (0, 0, 0, 2), expand=False))


def _has_data(rows: Sequence[Row]) -> bool:
    """Whether a section heading is followed by a row of cells before the next heading."""
    for row in rows:
        if row.section:
            return False
        if not row.remark:
            return True
    return False


def _remarks(rows: Sequence[Row]) -> dict[str, list[str]]:
    gathered: dict[str, list[str]] = {}
    for row in rows:
        if row.remark:
            gathered.setdefault(row.remark, []).append(row.cells[0])
    return gathered
