"""Copies between simulated GPUs: rates and latency come out as they were put in, and changed data never pass."""

from __future__ import annotations

from typing import Any

import pytest
from fake_nvml import Board, FakeNvml
from simulated_cupy import Machine, SimulatedGpu

from apex4_probe.deployment import PeerLink
from apex4_probe.microbench import peer_link
from apex4_probe.nvml import Nvml

RATES = {(0, 1): 300.0, (1, 0): 200.0}


def measured(monkeypatch: pytest.MonkeyPatch, machine: Machine, nvml: Any = None) -> PeerLink:
    monkeypatch.setitem(__import__("sys").modules, "cupy", machine)
    first, second = (SimulatedGpu(machine, index, nvml) for index in (0, 1))
    return peer_link.measure(first, second, "NVIDIA H100 80GB HBM3")  # type: ignore[arg-type]


def test_each_direction_both_and_the_smallest_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(RATES, latency_s=0.0)
    found = measured(monkeypatch, machine)
    assert (found.peer, found.peer_name, found.peer_access) == (1, "NVIDIA H100 80GB HBM3", True)
    assert found.to_peer_gb_per_s == pytest.approx(300.0)
    assert found.from_peer_gb_per_s == pytest.approx(200.0)
    assert found.both_gb_per_s == pytest.approx(400.0)  # beside each other: twice the bytes in the longer one's time
    assert found.samples >= 16 and found.spread == 0.0
    assert sorted(machine.enabled) == [(0, 1), (1, 0)]


def test_the_smallest_copy_is_all_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, Machine(RATES, latency_s=1.5e-6))
    assert found.copy_us == pytest.approx(1.5, rel=1e-3)


def test_access_that_somebody_enabled_before_is_access(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(RATES)
    machine.enabled = [(0, 1)]
    assert measured(monkeypatch, machine).peer_access is True


def test_without_access_copies_are_measured_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({(0, 1): 20.0, (1, 0): 20.0}, reachable=False)
    found = measured(monkeypatch, machine)
    assert found.peer_access is False and machine.enabled == []
    assert found.to_peer_gb_per_s == pytest.approx(20.0, rel=0.01)


@pytest.mark.parametrize("way", [(0, 1), (1, 0)])
def test_data_that_arrive_changed_are_no_link(monkeypatch: pytest.MonkeyPatch, way: tuple[int, int]) -> None:
    found = measured(monkeypatch, Machine(RATES, corrupt=frozenset({way})))
    assert found.to_peer_gb_per_s is None
    assert found.unsupported is not None and "arrive changed" in found.unsupported


def test_little_free_memory_makes_smaller_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(RATES, free=1 << 20)
    assert measured(monkeypatch, machine).unsupported is None
    assert {len(buffer.content) for buffer in machine.buffers} == {1 << 20}


def test_the_way_is_nvmls(monkeypatch: pytest.MonkeyPatch) -> None:
    switched = Board(nvlinks=("00000000:07:00.0",) * 18)
    with Nvml(FakeNvml(switched, switched, nvlink_peers=True)) as nvml:
        found = measured(monkeypatch, Machine(RATES), nvml)
    assert (found.path, found.nvlinks) == ("nvlink", 18)
    assert measured(monkeypatch, Machine(RATES)).path == "unknown"  # no NVML here
