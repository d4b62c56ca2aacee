"""The one place where a choice is made: measurements, layers and workload in, a plan with its reasons out.

Two questions, one rule each. Which format at all (``auto``, or one format against FP16): the fastest plan whose
expected loss stays within the limit. Which granularity within W4A4 (the paper's question): the best expected quality
among the plans that reach the wanted speed-up over FP16; none does: stay in FP16.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from apex4_probe import explanation as explain
from apex4_probe.balance import VARIANTS, Variant, balance, rho, strategy_balance
from apex4_probe.candidates import MIXABLE, PUBLISHED_DETAIL, RESOLUTION, UNIFORM, Candidate, CandidateMaker, pareto
from apex4_probe.datasheets import Datasheet, for_device
from apex4_probe.deployment import (
    CoIssue,
    Decision,
    Device,
    Format,
    Granularity,
    LayerPlan,
    LayerTime,
    Measurement,
    Rejected,
    RhoFigure,
    StrategyBalance,
    WorkloadRecord,
)
from apex4_probe.errors import ApexError
from apex4_probe.gemm_time import OPERANDS, GemmTimer
from apex4_probe.models import Model, shard
from apex4_probe.quality import QualityPrior, quality_prior
from apex4_probe.rates import Rates
from apex4_probe.strategies import STRATEGIES

MEMORY_SHARE = 0.9  # of the device's memory that weights may take (vLLM's gpu_memory_utilization, its default)
SURE_MARGIN = 0.10  # over the runner-up: twice what two cards of one name differ by (4 to 5 %, measured, H100)
W4A4: tuple[Format, ...] = ("w4a4",)
OURS: tuple[Format, ...] = ("w4a16", "w4a8", "w4a4")  # formats that need kernels of ours


@dataclass(frozen=True)
class Plan:
    """What goes into the profile. ``front``: W4A4 plans that none beats in both time and expected loss, for a plot."""

    decision: Decision
    w4a4: Decision
    layers: tuple[LayerPlan, ...]
    rejected: tuple[Rejected, ...]
    balance: tuple[StrategyBalance, ...]
    rho: dict[Literal["int4", "int8"], RhoFigure]
    notes: tuple[str, ...]
    front: tuple[Candidate, ...] = ()


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


Duration = Callable[[Candidate], float]
Rule = Callable[[Field, Duration], list[Candidate]]  # eligible candidates, the chosen one first; never empty


def plan(
    device: Device,
    measurements: Sequence[Measurement],
    co_issue: Sequence[CoIssue],
    workload: WorkloadRecord,
    model: Model,
    *,
    strategies: Collection[str] | None = None,
    prior: QualityPrior | None = None,
    sheet: Datasheet | None = None,
) -> Plan:
    """The plan for one GPU (one of ``workload.tensor_parallel``).

    ``strategies``: the dequantisation strategies that kernels may use, by name; None: all. ``measurements`` may be
    measured, predicted or missing; what is missing is taken from the architecture. ApexError: a shape does not shard,
    or a figure is neither measured nor known. ``sheet``: what is listed for the device; None: ours, by its name.
    """
    unknown = sorted(set(strategies or ()) - set(STRATEGIES))
    if unknown:
        raise ApexError(f"unknown dequantisation strategy {', '.join(unknown)}; known are {', '.join(STRATEGIES)}")
    rates, known = Rates.of(device, measurements), prior or quality_prior()
    if model.tensor_parallel == 1:
        model = shard(model, workload.tensor_parallel)
    if rates.tensor("f16") is None:
        raise ApexError(
            f"{device.name}: the FP16 Tensor Core rate, with which all is compared, is neither measured nor known"
        )
    costs = balance(rates, co_issue)
    field = field_of(rates, co_issue, workload, model, strategies, known)
    usable = [cost for cost in costs if strategies is None or cost.strategy in {"none", *strategies}]
    w4a4, paper = _decide(
        _w4a4_rule(workload, known), _w4a4_text(workload, known), True, field, rates, workload, usable
    )
    decision, asked = w4a4, paper
    if workload.format != "w4a4":
        decision, asked = _decide(
            _fastest_rule(workload, known), _fastest_text(workload, known), False, field, rates, workload, usable
        )
    sheet = sheet or for_device(device.name)
    listed = {name: sheet.value(name) for name in ("int4_tops", "int8_tops", "fp32_tflops")} if sheet else {}
    return Plan(
        decision=decision,
        w4a4=w4a4,
        layers=tuple(_layers(asked)),
        rejected=(*_losers(asked, field), *field.unavailable),
        balance=tuple(costs),
        rho=rho(rates, listed),
        notes=tuple(
            explain.notes(rates, model, asked.chosen, field.fits(asked.chosen), MEMORY_SHARE, known, sheet, co_issue)
        ),
        front=tuple(pareto(candidate for candidate in field.candidates if candidate.format == "w4a4")),
    )


def field_of(
    rates: Rates,
    co_issue: Sequence[CoIssue],
    workload: WorkloadRecord,
    model: Model,
    strategies: Collection[str] | None,
    prior: QualityPrior,
) -> Field:
    """Every plan that could be chosen here, and what was ruled out before its time was asked for.

    ApexError: a rate that the plans rest on is neither measured nor known.
    """
    best: dict[tuple[Format, Granularity], StrategyBalance] = {}
    for variant in VARIANTS:
        if variant.strategy != "none" and strategies is not None and variant.strategy not in strategies:
            continue
        cost = strategy_balance(rates, variant, co_issue)
        key = (variant.format, variant.granularity)
        if cost is not None and (key not in best or cost.cycles_expected < best[key].cycles_expected):
            best[key] = cost

    def label(format: Format, granularity: Granularity) -> str:
        cost = best.get((format, granularity))
        return STRATEGIES[cost.strategy].label if cost and cost.strategy != "none" else ""

    maker = CandidateMaker(GemmTimer(rates, best), model, tuple(workload.points), prior, label)
    fp16 = maker.uniform("fp16", "none")
    found, unavailable = [fp16], []
    for format, granularities in UNIFORM.items():
        why = _refused(rates, format)
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
    if not _refused(rates, "w4a4"):
        found += _mixed(maker, best, unavailable)
    return Field(
        fp16, tuple(found), tuple(unavailable), lambda candidate: explain.fits(rates.device, candidate, MEMORY_SHARE)
    )


def _mixed(
    maker: CandidateMaker, best: dict[tuple[Format, Granularity], StrategyBalance], unavailable: list[Rejected]
) -> list[Candidate]:
    allowed = [granularity for granularity in MIXABLE if ("w4a4", granularity) in best]
    try:
        published = [maker.published_mixed()] if ("w4a4", "g32") in best else []
        return [*published, *maker.mixed(allowed)]
    except (KeyError, ValueError) as error:
        unavailable.append(Rejected(variant="w4a4 mixed", why=str(error)))
        return []


def _refused(rates: Rates, format: Format) -> str:
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


def _fastest_rule(workload: WorkloadRecord, prior: QualityPrior) -> Rule:
    formats: set[Format] = {"fp16", workload.format} if workload.format != "auto" else set(UNIFORM)

    def rule(field: Field, us: Duration) -> list[Candidate]:
        pool = field.of(formats)
        eligible = [c for c in pool if c.loss <= workload.max_quality_loss] or [field.fp16]
        limit = min(map(us, eligible)) * (1 + RESOLUTION)
        best = best_quality([c for c in eligible if us(c) <= limit], us, prior)
        return [best, *sorted((c for c in eligible if c is not best), key=us)]

    return rule


def _w4a4_rule(workload: WorkloadRecord, prior: QualityPrior) -> Rule:
    def rule(field: Field, us: Duration) -> list[Candidate]:
        reaching = [c for c in field.of(W4A4) if us(field.fp16) / us(c) >= workload.min_speedup]
        if not reaching:
            return [field.fp16]
        best = best_quality(reaching, us, prior)
        others = (c for c in reaching if c is not best)
        return [best, *sorted(others, key=lambda c: (round(c.loss, 9), us(c))), field.fp16]

    return rule


def best_quality(candidates: Sequence[Candidate], us: Duration, prior: QualityPrior) -> Candidate:
    """The least expected loss; a mix of granularities has to gain more than the prior resolves over a uniform plan."""
    least = min(candidate.loss for candidate in candidates)
    as_good = [candidate for candidate in candidates if candidate.loss <= least + prior.resolution]
    return min(as_good, key=lambda c: (c.distinct, round(c.loss, 9), us(c)))


def _fastest_text(workload: WorkloadRecord, prior: QualityPrior) -> str:
    which = "plan" if workload.format == "auto" else f"of {workload.format} and FP16"
    return (
        f"the fastest {which} whose expected loss is at most {workload.max_quality_loss:g} nats; of those within "
        f"{RESOLUTION:.0%} of the fastest, the one that loses least ({_uniform_first(prior)})"
    )


def _w4a4_text(workload: WorkloadRecord, prior: QualityPrior) -> str:
    return (
        f"the best expected quality among the W4A4 plans that reach {workload.min_speedup:g}x FP16 "
        f"({_uniform_first(prior)}); none does: FP16"
    )


def _uniform_first(prior: QualityPrior) -> str:
    return f"mixed only where that gains more than {prior.resolution:g} nats over uniform"


def _decide(
    rule: Rule,
    text: str,
    paper: bool,
    field: Field,
    rates: Rates,
    workload: WorkloadRecord,
    costs: Sequence[StrategyBalance],
) -> tuple[Decision, explain.Question]:
    chosen, *others = rule(field, lambda c: c.us)
    # The next mix differs in one small layer and tells nobody anything: compare with the next plan that has a name.
    runner_up = next((c for c in others if c.granularity != "mixed" or c.detail == PUBLISHED_DETAIL), None)
    robust = all(rule(field, us)[0].label == chosen.label for us in (lambda c: c.low, lambda c: c.high))
    margin = _margin(runner_up.us, chosen.us) if runner_up else None
    question = explain.Question(workload, paper, field.fp16, chosen, runner_up, costs, rates)
    decision = Decision(
        format=chosen.format,
        granularity=chosen.granularity,
        reason=explain.reason(question, field.candidates, field.unavailable),
        margin=margin,
        runner_up=runner_up.label if runner_up else None,
        speedup_fp16=chosen.speedup_over(field.fp16),
        speedup_fp16_interval=(field.fp16.us / chosen.high, field.fp16.us / chosen.low),
        confidence=_confidence(rates, chosen, robust, margin, costs),
        rule=text,
        expected_loss=chosen.loss,
        fits_memory=field.fits(chosen) if rates.device.memory_mib else None,
    )
    return decision, question


def _margin(runner_up: float, chosen: float) -> float | None:
    """By how much of the chosen time the runner-up under the same rule is slower; None where it is faster and lost on
    quality: there is no margin in time then, and the reason says what was weighed."""
    return runner_up / chosen - 1 if runner_up >= chosen else None


def _confidence(
    rates: Rates, chosen: Candidate, robust: bool, margin: float | None, costs: Iterable[StrategyBalance]
) -> Literal["high", "medium", "low"]:
    """high: measured, and the same choice at both ends of the interval; low: it hangs on the overlap."""
    tensors = (rates.tensor("f16"), rates.kernel_tensor(OPERANDS[chosen.format]))
    overlaps = (c.overlap_origin for c in costs if c.format == chosen.format and c.strategy != "none")
    measured = all(t is not None and t.origin == "measured" for t in tensors) and all(o == "measured" for o in overlaps)
    if robust and measured:
        return "high"
    if robust or (measured and margin is not None and margin >= SURE_MARGIN):
        return "medium"
    return "low"


def _layers(question: explain.Question) -> Iterable[LayerPlan]:
    points, chosen, runner_up = question.workload.points, question.chosen, question.runner_up

    def weighted(candidate: Candidate, index: int) -> float:
        return sum(p.weight * t.us for p, t in zip(points, candidate.roles[index].times, strict=True))

    for index, role in enumerate(chosen.roles):
        times = [
            LayerTime(
                m=point.m,
                us=time.us,
                us_low=time.low,
                us_high=time.high,
                us_fp16=base.us,
                us_quantise=time.quantise,
                bound_by=time.bound_by,
                origin="predicted",
            )
            for point, time, base in zip(points, role.times, question.fp16.roles[index].times, strict=True)
        ]
        yield LayerPlan(
            role=role.layer.role,
            n=role.layer.n,
            k=role.layer.k,
            count=role.layer.count,
            format=chosen.format,
            granularity=role.granularity,
            reason=explain.layer_reason(times, question.workload),
            margin=_margin(weighted(runner_up, index), weighted(chosen, index)) if runner_up else None,
            times=times,
        )


def _losers(question: explain.Question, field: Field) -> Iterable[Rejected]:
    """Every uniform plan and the published mix, and of the other mixes the best in quality."""
    others = [c for c in field.candidates if c is not question.chosen]
    named = [c for c in others if c.granularity != "mixed" or c.detail == PUBLISHED_DETAIL]
    mixes = sorted((c for c in others if c not in named), key=lambda c: (round(c.loss, 9), c.us))
    for candidate in [*named, *mixes[:1]]:
        yield Rejected(variant=candidate.label, why=explain.why_not(candidate, question, field.fits(candidate)))
