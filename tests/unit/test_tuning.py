"""What is timed, in which order, within which time, and what is said about the rest."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from recorded_bench import CHIP, LARGE, SMALL, VARIANTS, RecordedBench
from recorded_h100 import H100, co_issue, measurements

from apex4_probe.datasheets import find
from apex4_probe.deployment import Measurement, WorkloadRecord
from apex4_probe.field import timer_of
from apex4_probe.gemm_time import GemmTimer
from apex4_probe.kernels import catalogue
from apex4_probe.kernels.variant import Chip, Shape
from apex4_probe.models import Layer, load_model, shard
from apex4_probe.prediction import predict_device
from apex4_probe.rates import Rates
from apex4_probe.selection import kernel_tables
from apex4_probe.tile_time import ranked, tile_us
from apex4_probe.tuning import Tuned, tune
from apex4_probe.tuning_plan import LADDER, TILES, Cell, cells
from apex4_probe.workload import parse_workload

L2 = Measurement(name="l2.read", instruction="LDG.E.128", value=5620.0, unit="GB/s", origin="measured")
A100 = Chip("8.0", "sm_80", 108, 163 * 1024)
TIMER = timer_of(Rates.of(H100, [*measurements(), L2]), co_issue())
LLAMA = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]  # qkv, o, gate_up, down


def planned(
    workload: str = "decode:16,prefill:2048", model: str = "llama-3-8b", tp: int = 1, **options: Any
) -> list[Cell]:
    asked = WorkloadRecord(model=model, points=parse_workload(workload), tensor_parallel=tp, **options)
    return cells(shard(load_model(model), tp), asked, TIMER, CHIP, VARIANTS)


def tuned(bench: RecordedBench, budget_s: float = 1000.0, wanted: list[Cell] | None = None) -> Tuned:
    return tune(wanted or planned(), bench, budget_s, clock=bench.clock)


# What there is to time


def test_fused_gemms_at_the_workloads_m_first_then_at_the_ladders() -> None:
    found = planned("decode:8*3,prefill:512")
    assert [(cell.shape.n, cell.shape.k) for cell in found[:4]] == LLAMA
    assert list(dict.fromkeys(cell.shape.m for cell in found)) == [8, 512, *LADDER]
    assert [cell.asked for cell in found] == [True] * 8 + [False] * 20
    assert len(planned()) == 4 * len(LADDER)  # 16 and 2048 are the ladder's own


def test_tensor_parallel_ranks_time_their_shards() -> None:
    shapes = {(cell.shape.n, cell.shape.k) for cell in planned(model="llama-3-70b", tp=4)}
    assert shapes == {(2560, 8192), (8192, 2048), (14336, 8192), (8192, 7168)}


def test_only_kernels_that_run_the_shape_are_picked_each_by_its_default_first() -> None:
    by_m = {cell.shape.m: cell for cell in planned() if (cell.shape.n, cell.shape.k) == (28672, 4096)}
    assert {pick.variant.name for pick in by_m[2048].picks} == {"w4a8.mma.channel", "w4a8.mma.g128i"}
    assert {pick.variant.name for pick in by_m[64].picks} == {variant.name for variant in VARIANTS}
    for cell in by_m.values():
        counts = Counter(pick.variant.name for pick in cell.picks)
        assert max(counts.values()) <= TILES
        assert [pick.tile for pick in cell.defaults] == [pick.variant.tiles[0] for pick in cell.defaults]
        assert set(cell.defaults) | set(cell.further) == set(cell.picks)
        assert not set(cell.defaults) & set(cell.further)


def test_a_format_that_was_asked_for_is_timed_alone_beside_fp16_and_fp8() -> None:
    assert all(not cell.picks and cell.baselines == ("fp16", "fp8") for cell in planned(format="w4a16"))
    assert all(cell.picks for cell in planned(format="w4a8"))


def test_a_k_without_whole_groups_is_timed_in_what_it_is_packed_in_two_levels_among_it() -> None:
    asked = WorkloadRecord(model="llama-2-7b", points=parse_workload("decode:16"), tensor_parallel=4)
    found = cells(shard(load_model("llama-2-7b"), 4), asked, TIMER, CHIP, catalogue.VARIANTS)
    down = [cell for cell in found if cell.shape.k == 2752]  # 43 x 64: the last group of two levels is short
    packings = [{(pick.variant.format, pick.variant.granularity) for pick in cell.picks} for cell in down]
    assert packings == [{("w4a8", "channel"), ("w4a8", "g128i"), ("w4a8", "g64")}] * len(LADDER)


@pytest.mark.parametrize("format", ["auto", "w4a4"])
def test_no_time_is_spent_on_an_mma_that_is_emulated(format: Any) -> None:
    asked = WorkloadRecord(model="llama-3-8b", points=parse_workload("prefill:2048"), format=format)
    device, figures, points = predict_device(find("A100"))
    native = timer_of(Rates.of(device, figures), points)

    def formats(timer: GemmTimer, chip: Chip) -> set[str]:
        found = cells(load_model("llama-3-8b"), asked, timer, chip, catalogue.VARIANTS)
        return {pick.variant.format for cell in found for pick in cell.picks}

    others = {"w4a8", "w4a16"} if format == "auto" else set()
    assert formats(TIMER, CHIP) == others
    assert formats(native, A100) == {"w4a4", *others}
    assert formats(native, CHIP) == others, "whatever rates a profile claims"


# Which tiles are promising


def test_a_tile_that_leaves_sms_idle_or_computes_tokens_for_nothing_is_predicted_slower() -> None:
    small, large = VARIANTS[0], VARIANTS[2]
    narrow = {t["rows"]: tile_us(TIMER, small, t, Shape(16, 4096, 4096), CHIP) for t in SMALL}
    assert narrow[32] < narrow[64]  # 128 CTAs against 64 on 132 SMs
    wide = {(t["rows"], t["tokens"]): tile_us(TIMER, large, t, Shape(272, 28672, 8192), CHIP) for t in LARGE}
    assert wide[128, 128] < wide[128, 256]  # 272 tokens take three tiles of 128, or two of 256


def test_a_tile_that_loads_its_operands_too_often_is_bound_by_the_l2() -> None:
    shape, tokens = Shape(4096, 28672, 4096), 64
    weights = (shape.n * shape.k / 2 + 4 * shape.n) * shape.m / tokens
    activations = shape.m * shape.k * shape.n / 64
    narrow = tile_us(TIMER, VARIANTS[2], LARGE[5], shape, CHIP)
    assert LARGE[5].name == "rows=64,tokens=64,stages=3"
    assert narrow == pytest.approx(TIMER.fixed_us + (weights + activations) / 5620e3)
    assert tile_us(TIMER, VARIANTS[2], LARGE[0], shape, CHIP) < narrow


def test_what_cannot_win_is_not_timed_and_the_default_always_is() -> None:
    found = ranked(TIMER, VARIANTS[0], Shape(16, 1024, 14336), CHIP)
    assert found is not None
    assert found.default == SMALL[0] and found.times[0] == (found.best_us, SMALL[1])  # 64 SMs busy against 32 and 16
    assert found.within(1.25 * found.best_us, 4) == [SMALL[0], SMALL[1]]
    assert found.within(1.25 * found.best_us, 1) == [SMALL[0]]
    assert ranked(TIMER, VARIANTS[0], Shape(128, 1024, 14336), CHIP) is None


def test_a_variant_meant_for_another_m_is_left_out_and_the_catalogues_own_choice_never() -> None:
    """One CTA of 128 rows and 256 tokens for every 128 rows: 8 of 132 SMs at N = 1024."""
    asked = WorkloadRecord(model="m", points=parse_workload("decode:1"), format="w4a8")
    few = replace(load_model("llama-3-8b"), layers=(Layer("o", 1024, 14336, 32),))
    cell = cells(few, asked, TIMER, CHIP, (VARIANTS[0], replace(VARIANTS[2], tiles=LARGE[:1])))[0]
    assert {pick.variant.name for pick in cell.picks} == {"w4a8.small.channel"}
    only = cells(few, asked, TIMER, CHIP, (replace(VARIANTS[2], tiles=LARGE[:1]), VARIANTS[0]))[0]
    assert {pick.variant.name for pick in only.picks} == {"w4a8.mma.channel", "w4a8.small.channel"}


def test_a_variant_that_models_its_tiles_is_believed_and_mma_sync_is_left_out_behind_wgmma() -> None:
    shape = Shape(2048, 4096, 14336)
    wgmma = replace(VARIANTS[2], name="w4a8.wgmma.channel", activations="int8_wgmma", clocks=lambda t, s, c: t["rows"])
    found = ranked(TIMER, wgmma, shape, CHIP)
    assert found is not None
    modelled = TIMER.modelled(2048, 4096, 14336, "w4a8", "channel")
    assert found.best_us == pytest.approx(modelled.us - modelled.quantise)
    assert [us / found.best_us for us, _ in found.times] == [t["rows"] / 64 for _, t in found.times]
    rates = TIMER.rates
    wide = rates.kernel_tensor("s8")
    assert wide is not None and wide.name.startswith("wgmma")
    behind = wide.per_clk / rates.instruction("mma.s8.m16n8k32").per_clk
    assert 1.2 < behind < 2.0
    alike = replace(VARIANTS[2], activations="int8_wgmma")  # the same grid, were it on wgmma
    fixed, no_l2 = TIMER.fixed_us, timer_of(Rates.of(H100, measurements()), co_issue())
    for tile in LARGE[:2]:
        slow, fast = (tile_us(no_l2, each, tile, shape, CHIP) for each in (VARIANTS[2], alike))
        assert slow - fixed == pytest.approx(behind * (fast - fixed))
    asked = WorkloadRecord(model="m", points=parse_workload("prefill:2048"), format="w4a8")
    one = replace(load_model("llama-3-8b"), layers=(Layer("down", 4096, 14336, 32),))
    picks = [pick for pick in cells(one, asked, TIMER, CHIP, (wgmma, VARIANTS[2]))[0].picks]
    assert {pick.variant.name for pick in picks} == {"w4a8.wgmma.channel"}


# The budget


def test_with_time_enough_everything_is_timed_and_nothing_is_said() -> None:
    bench = RecordedBench(us=lambda name, _shape: 8.0 if "rows=64" in name else 10.0)
    found = tuned(bench)
    assert [shape for shape, _ in bench.timed] == [cell.shape for cell in planned()]
    assert sum(len(names) for _, names in bench.timed) == sum(len(c.picks) + len(c.baselines) for c in planned())
    assert found.warnings == () and [note for note in found.notes if "not timed" in note] == []
    keys = [(t.n, t.k, t.m, t.variant) for t in found.timings]
    assert len(keys) == len(set(keys))  # the best tile of each variant
    offered = {shape: names for shape, names in bench.timed}
    for t in found.timings:
        wide = any(name.startswith(f"{t.variant} rows=64") for name in offered[Shape(t.m, t.n, t.k)])
        assert t.us == (8.0 if wide else 10.0)


def test_when_time_runs_out_the_workload_was_first_and_the_rest_is_told() -> None:
    bench = RecordedBench(seconds_a_kernel=0.05, seconds_a_candidate=0.5)
    found = tuned(bench, budget_s=35.0)
    asked = [shape for shape, _ in bench.timed[:8]]
    assert {shape.m for shape in asked} == {16, 2048}
    assert found.warnings == ()
    (note,) = [note for note in found.notes if "not timed" in note]
    assert note.startswith("Kernels were timed within 35 s; not timed, for want of time: ")
    assert "further tiles of these kernels" in note
    missing = len(planned()) - len(bench.timed)
    assert missing > 0 and f"and {missing} of 20 pairs of layer shape and M (M = " in note
    longest = 0.5 * max(len(names) for _, names in bench.timed)
    assert bench.now - 1000.0 <= 35.0 + longest


def test_every_variant_that_runs_is_timed_by_its_default_even_when_time_is_short() -> None:
    bench = RecordedBench(seconds_a_candidate=2.0)
    tuned(bench, budget_s=60.0)
    shape, names = bench.timed[1]
    assert shape.m == 16 and names[:2] == ["fp16", "fp8"]
    assert sorted(names[2:]) == sorted(f"{variant.name} {variant.tiles[0].name}" for variant in VARIANTS)


def test_a_workload_that_could_not_be_timed_is_a_warning() -> None:
    found = tuned(RecordedBench(seconds_a_candidate=4.0), budget_s=20.0)
    assert found.warnings == (
        "not every layer was timed at M = 16, 2048 of the workload; the others' times there are predicted",
    )


def test_a_gpu_that_is_lost_ends_the_tuning_and_keeps_what_was_timed() -> None:
    bench = RecordedBench(lost_at=Shape(2048, 6144, 4096))
    found = tuned(bench)
    assert {timing.m for timing in found.timings} == {16}
    assert found.warnings == (
        "timing kernels stopped: illegal address",
        "not every layer was timed at M = 2048 of the workload; the others' times there are predicted",
    )
    (note,) = [note for note in found.notes if "not timed" in note]
    assert note.endswith("not timed, as timing stopped: 16 of 20 pairs of layer shape and M (M = 1, 64, 256, 2048).")


def test_compiling_takes_its_share_of_the_time_and_no_more() -> None:
    bench = RecordedBench(seconds_a_kernel=1.0)
    found = tuned(bench, budget_s=30.0)
    assert len(bench.compiled) == 16  # one batch; the second would have begun after 0.4 of 30 s
    assert bench.timed and any("further tiles" in note for note in found.notes)


def test_a_kernel_that_does_not_compile_takes_no_other_with_it() -> None:
    bench = RecordedBench(broken=("w4a8.small.g128i",))
    found = tuned(bench)
    assert {t.variant for t in found.timings} == {
        "fp16", "fp8", "w4a8.small.channel", "w4a8.mma.channel", "w4a8.mma.g128i",
    }  # fmt: skip
    assert "Not timed: w4a8.small.g128i rows=32,stages=2 does not compile: line 7." in found.notes
    assert not any("for want of time" in note for note in found.notes)


def test_a_candidate_that_cannot_run_is_told_once() -> None:
    found = tuned(RecordedBench(refuses=("fp8",)))
    assert found.notes == ("Not timed: fp8: out of memory.",)
    assert {t.variant for t in found.timings}.isdisjoint({"fp8"})


def test_many_failures_are_counted() -> None:
    found = tuned(RecordedBench(broken=("w4a8.mma.channel", "w4a8.mma.g128i")))
    told = [note for note in found.notes if note.startswith("Not timed")]
    assert len(told) == 6 and told[-1].startswith("Not timed either: ")


def test_fp8_is_quantised_as_fast_as_our_formats_and_that_is_told() -> None:
    found = tuned(RecordedBench())
    assert {t.us_quantise for t in found.timings if t.variant == "fp8"} == {2.5}  # 9.0 by torch's operators
    assert any(note.startswith("Quantising FP8's activations is counted as fast") for note in found.notes)
    alone = tuned(RecordedBench(), wanted=planned(format="fp8"))
    assert {t.us_quantise for t in alone.timings if t.variant == "fp8"} == {9.0}


def test_progress_goes_from_nothing_to_all() -> None:
    shares: list[float] = []
    bench = RecordedBench()
    tune(planned(), bench, 100.0, progress=lambda _what, share: shares.append(share), clock=bench.clock)
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0


def test_what_was_tuned_is_a_table_for_every_packing() -> None:
    bench = RecordedBench(us=lambda name, shape: {"f": 20.0}.get(name[0], 5.0 if ".small." in name else 10.0))
    tables = kernel_tables(tuned(bench).timings)
    assert {(t.n, t.k, t.granularity) for t in tables} == {(*s, g) for s in LLAMA for g in ("channel", "g128i")}
    for table in tables:
        assert [(kernel.m_max, kernel.variant.split(".")[1]) for kernel in table.kernels] == [
            (1, "small"), (16, "small"), (64, "small"), (256, "mma"), (2048, "mma"),
        ]  # fmt: skip
        assert table.for_tokens(65).variant.startswith("w4a8.mma.")


@pytest.mark.parametrize("seconds", [0.01, 0.3, 3.0])
def test_a_tuned_pick_never_loses_to_the_default(seconds: float) -> None:
    def us(name: str, shape: Shape) -> float:
        return 5.0 + zlib.crc32(f"{name} {shape}".encode()) % 1000 / 100

    bench = RecordedBench(us=us, seconds_a_candidate=seconds)
    for timing in tuned(bench, budget_s=40.0).timings:
        default = next((v.tiles[0].name for v in VARIANTS if v.name == timing.variant), "")
        shape = Shape(timing.m, timing.n, timing.k)
        assert timing.us <= us(f"{timing.variant} {default}".strip(), shape)
