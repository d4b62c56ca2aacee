"""A bench as ``apex4-probe bench`` writes it, small enough to check by hand. The times are made up."""

from __future__ import annotations

from sample_profile import sample_device

from apex4_probe.bench_records import Bench, BenchHeader, ChainTiming, Refusal
from apex4_probe.deployment import Environment, GemmTiming

SHAPES = ((6144, 4096), (4096, 14336))
TOKENS = (1, 16, 1024)
# variant, format, granularity, tile, version, us over that of FP16
WAYS = (
    ("fp16", "fp16", "none", "", None, 1.0),
    ("fp8", "fp8", "channel", "", None, 0.6),
    ("int8", "int8", "channel", "", None, 0.8),
    ("read", "read", "none", "slices", None, 0.2),
    ("w4a8.small.channel", "w4a8", "channel", "rows=32,warps=16", None, 0.25),
    ("w4a8.small.channel", "w4a8", "channel", "rows=64,warps=8", None, 0.3),
    ("w4a8.mma.channel", "w4a8", "channel", "rows=64", None, 0.4),
    ("w4a8.small.g128i", "w4a8", "g128i", "rows=32,warps=16", None, 0.32),
    ("humming.w4a8.g128", "w4a8", "g128", "", "0.1.19", 0.5),
)


def sample_record(n: int, k: int, m: int, way: tuple[str, str, str, str, str | None, float]) -> GemmTiming:
    variant, format, granularity, tile, version, share = way
    fp16_us = n * k / 1e6 + m / 100
    ours = variant.startswith("w4a8")
    return GemmTiming.model_validate({
        "n": n, "k": k, "m": m, "variant": variant, "format": format, "granularity": granularity, "tile": tile,
        "us": fp16_us * share, "us_quantise": 1.5 if format == "w4a8" else 0.0, "spread": 0.012, "samples": 15,
        "tops": None if variant == "read" else 2e-6 * m * n * k / (fp16_us * share), "gb_per_s": 2500.0,
        "speedup_fp16": 1 / share, "speedup_fp8": 0.6 / share, "roofline_fraction": 0.875,
        "exact": True if ours else None, "version": version,
    })  # fmt: skip


def sample_bench() -> Bench:
    return Bench(
        header=BenchHeader(
            tool_version="0.1.0",
            created="2026-11-24T10:00:00+00:00",
            command="apex4-probe bench --peers --check",
            commit="0" * 40,
            model="llama-3-8b",
            device=sample_device(),
            environment=Environment(python="3.11.9", platform="Linux x86_64", torch="2.13.0"),
            peers={"humming-kernels": "0.1.19"},
            rotate_bytes=300_000_000,
            read_gb_s=3060.0,
            tensor_tops={"s8": 1871.0},
        ),
        records=[sample_record(n, k, m, way) for n, k in SHAPES for m in TOKENS for way in WAYS],
        chains=[
            ChainTiming(m=1, links=["6144 x 4096 w4a8.small.channel rows=32"], us=40.0, spread=0.01, us_pdl=32.0,
                        spread_pdl=0.01, us_fp16=120.0),
            ChainTiming(m=16, links=["6144 x 4096 w4a8.small.channel rows=32"], us=44.0, spread=0.01),
        ],
        refused=[
            Refusal(n=n, k=k, m=1024, candidate="w4a8.small.channel", why="M = 1024 is beyond 64") for n, k in SHAPES
        ] + [Refusal(n=6144, k=4096, m=1, candidate="marlin.w4a16.g128", why="not installed: pip install vllm")],
    )  # fmt: skip
