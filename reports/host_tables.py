"""The GPUs of one host as tables and sentences: what terminal and page show. Pure functions of records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apex4_probe.deployment import Measurement, Profile
from apex4_probe.host_records import Host, HostGpu, Odd, OddFigure
from apex4_probe.reports import wording
from apex4_probe.reports.link_tables import link_facts_table, link_table
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

CLOCK_ONLY = "clock_below_maximum"  # says no more than the column of clocks
ROLES = {"int8": "INT8 MMA", "fp16": "FP16 MMA", "copy": "memory copy", "host": "host to GPU"}


@dataclass(frozen=True)
class HostSection:
    """What the page says of a host before it compares its GPUs."""

    headline: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    all_reduce: str


def host_section(host: Host, profiles: Mapping[int, Profile]) -> HostSection:
    """``profiles``: those that were measured, by CUDA's number."""
    tables = [host_table(host, profiles), together_table(host), link_table(host), link_facts_table(host)]
    shown = tuple(table for table in tables if table.rows)
    return HostSection(headline(host), tuple(sentences(host)), shown, all_reduce(host))


def headline(host: Host) -> str:
    """How many GPUs were measured, which were not, and which are the odd ones."""
    measured, total = len(host.measured), len(host.gpus)
    count = f"{measured} of {total} GPUs measured" if measured < total else f"{total} GPUs measured"
    failed = [gpu.label for gpu in host.gpus if gpu.failed]
    parts = [count, *([f"{_and(failed)} failed"] if failed else [])]
    odd = [f"GPU {item.index}" for item in host.odd]
    if odd:
        verb, others = "differs" if len(odd) == 1 else "differ", "others" if measured > 2 else "other"
        parts.append(f"{_and(odd)} {verb} from the {others} of {'its' if len(odd) == 1 else 'their'} model")
    elif measured > 1:
        models = {(gpu.name, gpu.mig) for gpu in host.measured}
        parts.append(
            "no two are of one model, so nothing here tells whether one is slow"
            if len(models) == measured
            else "none differs from another of its model by more than the spread"
        )
    return "; ".join(parts) + "."


def sentences(host: Host) -> list[str]:
    """Each odd GPU with its reasons, slow links, and what went wrong."""
    told = [odd_sentence(item) for item in host.odd]
    told += [f"The link of {wording.prose(text)}." for text in host.poor_links]
    told += [f"The link of {wording.prose(text)}." for text in host.links_failed]
    told += [
        f"{gpu.label} was not measured together with the others: {wording.prose(gpu.together_failed)}."
        for gpu in host.gpus
        if gpu.together_failed
    ]
    return told


def all_reduce(host: Host) -> str:
    """What tensor parallelism over these links would cost; empty where no link was measured."""
    return wording.prose(host.all_reduce or "")


def odd_sentence(odd: Odd) -> str:
    """``GPU 3 differs from GPU 0 in 12 of 70 figures: …. What the profiles show of a cause: ….``

    Of each kind of figure the worst is named and the others are counted: one cause moves a whole kind alike.
    """
    differs = f"GPU {odd.index} differs from GPU {odd.reference}"
    parts = []
    if odd.figures:
        kinds: dict[str, list[OddFigure]] = {}
        for figure in odd.figures:
            kinds.setdefault(_kind(figure.name), []).append(figure)
        shown = "; ".join(f"{len(found)} of {kind}, worst {_figure(found[0])}" for kind, found in kinds.items())
        parts.append(f"{differs} in {len(odd.figures)} of {odd.compared} figures: {shown}")
        if not any(figure.beyond_cards for figure in odd.figures):
            parts.append("That is more than the spread, and no more than two cards of one name differ by")
        if odd.causes:
            parts.append(f"What the profiles show of a cause: {wording.prose('; '.join(odd.causes))}")
        elif any(figure.shortfall for figure in odd.figures):
            parts.append("Nothing that the profiles record explains it: exchange slots or cards before blaming either")
    differences = [text for text in odd.differences if text not in odd.causes]
    if differences:
        begin = "It is also set up differently" if odd.figures else f"{differs} in how it is set up, and in no figure"
        parts.append(f"{begin}: {wording.prose('; '.join(differences))}")
    return ". ".join(parts) + "."


def host_table(host: Host, profiles: Mapping[int, Profile]) -> Table:
    """One row a GPU, for one screen: sustained rates, bandwidth, and the conditions that they were measured under."""
    names = {gpu.name for gpu in host.gpus}
    mixed = len(names) > 1 or any(gpu.mig for gpu in host.gpus)
    odd = {item.index: item for item in host.odd}
    rows = []
    for gpu in host.gpus:
        if gpu.profile is None or gpu.index is None:
            rows.append(Row((_label(gpu),), remark=f"not measured: {wording.prose(gpu.reason or 'no reason given')}"))
            continue
        rows.append(Row(_cells(gpu, profiles[gpu.index], odd.get(gpu.index), mixed)))
    model = ["model"] if mixed else []
    titles = ["GPU", *model, "#INT8 TOPS", "#FP16 TFLOPS", "#copy GB/s", "#host GB/s"]
    titles += ["#MHz", "#W", "#°C", "throttle", "verdict", "#odd"]
    name = "GPUs of this host" if mixed else f"{len(host.gpus)} x {wording.clean(names.pop())}"
    caption = (
        "Each alone, the others idle. INT8, FP16: sustained, random operands; MHz, W, °C and throttle reasons are "
        "those of FP16. Copy: within device memory; host: from pinned host memory. Odd: the worst figure over that of "
        "the most typical GPU of its model."
    )
    return Table(name, columns_of(*titles), tuple(rows), caption)


def _cells(gpu: HostGpu, profile: Profile, odd: Odd | None, mixed: bool) -> tuple[str, ...]:
    int8, fp16 = (tensor(profile, operand) for operand in ("s8", "f16"))
    model = wording.clean(gpu.name.removeprefix("NVIDIA ")) + (f", MIG {wording.clean(gpu.mig)}" if gpu.mig else "")
    at = fp16 or int8
    conditions = (None, None, None) if at is None else (at.sm_clock_mhz, at.power_w, at.temperature_c)
    return (
        _label(gpu),
        *([model] if mixed else []),
        _value(int8),
        _value(fp16),
        _value(_find(profile, "memory.copy")),
        _value(_find(profile, "host.to_device")),
        *(_whole(value) for value in conditions),
        ABSENT if at is None else _throttle(at),
        wording.choice(profile.decision.format, profile.decision.granularity),
        _oddness(odd),
    )


def together_table(host: Host) -> Table:
    """One row a load and GPU: alone, all at once, the ratio, and what happened to clock and power."""
    rows = []
    for role, name in ROLES.items():
        members = [(gpu, pair) for gpu in host.gpus for pair in gpu.together if pair.role == role]
        if members:
            rows.append(Row((name,), section=True))
        for gpu, pair in members:
            alone, at_once = pair.alone, pair.together
            if pair.ratio is None:
                why = at_once.unsupported or alone.unsupported or "no figure"
                rows.append(Row((_label(gpu),), remark=wording.prose(why)))
                continue
            rows.append(
                Row(
                    (
                        _label(gpu),
                        f"{_value(alone)} {alone.unit}",
                        _value(at_once),
                        wording.times(pair.ratio),
                        _change(alone.sm_clock_mhz, at_once.sm_clock_mhz),
                        _change(alone.power_w, at_once.power_w),
                        _change(alone.temperature_c, at_once.temperature_c),
                        _throttle(at_once),
                    )
                )
            )
    titles = ("GPU", "#alone", "#at once", "#ratio", "#MHz", "#W", "#°C", "throttle at once")
    caption = (
        "The same load by the same process, first with the other GPUs idle, then on all at once; "
        f"{host.together_s or 0:g} s each, of which the second half counts. Pairs: alone → at once."
    )
    return Table("All GPUs at once", columns_of(*titles), tuple(rows), caption)


def tensor(profile: Profile, operand: str) -> Measurement | None:
    """The fastest sustained Tensor Core figure of ``operand`` (s8, f16), on random operands, in hardware."""
    steady = [
        figure
        for figure in profile.measurements
        if figure.regime == "sustained"
        and figure.operands == "random"
        and figure.name.split(".")[1:2] == [operand]
        and figure.value
        and not figure.emulated
    ]
    return max(steady, key=lambda figure: figure.value or 0.0, default=None)


def _find(profile: Profile, name: str) -> Measurement | None:
    return next((figure for figure in profile.measurements if figure.name == name), None)


def _value(figure: Measurement | None) -> str:
    return ABSENT if figure is None else wording.number(figure.value, figure.origin)


def _whole(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0f}"


def _change(before: float | None, after: float | None) -> str:
    return ABSENT if before is None or after is None else f"{before:.0f} → {after:.0f}"


def _throttle(figure: Measurement) -> str:
    return wording.throttle(reason for reason in figure.throttle if reason != CLOCK_ONLY)


def _oddness(odd: Odd | None) -> str:
    if odd is None:
        return ABSENT
    return wording.times(odd.figures[0].ratio) if odd.figures else "set-up"


def _figure(figure: OddFigure) -> str:
    return (
        f"{wording.clean(figure.name)} at {figure.ratio:.2f} times ({wording.number(figure.here)} to "
        f"{wording.number(figure.reference)} {wording.clean(figure.unit)}; noise explains {figure.bound:.1%})"
    )


def _kind(name: str) -> str:
    if name.startswith(("mma.", "wgmma.")):
        return "Tensor Core"
    first = name.partition(".")[0]
    return {"memory": "memory", "l2": "L2", "shared": "shared memory", "host": "host link", "launch": "launches"}.get(
        first, "CUDA Core"
    )


def _label(gpu: HostGpu) -> str:
    return str(gpu.index) if gpu.index is not None else f"smi {gpu.nvml_index}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
