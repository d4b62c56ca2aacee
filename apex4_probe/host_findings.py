"""Which GPU of a host is the odd one out, and why. Pure functions over the profiles of one run.

GPUs of one model (name, MIG slice, number of SMs) are held against the most typical of them: the one from which all
others together differ least. Of two, where that says nothing, it is the faster one. A difference counts where the
medians are further apart than two runs on one card and both spreads allow (``verification.drift``'s rule); whether it
is also more than two cards of one name differ by is said beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from apex4_probe.causes import causes, figure_name, pcie
from apex4_probe.compare_changes import measured_changes
from apex4_probe.deployment import Measurement, PeerLink, Profile
from apex4_probe.host_records import HostLink, Odd, OddFigure
from apex4_probe.verification import PER_SECOND_FLOOR

OF_THE_HOST = frozenset({"launch.stream burst"})  # the CPU's latency: steady on no GPU, and no GPU's property


def groups(profiles: Mapping[int, Profile]) -> list[list[int]]:
    """CUDA's numbers of the GPUs that are of one model, in the order given."""
    found: dict[tuple[str, str | None, int], list[int]] = {}
    for index, profile in profiles.items():
        device = profile.device
        found.setdefault((device.name, device.mig, device.sm_count), []).append(index)
    return list(found.values())


def odd_ones(profiles: Mapping[int, Profile]) -> list[Odd]:
    """Every GPU that differs from the most typical one of its model, in a figure or in how it is set up."""
    found = []
    for group in groups(profiles):
        reference = typical({index: profiles[index] for index in group})
        others = [_beside(index, profiles[index], reference, profiles[reference]) for index in group]
        found += [odd for odd in others if odd.index != reference and (odd.figures or odd.differences)]
    return found


def typical(profiles: Mapping[int, Profile]) -> int:
    """The number of the profile that all others together differ from least; of two, the faster one."""
    logs = {index: _logs(profile) for index, profile in profiles.items()}
    shared = set.intersection(*(set(known) for known in logs.values()))

    def distance(index: int) -> float:
        apart = sum(abs(logs[index][name] - other[name]) for other in logs.values() for name in shared)
        return round(apart, 9)  # of two, both are equally far; the last digit of a sum must not decide

    return min(profiles, key=lambda index: (distance(index), -sum(logs[index][name] for name in shared)))


def poor_links(links: Sequence[HostLink]) -> list[str]:
    """A sentence for every pair whose slower direction is behind the others of the same way by more than noise, and for
    every one that cannot be used."""
    kinds: dict[tuple[str, bool | None], list[HostLink]] = {}
    for item in links:
        if item.link.unsupported is None:
            kinds.setdefault((item.link.path, item.link.peer_access), []).append(item)
    found = []
    for kind in kinds.values():
        usual = median(slower(item.link) for item in kind)
        for item in kind:
            rate = slower(item.link)
            if rate < usual * (1 - max(PER_SECOND_FLOOR, item.link.spread or 0.0)):
                found.append(
                    f"GPU {item.first} and GPU {item.link.peer}: {rate:.0f} GB/s in the slower direction, where such "
                    f"pairs of this host reach {usual:.0f} GB/s"
                )
    for item in links:
        if item.link.unsupported is not None:
            found.append(f"GPU {item.first} and GPU {item.link.peer}: {item.link.unsupported}")
    return found


def slower(link: PeerLink) -> float:
    """GB/s of the slower direction."""
    return min(link.to_peer_gb_per_s or 0.0, link.from_peer_gb_per_s or 0.0)


def _beside(index: int, profile: Profile, reference: int, other: Profile) -> Odd:
    changes = [change for change in measured_changes(other, profile) if change.figure not in OF_THE_HOST]
    figures = [
        OddFigure(
            name=change.figure,
            unit=change.unit,
            here=change.second,
            reference=change.first,
            ratio=change.ratio,
            bound=change.bound,
            beyond_cards=change.significance == "beyond cards",
        )
        for change in changes
        if change.significance != "same"
        and change.ratio is not None
        and change.bound is not None
        and change.first is not None
        and change.second is not None
    ]
    figures.sort(key=lambda figure: figure.loss)
    lost = [f"{change.figure}: {change.why}" for change in changes if change.ratio is None]
    short = {figure.name for figure in figures if figure.shortfall}
    return Odd(
        index=index,
        reference=reference,
        compared=len(changes),
        figures=figures,
        causes=list(causes(profile, other, short, f"on GPU {reference}")),
        differences=[*lost, *_differences(profile, other, f"on GPU {reference}")],
    )


def _differences(profile: Profile, other: Profile, there: str) -> list[str]:
    """In settings that GPUs of one fleet share, and in what the host gives each."""
    here, typical_one = profile.device, other.device
    told = [
        ("power limit", _unit(here.power_limit_w, "W"), _unit(typical_one.power_limit_w, "W")),
        ("highest SM clock", _unit(here.max_sm_clock_mhz, "MHz"), _unit(typical_one.max_sm_clock_mhz, "MHz")),
        ("memory", _unit(here.memory_mib, "MiB"), _unit(typical_one.memory_mib, "MiB")),
        ("ECC", _switch(here.ecc), _switch(typical_one.ecc)),
        ("host link", _host_link(profile.measurements), _host_link(other.measurements)),
        ("NVLinks", _nvlinks(profile), _nvlinks(other)),
    ]
    return [
        f"{what}: {mine} here, {theirs} {there}" for what, mine, theirs in told if mine and theirs and mine != theirs
    ]


def _unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:g} {unit}"


def _switch(value: bool | None) -> str:
    return "" if value is None else "on" if value else "off"


def _host_link(measurements: Sequence[Measurement]) -> str:
    return next((text for figure in measurements if (text := pcie(figure))), "")


def _nvlinks(profile: Profile) -> str:
    """The most that any of its links has, so that a pair which is wired with fewer does not make both ends odd."""
    counts = [link.nvlinks for link in profile.links if link.nvlinks is not None]
    return str(max(counts)) if counts else ""


def _logs(profile: Profile) -> dict[str, float]:
    """Logarithms of all figures, per second and per clock; of latencies negated, so that more is faster."""
    found = {}
    for figure in profile.measurements:
        name = figure_name(figure)
        if figure.origin != "measured" or name in OF_THE_HOST:
            continue
        if figure.value:
            found[name] = -math.log(figure.value) if figure.unit == "us" else math.log(figure.value)
        if figure.per_clk_per_sm:
            found[f"{name} per clock"] = math.log(figure.per_clk_per_sm)
    return found
