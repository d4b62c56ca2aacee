"""Every kernel of the catalogue once, for tools that watch kernels run: compute-sanitizer and Nsight Compute.

    compute-sanitizer --tool memcheck  python tests/gpu/reduced_matrix.py          also --tool racecheck
    ncu --metrics … --kernel-name gemm  python tests/gpu/reduced_matrix.py --real
    … tests/gpu/reduced_matrix.py "w4a8.wgmma.*" "w4a4.*"      these variants alone

Without ``--real`` shapes are as small as they can be and still have several row groups, a short last one, and an odd
number of blocks of K; with it they are a layer of Llama-3-8B, and each variant runs its default tile alone.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase

import torch

from apex4_probe.kernels import catalogue
from apex4_probe.kernels.gemm import gemm, precompile
from apex4_probe.kernels.launch import chip
from apex4_probe.kernels.packing import random_packed
from apex4_probe.kernels.quantise import KINDS, quantise
from apex4_probe.kernels.variant import Shape

SMALL, REAL = (416, 2176), (4096, 4096)  # N, K; more blocks of K than any ring has stages
TOKENS = (1, 7, 16, 31, 61, 150)
REAL_TOKENS = (1, 16, 64, 1024)


def main(real: bool, patterns: list[str]) -> None:
    n, k = REAL if real else SMALL
    picks = {}
    variants = [each for each in catalogue.VARIANTS if any(fnmatchcase(each.name, pattern) for pattern in patterns)]
    for variant in variants:
        for m in REAL_TOKENS if real else TOKENS:
            shape = Shape(m, n, k)
            if catalogue.legal(variant, shape, chip(0)):
                continue
            tiles = [catalogue.safe_tile(variant, shape, chip(0))] if real else variant.tiles
            for tile in tiles:
                if not variant.refuses(tile, shape, chip(0)):
                    picks[variant.name, tile.name, m if real else 0] = (variant, tile, m)  # small: its most tokens
    precompile([(variant, tile) for variant, tile, _ in picks.values()], 0)
    for variant, tile, m in picks.values():
        packed = random_packed(n, k, variant.format, variant.granularity, "cuda")
        y = gemm(torch.randn(m, k, device="cuda", dtype=torch.float16), packed, variant, tile)
        assert torch.isfinite(y).all(), (variant.name, tile.name)
        print(f"{variant.name} {tile.name} M = {m}", flush=True)
    for kind in KINDS:
        for hadamard in (None, 128, 512):
            quantise(torch.randn(19, 2560, device="cuda", dtype=torch.float16), kind=kind, hadamard=hadamard)
    torch.cuda.synchronize()
    print(f"{len(picks)} launches of {len(variants)} variants")


if __name__ == "__main__":
    words = sys.argv[1:]
    main("--real" in words, [word for word in words if not word.startswith("--")] or ["*"])
