"""A profile as tables of text, the one source of what terminal and page show.

Every builder is a pure function of the profile. A cell is text that is safe to show anywhere once escaped for its
medium; a row that needs a sentence rather than cells carries it as ``remark``.
"""

from __future__ import annotations

from dataclasses import dataclass

from apex4_probe.deployment import Measurement, Profile, StrategyBalance
from apex4_probe.reports import wording

ABSENT = wording.ABSENT
PIPES = ("tensor", "fma", "alu", "conversion", "shared", "issue")
BALANCE_SCALE = 1000  # balance is shown per 1000 accumulators: 1/32 of a cycle reads 31.3


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = False
    name: bool = False  # identifiers: the last column to be squeezed where there is little room, so that none is broken


@dataclass(frozen=True)
class Row:
    cells: tuple[str, ...]  # as many as columns; only the first where there is a remark
    remark: str = ""  # stands in the place of all cells after the first
    section: bool = False  # a heading over the rows that follow
    predicted: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""


def columns_of(*titles: str) -> tuple[Column, ...]:
    """Columns from titles; a leading ``#`` makes a column of figures."""
    return tuple(Column(title.lstrip("#"), numeric=title.startswith("#")) for title in titles)


def device_table(profile: Profile) -> Table:
    """The GPU as NVML and CUDA describe it."""
    device = profile.device
    mib = device.memory_mib
    facts = {
        "name": wording.clean(device.name),
        "architecture": f"{wording.clean(device.architecture)}, compute capability {device.compute_capability}",
        "SMs": str(device.sm_count),
        "memory": None if mib is None else f"{mib} MiB",
        "L2 cache": None if device.l2_mib is None else f"{device.l2_mib:g} MiB",
        "MIG slice": "none (whole GPU)" if device.mig is None else wording.clean(device.mig),
        "ECC": None if device.ecc is None else ("on" if device.ecc else "off"),
        "power limit": None if device.power_limit_w is None else f"{device.power_limit_w:g} W",
        "highest SM clock": None if device.max_sm_clock_mhz is None else f"{device.max_sm_clock_mhz:g} MHz",
        "highest memory clock": None if device.max_memory_clock_mhz is None else f"{device.max_memory_clock_mhz:g} MHz",
    }
    rows = tuple(Row((label, text or "not reported")) for label, text in facts.items())
    return Table("Device", columns_of("property", "value"), rows)


def environment_table(profile: Profile) -> Table:
    """Driver, libraries, and how the profile came about."""
    environment, provenance = profile.environment, profile.provenance
    facts = {
        "driver": environment.driver,
        "CUDA of the driver": environment.cuda_driver,
        "NVRTC": environment.nvrtc,
        "CuPy": environment.cupy,
        "torch": environment.torch,
        "Python": environment.python,
        "platform": environment.platform,
        "disassembler": environment.disassembler,
        "tool": f"apex4-probe {profile.tool_version}",
        "commit": provenance.commit,
        "created": profile.created,
        "mode": provenance.mode,
        "duration": None if provenance.duration_s is None else f"{provenance.duration_s:.1f} s",
        "schema": profile.schema_version,
        "checksum": profile.checksum,
    }
    rows = tuple(Row((label, wording.clean(text) if text else ABSENT)) for label, text in facts.items())
    return Table("Environment", columns_of("what", "value"), rows)


THROUGHPUT_CAPTION = (
    "Spread is (90th − 10th percentile) / median. Peak is the physical one per clock; the clock is the SM's while it "
    "was measured. ~ marks a predicted figure."
)


def family(measurement: Measurement) -> str:
    if measurement.name.startswith(("mma.", "wgmma.")):
        return "Tensor Core"
    if measurement.name.startswith("launch."):
        return "Launch latency"
    return "Memory" if measurement.unit == "GB/s" else "CUDA Core"


def _conditions(measurement: Measurement) -> str:
    return ", ".join(part for part in (measurement.operands, measurement.regime) if part) or ABSENT


def is_primary(measurement: Measurement) -> bool:
    """The figure a name stands for: random operands (none outside MMAs), burst."""
    return measurement.operands in ("random", None) and measurement.regime in ("burst", None)


def _value(measurement: Measurement) -> str:
    return f"{wording.number(measurement.value, measurement.origin)} {wording.clean(measurement.unit)}"


def _per_clock(measurement: Measurement) -> str:
    if measurement.per_clk_per_sm is None:
        return ABSENT
    figure = wording.number(measurement.per_clk_per_sm, measurement.origin)
    return f"{figure} {measurement.per_clk_unit}" if measurement.per_clk_unit else figure


def _clock(mhz: float | None) -> str:
    return ABSENT if mhz is None else f"{mhz:.0f}"


def throughput_table(profile: Profile) -> Table:
    """Every measurement with everything that a reader may doubt; what cannot be had here says why."""
    rows: list[Row] = []
    for heading in ("Tensor Core", "CUDA Core", "Memory", "Launch latency"):
        members = [measurement for measurement in profile.measurements if family(measurement) == heading]
        if members:
            rows.append(Row((heading,), section=True))
        rows.extend(_throughput_row(measurement) for measurement in members)
    columns = columns_of(
        "name", "run", "#value", "#spread", "#per clk and SM", "#of peak", "#SM MHz", "throttle", "SASS", "origin"
    )
    return Table("Throughput", columns, tuple(rows), THROUGHPUT_CAPTION)


def _throughput_row(measurement: Measurement) -> Row:
    name = wording.clean(measurement.name)
    if measurement.value is None:
        return Row((name,), remark=f"unsupported: {wording.prose(measurement.unsupported or 'no reason given')}")
    cells = (
        name,
        _conditions(measurement),
        _value(measurement),
        wording.percent(measurement.spread),
        _per_clock(measurement),
        wording.percent(measurement.peak_fraction),
        _clock(measurement.sm_clock_mhz),
        wording.throttle(measurement.throttle) if measurement.origin == "measured" else ABSENT,
        wording.sass_check(measurement),
        measurement.origin,
    )
    return Row(cells, predicted=measurement.origin == "predicted")


def rho_table(profile: Profile) -> Table:
    """The paper's rho; a figure that is not usable shows its reason and no number."""
    rows = []
    for kind, figure in profile.rho.items():
        label = {"int4": "rho (INT4)", "int8": "rho (INT8)"}[kind]
        if figure.usable:
            values = (wording.number(figure.datasheet), wording.number(figure.measured))
            per_clock = wording.number(figure.per_clock, profile.origin)
            rows.append(Row((label, *values, per_clock, wording.rho_reading(figure))))
        else:
            reason = wording.prose(figure.reason)
            reading = wording.rho_reading(figure)
            told = reason[len("emulated") :].lstrip(":,; ") if reading.startswith("emulated") else reason
            rows.append(Row((label,), remark=f"{reading} ({told})" if told else reading))
    caption = "Tensor Core over FP32 throughput, two operations per MAC and per FMA; per clock: MAC over FFMA of an SM."
    columns = columns_of("ratio", "#datasheet", "#measured", "#per clock", "reading")
    return Table("rho", columns, tuple(rows), caption)


def balance_table(profile: Profile) -> Table:
    """What each dequantisation strategy costs, pipe by pipe, in SM cycles per 1000 accumulators and 128 of K."""
    rows = [_balance_row(strategy) for strategy in profile.balance]
    titles = ["format", "strategy", "MMA", *(f"#{pipe}" for pipe in PIPES)]
    titles += ["#full overlap", "#expected", "#no overlap", "#over channel", "bound by", "#overlap", "origin"]
    caption = (
        "SM cycles per 1000 accumulators and 128 of K on each pipe; the expected time lies between full overlap of the "
        "pipes and none, where the overlap puts it. Over channel: against the same format with one scale per channel."
    )
    return Table("Dequantisation balance", columns_of(*titles), tuple(rows), caption)


def _balance_row(strategy: StrategyBalance) -> Row:
    def cycles(value: float | None) -> str:
        return ABSENT if value is None else wording.number(BALANCE_SCALE * value, strategy.origin)

    cells = (
        wording.choice(strategy.format, strategy.granularity),
        wording.strategy_name(strategy.strategy),
        wording.clean(strategy.mma),
        *(cycles(strategy.pipes.get(pipe)) for pipe in PIPES),
        cycles(strategy.cycles_full_overlap),
        cycles(strategy.cycles_expected),
        cycles(strategy.cycles_no_overlap),
        wording.times(strategy.over_channel, strategy.origin),
        wording.clean(strategy.bound_by),
        f"{wording.number(strategy.overlap)} ({strategy.overlap_origin})",
        strategy.origin,
    )
    return Row(cells, predicted=strategy.origin == "predicted")


def rejected_table(profile: Profile) -> Table:
    rows = tuple(Row((wording.clean(entry.variant), wording.prose(entry.why))) for entry in profile.rejected)
    return Table("Rejected", columns_of("variant", "why"), rows)
