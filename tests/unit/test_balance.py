"""The balance: what each strategy costs, counted in the Tensor Core's own time."""

from __future__ import annotations

import pytest
from recorded_h100 import H100, co_issue, measurements

from apex4_probe.balance import GROUP, SHORT_LAST_GROUP, Variant, balance, rho, strategy_balance
from apex4_probe.datasheets import find
from apex4_probe.deployment import CoIssue, Device, Measurement, RhoFigure, StrategyBalance
from apex4_probe.errors import ApexError
from apex4_probe.kernels import formats
from apex4_probe.overlap import overlap_of
from apex4_probe.prediction import predict_device
from apex4_probe.rates import Rates
from apex4_probe.shipped import nearest


def bare(compute_capability: str, sms: int = 100, clock: float = 1500) -> Rates:
    """A device of which nothing was measured: the architecture's rates alone."""
    device = Device(
        name="bare", compute_capability=compute_capability, architecture="", sm_count=sms, max_sm_clock_mhz=clock
    )
    return Rates.of(device, [])


def cost(
    rates: Rates, format: str, granularity: str, strategy: str, points: list[CoIssue] | None = None
) -> StrategyBalance:
    found = strategy_balance(rates, Variant(format, granularity, strategy), points or [])  # type: ignore[arg-type]
    assert found is not None
    return found


def test_groups_are_those_of_the_kernels() -> None:
    assert {granularity: group for granularity, group in formats.GROUP.items() if group} == GROUP
    assert SHORT_LAST_GROUP == formats.TWO_LEVEL


def in_mma(found: StrategyBalance) -> dict[str, float]:
    return {pipe: cycles / found.pipes["tensor"] for pipe, cycles in found.pipes.items()}


# Clocks a group over the MMA's: I2F + FMUL + FFMA is 1/16 + 2/64 beside 1/32 on A100, 1/64 + 2/128 beside 1/16 on 8.6.
# Groups of 64 and 32 keep their row scales in fp16: per thread 8 rows a group are converted (HADD2) and multiplied.
@pytest.mark.parametrize(
    ("cc", "granularity", "strategy", "conversion", "fma"),
    [
        ("8.0", "g128", "i2f_fmul_ffma", 2.0, 1.0),
        ("8.0", "g128", "magic_ffma2", 0.0, 1.0),
        ("8.0", "a128i", "imad", 0.0, 0.5),
        ("8.0", "channel", "none", 0.0, 0.0),
        ("8.0", "g32", "i2f_fmul_ffma", 8.0, 4.0 + 32 * (0.25 / 64 + 0.25 / 128)),
        ("8.6", "g128", "i2f_fmul_ffma", 0.25, 0.25),
        ("8.6", "g128", "magic_ffma2", 0.0, 0.25),
        ("8.6", "a128i", "imad", 0.0, 0.25),
        ("8.6", "g64", "magic_ffma2", 0.0, 0.5 + 16 * (0.125 / 128 + 0.125 / 64)),
    ],
)
def test_pipes_of_w4a4_from_first_principles(
    cc: str, granularity: str, strategy: str, conversion: float, fma: float
) -> None:
    pipes = in_mma(cost(bare(cc), "w4a4", granularity, strategy))
    assert (pipes["conversion"], pipes["fma"]) == pytest.approx((conversion, fma), abs=1e-9)
    assert 0 < pipes["alu"] < 0.035  # addresses and the loop


# 128 bytes a cycle, 16384 accumulators: a warp of 64 x 64 reads 16 times 512 bytes, with 8 more of scales for g128;
# copies write 128 + 16 times 512 bytes a CTA.
@pytest.mark.parametrize(
    ("granularity", "strategy", "cycles"),
    [
        ("channel", "none", 4 * 16 * 4 + 32 * 4),
        ("a128i", "imad", 4 * 20 * 4 + 36 * 4),
        ("g128", "magic_ffma2", 4 * 24 * 4 + 36 * 4),
    ],
)
def test_shared_memory_is_a_third_full_pipe_on_a100_and_half_idle_on_8_6(
    granularity: str, strategy: str, cycles: int
) -> None:
    assert in_mma(cost(bare("8.0"), "w4a4", granularity, strategy))["shared"] == pytest.approx(cycles / 512)
    assert in_mma(cost(bare("8.6"), "w4a4", granularity, strategy))["shared"] == pytest.approx(cycles / 1024)


# FP16 takes 4 times the INT4 MMA on A100. Bounds, shared memory in sequence too: 2 FFMA 3.9 / 1.3x (shared memory is
# the longest pipe), IMAD 4.0 / 1.6x, I2F + FMUL + FFMA 2.0 / 0.8x; dependent instructions on one pipe cost a few per
# cent more than the pipe.
@pytest.mark.parametrize(
    ("granularity", "strategy", "best", "worst"),
    [
        ("g128", "magic_ffma2", 4.0 * 512 / 528, 1.31),
        ("a128i", "imad", 4.0, 1.65),
        ("g128", "i2f_fmul_ffma", 2.0, 0.80),
    ],
)
def test_bounds_on_a100_against_fp16(granularity: str, strategy: str, best: float, worst: float) -> None:
    found = cost(bare("8.0"), "w4a4", granularity, strategy)
    fp16 = 128 / 1024
    assert fp16 / found.cycles_full_overlap == pytest.approx(best)
    assert fp16 / found.cycles_no_overlap == pytest.approx(worst, rel=0.04)


def test_the_conversion_pipe_binds_on_a100_alone() -> None:
    assert cost(bare("8.0"), "w4a4", "g128", "i2f_fmul_ffma").bound_by == "conversion"
    assert cost(bare("8.6"), "w4a4", "g128", "i2f_fmul_ffma").bound_by == "tensor"


def test_expected_lies_between_the_bounds_and_uses_the_overlap() -> None:
    for cc in ("7.5", "8.0", "8.6", "8.9", "9.0"):
        for found in balance(bare(cc), []):
            assert found.cycles_full_overlap <= found.cycles_expected <= found.cycles_no_overlap


def test_the_plain_chain_on_a100_takes_its_conversions_and_all_of_the_rest() -> None:
    """Two MMAs' time of I2F, then one MMA's of FMUL + FFMA, of all of which a few per cent of an MMA hide."""
    plain = cost(bare("8.0"), "w4a4", "g128", "i2f_fmul_ffma")
    assert plain.cycles_expected * 32 == pytest.approx(1 + 2 + 1 - 0.07, rel=0.06)
    assert plain.over_channel == pytest.approx(3.93, rel=0.06)
    assert (plain.overlap_origin, plain.origin) == ("predicted", "predicted")
    assert "carried over from NVIDIA H100 80GB HBM3: mma.s8 m16n8k32, mix.i2f_fmul_ffma, k = 1" in plain.source


@pytest.mark.parametrize(("cc", "over"), [("9.0", 1.0), ("8.0", 1.017), ("8.6", 1.021), ("8.9", 1.021)])
def test_two_level_scales_cost_next_to_nothing(cc: str, over: float) -> None:
    """The catalogue's kernels widen 0.69 instructions an accumulator where per channel widens 0.25 or 0.5."""
    assert cost(bare(cc), "w4a8", "g128i", "widen").over_channel == pytest.approx(over, abs=0.001)


def test_what_no_kernel_executes_is_said() -> None:
    exact = cost(bare("8.0"), "w4a4", "g128", "magic_ffma2")
    counted = "instructions counted in the machine code of "
    assert exact.source.startswith(f"{counted}the catalogue's kernels for sm_80 (NVRTC ")
    assert "; w4a4.mma.g128, 64x64 a warp; rates datasheet; overlap: " in exact.source
    like = cost(bare("8.0"), "w4a8", "g128", "i2f_ffma")
    assert "but the strategy's own for dequantisation; as w4a8.mma.g128, 32x64 a warp; " in like.source
    assert like.pipes["conversion"] == pytest.approx(1 / 16)
    assert cost(bare("9.0"), "w4a8", "g128", "i2f_ffma").source.startswith(f"{counted}study kernels")


@pytest.mark.parametrize(("cc", "arch"), [("7.5", "sm_80"), ("8.6", "sm_86"), ("8.7", "sm_87"), ("12.0", "sm_89")])
def test_an_architecture_without_kernels_takes_the_nearest_ones_counts(cc: str, arch: str) -> None:
    source = cost(bare(cc), "w4a8", "channel", "none").source
    assert f"for {arch} (NVRTC" in source


def test_the_larger_instruction_stands_for_the_straightforward_strategy() -> None:
    """m16n8k32 executes the same and passes more issue slots; the pipes are equal, so either may be named."""
    found = cost(bare("8.0"), "w4a4", "g128", "i2f_fmul_ffma")
    assert found.pipes["issue"] * 128 == pytest.approx(0.5 + 3.0 + 0.34375)


def test_the_model_meets_the_float_scale_kernel_on_hopper() -> None:
    """I2F + FFMA reached 0.69 of the per-channel kernel on an H100. Widening counts as work."""
    rates = Rates.of(H100, measurements())
    assert 1 / cost(rates, "w4a8", "g128", "i2f_ffma").over_channel == pytest.approx(0.69, rel=0.12)


def test_measured_rates_and_overlap_are_used_and_named() -> None:
    rates = Rates.of(H100, measurements())
    found = cost(rates, "w4a8", "g128", "i2f_ffma", co_issue())
    assert found.mma == "wgmma.s8.m64n256k32.rs"
    assert found.pipes["tensor"] == pytest.approx(128 / 4092)
    assert found.pipes["conversion"] == pytest.approx(1 / 63.5)
    assert found.overlap_origin == "measured" and "mix.i2f_ffma" in found.source
    # The chain's own time is the probe's, 0.542 of the MMA, widening comes on top; hidden is what the probe saw hidden.
    widen = (3 / 8 * 128 / 256) / 63.5
    hidden = 0.542 - 0.465
    assert found.cycles_expected == pytest.approx(128 / 4092 * (1 + 0.542 - hidden) + widen, rel=1e-3)


def test_a_lane_rate_that_was_not_measured_comes_from_the_architecture() -> None:
    some = [m for m in measurements() if m.name not in ("i2f", "lop3")]
    lost = Measurement(name="i2f", instruction="I2FP", unit="Tinstr/s", origin="measured", unsupported="probe failed")
    found = cost(Rates.of(H100, [*some, lost]), "w4a8", "g128", "i2f_ffma")
    assert found.pipes["conversion"] == pytest.approx(1 / 64)
    assert "rates datasheet" in found.source


def test_an_overlap_of_another_placement_or_mma_is_not_taken() -> None:
    wrong = [point.model_copy(update={"placement": "after_complete"}) for point in co_issue()]
    assert cost(Rates.of(H100, measurements()), "w4a8", "g128", "i2f_ffma", wrong).overlap_origin == "predicted"


def test_int4_borrows_the_int8_curve_of_its_own_chip() -> None:
    point = CoIssue(
        mma="mma.s8", shape="m16n8k32", placement="same_warps", instruction="mix.magic_ffma2", k=1,
        cycles_over_mma_alone=1.2, cuda_over_mma_alone=0.5, overlap=0.6, origin="measured",
    )  # fmt: skip
    found = cost(bare("8.0"), "w4a4", "g128", "magic_ffma2", [point])
    # 0.5 of an INT8 MMA is 1.0 of an INT4 MMA; shared memory is busy for 528 of its 512 cycles.
    assert found.cycles_expected == pytest.approx((528 / 512 + 1.0 - 0.6 * 1.0) / 32)
    assert found.overlap_origin == "measured"


def test_unpacking_takes_the_imad_curve_where_lop3_was_not_probed() -> None:
    points = [p.model_copy(update={"instruction": "imad"}) for p in co_issue() if p.instruction == "mix.imad"]
    found = cost(Rates.of(H100, measurements()), "w4a8", "g128i", "widen", points)
    assert found.overlap_origin == "measured" and "imad" in found.source
    assert found.over_channel == pytest.approx(1.0)


def test_behind_wgmma_an_amount_hides_and_behind_mma_sync_a_share() -> None:
    rates = Rates.of(H100, measurements())
    points = [
        CoIssue(
            mma=mma, shape=shape, placement=placement, instruction="mix.imad", k=1, cycles_over_mma_alone=1.13,
            cuda_over_mma_alone=0.5, overlap=0.74, origin="measured",
        )
        for mma, shape, placement in (
            ("wgmma.s8", "m64n128k32.rs", "at_issue"), ("mma.s8", "m16n8k32", "same_warps"),
        )
    ]  # fmt: skip
    wgmma, mma = (overlap_of("imad", "s8", family, points, rates) for family in ("wgmma", "mma"))  # type: ignore[arg-type]
    assert wgmma.behind(0.2) == 1.0
    assert wgmma.behind(1.0) == pytest.approx(0.74 * 0.5)
    assert mma.behind(0.2) == mma.behind(1.0) == pytest.approx(0.74)


def test_an_int4_loop_steps_over_twice_the_k() -> None:
    """Four K-steps of m16n8k64 are 256 of K: half an INT4 MMA's time there is all of it per 128."""
    point = CoIssue(
        mma="mma.s4", shape="m16n8k64", placement="same_warps", instruction="mix.magic_ffma2", k=1,
        cycles_over_mma_alone=1.5, cuda_over_mma_alone=0.5, overlap=0.0, origin="measured",
    )  # fmt: skip
    assert overlap_of("magic_ffma2", "s4", "mma", [point], bare("8.0")).cuda_cycles == pytest.approx(1 / 32)


def test_a_gpu_of_the_reference_kind_sees_the_reference_points() -> None:
    h100 = nearest("9.0", "wgmma")
    assert h100 is not None
    rates = Rates.of(h100.device, h100.measurements)
    for strategy in ("i2f_fmul_ffma", "i2f_ffma", "magic_ffma2", "imad", "widen"):
        own = overlap_of(strategy, "s8", "wgmma", h100.co_issue, rates)
        carried = overlap_of(strategy, "s8", "wgmma", [], rates)
        assert (own.origin, carried.origin) == ("measured", "predicted")
        assert carried.cuda_cycles == pytest.approx(own.cuda_cycles)
        assert carried.value == pytest.approx(own.value)


def test_without_any_reference_nothing_is_assumed_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apex4_probe.shipped.shipped_profiles", lambda: ())
    found = overlap_of("i2f_fmul_ffma", "s4", "mma", [], bare("8.0"))
    assert (found.value, found.origin) == (0.0, "predicted")
    assert found.cuda_cycles == pytest.approx(1 / 16 + 2 / 64)
    assert found.source.startswith("none assumed")


@pytest.mark.parametrize(
    ("device", "kind", "value"),
    [
        ("RTX 3090", "int4", 16),
        ("A40", "int4", 16),
        ("A100", "int4", 64),
        ("L40S", "int4", 8),
        ("T4", "int4", 32),
        ("H100", "int8", 29.5),
    ],
)
def test_rho_of_the_datasheet_is_the_papers(device: str, kind: str, value: float) -> None:
    sheet = find(device)
    predicted, figures, _ = predict_device(sheet)
    listed = {name: sheet.value(name) for name in ("int4_tops", "int8_tops", "fp32_tflops")}
    found: dict[str, RhoFigure] = dict(rho(Rates.of(predicted, figures), listed))
    assert found[kind].datasheet == pytest.approx(value, rel=0.01)
    assert found[kind].usable and found[kind].measured is None


def test_rho_measured_per_second_and_per_clock() -> None:
    found = rho(Rates.of(H100, measurements()), {"int8_tops": 1979, "fp32_tflops": 67})["int8"]
    assert found.datasheet == pytest.approx(29.54, abs=0.01)
    assert found.measured == pytest.approx(1906 / (123 * 132 * 1980e6 * 2 / 1e12))
    assert found.per_clock == pytest.approx(4095 / 123)


def test_rho_of_emulated_int4_is_not_usable_whatever_it_reads() -> None:
    found = rho(Rates.of(H100, measurements()), {})["int4"]
    assert (found.usable, found.measured, found.per_clock) == (False, None, None)
    assert found.reason.startswith("emulated: ")


def test_sass_decides_and_not_the_compute_capability() -> None:
    emulated = [
        Measurement(
            name=name, instruction="", emulated=True, value=50, unit="TOPS", sm_clock_mhz=1500, origin="measured"
        )
        for name in ("mma.s4.m8n8k32", "mma.s4.m16n8k32", "mma.s4.m16n8k64")
    ]
    rates = Rates.of(bare("8.0").device, emulated)
    assert rates.tensor("s4") is None
    assert rho(rates, {})["int4"].usable is False


@pytest.mark.parametrize("cc", ["10.0", "10.3", "12.0"])
def test_rho_does_not_apply_where_block_scales_are_in_hardware(cc: str) -> None:
    found = rho(bare(cc), {})
    assert [figure.usable for figure in found.values()] == [False, False]
    assert found["int4"].reason.startswith("block scales are in hardware: ")


def test_the_best_native_shape_gives_the_rate() -> None:
    shapes = {"mma.s4.m8n8k32": 3400, "mma.s4.m16n8k32": 3900, "mma.s4.m16n8k64": 4050}
    figures = [
        Measurement(
            name=name, instruction="", emulated=False, operands="random", regime="burst", value=1.0, unit="TOPS",
            per_clk_per_sm=mac, per_clk_unit="MAC", sm_clock_mhz=1400, origin="measured",
        )
        for name, mac in shapes.items()
    ]  # fmt: skip
    zeros = figures[0].model_copy(update={"operands": "zeros", "per_clk_per_sm": 4096.0})
    tensor = Rates.of(bare("8.0").device, [zeros, *figures]).tensor("s4")
    assert tensor is not None and (tensor.name, tensor.per_clk) == ("mma.s4.m16n8k64", 4050)


def test_mma_sync_on_blackwell_is_no_peak() -> None:
    slow = Measurement(
        name="mma.f16.m16n8k16", instruction="", emulated=False, value=500, unit="TFLOPS", per_clk_per_sm=1000,
        sm_clock_mhz=1500, origin="measured",
    )  # fmt: skip
    tensor = Rates.of(bare("10.0").device, [slow]).tensor("f16")
    assert tensor is not None and (tensor.per_clk, tensor.origin) == (4096, "datasheet")


def test_without_a_clock_or_bandwidth_it_says_so() -> None:
    blind = Rates.of(Device(name="blind", compute_capability="8.0", architecture="", sm_count=1), [])
    with pytest.raises(ApexError, match="blind: neither the driver nor a measurement tells the SM clock"):
        blind.tensor("s4")
    with pytest.raises(ApexError, match="blind: without a measured memory bandwidth"):
        blind.read_bandwidth()
