"""Does a profile still hold on this machine? Pure functions over records.

``compare`` looks at what the machine is, ``drift`` at what it measures. A hard mismatch makes the profile's choices
wrong here, a soft one may move its figures. Nothing is keyed on a UUID: an equal card in another slot is as good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apex4_probe import __version__
from apex4_probe.deployment import SCHEMA_VERSION, Device, Environment, Measurement, Profile
from apex4_probe.errors import ProfileError
from apex4_probe.profile_file import checksum_of

POWER_LIMIT_TOLERANCE = 0.10  # less moves a power-capped figure by no more than the 6 % that two runs differ by anyway
MEMORY_TOLERANCE = 0.05  # drivers reserve differing amounts; another memory size is a different part
# Two runs on one card agree within 0.5 % per clock and move by 3–5 % per second (power, clock; measured on H100): twice
# the one, a little over the other. Nothing below is called a change, however quiet both runs were.
PER_CLOCK_FLOOR = 0.01
PER_SECOND_FLOOR = 0.06


@dataclass(frozen=True)
class Mismatch:
    field: str  # as in the file: "device.sm_count"
    profile_value: str
    machine_value: str
    why: str  # what it means for whoever uses the profile


@dataclass(frozen=True)
class Verification:
    hard: tuple[Mismatch, ...]  # the profile must not be used here
    soft: tuple[Mismatch, ...]  # it may be used; its figures may be off

    @property
    def usable(self) -> bool:
        return not self.hard


@dataclass(frozen=True)
class Drift:
    """One figure, before and now. ``ratio``: now over before; None where one of the two does not exist."""

    name: str  # "wgmma.s8.m64n256k32.rs random burst"
    unit: str  # "TOPS", or "MAC/clk/SM" for the same measurement per clock
    before: float | None
    now: float | None
    ratio: float | None
    significant: bool
    why: str


def compare(profile: Profile, device: Device, environment: Environment) -> Verification:
    """What differs between a profile and the machine that it is to be used on, field by field."""
    there, known = profile.device, profile.environment
    hard = [
        *_schema_and_checksum(profile),
        *_differs(
            "device.compute_capability",
            there.compute_capability,
            device.compute_capability,
            "its instructions and kernels are others",
        ),
        *_differs("device.name", there.name, device.name, "the choices were made for another GPU"),
        *_differs(
            "device.mig", there.mig or _WHOLE, device.mig or _WHOLE, "a slice has other SMs, memory and bandwidth"
        ),
        *_differs("device.sm_count", there.sm_count, device.sm_count, "tiles and throughput depend on it"),
    ]
    soft = [
        *_predicted(profile),
        *_differs("environment.driver", known.driver, environment.driver, "clocks and launch latency may differ"),
        *_differs(
            "environment.cuda_driver",
            known.cuda_driver,
            environment.cuda_driver,
            "libraries, and so what FP16 and FP8 reach, may differ",
        ),
        *_off(
            "device.power_limit_w",
            there.power_limit_w,
            device.power_limit_w,
            POWER_LIMIT_TOLERANCE,
            "sustained figures move with it",
        ),
        *_differs("device.ecc", there.ecc, device.ecc, "ECC costs memory bandwidth on GDDR parts"),
        *_off(
            "device.memory_mib",
            there.memory_mib,
            device.memory_mib,
            MEMORY_TOLERANCE,
            "whether the model fits was decided for the other size",
        ),
        *_differs("tool_version", profile.tool_version, __version__, "its probes and rules may differ"),
    ]
    return Verification(tuple(hard), tuple(soft))


def ensure_usable(profile: Profile, device: Device, environment: Environment) -> tuple[Mismatch, ...]:
    """The soft mismatches, for a consumer to warn of. Raises ProfileError naming every hard one and both its values."""
    result = compare(profile, device, environment)
    if result.hard:
        listed = "; ".join(
            f"{item.field} is {item.profile_value} in the profile and {item.machine_value} here ({item.why})"
            for item in result.hard
        )
        raise ProfileError(f"this profile does not hold on this machine: {listed}: write one here with apex4-probe run")
    return result.soft


def drift(before: Sequence[Measurement], now: Sequence[Measurement]) -> list[Drift]:
    """Figures of ``now`` beside the same ones (name, operands, regime) of ``before``, per second and per clock.

    Significant: the medians differ by more than the floor and by more than half of both spreads added, that is the
    10 %–90 % ranges around them do not meet. Figures that only one side attempted are left out: a check measures few.
    """
    earlier = {_identity(figure): figure for figure in before if figure.origin == "measured"}
    found = []
    for later in now:
        figure = earlier.get(_identity(later))
        if figure is not None and later.origin == "measured":
            found.extend(_drift_of(figure, later))
    return found


_WHOLE = "the whole GPU"


def _differs(field: str, in_profile: object, here: object, why: str) -> list[Mismatch]:
    """None on either side means that it is not known there: nothing to compare."""
    if in_profile is None or here is None or in_profile == here:
        return []
    return [Mismatch(field, str(in_profile), str(here), why)]


def _off(field: str, in_profile: float | None, here: float | None, tolerance: float, why: str) -> list[Mismatch]:
    if in_profile is None or here is None or math.isclose(here, in_profile, rel_tol=0, abs_tol=tolerance * in_profile):
        return []
    return [Mismatch(field, f"{in_profile:g}", f"{here:g}", why)]


def _schema_and_checksum(profile: Profile) -> list[Mismatch]:
    major, minor = profile.schema_version.split(".")
    our_major, our_minor = SCHEMA_VERSION.split(".")
    if major != our_major:
        return [Mismatch("schema_version", profile.schema_version, SCHEMA_VERSION, "fields may mean something else")]
    # Fields that only another minor has are gone by now; the reader has held the checksum against the file itself.
    if not profile.checksum or int(minor) != int(our_minor):
        return []
    return _differs(
        "checksum", profile.checksum, checksum_of(profile), "its contents were changed after it was written"
    )


def _predicted(profile: Profile) -> list[Mismatch]:
    why = "its figures come from a datasheet or another GPU; apex4-probe run measures them here"
    return [Mismatch("origin", "predicted", "can measure", why)] if profile.origin == "predicted" else []


def _identity(figure: Measurement) -> tuple[str, str | None, str | None]:
    return figure.name, figure.operands, figure.regime


def _drift_of(before: Measurement, now: Measurement) -> list[Drift]:
    name = " ".join(part for part in _identity(now) if part)
    if before.value is None or now.value is None:
        if before.value is None and now.value is None:
            return []
        why = (
            f"unsupported now: {now.unsupported}" if now.value is None else f"unsupported before: {before.unsupported}"
        )
        return [Drift(name, now.unit, before.value, now.value, None, True, why)]
    if before.unit != now.unit:
        return [Drift(name, now.unit, before.value, now.value, None, True, f"the profile has it in {before.unit}")]
    spread = ((before.spread or 0.0) + (now.spread or 0.0)) / 2
    found = [_judged(name, now.unit, before.value, now.value, floor=PER_SECOND_FLOOR, spread=spread)]
    if before.per_clk_per_sm is not None and now.per_clk_per_sm is not None and before.per_clk_unit == now.per_clk_unit:
        unit, old, new = f"{now.per_clk_unit}/clk/SM", before.per_clk_per_sm, now.per_clk_per_sm
        found.append(_judged(name, unit, old, new, floor=PER_CLOCK_FLOOR, spread=spread))
    return found


def _judged(name: str, unit: str, before: float, now: float, *, floor: float, spread: float) -> Drift:
    if before == 0:
        return Drift(name, unit, before, now, None, now != 0, "it was zero")
    ratio = now / before
    bound = max(floor, spread)
    reason = "that two runs on one card may differ by" if floor >= spread else "that both spreads allow"
    moved = f"{abs(ratio - 1):.1%} {'above' if ratio > 1 else 'below'} the profile"
    significant = abs(ratio - 1) > bound
    why = f"{moved}, {'more than' if significant else 'within'} the {bound:.1%} {reason}"
    return Drift(name, unit, before, now, ratio, significant, why)
