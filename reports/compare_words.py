"""Names and marks that the comparison's tables and figures share."""

from __future__ import annotations

from apex4_probe.compare_records import Comparison, Entry
from apex4_probe.deployment import Decision, Format, Granularity, Origin, RhoFigure
from apex4_probe.reports import wording

LABEL_LIMIT = 60


def label(entry: Entry, limit: int = LABEL_LIMIT) -> str:
    return wording.clip(entry.subject.label, limit)


def beside_origin(entry: Entry) -> str:
    """The label where a column says the origin anyway."""
    return wording.clip(entry.subject.label.removesuffix(f", {origin(entry)}"), LABEL_LIMIT)


def origin(entry: Entry) -> str:
    return entry.subject.profile.origin


def is_measured(entry: Entry) -> bool:
    return entry.subject.profile.origin == "measured"


def verdict(decision: Decision) -> str:
    """``fine (g128)``, ``W4A16``, ``stay in FP16``."""
    return named(decision.format, decision.granularity)


def named(format: Format, granularity: Granularity) -> str:
    word = wording.verdict_word(format, granularity)
    return word if word not in ("fine", "coarse") else f"{word} ({granularity})"


def speedup(decision: Decision) -> str:
    """``~1.69× (1.00–1.80)``; ``1.69×`` where it was timed."""
    if decision.speedup_fp16 is None or decision.format == "fp16":
        return wording.ABSENT
    if decision.speedup_fp16_interval is None:
        return short_speedup(decision)
    return with_interval(decision.speedup_fp16, decision.speedup_fp16_interval)


def short_speedup(decision: Decision) -> str:
    """Without its interval, which only a plan has whose GEMMs were not all timed."""
    return wording.times(decision.speedup_fp16, "predicted" if decision.speedup_fp16_interval else "measured")


def with_interval(value: float, interval: tuple[float, float], origin: Origin = "predicted") -> str:
    text = wording.times(value, origin)
    low, high = (f"{bound:.2f}" for bound in sorted(interval))
    return text if low == high else f"{text} ({low}–{high})"  # without CUDA-core work there is nothing to overlap


def rho_shown(figure: RhoFigure | None) -> tuple[float | None, Origin]:
    """The figure to draw: measured, else the datasheet's, else per clock; and where it is from."""
    if figure is None or not figure.usable:
        return None, "predicted"
    if figure.measured is not None:
        return figure.measured, "measured"
    if figure.datasheet is not None:
        return figure.datasheet, "datasheet"
    return figure.per_clock, "predicted"


def unusable(figure: RhoFigure | None) -> str:
    """Why there is no rho, in two or three words; empty where there is one."""
    if figure is None:
        return wording.ABSENT
    if figure.usable:
        return ""
    reason = figure.reason.lower()
    if reason.startswith("emulated"):
        return "emulated"
    return "in hardware" if reason.startswith("block scales") else "not usable"


def points(comparison: Comparison) -> list[tuple[str, int]]:
    return [(point.phase, point.m) for point in comparison.workload.points]


def point_name(phase: str, m: int) -> str:
    return f"decode at {m}" if phase == "decode" else f"prefill of {m}"
