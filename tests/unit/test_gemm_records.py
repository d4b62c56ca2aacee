"""From times to figures, checked by hand."""

from __future__ import annotations

import pytest

from apex4_probe.microbench.gemm_records import GemmCandidate, Roof, to_records
from apex4_probe.microbench.gemm_timing import Timing

N, K, M = 1000, 2000, 10
WEIGHTS = N * K / 2  # 1 MB
FP16 = GemmCandidate("fp16", "fp16", "none", (), 4.0e6, "f16")
FP8 = GemmCandidate("fp8", "fp8", "channel", (), 2.0e6, "e4m3", quantise="quantise fp8")
OURS = GemmCandidate(
    "w4a8.small.g128i", "w4a8", "g128i", (), 1.1e6, "s8", strategy="widen", tile="rows=32", quantise="quantise int8"
)
READS = [GemmCandidate("read", "read", "none", (), WEIGHTS, tile=tile) for tile in ("slices", "strided")]
ROOF = Roof(read_gb_s=2000.0, tops={"s8": 100.0, "f16": 50.0})
TIMINGS = {
    "fp16": Timing(8.0, 0.01, 15),
    "fp8": Timing(4.0, 0.02, 15),
    "w4a8.small.g128i rows=32": Timing(2.0, 0.03, 15),
    "read slices": Timing(0.9, 0.0, 15),
    "read strided": Timing(0.8, 0.0, 15),
    "quantise fp8": Timing(3.0, 0.0, 15),
    "quantise int8": Timing(1.5, 0.0, 15),
}


def records() -> dict[str, object]:
    found = to_records((N, K, M), [FP16, FP8, OURS, *READS], TIMINGS, "interleaved", ROOF, {OURS.key: True})
    return {record.variant: record for record in found}


def test_every_figure_of_a_kernel() -> None:
    ours = records()["w4a8.small.g128i"]
    # 2 * 10 * 1000 * 2000 = 4e7 operations in 2 us: 20 T op/s; 1.1 MB in 2 us: 550 GB/s
    # Roof: 1.1 MB at 2 TB/s 0.55 us, 4e7 operations at 100 T op/s 0.4 us; the longer is 27.5 % of 2 us.
    assert ours.model_dump() == {  # type: ignore[attr-defined]
        "n": N, "k": K, "m": M, "variant": "w4a8.small.g128i", "format": "w4a8", "granularity": "g128i",
        "strategy": "widen", "tile": "rows=32", "method": "interleaved", "us": 2.0, "us_quantise": 1.5, "spread": 0.03,
        "samples": 15, "tops": pytest.approx(20.0), "gb_per_s": pytest.approx(550.0), "speedup_fp16": 4.0,
        "speedup_fp8": 2.0, "speedup_int8": None, "roofline_fraction": pytest.approx(0.275), "exact": True,
        "version": None, "origin": "measured",
    }  # fmt: skip


def test_the_tensor_core_binds_where_it_takes_longer() -> None:
    # 4e7 operations at 50 T op/s 0.8 us, 0.1 MB at 2 TB/s 0.05 us
    assert ROOF.microseconds(1e5, 4e7, "f16") == pytest.approx(0.8)
    assert ROOF.microseconds(1e5, 4e7, None) == pytest.approx(0.05)
    assert ROOF.microseconds(1e5, 4e7, "e4m3") is None


def test_of_the_pure_reads_the_faster_stands_and_it_multiplies_nothing() -> None:
    read = records()["read"]
    assert (read.tile, read.us, read.tops) == ("strided", 0.8, None)  # type: ignore[attr-defined]
    assert read.roofline_fraction == pytest.approx(WEIGHTS / 2e6 / 0.8)  # type: ignore[attr-defined]


def test_what_could_not_be_quantised_has_no_record() -> None:
    timings = {key: timing for key, timing in TIMINGS.items() if key != "quantise int8"}
    found = to_records((N, K, M), [FP16, OURS], timings, "sustained")
    assert [(record.variant, record.method, record.roofline_fraction) for record in found] == [
        ("fp16", "sustained", None)
    ]


def test_without_a_baseline_there_is_no_speedup_over_it() -> None:
    (ours,) = to_records((N, K, M), [OURS], TIMINGS, "interleaved")
    assert (ours.speedup_fp16, ours.speedup_fp8, ours.speedup_int8) == (None, None, None)
