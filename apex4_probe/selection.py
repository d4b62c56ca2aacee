"""What was timed -> what is launched: the fastest candidate of a GEMM, its runner-up, and a table over M.

Pure functions over ``GemmTiming`` records. A candidate's time is that of its GEMM and of quantising its activations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from apex4_probe.deployment import Format, GemmTiming, Granularity, KernelChoice, KernelTable
from apex4_probe.strategies import STRATEGIES

BASELINES = ("fp16", "fp8", "int8", "read")  # variants of a GemmTiming that are no kernels of ours
FORMATS: tuple[Format, ...] = ("fp16", "fp8", "w4a16", "w4a8", "w4a4")


class GemmKey(NamedTuple):
    """One linear layer as it runs: y[m, n] = x[m, k] times the transpose of W[n, k]."""

    m: int
    n: int
    k: int
    format: Format
    granularity: Granularity


Timed = Mapping[GemmKey, GemmTiming]


def total_us(timing: GemmTiming) -> float:
    return timing.us + timing.us_quantise


def best_tiles(timings: Iterable[GemmTiming]) -> list[GemmTiming]:
    """Of every variant its fastest tile, by GEMM, M and method; the order of first appearance."""
    best: dict[tuple[int, int, int, str, str], GemmTiming] = {}
    for timing in timings:
        key = (timing.n, timing.k, timing.m, timing.method, timing.variant)
        if key not in best or timing.us < best[key].us:
            best[key] = timing
    return list(best.values())


def fastest(timings: Iterable[GemmTiming], strategies: Collection[str] | None = None) -> dict[GemmKey, GemmTiming]:
    """The fastest candidate of every GEMM, format and granularity, quantisation counted.

    Only formats of a plan: "int8" and "read" are yardsticks. ``strategies``: of dequantisation, those that kernels may
    use, by name, beside what costs nothing per accumulator; None: all. Sustained timings hold for another regime and
    are left out.
    """
    found: dict[GemmKey, GemmTiming] = {}
    for timing in timings:
        key = _key(timing)
        if key is None or timing.method != "interleaved":
            continue
        costs_nothing = timing.strategy in ("none", "before_mma")
        if (
            strategies is not None
            and timing.strategy in STRATEGIES
            and not (costs_nothing or timing.strategy in strategies)
        ):
            continue
        if key not in found or total_us(timing) < total_us(found[key]):
            found[key] = timing
    return found


def candidate_name(timing: GemmTiming) -> str:
    return f"{timing.variant} {timing.tile}".strip()


def kernel_tables(timings: Sequence[GemmTiming]) -> list[KernelTable]:
    """A table for every GEMM shape and packing of ours that was timed, one kernel for each M.

    An M without FP16 beside it has no speed-up to state and is left out.
    """
    best = fastest(timings)
    rows: dict[tuple[int, int, Format, Granularity], list[KernelChoice]] = {}
    for key in sorted(best, key=lambda key: key.m):
        timing, fp16 = best[key], best.get(GemmKey(key.m, key.n, key.k, "fp16", "none"))
        if timing.variant in BASELINES or fp16 is None:
            continue
        second = _runner_up(timing, timings)
        rows.setdefault((key.n, key.k, key.format, key.granularity), []).append(
            KernelChoice(
                m_max=key.m,
                variant=timing.variant,
                tile=timing.tile,
                stages=_parameter(timing.tile, "stages"),
                split_k=_parameter(timing.tile, "split_k"),
                us=total_us(timing),
                us_quantise=timing.us_quantise,
                speedup=total_us(fp16) / total_us(timing),
                runner_up=candidate_name(second) if second else None,
                runner_up_us=total_us(second) if second else None,
                origin=timing.origin,
            )
        )
    return [
        KernelTable(n=n, k=k, format=format, granularity=granularity, kernels=kernels)
        for (n, k, format, granularity), kernels in rows.items()
    ]


def _key(timing: GemmTiming) -> GemmKey | None:
    """None: of no format that a plan can have. Plans know no granularities of FP16 and FP8."""
    format = next((format for format in FORMATS if format == timing.format), None)
    if format is None:
        return None
    granularity = "none" if format in BASELINES else timing.granularity
    return GemmKey(timing.m, timing.n, timing.k, format, granularity)


def _runner_up(chosen: GemmTiming, timings: Iterable[GemmTiming]) -> GemmTiming | None:
    """The fastest of another kind for the same GEMM and M, whatever its format; it may be faster than ``chosen``."""
    others = (
        timing
        for timing in timings
        if (timing.n, timing.k, timing.m) == (chosen.n, chosen.k, chosen.m)
        and timing.variant != chosen.variant
        and timing.method == "interleaved"
        and _key(timing) is not None
    )
    return min(others, key=total_us, default=None)


def _parameter(tile: str, name: str) -> int:
    """A parameter of a tile's name; 1 where the variant has none: one stage, K in one piece."""
    pairs = (pair.partition("=") for pair in tile.split(","))
    return next((int(value) for key, _, value in pairs if key == name), 1)
