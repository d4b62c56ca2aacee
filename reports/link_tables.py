"""Links between GPUs as tables of text: of a host, pair by pair, and of one profile. Pure functions of records."""

from __future__ import annotations

from apex4_probe.deployment import LinkPath, PeerLink, Profile
from apex4_probe.host_records import Host
from apex4_probe.reports import wording
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

PATHS: dict[LinkPath, str] = {
    "nvlink": "NVLink",
    "board": "one board",
    "pcie_switch": "one PCIe switch",
    "pcie_switches": "several PCIe switches",
    "host_bridge": "the host bridge",
    "numa_node": "one NUMA node",
    "between_cpus": "the link between CPUs",
    "unknown": "an unknown way",
}
LINK_TITLES = ("way", "copies", "#there GB/s", "#back GB/s", "#both GB/s", "#16 B copy us", "#spread", "origin")
LINK_CAPTION = "Both: the sum of both directions at once. The smallest copy: of many, back to back."


def link_table(host: Host) -> Table:
    """Copy bandwidth from each GPU (row) to each other (column)."""
    ends = sorted({end for item in host.links for end in (item.first, item.link.peer)})
    rates: dict[tuple[int, int], float | None] = {}
    for item in host.links:
        rates[item.first, item.link.peer] = item.link.to_peer_gb_per_s
        rates[item.link.peer, item.first] = item.link.from_peer_gb_per_s
    rows = tuple(
        Row((f"GPU {here}", *(ABSENT if here == there else wording.number(rates.get((here, there))) for there in ends)))
        for here in ends
    )
    titles = ("from", *(f"#to {end}" for end in ends))
    return Table("Copies between GPUs, GB/s", columns_of(*titles), rows, _ways(host))


def link_facts_table(host: Host) -> Table:
    """Every pair with all that is known of it; for the page."""
    rows = []
    for item in host.links:
        link = item.link
        pair = f"GPU {item.first} – GPU {link.peer}"
        if link.unsupported is not None:
            rows.append(Row((pair,), remark=wording.prose(link.unsupported)))
            continue
        rows.append(Row((pair, *link_cells(link))))
    return Table("Links between GPUs", columns_of("pair", *LINK_TITLES), tuple(rows), LINK_CAPTION)


def profile_links_table(profile: Profile) -> Table:
    """The links of one profile's GPU to the others of its host; no rows where it was measured by itself."""
    rows = []
    for link in profile.links:
        name = f"GPU {link.peer} ({wording.clean(link.peer_name.removeprefix('NVIDIA '))})"
        if link.unsupported is not None:
            rows.append(Row((name,), remark=wording.prose(link.unsupported)))
            continue
        rows.append(Row((name, *link_cells(link)), predicted=link.origin == "predicted"))
    return Table("Links to the other GPUs of its host", columns_of("to", *LINK_TITLES), tuple(rows), LINK_CAPTION)


def link_cells(link: PeerLink) -> tuple[str, ...]:
    """A link that has rates, as ``LINK_TITLES`` names its cells."""
    return (
        way(link),
        ABSENT if link.peer_access is None else "straight" if link.peer_access else "through host memory",
        wording.number(link.to_peer_gb_per_s, link.origin),
        wording.number(link.from_peer_gb_per_s, link.origin),
        wording.number(link.both_gb_per_s, link.origin),
        wording.number(link.copy_us, link.origin),
        wording.percent(link.spread),
        link.origin,
    )


def way(link: PeerLink) -> str:
    """``NVLink x18``; otherwise what lies between the two, nearest first."""
    return f"NVLink x{link.nvlinks}" if link.path == "nvlink" and link.nvlinks else PATHS[link.path]


def _ways(host: Host) -> str:
    """Which pairs are connected how, each way once."""
    found: dict[str, list[str]] = {}
    for item in host.links:
        link = item.link
        staged = ", staged in host memory" if link.peer_access is False else ""
        found.setdefault(f"{way(link)}{staged}", []).append(f"{item.first}–{link.peer}")
    if len(found) == 1:
        return f"All pairs by {next(iter(found))}. One direction at a time, copy engines, measured."
    listed = "; ".join(f"{', '.join(pairs)} by {name}" for name, pairs in found.items())
    return f"{listed}. One direction at a time, copy engines, measured."
