"""Every plan that could be chosen on one GPU, and what was ruled out before its time was asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from apex4_probe import explanation as explain
from apex4_probe.balance import VARIANTS, Variant, strategy_balance
from apex4_probe.candidates import MIXABLE, UNIFORM, Candidate, CandidateMaker
from apex4_probe.deployment import (
    CoIssue,
    Format,
    GemmTiming,
    Granularity,
    Rejected,
    StrategyBalance,
    WorkloadRecord,
)
from apex4_probe.gemm_time import GemmTimer
from apex4_probe.models import Model
from apex4_probe.quality import QualityPrior
from apex4_probe.rates import Rates
from apex4_probe.selection import fastest
from apex4_probe.strategies import STRATEGIES

MEMORY_SHARE = 0.9  # of the device's memory that weights may take (vLLM's gpu_memory_utilization, its default)
OURS: tuple[Format, ...] = ("w4a16", "w4a8", "w4a4")  # formats that need kernels of ours


@dataclass(frozen=True)
class Field:
    """The candidates, and why others are none. ``fp16`` is among ``candidates``."""

    fp16: Candidate
    candidates: tuple[Candidate, ...]
    unavailable: tuple[Rejected, ...]
    fits: Callable[[Candidate], bool]

    def of(self, formats: Collection[Format]) -> list[Candidate]:
        """Those of ``formats`` that fit the device's memory; all of them where none does."""
        wanted = [candidate for candidate in self.candidates if candidate.format in formats]
        return [candidate for candidate in wanted if self.fits(candidate)] or wanted


def field_of(
    rates: Rates,
    co_issue: Sequence[CoIssue],
    workload: WorkloadRecord,
    model: Model,
    strategies: Collection[str] | None,
    prior: QualityPrior,
    timings: Sequence[GemmTiming] = (),
) -> Field:
    """Every plan that could be chosen here, and what was ruled out before its time was asked for.

    ``timings``: of GEMMs on this GPU; they stand in the place of the model's times where they hold.
    ApexError: a rate that the plans rest on is neither measured nor known.
    """
    timer = timer_of(rates, co_issue, strategies, timings)
    best = timer.costs
    executed = {(key.format, key.granularity): timing.strategy for key, timing in timer.timed.items()}

    def label(format: Format, granularity: Granularity) -> str:
        cost = best.get((format, granularity))
        name = executed.get((format, granularity)) or (cost.strategy if cost else "none")
        return STRATEGIES[name].label if name in STRATEGIES and name != "none" else ""

    maker = CandidateMaker(timer, model, tuple(workload.points), prior, label)
    fp16 = maker.uniform("fp16", "none")
    found, unavailable = [fp16], []
    for format, granularities in UNIFORM.items():
        why = refused(rates, format)
        if why:
            unavailable.append(Rejected(variant=format, why=why))
        elif format != "fp16":
            for granularity in granularities:
                try:
                    found.append(maker.uniform(format, granularity))
                except KeyError:
                    name = Variant(format, granularity, "none").label
                    unavailable.append(Rejected(variant=name, why="its dequantisation strategies were excluded"))
                except ValueError as error:
                    unavailable.append(Rejected(variant=f"{format} {granularity}", why=str(error)))
    if not refused(rates, "w4a4"):
        found += _mixed(maker, best, unavailable)
    return Field(
        fp16, tuple(found), tuple(unavailable), lambda candidate: explain.fits(rates.device, candidate, MEMORY_SHARE)
    )


def timer_of(
    rates: Rates,
    co_issue: Sequence[CoIssue],
    strategies: Collection[str] | None = None,
    timings: Sequence[GemmTiming] = (),
) -> GemmTimer:
    """Times of GEMMs as timed, else by the cheapest strategy of each packing. Arguments as ``field_of``."""
    best: dict[tuple[Format, Granularity], StrategyBalance] = {}
    for variant in VARIANTS:
        if variant.strategy != "none" and strategies is not None and variant.strategy not in strategies:
            continue
        cost = strategy_balance(rates, variant, co_issue)
        key = (variant.format, variant.granularity)
        if cost is not None and (key not in best or cost.cycles_expected < best[key].cycles_expected):
            best[key] = cost
    return GemmTimer(rates, best, fastest(timings, strategies))


def _mixed(
    maker: CandidateMaker, best: Mapping[tuple[Format, Granularity], StrategyBalance], unavailable: list[Rejected]
) -> list[Candidate]:
    allowed = [granularity for granularity in MIXABLE if ("w4a4", granularity) in best]
    try:
        published = [maker.published_mixed()] if ("w4a4", "g32") in best else []
        return [*published, *maker.mixed(allowed)]
    except (KeyError, ValueError) as error:
        unavailable.append(Rejected(variant="w4a4 mixed", why=str(error)))
        return []


def refused(rates: Rates, format: Format) -> str:
    """Why ``format`` cannot be planned on this GPU at all; empty: it can."""
    facts = rates.architecture
    if format == "fp8" and rates.tensor("e4m3") is None:
        return f"no FP8 Tensor Core on {facts.compute_capability}: {facts.support('mma.e4m3.m16n8k32').reason}"
    if format == "w4a4" and rates.tensor("s4") is None:
        return explain.emulated(rates)
    if format == "w4a8" and facts.no_int8_plan:
        return facts.no_int8_plan
    if format == "w4a8" and rates.tensor("s8") is None:
        return f"the INT8 Tensor Core rate of {facts.compute_capability} is neither measured nor known"
    if format in OURS and not facts.kernels:
        return f"no kernels of ours: {facts.kernels_reason}"
    return ""
