"""Where along rho each granularity wins: the planner's own candidates for chips that differ in nothing but rho.

For a wanted speed-up over FP16 the rule is the planner's for the paper's question, with W4A16 admitted: the best
expected quality among the W4A4 and W4A16 plans that reach it; none does: stay in FP16.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Literal

from apex4_probe.candidates import Candidate
from apex4_probe.compare_records import Region, RegionMap
from apex4_probe.datasheets import find
from apex4_probe.deployment import Format, Granularity, Measurement, WorkloadPoint, WorkloadRecord
from apex4_probe.field import field_of
from apex4_probe.models import Model
from apex4_probe.prediction import CUDA_CORE, predict_device
from apex4_probe.quality import QualityPrior
from apex4_probe.rates import Rates
from apex4_probe.rules import best_quality

PLAIN = ("i2f_fmul_ffma",)  # how the paper's kernel applies group scales (public APEX4 repository)
REFERENCE = "NVIDIA A100-SXM4-80GB"  # of the GPUs with native INT4 the one with the highest rho: 64
RHOS = tuple(2.0 ** (step / 2) for step in range(2, 16))  # 2 to 181: every GPU with native INT4 lies within
ADMITTED: tuple[Format, ...] = ("w4a4", "w4a16")


def region_map(workload: WorkloadRecord, model: Model, prior: QualityPrior) -> RegionMap:
    """Regions for the first decode and the first prefill point of ``workload``; ``model``: one rank's shapes."""
    device, measurements, _ = predict_device(find(REFERENCE))
    rates = Rates.of(device, measurements)
    tensor, ffma, i2f = rates.tensor("s4"), rates.instruction("ffma"), rates.instruction("i2f")
    assert tensor is not None  # the reference has native INT4
    own = tensor.per_clk / ffma.per_clk
    points = _leading_points(workload)
    asked = workload.model_copy(update={"points": points})
    found: list[Region] = []
    for name, strategies in _STRATEGY_SETS:
        for rho in RHOS:
            chip = Rates.of(device, [_scaled(figure, own / rho) for figure in measurements])
            field = field_of(chip, [], asked, model, strategies, prior)
            pool = [candidate for candidate in field.candidates if candidate.format in ADMITTED]
            for index, point in enumerate(points):
                for low, high, format, granularity in _staircase(pool, field.fp16, index, prior):
                    found.append(Region(name, point.phase, point.m, rho, low, high, format, granularity))
    assumption = (
        f"The regions hold for a chip that is the {device.name} in everything (Tensor Cores, memory, clocks, its "
        f"conversion of integers at 1/{ffma.per_clk / i2f.per_clk:.0f} of the FP32 rate, datasheet and predicted "
        "overlap) but the rate of its CUDA cores, which rho then fixes. A GPU with another share of conversion or "
        "another FP16 rate may be answered otherwise than the region it lies in: its own answer is the colour of its "
        "marker."
    )
    return RegionMap(tuple(found), assumption)


_STRATEGY_SETS: tuple[tuple[Literal["plain", "all"], Collection[str] | None], ...] = (("plain", PLAIN), ("all", None))


def _leading_points(workload: WorkloadRecord) -> list[WorkloadPoint]:
    first: dict[str, WorkloadPoint] = {}
    for point in workload.points:
        first.setdefault(point.phase, point)
    return list(first.values())


def _scaled(figure: Measurement, factor: float) -> Measurement:
    """A CUDA-core figure at another rate; every other figure as it is."""
    if figure.name not in ("ffma", *CUDA_CORE) or figure.value is None or figure.per_clk_per_sm is None:
        return figure
    return figure.model_copy(update={"value": figure.value * factor, "per_clk_per_sm": figure.per_clk_per_sm * factor})


def _staircase(
    pool: Sequence[Candidate], fp16: Candidate, index: int, prior: QualityPrior
) -> list[tuple[float, float, Format, Granularity]]:
    """(low, high, format, granularity) of the best quality for every wanted speed-up at one point, from 1 upwards."""
    speed = {id(c): fp16.point_us[index] / c.point_us[index] for c in pool}
    remaining = [c for c in pool if speed[id(c)] > 1]
    steps: list[tuple[float, Format, Granularity]] = []  # up to this speed-up: that choice
    while remaining:
        best = best_quality(remaining, lambda c: c.us, prior)
        reach = speed[id(best)]
        steps.append((reach, best.format, best.granularity))
        remaining = [c for c in remaining if speed[id(c)] > reach]
    stairs, low = [], 1.0
    for (format, granularity), run in groupby(steps, key=lambda step: step[1:]):
        high = max(step[0] for step in run)
        stairs.append((low, high, format, granularity))
        low = high
    return [*stairs, (low, math.inf, "fp16", "none")]
