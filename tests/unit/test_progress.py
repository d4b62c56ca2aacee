"""Progress: the time left, a bar where a person watches, lines where a log does, silence where it was asked for."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from apex4_probe import cli_frame, progress
from apex4_probe.progress import clock, reporting, seconds_left


@pytest.mark.parametrize(
    ("share", "elapsed_at_share", "elapsed", "left"),
    [
        (0.0, 0.0, 5.0, None),
        (0.02, 1.0, 1.0, None),  # too early
        (0.25, 10.0, 10.0, 30.0),
        (0.25, 10.0, 20.0, 20.0),  # it runs down between two reports
        (0.25, 10.0, 100.0, 0.0),
        (1.0, 10.0, 10.0, 0.0),
    ],
)
def test_seconds_left(share: float, elapsed_at_share: float, elapsed: float, left: float | None) -> None:
    assert seconds_left(share, elapsed_at_share, elapsed) == left


def test_the_clock() -> None:
    assert [clock(seconds) for seconds in (None, 0.4, 67.2, 3600.0)] == [
        "-:-- left", "0:00 left", "1:07 left", "60:00 left",
    ]  # fmt: skip


def reported(console: Console, steps: int = 200) -> None:
    with reporting(console) as report:
        for step in range(steps):
            report(f"step [bold]{step}[/bold]", step / steps)
        report("planning", 1.0)


def test_a_log_gets_a_line_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    stream = io.StringIO()
    reported(Console(file=stream, force_terminal=False))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "  0% step [bold]0[/bold]"
    assert lines[1] == " 10% step [bold]20[/bold], 0:18 left"  # 2 s for the first tenth
    assert lines[-1] == "100% planning"
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_bar_with_the_step_and_the_time_left() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, legacy_windows=False, _environ={"TERM": "xterm"})
    with reporting(console) as report:
        report("co-issue mma.s8", 0.5)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "co-issue mma.s8" in drawn
    assert re.search(r"\d:\d\d left", drawn)


def test_a_dumb_terminal_gets_lines() -> None:
    stream = io.StringIO()
    reported(Console(file=stream, force_terminal=True, _environ={"TERM": "dumb"}))
    assert len(stream.getvalue().splitlines()) == 11


def test_quiet_is_silent() -> None:
    stream = io.StringIO()
    reported(Console(file=stream, quiet=True))
    assert stream.getvalue() == ""


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm-256color")

    def printed() -> str:
        console = cli_frame.console()
        with console.capture() as captured:
            console.print("warned", style="yellow")
        return captured.get()

    assert "\x1b[33m" in printed()
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed() == "warned\n"
