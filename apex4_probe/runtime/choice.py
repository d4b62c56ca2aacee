"""Which variant and tile a linear layer launches: what the caller says, what a profile chose, or the safe default.

A profile is a stranger's file: it names records of the catalogue and nothing else, and is held against this machine
before any of it is followed. Every answer is kept, so that a call pays for a look-up.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache

from apex4_probe.deployment import KernelTable, Profile
from apex4_probe.discovery import discover, environment
from apex4_probe.errors import ApexError, ProfileError
from apex4_probe.kernels import catalogue
from apex4_probe.kernels.formats import Format, Granularity
from apex4_probe.kernels.launch import PREPARED, chip
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant
from apex4_probe.verification import ensure_usable

Pick = tuple[Variant, Tile]
Tables = Mapping[tuple[int, int, str, str], KernelTable]  # by n, k, format and granularity

PROFILES = 64  # held at a time; a process uses one or a few


class SameProfile:
    """A profile as a key: the object itself, for comparing its contents costs more than a launch."""

    __slots__ = ("profile",)

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def __hash__(self) -> int:
        return id(self.profile)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameProfile) and other.profile is self.profile


@lru_cache(maxsize=PREPARED)
def choose(
    format: Format,
    granularity: Granularity,
    shape: Shape,
    device: int,
    profile: SameProfile | None = None,
    variant: str | None = None,
    tile: str | None = None,
) -> Pick:
    """The variant and tile for weights packed as ``format`` and ``granularity`` on a GPU.

    ProfileError: the profile does not hold on this GPU, or names a variant or tile that the catalogue lacks.
    ValueError: the caller does, or its choice cannot run the shape. ApexError: nothing in the catalogue can.
    """
    if variant is not None:
        return by_hand(format, granularity, shape, chip(device), variant, tile)
    tables = {} if profile is None else _held_tables(profile, device)
    return from_tables(tables, format, granularity, shape, chip(device))


def by_hand(format: Format, granularity: Granularity, shape: Shape, chip: Chip, variant: str, tile: str | None) -> Pick:
    """What the caller names; without ``tile`` the variant's safe one. ValueError naming the argument."""
    try:
        named = catalogue.by_name(variant)
    except ApexError as error:
        raise ValueError(f"variant: {error}") from None
    if (named.format, named.granularity) != (format, granularity):
        fitting = ", ".join(one.name for one in catalogue.variants_for(format, granularity)) or "none"
        raise ValueError(f"variant: {variant} does not multiply {format} {granularity} weights; these do: {fitting}")
    try:
        chosen = catalogue.safe_tile(named, shape, chip) if tile is None else catalogue.tile_named(named, tile)
    except ApexError as error:
        raise ValueError(f"{'variant' if tile is None else 'tile'}: {error}") from None
    if reason := named.refuses(chosen, shape, chip):
        raise ValueError(f"tile: {variant} {chosen.name} cannot run {shape.text}: {reason}")
    return named, chosen


def from_tables(tables: Tables, format: Format, granularity: Granularity, shape: Shape, chip: Chip) -> Pick:
    """The tables' kernel for the shape, or the safe default where they have none or theirs is not legal for this M."""
    if (table := tables.get((shape.n, shape.k, format, granularity))) is not None:
        kernel = table.for_tokens(shape.m)
        variant = catalogue.by_name(kernel.variant)
        tile = catalogue.tile_named(variant, kernel.tile)
        if not variant.refuses(tile, shape, chip):
            return variant, tile
    return catalogue.default_choice(format, granularity, shape, chip)


def checked_tables(profile: Profile) -> Tables:
    """A profile's kernel tables, every entry of them in the catalogue. ProfileError naming the first that is not."""
    for i, table in enumerate(profile.kernels):
        for j, kernel in enumerate(table.kernels):
            where = f"kernels[{i}].kernels[{j}]"
            try:
                variant = catalogue.by_name(kernel.variant)
            except ApexError as error:
                raise ProfileError(f"{where}.variant: {error}") from None
            if (variant.format, variant.granularity) != (table.format, table.granularity):
                raise ProfileError(
                    f"{where}.variant: {variant.name} is for {variant.format} {variant.granularity} weights and the "
                    f"table for {table.format} {table.granularity}"
                )
            try:
                catalogue.tile_named(variant, kernel.tile)
            except ApexError as error:
                raise ProfileError(f"{where}.tile: {error}") from None
    return {(table.n, table.k, table.format, table.granularity): table for table in profile.kernels}


@lru_cache(maxsize=PROFILES)
def _held_tables(held: SameProfile, device: int) -> Tables:
    """The tables of a profile that holds on a GPU; warns once of what may move its figures."""
    (gpu,) = discover(device)
    soft = ensure_usable(held.profile, gpu.device, environment(gpu.driver, gpu.cuda))
    tables = checked_tables(held.profile)
    if soft:
        listed = "; ".join(f"{one.field} is {one.profile_value} there and {one.machine_value} here" for one in soft)
        warnings.warn(f"the profile's figures may be off on GPU {device}: {listed}", stacklevel=4)
    return tables
