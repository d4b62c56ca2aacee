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
class Work:
    """What a loop executes per accumulator and 128 of K. ``dequantisation``, ``widening``, ``other``: instructions by
    rate; ``slots``: issue slots beside theirs, the MMAs' among them; ``shared_traffic``: bytes."""

    dequantisation: Mapping[str, float]
    widening: Mapping[str, float]
    other: Mapping[str, float]
    slots: float
    shared_traffic: float


@dataclass(frozen=True)
class PipeRates:
    """Per cycle and SM. ``tensor``: MAC of the loop's MMA; ``instruction``: by the rate's name."""

    tensor: float
    instruction: Callable[[str], float]
    shared_bytes: float
    issue: float


@dataclass(frozen=True)
class LoopCycles:
    """``pipes``: each alone. ``dequantisation``, ``widening``: each with its pipes one after the other."""

    pipes: Mapping[str, float]
    dequantisation: float
    widening: float

    @property
    def overlap(self) -> float:
        return max(self.pipes.values())

    @property
    def mma_and_dequantisation(self) -> float:
        return max(self.overlap, self.pipes["tensor"] + self.dequantisation + self.widening)

    @property
    def all_pipes(self) -> float:
        return sum(cycles for pipe, cycles in self.pipes.items() if pipe != NO_PIPE)


def work_of(loop: HotLoop) -> Work:
    slots = loop.mma + loop.loads + loop.issue_only
    return Work(loop.dequantisation, loop.widening, loop.other, slots, loop.shared_traffic)


def rates_of(facts: Architecture, mma_rate: str) -> PipeRates:
    """An architecture's documented rates. ApexError: one of them is not known."""
    reached = facts.mma_sync_fraction.value if facts.mma_sync_fraction and facts.mma_sync_fraction.value else 1.0
    return PipeRates(
        tensor=_rate(facts, mma_rate) * reached,
        instruction=lambda name: _rate(facts, name),
        shared_bytes=_rate(facts, "shared_bytes"),
        issue=_rate(facts, "issue"),
    )


def _rate(facts: Architecture, key: str) -> float:
    value = facts.rates[key].for_prediction
    if value is None:
        raise ApexError(f"profiles/architectures.yaml: {facts.compute_capability} has no rate of {key}")
    return value


def cycles(work: Work, rates: PipeRates) -> LoopCycles:
    """Cycles per accumulator and 128 of K. Whatever ``rates.instruction`` raises for a rate that is not known."""
    pipes = dict.fromkeys(PIPES, 0.0)
    pipes["tensor"] = DEPTH / rates.tensor
    pipes["shared"] = work.shared_traffic / rates.shared_bytes
    by_purpose = []
    for instructions in (work.dequantisation, work.widening, work.other):
        times = {name: count / rates.instruction(name) for name, count in instructions.items()}
        for name, time in times.items():
            pipes[PIPE[name]] += time
        by_purpose.append(sum(times.values()))
    executed = sum(sum(part.values()) for part in (work.dequantisation, work.widening, work.other))
    pipes["issue"] = (executed + work.slots) / rates.issue
    return LoopCycles(pipes, *by_purpose[:2])


def sass_records(loops: Iterable[HotLoop], references: Iterable[HotLoop] = ()) -> list[SassRecord]:
    """A record a loop. ``references``: per-channel loops to compare with beside those among ``loops``.

    ApexError: a rate is not known.
    """
    wanted, others = list(loops), list(references)
    channel: dict[tuple[str, str], list[LoopCycles]] = {}
    for loop in (*wanted, *others):
        if loop.granularity == "channel":
            channel.setdefault((loop.arch, loop.format), []).append(documented(loop))
    return [_record(loop, channel.get((loop.arch, loop.format), [])) for loop in wanted]


def documented(loop: HotLoop) -> LoopCycles:
    """Cycles at the documented rates of the loop's own architecture. ApexError: a rate is not known."""
    return cycles(work_of(loop), rates_of(architecture(loop.compute_capability), loop.mma_rate))


def _record(loop: HotLoop, channel: list[LoopCycles]) -> SassRecord:
    found, fp16 = documented(loop), DEPTH / _rate(architecture(loop.compute_capability), "mma.f16")

    def bound(of: Callable[[LoopCycles], float]) -> Bound:
        own, reference = of(found), min((of(other) for other in channel), default=None)
        return Bound(
            cycles=own * loop.accumulators,
            over_channel=own / reference if reference else None,
            speedup_fp16=fp16 / own,
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
