"""Which loads a GPU is put under beside the others, by architecture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from apex4_probe.architecture import architecture
from apex4_probe.microbench.together import ROLES, fastest_probe


@pytest.mark.parametrize(
    ("capability", "int8", "fp16"),
    [
        ("9.0", "wgmma.s8.m64n256k32.ss", "wgmma.f16.m64n256k16.ss"),
        ("8.0", "mma.s8.m16n8k32", "mma.f16.m16n8k16"),
        ("8.9", "mma.s8.m16n8k32", "mma.f16.m16n8k16"),
        ("12.0", "mma.s8.m16n8k32", "mma.f16.m16n8k16"),
    ],
)
def test_the_tensor_cores_are_loaded_by_what_is_fastest(capability: str, int8: str, fp16: str) -> None:
    gpu = SimpleNamespace(architecture=architecture(capability))
    found = [fastest_probe(gpu, operand) for operand in ("s8", "f16")]  # type: ignore[arg-type]
    assert [probe.name if probe else None for probe in found] == [int8, fp16]


def test_a_shape_that_an_architecture_lacks_is_no_load() -> None:
    turing = SimpleNamespace(architecture=architecture("7.5"))  # its tiles are smaller than any leading probe's
    assert [fastest_probe(turing, operand) for operand in ("s8", "f16")] == [None, None]  # type: ignore[arg-type]


def test_memory_and_host_link_are_loads_of_their_own() -> None:
    assert ROLES == ("int8", "fp16", "copy", "host")
