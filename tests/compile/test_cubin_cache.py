"""The cache of cubins under load: ten processes that all need the same kernel, and a model's kernels found again."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from apex4_probe.kernels import catalogue, disk_cache
from apex4_probe.kernels.compile import Kernel, compile_all, compile_kernel

TINY = Kernel("tiny", 'extern "C" __global__ void tiny(int* x) { *x = VALUE; }', "sm_80", options=("-DVALUE=7",))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APEX4_PROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _fill(_number: int) -> bytes:
    cubin = compile_kernel(TINY)
    assert cubin.path is not None and disk_cache.read("cubin", cubin.path.stem) == cubin.image
    return cubin.image


def test_ten_processes_that_fill_the_cache_at_once_all_succeed(folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(10) as pool:
        images = pool.map(_fill, range(10), chunksize=1)
    assert len(images) == 10
    assert set(images) == {compile_kernel(TINY).image}
    assert images[0].startswith(b"\x7fELF")
    assert len(list(folder.rglob("*.cubin"))) == 1
    assert not list(folder.rglob("*.part"))


@pytest.mark.slow
def test_a_models_kernels_are_found_again_within_a_second() -> None:
    # What a model with few and with many tokens launches, in both types; loading them comes on top, on a GPU alone.
    kernels = [
        catalogue.kernel(variant, variant.tiles[0], "sm_90a", bf16)
        for variant in catalogue.VARIANTS
        if variant.granularity in ("channel", "g128i", "g128")
        for bf16 in (False, True)
    ]
    assert len(kernels) > 10
    compile_all(kernels)
    start = time.perf_counter()
    again = compile_all(kernels)
    assert time.perf_counter() - start < 1.0
    assert all(cubin.image.startswith(b"\x7fELF") and cubin.log == "" for cubin in again)
