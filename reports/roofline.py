"""The roofline of a profile's GPU and where the model's layers stand on it. Pure functions of the profile.

Arithmetic intensity counts two operations a MAC over the bytes that one linear layer must move: weights with their
scales, activations and the FP16 output, each once. The roof is the lower of intensity times read bandwidth and what the
SMs reach: the Tensor Core's rate, or less where dequantisation takes longer than the MMA.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from apex4_probe.candidates import FUSED
from apex4_probe.deployment import (
    Format,
    GemmTiming,
    Granularity,
    LayerPlan,
    Origin,
    Profile,
    StrategyBalance,
)
from apex4_probe.errors import ApexError
from apex4_probe.gemm_time import ACTIVATION_BITS, OPERANDS, weight_bytes
from apex4_probe.rates import Rates, Throughput, worst
from apex4_probe.reports import wording
from apex4_probe.reports.tables import Row, Table, columns_of
from apex4_probe.selection import GemmKey, fastest, total_us

SIZES = (1, 16, 256, 4096)  # tokens: decode of one, a small batch, a large one, prefill
DEPTH = 128  # of K, what a balance is counted for
BELOW_TENSOR = 0.98  # a ceiling within 2 % of the Tensor Core's is not drawn beside it


@dataclass(frozen=True)
class Ceiling:
    """T op/s that the SMs reach; ``granularity`` and ``strategy`` are None for the Tensor Core itself."""

    format: Format
    granularity: Granularity | None
    strategy: str | None
    tops: float
    origin: Origin


@dataclass(frozen=True)
class LayerPoint:
    """One layer shape at M tokens. ``intensity`` in op/byte, ``bound`` and ``planned`` in T op/s."""

    roles: str
    n: int
    k: int
    m: int
    format: Format
    granularity: Granularity
    intensity: float
    bound: float
    bound_by: str
    origin: Origin
    planned: (
        float | None
    )  # at the time that the plan gives this layer, or that was timed beside the plan; None: neither
    planned_origin: Origin = "predicted"  # measured: it was timed


@dataclass(frozen=True)
class Roofline:
    read_gb_s: float
    bandwidth_origin: Origin
    ceilings: tuple[Ceiling, ...]  # of the Tensor Core first, then of dequantisation where it is lower
    points: tuple[LayerPoint, ...]


def roofline(profile: Profile) -> Roofline | None:
    """None: the profile has no layers, no bandwidth, or no Tensor Core rate of FP16."""
    if not profile.layers:
        return None
    try:
        rates = Rates.of(profile.device, profile.measurements)
        bandwidth = rates.read_bandwidth()
        beside = _beside(profile)
        formats: list[Format] = list(dict.fromkeys(fmt for fmt, _ in (*beside, *map(_choice, profile.layers))))
        tensors = {format: found for format in formats if (found := rates.kernel_tensor(OPERANDS[format])) is not None}
    except ApexError:
        return None
    if "fp16" not in tensors:
        return None
    ceilings = [*_tensor_ceilings(tensors, rates), *_dequantisation_ceilings(profile, tensors, rates)]
    points, timed = [], fastest(profile.gemm_timings)
    for plan, roles in _shapes(profile.layers):
        for format, granularity in dict.fromkeys((*beside, _choice(plan))):
            if format in tensors:
                sizes = sorted({*SIZES, *(time.m for time in plan.times)})
                points += [
                    _point(
                        plan,
                        roles,
                        m,
                        format,
                        granularity,
                        ceilings,
                        bandwidth.value,
                        bandwidth.origin,
                        timed.get(GemmKey(m, _gemm_n(plan, profile.layers), plan.k, format, granularity)),
                    )
                    for m in sizes
                ]
    return Roofline(bandwidth.value, bandwidth.origin, tuple(ceilings), tuple(points))


def _choice(layer: LayerPlan) -> tuple[Format, Granularity]:
    return layer.format, layer.granularity


def _beside(profile: Profile) -> tuple[tuple[Format, Granularity], ...]:
    """What every layer is drawn in beside its own format: FP16, and a 4-bit format that the plan did not take."""
    four_bit = next((item.format for item in profile.balance), None)
    taken = any(layer.format == four_bit for layer in profile.layers)
    return (("fp16", "none"),) if four_bit is None or taken else (("fp16", "none"), (four_bit, "channel"))


def _tops(per_clk: float, rates: Rates, tensor: Throughput) -> float:
    return 2 * per_clk * rates.device.sm_count * tensor.clock_mhz * 1e-6


def _tensor_ceilings(tensors: dict[Format, Throughput], rates: Rates) -> Iterable[Ceiling]:
    """One for every operand width that the plan uses; W4A16 multiplies in FP16, so it adds none."""
    seen = set()
    for format, tensor in tensors.items():
        if OPERANDS[format] not in seen:
            seen.add(OPERANDS[format])
            yield Ceiling(format, None, None, _tops(tensor.per_clk, rates, tensor), tensor.origin)


def _dequantisation_ceilings(profile: Profile, tensors: dict[Format, Throughput], rates: Rates) -> Iterable[Ceiling]:
    """Of every granularity that the plan uses and of float scales per group of 128, the best strategy's."""
    best: dict[tuple[Format, Granularity], StrategyBalance] = {}
    used = set(map(_choice, profile.layers))
    for item in profile.balance:
        key = item.format, item.granularity
        wanted = key in used or (item.granularity == "g128" and item.format in tensors)
        if (
            wanted
            and item.cycles_expected > 0
            and (key not in best or item.cycles_expected < best[key].cycles_expected)
        ):
            best[key] = item
    for (format, granularity), item in best.items():
        tensor = tensors.get(format)
        if tensor is None:
            continue
        tops = _tops(DEPTH / item.cycles_expected, rates, tensor)
        if tops < BELOW_TENSOR * _tops(tensor.per_clk, rates, tensor):
            yield Ceiling(format, granularity, item.strategy, tops, item.origin)


def _shapes(layers: Iterable[LayerPlan]) -> list[tuple[LayerPlan, str]]:
    """Layers of one shape, choice and times together, with their roles joined: q and o of one shape run in different
    GEMMs, which take their own times."""
    grouped: dict[tuple[object, ...], list[LayerPlan]] = {}
    for layer in layers:
        times = tuple((time.m, time.us, time.us_fp16) for time in layer.times)
        grouped.setdefault((layer.n, layer.k, layer.format, layer.granularity, times), []).append(layer)
    return [(members[0], ", ".join(dict.fromkeys(m.role for m in members))) for members in grouped.values()]


def _gemm_n(plan: LayerPlan, layers: Iterable[LayerPlan]) -> int:
    """N of the GEMM that the layer runs in: those that share an input run as one."""
    beside = next((roles for roles in FUSED if plan.role in roles), (plan.role,))
    return sum(layer.n for layer in layers if layer.role in beside)


def layer_bytes(m: int, n: int, k: int, format: Format, granularity: Granularity) -> float:
    """Weights [n, k] and scales, activations [m, k] with a float per token where quantised, FP16 output [m, n]."""
    token_scales = 0.0 if ACTIVATION_BITS[format] == 16 else 4.0 * m
    return weight_bytes(n, k, format, granularity) + m * k * ACTIVATION_BITS[format] / 8 + token_scales + 2.0 * m * n


def _point(
    plan: LayerPlan,
    roles: str,
    m: int,
    format: Format,
    granularity: Granularity,
    ceilings: Iterable[Ceiling],
    read_gb_s: float,
    bandwidth_origin: Origin,
    timing: GemmTiming | None,
) -> LayerPoint:
    operations = 2.0 * m * plan.n * plan.k
    intensity = operations / layer_bytes(m, plan.n, plan.k, format, granularity)
    memory = intensity * read_gb_s / 1000
    applies = [
        ceiling
        for ceiling in ceilings
        if OPERANDS[ceiling.format] == OPERANDS[format]
        and (ceiling.granularity is None or (ceiling.format, ceiling.granularity) == (format, granularity))
    ]
    lowest = min(applies, key=lambda ceiling: ceiling.tops)
    by = "Tensor Core" if lowest.granularity is None else "dequantisation"
    time = next((time for time in plan.times if time.m == m), None)
    known = {} if time is None else {("fp16", "none"): time.us_fp16, _choice(plan): time.us}
    microseconds = known.get((format, granularity))
    planned = operations / microseconds * 1e-6 if microseconds else None
    planned_origin = time.origin if time else "predicted"
    if planned is None and timing is not None:  # at the rate of the whole GEMM, of which a layer has its share by N
        planned, planned_origin = 2.0 * m * timing.n * timing.k / total_us(timing) * 1e-6, timing.origin
    return LayerPoint(
        roles=roles,
        n=plan.n,
        k=plan.k,
        m=m,
        format=format,
        granularity=granularity,
        intensity=intensity,
        bound=min(memory, lowest.tops),
        bound_by="memory" if memory < lowest.tops else by,
        origin=worst((bandwidth_origin, lowest.origin)),
        planned=planned,
        planned_origin=planned_origin,
    )


def ceiling_name(ceiling: Ceiling) -> str:
    operand = {"f16": "FP16", "e4m3": "FP8", "s8": "INT8", "s4": "INT4"}[OPERANDS[ceiling.format]]
    if ceiling.granularity is None:
        return f"{operand} Tensor Core"
    detail = wording.clip(wording.strategy_name(ceiling.strategy or ""), 28)
    return f"{wording.choice(ceiling.format, ceiling.granularity)}: {detail}"


def roofline_table(lines: Roofline | None) -> Table:
    """Every layer shape at every M, in the format chosen and in FP16."""
    points = () if lines is None else lines.points
    rows = tuple(_row(point) for point in points)
    titles = ("roles", "#N × K", "#M", "format", "#op/byte", "#bound T op/s", "bound by", "#planned T op/s", "origin")
    caption = (
        "op/byte: two operations a MAC over weights with scales, activations and output. Bound: the lower of op/byte "
        "times read bandwidth and what the SMs reach; the origin is its. Planned: at the time that the plan gives the "
        "layer, or that was timed beside the plan, quantising its activations included; ~ where it was not timed."
    )
    return Table("Roofline", columns_of(*titles), rows, caption)


def _row(point: LayerPoint) -> Row:
    cells = (
        point.roles,
        f"{point.n} × {point.k}",
        str(point.m),
        wording.choice(point.format, point.granularity),
        wording.number(point.intensity),
        wording.number(point.bound, point.origin),
        point.bound_by,
        wording.number(point.planned, point.planned_origin),
        point.origin,
    )
    return Row(cells, predicted=point.origin == "predicted")
