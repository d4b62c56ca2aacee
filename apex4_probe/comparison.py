"""Profiles side by side: one question put to all of them, every figure with its origin. Pure functions over records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from apex4_probe.balance import VARIANTS, Variant, strategy_balance
from apex4_probe.candidates import PUBLISHED_DETAIL, Candidate, CandidateMaker
from apex4_probe.compare_changes import pairs
from apex4_probe.compare_rates import rates_of
from apex4_probe.compare_records import Answer, Comparison, Cost, Entry, Flag, Gain, PhaseTime, Subject
from apex4_probe.compare_regions import PLAIN, region_map
from apex4_probe.datasheets import for_device
from apex4_probe.deployment import Format, Granularity, LayerPlan, Profile, WorkloadRecord
from apex4_probe.errors import ApexError
from apex4_probe.explanation import LISTED_SHORTFALL
from apex4_probe.field import field_of
from apex4_probe.gemm_time import GemmTimer
from apex4_probe.models import Model
from apex4_probe.planner import plan
from apex4_probe.quality import quality_prior
from apex4_probe.rates import Rates, worst

if TYPE_CHECKING:
    import pandas as pd

GAINS: tuple[tuple[Format, Granularity], ...] = (
    ("w4a4", "channel"), ("w4a4", "a128i"), ("w4a4", "g128"), ("w4a4", "mixed"),
    ("w4a8", "channel"), ("w4a8", "g128i"), ("w4a8", "g128"), ("w4a16", "g128"), ("fp8", "none"),
)  # fmt: skip
HOURS_PER_US = 1 / 3.6e9
MILLION = 1e6


def labelled(profiles: Sequence[tuple[Profile, str]]) -> list[Subject]:
    """Subjects with unique labels: the device's name, its origin where that tells two apart, else a number."""
    names = [_name(profile) for profile, _ in profiles]
    with_origin = [
        f"{name}, {profile.origin}" if names.count(name) > 1 else name
        for name, (profile, _) in zip(names, profiles, strict=True)
    ]
    subjects = []
    for index, (label, (profile, where)) in enumerate(zip(with_origin, profiles, strict=True)):
        number = f" #{with_origin[: index + 1].count(label)}" if with_origin.count(label) > 1 else ""
        subjects.append(Subject(label + number, profile, where))
    return subjects


def _name(profile: Profile) -> str:
    device = profile.device
    return device.name.removeprefix("NVIDIA ") + (f", MIG {device.mig}" if device.mig else "")


def compare_profiles(
    subjects: Sequence[Subject],
    workload: WorkloadRecord,
    model: Model,
    *,
    prices: Mapping[str, float] | None = None,
    remarks: Sequence[str] = (),
    command: str = "",
) -> Comparison:
    """Put ``workload`` to every subject, from its stored measurements. ``model``: one rank's shapes.

    ``prices``: US dollars per hour by label. A subject for which no plan can be made keeps its row and says why.
    """
    entries = [_entry(subject, workload, model, (prices or {}).get(subject.label)) for subject in subjects]
    return Comparison(
        entries=tuple(entries),
        workload=workload,
        map=region_map(workload, model, quality_prior()),
        pairs=tuple(pairs(subjects)),
        remarks=tuple(remarks),
        command=command,
    )


def _entry(subject: Subject, workload: WorkloadRecord, model: Model, price: float | None) -> Entry:
    profile = subject.profile
    try:
        rates = Rates.of(profile.device, profile.measurements)
    except ApexError as error:
        return Entry(subject, (), None, str(error), ())
    throughput = rates_of(rates)
    try:
        answer = _answer(profile, rates, workload, model)
    except (ApexError, KeyError, ValueError, ZeroDivisionError) as error:
        return Entry(subject, throughput, None, _sentence(error), tuple(_flags(rates)))
    flags = [*_flags(rates)]
    if answer.decision.fits_memory is False:
        flags.append(Flag("does not fit", "The weights of the chosen plan do not fit the device's memory; see --tp."))
    costs = () if price is None else tuple(_cost(time, price, workload.tensor_parallel) for time in answer.times)
    return Entry(subject, throughput, answer, "", tuple(flags), costs)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, ApexError) else f"its figures do not suffice for a plan ({error})"


def _answer(profile: Profile, rates: Rates, workload: WorkloadRecord, model: Model) -> Answer:
    device, figures, co_issue = profile.device, profile.measurements, profile.co_issue
    full = plan(device, figures, co_issue, workload, model, timings=profile.gemm_timings)
    plain = plan(device, figures, co_issue, workload, model, strategies=PLAIN).w4a4
    prior = quality_prior()
    field = field_of(rates, co_issue, workload, model, None, prior, profile.gemm_timings)
    strategies = _strategies(rates, profile)
    gains = []
    for format, granularity in GAINS:
        for candidate in field.candidates:
            if _is(candidate, format, granularity):
                gains.append(_gain(candidate, field.fp16, strategies.get((format, granularity), "")))
    if any(_is(candidate, "w4a4", "g128") for candidate in field.candidates):
        gains.append(_gain(_plain_g128(rates, profile, workload, model), field.fp16, PLAIN[0]))
    return Answer(full.decision, full.w4a4, plain, full.layers, tuple(gains), _times(full.layers, workload))


def _plain_g128(rates: Rates, profile: Profile, workload: WorkloadRecord, model: Model) -> Candidate:
    """The paper's kernel everywhere. ValueError: some K cannot be packed."""
    costs = {}
    finer: tuple[Granularity, ...] = ("g128", "g64", "g32")  # where a layer's K is no multiple of 128
    for granularity in finer:
        cost = strategy_balance(rates, Variant("w4a4", granularity, PLAIN[0]), profile.co_issue)
        if cost is not None:
            costs[cost.format, cost.granularity] = cost
    points = tuple(workload.points)
    return CandidateMaker(GemmTimer(rates, costs), model, points, quality_prior(), lambda *_: "").uniform(
        "w4a4", "g128"
    )


def _is(candidate: Candidate, format: Format, granularity: Granularity) -> bool:
    """Of the mixes only the published one has a name."""
    same = (candidate.format, candidate.granularity) == (format, granularity)
    return same and (granularity != "mixed" or candidate.detail == PUBLISHED_DETAIL)


def _strategies(rates: Rates, profile: Profile) -> dict[tuple[Format, Granularity], str]:
    """The dequantisation strategy that is cheapest here, of each format and granularity."""
    best: dict[tuple[Format, Granularity], tuple[float, str]] = {}
    for variant in VARIANTS:
        cost = strategy_balance(rates, variant, profile.co_issue)
        if cost is not None:
            key, offer = (variant.format, variant.granularity), (cost.cycles_expected, variant.strategy)
            best[key] = min(best.get(key, offer), offer)
    return {key: strategy for key, (_, strategy) in best.items()}


def _gain(candidate: Candidate, fp16: Candidate, strategy: str) -> Gain:
    return Gain(
        candidate.format,
        candidate.granularity,
        strategy,
        speedup=candidate.speedup_over(fp16),
        low=fp16.us / candidate.high,
        high=fp16.us / candidate.low,
        expected_loss=candidate.loss,
        origin="measured" if candidate.timed and fp16.timed else "predicted",
    )


def _times(layers: Sequence[LayerPlan], workload: WorkloadRecord) -> tuple[PhaseTime, ...]:
    found = []
    for index, point in enumerate(workload.points):
        times = [(layer.count, layer.times[index]) for layer in layers]
        found.append(
            PhaseTime(
                phase=point.phase,
                m=point.m,
                us=sum(count * time.us for count, time in times),
                us_low=sum(count * time.us_low for count, time in times),
                us_high=sum(count * time.us_high for count, time in times),
                us_fp16=sum(count * time.us_fp16 for count, time in times),
                origin=worst(time.origin for _, time in times),
            )
        )
    return tuple(found)


def _cost(time: PhaseTime, usd_per_hour: float, gpus: int) -> Cost:
    """A step at M tokens costs its time; all ``gpus`` of a tensor-parallel group are paid for."""
    per_us = usd_per_hour * gpus * HOURS_PER_US * MILLION / time.m
    return Cost(
        time.phase,
        time.m,
        usd=time.us * per_us,
        usd_low=time.us_low * per_us,
        usd_high=time.us_high * per_us,
        usd_fp16=time.us_fp16 * per_us,
        usd_per_hour=usd_per_hour,
    )


def _flags(rates: Rates) -> list[Flag]:
    facts, device, flags = rates.architecture, rates.device, []
    sheet = for_device(device.name)
    listed, per_clk = sheet.value("int4_tops") if sheet else None, facts.rates["mma.s4"].value
    if sheet and listed and per_clk and device.max_sm_clock_mhz:
        silicon = 2 * per_clk * device.sm_count * device.max_sm_clock_mhz / 1e6
        if listed < LISTED_SHORTFALL * silicon:
            sentence = f"Its datasheet lists {listed:g} INT4 TOPS, the architecture's rate gives {silicon:.0f}."
            flags.append(Flag("datasheet anomaly", f"{sentence} {sheet.note}".strip()))
    int4 = facts.support("mma.s4.m16n8k64")
    if rates.tensor("s4") is None and int4.level == "emulated":
        flags.append(Flag("INT4 emulated", f"No INT4 Tensor Core: {int4.reason}. What it measures is no INT4 rate."))
    if facts.block_scales_in_hardware:
        what = facts.block_scales_in_hardware
        sentence = f"Block scales are in hardware ({what}): integer rho does not apply, NVFP4 or MXFP4 is the question."
        flags.append(Flag("block scales in hardware", sentence))
    if not facts.kernels:
        flags.append(Flag("no kernels", f"No kernels of this project run there: {facts.kernels_reason}."))
    return flags


def tables_of(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """The comparison as lists of flat records, for pandas, CSV and JSON. Absent figures are None."""
    tables: dict[str, list[dict[str, Any]]] = {"profiles": [_row(entry) for entry in comparison.entries]}
    for name in ("throughput", "speedups", "times", "costs"):
        tables[name] = []
    for entry in comparison.entries:
        key = {"label": entry.subject.label, "profile_origin": entry.subject.profile.origin}
        answer = entry.answer
        tables["throughput"] += [{**key, **dataclasses.asdict(rate)} for rate in entry.rates]
        gains, times = (answer.gains, answer.times) if answer else ((), ())
        tables["speedups"] += [{**key, **dataclasses.asdict(gain), "origin": "predicted"} for gain in gains]
        tables["times"] += [{**key, **dataclasses.asdict(time)} for time in times]
        tables["costs"] += [{**key, **dataclasses.asdict(cost)} for cost in entry.costs]
    tables["regions"] = [
        {**dataclasses.asdict(r), "high": None if r.format == "fp16" else r.high} for r in comparison.map.regions
    ]
    tables["changes"] = [
        {"first": pair.first.label, "second": pair.second.label, **_renamed(dataclasses.asdict(change))}
        for pair in comparison.pairs
        for change in pair.changes
    ]
    return tables


def _renamed(change: dict[str, Any]) -> dict[str, Any]:
    values = {"first": "first_value", "second": "second_value"}
    return {values.get(name, name): value for name, value in change.items()}


def _row(entry: Entry) -> dict[str, Any]:
    profile, answer = entry.subject.profile, entry.answer
    row: dict[str, Any] = {
        "label": entry.subject.label,
        "device": profile.device.name,
        "mig": profile.device.mig,
        "origin": profile.origin,
        "where": entry.subject.where,
        "compute_capability": profile.device.compute_capability,
        "sm_count": profile.device.sm_count,
        "driver": profile.environment.driver,
        "created": profile.created,
        "tool_version": profile.tool_version,
    }
    kinds: tuple[Literal["int4", "int8"], ...] = ("int4", "int8")
    for kind in kinds:
        figure = profile.rho.get(kind)
        usable = figure if figure is not None and figure.usable else None
        for name in ("datasheet", "measured", "per_clock"):
            row[f"rho_{kind}_{name}"] = getattr(usable, name) if usable else None
        row[f"rho_{kind}_unusable"] = figure.reason if figure is not None and not figure.usable else None
    for name in ("decision", "w4a4", "plain"):
        decision = getattr(answer, name) if answer else None
        low, high = (decision.speedup_fp16_interval or (None, None)) if decision else (None, None)
        row[f"{name}_format"] = decision.format if decision else None
        row[f"{name}_granularity"] = decision.granularity if decision else None
        row[f"{name}_speedup"] = decision.speedup_fp16 if decision else None
        row[f"{name}_speedup_low"], row[f"{name}_speedup_high"] = low, high
    return {**row, "flags": "; ".join(flag.word for flag in entry.flags), "unplanned": entry.unplanned or None}


def frame(comparison: Comparison) -> pd.DataFrame:
    """One row a profile: device, origin, rho, and the answers for the comparison's workload."""
    import pandas as pd

    table: pd.DataFrame = pd.DataFrame(tables_of(comparison)["profiles"]).set_index("label")
    return table
