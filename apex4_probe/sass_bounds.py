"""From counted instructions to cycles: every pipe's time, and three bounds of the whole. Arithmetic only.

Cycles are of an SM that works on one accumulator and 128 of K; a CTA's tile takes as many times that as it has
accumulators, however many CTAs share the SM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from apex4_probe.architecture import Architecture, architecture
from apex4_probe.errors import ApexError
from apex4_probe.sass_records import Bound, Bounds, HotLoop, SassRecord
from apex4_probe.strategies import PIPE

DEPTH = 128  # of K
PIPES = ("tensor", "fma", "alu", "conversion", "shared", "issue")
NO_PIPE = "issue"  # every instruction passes the issue slots on its way to a pipe: they bound, and never add up


@dataclass(frozen=True)
class PipeRates:
    """Per cycle and SM. ``tensor``: MAC of the loop's MMA; ``fp16``: MAC of FP16; ``instruction``: by rate name."""

    tensor: float
    fp16: float
    instruction: Callable[[str], float]
    shared_bytes: float
    issue: float


@dataclass(frozen=True)
class LoopCycles:
    """``pipes``: each alone. ``scaling``: dequantisation and widening, their pipes one after the other."""

    pipes: Mapping[str, float]
    scaling: float

    @property
    def overlap(self) -> float:
        return max(self.pipes.values())

    @property
    def mma_and_dequantisation(self) -> float:
        return max(self.overlap, self.pipes["tensor"] + self.scaling)

    @property
    def all_pipes(self) -> float:
        return sum(cycles for pipe, cycles in self.pipes.items() if pipe != NO_PIPE)


def rates_of(facts: Architecture, mma_rate: str) -> PipeRates:
    """An architecture's documented rates. ApexError: one of them is not known."""

    def rate(key: str) -> float:
        value = facts.rates[key].for_prediction
        if value is None:
            raise ApexError(f"profiles/architectures.yaml: {facts.compute_capability} has no rate of {key}")
        return value

    reached = facts.mma_sync_fraction.value if facts.mma_sync_fraction and facts.mma_sync_fraction.value else 1.0
    return PipeRates(
        tensor=rate(mma_rate) * reached,
        fp16=rate("mma.f16"),
        instruction=rate,
        shared_bytes=rate("shared_bytes"),
        issue=rate("issue"),
    )


def cycles(loop: HotLoop, rates: PipeRates) -> LoopCycles:
    """Cycles per accumulator and 128 of K. ApexError: a rate is not known."""
    pipes = dict.fromkeys(PIPES, 0.0)
    pipes["tensor"] = DEPTH / rates.tensor
    scaling = 0.0
    for purpose in (loop.dequantisation, loop.widening, loop.other):
        for name, count in purpose.items():
            time = count / rates.instruction(name)
            pipes[PIPE[name]] += time
            scaling += 0.0 if purpose is loop.other else time
    pipes["shared"] = loop.shared_traffic / rates.shared_bytes
    pipes["issue"] = (loop.mma + loop.scaling + loop.rest) / rates.issue
    return LoopCycles(pipes, scaling)


def sass_records(loops: Iterable[HotLoop], references: Iterable[HotLoop] = ()) -> list[SassRecord]:
    """A record a loop. ``references``: per-channel loops to compare with beside those among ``loops``.

    ApexError: a rate is not known.
    """
    wanted = list(loops)
    timed = {id(loop): _cycles_of(loop) for loop in (*wanted, *references)}
    channel: dict[tuple[str, str], list[LoopCycles]] = {}
    for loop in (*wanted, *references):
        if loop.granularity == "channel":
            channel.setdefault((loop.arch, loop.format), []).append(timed[id(loop)][0])
    return [_record(loop, *timed[id(loop)], channel.get((loop.arch, loop.format), [])) for loop in wanted]


def _cycles_of(loop: HotLoop) -> tuple[LoopCycles, PipeRates]:
    rates = rates_of(architecture(loop.compute_capability), loop.mma_rate)
    return cycles(loop, rates), rates


def _record(loop: HotLoop, found: LoopCycles, rates: PipeRates, channel: list[LoopCycles]) -> SassRecord:
    def bound(of: Callable[[LoopCycles], float]) -> Bound:
        own, reference = of(found), min((of(other) for other in channel), default=None)
        return Bound(
            cycles=own * loop.accumulators,
            over_channel=own / reference if reference else None,
            speedup_fp16=DEPTH / rates.fp16 / own,
        )

    return SassRecord(
        variant=loop.variant,
        format=loop.format,
        granularity=loop.granularity,
        strategy=loop.strategy,
        arch=loop.arch,
        warp_tile=loop.warp_tile,
        mma=loop.mma,
        dequantisation=loop.scaling,
        other=loop.rest,
        registers=loop.registers,
        shared_bytes=loop.shared_bytes,
        local_bytes=loop.local_bytes,
        pipes={pipe: value * loop.accumulators for pipe, value in found.pipes.items()},
        bounds=Bounds(
            overlap=bound(lambda c: c.overlap),
            mma_and_dequantisation=bound(lambda c: c.mma_and_dequantisation),
            all_pipes=bound(lambda c: c.all_pipes),
        ),
        nvrtc=loop.nvrtc,
    )
