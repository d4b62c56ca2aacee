"""One headless Chromium a session. Without one the tests skip and say why; with CI=true that is a failure."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # sample profiles

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 20_000


@dataclass
class Tab:
    """An open page, with everything it said and asked for since it was opened."""

    page: Page
    address: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def _absent(why: str) -> NoReturn:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if program is None:
        _absent("no Chromium here; on Debian and Ubuntu: apt-get install chromium")
    with sync_playwright() as playwright:
        # Containers run tests as root, where Chromium's sandbox cannot start; the pages are our own and load nothing.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where built pages lie: the same for all of pytest-xdist's workers, so that most pages are built once."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pages"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="session")
def tabs(browser: Browser) -> Iterator[dict[tuple[str, str], Tab]]:
    open_tabs: dict[tuple[str, str], Tab] = {}
    yield open_tabs
    for tab in open_tabs.values():
        tab.page.context.close()


@pytest.fixture
def scheme() -> str:
    return "light"


@pytest.fixture
def width() -> int:
    return 800


@pytest.fixture
def tab(browser: Browser, folder: Path, tabs: dict[tuple[str, str], Tab], name: str, scheme: str, width: int) -> Tab:
    """The page called ``name``, opened once a colour scheme; here at ``width`` CSS pixels with its sections shut."""
    if (name, scheme) not in tabs:
        tabs[name, scheme] = _opened(browser, _file(folder, name).as_uri(), scheme)
    tab = tabs[name, scheme]
    tab.page.set_viewport_size({"width": width, "height": 900})
    tab.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    return tab


def _file(folder: Path, name: str) -> Path:
    from pages import PAGES

    file = folder / f"{list(PAGES).index(name)}.html"
    if not file.exists():
        part = folder / f"{file.name}.{os.getpid()}"
        part.write_bytes(PAGES[name]())
        part.replace(file)
    return file


def _opened(browser: Browser, address: str, scheme: str) -> Tab:
    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    tab = Tab(page, address)
    page.on("console", lambda message: tab.problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: tab.problems.append(f"error: {error}"))
    page.on("request", lambda request: tab.requests.append(request.url))
    page.goto(address)
    return tab
