"""A profile's figures as matplotlib axes, for notebooks: ``apex.plot.throughput(profile, ax=None)`` and so on.

Each function draws into ``ax``, or into a new pyplot figure where it is None, and returns the axes. Solid is measured,
hatched or hollow is predicted or a datasheet's. ApexError: the profile holds nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from apex4_probe.deployment import Format, Profile
from apex4_probe.reports import axes
from apex4_probe.reports.axes import Family

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["balance", "co_issue", "speedup", "throughput"]


def throughput(profile: Profile, family: Family = "Tensor Core", ax: Axes | None = None) -> Axes:
    """Bars of the primary figures (random operands, burst) of "Tensor Core", "CUDA Core" or "Memory", with spread."""
    return _drawn(ax, lambda target: axes.draw_throughput(target, profile, family))


def co_issue(
    profile: Profile,
    mma: str | None = None,
    shape: str | None = None,
    placement: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Cycles over the MMA alone against k CUDA-core instructions, for one MMA loop.

    ``mma``: "wgmma.s8", "mma.f16", …; None: the one that leads, its widest shape, every placement.
    """
    return _drawn(ax, lambda target: axes.draw_co_issue(target, profile, mma, shape, placement))


def balance(profile: Profile, format: Format | None = None, ax: Axes | None = None) -> Axes:
    """Stacked pipe times of every dequantisation strategy (of one ``format``), and the interval of their sum."""
    return _drawn(ax, lambda target: axes.draw_balance(target, profile, format))


def speedup(profile: Profile, ax: Axes | None = None) -> Axes:
    """Speed-up over FP16 of every layer role at every M, with the interval from no overlap of the pipes to full."""
    return _drawn(ax, lambda target: axes.draw_speedup(target, profile))


def _drawn(ax: Axes | None, draw: Callable[[Axes], None]) -> Axes:
    if ax is not None:
        draw(ax)
        return ax
    # pyplot, unlike the report: a figure that a notebook is to show by itself must be one that pyplot knows.
    import matplotlib.pyplot as plt

    figure, target = plt.subplots(figsize=(8, 4.5), layout="constrained")
    try:
        draw(target)
    except BaseException:
        plt.close(figure)  # an empty figure must not be shown for an error
        raise
    return target
