"""How two GPUs of a host are connected, as NVML tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apex4_probe.deployment import LinkPath
from apex4_probe.nvml import Nvml

# NVML API reference, nvmlGpuTopologyLevel_t
LEVELS: dict[int, LinkPath] = {
    0: "board",
    10: "pcie_switch",
    20: "pcie_switches",
    30: "host_bridge",
    40: "numa_node",
    50: "between_cpus",
}


@dataclass(frozen=True)
class Route:
    """``nvlinks``: active ones between the two, or, through NVSwitches, from the first GPU into them."""

    path: LinkPath
    nvlinks: int | None = None


def route(nvml: Nvml, first: Any, second: Any) -> Route:
    """From one NVML handle to another."""
    ends = nvml.nvlink_ends(first)
    there = _address(nvml.pci_bus_id(second))
    direct = sum(_address(end) == there for end in ends) if there else 0
    if direct:
        return Route("nvlink", direct)
    if ends and nvml.nvlink_peers(first, second):
        return Route("nvlink", len(ends))  # the far ends are switches, which reach every GPU at full speed
    level = nvml.common_ancestor(first, second)
    return Route("unknown" if level is None else LEVELS.get(level, "unknown"), 0 if ends else None)


def _address(bus_id: str | None) -> str | None:
    """NVML writes the domain with eight digits here and with four there."""
    if bus_id is None:
        return None
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):x}:{rest}" if rest and domain else bus_id.lower()
