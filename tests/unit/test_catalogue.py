"""Every record of the catalogue keeps its promises, and what is not in it is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files

import pytest

from apex4_probe.architecture import architecture, known
from apex4_probe.errors import ApexError
from apex4_probe.kernels import catalogue
from apex4_probe.kernels.catalogue import VARIANTS
from apex4_probe.kernels.formats import GRANULARITIES, Format, Granularity
from apex4_probe.kernels.variant import Chip, Shape, Tile, Variant, tile


def chip(compute_capability: str, sm_count: int, shared_kib: int) -> Chip:
    target = architecture(compute_capability).target
    return Chip(compute_capability, target, sm_count, shared_kib * 1024)


# Shared memory a CTA may ask for: CUDA C++ Programming Guide, technical specifications per compute capability.
CHIPS = [
    chip("8.0", 108, 163),
    chip("8.6", 82, 99),
    chip("8.9", 128, 99),
    chip("9.0", 132, 227),
    chip("12.0", 170, 99),
]
HOPPER, TURING = CHIPS[3], chip("7.5", 40, 64)
SHAPES = [
    Shape(m, n, k)
    for n, k in ((32, 128), (4096, 4096), (28672, 4096), (4096, 14336), (151936, 896), (57344, 8192), (96, 29568))
    for m in (1, 2, 7, 16, 17, 33, 64, 77, 128, 255, 1000, 4096)
]
EACH = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def text_of(name: str) -> str:
    return (files("apex4_probe.kernels") / "cuda" / name).read_text(encoding="utf-8")


def test_every_granularity_has_a_kernel_for_any_number_of_tokens() -> None:
    for format, granularities in GRANULARITIES.items():
        for granularity in granularities:
            for where in CHIPS:
                for shape in SHAPES:
                    variant, chosen = catalogue.default_choice(format, granularity, shape, where)
                    assert (variant.format, variant.granularity) == (format, granularity)
                    assert chosen in variant.tiles
                    assert variant.refuses(chosen, shape, where) == ""


def test_names_are_unique_and_tell_format_and_granularity() -> None:
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    for variant in VARIANTS:
        assert re.fullmatch(rf"{variant.format}\.[a-z0-9]+\.{variant.granularity}", variant.name)
        assert variant.granularity in GRANULARITIES[variant.format]
        assert catalogue.by_name(variant.name) is variant


@EACH
def test_tiles_are_distinct_and_found_by_the_name_that_profiles_hold(variant: Variant) -> None:
    assert len(set(variant.tiles)) == len(variant.tiles) > 0
    for one in variant.tiles:
        assert catalogue.tile_named(variant, one.name) == one


@EACH
def test_a_default_is_legal_wherever_any_tile_is(variant: Variant) -> None:
    for where in CHIPS:
        for shape in SHAPES:
            if not catalogue.legal(variant, shape, where):
                assert variant.refuses(catalogue.safe_tile(variant, shape, where), shape, where) == ""


@EACH
def test_a_legal_launch_is_one_that_cuda_accepts(variant: Variant) -> None:
    for where in CHIPS:
        for shape in SHAPES:
            for one in variant.tiles:
                if variant.refuses(one, shape, where):
                    continue
                launch = variant.geometry(one, shape, where)
                x, y, z = launch.grid
                # CUDA C++ Programming Guide, technical specifications: grid and block dimensions
                assert 1 <= x < 2**31 and 1 <= y < 65536 and 1 <= z < 65536
                assert launch.threads % 32 == 0 and 32 <= launch.threads <= 1024
                assert 0 <= launch.shared_bytes <= where.shared_bytes
                if variant.then_fp16:
                    assert launch.workspace_bytes >= 2 * shape.n * shape.k


@EACH
def test_the_source_and_all_that_it_includes_is_there(variant: Variant) -> None:
    generated = dict(variant.generated(variant.tiles[0]))
    pending, seen = [variant.source], set(generated)
    while pending:
        name = pending.pop()
        seen.add(name)
        pending += [other for other in re.findall(r'#include "(.+)"', text_of(name)) if other not in seen]
    assert seen - {variant.source} <= {*variant.headers, *generated}
    unit = catalogue.kernel(variant, variant.tiles[0], "sm_90a", bf16=False)
    assert unit.source == text_of(variant.source)
    assert dict(unit.headers) == {name: text_of(name) for name in variant.headers} | generated


@EACH
def test_tile_and_record_become_macros_that_the_source_knows(variant: Variant) -> None:
    code = "".join(text_of(name) for name in (variant.source, *variant.headers))
    for one in variant.tiles:
        unit = catalogue.kernel(variant, one, "sm_80", bf16=True)
        assert unit.options[len(unit.options) - len(variant.options) :] == variant.options
        defined = unit.options[: len(unit.options) - len(variant.options)]
        macros = dict(re.fullmatch(r"-D([A-Z0-9_]+)=(\d+)", option).groups() for option in defined)
        assert macros["OUT_BF16"] == "1"
        assert {name: macros[name.upper()] for name, _ in one.parameters} == {
            name: str(value) for name, value in one.parameters
        }
        assert [name for name in macros if not re.search(rf"\b{name}\b", code)] == []
        assert (unit.target, variant.name in unit.name, one.name in unit.name) == ("sm_80", True, True)
    assert "-DOUT_BF16=0" in catalogue.kernel(variant, variant.tiles[0], "sm_80", bf16=False).options


@pytest.mark.parametrize(
    ("format", "granularity", "m", "family"),
    [
        ("w4a8", "channel", 1, "small"),
        ("w4a8", "channel", 64, "small"),
        ("w4a8", "channel", 65, "tiled"),
        ("w4a8", "g128i", 16, "small"),
        ("w4a8", "g128i", 4096, "tiled"),
        ("w4a8", "g64", 1, "mma"),
        ("w4a16", "g128", 64, "small"),
        ("w4a16", "g128", 65, "fp16"),
        ("w4a4", "channel", 4096, "mma"),
        ("w4a4", "g128", 4096, "mma"),
        ("w4a4", "g32", 4096, "mma"),
    ],
)
def test_the_safe_choice_is_made_for_few_tokens_where_it_can_be(
    format: Format, granularity: Granularity, m: int, family: str
) -> None:
    for where in CHIPS:
        tiled = "wgmma" if where.compute_capability == "9.0" else "mma"
        variant, _ = catalogue.default_choice(format, granularity, Shape(m, 4096, 4096), where)
        assert variant.name == f"{format}.{family.replace('tiled', tiled)}.{granularity}"


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ApexError) as caught:
        catalogue.by_name("w4a8.small.g7")
    assert "no variant 'w4a8.small.g7'" in str(caught.value)
    assert "w4a8.small.channel, " in str(caught.value)


@EACH
def test_a_tile_outside_the_legal_set_is_refused_with_the_nearest_inside(variant: Variant) -> None:
    first = variant.tiles[0]
    name, value = first.parameters[0]
    for text in (first.name.replace(f"{name}={value}", f"{name}=9999"), "", "-DEVIL=1", first.name + ",ptr=1"):
        with pytest.raises(ApexError) as caught:
            catalogue.tile_named(variant, text)
        assert variant.name in str(caught.value)
        assert repr(text) in str(caught.value)
        assert any(repr(one.name) in str(caught.value) for one in variant.tiles)


def test_what_no_kernel_can_do_says_why_for_each() -> None:
    with pytest.raises(ApexError, match=r"no kernel for w4a16 a128i weights at M = 1, .* \(the catalogue has none\)"):
        catalogue.default_choice("w4a16", "a128i", Shape(1, 64, 128), HOPPER)
    with pytest.raises(ApexError) as caught:
        catalogue.default_choice("w4a8", "channel", Shape(1, 64, 128), TURING)
    assert "w4a8.small.channel: " in str(caught.value) and "w4a8.mma.channel: " in str(caught.value)
    small = catalogue.by_name("w4a8.small.channel")
    with pytest.raises(ApexError, match=r"w4a8\.small\.channel cannot run M = 65, N = 64, K = 128 on sm_90a: "):
        catalogue.safe_tile(small, Shape(65, 64, 128), HOPPER)


@EACH
def test_a_record_says_where_its_mma_is_native_as_the_architectures_do(variant: Variant) -> None:
    """The only MMA of the catalogue that some architecture from 8.0 on lacks is that of INT4."""
    native = {facts.compute_capability for facts in known() if facts.support("mma.s4.m16n8k64").level == "native"}
    assert variant.native_on is None or (variant.format == "w4a4" and set(variant.native_on) == native)
    for where in CHIPS:
        reason = variant.emulated_on(where)
        if variant.native_on is not None and where.version >= (9, 0):
            assert f"emulated on compute capability {where.compute_capability}" in reason and "slow" in reason
            assert catalogue.legal(variant, Shape(64, 4096, 4096), where) == "", "for correctness"
        else:
            assert reason == ""


def test_every_tile_on_int4_tensor_cores_says_where_they_are() -> None:
    assert all(variant.native_on for variant in VARIANTS if variant.format == "w4a4")


def test_legality_is_that_of_any_tile() -> None:
    def refuses(one: Tile, shape: Shape, _chip: Chip) -> str:
        return "" if shape.m <= one["tokens"] else f"holds {one['tokens']} tokens"

    tiles = (tile(tokens=8), tile(tokens=16))
    variant = replace(VARIANTS[0], tiles=tiles, refuses=refuses)
    assert catalogue.legal(variant, Shape(8, 32, 128), HOPPER) == ""
    assert catalogue.legal(variant, Shape(16, 32, 128), HOPPER) == ""
    assert catalogue.legal(variant, Shape(17, 32, 128), HOPPER) == "holds 16 tokens"
