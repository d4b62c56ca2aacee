"""The profiles that ship with the package: what ``run`` measured on real GPUs, to predict others from."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

from apex4_probe.deployment import Profile
from apex4_probe.profile_file import parse_profile

Family = Literal["mma", "wgmma"]  # how a kernel drives the Tensor Core: mma.sync, or wgmma on 9.0


@cache
def shipped_profiles() -> tuple[Profile, ...]:
    """Every ``profiles/measured/<device>/profile.yaml`` that was measured, by folder name; read at the first call.

    ProfileError: one of them is damaged.
    """
    measured = files("apex4_probe.profiles").joinpath("measured")
    folders = sorted(measured.iterdir(), key=lambda folder: folder.name) if measured.is_dir() else []
    found = []
    for folder in folders:
        file = folder.joinpath("profile.yaml")
        if file.is_file():
            found.append(parse_profile(file.read_text(encoding="utf-8"), str(file)))
    return tuple(profile for profile in found if profile.origin == "measured")


def nearest(compute_capability: str, family: Family) -> Profile | None:
    """The shipped profile to take co-issue points of ``family`` from; None: none has any.

    The same compute capability first, then the nearest major version, then the nearest minor one, then by device name.
    """
    holding = [
        profile
        for profile in shipped_profiles()
        if any(point.mma.startswith(f"{family}.") and point.origin == "measured" for point in profile.co_issue)
    ]
    major, minor = _version(compute_capability)

    def distance(profile: Profile) -> tuple[int, int, str]:
        other_major, other_minor = _version(profile.device.compute_capability)
        return abs(other_major - major), abs(other_minor - minor), profile.device.name

    return min(holding, key=distance, default=None)


def _version(compute_capability: str) -> tuple[int, int]:
    major, _, minor = compute_capability.partition(".")
    return int(major), int(minor)
