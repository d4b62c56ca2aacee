"""The catalogue: every kernel variant, found by name, by what it runs, or as the safe choice for a shape.

A new variant is one record in its family's module and one source in ``kernels/cuda``.
"""

from __future__ import annotations

import difflib
from functools import cache

from apex4_probe.errors import ApexError
from apex4_probe.kernels import w4a4_mma, w4a4_small, w4a8_mma, w4a8_small, w4a8_wgmma, w4a16
from apex4_probe.kernels.compile import Kernel, cuda_header
from apex4_probe.kernels.formats import Format, Granularity
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant

# The first that is legal is the safe choice: families for few tokens, which refuse many, before those for any number.
VARIANTS: tuple[Variant, ...] = (
    *w4a8_small.VARIANTS,
    *w4a8_wgmma.VARIANTS,
    *w4a8_mma.VARIANTS,
    *w4a16.VARIANTS,
    *w4a4_small.VARIANTS,
    *w4a4_mma.VARIANTS,
)

_BY_NAME = {variant.name: variant for variant in VARIANTS}


def by_name(name: str) -> Variant:
    """Raises ApexError naming the catalogue's variants."""
    if (variant := _BY_NAME.get(name)) is None:
        raise ApexError(f"the catalogue has no variant {name!r:.80}; it has {', '.join(_BY_NAME)}")
    return variant


def variants_for(format: Format, granularity: Granularity) -> tuple[Variant, ...]:
    """The variants that multiply weights packed so, in the catalogue's order; none is no error."""
    return tuple(one for one in VARIANTS if (one.format, one.granularity) == (format, granularity))


def tile_named(variant: Variant, text: str) -> Tile:
    """The tile that ``text`` spells, of the variant's legal set and no other. Raises ApexError naming both."""
    names = {tile.name: tile for tile in variant.tiles}
    if (tile := names.get(text)) is None:
        nearest = (difflib.get_close_matches(text, names, 1, 0.0) or list(names))[0]
        raise ApexError(f"{variant.name} has no tile {text!r:.80}; the nearest of its {len(names)} is {nearest!r}")
    return tile


def legal(variant: Variant, shape: Shape, chip: Chip) -> str:
    """Why no tile of the variant runs the shape on the chip, by the example of its last one; "" where one does."""
    reason = ""
    for tile in variant.tiles:
        if not (reason := variant.refuses(tile, shape, chip)):
            return ""
    return reason


def safe_tile(variant: Variant, shape: Shape, chip: Chip) -> Tile:
    """The variant's default. Raises ApexError with the reason where none of its tiles runs the shape."""
    if reason := legal(variant, shape, chip):
        raise ApexError(f"{variant.name} cannot run {shape.text} on {chip.target}: {reason}")
    return variant.default(shape, chip)


def default_choice(format: Format, granularity: Granularity, shape: Shape, chip: Chip) -> tuple[Variant, Tile]:
    """What to launch when nothing was measured. Raises ApexError where no variant is legal, saying why each is not."""
    reasons = {}
    for variant in variants_for(format, granularity):
        if not (reason := legal(variant, shape, chip)):
            return variant, variant.default(shape, chip)
        reasons[variant.name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "the catalogue has none"
    raise ApexError(f"no kernel for {format} {granularity} weights at {shape.text} on {chip.target} ({told})")


def kernel(variant: Variant, tile: Tile, target: str, bf16: bool) -> Kernel:
    """The translation unit of a variant's tile for an NVRTC target; ``bf16``: of activations, bias and output."""
    macros = (*tile.parameters, *variant.macros, ("out_bf16", int(bf16)))
    return Kernel(
        name=f"{variant.name} {tile.name}",
        source=_text(variant.source),
        target=target,
        headers=(*((name, _text(name)) for name in variant.headers), *variant.generated(tile)),
        options=(*(f"-D{name.upper()}={value}" for name, value in macros), *variant.options),
    )


@cache
def _text(name: str) -> str:
    return cuda_header(name)[1]
