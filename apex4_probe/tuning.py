"""Time the kernels that could be chosen, within a budget of seconds, and say what there was no time for.

The workload's own M come first, and every variant's default tile before further tiles: what is left out when the time
runs out is what matters least. Who times is injected, so that nothing here needs a GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from apex4_probe.deployment import GemmTiming
from apex4_probe.errors import ApexError
from apex4_probe.kernels.variant import Shape
from apex4_probe.selection import best_tiles
from apex4_probe.tuning_plan import Cell, Pick

Progress = Callable[[str, float], None]  # what is being done now; the share of the whole that is done, 0 … 1
Clock = Callable[[], float]  # seconds

BUDGET_S = {False: 40.0, True: 90.0}  # by --full; measuring takes 31 to 40 s, a whole run at most 90 (H100)
COMPILE_SHARE = 0.4  # of the budget; a kernel compiles in 1 to 2 s of one core, and is found again in later runs
MOST_FAILURES = 5  # told one by one; they tend to share a cause
BATCH = 16  # kernels compiled between two looks at the clock: two waves on eight cores
FP8_QUANTISATION = (
    "Quantising FP8's activations is counted as fast as our INT8 quantiser, which moves the same bytes; torch's own "
    "operators take longer."
)
SECONDS_A_CANDIDATE = 0.15  # until the first were timed: 16 graph replays of 2 ms, buffers, two captures


class GemmBench(Protocol):
    """What times GEMMs; on a GPU that is ``gemm_bench.TorchBench``."""

    def compile(self, picks: Sequence[Pick]) -> None:
        """Compile and load. Raises ApexError naming the variant."""
        ...

    def time(
        self, shape: Shape, picks: Sequence[Pick], baselines: Sequence[str], refused: Callable[[str, str], None]
    ) -> list[GemmTiming]:
        """All of them in turn, and quantising (``us_quantise``); those that cannot run are told to ``refused``.

        Raises ApexError when the GPU is lost.
        """
        ...


@dataclass(frozen=True)
class Tuned:
    """``timings``: each variant's best tile. ``notes``: what was not timed, and how FP8's quantisation was counted."""

    timings: tuple[GemmTiming, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # of what the choice itself had to do without


@dataclass
class _LeftOut:
    stopped: str = ""  # by what, before the budget was used up
    tiles: int = 0
    cells: list[Cell] = field(default_factory=list)
    broken: set[Pick] = field(default_factory=set)
    failures: dict[str, None] = field(default_factory=dict)  # a set in order

    def refuse(self, candidate: str, why: str) -> None:
        self.failures.setdefault(f"{candidate}: {why}")


def tune(
    cells: Sequence[Cell],
    bench: GemmBench,
    budget_s: float,
    *,
    progress: Progress = lambda _what, _share: None,
    clock: Clock = time.monotonic,
) -> Tuned:
    """Time ``cells`` in their order until ``budget_s`` is used up; a cell that was begun is finished.

    A GPU that is lost meanwhile ends it with a warning: planning needs no GPU, and what was measured is not lost.
    """
    start, left_out = clock(), _LeftOut()
    ready = _compiled(cells, bench, start + COMPILE_SHARE * budget_s, left_out, progress, clock)
    timings: list[GemmTiming] = []
    pace = SECONDS_A_CANDIDATE
    for index, cell in enumerate(cells):
        begun = clock()
        remaining = start + budget_s - begun
        if remaining <= 0:
            left_out.cells.extend(cells[index:])
            break
        share = COMPILE_SHARE + (1 - COMPILE_SHARE) * index / len(cells)
        progress(f"timing GEMMs: M = {cell.shape.m}, N x K = {cell.shape.n} x {cell.shape.k}", share)
        room = int(remaining / (len(cells) - index) / pace)
        picks = _chosen(cell, ready, room)
        left_out.tiles += len(set(cell.picks) - set(picks) - left_out.broken)
        try:
            timings += bench.time(cell.shape, picks, cell.baselines, left_out.refuse)
        except ApexError as error:
            left_out.stopped = str(error)
            left_out.cells.extend(cells[index:])
            break
        pace = (clock() - begun) / (len(picks) + len(cell.baselines))
    progress("timed GEMMs", 1.0)
    fair = fp8_quantised_as_ours(timings)
    notes = [*_told(left_out, cells, budget_s), *([FP8_QUANTISATION] if fair != timings else [])]
    return Tuned(tuple(best_tiles(fair)), tuple(notes), tuple(_warned(left_out)))


def fp8_quantised_as_ours(timings: Sequence[GemmTiming]) -> list[GemmTiming]:
    """FP8's activations as fast as our INT8 quantiser's where that is faster: the same bytes move in the same pattern.

    What torch offers for FP8 is an operator a step, or whatever its compiler makes of them; a serving engine has a
    kernel of its own, and a comparison that leaves it out would favour our formats.
    """
    ours: dict[tuple[int, int, int], float] = {}
    for timing in timings:
        if timing.format == "w4a8":
            key = (timing.n, timing.k, timing.m)
            ours[key] = min(timing.us_quantise, ours.get(key, math.inf))

    def counted(timing: GemmTiming) -> GemmTiming:
        faster = ours.get((timing.n, timing.k, timing.m), math.inf)
        if timing.format != "fp8" or timing.us_quantise <= faster:
            return timing
        return timing.model_copy(update={"us_quantise": faster})

    return [counted(timing) for timing in timings]


def _compiled(
    cells: Sequence[Cell], bench: GemmBench, deadline: float, left_out: _LeftOut, progress: Progress, clock: Clock
) -> set[Pick]:
    """The picks that compiled: every default, then further tiles until ``deadline``."""
    defaults = dict.fromkeys(pick for cell in cells for pick in cell.defaults)
    wanted = list(dict.fromkeys([*defaults, *(pick for cell in cells for pick in cell.further)]))
    ready: set[Pick] = set()
    for first in range(0, len(wanted), BATCH):
        if first >= len(defaults) and clock() >= deadline:
            break
        progress("compiling kernels", COMPILE_SHARE * first / len(wanted))
        ready.update(_compile(bench, wanted[first : first + BATCH], left_out))
    return ready


def _compile(bench: GemmBench, picks: Sequence[Pick], left_out: _LeftOut) -> Sequence[Pick]:
    """Those that compile; one that does not must not take the others of its batch with it."""
    try:
        bench.compile(picks)
        return picks
    except ApexError as error:
        if len(picks) == 1:
            left_out.failures.setdefault(str(error))
            left_out.broken.add(picks[0])
            return []
    return [good for pick in picks for good in _compile(bench, [pick], left_out)]


def _chosen(cell: Cell, ready: set[Pick], room: int) -> list[Pick]:
    """Every variant's default, and further tiles while there is room for ``room`` candidates."""
    defaults = [pick for pick in cell.defaults if pick in ready]
    further = [pick for pick in cell.further if pick in ready]
    return [*defaults, *further[: max(0, room - len(defaults) - len(cell.baselines))]]


def _told(left_out: _LeftOut, cells: Sequence[Cell], budget_s: float) -> Iterable[str]:
    parts = []
    if left_out.tiles:
        parts.append(f"{left_out.tiles} further tiles of these kernels")
    if left_out.cells:
        tokens = ", ".join(str(m) for m in sorted({cell.shape.m for cell in left_out.cells}))
        parts.append(f"{len(left_out.cells)} of {len(cells)} pairs of layer shape and M (M = {tokens})")
    if parts:
        why = "as timing stopped" if left_out.stopped else "for want of time"
        yield f"Kernels were timed within {budget_s:.0f} s; not timed, {why}: {' and '.join(parts)}."
    failures = list(left_out.failures)
    yield from (f"Not timed: {failure.rstrip('.')}." for failure in failures[:MOST_FAILURES])
    if len(failures) > MOST_FAILURES:
        yield f"Not timed either: {len(failures) - MOST_FAILURES} further candidates."


def _warned(left_out: _LeftOut) -> Iterable[str]:
    if left_out.stopped:
        yield f"timing kernels stopped: {left_out.stopped}"
    asked = sorted({cell.shape.m for cell in left_out.cells if cell.asked})
    if asked:
        tokens = ", ".join(str(m) for m in asked)
        yield f"not every layer was timed at M = {tokens} of the workload; the others' times there are predicted"
