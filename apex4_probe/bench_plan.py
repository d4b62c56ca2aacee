"""What ``bench`` is asked to time: models, numbers of tokens, variants and tiles, read and found good before a GPU is
looked for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from apex4_probe.candidates import FUSED
from apex4_probe.deployment import GemmTiming
from apex4_probe.errors import ApexError
from apex4_probe.models import DEFAULT_MODEL, MAX_DIMENSION, Model, load_model
from apex4_probe.peers import Peer, peers
from apex4_probe.workload import MAX_TOKENS

if TYPE_CHECKING:
    from apex4_probe.kernels.variant import Chip, Tile, Variant
    from apex4_probe.microbench.gemm_records import Method

DEFAULT_TOKENS = "1,8,16,64,256,1024,4096"
MOST_SIZES = 64
EVERY = "*"
FINALISTS, FINAL_WITHIN = 3, 1.05  # of a variant's tiles, after a heat that tells 5 % apart
Tiles = Literal["default", "best", "all"]
METHODS: dict[str, tuple[Method, ...]] = {
    "interleaved": ("interleaved",),
    "sustained": ("sustained",),
    "both": ("interleaved", "sustained"),
}


@dataclass(frozen=True)
class BenchRequest:
    """What was asked for, as typed. ``shapes``: "4096x14336,…" (N x K) instead of a model's; ``tokens``: "1,16";
    ``variants``: glob patterns, joined by commas."""

    model: str = DEFAULT_MODEL
    shapes: str | None = None
    tokens: str = DEFAULT_TOKENS
    variants: str = EVERY
    tiles: Tiles = "default"
    method: Literal["interleaved", "sustained", "both"] = "interleaved"
    peers: bool = False
    check: bool = False
    device: str = "0"
    command: str = ""


@dataclass(frozen=True)
class Gemm:
    """A weight's shape: ``n`` outputs, ``k`` inputs."""

    n: int
    k: int


@dataclass(frozen=True)
class Plan:
    """A request whose every part has been read and found good. ``block``: the GEMMs follow each other in a model."""

    title: str
    gemms: tuple[Gemm, ...]
    block: bool
    tokens: tuple[int, ...]
    variants: tuple[Variant, ...]
    tiles: Tiles
    methods: tuple[Method, ...]
    check: bool
    named: bool = False  # some variants, which are then timed even where their MMA is emulated
    peers: tuple[Peer, ...] = ()

    def picks(self, n: int, k: int, m: int, chip: Chip) -> tuple[list[tuple[Variant, Tile]], dict[str, str]]:
        """Variants with the tiles to time, and why the others have none, by variant."""
        from apex4_probe.kernels.catalogue import legal, safe_tile
        from apex4_probe.kernels.variant import Shape

        shape = Shape(m, n, k)
        found: list[tuple[Variant, Tile]] = []
        refused: dict[str, str] = {}
        for variant in self.variants:
            if why := legal(variant, shape, chip):
                refused[variant.name] = why
            elif not self.named and (why := variant.emulated_on(chip)):
                refused[variant.name] = f"{why}; to time it all the same, name it by --variants"
            elif self.tiles == "default":
                found.append((variant, safe_tile(variant, shape, chip)))
            else:
                tiles = [tile for tile in variant.tiles if not variant.refuses(tile, shape, chip)]
                found += [(variant, tile) for tile in (tiles if self.tiles == "all" else without_idle_tokens(tiles, m))]
        return found, refused


def without_idle_tokens(tiles: Sequence[Tile], m: int) -> list[Tile]:
    """Those that do not hold more tokens than the smallest that holds ``m``: what they hold more is padding."""
    held = {tile: dict(tile.parameters).get("tokens", 0) for tile in tiles}
    enough = min((tokens for tokens in held.values() if tokens >= m), default=None)
    return [tile for tile, tokens in held.items() if enough is None or tokens <= enough]


def finalists(picks: Sequence[tuple[Variant, Tile]], heat: Iterable[GemmTiming]) -> list[tuple[Variant, Tile]]:
    """Of each variant the tiles that a first heat found within FINAL_WITHIN of its fastest, FINALISTS at most."""
    times: dict[str, dict[str, float]] = {}
    for record in heat:
        times.setdefault(record.variant, {})[record.tile] = record.us
    kept = {
        (variant, tile)
        for variant, tiles in times.items()
        for tile in sorted(tiles, key=lambda name: tiles[name])[:FINALISTS]
        if tiles[tile] <= FINAL_WITHIN * min(tiles.values())
    }
    return only(picks, kept)


def only(picks: Sequence[tuple[Variant, Tile]], kept: Collection[tuple[str, str]]) -> list[tuple[Variant, Tile]]:
    """The picks whose names are among ``kept``."""
    return [(variant, tile) for variant, tile in picks if (variant.name, tile.name) in kept]


def read(request: BenchRequest) -> Plan:
    """Validate a request. Raises ApexError naming the option."""
    model = load_model(request.model) if request.shapes is None else None
    every, patterns = peers() if request.peers else [], patterns_of(request.variants)
    return Plan(
        title=model.name if model else "given shapes",
        gemms=gemms(model) if model else parse_shapes(request.shapes or ""),
        block=model is not None,
        tokens=parse_tokens(request.tokens),
        variants=matching(request.variants, [peer.variant for peer in every]),
        tiles=request.tiles,
        methods=METHODS[request.method],
        check=request.check,
        named=request.variants != EVERY,
        # those that a pattern names, or all where none is named
        peers=tuple([peer for peer in every if matches(peer.variant, patterns)] or every),
    )


def parse_shapes(text: str) -> tuple[Gemm, ...]:
    """ "4096x14336,28672x4096" in its order, without repetition. Raises ApexError naming the part that is no N x K."""
    parts = [part.strip() for part in text.split(",")]
    found = []
    for part in parts:
        match = re.fullmatch(r"([0-9]{1,8})\s*[xX×]\s*([0-9]{1,8})", part)
        sizes = [int(size) for size in match.groups()] if match else [0]
        if not all(1 <= size <= MAX_DIMENSION for size in sizes):
            raise ApexError(f"--shapes: {part[:40]!r} is no weight's N x K; expected e.g. 4096x14336,28672x4096")
        found.append(Gemm(*sizes))
    if len(parts) > MOST_SIZES:
        raise ApexError(f"--shapes has {len(parts)} shapes; at most {MOST_SIZES} are timed at once")
    return tuple(dict.fromkeys(found))


def parse_tokens(text: str) -> tuple[int, ...]:
    """ "1,16" ascending and without repetition. Raises ApexError naming the part that is no number of tokens."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[0-9]{1,9}", part) or not 1 <= int(part) <= MAX_TOKENS:
            raise ApexError(
                f"--m: {part[:40]!r} is no number of tokens from 1 to {MAX_TOKENS}; expected e.g. 1,16,4096"
            )
    if len(parts) > MOST_SIZES:
        raise ApexError(f"--m has {len(parts)} sizes; at most {MOST_SIZES} are timed at once")
    return tuple(sorted({int(part) for part in parts}))


def matching(patterns: str, others: Sequence[str] = ()) -> tuple[Variant, ...]:
    """The catalogue's variants whose names match one of ``patterns``, in the catalogue's order. Raises ApexError for a
    pattern that matches none of them and none of ``others``."""
    from apex4_probe.kernels.catalogue import VARIANTS

    wanted = patterns_of(patterns)
    for pattern in wanted:
        names = [*(variant.name for variant in VARIANTS), *others]
        if not any(matches(name, [pattern]) for name in names):
            raise ApexError(f"--variants: {pattern[:60]!r} matches none of {', '.join(names)}")
    return tuple(one for one in VARIANTS if matches(one.name, wanted))


def patterns_of(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",")]


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def gemms(model: Model) -> tuple[Gemm, ...]:
    """The GEMMs of a block in their order, linears that share an input fused (qkv, gate_up)."""
    fused = [[layer for layer in model.layers if layer.role in roles] for roles in FUSED]
    return tuple(Gemm(sum(layer.n for layer in layers), layers[0].k) for layers in fused if layers)
