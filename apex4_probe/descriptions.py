"""What each number in a profile measures, one plain sentence each."""

from __future__ import annotations

from apex4_probe.deployment import Measurement, Profile

UNKNOWN = "This version of apex4-probe does not know what this number measures."

CO_ISSUE = (
    "Cycles of a Tensor Core loop that also executes k CUDA-core instructions per accumulator and four MMA K-steps, "
    "over those of the same loop without them."
)
INSTRUCTIONS = {
    "nop": "The work beside the MMA is NOP, which takes an issue slot and nothing else.",
    "ffma": "The work beside the MMA is FFMA with one fresh source register.",
    "ffma3": "The work beside the MMA is FFMA with three fresh source registers, the most that one can read.",
    "fadd": "The work beside the MMA is FADD, an fp32 addition.",
    "imad": "The work beside the MMA is IMAD, a 32-bit integer multiply-add.",
    "lop3": "The work beside the MMA is LOP3, logic on the ALU pipe.",
    "i2f_ffma": "The work beside the MMA is a conversion to fp32 and the FFMA that uses it.",
    "mix.i2f_ffma": "The work beside the MMA is dequantisation with one operand's scale: I2F, then FFMA.",
    "mix.i2f_fmul_ffma": "The work beside the MMA is plain dequantisation with both operands' scales: I2F, FMUL, FFMA.",
    "mix.magic_ffma2": "The work beside the MMA is dequantisation by a magic-number accumulator: two FFMA.",
    "mix.magic_fadd_ffma": "The work beside the MMA is dequantisation by a magic-number accumulator: FADD, then FFMA.",
    "mix.imad": "The work beside the MMA is dequantisation with an integer group scale: one IMAD.",
}
PLACEMENTS = {
    "same_warps": "The warps that issue the MMA also do the CUDA-core work, between their MMAs.",
    "other_warps": "Other warps of the same SM do the CUDA-core work.",
    "at_issue": "A second warpgroup does the CUDA-core work and is let go as soon as the first has issued its MMAs.",
    "after_complete": "A second warpgroup does the CUDA-core work and is let go when the first's MMAs are complete.",
    "no_handover": "Two warpgroups multiply and do CUDA-core work each at its own pace, without a hand-over.",
}
PIPES = {
    "tensor": "SM cycles of the Tensor Core per accumulator and 128 of K.",
    "fma": "SM cycles of the FMA pipe (FFMA, FMUL, FADD, IMAD) per accumulator and 128 of K.",
    "alu": "SM cycles of the ALU pipe (logic, shifts, byte permutation) per accumulator and 128 of K.",
    "conversion": "SM cycles of the pipe that turns integers into floats per accumulator and 128 of K.",
    "shared": "SM cycles in which shared memory moves the operands, per accumulator and 128 of K.",
    "issue": "SM cycles of the issue slots that all instructions pass, per accumulator and 128 of K.",
}
RHO = {
    "int4": "INT4 Tensor Core throughput over FP32 CUDA Core throughput, two operations per MAC and per FMA.",
    "int8": "INT8 Tensor Core throughput over FP32 CUDA Core throughput, two operations per MAC and per FMA.",
}
SPEEDUP = (
    "Time of all linear layers over the workload in FP16, over that of the plan; the interval runs from no overlap of "
    "the pipes to full overlap."
)
LINKS = (
    "Copies from this GPU's memory to another GPU's, back, and both ways at once, by the copy engines, 10^9 bytes per "
    "second; and the time of a copy of 16 bytes."
)
LOSS = "Quality that the plan is expected to lose, in nats per token over FP16, from a prior of one small model."


def measurement_sentence(figure: Measurement) -> str:
    """What ``figure`` measures, its unit's counting rule included."""
    from apex4_probe.microbench import suite

    what = suite.describe(figure.name)
    if not what:
        return UNKNOWN
    capital = what[0].upper() + what[1:]
    if figure.unit in ("TOPS", "TFLOPS"):
        return f"Rate of {what}; two operations per multiply-add."
    if figure.unit == "Tinstr/s":
        return f"Rate of {what}, in thread-instructions."
    return f"{capital}, in microseconds." if figure.unit == "us" else f"Bandwidth of {what}, 10^9 bytes per second."


def descriptions(profile: Profile) -> list[tuple[str, str]]:
    """Name and sentence of every kind of number that ``profile`` holds, in its order, each once."""
    found: dict[str, str] = {}
    for figure in profile.measurements:
        found.setdefault(figure.name, measurement_sentence(figure))
    if profile.co_issue:
        found["co_issue"] = CO_ISSUE
    for point in profile.co_issue:
        found.setdefault(f"co_issue {point.instruction}", INSTRUCTIONS.get(point.instruction, UNKNOWN))
    for point in profile.co_issue:
        found.setdefault(f"co_issue {point.placement}", PLACEMENTS[point.placement])
    for kind in profile.rho:
        found[f"rho {kind}"] = RHO[kind]
    for item in profile.balance:
        for pipe in item.pipes:
            found.setdefault(f"balance {pipe}", PIPES.get(pipe, UNKNOWN))
    if profile.links:
        found["links"] = LINKS
    if profile.decision.speedup_fp16 is not None:
        found["speed-up"] = SPEEDUP
    if profile.decision.expected_loss is not None:
        found["expected loss"] = LOSS
    return list(found.items())
