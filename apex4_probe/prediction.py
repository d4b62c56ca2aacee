"""What a GPU that is not here would measure: from datasheet, architecture and the nearest measured GPU's curves.

Listed figures are marked ``datasheet``; whatever is computed, assumed or carried over from another GPU ``predicted``.
"""

from __future__ import annotations

from collections.abc import Mapping

from apex4_probe.architecture import Architecture, architecture
from apex4_probe.datasheets import Datasheet, datasheets
from apex4_probe.deployment import CoIssue, Device, Measurement
from apex4_probe.errors import ApexError
from apex4_probe.overlap import PROXIES, carry_over
from apex4_probe.rates import GRAPH_LAUNCH_US, READ_OVER_COPY, READ_OVER_DATASHEET, Operand, Rates
from apex4_probe.shipped import Family

LISTED_MMAS = {  # the datasheet figure that bounds each MMA
    "mma.s4": "int4_tops", "mma.s8": "int8_tops", "mma.f16": "fp16_tflops", "mma.bf16": "fp16_tflops",
    "mma.e4m3": "fp8_tflops", "mma.fp4": "fp4_tflops",
}  # fmt: skip
CUDA_CORE = ("fadd", "fmul", "hfma2", "imad", "lop3", "shf", "prmt", "i2f")
SAME_RATE = (
    0.12  # closer than this to the architecture's rate, the listing is at another clock (H100: 1830 of 1980 MHz)
)
OPERATIONS = 2  # of a MAC or an FFMA
# What a co-issue point has to be native on, to be worth carrying over: (family, operand) -> MMA
CO_ISSUE_LOOPS: dict[tuple[Family, Operand], str] = {
    ("mma", "s4"): "mma.s4.m16n8k64", ("mma", "s8"): "mma.s8.m16n8k32", ("wgmma", "s8"): "wgmma.s8.m64n256k32.rs",
}  # fmt: skip


def predict_device(sheet: Datasheet) -> tuple[Device, list[Measurement], list[CoIssue]]:
    """Device, measurements and co-issue points as ``run`` would return them, none of them marked measured.

    ApexError: the datasheet lists too little (no memory bandwidth, or no neighbour to take SM count and clock from).
    """
    facts = architecture(sheet.compute_capability)
    device = _device(sheet, facts)
    clock = device.max_sm_clock_mhz or 0.0
    figures = [_mma(sheet, facts, name, device.sm_count, clock) for name in facts.mma_probes]
    figures.append(_ffma(sheet, facts, device.sm_count, clock))
    figures += [_instruction(facts, name, device.sm_count, clock) for name in CUDA_CORE]
    figures += [*_memory(sheet), _shared(facts, device.sm_count, clock), _launch()]
    return device, figures, _co_issue(device, facts, figures)


def _device(sheet: Datasheet, facts: Architecture) -> Device:
    sms, clock = _sms_and_clock(sheet, facts)
    memory, cache = sheet.value("memory_gb"), sheet.value("l2_mb")
    return Device(
        name=sheet.name,
        compute_capability=sheet.compute_capability,
        architecture=facts.name,
        sm_count=sms,
        memory_mib=int(memory * 1e9 / 2**20) if memory else None,
        l2_mib=cache,
        power_limit_w=sheet.value("power_w"),
        max_sm_clock_mhz=clock,
    )


def _sms_and_clock(sheet: Datasheet, facts: Architecture) -> tuple[int, float]:
    """Listed; else the one that is missing in FP32 TFLOPS = SMs x lanes x 2 x clock; else SMs scaled from a sibling."""
    sms, clock, fp32 = sheet.value("sm_count"), sheet.value("boost_clock_mhz"), sheet.value("fp32_tflops")
    lanes = facts.rates["ffma"].for_prediction
    if sms and clock:
        return int(sms), clock
    if not fp32 or not lanes:
        raise ApexError(
            f"{sheet.name}: its datasheet lists neither SM count and clock nor an FP32 rate to derive them from"
        )
    per_sm_mhz = OPERATIONS * lanes / 1e6  # TFLOPS of one SM at 1 MHz
    if sms:
        return int(sms), fp32 / (sms * per_sm_mhz)
    if clock:
        return max(1, round(fp32 / (clock * per_sm_mhz))), clock
    for other in datasheets():
        near = (other.value("sm_count"), other.value("boost_clock_mhz"), other.value("fp32_tflops"))
        if _family(other) == _family(sheet) and near[0] and near[1] and near[2]:
            return max(1, round(near[0] * fp32 / near[2])), near[1]
    raise ApexError(f"{sheet.name}: its datasheet lists no SM count, and no device of its family does")


def _family(sheet: Datasheet) -> str:
    return sheet.compute_capability.partition(".")[0]


def _mma(sheet: Datasheet, facts: Architecture, name: str, sms: int, clock: float) -> Measurement:
    support = facts.support(name)
    emulated = support.level == "emulated"
    unit = "TOPS" if support.rate in ("mma.s4", "mma.s8") else "TFLOPS"
    common = {"name": name, "instruction": support.sass, "emulated": emulated, "unit": unit}
    if emulated:
        return _unsupported(common, f"emulated: {support.reason}")
    rate = facts.rates[support.rate]
    listed = sheet.value(LISTED_MMAS[support.rate]) if support.rate in LISTED_MMAS else None
    if facts.tcgen05:
        figure = f"; the {listed:g} that the datasheet lists are tcgen05's" if listed else ""
        return _unsupported(common, f"what mma.sync reaches here is not documented{figure}")
    mma_sync = facts.mma_sync_fraction if name.startswith("mma.") else None
    if listed:
        per_clk, at = _rate_and_clock(listed, rate.for_prediction, sms, clock)
        source = sheet.figures[LISTED_MMAS[support.rate]].source
        derived = source.startswith(("formula", "derived")) or support.rate == "mma.bf16"
        origin = "predicted" if derived else "datasheet"
        source = f"as FP16: {source}" if support.rate == "mma.bf16" else source
    elif rate.for_prediction:
        per_clk, at, source, origin = rate.for_prediction, clock, f"{rate.source}; SMs x rate x clock", "predicted"
    else:
        return _unsupported(common, f"no figure is known: {rate.source}")
    if mma_sync is not None and mma_sync.value:
        per_clk, origin = per_clk * mma_sync.value, "predicted"
        source = f"{source}; mma.sync reaches {mma_sync.value:.0%} of the wgmma rate ({mma_sync.source})"
    return _figure(common, per_clk * sms * at * 2 / 1e6, per_clk, at, "MAC", origin, source)


def _rate_and_clock(listed: float, rate: float | None, sms: int, clock: float) -> tuple[float, float]:
    """Per-clock rate and clock that together give the listed figure."""
    per_clk = listed * 1e6 / (2 * sms * clock)
    if rate and abs(per_clk / rate - 1) < SAME_RATE:
        return rate, listed * 1e6 / (2 * sms * rate)
    return per_clk, clock


def _ffma(sheet: Datasheet, facts: Architecture, sms: int, clock: float) -> Measurement:
    common = {"name": "ffma", "instruction": "FFMA", "unit": "TFLOPS"}
    listed, lanes = sheet.value("fp32_tflops"), facts.rates["ffma"].for_prediction
    if listed:
        per_clk, at = _rate_and_clock(listed, lanes, sms, clock)
        return _figure(common, listed, per_clk, at, "instr", "datasheet", sheet.figures["fp32_tflops"].source)
    if not lanes:
        return _unsupported(common, "no figure is known: unsourced")
    return _figure(
        common, lanes * sms * clock * 2 / 1e6, lanes, clock, "instr", "predicted", facts.rates["ffma"].source
    )


def _instruction(facts: Architecture, name: str, sms: int, clock: float) -> Measurement:
    support = facts.support(name)
    rate = facts.rates[support.rate]
    common = {"name": name, "instruction": support.sass, "unit": "Tinstr/s"}
    if not rate.for_prediction:
        return _unsupported(common, f"no figure is known: {rate.source}")
    source = rate.source if rate.value is not None else f"assumed: {rate.note or 'as on 9.0'}"
    return _figure(
        common, rate.for_prediction * sms * clock / 1e6, rate.for_prediction, clock, "instr", "predicted", source
    )


def _memory(sheet: Datasheet) -> list[Measurement]:
    listed = sheet.value("memory_gb_s")
    if not listed:
        raise ApexError(f"{sheet.name}: without a listed memory bandwidth nothing can be predicted")
    read = listed * READ_OVER_DATASHEET
    where = f"{listed:g} GB/s listed ({sheet.figures['memory_gb_s'].source}), times what an H100 reaches of its own"
    return [
        Measurement(name=name, instruction="", unit="GB/s", value=value, origin="predicted", source=where)
        for name, value in (("memory.read", read), ("memory.copy", read / READ_OVER_COPY))
    ]


def _shared(facts: Architecture, sms: int, clock: float) -> Measurement:
    common = {"name": "shared.read", "instruction": "", "unit": "GB/s"}
    rate = facts.rates["shared_bytes"]
    if not rate.for_prediction:
        return _unsupported(common, f"no figure is known: {rate.source}")
    return _figure(
        common, rate.for_prediction * sms * clock / 1e3, rate.for_prediction, clock, "B", "predicted", rate.source
    )


def _launch() -> Measurement:
    return Measurement(
        name="launch.graph",
        instruction="",
        unit="us",
        value=GRAPH_LAUNCH_US,
        origin="predicted",
        source="as on an H100",
    )


def _figure(
    common: Mapping[str, object], value: float, per_clk: float, clock: float, unit: str, origin: str, source: str
) -> Measurement:
    rate = {"per_clk_per_sm": per_clk, "per_clk_unit": unit, "sm_clock_mhz": clock}
    return Measurement.model_validate({**common, **rate, "value": value, "origin": origin, "source": source})


def _unsupported(common: Mapping[str, object], why: str) -> Measurement:
    return Measurement.model_validate({**common, "origin": "predicted", "unsupported": why})


def _co_issue(device: Device, facts: Architecture, figures: list[Measurement]) -> list[CoIssue]:
    """The points that the planner needs, of the MMA families that this architecture has."""
    if facts.tcgen05:
        return []
    rates = Rates.of(device, figures)
    points = [
        carry_over(strategy, operand, family, rates)
        for (family, operand), mma in CO_ISSUE_LOOPS.items()
        if facts.support(mma).level == "native"
        for strategy in PROXIES
    ]
    return list({_place(point): point for point in points if point is not None}.values())


def _place(point: CoIssue) -> tuple[str, str, str, int]:
    return point.mma, point.shape, point.instruction, point.k
