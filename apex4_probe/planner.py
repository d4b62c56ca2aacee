"""The one place where a choice is made: measurements, layers and workload in, a plan with its reasons out.

Two questions, one rule each. Which format at all (``auto``, or one format against FP16): the fastest plan whose
expected loss stays within the limit. Which granularity within W4A4 (the paper's question): the best expected quality
among the plans that reach the wanted speed-up over FP16; none does: stay in FP16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from apex4_probe import explanation as explain
from apex4_probe.balance import balance, rho
from apex4_probe.candidates import PUBLISHED_DETAIL, Candidate, pareto
from apex4_probe.datasheets import Datasheet, for_device
from apex4_probe.deployment import (
    CoIssue,
    Decision,
    Device,
    GemmTiming,
    LayerPlan,
    LayerTime,
    Measurement,
    Rejected,
    RhoFigure,
    StrategyBalance,
    WorkloadRecord,
)
from apex4_probe.errors import ApexError
from apex4_probe.field import MEMORY_SHARE, Field, field_of
from apex4_probe.gemm_time import OPERANDS
from apex4_probe.models import Model, shard
from apex4_probe.quality import QualityPrior, quality_prior
from apex4_probe.rates import Rates, worst
from apex4_probe.rules import Rule, fastest_rule, fastest_text, w4a4_rule, w4a4_text
from apex4_probe.strategies import STRATEGIES

SURE_MARGIN = 0.10  # over the runner-up: twice what two cards of one name differ by (4 to 5 %, measured, H100)


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
    timings: Sequence[GemmTiming] = (),
) -> Plan:
    """The plan for one GPU (one of ``workload.tensor_parallel``).

    ``strategies``: the dequantisation strategies that kernels may use, by name; None: all. ``measurements`` may be
    measured, predicted or missing; what is missing is taken from the architecture. ApexError: a shape does not shard,
    or a figure is neither measured nor known. ``sheet``: what is listed for the device; None: ours, by its name.
    ``timings``: GEMMs timed on this GPU; the times of all others are modelled.
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
    field = field_of(rates, co_issue, workload, model, strategies, known, timings)
    usable = [cost for cost in costs if strategies is None or cost.strategy in {"none", *strategies}]
    w4a4, paper = _decide(w4a4_rule(workload, known), w4a4_text(workload, known), True, field, rates, workload, usable)
    decision, asked = w4a4, paper
    if workload.format != "w4a4":
        decision, asked = _decide(
            fastest_rule(workload, known), fastest_text(workload, known), False, field, rates, workload, usable
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
    question = explain.Question(workload, paper, field.fp16, chosen, runner_up, costs, rates, field.fits)
    decision = Decision(
        format=chosen.format,
        granularity=chosen.granularity,
        reason=explain.reason(question, field.candidates, field.unavailable),
        margin=margin,
        runner_up=runner_up.label if runner_up else None,
        speedup_fp16=chosen.speedup_over(field.fp16),
        speedup_fp16_interval=None if chosen.timed else (field.fp16.us / chosen.high, field.fp16.us / chosen.low),
        confidence=_confidence(question, robust, margin),
        rule=text,
        expected_loss=chosen.loss,
        fits_memory=field.fits(chosen) if rates.device.memory_mib else None,
    )
    return decision, question


def _margin(runner_up: float, chosen: float) -> float | None:
    """By how much of the chosen time the runner-up under the same rule is slower; None where it is faster and lost on
    quality: there is no margin in time then, and the reason says what was weighed."""
    return runner_up / chosen - 1 if runner_up >= chosen else None


def _confidence(question: explain.Question, robust: bool, margin: float | None) -> Literal["high", "medium", "low"]:
    """high: measured, and the same choice at both ends of the interval; low: it hangs on the overlap.

    Measured: the choice, FP16 and the runner-up were timed here; or what the choice's modelled times rest on was.
    """
    rates, chosen, runner_up = question.rates, question.chosen, question.runner_up
    timed = chosen.timed and question.fp16.timed and (runner_up is None or runner_up.timed)
    tensors = (rates.tensor("f16"), rates.kernel_tensor(OPERANDS[chosen.format]))
    overlaps = (c.overlap_origin for c in question.costs if c.format == chosen.format and c.strategy != "none")
    known = all(t is not None and t.origin == "measured" for t in tensors) and all(o == "measured" for o in overlaps)
    if robust and (timed or known):
        return "high"
    if robust or ((timed or known) and margin is not None and margin >= SURE_MARGIN):
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
                kernel=time.kernel or None,
                origin=worst((time.origin, base.origin)),
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
