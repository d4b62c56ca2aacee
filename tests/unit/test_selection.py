"""From timings to what is launched: the pick, its runner-up, the table over M."""

from __future__ import annotations

from typing import Any

import pytest
from sample_profile import sample_gemm_timings

from apex4_probe.deployment import GemmTiming
from apex4_probe.selection import GemmKey, best_tiles, fastest, kernel_tables, total_us

BASELINE = {"fp16": "none", "fp8": "channel", "int8": "channel", "read": "none"}


def timing(variant: str, us: float, *, m: int = 16, tile: str = "", **changes: Any) -> GemmTiming:
    """``variant``: a baseline or family.size.granularity, as the catalogue names them."""
    format, _, rest = variant.partition(".")
    granularity = BASELINE.get(format) or rest.partition(".")[2]
    fields = {"n": 4096, "k": 4096, "m": m, "variant": variant, "format": format, "granularity": granularity}
    return GemmTiming.model_validate({**fields, "tile": tile, "us": us, "spread": 0.004, **changes})


def test_the_fastest_is_picked_with_quantisation_counted() -> None:
    small = timing("w4a8.small.g128", 5.0, us_quantise=2.0, strategy="widen")
    large = timing("w4a8.mma.g128", 4.5, us_quantise=2.6, strategy="widen")
    found = fastest([large, small, timing("fp16", 16.0), timing("fp8", 9.0, us_quantise=3.0)])
    assert found[GemmKey(16, 4096, 4096, "w4a8", "g128")] is small
    assert total_us(found[GemmKey(16, 4096, 4096, "fp8", "none")]) == 12.0


def test_yardsticks_and_sustained_runs_are_no_candidates() -> None:
    steady = timing("w4a8.mma.g128", 1.0, method="sustained")
    assert fastest([timing("int8", 1.0), timing("read", 1.0), steady]) == {}


def test_a_strategy_that_was_excluded_is_not_picked_and_baselines_stay() -> None:
    timings = [
        timing("w4a8.mma.g128", 4.0, strategy="magic_fadd_ffma"),
        timing("w4a8.small.g128", 5.0, strategy="i2f_ffma"),
        timing("w4a8.mma.channel", 3.0, strategy="none"),
        timing("fp8", 9.0, strategy="quantised by torch.compile"),
        timing("w4a16.small.g128", 6.0, strategy="ffma"),
        timing("w4a16.fp16.g128", 7.0, strategy="before_mma"),  # costs nothing per accumulator
    ]
    found = {(key.format, key.granularity): value.us for key, value in fastest(timings, {"i2f_ffma"}).items()}
    assert found == {("w4a8", "g128"): 5.0, ("w4a8", "channel"): 3.0, ("fp8", "none"): 9.0, ("w4a16", "g128"): 7.0}


def test_of_each_variant_the_best_tile_is_kept() -> None:
    default, tuned = timing("w4a8.mma.g128", 5.0, tile="rows=64"), timing("w4a8.mma.g128", 4.0, tile="rows=128")
    elsewhere = timing("w4a8.mma.g128", 9.0, tile="rows=64", m=64)
    assert best_tiles([default, timing("fp16", 16.0), tuned, elsewhere]) == [tuned, timing("fp16", 16.0), elsewhere]


def test_a_tuned_pick_never_loses_to_the_default_tile() -> None:
    for default_us, tuned_us in ((5.0, 4.9), (4.9, 5.0), (5.0, 5.0)):
        default = timing("w4a8.mma.g128", default_us, tile="rows=64")
        tuned = timing("w4a8.mma.g128", tuned_us, tile="rows=128")
        (table,) = kernel_tables([timing("fp16", 16.0), default, tuned])
        assert table.kernels[0].us == min(default_us, tuned_us) <= default_us


def test_a_choice_states_its_tile_speed_up_and_runner_up() -> None:
    timings = [
        timing("fp16", 16.0),
        timing("fp8", 4.0, us_quantise=2.5),
        timing("w4a8.small.g128i", 5.0, us_quantise=2.5, tile="rows=32,warps=16,stages=2", strategy="widen"),
        timing("w4a8.mma.g128i", 7.0, us_quantise=2.5, tile="rows=64,tokens=16,stages=4,split_k=8", strategy="widen"),
    ]
    tables = {(table.format, table.granularity): table.kernels for table in kernel_tables(timings)}
    assert set(tables) == {("w4a8", "g128i")}  # FP16 and FP8 are torch's: nothing of ours to launch
    (kernel,) = tables["w4a8", "g128i"]
    assert (kernel.variant, kernel.stages, kernel.split_k) == ("w4a8.small.g128i", 2, 1)
    assert (kernel.us, kernel.us_quantise) == (7.5, 2.5)
    assert kernel.speedup == pytest.approx(16.0 / 7.5)
    assert (kernel.runner_up, kernel.runner_up_us) == ("fp8", 6.5)  # faster, and of another format
    without = [item for item in timings if item.variant != "fp8"]
    (kernel,) = kernel_tables(without)[0].kernels
    assert (kernel.runner_up, kernel.runner_up_us) == ("w4a8.mma.g128i rows=64,tokens=16,stages=4,split_k=8", 9.5)


def test_m_without_fp16_beside_it_is_left_out() -> None:
    timings = [timing("fp16", 16.0), timing("w4a8.mma.g128", 5.0), timing("w4a8.mma.g128", 9.0, m=64)]
    (table,) = kernel_tables(timings)
    assert [kernel.m_max for kernel in table.kernels] == [16]
    assert kernel_tables(timings[1:]) == []


def test_every_packing_that_was_timed_has_its_table() -> None:
    tables = kernel_tables(sample_gemm_timings())
    shapes = {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)}
    packings = {("w4a8", "g128i"), ("w4a8", "channel"), ("w4a16", "g128")}
    assert {(t.n, t.k, t.format, t.granularity) for t in tables} == {(*s, *p) for s in shapes for p in packings}
    small = {
        (table.n, table.k): [kernel.variant for kernel in table.kernels]
        for table in tables
        if table.granularity == "g128i"
    }
    assert set(map(tuple, small.values())) == {("w4a8.small.g128i", "w4a8.mma.g128i")}
