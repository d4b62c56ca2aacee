"""From times to records: what a candidate is, and the figures that follow from its time. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from apex4_probe.deployment import Format, GemmTiming, Granularity
from apex4_probe.microbench.gemm_timing import Call, Candidate, Timing

Method = Literal["interleaved", "sustained"]
Operand = Literal["s4", "s8", "f16", "e4m3"]  # what the Tensor Core multiplies
BASELINES: tuple[str, ...] = ("fp16", "fp8", "int8", "read")


@dataclass(frozen=True)
class GemmCandidate:
    """One way to multiply, with its activations quantised beforehand.

    ``moved_bytes``: weights with their scales, activations and output, each once. ``operand``: None where nothing is
    multiplied. ``quantise``: key of the candidate that quantises its activations; "" where nothing is quantised.
    ``check``: whether its output is right, asked only on request.
    """

    variant: str
    format: Format | Literal["int8", "read"]
    granularity: Granularity
    calls: Sequence[Call]
    moved_bytes: float
    operand: Operand | None = None
    strategy: str = ""
    tile: str = ""
    quantise: str = ""
    version: str | None = None
    check: Callable[[], bool] | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        return f"{self.variant} {self.tile}".strip()


# Ways to multiply, and what quantises their activations
Prepared = tuple[list[GemmCandidate], list[Candidate]]


@dataclass(frozen=True)
class Roof:
    """Measured ceilings of the GPU: GB/s of a long pure read, and dense T op/s (two a MAC) by MMA operand."""

    read_gb_s: float
    tops: Mapping[Operand, float]

    def microseconds(self, moved_bytes: float, operations: float, operand: Operand | None) -> float | None:
        """The longer of memory and Tensor Core time; None where the Tensor Core's rate is not known."""
        memory = moved_bytes / (self.read_gb_s * 1e3)
        if operand is None:
            return memory
        rate = self.tops.get(operand)
        return max(memory, operations / (rate * 1e6)) if rate else None


def to_records(
    shape: tuple[int, int, int],
    candidates: Sequence[GemmCandidate],
    timings: Mapping[str, Timing],
    method: Method,
    roof: Roof | None = None,
    exact: Mapping[str, bool] | None = None,
) -> list[GemmTiming]:
    """A record for every candidate that has a time. ``shape``: (n, k, m). ``timings``, ``exact``: by key.

    Of several candidates for the pure read the fastest stands. A candidate whose activations could not be quantised has
    no record: it would look as if that cost nothing.
    """
    timed = [c for c in candidates if c.key in timings and (not c.quantise or c.quantise in timings)]
    reads = [candidate for candidate in timed if candidate.variant == "read"]
    fastest = min(reads, key=lambda candidate: timings[candidate.key].us, default=None)
    kept = [candidate for candidate in timed if candidate.variant != "read" or candidate is fastest]
    baseline = {c.variant: timings[c.key].us for c in kept if c.variant in BASELINES}
    return [_record(shape, candidate, timings, baseline, method, roof, exact or {}) for candidate in kept]


def _record(
    shape: tuple[int, int, int],
    candidate: GemmCandidate,
    timings: Mapping[str, Timing],
    baseline: Mapping[str, float],
    method: Method,
    roof: Roof | None,
    exact: Mapping[str, bool],
) -> GemmTiming:
    n, k, m = shape
    timing = timings[candidate.key]
    operations = 2.0 * m * n * k
    least = roof.microseconds(candidate.moved_bytes, operations, candidate.operand) if roof else None

    def over(name: str) -> float | None:
        return baseline[name] / timing.us if name in baseline else None

    return GemmTiming(
        n=n,
        k=k,
        m=m,
        variant=candidate.variant,
        format=candidate.format,
        granularity=candidate.granularity,
        strategy=candidate.strategy,
        tile=candidate.tile,
        method=method,
        us=timing.us,
        us_quantise=timings[candidate.quantise].us if candidate.quantise else 0.0,
        spread=timing.spread,
        samples=timing.samples,
        tops=operations / timing.us * 1e-6 if candidate.operand else None,
        gb_per_s=candidate.moved_bytes / timing.us * 1e-3,
        speedup_fp16=over("fp16"),
        speedup_fp8=over("fp8"),
        speedup_int8=over("int8"),
        roofline_fraction=least / timing.us if least else None,
        exact=exact.get(candidate.key),
        version=candidate.version,
    )
