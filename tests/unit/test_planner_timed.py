"""Choices from GEMMs that were timed: they stand in the place of the model's times, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from recorded_h100 import H100, co_issue, measurements

from apex4_probe.datasheets import find
from apex4_probe.deployment import GemmTiming, WorkloadRecord
from apex4_probe.models import load_model, shard
from apex4_probe.planner import Plan, plan
from apex4_probe.prediction import predict_device
from apex4_probe.selection import GemmKey, fastest
from apex4_probe.workload import parse_workload

LLAMA = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))  # qkv, o, gate_up, down
KINDS = {
    "fp16": ("fp16", "none", ""),
    "fp8": ("fp8", "channel", "quantised by torch.compile"),
    "w4a8.mma.channel": ("w4a8", "channel", "none"),
    "w4a8.mma.g128i": ("w4a8", "g128i", "widen"),
    "w4a8.mma.g128": ("w4a8", "g128", "i2f_ffma"),
    "w4a16.fp16.g128": ("w4a16", "g128", "before_mma"),
}
# Of FP16's time, GEMM alone, at M = 16 and at M = 2048
SHARES = {
    "fp16": (1.0, 1.0),
    "fp8": (0.60, 0.53),
    "w4a8.mma.channel": (0.35, 0.70),
    "w4a8.mma.g128i": (0.36, 0.71),
    "w4a8.mma.g128": (0.37, 1.20),
    "w4a16.fp16.g128": (0.38, 1.25),
}
Us = Callable[[str, int, int, int], float]


def by_shares(variant: str, m: int, n: int, k: int) -> float:
    return SHARES[variant][m > 16] * (10.0 + n * k * max(m, 200) / 3e8)


def timings(
    shapes: Iterable[tuple[int, int]] = LLAMA,
    us: Us = by_shares,
    quantise: dict[str, float] | None = None,
    tokens: tuple[int, ...] = (16, 2048),
) -> list[GemmTiming]:
    costs = {"w4a8": 2.0, "fp8": 2.0, **(quantise or {})}
    return [
        GemmTiming.model_validate(
            {
                "n": n, "k": k, "m": m, "variant": variant, "format": format, "granularity": granularity,
                "strategy": strategy, "tile": "rows=128" if "." in variant else "", "us": us(variant, m, n, k),
                "us_quantise": costs.get(format, 0.0), "spread": 0.004, "samples": 15,
            }
        )
        for m in tokens
        for n, k in shapes
        for variant, (format, granularity, strategy) in KINDS.items()
    ]  # fmt: skip


def planned(timed: list[GemmTiming], workload: str = "decode:16,prefill:2048", **options: Any) -> Plan:
    strategies = options.pop("strategies", None)
    asked = WorkloadRecord(model="llama-3-8b", points=parse_workload(workload), **options)
    return plan(H100, measurements(), co_issue(), asked, load_model("llama-3-8b"), strategies=strategies, timings=timed)


def test_the_choice_its_speed_up_and_margin_are_those_of_the_clock() -> None:
    timed = timings()
    found = planned(timed, workload="decode:16*40,prefill:2048")
    us = {
        variant: sum((40 if t.m == 16 else 1) * (t.us + t.us_quantise) for t in timed if t.variant == variant)
        for variant in KINDS
    }
    decision = found.decision
    assert (decision.format, decision.granularity) == ("w4a8", "g128i")  # 3 % behind per channel would be noise
    assert decision.speedup_fp16 == pytest.approx(us["fp16"] / us["w4a8.mma.g128i"])
    assert decision.speedup_fp16_interval is None  # timed: no pipes to overlap
    assert decision.runner_up == "w4a8 per channel"
    assert (decision.margin, decision.confidence) == (None, "high")  # the runner-up is faster, within the noise
    assert "so its layers take 1.0" in decision.reason and "x the per-channel ones (timed here)" in decision.reason
    assert any("Those of the plan were timed on this GPU" in note for note in found.notes)


def test_the_model_says_something_else_than_the_clock_and_the_clock_is_believed() -> None:
    slow = timings(us=lambda variant, m, n, k: by_shares(variant, m, n, k) * (4 if "w4a" in variant else 1))
    modelled, clocked = planned([], workload="decode:16*40,prefill:2048"), planned(slow, "decode:16*40,prefill:2048")
    assert (modelled.decision.format, clocked.decision.format) == ("w4a8", "fp8")


def test_a_part_of_the_workload_with_another_fastest_plan_is_named_and_layers_say_they_were_timed() -> None:
    def w4a8_in_decode(variant: str, m: int, n: int, k: int) -> float:
        decode = {"fp16": 40.0, "fp8": 30.0, "w4a8.mma.g128i": 12.0}
        prefill = {"fp16": 400.0, "fp8": 200.0, "w4a8.mma.g128i": 300.0}
        return (decode if m == 16 else prefill).get(variant, 900.0)

    found = planned(timings(us=w4a8_in_decode))
    assert found.decision.format == "fp8"
    assert "For decode at 16 alone W4A8 g128i would be 2.29x as fast." in found.decision.reason  # 32 over 14
    assert found.layers[0].reason.startswith("decode at 16: 1.25x FP16, timed, and in the model bound by ")
    near = timings(us=lambda v, m, n, k: 30.0 if (v, m) == ("w4a8.mma.g128i", 16) else w4a8_in_decode(v, m, n, k))
    assert "alone" not in planned(near).decision.reason
    assert "alone" not in planned(timings(us=w4a8_in_decode), max_quality_loss=0.05).decision.reason  # W4A8 loses more


def test_quantising_is_counted_for_fp8_too() -> None:
    """FP8's GEMM alone is faster; with a slow quantiser W4A8 is."""

    def close(variant: str, m: int, n: int, k: int) -> float:
        return {"fp16": 60.0, "fp8": 30.0, "w4a8.mma.g128i": 34.0}.get(variant, 70.0)

    fair, slow = (planned(timings(us=close, quantise={"fp8": us})).decision for us in (2.0, 9.0))
    assert (fair.format, slow.format) == ("fp8", "w4a8")
    assert fair.speedup_fp16 == pytest.approx(60 / 32)
    assert slow.speedup_fp16 == pytest.approx(60 / 36)
    assert fair.margin == pytest.approx(36 / 32 - 1)


def test_layers_carry_the_kernel_and_their_share_of_the_fused_gemm() -> None:
    timed = timings()
    found = planned(timed, format="w4a8")
    keys = fastest(timed)
    for role, gemm_n, k in (("q", 6144, 4096), ("v", 6144, 4096), ("up", 28672, 4096), ("down", 4096, 14336)):
        (layer,) = [layer for layer in found.layers if layer.role == role]
        for time in layer.times:
            whole = keys[GemmKey(time.m, gemm_n, k, "w4a8", "g128i")]
            fp16 = keys[GemmKey(time.m, gemm_n, k, "fp16", "none")]
            assert time.origin == "measured" and time.kernel == "w4a8.mma.g128i rows=128"
            assert time.us == time.us_low == time.us_high == pytest.approx((whole.us + 2.0) * layer.n / gemm_n)
            assert time.us_quantise == pytest.approx(2.0 * layer.n / gemm_n)
            assert time.us_fp16 == pytest.approx(fp16.us * layer.n / gemm_n)
            assert time.bound_by in ("memory", "tensor", "launch", "issue", "alu", "fma", "conversion", "shared")


def test_what_was_not_timed_stays_predicted_and_says_so() -> None:
    found = planned(timings(shapes=LLAMA[:3]), format="w4a8")  # the budget ended before down
    origins = {layer.role: {(time.origin, bool(time.kernel)) for time in layer.times} for layer in found.layers}
    assert origins["gate"] == {("measured", True)} and origins["down"] == {("predicted", False)}
    assert found.decision.speedup_fp16_interval is not None
    assert any("Those marked measured were timed on this GPU" in note for note in found.notes)


def test_an_fp16_that_was_not_timed_leaves_the_speed_up_predicted() -> None:
    found = planned([timing for timing in timings() if timing.variant != "fp16"], format="w4a8")
    assert {time.origin for layer in found.layers for time in layer.times} == {"predicted"}


def test_excluded_strategies_are_not_taken_from_the_timings() -> None:
    fast = timings(us=lambda variant, m, n, k: 1.0 if variant == "w4a8.mma.g128" else by_shares(variant, m, n, k))
    anything, without = planned(fast, format="w4a8"), planned(fast, format="w4a8", strategies={"widen"})
    assert (anything.decision.granularity, without.decision.granularity) == ("g128", "g128i")
    (refused,) = [item for item in without.rejected if item.variant == "w4a8 g128"]
    assert refused.why == "its dequantisation strategies were excluded"
    assert (anything.decision.speedup_fp16 or 0) > 10 > (without.decision.speedup_fp16 or 0)


def test_shards_are_looked_up_by_their_own_shapes() -> None:
    asked = WorkloadRecord(model="llama-3-8b", points=parse_workload("decode:16"), tensor_parallel=2, format="w4a8")
    model = shard(load_model("llama-3-8b"), 2)
    shapes = ((3072, 4096), (4096, 2048), (14336, 4096), (4096, 7168))
    for offered, origin in ((shapes, "measured"), (LLAMA, "predicted")):
        found = plan(H100, measurements(), co_issue(), asked, model, timings=timings(offered))
        assert {time.origin for layer in found.layers for time in layer.times} == {origin}


@pytest.mark.parametrize("format", ["auto", "w4a4"])
def test_emulated_int4_is_never_chosen_however_fast_it_was_timed(format: Any) -> None:
    fp16 = [timing for timing in timings() if timing.variant == "fp16"]
    changes = {"variant": "w4a4.mma.a128i", "format": "w4a4", "granularity": "a128i", "strategy": "imad", "us": 0.01}
    emulated = [timing.model_copy(update=changes) for timing in fp16]
    found = planned([*timings(), *emulated], format=format, max_quality_loss=9.0)
    assert "w4a4" not in {found.decision.format, found.w4a4.format, *(layer.format for layer in found.layers)}
    (why,) = [item.why for item in found.rejected if item.variant == "w4a4"]
    assert "no native INT4 MMA" in why or "INT4 is emulated on compute capability 9.0" in why


def test_w4a4_is_modelled_beside_what_was_timed() -> None:
    """GEMMs of native INT4 that were not timed have the model's times, over an FP16 that was."""
    device, figures, points = predict_device(find("A100"))
    asked = WorkloadRecord(model="llama-3-8b", points=parse_workload("decode:16"), format="w4a4")
    found = plan(device, figures, points, asked, load_model("llama-3-8b"), timings=timings())
    assert found.decision.format == "w4a4" and found.decision.speedup_fp16_interval is not None
    assert {time.origin for layer in found.layers for time in layer.times} == {"predicted"}
    us = sum(layer.count * time.us_fp16 for layer in found.layers for time in layer.times)
    assert us == pytest.approx(32 * sum(t.us for t in timings() if t.variant == "fp16" and t.m == 16))
