"""Every plan that could be chosen: format and granularity of each role, time over the workload, expected loss.

Linears that share an input run as one GEMM (qkv, gate_up) where their granularity agrees. Where it does not, the finest
of them is taken for all, or the GEMM is split, whichever is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product

from apex4_probe.balance import SHORT_LAST_GROUP
from apex4_probe.deployment import Format, Granularity, Role, WorkloadPoint
from apex4_probe.gemm_time import GemmTimer, Time, weight_bytes
from apex4_probe.models import Layer, Model
from apex4_probe.quality import QualityPrior

FINENESS: tuple[Granularity, ...] = ("none", "channel", "g128i", "g128r", "a128i", "g128", "g64", "g32")
FUSED: tuple[tuple[Role, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
PUBLISHED_MIXED: dict[Role, Granularity] = {"v": "g32", "down": "g32"}  # APEX4 (arXiv 2606.08761); the rest per channel
PUBLISHED_DETAIL = "as published: v and down at g32, the rest per channel"
UNIFORM: dict[Format, tuple[Granularity, ...]] = {
    "fp16": ("none",),
    "fp8": ("none",),
    "w4a16": ("g128",),
    "w4a8": ("channel", "g128i", "g128"),
    "w4a4": ("channel", "a128i", "g128"),
}
RESOLUTION = 0.03  # equally fast: throughput moves by 3 to 5 % between two runs on one card (measured, H100)
MIXABLE: tuple[Granularity, ...] = UNIFORM["w4a4"]


@dataclass(frozen=True)
class RoleTime:
    """One role's part of its GEMM, per transformer block, at each point of the workload."""

    layer: Layer
    granularity: Granularity
    times: tuple[Time, ...]


@dataclass(frozen=True)
class Candidate:
    """``us``, ``low``, ``high``: the weighted workload once; ``point_us``: all linears at each of its points."""

    format: Format
    granularity: Granularity
    detail: str
    roles: tuple[RoleTime, ...]
    point_us: tuple[float, ...]
    us: float
    low: float
    high: float
    loss: float
    weight_bytes: float

    @property
    def label(self) -> str:
        if self.granularity == "none":
            return self.format
        name = "per channel" if self.granularity == "channel" else self.granularity
        return f"{self.format} {name}" + (f" ({self.detail})" if self.detail else "")

    @property
    def distinct(self) -> int:
        return len({role.granularity for role in self.roles})

    @property
    def timed(self) -> bool:
        """Every GEMM of it was timed on this GPU, at every point of the workload."""
        return all(time.origin == "measured" for role in self.roles for time in role.times)

    def speedup_over(self, other: Candidate) -> float:
        return other.us / self.us


@dataclass(frozen=True)
class _Part:
    """Roles of one input that run as one GEMM."""

    layers: tuple[Layer, ...]
    granularity: Granularity
    times: tuple[Time, ...]


@dataclass(frozen=True)
class CandidateMaker:
    """``model``: one rank's shapes."""

    timer: GemmTimer
    model: Model
    points: tuple[WorkloadPoint, ...]
    prior: QualityPrior
    strategy_label: Callable[[Format, Granularity], str]

    def uniform(self, format: Format, granularity: Granularity) -> Candidate:
        """One granularity everywhere (finer where a layer's K must be a multiple of the group, and is not).

        KeyError: the kernel is not considered here. ValueError: some K cannot be packed.
        """
        parts = self._parts(format, dict.fromkeys(self.model.roles, granularity))
        return self._candidate(format, granularity, self.strategy_label(format, granularity), parts)

    def published_mixed(self) -> Candidate:
        """g32 on both operands of v and down, the rest per channel. Raises as ``uniform``."""
        wanted: dict[Role, Granularity] = {role: PUBLISHED_MIXED.get(role, "channel") for role in self.model.roles}
        return self._candidate("w4a4", "mixed", PUBLISHED_DETAIL, self._parts("w4a4", wanted))

    def mixed(self, allowed: Sequence[Granularity]) -> list[Candidate]:
        """W4A4 with every combination of ``allowed`` over the GEMMs; in qkv also only k and v, or v, finer."""
        options = [self._options(layers, allowed) for layers in units(self.model)]
        found = []
        for choice in product(*options):
            parts = [part for unit in choice for part in unit]
            if len({part.granularity for part in parts}) > 1:
                found.append(self._candidate("w4a4", "mixed", _describe(parts), parts))
        return found

    def _options(self, layers: tuple[Layer, ...], allowed: Sequence[Granularity]) -> list[list[_Part]]:
        roles = _roles(layers)
        wanted: list[dict[Role, Granularity]] = [dict.fromkeys(roles, granularity) for granularity in allowed]
        if "channel" in allowed:
            for finer in [granularity for granularity in allowed if granularity != "channel"]:
                wanted += [
                    {role: finer if role in subset else "channel" for role in roles}
                    for subset in (("v",), ("k", "v"))
                    if set(subset) < set(roles)
                ]
        return [self._unit(layers, "w4a4", assignment) for assignment in wanted]

    def _parts(self, format: Format, wanted: Mapping[Role, Granularity]) -> list[_Part]:
        return [part for layers in units(self.model) for part in self._unit(layers, format, wanted)]

    def _unit(self, layers: tuple[Layer, ...], format: Format, wanted: Mapping[Role, Granularity]) -> list[_Part]:
        exact = {layer.role: fitting(format, wanted[layer.role], layer) for layer in layers}
        order = sorted(layers, key=lambda layer: FINENESS.index(exact[layer.role]))
        split = [
            self._part(tuple(members), format, granularity)
            for granularity, members in groupby(order, key=lambda layer: exact[layer.role])
        ]
        if len(split) == 1:
            return split
        fused = [self._part(layers, format, max(exact.values(), key=FINENESS.index))]
        return min(fused, split, key=self._weighted)

    def _part(self, layers: tuple[Layer, ...], format: Format, granularity: Granularity) -> _Part:
        n, k = sum(layer.n for layer in layers), layers[0].k
        times = (self.timer.linear(point.m, n, k, format, granularity) for point in self.points)
        return _Part(layers, granularity, tuple(times))

    def _weighted(self, parts: Sequence[_Part]) -> float:
        return sum(point.weight * part.times[i].us for part in parts for i, point in enumerate(self.points))

    def _candidate(self, format: Format, granularity: Granularity, detail: str, parts: Sequence[_Part]) -> Candidate:
        def total(us: Callable[[Time], float], index: int) -> float:
            return sum(part.layers[0].count * us(part.times[index]) for part in parts)

        def workload(us: Callable[[Time], float]) -> float:
            return sum(point.weight * total(us, i) for i, point in enumerate(self.points))

        roles = tuple(role for part in parts for role in _role_times(part))
        packed = sum(r.layer.count * weight_bytes(r.layer.n, r.layer.k, format, r.granularity) for r in roles)
        return Candidate(
            format=format,
            granularity=granularity,
            detail=detail,
            roles=tuple(sorted(roles, key=lambda role: self.model.roles.index(role.layer.role))),
            point_us=tuple(total(lambda t: t.us, i) for i in range(len(self.points))),
            us=workload(lambda t: t.us),
            low=workload(lambda t: t.low),
            high=workload(lambda t: t.high),
            loss=self.prior.expected_loss((role.layer.role, format, role.granularity) for role in roles),
            weight_bytes=packed + 2.0 * self.model.other_parameters,
        )


def units(model: Model) -> list[tuple[Layer, ...]]:
    """The layers of a block, those together that share an input and can run as one GEMM."""
    by_role = {layer.role: layer for layer in model.layers}
    found = [tuple(by_role[role] for role in roles if role in by_role) for roles in FUSED]
    return [unit for unit in found if unit]


def fitting(format: Format, granularity: Granularity, layer: Layer) -> Granularity:
    """``granularity``, or float groups of 64 or 32 where it wants whole groups of 128 and K does not hold them.

    ValueError: K is no multiple of 32 (of 128 for w4a16, whose activations are read as they are), so that operands
    cannot be packed.
    """
    if granularity == "none":
        return granularity
    if layer.k % 32:
        raise ValueError(f"{layer.role} has K = {layer.k}, no multiple of 32, and cannot be packed in 4 bit")
    if format == "w4a16" and layer.k % 128:
        raise ValueError(f"{layer.role} has K = {layer.k}, no multiple of 128, and cannot be packed as w4a16")
    if granularity in ("channel", "g32", *SHORT_LAST_GROUP) or layer.k % 128 == 0:
        return granularity
    return "g64" if layer.k % 64 == 0 else "g32"


def pareto(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in both time and expected loss, the fastest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.us, round(c.loss, 9))):
        if not front or candidate.loss < front[-1].loss - 1e-9:
            front.append(candidate)
    return front


def _roles(layers: Iterable[Layer]) -> tuple[Role, ...]:
    return tuple(layer.role for layer in layers)


def _role_times(part: _Part) -> list[RoleTime]:
    """A fused GEMM's time, shared out by N."""
    n = sum(layer.n for layer in part.layers)
    return [
        RoleTime(layer, part.granularity, tuple(_scaled(time, layer.n / n) for time in part.times))
        for layer in part.layers
    ]


def _scaled(time: Time, share: float) -> Time:
    return replace(
        time, us=time.us * share, low=time.low * share, high=time.high * share, quantise=time.quantise * share
    )


def _describe(parts: Sequence[_Part]) -> str:
    by_granularity: dict[Granularity, list[str]] = {}
    for part in parts:
        by_granularity.setdefault(part.granularity, []).extend(_roles(part.layers))
    finest_first = [granularity for granularity in reversed(FINENESS) if granularity in by_granularity]
    return "; ".join(f"{', '.join(by_granularity[g])} {'per channel' if g == 'channel' else g}" for g in finest_first)
