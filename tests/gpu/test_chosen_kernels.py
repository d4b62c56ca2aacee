"""What a run chose, held against every candidate timed afterwards: quantisation counted, FP16 and FP8 included."""

import pytest

from apex4_probe.bench_plan import without_idle_tokens
from apex4_probe.deployment import GemmTiming, Profile
from apex4_probe.kernels import catalogue
from apex4_probe.kernels.launch import chip
from apex4_probe.kernels.variant import Shape
from apex4_probe.microbench.gemm_buffers import GemmBuffers
from apex4_probe.microbench.gemm_candidates import time_gemms
from apex4_probe.selection import total_us
from apex4_probe.tuning import fp8_quantised_as_ours

WITHIN = 1.03
FEWEST_CELLS = 10
Cell = tuple[int, int, int]


def names(timing: GemmTiming) -> tuple[str, str]:
    return timing.variant, timing.tile


def everything(n: int, k: int, m: int, buffers: GemmBuffers, profile: Profile) -> list[GemmTiming]:
    """Each legal tile of each variant for a packing that plans know, those that the profile chose whatever they are,
    FP16 and FP8."""
    shape, here = Shape(m, n, k), chip(0)
    packings = {(table.format, table.granularity) for table in profile.kernels}
    picks = {
        (variant.name, tile.name): (variant, tile)
        for variant in catalogue.VARIANTS
        if (variant.format, variant.granularity) in packings
        for tile in without_idle_tokens([one for one in variant.tiles if not variant.refuses(one, shape, here)], m)
    }
    for timing in profile.gemm_timings:
        if (timing.n, timing.k, timing.m) == (n, k, m) and timing.variant not in ("fp16", "fp8"):
            variant = catalogue.by_name(timing.variant)
            picks[names(timing)] = (variant, catalogue.tile_named(variant, timing.tile))
    return fp8_quantised_as_ours(time_gemms(n, k, m, list(picks.values()), ("fp16", "fp8"), buffers=buffers))


@pytest.fixture(scope="module")
def again(runs) -> dict[Cell, list[GemmTiming]]:
    """All candidates of every GEMM and M that the warm run timed."""
    profile: Profile = runs["warm"][0]
    cells = dict.fromkeys((timing.n, timing.k, timing.m) for timing in profile.gemm_timings)
    found = {}
    for n, k in dict.fromkeys((n, k) for n, k, _ in cells):
        buffers = GemmBuffers(n, k, torch_compile=False)
        found.update({cell: everything(*cell, buffers, profile) for cell in cells if cell[:2] == (n, k)})
        buffers.release()
    return found


def test_the_fastest_by_the_profile_is_the_fastest(runs, again: dict[Cell, list[GemmTiming]]):
    profile: Profile = runs["warm"][0]
    assert len(again) >= FEWEST_CELLS
    losses = {}
    for cell, timings in again.items():
        chosen = min((t for t in profile.gemm_timings if (t.n, t.k, t.m) == cell), key=total_us)
        now = next(timing for timing in timings if names(timing) == names(chosen))
        best = min(timings, key=total_us)
        losses[cell, names(chosen), names(best)] = total_us(now) / total_us(best)
    print(*(f"{key}: {loss:.3f}" for key, loss in losses.items()), sep="\n")
    assert max(losses.values()) <= WITHIN, {key: loss for key, loss in losses.items() if loss > WITHIN}


def test_each_packing_got_its_fastest_kernel(runs, again: dict[Cell, list[GemmTiming]]):
    """What ``linear`` would launch, M by M."""
    losses = {}
    for table in runs["warm"][0].kernels:
        for kernel in table.kernels:
            timings = [
                timing
                for timing in again.get((table.n, table.k, kernel.m_max), [])
                if (timing.format, timing.granularity) == (table.format, table.granularity)
            ]
            if timings:
                now = next(timing for timing in timings if names(timing) == (kernel.variant, kernel.tile))
                key = (table.n, table.k, kernel.m_max, table.format, table.granularity, kernel.variant, kernel.tile)
                losses[key] = now.us / min(timing.us for timing in timings)
    print(*(f"{key}: {loss:.3f}" for key, loss in losses.items()), sep="\n")
    assert max(losses.values()) <= WITHIN, {key: loss for key, loss in losses.items() if loss > WITHIN}
