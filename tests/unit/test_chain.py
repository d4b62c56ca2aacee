"""The time of a chain of dependent instructions, carried from a GPU where it was timed to one where it was not."""

from __future__ import annotations

import pytest

from apex4_probe.chain import carried_over, pipe_cycles
from apex4_probe.deployment import Device, Measurement
from apex4_probe.rates import Rates

CHAIN = {"i2f": 1.0, "fmul": 1.0, "ffma": 1.0}


def rates(**lanes: float) -> Rates:
    device = Device(name="two pipes", compute_capability="9.0", architecture="", sm_count=1, max_sm_clock_mhz=1000)
    figures = [
        Measurement(
            name=name, instruction=name, unit="Tinstr/s", value=1.0, per_clk_per_sm=rate, per_clk_unit="instr",
            sm_clock_mhz=1000, origin="measured",
        )
        for name, rate in lanes.items()
    ]  # fmt: skip
    return Rates.of(device, figures)


THERE = rates(i2f=50, fmul=100, ffma=100)  # conversion 0.02, FMA 0.02
HERE = rates(i2f=10, fmul=50, ffma=50)  # conversion 0.10, FMA 0.04


def test_the_pipes_of_a_chain_add_up_by_pipe() -> None:
    assert pipe_cycles(CHAIN, HERE) == pytest.approx({"conversion": 0.10, "fma": 0.04})


def test_pipes_in_another_proportion_are_taken_to_add_up() -> None:
    for measured in (0.02, 0.03, 0.04):
        assert carried_over(measured, CHAIN, THERE, HERE) == pytest.approx(0.14)


def test_pipes_in_the_same_proportion_keep_the_overlap_that_was_measured() -> None:
    slower_alike = rates(i2f=25, fmul=48, ffma=50)
    assert carried_over(0.03, CHAIN, THERE, slower_alike) == pytest.approx(0.03 * (1 / 25 + 1 / 48 + 1 / 50) / 0.04)


def test_a_chain_on_one_pipe_is_scaled_by_what_it_cost_beyond_the_pipe() -> None:
    two = {"ffma": 2.0}
    assert carried_over(0.022, two, THERE, HERE) == pytest.approx(1.1 * 0.04)
    assert carried_over(0.030, {"fmul": 1.0, "ffma": 1.0}, THERE, HERE) == pytest.approx(1.5 * 0.04)


def test_a_chain_carried_to_its_own_gpu_is_unchanged() -> None:
    assert carried_over(0.033, CHAIN, THERE, THERE) == pytest.approx(0.033)
    assert carried_over(0.023, {"ffma": 2.0}, THERE, THERE) == pytest.approx(0.023)
