"""What tuning chose, held against every candidate timed afterwards: quantisation counted, FP16 and FP8 included.

A run's own table, for the layers of the default model; and one of seven shapes at twelve numbers of tokens, tuned here
with the time that it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from apex4_probe.bench_plan import finalists, only, without_idle_tokens
from apex4_probe.deployment import GemmTiming, KernelTable, Profile, WorkloadPoint, WorkloadRecord
from apex4_probe.field import timer_of
from apex4_probe.gemm_bench import ROUNDS, TorchBench
from apex4_probe.kernels import catalogue
from apex4_probe.kernels.launch import chip
from apex4_probe.kernels.variant import Shape, Tile, Variant
from apex4_probe.microbench.gemm_buffers import GemmBuffers
from apex4_probe.microbench.gemm_candidates import time_gemms
from apex4_probe.models import load_model
from apex4_probe.rates import Rates
from apex4_probe.selection import kernel_tables, total_us
from apex4_probe.tuning import fp8_quantised_as_ours, tune
from apex4_probe.tuning_plan import cells

WITHIN = 1.03
GRAPH_MS, HEAT_ROUNDS, HEAT_MS = 2.0, 3, 0.5
TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SHAPES = {
    "llama-3-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "llama-3-70b": ((10240, 8192), (57344, 8192), (8192, 28672)),
}
TUNING_S = 300.0
Cell = tuple[int, int, int]


@dataclass(frozen=True)
class Chosen:
    """What was timed to choose, the tables that came of it, and everything timed again, by cell."""

    timings: Sequence[GemmTiming]
    tables: Sequence[KernelTable]
    again: dict[Cell, list[GemmTiming]]


def names(timing: GemmTiming) -> tuple[str, str]:
    return timing.variant, timing.tile


def cell_of(timing: GemmTiming) -> Cell:
    return timing.n, timing.k, timing.m


def everything(n: int, k: int, m: int, buffers: GemmBuffers, timings: Sequence[GemmTiming]) -> list[GemmTiming]:
    """Of all legal tiles of each variant for a packing that plans know those that a heat found near the fastest, what
    was chosen whatever it is, FP16 and FP8."""
    shape, here = Shape(m, n, k), chip(0)
    packings = {(timing.format, timing.granularity) for timing in timings}
    every: list[tuple[Variant, Tile]] = [
        (variant, tile)
        for variant in catalogue.VARIANTS
        if (variant.format, variant.granularity) in packings
        for tile in without_idle_tokens([one for one in variant.tiles if not variant.refuses(one, shape, here)], m)
    ]
    heat = time_gemms(n, k, m, every, (), buffers=buffers, rounds=HEAT_ROUNDS, graph_ms=HEAT_MS)
    chosen = {names(timing) for timing in timings if cell_of(timing) == (n, k, m)}
    tiles = [(variant, tile) for variant in catalogue.VARIANTS for tile in variant.tiles]
    picks = dict.fromkeys([*finalists(every, heat), *only(tiles, chosen)])
    timed = time_gemms(
        n, k, m, list(picks), ("fp16", "fp8"), buffers=buffers, rounds=ROUNDS, graph_ms=GRAPH_MS
    )  # fmt: skip
    return fp8_quantised_as_ours(timed)


def timed_again(timings: Sequence[GemmTiming]) -> dict[Cell, list[GemmTiming]]:
    asked = dict.fromkeys(cell_of(timing) for timing in timings)
    found = {}
    for n, k in dict.fromkeys((n, k) for n, k, _ in asked):
        buffers = GemmBuffers(n, k, torch_compile=False)
        found.update({cell: everything(*cell, buffers, timings) for cell in asked if cell[:2] == (n, k)})
        buffers.release()
    return found


def tuned(profile: Profile) -> list[GemmTiming]:
    """SHAPES at TOKENS, by the machine's own rates."""
    timer = timer_of(Rates.of(profile.device, profile.measurements), profile.co_issue)
    points = [WorkloadPoint(phase="decode" if m <= 256 else "prefill", m=m, weight=1.0) for m in TOKENS]
    wanted = [
        cell
        for name, shapes in SHAPES.items()
        for cell in cells(
            load_model(name), WorkloadRecord(model=name, points=points), timer, chip(0), catalogue.VARIANTS
        )
        if (cell.shape.n, cell.shape.k) in shapes
    ]
    bench = TorchBench(0)
    try:
        return list(tune(sorted(wanted, key=lambda cell: cell.shape.n * cell.shape.k), bench, TUNING_S).timings)
    finally:
        bench.release()


@pytest.fixture(scope="module", params=["a run", "seven shapes"])
def chosen(request, runs) -> Chosen:
    profile: Profile = runs["warm"][0]
    if request.param == "a run":
        timings, tables = profile.gemm_timings, profile.kernels
        assert len({cell_of(timing) for timing in timings}) >= 10
    else:
        timings = tuned(profile)
        tables = kernel_tables(timings)
        expected = {(n, k, m) for shapes in SHAPES.values() for n, k in shapes for m in TOKENS}
        assert {cell_of(timing) for timing in timings} == expected, "tuning had time for every cell"
    return Chosen(timings, tables, timed_again(timings))


def test_the_fastest_when_tuning_is_the_fastest(chosen: Chosen):
    losses = {}
    for cell, timings in chosen.again.items():
        pick = min((timing for timing in chosen.timings if cell_of(timing) == cell), key=total_us)
        now = next(timing for timing in timings if names(timing) == names(pick))
        best = min(timings, key=total_us)
        losses[cell, names(pick), names(best)] = total_us(now) / total_us(best)
    print(*(f"{key}: {loss:.3f}" for key, loss in losses.items()), sep="\n")
    assert max(losses.values()) <= WITHIN, {key: loss for key, loss in losses.items() if loss > WITHIN}


def test_each_packing_got_its_fastest_kernel(chosen: Chosen):
    """What ``linear`` would launch, M by M."""
    losses = {}
    for table in chosen.tables:
        for kernel in table.kernels:
            timings = [
                timing
                for timing in chosen.again.get((table.n, table.k, kernel.m_max), [])
                if (timing.format, timing.granularity) == (table.format, table.granularity)
            ]
            if timings:
                now = next(timing for timing in timings if names(timing) == (kernel.variant, kernel.tile))
                key = (table.n, table.k, kernel.m_max, table.format, table.granularity, kernel.variant, kernel.tile)
                losses[key] = now.us / min(timing.us for timing in timings)
    print(*(f"{key}: {loss:.3f}" for key, loss in losses.items()), sep="\n")
    assert max(losses.values()) <= WITHIN, {key: loss for key, loss in losses.items() if loss > WITHIN}
