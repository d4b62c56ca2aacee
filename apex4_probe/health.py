"""Is this GPU healthy? A measured profile beside the shipped one of the same device, and what a shortfall may mean.

Pure functions over records; only the shipped profiles are read from the package.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from apex4_probe import verification
from apex4_probe.causes import causes, figure_name
from apex4_probe.compare_changes import CARD_TOLERANCE
from apex4_probe.deployment import Measurement, Profile
from apex4_probe.shipped import shipped_profiles

SHIPPED = "when the shipped profile was measured"

Reading = Literal["same", "lower", "higher", "worse", "better", "changed"]


@dataclass(frozen=True)
class Compared:
    """One figure of this profile beside the shipped one's. ``ratio``: here over shipped; None: one side has no value.

    ``reading``: ``same`` unless significant; ``lower`` or ``higher`` of rates, ``worse`` or ``better`` of latencies.
    """

    name: str  # "mma.s8.m16n8k32 random burst"
    unit: str
    here: float | None
    shipped: float | None
    ratio: float | None
    reading: Reading
    why: str

    @property
    def significant(self) -> bool:
        return self.reading != "same"

    @property
    def shortfall(self) -> bool:
        return self.reading in ("lower", "worse") or (self.reading == "changed" and self.here is None)


@dataclass(frozen=True)
class Health:
    device: str
    shipped_created: str
    is_shipped: bool  # the profile is the shipped one, byte for byte: nothing is compared
    figures: tuple[Compared, ...]
    causes: tuple[str, ...]  # of the shortfalls, each a clause that the profile's own fields support

    @property
    def shortfalls(self) -> tuple[Compared, ...]:
        return tuple(figure for figure in self.figures if figure.shortfall)


def compare_with_shipped(profile: Profile) -> Health | None:
    """The profile beside the shipped one of its device name, MIG slice and SM count.

    None: it is predicted, or no such profile is shipped. ProfileError: a shipped profile is damaged.
    """
    if profile.origin != "measured":
        return None
    here = profile.device
    for shipped in shipped_profiles():
        there = shipped.device
        if (there.name, there.mig, there.sm_count) == (here.name, here.mig, here.sm_count):
            return compare(profile, shipped)
    return None


def compare(profile: Profile, shipped: Profile) -> Health:
    """Every figure that both have, per second and per clock, by ``verification.drift``'s rule.

    Per second a further ``CARD_TOLERANCE`` is allowed, by which two cards of one name differ; cycles do not differ.
    """
    same = bool(profile.checksum) and profile.checksum == shipped.checksum
    device, created = profile.device.name, shipped.created
    if same:
        return Health(device, created, True, (), ())
    spreads = [_spreads(source.measurements) for source in (shipped, profile)]
    found = verification.drift(shipped.measurements, profile.measurements)
    figures = tuple(_compared(item, *(known.get(item.name, 0.0) for known in spreads)) for item in found)
    short = {figure.name for figure in figures if figure.shortfall}
    return Health(device, created, False, figures, causes(profile, shipped, short, SHIPPED))


def summary(health: Health) -> str:
    """One sentence: how many figures fall short of the shipped profile's, and the lowest."""
    if health.is_shipped:
        return f"This is the shipped profile of {health.device} itself, so there is nothing to set beside it."
    beside = f"the shipped profile of this device (measured {health.shipped_created[:10]})"
    if not health.figures:
        return f"No figure of this profile has its counterpart in {beside}."
    allowed = f"more than noise and the {CARD_TOLERANCE:.0%} by which two cards of one name differ"
    short = health.shortfalls
    if not short:
        return f"None of {len(health.figures)} figures falls short of {beside} by {allowed}."
    ratios = [(min(figure.ratio, 1 / figure.ratio), figure) for figure in short if figure.ratio]
    sentence = f"{len(short)} of {len(health.figures)} figures fall short of {beside} by {allowed}"
    if not ratios:
        return f"{sentence}."
    worst = min(ratios, key=lambda pair: pair[0])[1]
    return f"{sentence}; furthest off is {worst.name} ({worst.unit}) at {worst.ratio:.2f} times the shipped figure."


def _compared(item: verification.Drift, before: float, now: float) -> Compared:
    def judged(reading: Reading, why: str) -> Compared:
        return Compared(item.name, item.unit, item.now, item.before, item.ratio, reading, why)

    if item.ratio is None:
        return judged("changed" if item.significant else "same", item.why)
    per_clock = item.unit.endswith("/clk/SM")
    floor = verification.PER_CLOCK_FLOOR if per_clock else verification.PER_SECOND_FLOOR
    bound = max(floor, (before + now) / 2) + (0.0 if per_clock else CARD_TOLERANCE)
    if not item.significant or abs(item.ratio - 1) <= bound:
        return judged("same", f"within {bound:.1%}")
    latency = item.unit == "us"
    if item.ratio > 1:
        return judged("worse" if latency else "higher", f"above by more than {bound:.1%}")
    return judged("better" if latency else "lower", f"below by more than {bound:.1%}")


def _spreads(measurements: Iterable[Measurement]) -> dict[str, float]:
    return {figure_name(figure): figure.spread or 0.0 for figure in measurements}
