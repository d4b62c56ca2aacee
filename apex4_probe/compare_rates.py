"""Throughput of Tensor Core and CUDA Core per second, per clock and SM, and per watt, in hardware only."""

from __future__ import annotations

from apex4_probe.compare_records import Rate, RateKind
from apex4_probe.datasheets import for_device
from apex4_probe.deployment import Measurement
from apex4_probe.errors import ApexError
from apex4_probe.rates import MMA_SYNC, WGMMA, Operand, Rates, Throughput

TENSOR: dict[RateKind, tuple[Operand, str]] = {
    "INT4": ("s4", "mma.s4.m16n8k64"),
    "INT8": ("s8", "mma.s8.m16n8k32"),
    "FP8": ("e4m3", "mma.e4m3.m16n8k32"),
    "FP16": ("f16", "mma.f16.m16n8k16"),
}
OPERATIONS = 2  # of a MAC or an FMA
SUSTAINED_POWER = "measured, sustained load"
DATASHEET_POWER = "datasheet power"
POWER_LIMIT = "power limit"


def rates_of(rates: Rates) -> tuple[Rate, ...]:
    """One record a kind; what the hardware or the profile lacks says why."""
    found = []
    for kind, (operand, probe) in TENSOR.items():
        tensor = rates.tensor(operand)
        if tensor is None:
            reason = rates.architecture.support(probe).reason or "neither measured nor known"
            found.append(Rate(kind, "", absent=reason))
        else:
            names = (*WGMMA.get(operand, ()), *MMA_SYNC[operand])
            found.append(_rate(rates, kind, tensor, _sustained(rates, names)))
    try:
        found.append(_rate(rates, "FP32", rates.instruction("ffma"), _sustained(rates, ("ffma",))))
    except ApexError as error:
        found.append(Rate("FP32", "", absent=str(error)))
    return tuple(found)


def _rate(rates: Rates, kind: RateKind, peak: Throughput, steady: Measurement | None) -> Rate:
    measured = rates.find(peak.name)
    tops = measured.value if measured is not None and measured.unit in ("TOPS", "TFLOPS") else None
    if tops is None:
        tops = OPERATIONS * peak.per_clk * rates.device.sm_count * peak.clock_mhz / 1e6
    watts: float | None
    if steady is not None and steady.value and steady.power_w:
        watts, which, watt_tops = steady.power_w, SUSTAINED_POWER, steady.value
    else:
        watts, which = _power(rates)
        watt_tops = tops
    return Rate(
        kind=kind,
        instruction=peak.name,
        tops=tops,
        per_clk=peak.per_clk,
        origin=peak.origin,
        per_watt=watt_tops / watts if watts else None,
        watt_tops=watt_tops if watts else None,
        watts=watts,
        watts_are=which,
        watts_measured=which == SUSTAINED_POWER,
    )


def _power(rates: Rates) -> tuple[float | None, str]:
    """What the datasheet lists; a device without one has the limit that its driver reports."""
    sheet = for_device(rates.device.name)
    listed = sheet.value("power_w") if sheet else None
    if listed:
        return listed, DATASHEET_POWER
    limit = rates.device.power_limit_w
    return (limit, POWER_LIMIT) if limit else (None, "")


def _sustained(rates: Rates, names: tuple[str, ...]) -> Measurement | None:
    """The fastest of ``names`` under a load long enough for power to settle, random operands, in hardware."""
    steady = [
        m
        for m in rates.measurements
        if m.name in names
        and m.regime == "sustained"
        and m.origin == "measured"
        and m.operands != "zeros"
        and m.value
        and not m.emulated
    ]
    return max(steady, key=lambda m: m.value or 0.0, default=None)
