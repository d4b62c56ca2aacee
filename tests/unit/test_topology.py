"""How two GPUs are connected, from what NVML answers on machines of each kind."""

from __future__ import annotations

import pytest
from fake_nvml import Board, FakeNvml

from apex4_probe.microbench.topology import Route, route
from apex4_probe.nvml import Nvml

FIRST, SECOND = "00000000:1B:00.0", "00000000:43:00.0"  # NVML's own form, the domain with eight digits
SHORT = "0000:43:00.0"  # and CUDA's


def between(first: Board, second: Board, **host: object) -> Route:
    with Nvml(FakeNvml(first, second, **host)) as nvml:  # type: ignore[arg-type]
        return route(nvml, nvml.handle(0), nvml.handle(1))


@pytest.mark.parametrize("end", [SECOND, SHORT, SECOND.lower()])
def test_direct_nvlinks_are_counted_by_where_they_end(end: str) -> None:
    bridged = Board(bus_id=FIRST, nvlinks=(end, end, "00000000:AB:00.0", end))
    assert between(bridged, Board(bus_id=SECOND), level=50) == Route("nvlink", 3)


def test_through_switches_all_of_them_count() -> None:
    switched = Board(bus_id=FIRST, nvlinks=("00000000:07:00.0",) * 18)
    assert between(switched, Board(bus_id=SECOND), nvlink_peers=True) == Route("nvlink", 18)
    untold = Board(bus_id=FIRST, nvlinks=(None,) * 18)  # in virtual machines the far end is not told
    assert between(untold, Board(bus_id=SECOND), nvlink_peers=True) == Route("nvlink", 18)


def test_nvlinks_that_lead_elsewhere_are_no_way() -> None:
    elsewhere = Board(bus_id=FIRST, nvlinks=("00000000:AB:00.0",) * 4)
    assert between(elsewhere, Board(bus_id=SECOND), level=40) == Route("numa_node", 0)


@pytest.mark.parametrize(
    ("level", "path"),
    [
        (0, "board"),
        (10, "pcie_switch"),
        (20, "pcie_switches"),
        (30, "host_bridge"),
        (40, "numa_node"),
        (50, "between_cpus"),
        (None, "unknown"),
        (60, "unknown"),  # a level that a later NVML may add
    ],
)
def test_without_nvlink_the_pcie_tree_tells(level: int | None, path: str) -> None:
    assert between(Board(bus_id=FIRST), Board(bus_id=SECOND), level=level).path == path


def test_the_host_link_is_told_as_trained_and_as_it_could_be() -> None:
    with Nvml(FakeNvml(Board(pcie=(3, 8)), Board(pcie=None))) as nvml:
        assert (nvml.pcie_link(nvml.handle(0)), nvml.max_pcie_link(nvml.handle(0))) == ((3, 8), (5, 16))
        assert nvml.pcie_link(nvml.handle(1)) is None
