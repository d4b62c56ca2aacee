"""The two rules of choice, each as a function and as the sentence that a profile states it in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from apex4_probe.candidates import RESOLUTION, UNIFORM, Candidate
from apex4_probe.deployment import Format, WorkloadRecord
from apex4_probe.field import Field
from apex4_probe.quality import QualityPrior

W4A4: tuple[Format, ...] = ("w4a4",)

Duration = Callable[[Candidate], float]
Rule = Callable[[Field, Duration], list[Candidate]]  # eligible candidates, the chosen one first; never empty


def fastest_rule(workload: WorkloadRecord, prior: QualityPrior) -> Rule:
    formats: set[Format] = {"fp16", workload.format} if workload.format != "auto" else set(UNIFORM)

    def rule(field: Field, us: Duration) -> list[Candidate]:
        pool = field.of(formats)
        eligible = [c for c in pool if c.loss <= workload.max_quality_loss] or [field.fp16]
        limit = min(map(us, eligible)) * (1 + RESOLUTION)
        best = best_quality([c for c in eligible if us(c) <= limit], us, prior)
        return [best, *sorted((c for c in eligible if c is not best), key=us)]

    return rule


def w4a4_rule(workload: WorkloadRecord, prior: QualityPrior) -> Rule:
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


def fastest_text(workload: WorkloadRecord, prior: QualityPrior) -> str:
    which = "plan" if workload.format == "auto" else f"of {workload.format} and FP16"
    return (
        f"the fastest {which} whose expected loss is at most {workload.max_quality_loss:g} nats; of those within "
        f"{RESOLUTION:.0%} of the fastest, the one that loses least ({_uniform_first(prior)})"
    )


def w4a4_text(workload: WorkloadRecord, prior: QualityPrior) -> str:
    return (
        f"the best expected quality among the W4A4 plans that reach {workload.min_speedup:g}x FP16 "
        f"({_uniform_first(prior)}); none does: FP16"
    )


def _uniform_first(prior: QualityPrior) -> str:
    return f"mixed only where that gains more than {prior.resolution:g} nats over uniform"
