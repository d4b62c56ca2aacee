"""The answer in sentences: which format, which granularity, by how much, why."""

from __future__ import annotations

from apex4_probe.deployment import Decision, Origin, Profile
from apex4_probe.reports import wording


def times_origin(profile: Profile) -> Origin:
    """Where the speed-ups come from: ``measured`` only when every layer time was."""
    origins = {time.origin for layer in profile.layers for time in layer.times}
    return "measured" if origins == {"measured"} else "predicted"


def headline(profile: Profile) -> str:
    """The verdict in one sentence."""
    decision = profile.decision
    device = wording.clean(profile.device.name)
    opening = "Predicted, not measured: on" if profile.origin == "predicted" else "On"
    if decision.format == "fp16":
        return f"{opening} {device}, stay in FP16 for {wording.clean(profile.workload.model)}."
    answer = wording.described(decision.format, decision.granularity)
    sentence = f"{opening} {device}, use {answer} for {wording.clean(profile.workload.model)}"
    speed = speedup_phrase(profile, decision)
    return f"{sentence}: {speed}." if speed else f"{sentence}."


def speedup_phrase(profile: Profile, decision: Decision) -> str:
    """``~1.62× FP16 over the workload (1.31–1.98×), 12 % ahead of FP8``; empty when the profile has no figure."""
    if decision.speedup_fp16 is None:
        return ""
    phrase = f"{wording.times(decision.speedup_fp16, times_origin(profile))} FP16 over the workload"
    if decision.speedup_fp16_interval is not None:
        phrase += f" ({wording.interval(*sorted(decision.speedup_fp16_interval))})"
    if decision.margin is not None and decision.runner_up:
        phrase += f", {wording.percent(decision.margin)} ahead of {wording.plan_name(decision.runner_up)}"
    return phrase


def decision_facts(decision: Decision) -> list[tuple[str, str]]:
    """Everything that stands behind a decision, as label and text."""
    facts = [("Reason", wording.prose(decision.reason)), ("Rule", wording.prose(decision.rule))]
    facts.append(("Confidence", decision.confidence))
    if decision.margin is not None:
        runner_up = f" over {wording.plan_name(decision.runner_up)}" if decision.runner_up else ""
        facts.append(("Margin", wording.percent(decision.margin) + runner_up))
    if decision.expected_loss is not None:
        facts.append(("Expected loss", f"{decision.expected_loss:.3f} nats per token (a prior, not this model's own)"))
    if decision.fits_memory is not None:
        facts.append(("Fits in memory", "yes" if decision.fits_memory else "NO"))
    return [(label, text) for label, text in facts if text]


def w4a4_answer(profile: Profile) -> str:
    """The paper's question, which granularity within W4A4, in one sentence."""
    decision = profile.w4a4
    if decision is None:
        return "This profile does not answer which granularity W4A4 should have."
    if decision.format == "fp16":
        return "Stay in FP16: no W4A4 granularity qualifies."
    if decision.format != "w4a4":
        return f"{wording.described(decision.format, decision.granularity)}."
    word = wording.verdict_word(decision.format, decision.granularity)
    speed = speedup_phrase(profile, decision)
    answer = f"{word[0].upper()}{word[1:]}: {wording.described(decision.format, decision.granularity)}"
    return f"{answer}, {speed}." if speed else f"{answer}."


def provenance_line(profile: Profile) -> str:
    """Origin, date and tool version of the profile."""
    what = (
        "Measured on this device" if profile.origin == "measured" else "PREDICTED: nothing in this profile was measured"
    )
    return f"{what}; {wording.clean(profile.created)}, apex4-probe {wording.clean(profile.tool_version)}."
