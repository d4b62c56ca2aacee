"""The verdict per layer, its times and its reasons as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from apex4_probe.deployment import LayerPlan, LayerTime, Origin, Profile
from apex4_probe.reports import verdict, wording
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

LAYER_CAPTION = (
    "Speed-up over FP16 at M tokens, activation quantisation counted in; in brackets from no overlap of the pipes to "
    "full overlap, where it was not timed. Margin: time of the runner-up over ours, minus 1."
)


def speedup(time: LayerTime) -> float | None:
    return time.us_fp16 / time.us if time.us > 0 else None


def speedup_interval(time: LayerTime) -> tuple[float, float] | None:
    """Speed-up over FP16 with no overlap of the pipes, and with full overlap."""
    if time.us_low <= 0 or time.us_high <= 0:
        return None
    return time.us_fp16 / time.us_high, time.us_fp16 / time.us_low


def speedup_text(time: LayerTime) -> str:
    text = wording.times(speedup(time), time.origin)
    bounds = speedup_interval(time)
    if bounds is None or wording.times(bounds[0]) == wording.times(bounds[1]):
        return text
    return f"{text} ({bounds[0]:.2f}–{bounds[1]:.2f})"


@dataclass(frozen=True)
class WorkloadSpeedup:
    """Speed-up over FP16 of all layers together. ``low``: no overlap of the pipes; ``high``: full overlap."""

    label: str
    value: float
    low: float
    high: float
    origin: Origin


def workload_speedups(profile: Profile) -> list[WorkloadSpeedup]:
    """Of every point of the workload, from the layers' times and counts, and of the whole as the verdict states it."""
    found = []
    for point in profile.workload.points:
        times = [(layer.count, time) for layer in profile.layers for time in layer.times if time.m == point.m]
        if not times or len(times) < len(profile.layers):
            continue
        fp16 = sum(count * time.us_fp16 for count, time in times)
        spans = [sum(count * us for count, us in column) for column in _columns(times)]
        if min(spans) > 0:
            origin: Origin = "measured" if all(time.origin == "measured" for _, time in times) else "predicted"
            us, best, slowest = spans
            found.append(
                WorkloadSpeedup(f"{point.phase}, M = {point.m}", fp16 / us, fp16 / slowest, fp16 / best, origin)
            )
    whole = profile.decision.speedup_fp16
    if whole is not None and profile.layers:
        low, high = sorted(profile.decision.speedup_fp16_interval or (whole, whole))
        found.append(WorkloadSpeedup("whole workload", whole, low, high, verdict.times_origin(profile)))
    return found


def _columns(times: list[tuple[int, LayerTime]]) -> list[list[tuple[int, float]]]:
    return [
        [(count, time.us) for count, time in times],
        [(count, time.us_low) for count, time in times],
        [(count, time.us_high) for count, time in times],
    ]


def batch_sizes(layers: Iterable[LayerPlan]) -> list[int]:
    return sorted({time.m for layer in layers for time in layer.times})


def layer_table(profile: Profile) -> Table:
    """The verdict per layer role, one column for every M."""
    sizes = batch_sizes(profile.layers)
    rows = []
    for layer in profile.layers:
        by_m = {time.m: time for time in layer.times}
        speedups = (speedup_text(by_m[m]) if m in by_m else ABSENT for m in sizes)
        cells = (*_layer_head(layer), *speedups, wording.percent(layer.margin))
        rows.append(Row(cells, predicted=any(time.origin == "predicted" for time in layer.times)))
    titles = ["role", "#N × K", "format", "granularity", *(f"#M = {m}" for m in sizes), "#margin"]
    return Table("Verdict per layer", columns_of(*titles), tuple(rows), LAYER_CAPTION)


def _layer_head(layer: LayerPlan) -> tuple[str, str, str, str]:
    return layer.role, f"{layer.n} × {layer.k}", wording.format_name(layer.format), layer.granularity


def layer_times_table(profile: Profile) -> Table:
    """Every time behind the verdict per layer, in microseconds."""
    rows = []
    for layer in profile.layers:
        for time in layer.times:
            low, high = (None, None) if time.origin == "measured" else (time.us_low, time.us_high)
            figures = (time.us, low, high, time.us_quantise, time.us_fp16)
            cells = (
                *_layer_head(layer),
                str(layer.count),
                str(time.m),
                *(wording.number(figure, time.origin) for figure in figures),
                speedup_text(time),
                wording.clean(time.bound_by),
                wording.clean(time.kernel or ABSENT, wording.KERNEL_LIMIT),
                time.origin,
            )
            rows.append(Row(cells, predicted=time.origin == "predicted"))
    titles = ["role", "#N × K", "format", "granularity", "#count", "#M", "#us", "#full overlap", "#no overlap"]
    titles += ["#quantising", "#FP16 us", "#speed-up", "bound by", "kernel", "origin"]
    return Table(
        "Times per layer",
        columns_of(*titles),
        tuple(rows),
        "Microseconds a layer, its share by N where it runs in a fused GEMM; us includes quantising the activations. "
        "Overlap of the pipes and what binds are the model's; a time that was measured has no such span.",
    )


def layer_reasons(profile: Profile) -> list[tuple[str, str]]:
    """Roles that share a reason, and the reason."""
    roles: dict[str, list[str]] = {}
    for layer in profile.layers:
        known = roles.setdefault(wording.prose(layer.reason), [])
        if layer.role not in known:
            known.append(layer.role)
    return [(", ".join(names), reason) for reason, names in roles.items() if reason]
