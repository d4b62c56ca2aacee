"""Every page in a real browser: phone, tablet and laptop, light and dark, print."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Tab
from pages import PAGES

WIDTHS = (390, 800, 1440)
A4 = 794  # CSS pixels of 210 mm
everywhere = [
    pytest.mark.parametrize("width", WIDTHS),
    pytest.mark.parametrize("scheme", ["light", "dark"]),
    pytest.mark.parametrize("name", PAGES),
]


def on_every_screen(test: Any) -> Any:
    for mark in everywhere:
        test = mark(test)
    return test


def open_everything(tab: Tab) -> None:
    tab.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


def overflow(tab: Tab) -> int:
    """Pixels by which the document is wider than the window."""
    found = tab.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return int(found)


@on_every_screen
def test_silent_self_contained_and_no_wider_than_the_screen(tab: Tab) -> None:
    assert overflow(tab) == 0
    open_everything(tab)
    assert overflow(tab) == 0
    assert tab.problems == []
    assert {url for url in tab.requests if not url.startswith("data:")} == {tab.address}


@on_every_screen
def test_every_figure_is_visible_and_described(tab: Tab) -> None:
    open_everything(tab)
    figures = tab.page.evaluate(
        """[...document.querySelectorAll('svg')].map(svg => {
             const picture = svg.closest('[role=img]'), box = svg.getBoundingClientRect();
             return {alt: picture && picture.getAttribute('aria-label'), left: box.left, width: box.width,
                     height: box.height, room: innerWidth, ink: getComputedStyle(svg).color,
                     paper: getComputedStyle(document.documentElement).backgroundColor,
                     table: !!svg.closest('section').querySelector('table')}})"""
    )
    for figure in figures:
        assert figure["alt"] and len(figure["alt"]) > 40
        assert figure["width"] > 300 and figure["height"] > 60
        assert 0 <= figure["left"] < figure["room"] / 2
        assert figure["ink"] != figure["paper"]
        assert figure["table"], f"no table behind: {figure['alt'][:60]}"


@pytest.mark.parametrize("name", ["report, measured"])
def test_the_measured_page_has_all_its_figures(tab: Tab) -> None:
    assert tab.page.locator("figure").count() == 6  # verdict, throughput, co-issue, balance, roofline, layers
    open_everything(tab)
    assert tab.page.locator("svg:visible").count() == 6 + 4  # a detail for each MMA


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(tab: Tab, scheme: str) -> None:
    """On every screen, in a tab of its own.

    What repeats the markup before it (rows beyond the fourth of a section) and what assistive technology never sees
    (the inside of drawings) is taken out first: it is nine tenths of the work.
    """
    page = tab.page.context.new_page()
    page.goto(tab.address)
    page.evaluate(
        """() => {
             document.querySelectorAll('details').forEach(details => details.open = true);
             document.querySelectorAll('tbody tr:nth-child(n+5)').forEach(row => row.remove());
             document.querySelectorAll('svg[aria-hidden=true]').forEach(drawing => drawing.replaceChildren())}"""
    )
    serious = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for violation in Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                serious.append(f"{width} px: {violation['id']}: {violation['nodes'][0]['html'][:200]}")
    page.close()
    assert serious == []


def column(tab: Tab, table: int, index: int, *, press: bool = False) -> tuple[str | None, list[list[str]]]:
    """``aria-sort`` and cells of one column, a list a section, without headings and remarks; pressed beforehand."""
    order, cells = tab.page.evaluate(
        """([number, index, press]) => {
             const table = document.querySelectorAll('table.sortable')[number];
             const heading = table.tHead.rows[0].cells[index];
             if (press) heading.querySelector('button').click();
             const data = row => !row.matches('.section, .remark');
             const sections = [...table.tBodies].map(body => [...body.rows].filter(data));
             return [heading.ariaSort, sections.map(rows => rows.map(row => row.cells[index].textContent))]}""",
        [table, index, press],
    )
    return order, cells


def keys(cells: list[str]) -> list[tuple[float, ...]]:
    """What the cells say in figures; cells without any are left out, since they stand last."""
    shown = [re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", cell) for cell in cells]
    return [tuple(float(number) for number in numbers) for numbers in shown if numbers]


def table_numbered(tab: Tab, title: str) -> int:
    """The first sortable table that has a heading called ``title``."""
    script = "tables => tables.map(table => [...table.tHead.rows[0].cells].map(cell => cell.textContent))"
    titles: list[list[str]] = tab.page.locator("table.sortable").evaluate_all(script)
    return next(number for number, headings in enumerate(titles) if title in headings)


@pytest.mark.parametrize("name", [name for name in PAGES if "empty" not in name])
def test_columns_of_figures_sort_by_value(tab: Tab) -> None:
    script = "tables => tables.map(t => [...t.tHead.rows[0].cells].map(cell => cell.classList.contains('n')))"
    numeric: list[list[bool]] = tab.page.locator("table.sortable").evaluate_all(script)
    assert sum(map(sum, numeric)) > 5
    for number, columns in enumerate(numeric):
        for index in (index for index, is_numeric in enumerate(columns) if is_numeric):
            before = sorted(chain.from_iterable(column(tab, number, index)[1]))
            for direction in ("ascending", "descending"):
                order, after = column(tab, number, index, press=True)
                assert order == direction
                for cells in after:
                    assert keys(cells) == sorted(keys(cells), reverse=direction == "descending")
                    absent = [not keys([cell]) for cell in cells]
                    assert absent == sorted(absent), "cells without a figure stand last"
                assert sorted(chain.from_iterable(after)) == before, "no row is lost"


@pytest.mark.parametrize("name", ["report, measured"])
def test_tables_sort_by_click(tab: Tab) -> None:
    """Throughput by cycles: sections stay together, each sorted, what is unsupported stays last in its own."""
    open_everything(tab)
    number = table_numbered(tab, "per clk and SM")
    heading = tab.page.locator("table.sortable").nth(number).locator("thead th", has_text="per clk and SM")
    sections = column(tab, number, 4)[1]
    heading.locator("button").click()
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    tensor = column(tab, number, 4)[1][0]
    assert tensor[0].startswith("409") and float(tensor[-1].split()[0]) < 100
    assert [sorted(cells) for cells in column(tab, number, 4)[1]] == [sorted(cells) for cells in sections]
    first = tab.page.locator("table.sortable").nth(number).locator("tbody").first.locator("tr")
    assert first.first.get_attribute("class") == "section" and first.last.get_attribute("class") == "remark"


@pytest.mark.parametrize("name", ["report, measured"])
@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_tables_sort_by_keyboard(tab: Tab, key: str) -> None:
    """Tab reaches the second heading from the first; words sort by alphabet."""
    open_everything(tab)
    number = table_numbered(tab, "placement")
    headings = tab.page.locator("table.sortable").nth(number).locator("thead th")
    headings.nth(0).locator("button").focus()
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.textContent") == headings.nth(1).inner_text() == "placement"
    tab.page.keyboard.press(key)
    order, sections = column(tab, number, 1)
    words = sections[0]
    assert order == "ascending" and words == sorted(words) and len(set(words)) > 3
    tab.page.keyboard.press(key)
    assert column(tab, number, 1) == ("descending", [sorted(words, reverse=True)])
    assert headings.nth(0).get_attribute("aria-sort") is None
    headings.nth(0).locator("button").click()  # the next test finds it sorted by another column
    assert headings.nth(1).get_attribute("aria-sort") is None


@pytest.mark.parametrize("width", [A4])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_prints_black_on_white_and_within_the_sheet(tab: Tab) -> None:
    tab.page.emulate_media(media="print")
    try:
        assert overflow(tab) == 0
        paper, ink = tab.page.evaluate(
            "['backgroundColor', 'color'].map(name => getComputedStyle(document.documentElement)[name])"
        )
        assert (paper, ink) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    finally:
        tab.page.emulate_media(media="screen")
