"""Co-issue records gathered into curves, and the knee of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apex4_probe.deployment import CoIssue, Origin

KNEE_TOLERANCE = (
    1.05  # 5 % over the MMA alone: several times the run-to-run noise of cycles (0.1 %), below any real pass
)


@dataclass(frozen=True)
class Curve:
    """Cycles over those of the MMA alone, against k CUDA-core instructions per accumulator and four MMA K-steps."""

    mma: str
    shape: str
    placement: str
    instruction: str
    points: tuple[CoIssue, ...]  # ascending k, one record each

    @property
    def ks(self) -> list[int]:
        return [point.k for point in self.points]

    @property
    def ratios(self) -> list[float]:
        return [point.cycles_over_mma_alone for point in self.points]

    @property
    def origin(self) -> Origin:
        """``predicted`` as soon as one point is."""
        origins = {point.origin for point in self.points}
        return "predicted" if "predicted" in origins else self.points[0].origin

    @property
    def knee(self) -> int | None:
        """The largest k up to which every point stays within ``KNEE_TOLERANCE``; None when not even the first does."""
        knee = None
        for point in self.points:
            if point.cycles_over_mma_alone > KNEE_TOLERANCE:
                break
            knee = point.k
        return knee

    @property
    def open_ended(self) -> bool:
        """The curve never left the tolerance: the knee lies at the last k measured or beyond."""
        return self.knee == self.points[-1].k

    def at(self, k: int) -> CoIssue | None:
        return next((point for point in self.points if point.k == k), None)


def curves(records: Iterable[CoIssue]) -> list[Curve]:
    """Every curve in the order of first appearance. A k recorded twice keeps its last record."""
    grouped: dict[tuple[str, str, str, str], dict[int, CoIssue]] = {}
    for record in records:
        key = (record.mma, record.shape, record.placement, record.instruction)
        grouped.setdefault(key, {})[record.k] = record
    return [Curve(*key, points=tuple(by_k[k] for k in sorted(by_k))) for key, by_k in grouped.items()]


def leading_shapes(all_curves: Sequence[Curve]) -> dict[str, str]:
    """The shape that speaks for each MMA: the widest n (it has the least operand traffic), then the most points."""
    points: dict[tuple[str, str], int] = {}
    for curve in all_curves:
        points[curve.mma, curve.shape] = points.get((curve.mma, curve.shape), 0) + len(curve.points)
    leading: dict[str, str] = {}
    for mma, shape in sorted(points, key=lambda key: (_width(key[1]), points[key])):
        leading[mma] = shape
    return {mma: leading[mma] for mma in dict.fromkeys(curve.mma for curve in all_curves)}


def _width(shape: str) -> int:
    found = re.search(r"n(\d{1,9})", shape)
    return int(found.group(1)) if found else 0


def knee_text(curve: Curve) -> str:
    if curve.knee is None:
        return "none"
    return f"≥ {curve.knee}" if curve.open_ended else str(curve.knee)
