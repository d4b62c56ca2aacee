"""The planner's choice in words: what a serving engineer needs in order to believe it, or to know what to doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from apex4_probe.candidates import RESOLUTION, Candidate
from apex4_probe.co_issue_notes import note
from apex4_probe.datasheets import Datasheet
from apex4_probe.deployment import (
    CoIssue,
    Device,
    Format,
    Granularity,
    LayerTime,
    Rejected,
    StrategyBalance,
    WorkloadRecord,
)
from apex4_probe.models import Model
from apex4_probe.quality import QualityPrior
from apex4_probe.rates import Rates
from apex4_probe.strategies import STRATEGIES
from apex4_probe.workload import describe

GIB = 2**30
PIPE_NAMES = {
    "tensor": "the Tensor Core",
    "fma": "the FMA pipe",
    "alu": "the integer pipe",
    "conversion": "the conversion pipe",
    "shared": "shared memory",
    "issue": "instruction issue",
    "memory": "memory bandwidth",
    "launch": "kernel launch and ramp",
}
MANY_POINTS = 4  # of a workload: beyond them a sentence names the extremes
WORTH_ANOTHER = 1.25  # times faster, from which on a part of the workload is worth naming for its other plan
LISTED_SHORTFALL = 0.75  # of the architecture's INT4 rate: a datasheet below it lists something else than the silicon


@dataclass(frozen=True)
class Question:
    """What was asked (``w4a4``: the paper's question) and what came out."""

    workload: WorkloadRecord
    w4a4: bool
    fp16: Candidate
    chosen: Candidate
    runner_up: Candidate | None
    costs: Sequence[StrategyBalance]
    rates: Rates
    fits: Callable[[Candidate], bool]  # in the device's memory


def reason(question: Question, candidates: Sequence[Candidate], unavailable: Sequence[Rejected]) -> str:
    """Two to five sentences: the choice, the speed-ups, what a group scale costs here, what else was close."""
    chosen = question.chosen
    if chosen.format == "fp16":
        return " ".join(_stay(question, candidates, unavailable))
    sentences = [f"{short(chosen)} is {_verdict(question)}: {_speeds(chosen, question)}."]
    sentences += _group_costs(question, chosen, candidates)
    if question.w4a4:
        sentences += _faster(question, candidates)
    elif question.runner_up is not None:
        sentences.append(_next(question.runner_up, chosen))
        sentences += _one_point_alone(question, candidates)
    return " ".join(sentences)


def _verdict(question: Question) -> str:
    loss = f"{question.chosen.loss:.2f} nats expected"
    if question.w4a4:
        return f"the best in quality ({loss}) of the W4A4 plans that reach {question.workload.min_speedup:g}x FP16"
    return f"the fastest plan within {question.workload.max_quality_loss:g} nats ({loss})"


def _speeds(candidate: Candidate, question: Question) -> str:
    gains = [
        (base / us, describe(point))
        for point, us, base in zip(question.workload.points, candidate.point_us, question.fp16.point_us, strict=True)
    ]
    told = gains if len(gains) <= MANY_POINTS else [min(gains), max(gains)]
    by_point = (", " if told is gains else " to ").join(f"{where} {gain:.2f}x" for gain, where in told)
    return f"{candidate.speedup_over(question.fp16):.2f}x FP16 overall ({by_point})"


def _faster(question: Question, candidates: Sequence[Candidate]) -> Iterable[str]:
    """W4A4 plans that were not taken although they are faster: the runner-up and the fastest."""
    chosen, runner_up = question.chosen, question.runner_up
    fastest = min((c for c in candidates if c.format == "w4a4"), key=lambda c: c.us)
    if runner_up is not None and runner_up is not fastest and runner_up.us < chosen.us:
        speed = runner_up.speedup_over(question.fp16)
        more = runner_up.loss - chosen.loss
        yield f"Next in quality comes {short(runner_up)}, {speed:.2f}x for {more:.2f} nats more."
    if fastest is not chosen:
        speed = fastest.speedup_over(question.fp16)
        yield f"{short(fastest)} would be the fastest at {speed:.2f}x, for {fastest.loss - chosen.loss:.2f} nats more."


def _next(other: Candidate, chosen: Candidate) -> str:
    if other.us < chosen.us:
        faster = chosen.us / other.us - 1
        return f"{short(other)} is {faster:.1%} faster, which is noise, and would lose {other.loss:.2f} nats."
    return f"Next comes {short(other)}, {other.us / chosen.us - 1:.0%} slower ({other.loss:.2f} nats)."


def _one_point_alone(question: Question, candidates: Sequence[Candidate]) -> Iterable[str]:
    """Where a part of the workload has another fastest plan: who serves that part on its own should know."""
    workload, chosen = question.workload, question.chosen
    asked = [c for c in candidates if workload.format in ("auto", c.format)]
    pool = [c for c in asked if c.loss <= workload.max_quality_loss and question.fits(c)]
    found = []
    for index, point in enumerate(workload.points):
        best = min(pool, key=lambda c: c.point_us[index], default=chosen)
        gain = chosen.point_us[index] / best.point_us[index]
        if gain >= WORTH_ANOTHER:
            found.append((gain, describe(point), short(best)))
    if found and len(workload.points) > 1:
        gain, where, name = max(found)
        yield f"For {where} alone {name} would be {gain:.2f}x as fast."


def _stay(question: Question, candidates: Sequence[Candidate], unavailable: Sequence[Rejected]) -> Iterable[str]:
    workload = question.workload
    if workload.format == "fp16" and not question.w4a4:
        yield "FP16 was asked for."
        return
    wanted: tuple[Format, ...] = ("fp8", "w4a16", "w4a8", "w4a4")
    if question.w4a4:
        wanted = ("w4a4",)
    elif workload.format != "auto":
        wanted = (workload.format,)
    yield "Stay in FP16."
    tried = sorted((c for c in candidates if c.format in wanted), key=lambda c: c.us)
    allowed = tried if question.w4a4 else [c for c in tried if c.loss <= workload.max_quality_loss]
    if tried:
        best = (allowed or tried)[0]
        limit = f"{best.loss:.2f} nats expected where {workload.max_quality_loss:g} are allowed"
        if allowed:
            limit = (
                f"less than the {workload.min_speedup:g}x asked for" if question.w4a4 else "no gain beyond the noise"
            )
        yield f"{short(best)} comes nearest: {_speeds(best, question)}, {limit}."
        if allowed:  # else quality decided, not time
            yield from _group_costs(question, best, candidates)
    refusals: dict[str, list[str]] = {}
    for item in unavailable:
        if item.variant.partition(" ")[0] in wanted:
            refusals.setdefault(item.why, []).append(_capitals(item.variant))
    yield from (f"{', '.join(names)}: {why.rstrip('.')}." for why, names in refusals.items())
    instead = [c for c in candidates if c.format == "w4a8" and c.loss <= workload.max_quality_loss]
    if question.w4a4 and not tried and instead:
        best = min(instead, key=lambda c: c.us)
        yield f"INT8 Tensor Cores instead: {short(best)} is {_speeds(best, question)}, {best.loss:.2f} nats expected."


def _group_costs(question: Question, plan: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    """What the group scales of ``plan`` cost here; where it has none of its own, why not float ones per 128."""
    own = _cheapest(question.costs, plan.format, plan.granularity) if plan.granularity != "channel" else None
    sentences = []
    if own:
        label = STRATEGIES[own.strategy].label
        sentences.append(f"{own.granularity} ({label}) {group_cost(own)}, so {_over_channel(own, plan, candidates)}.")
    fine = next((c for c in candidates if (c.format, c.granularity) == (plan.format, "g128")), None)
    cost = _cheapest(question.costs, plan.format, "g128")
    if cost and fine and fine is not plan and fine.us > plan.us * (1 + RESOLUTION):  # else quality decided
        everywhere = " everywhere" if plan.granularity == "mixed" else ""
        label = STRATEGIES[cost.strategy].label
        effect = _over_channel(cost, fine, candidates)
        why = f"{effect} ({label})" if own else f"{label} {group_cost(cost)}, so {effect}"
        sentences.append(f"g128 was not taken{everywhere} for its cost: {why}.")
    return sentences


def _cheapest(costs: Sequence[StrategyBalance], format: Format, granularity: Granularity) -> StrategyBalance | None:
    found = (cost for cost in costs if (cost.format, cost.granularity) == (format, granularity))
    return min(found, key=lambda cost: cost.cycles_expected, default=None)


def group_cost(cost: StrategyBalance) -> str:
    """What one strategy does, as the rest of a sentence: the busiest pipe, and what of it hides."""
    work = {pipe: cost.pipes[pipe] for pipe in ("fma", "alu", "conversion")}
    tensor = cost.pipes["tensor"]
    slowest = max(work, key=lambda pipe: work[pipe])
    share = work[slowest] / tensor
    load = f"{share:.1f} times" if share > 1 else f"{share:.0%} of"
    origin = "measured here" if cost.overlap_origin == "measured" else "predicted"
    return f"keeps {PIPE_NAMES[slowest]} busy for {load} the Tensor Core's time, overlap {cost.overlap:.0%} ({origin})"


def _over_channel(cost: StrategyBalance, plan: Candidate, candidates: Iterable[Candidate]) -> str:
    """What a granularity costs: its layers by the clock where they were timed, else its kernel by the balance."""
    channel = next((c for c in candidates if (c.format, c.granularity) == (plan.format, "channel")), None)
    if channel is not None and channel.timed and plan.timed:
        return f"its layers take {plan.us / channel.us:.2f}x the per-channel ones (timed here)"
    return f"the kernel takes {cost.over_channel:.2f}x the per-channel one"


def why_not(candidate: Candidate, question: Question, fits: bool) -> str:
    """One sentence on a plan that was not taken."""
    workload, chosen = question.workload, question.chosen
    speedup = candidate.speedup_over(question.fp16)
    speed = f"{speedup:.2f}x FP16"
    if not fits:
        why = f"its weights ({candidate.weight_bytes / GIB:.1f} GiB) do not fit the device's memory"
    elif workload.format not in ("auto", candidate.format) and candidate.format != "fp16":
        why = f"--format {workload.format} was asked for ({speed}, {candidate.loss:.2f} nats expected)"
    elif workload.format == "w4a4" and candidate.format == "fp16":
        why = (
            f"{chosen.label} reaches {chosen.speedup_over(question.fp16):.2f}x, and {workload.min_speedup:g}x is enough"
        )
    elif workload.format == "w4a4" and speedup < workload.min_speedup:
        why = f"reaches {speed}, less than the {workload.min_speedup:g}x asked for"
    elif workload.format == "w4a4":
        why = f"expected to lose {candidate.loss:.3f} nats against {chosen.loss:.3f} ({speed})"
    elif candidate.loss > workload.max_quality_loss:
        why = f"expected to lose {candidate.loss:.2f} nats, {workload.max_quality_loss:g} are allowed ({speed})"
    elif candidate.us <= chosen.us:
        why = f"as fast within the noise ({speed}), but loses {candidate.loss:.3f} nats against {chosen.loss:.3f}"
    else:
        why = f"slower: {speed} against {chosen.speedup_over(question.fp16):.2f}x"
    return why


def layer_reason(times: Sequence[LayerTime], workload: WorkloadRecord) -> str:
    """What bounds this layer at each point of the workload, and its speed-up there; many points together by bound."""
    if len(times) <= MANY_POINTS:
        parts = [
            f"{describe(point)}: {time.us_fp16 / time.us:.2f}x FP16{_timed(time)} bound by {PIPE_NAMES[time.bound_by]}"
            for point, time in zip(workload.points, times, strict=True)
        ]
        return "; ".join(parts)
    gains: dict[tuple[str, str], list[float]] = {}
    for time in times:
        gains.setdefault((time.bound_by, _timed(time)), []).append(time.us_fp16 / time.us)
    return "; ".join(
        f"{min(found):.2f} to {max(found):.2f}x FP16{timed} bound by {PIPE_NAMES[pipe]} at {len(found)} of {len(times)}"
        for (pipe, timed), found in gains.items()
    )


def _timed(time: LayerTime) -> str:
    """A stopwatch does not say what binds."""
    return ", timed, and in the model" if time.origin == "measured" else ","


def emulated(rates: Rates) -> str:
    support = rates.architecture.support("mma.s4.m16n8k64")
    if support.level == "native":
        return f"the SASS that was measured on {rates.device.name} holds no native INT4 MMA"
    where = rates.architecture.compute_capability
    return f"INT4 is emulated on compute capability {where}: {support.reason}"


def _as_int8(rates: Rates) -> str:
    """What becomes of w4a4 checkpoints where the kernels widen INT4 to INT8 (``kernels/cuda/int4_mma.cuh``)."""
    if rates.architecture.support("mma.s4.m16n8k64").level != "emulated" or rates.architecture.no_int8_plan:
        return ""
    return (
        " Checkpoints quantised to W4A4 run all the same, their values widened to INT8: W4A8 executes the same MMAs, "
        "widens one operand instead of both, so costs no more, and keeps eight bits of every activation."
    )


def fits(device: Device, candidate: Candidate, share: float) -> bool:
    """Weights within ``share`` of the memory; a device that does not tell its memory is taken to be large enough."""
    return device.memory_mib is None or candidate.weight_bytes <= share * device.memory_mib * 2**20


def notes(
    rates: Rates,
    model: Model,
    chosen: Candidate,
    enough: bool,
    share: float,
    prior: QualityPrior,
    sheet: Datasheet | None,
    co_issue: Iterable[CoIssue],
) -> Iterable[str]:
    """Sentences for the reader of a profile."""
    facts = rates.architecture
    yield from model.notes
    yield (
        "Times cover the linear layers of the transformer blocks, input quantisation and launches included; attention, "
        f"norms and the output head cost the same in every format. {_times_are(chosen)}"
    )
    yield prior.label
    if facts.block_scales_in_hardware:
        losses = f"{prior.block_scaled['nvfp4']:.2f} and {prior.block_scaled['mxfp4']:.2f} nats expected"
        yield (
            f"Block scales are in hardware: {facts.block_scales_in_hardware}, so group scales cost no CUDA-core work. "
            f"For W4A4 take NVFP4 or MXFP4 ({losses}) by the kernels of QuTLASS (10.0, 12.0) or CUTLASS, which "
            "vLLM calls; none are offered here."
        )
    if facts.tcgen05:
        yield f"On {facts.compute_capability} {facts.tcgen05}; plans use the architecture's documented rate."
    if facts.no_int8_plan:
        yield f"No INT8 plan: {facts.no_int8_plan}."
    if rates.tensor("s4") is None:
        yield f"No INT4 plan: {emulated(rates)}. What it measures is no INT4 rate.{_as_int8(rates)}"
    yield from _listing(rates, sheet)
    if seen := note(co_issue):
        yield seen
    yield from _memory(rates.device, model, chosen, enough, share)


def _times_are(chosen: Candidate) -> str:
    if chosen.timed:
        return "Those of the plan were timed on this GPU; other plans' were too where the table of timings has them."
    if any(time.origin == "measured" for role in chosen.roles for time in role.times):
        return "Those marked measured were timed on this GPU; the others are computed from the figures above."
    return "They are computed from the figures above, not timed."


def _listing(rates: Rates, sheet: Datasheet | None) -> Iterable[str]:
    listed, rate = sheet.value("int4_tops") if sheet else None, rates.architecture.rates["mma.s4"].value
    if not listed or not rate or not rates.device.max_sm_clock_mhz:
        return
    silicon = rate * rates.device.sm_count * rates.device.max_sm_clock_mhz * 2 / 1e6
    tensor = rates.tensor("s4")
    if listed < LISTED_SHORTFALL * silicon and tensor is not None:
        used = "the measured rate was used" if tensor.origin == "measured" else "the listed rate was used"
        yield (
            f"The datasheet lists {listed:g} INT4 TOPS where the architecture's rate gives {silicon:.0f}; {used}, and "
            "a measurement beats both."
        )


def _memory(device: Device, model: Model, chosen: Candidate, enough: bool, share: float) -> Iterable[str]:
    if device.memory_mib is None:
        return
    memory = device.memory_mib * 2**20
    have = f"{device.memory_mib / 1024:.1f} GiB" + (" a GPU" if model.tensor_parallel > 1 else "")
    need = f"The weights in {chosen.label} take {chosen.weight_bytes / GIB:.1f} of {have}"
    if not enough:
        ranks = 1
        while chosen.weight_bytes / ranks > share * memory:
            ranks *= 2
        more = ranks * model.tensor_parallel
        yield f"{need} and do not fit: {share:.0%} of it may be used. Shard over more GPUs: --tp {more}."
        return
    tokens = int((share * memory - chosen.weight_bytes) / model.kv_bytes_per_token)
    yield f"{need}; what is left below {share:.0%} of it holds {tokens:,} tokens of a 16-bit KV cache."


def named(candidate: Candidate) -> str:
    """Its label, the format in capitals."""
    return _capitals(candidate.label)


def _capitals(label: str) -> str:
    format, space, rest = label.partition(" ")
    return f"{format.upper()}{space}{rest}"


def short(candidate: Candidate) -> str:
    """As ``named``, without the strategy that a uniform plan's kernels would use."""
    label = named(candidate)
    return label if candidate.granularity == "mixed" else label.partition(" (")[0]
