"""What a compiler got wrong once: memory descriptors, 64 bits, lie in pairs of uniform registers."""

from __future__ import annotations

import re

import pytest

from apex4_probe.kernels import catalogue, sass
from apex4_probe.kernels.compile import compile_kernel
from apex4_probe.kernels.variant import Chip, Shape, Variant

CHIPS = [
    Chip("8.0", "sm_80", 108, 163 * 1024),
    Chip("8.6", "sm_86", 82, 99 * 1024),
    Chip("9.0", "sm_90a", 132, 227 * 1024),
]


def shapes(variant: Variant, chip: Chip) -> list[Shape]:
    found = [Shape(m, 4096, 4096) for m in (1, 64, 128)]
    return [shape for shape in found if not catalogue.legal(variant, shape, chip)]


@pytest.mark.parametrize(
    ("variant", "chip"),
    [
        pytest.param(variant, chip, id=f"{variant.name}-{chip.target}")
        for variant in catalogue.VARIANTS
        for chip in CHIPS
        if shapes(variant, chip)
    ],
)
def test_descriptors_lie_in_pairs_of_registers(variant: Variant, chip: Chip) -> None:
    """ptxas of CUDA 13.0 wrote desc[UR1] where cp.async has a constant L2 policy: an illegal instruction on an H100."""
    for tile in dict.fromkeys(variant.default(shape, chip) for shape in shapes(variant, chip)):
        image = compile_kernel(catalogue.kernel(variant, tile, chip.target, bf16=False)).image
        listing = sass.disassemble(image)["gemm"]
        assert not [each for each in listing.instructions if re.search(r"desc\[UR\d*[13579]\]", each.operands)], (
            tile.name
        )
