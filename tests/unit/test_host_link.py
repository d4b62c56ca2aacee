"""Copies between a simulated GPU and its host: rates, the link as it is trained, and no pinned memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from fake_nvml import Board, FakeNvml
from simulated_cupy import Machine, SimulatedGpu

from apex4_probe.deployment import Measurement
from apex4_probe.microbench import host_link
from apex4_probe.microbench.clocks import Conditions
from apex4_probe.microbench.execution import Sample, Series
from apex4_probe.nvml import Nvml


class SampledGpu(SimulatedGpu):
    def sample(self, once: Callable[[], Sample], _budget_s: float) -> Series:
        return Series(tuple(once() for _ in range(16)), Conditions(power_w=120.0), None)

    def sustained(self, once: Callable[[], Sample], seconds: float) -> Series:
        return Series(tuple(once() for _ in range(round(seconds))), Conditions(), None)


def gpu(monkeypatch: pytest.MonkeyPatch, nvml: Any = None, **changes: Any) -> SampledGpu:
    machine = Machine({(-1, 0): 50.0, (0, -1): 40.0}, latency_s=0.0, **changes)
    monkeypatch.setitem(sys.modules, "cupy", machine)
    return SampledGpu(machine, 0, nvml)


def measured(*arguments: Any, **changes: Any) -> list[Measurement]:
    return host_link.measure(gpu(*arguments, **changes))  # type: ignore[arg-type]


def test_both_directions_and_the_link_as_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    with Nvml(FakeNvml(Board(pcie=(4, 8)))) as nvml:
        there, back = measured(monkeypatch, nvml)
    assert (there.name, there.value, there.unit) == ("host.to_device", pytest.approx(50.0), "GB/s")
    assert (back.name, back.value) == ("host.from_device", pytest.approx(40.0))
    assert there.configuration == {
        "bytes": 1 << 26,
        "pcie_generation": 4,
        "pcie_width": 8,
        "pcie_max_generation": 5,
        "pcie_max_width": 16,
    }
    assert (there.regime, there.samples, there.power_w, there.origin) == ("burst", 16, 120.0, "measured")


def test_without_nvml_the_rates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [figure.configuration for figure in measured(monkeypatch)] == [{"bytes": 1 << 26}] * 2


def test_without_pinned_memory_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, pinned=False)
    assert [(figure.name, figure.value) for figure in found] == [("host.to_device", None), ("host.from_device", None)]
    assert all("64 MiB of pinned host memory" in (figure.unsupported or "") for figure in found)


def test_as_a_load_it_runs_for_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    there, _ = host_link.copies(gpu(monkeypatch))  # type: ignore[arg-type]
    figure = there.sustained(4.0)
    assert (figure.regime, figure.samples, figure.value) == ("sustained", 4, pytest.approx(50.0))
