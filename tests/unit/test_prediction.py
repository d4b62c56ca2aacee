from __future__ import annotations

import dataclasses
import time
from types import MappingProxyType

import pytest

from apex4_probe.architecture import architecture
from apex4_probe.datasheets import Datasheet, datasheets, find
from apex4_probe.deployment import Measurement
from apex4_probe.errors import ApexError
from apex4_probe.prediction import predict_device
from apex4_probe.shipped import nearest, shipped_profiles


def figure(device: str, name: str) -> Measurement:
    return next(m for m in predict_device(find(device))[1] if m.name == name)


@pytest.mark.parametrize("sheet", datasheets(), ids=lambda sheet: sheet.name)
def test_nothing_is_marked_measured_and_everything_has_a_source(sheet: Datasheet) -> None:
    device, measurements, co_issue = predict_device(sheet)
    assert device.name == sheet.name and device.sm_count > 0 and (device.max_sm_clock_mhz or 0) > 1000
    assert {m.origin for m in measurements} <= {"datasheet", "predicted"}
    assert all(m.source or m.unsupported for m in measurements)
    assert {point.origin for point in co_issue} <= {"predicted"}
    assert all("H100" in (point.source or "") for point in co_issue)
    names = [m.name for m in measurements]
    assert len(names) == len(set(names))
    assert set(architecture(sheet.compute_capability).mma_probes) <= set(names)


@pytest.mark.parametrize("sheet", datasheets(), ids=lambda sheet: sheet.name)
def test_a_figure_per_second_is_its_rate_times_clock(sheet: Datasheet) -> None:
    device, measurements, _ = predict_device(sheet)
    for m in measurements:
        if m.value is None or m.per_clk_per_sm is None or m.sm_clock_mhz is None:
            continue
        operations = 2 if m.unit in ("TOPS", "TFLOPS") else 1
        scale = 1e3 if m.unit == "GB/s" else 1e6
        assert m.value == pytest.approx(m.per_clk_per_sm * device.sm_count * m.sm_clock_mhz * operations / scale)


@pytest.mark.parametrize(
    ("device", "name", "value", "per_clk", "clock"),
    [
        ("A100", "mma.s4.m16n8k64", 1248, 4096, 1410),
        ("A100", "mma.f16.m16n8k16", 312, 1024, 1410),
        ("RTX 3090", "mma.s4.m16n8k64", 569, 2048, 1695),
        ("RTX 3090", "mma.f16.m16n8k16", 71, 255, 1695),  # GeForce: fp32 accumulators at half rate
        ("L40S", "mma.s4.m16n8k64", 733, 1024, 2520),  # as listed, half of the architecture's rate
        ("H100", "wgmma.s8.m64n256k32.rs", 1979, 4096, 1830),  # listed at another clock than the boost clock
        ("H100", "wgmma.f16.m64n256k16.ss", 989, 2048, 1830),
        ("T4", "mma.s4.m8n8k32", 260, 2048, 1590),
        ("RTX 5090", "mma.mxf4nvf4.m16n8k64", 1676, 2048, 2407),
        ("A100", "ffma", 19.5, 64, 1410),
    ],
)
def test_listed_figures(device: str, name: str, value: float, per_clk: float, clock: float) -> None:
    found = figure(device, name)
    assert (found.value, found.origin) == (pytest.approx(value), "datasheet")
    assert found.per_clk_per_sm == pytest.approx(per_clk, rel=0.005)
    assert found.sm_clock_mhz == pytest.approx(clock, rel=0.005)


def test_a_formula_and_what_is_taken_over_from_fp16_are_predictions() -> None:
    assert figure("L4", "mma.s4.m16n8k64").origin == "predicted"
    bf16 = figure("RTX 3090", "mma.bf16.m16n8k16")
    assert (bf16.value, bf16.origin) == (71, "predicted")


def test_mma_sync_on_hopper_is_two_thirds_of_the_listed_rate() -> None:
    found = figure("H100", "mma.s8.m16n8k32")
    assert (found.value, found.origin) == (pytest.approx(1979 * 0.66), "predicted")


def test_emulated_and_unknown_instructions_carry_the_reason() -> None:
    s4 = figure("H100", "mma.s4.m16n8k64")
    assert (s4.value, s4.emulated) == (None, True) and (s4.unsupported or "").startswith("emulated: ")
    blackwell = figure("B200", "mma.f16.m16n8k16").unsupported or ""
    assert "mma.sync" in blackwell and "2250" in blackwell and "tcgen05" in blackwell


def test_the_conversion_pipe_of_a100_is_slow() -> None:
    assert (figure("A100", "i2f").per_clk_per_sm, figure("RTX 3090", "i2f").per_clk_per_sm) == (16, 64)


def test_memory_reaches_what_an_h100_reaches_of_its_own() -> None:
    assert figure("H100", "memory.read").value == pytest.approx(3060)
    assert figure("H100", "memory.copy").value == pytest.approx(2945)
    assert figure("A100", "memory.read").value == pytest.approx(2039 * 3060 / 3350)


def test_co_issue_is_carried_over_with_the_devices_own_lane_rates() -> None:
    points = {p.instruction: p for p in predict_device(find("A100"))[2]}
    assert {p.mma for p in points.values()} == {"mma.s8"}
    plain = points["mix.i2f_fmul_ffma"]  # I2F takes the MMA's time, FMUL + FFMA half of it, and they add up
    assert plain.cuda_over_mma_alone == pytest.approx(1 + 0.5, rel=0.04)
    assert plain.cycles_over_mma_alone == pytest.approx(1 + 1.5 - 0.07, rel=0.06)
    assert predict_device(find("B200"))[2] == []


def test_another_hopper_shows_the_curve_of_the_one_that_was_measured() -> None:
    reference = nearest("9.0", "wgmma")
    assert reference is not None
    measured = {(p.mma, p.shape, p.placement, p.instruction, p.k): p for p in reference.co_issue}
    carried = predict_device(find("H200"))[2]
    assert {p.mma for p in carried} == {"mma.s8", "wgmma.s8"}
    for point in carried:
        own = measured[point.mma, point.shape, point.placement, point.instruction, point.k]
        assert point.source == (
            f"carried over from {reference.device.name}: {point.mma} {point.shape}, {point.instruction}, "
            f"k = {point.k}, {point.placement.replace('_', ' ')}"
        )
        assert point.cuda_over_mma_alone == pytest.approx(own.cuda_over_mma_alone, rel=0.08)  # lanes by the book
        assert point.cycles_over_mma_alone == pytest.approx(own.cycles_over_mma_alone, rel=0.06)


def test_a_tour_of_all_devices_is_quick() -> None:
    shipped_profiles.cache_clear()
    start = time.process_time()
    for sheet in datasheets():
        predict_device(sheet)
    assert time.process_time() - start < 2.0


def test_what_a_datasheet_leaves_out_is_derived_or_refused() -> None:
    b300, _, _ = predict_device(find("B300"))
    assert (b300.sm_count, b300.max_sm_clock_mhz) == (148, 1860)  # the B200's, by equal FP32 throughput
    h20, _, _ = predict_device(find("H20"))
    assert h20.max_sm_clock_mhz == pytest.approx(44e6 / (78 * 128 * 2))
    sheet = find("A100")
    bare = {key: value for key, value in sheet.figures.items() if key != "memory_gb_s"}
    with pytest.raises(ApexError, match="without a listed memory bandwidth"):
        predict_device(dataclasses.replace(sheet, figures=MappingProxyType(bare)))
    bare = {key: value for key, value in sheet.figures.items() if key not in ("sm_count", "fp32_tflops")}
    with pytest.raises(ApexError, match="neither SM count and clock nor an FP32 rate"):
        predict_device(dataclasses.replace(sheet, figures=MappingProxyType(bare)))
