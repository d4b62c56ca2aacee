"""Which compiled kernel stands for a strategy on a GPU: the catalogue's own, counted; else the nearest of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from apex4_probe.deployment import Format, Granularity
from apex4_probe.sass_bounds import Work, documented, work_of
from apex4_probe.sass_records import HotLoop, shipped_loops
from apex4_probe.strategies import STRATEGIES

NEAREST: dict[Granularity, Granularity] = {"g64": "g128", "g32": "g128"}  # whose loop is like it


@dataclass(frozen=True)
class Counted:
    """``source``: how far it is counted; ``kernel``: whose loop it is."""

    work: Work
    source: str
    kernel: str


@cache
def counted(
    compute_capability: str, format: Format, granularity: Granularity, strategy: str, groups: float
) -> Counted | None:
    """What a kernel for this packing executes; None: no kernel of the format has been counted.

    Where no kernel applies the strategy, the loop of one for the same packing (or the same with larger groups) with
    the strategy's own instructions in the place of its dequantisation, ``groups`` times per 128 of K.
    """
    loops = _of_architecture(compute_capability)
    packed = [loop for loop in loops if (loop.format, loop.granularity) == (format, granularity)]
    exact = [loop for loop in packed if loop.strategy == strategy]
    wider = NEAREST.get(granularity)
    like = exact or packed or [loop for loop in loops if (loop.format, loop.granularity) == (format, wider)]
    if not like:
        return None
    loop = min(like, key=lambda one: documented(one).all_pipes)
    where = f"instructions counted in the machine code of the catalogue's kernels for {loop.arch} (NVRTC {loop.nvrtc})"
    kernel = f"{loop.variant}, {loop.warp_tile} a warp"
    if exact:
        return Counted(work_of(loop), where, kernel)
    instructions = {name: count * groups for name, count in STRATEGIES[strategy].instructions.items()}
    return Counted(
        replace(work_of(loop), dequantisation=instructions),
        f"{where}, but the strategy's own for dequantisation",
        f"as {kernel}",
    )


def _of_architecture(compute_capability: str) -> list[HotLoop]:
    """The loops of this architecture, or of the newest that is older, or of the oldest."""
    wanted, there = _version(compute_capability), {_version(loop.compute_capability) for loop in shipped_loops()}
    nearest = max((version for version in there if version <= wanted), default=min(there, default=wanted))
    return [loop for loop in shipped_loops() if _version(loop.compute_capability) == nearest]


def _version(compute_capability: str) -> tuple[int, int]:
    major, _, minor = compute_capability.partition(".")
    return int(major), int(minor)
