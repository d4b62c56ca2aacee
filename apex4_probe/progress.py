"""What is being done now and how long it still takes: a bar for a person, plain lines for a log, on stderr.

The share that is done is the suite's own estimate of its time, so the time left is what has passed, scaled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

Report = Callable[[str, float], None]  # what is being done, and how much is behind us, 0 … 1
TOO_EARLY = 0.03  # of the whole: before that the first compile decides everything
LINES = 10  # of a log: one for every tenth of the whole


def seconds_left(share: float, elapsed_at_share: float, elapsed: float) -> float | None:
    """Time left ``elapsed`` seconds after the start, when ``share`` was reached at ``elapsed_at_share``.

    It runs down between two reports and stops at 0. None: too early to tell.
    """
    if share < TOO_EARLY:
        return None
    return max(0.0, elapsed_at_share / min(share, 1.0) - elapsed)


def clock(seconds: float | None) -> str:
    """``1:07 left``."""
    if seconds is None:
        return "-:-- left"
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} left"


@contextmanager
def reporting(console: Console) -> Iterator[Report]:
    """A function to report progress with: it moves a bar on a terminal, prints a line a tenth elsewhere."""
    if console.quiet:
        yield lambda _step, _share: None
    elif console.is_terminal and not console.is_dumb_terminal:
        with _bar(console) as report:
            yield report
    else:
        yield _Lines(console)


class _Lines:
    """One line when a tenth of the whole begins, each whole and at once, so that a log tells where a run stands."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenth = -1
        self._start = time.monotonic()

    def __call__(self, step: str, share: float) -> None:
        tenth = int(share * LINES)
        if tenth <= self._tenth:
            return
        self._tenth = tenth
        elapsed = time.monotonic() - self._start
        left = seconds_left(share, elapsed, elapsed)
        rest = "" if left is None or share >= 1 else f", {clock(left)}"
        self._console.print(f"{share:4.0%} {step}{rest}", markup=False, soft_wrap=True)


class _TimeLeft(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = seconds_left(task.percentage / 100, task.fields["at"], task.elapsed or 0.0)
        return Text(clock(left), style="progress.remaining")


@contextmanager
def _bar(console: Console) -> Iterator[Report]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        _TimeLeft(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=1.0, at=0.0)

        def report(step: str, share: float) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            bar.update(task, description=step, completed=share, at=elapsed)

        yield report
