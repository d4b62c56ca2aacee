"""Grids of kernels whose CTAs multiply ``rows`` whole rows of a weight at a time, then their next."""

from __future__ import annotations

from apex4_probe.kernels.variant import Tile


def row_groups(tile: Tile, n: int) -> int:
    """Row groups of a weight of ``n`` rows; the last may be short."""
    return -(-n // tile["rows"])


def rounds(tile: Tile, n: int, sm_count: int) -> int:
    """Row groups that the busiest SM multiplies, one after the other."""
    return -(-row_groups(tile, n) // sm_count)


def even_grid(tile: Tile, n: int, sm_count: int) -> int:
    """As few CTAs as finish in the same number of rounds: they end together, and a dependent launch finds free SMs."""
    return -(-row_groups(tile, n) // rounds(tile, n, sm_count))
