"""What the GPU will be asked: decode batches and prefill lengths, each with a weight.

``decode:16*3,prefill:2048`` is three decode steps of a batch of 16 for every prefill of 2048 tokens; the time of the
workload is the weighted sum of the times of its steps. The default asks for one of each: one checkpoint serves both.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from apex4_probe.deployment import WorkloadPoint
from apex4_probe.errors import ApexError

DEFAULT_WORKLOAD = "decode:16,prefill:2048"
MAX_POINTS = 64
MAX_TOKENS = 1 << 20  # one step of a million tokens: beyond any context window in use
PHASES: dict[str, Literal["decode", "prefill"]] = {"decode": "decode", "prefill": "prefill"}
_POINT = re.compile(r"(?P<phase>[a-z]+):(?P<m>[0-9]{1,9})(?:\*(?P<weight>[0-9.]{1,12}))?", re.ASCII)


def parse_workload(text: str = DEFAULT_WORKLOAD) -> list[WorkloadPoint]:
    """Points in the order given; raises ApexError naming the point that cannot be understood."""
    parts = [part.strip().lower() for part in text.split(",")]
    if len(parts) > MAX_POINTS:
        raise ApexError(f"--workload has {len(parts)} points; at most {MAX_POINTS} can be planned for")
    points = [_parse_point(part) for part in parts]
    seen = {(point.phase, point.m) for point in points}
    if len(seen) < len(points):
        raise ApexError(f"--workload {text[:200]!r} names a point twice; give it a weight instead, e.g. decode:16*3")
    return points


def describe(point: WorkloadPoint) -> str:
    """``decode at 16`` or ``prefill of 2048``."""
    return f"decode at {point.m}" if point.phase == "decode" else f"prefill of {point.m}"


def _parse_point(part: str) -> WorkloadPoint:
    match = _POINT.fullmatch(part)
    if match is None:
        raise ApexError(f"--workload: {part[:80]!r} is not phase:tokens or phase:tokens*weight, as in decode:16*3")
    phase, m = PHASES.get(match["phase"]), int(match["m"])
    if phase is None:
        raise ApexError(
            f"--workload: unknown phase {match['phase'][:40]!r}; it is decode (sequences) or prefill (tokens)"
        )
    if not 0 < m <= MAX_TOKENS:
        raise ApexError(f"--workload: {part[:80]!r} asks for {m} tokens; from 1 to {MAX_TOKENS} can be planned for")
    try:
        weight = float(match["weight"] or 1)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ApexError(f"--workload: the weight in {part[:80]!r} must be a number above 0")
    return WorkloadPoint(phase=phase, m=m, weight=weight)
