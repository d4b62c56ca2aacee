"""Counts of a hot loop from nvdisasm's text, and the cycles and bounds that follow, by value."""

from __future__ import annotations

import dataclasses

import pytest
from test_sass import listing

from apex4_probe.architecture import architecture
from apex4_probe.errors import ApexError
from apex4_probe.kernels.sass_counts import DEQUANTISATION, count, macs, mma_rate, rate_of
from apex4_probe.sass_bounds import cycles, documented, rates_of, sass_records, work_of
from apex4_probe.sass_records import HotLoop, shipped_loops
from apex4_probe.strategies import STRATEGIES

# One m16n8k64 is 8192 MAC of a warp: 2 accumulators x 128 of K a thread, the unit of everything below.
LOOP = """
MOV R1, RZ
LDS.128 R100, [R2]
.L_x_0:
IMMA.16864.S4.S4 R4, R8, R12, R4
FFMA R20, R4, R30, R31
FFMA R20, R20, R32, R33
FFMA R21, R5, R30, R31
FFMA R21, R21, R32, R33
LDS.128 R8, [R2]
@!PT LDS RZ, [RZ]
LDS.64 R40, [R2+0x10]
LDS R41, [R2+0x20]
LDSM.16.M88.4 R44, [R3]
LDGSTS.E.BYPASS.128 [R5], [R6.64]
IADD3 R7, R7, 0x1, RZ
IMAD.WIDE R60, R61, 0x4, R62
UIADD3 UR4, UR4, 0x1, URZ
BAR.SYNC.DEFER_BLOCKING 0x0
@!P0 BRA `(.L_x_0)
EXIT
"""


def counted(text: str = LOOP, strategy: str = "magic_ffma2", format: str = "w4a4"):
    return count(listing(text, "gemm"), format, strategy)  # type: ignore[arg-type]


def test_everything_is_counted_once_and_by_what_it_is_for() -> None:
    found = counted()
    assert (found.mma, found.mma_rate) == (0.5, "mma.s4")
    assert found.dequantisation == {"ffma": 2.0}
    assert (found.widening, found.other) == ({}, {"lop3": 0.5, "imad": 0.5})
    assert (found.loads, found.issue_only) == (6 / 2, 3 / 2)
    assert (found.scaling, found.rest) == (2.0, 3.0 + 1.5 + 1.0)
    assert sum((found.mma, found.scaling, found.rest)) * 2 == 16, "all instructions of the loop and none before it"


def test_shared_memory_moves_every_lanes_bytes_and_none_of_what_never_happens() -> None:
    # LDS.128, .64, .32, four matrices of 8 rows of 16 bytes, and a copy of 16 bytes a lane; 32 lanes and 2 accumulators
    assert counted().shared_traffic == (512 + 256 + 128 + 512 + 512) / 64


def test_another_strategy_takes_other_instructions_for_its_own() -> None:
    found = counted(strategy="none")
    assert (found.dequantisation, found.other["ffma"]) == ({}, 2.0)
    plain = counted(LOOP.replace("FFMA R20, R4", "I2FP.F32.S32 R20, R4"), "i2f_fmul_ffma")
    assert plain.dequantisation == {"ffma": 1.5, "i2f": 0.5}


def test_widening_belongs_to_int8_alone() -> None:
    text = LOOP.replace("IMMA.16864.S4.S4", "IMMA.16832.U8.S8").replace("IADD3 R7", "LOP3.LUT R7")
    found = counted(text, "none", "w4a8")
    assert (found.mma, found.mma_rate) == (1.0, "mma.s8")  # half as many MAC: everything counts twice
    assert (found.widening, found.other) == ({"lop3": 1.0}, {"ffma": 4.0, "imad": 1.0})
    assert counted(text, "none", "w4a4").widening == {}


def test_every_strategy_of_the_vocabulary_can_be_counted() -> None:
    assert set(DEQUANTISATION) == set(STRATEGIES)


def test_a_kernel_without_an_mma_says_so() -> None:
    with pytest.raises(ApexError, match="gemm: its machine code has no loop with an MMA"):
        counted(".L_x_0:\nFFMA R1, R1, R1, R1\n@P0 BRA `(.L_x_0)\nEXIT")


@pytest.mark.parametrize(
    ("opcode", "work", "rate"),
    [
        ("IMMA.16864.S4.S4", 8192, "mma.s4"),
        ("IMMA.16832.S4.S4", 4096, "mma.s4"),
        ("IMMA.8832.S4.S4", 2048, "mma.s4"),
        ("IMMA.16832.U8.S8", 4096, "mma.s8"),
        ("HMMA.16816.F32", 2048, "mma.f16"),
        ("HMMA.16816.F32.BF16", 2048, "mma.bf16"),
        ("QMMA.16832.F32.E4M3.E4M3", 4096, "mma.e4m3"),
    ],
)
def test_mma_shapes(opcode: str, work: int, rate: str) -> None:
    assert (macs(opcode), mma_rate(opcode)) == (work, rate)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ApexError, match=r"IMMA.999.S4 is no MMA whose shape is known"):
        macs("IMMA.999.S4")


@pytest.mark.parametrize(
    ("opcode", "rate"),
    [
        ("FFMA", "ffma"), ("FADD", "fadd"), ("HADD2.F32", "hfma2"), ("IMAD.MOV.U32", "imad"), ("SHF.R.U32.HI", "shf"),
        ("PRMT", "prmt"), ("I2F", "i2f"), ("I2FP.F32.S32", "i2f"), ("ISETP.GT.AND", "lop3"), ("MOV", "lop3"),
    ],
)  # fmt: skip
def test_rates_of_opcodes(opcode: str, rate: str) -> None:
    assert rate_of(opcode) == rate


# cycles and bounds


def hot_loop(**other: object) -> HotLoop:
    values = {
        "variant": "w4a4.test.g128", "format": "w4a4", "granularity": "g128", "strategy": "i2f_fmul_ffma",
        "arch": "sm_80", "compute_capability": "8.0", "tile": "rows=128,tokens=128", "warp_tile": "64x64",
        "accumulators": 16384, "mma": 0.5, "mma_rate": "mma.s4",
        "dequantisation": {"i2f": 1.0, "fmul": 1.0, "ffma": 1.0}, "widening": {"lop3": 0.5}, "other": {"imad": 0.25},
        "loads": 0.25, "issue_only": 0.125, "shared_traffic": 4.0, "registers": 200, "shared_bytes": 65536,
        "local_bytes": 0, "threads": 128, "ctas_per_sm": 2, "warps_per_sm": 8, "nvrtc": "13.5",
    }  # fmt: skip
    return HotLoop.model_validate({**values, **other})


def test_pipes_take_their_instructions_at_the_architectures_rates() -> None:
    found = documented(hot_loop())
    assert found.pipes == pytest.approx(
        {
            "tensor": 128 / 4096,
            "fma": 2 / 64 + 0.25 / 64,
            "alu": 0.5 / 64,
            "conversion": 1 / 16,
            "shared": 4 / 128,
            "issue": (0.5 + 3.0 + 0.5 + 0.25 + 0.25 + 0.125) / 128,
        }
    )
    assert (found.dequantisation, found.widening) == (1 / 16 + 2 / 64, 0.5 / 64)
    assert found.overlap == 1 / 16
    assert found.mma_and_dequantisation == 1 / 32 + 3 / 32 + 1 / 128
    assert found.all_pipes == pytest.approx(1 / 32 + 2.25 / 64 + 1 / 128 + 1 / 16 + 1 / 32)


def test_bounds_are_of_the_ctas_tile_and_against_the_best_per_channel_loop_and_fp16() -> None:
    slow = hot_loop(granularity="channel", strategy="none", dequantisation={}, widening={}, other={}, shared_traffic=5)
    fast = slow.model_copy(update={"shared_traffic": 2.0})
    (record,) = sass_records([hot_loop()], [slow, fast])
    assert record.pipes["tensor"] == 512
    overlap, sequence, every = (
        record.bounds.overlap, record.bounds.mma_and_dequantisation, record.bounds.all_pipes,
    )  # fmt: skip
    assert (overlap.cycles, overlap.over_channel, overlap.speedup_fp16) == (1024, 2.0, 2.0)
    assert (sequence.cycles, sequence.over_channel) == (512 + 1536 + 128, 2176 / 512)
    assert every.over_channel == pytest.approx(every.cycles / (512 + 256))
    assert every.speedup_fp16 == pytest.approx(2048 / every.cycles)


def test_without_a_per_channel_loop_there_is_no_ratio_to_it() -> None:
    elsewhere = hot_loop(granularity="channel", arch="sm_86", compute_capability="8.6")
    (record,) = sass_records([hot_loop()], [elsewhere])
    assert record.bounds.overlap.over_channel is None
    assert record.bounds.overlap.speedup_fp16 == 2.0


def test_issue_slots_bound_and_do_not_add_up() -> None:
    busy = documented(hot_loop(issue_only=100.0))
    assert busy.overlap == busy.pipes["issue"] > 0.8
    assert busy.all_pipes == documented(hot_loop()).all_pipes


def test_mma_sync_reaches_two_thirds_of_hoppers_rate() -> None:
    assert rates_of(architecture("9.0"), "mma.s8").tensor == pytest.approx(4096 * 0.66)
    assert rates_of(architecture("8.9"), "mma.s8").tensor == 1024


def test_a_rate_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ApexError, match=r"11.0 has no rate of mma.s8"):
        rates_of(architecture("11.0"), "mma.s8")


# what ships: the bounds that the kernels were built for


def leading(arch: str, variant: str) -> HotLoop:
    found = [loop for loop in shipped_loops() if (loop.arch, loop.variant) == (arch, variant)]
    return max(found, key=lambda loop: loop.accumulators)


@pytest.mark.parametrize(
    ("arch", "variant", "over_channel", "speedups"),
    [
        # full overlap, Tensor Core and dequantisation in sequence, shared memory and the rest in sequence too
        ("sm_80", "w4a4.mma.channel", (1.0, 1.0, 1.0), (4.0, 4.0, 2.26)),
        ("sm_80", "w4a4.mma.a128i", (1.0, 1.5, 1.37), (4.0, 2.67, 1.65)),
        ("sm_80", "w4a4.mma.g128", (1.03, 2.0, 1.72), (3.88, 2.0, 1.31)),
        ("sm_80", "w4a4.i2f.g128", (2.0, 4.0, 2.82), (2.0, 1.0, 0.80)),
        ("sm_80", "w4a4.k32.g128", (2.0, 4.0, 2.82), (2.0, 1.0, 0.80)),
        ("sm_86", "w4a4.mma.a128i", (1.0, 1.25, 1.24), (4.0, 3.2, 2.33)),
        ("sm_86", "w4a4.mma.g128", (1.0, 1.25, 1.28), (4.0, 3.2, 2.25)),
        ("sm_86", "w4a4.i2f.g128", (1.0, 1.5, 1.44), (4.0, 2.67, 2.0)),
    ],
)
def test_bounds_of_what_ships(
    arch: str, variant: str, over_channel: tuple[float, ...], speedups: tuple[float, ...]
) -> None:
    (record,) = sass_records([leading(arch, variant)], [leading(arch, "w4a4.mma.channel")])
    bounds = (record.bounds.overlap, record.bounds.mma_and_dequantisation, record.bounds.all_pipes)
    assert [bound.over_channel for bound in bounds] == pytest.approx(over_channel, abs=0.006)
    assert [bound.speedup_fp16 for bound in bounds] == pytest.approx(speedups, abs=0.006)


def test_a100_and_rtx_3090_reach_what_was_asked() -> None:
    """The RTX 3090 runs FP16 with fp32 sums at half of the architecture's rate, so its ratios are twice sm_86's."""
    a128i, g128, plain = (
        sass_records([leading("sm_80", name)], [leading("sm_80", "w4a4.mma.channel")])[0].bounds
        for name in ("w4a4.mma.a128i", "w4a4.mma.g128", "w4a4.i2f.g128")
    )
    assert (a128i.mma_and_dequantisation.over_channel or 9) <= 1.5
    assert a128i.mma_and_dequantisation.speedup_fp16 >= 2.6
    assert (g128.mma_and_dequantisation.over_channel or 9) <= 2.1
    assert g128.mma_and_dequantisation.speedup_fp16 >= 1.9
    assert a128i.all_pipes.speedup_fp16 >= 1.55 and g128.all_pipes.speedup_fp16 >= 1.3
    assert plain.all_pipes.speedup_fp16 < 0.85
    # IMAD runs at half of FFMA's rate there: the same pipe time as two FFMA, and 1 issue slot fewer.
    ours, floats = (documented(leading("sm_86", name)) for name in ("w4a4.mma.a128i", "w4a4.mma.g128"))
    assert ours.pipes["fma"] == floats.pipes["fma"] == 1 / 64
    assert (floats.pipes["issue"] - ours.pipes["issue"]) * 128 == pytest.approx(1.0, abs=0.03)


def test_no_shipped_kernel_spills_and_int4_is_native() -> None:
    assert {loop.arch for loop in shipped_loops()} == {"sm_80", "sm_86", "sm_87", "sm_89"}
    assert [loop.variant for loop in shipped_loops() if loop.local_bytes] == []
    assert {loop.mma_rate for loop in shipped_loops() if loop.format == "w4a4"} == {"mma.s4"}


def test_cycles_follow_the_rates_that_are_given() -> None:
    """Measured lanes, say: the planner's own."""
    rates = dataclasses.replace(rates_of(architecture("8.0"), "mma.s4"), instruction=lambda _name: 32.0, tensor=2048.0)
    found = cycles(work_of(hot_loop()), rates)
    assert (found.pipes["tensor"], found.pipes["conversion"], found.pipes["fma"]) == (1 / 16, 1 / 32, 2.25 / 32)
