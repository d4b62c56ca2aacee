"""``linear``: what a model calls in place of ``torch.nn.functional.linear``."""

from __future__ import annotations

import torch

from apex4_probe.deployment import Profile
from apex4_probe.kernels import catalogue
from apex4_probe.kernels.gemm import check_call, enqueue
from apex4_probe.kernels.packing import PackedWeight
from apex4_probe.kernels.variant import Shape, Tile, Variant
from apex4_probe.runtime.choice import SameProfile, choose


def linear(
    x: torch.Tensor,
    packed: PackedWeight,
    bias: torch.Tensor | None = None,
    *,
    profile: Profile | None = None,
    variant: Variant | str | None = None,
    tile: Tile | str | None = None,
) -> torch.Tensor:
    """y [..., N] = x [..., K] times the transpose of the packed weight, plus ``bias`` [N], in x's type (fp16, bf16).

    ``profile``: launches what it chose for this shape and number of tokens, or the safe default where it chose nothing.
    ``variant``: by hand, a record of ``variants()`` or its name; ``tile``: one of the variant's, or its name, else a
    safe one. Neither ``profile`` nor ``variant``: the safe default. Runs on torch's current stream without waiting, and
    may be captured into a CUDA graph once the same call has run before. No tokens give an empty tensor. Inference only:
    y carries no gradient.

    ValueError naming the argument that does not fit. ProfileError where the profile does not hold on x's GPU or names
    what the catalogue lacks. ApexError for a kernel that does not compile or launch.
    """
    m, device = check_call(x, packed, bias)
    if profile is not None or variant is not None or tile is not None:
        _check_choice(profile, variant, tile)
    if m == 0:
        return x.new_empty((*x.shape[:-1], packed.n))
    chosen, chosen_tile = choose(
        packed.format,
        packed.granularity,
        Shape(m, packed.n, packed.k),
        device,
        None if profile is None else SameProfile(profile),
        variant.name if isinstance(variant, Variant) else variant,
        tile.name if isinstance(tile, Tile) else tile,
    )
    y = torch.empty((m, packed.n), dtype=x.dtype, device=x.device)
    enqueue(x.view(m, packed.k), packed, chosen, chosen_tile, bias, y, device)
    return y.view(*x.shape[:-1], packed.n)


def variants() -> tuple[Variant, ...]:
    """Every variant of the catalogue, with its format, granularity, legal tiles and one sentence on what it does."""
    return catalogue.VARIANTS


def _check_choice(profile: object, variant: object, tile: object) -> None:
    """ValueError naming the argument that has another type or does not go with the others."""
    if not isinstance(profile, (Profile, type(None))):
        raise ValueError(f"profile must be a Profile, as load_profile returns it, not {type(profile).__name__}")
    if not isinstance(variant, (Variant, str, type(None))):
        raise ValueError(f"variant must be one of variants() or its name, not {type(variant).__name__}")
    if not isinstance(tile, (Tile, str, type(None))):
        raise ValueError(f"tile must be one of the variant's tiles or its name, not {type(tile).__name__}")
    if variant is None and tile is not None:
        raise ValueError("tile is given without variant, which it is one of")
    if variant is not None and profile is not None:
        raise ValueError("variant and profile are both given: either chooses the kernel, so leave one out")
