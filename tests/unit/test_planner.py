"""The choices, as tables of cases: device, question, verdict. The rule is tested, never a device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from recorded_h100 import H100, co_issue, measurements

from apex4_probe.candidates import Candidate, pareto
from apex4_probe.datasheets import datasheets, find
from apex4_probe.deployment import CoIssue, Device, Measurement, WorkloadRecord
from apex4_probe.errors import ApexError
from apex4_probe.models import load_model
from apex4_probe.planner import Plan, plan
from apex4_probe.prediction import predict_device
from apex4_probe.shipped import nearest
from apex4_probe.workload import parse_workload

PLAIN = {"i2f_fmul_ffma"}  # the strategy of the published kernel


def question(workload: str = "decode:16,prefill:2048", model: str = "llama-3-8b", **options: Any) -> WorkloadRecord:
    return WorkloadRecord(model=model, points=parse_workload(workload), **options)


def predicted(
    device: str, strategies: Collection[str] | None = None, model: str = "llama-3-8b", **options: Any
) -> Plan:
    """From datasheet figures alone."""
    return plan(
        *predict_device(find(device)), question(model=model, **options), load_model(model), strategies=strategies
    )


def recorded(points: list[CoIssue] | None = None, **options: Any) -> Plan:
    return plan(
        H100, measurements(), co_issue() if points is None else points, question(**options), load_model("llama-3-8b")
    )


def why(found: Plan, variant: str) -> str:
    return next(item.why for item in found.rejected if item.variant.startswith(variant))


# The paper's question with the paper's strategy: RTX 3090, A40 and L40S run g128, A100 does not.
@pytest.mark.parametrize(
    ("device", "verdict"),
    [
        ("RTX 3090", {"g128"}),
        ("A40", {"g128"}),
        ("L40S", {"g128"}),
        ("A10", {"g128"}),
        ("RTX 4090", {"g128"}),
        ("A100", {"mixed", "channel"}),
        ("A30", {"mixed", "channel"}),
    ],
)
def test_w4a4_with_the_plain_strategy(device: str, verdict: set[str]) -> None:
    decision = predicted(device, PLAIN, format="w4a4").decision
    assert decision.format == "w4a4"
    assert decision.granularity in verdict
    assert decision.speedup_fp16 is not None and decision.speedup_fp16 >= 1.2


def test_on_a100_plain_g128_is_no_faster_than_fp16_and_the_reason_names_the_pipe() -> None:
    found = predicted("A100", PLAIN, format="w4a4")
    assert "less than the 1.2x" in why(found, "w4a4 g128")
    assert "g128 was not taken" in found.decision.reason
    assert "keeps the conversion pipe busy for 2.0 times the Tensor Core's time" in found.decision.reason
    plain = next(item for item in found.balance if (item.granularity, item.strategy) == ("g128", "i2f_fmul_ffma"))
    assert f"{plain.over_channel:.2f}x the per-channel one" in found.decision.reason


# What changes with the strategies of this project: fine granularity reaches A100 too, and costs less elsewhere.
@pytest.mark.parametrize("device", ["RTX 3090", "A40", "L40S", "A100"])
def test_w4a4_with_every_strategy(device: str) -> None:
    ours, plain = predicted(device, format="w4a4").decision, predicted(device, PLAIN, format="w4a4").decision
    assert (ours.format, ours.granularity) == ("w4a4", "g128")
    assert "magic number, 2 FFMA" in ours.reason
    assert ours.speedup_fp16 is not None and plain.speedup_fp16 is not None
    assert ours.speedup_fp16 > plain.speedup_fp16
    assert ours.expected_loss is not None and plain.expected_loss is not None
    assert ours.expected_loss <= plain.expected_loss


def test_integer_activation_scales_cost_least_of_all_group_scales_on_a100() -> None:
    over = {(item.granularity, item.strategy): item.over_channel for item in predicted("A100").balance[:4]}
    assert over["a128i", "imad"] == pytest.approx(1.29, rel=0.08)
    assert over["g128", "magic_ffma2"] == pytest.approx(2.03, rel=0.08)
    assert over["a128i", "imad"] < over["g128", "magic_ffma2"] < over["g128", "i2f_fmul_ffma"]


# Which format at all: the fastest within 0.15 nats. W4A4 is expected to lose more than that everywhere.
@pytest.mark.parametrize(
    ("device", "format", "granularity"),
    [
        ("RTX 3090", "w4a8", "g128i"),  # as fast as per channel within the noise, and loses less
        ("A100", "w4a8", "g128i"),
        ("L40S", "fp8", "none"),  # W4A8 is as fast within the noise and loses more
        ("H100", "fp8", "none"),
        ("H200", "fp8", "none"),
        ("B200", "fp8", "none"),
        ("B300", "fp8", "none"),
        ("RTX 5090", "fp8", "none"),
        ("T4", "fp16", "none"),
    ],
)
def test_the_format_for_one_decode_step_a_prefill(device: str, format: str, granularity: str) -> None:
    decision = predicted(device).decision
    assert (decision.format, decision.granularity) == (format, granularity)


# Where decoding dominates, weights of 4 bit win over FP8.
@pytest.mark.parametrize(
    ("device", "format"),
    [("RTX 3090", "w4a8"), ("A100", "w4a8"), ("L40S", "w4a8"), ("H100", "w4a8"), ("B200", "fp8"), ("T4", "fp16")],
)
def test_the_format_for_sixteen_decode_steps_a_prefill(device: str, format: str) -> None:
    """A batch of 16 sequences, each 2048 tokens in and 256 out."""
    assert predicted(device, workload="decode:16*16,prefill:2048").decision.format == format


def test_one_sequence_decoding_on_a100_takes_w4a16() -> None:
    decision = predicted("A100", workload="decode:1").decision
    assert decision.format == "w4a16"
    assert decision.expected_loss == pytest.approx(0.0785)


def test_a_looser_limit_on_quality_lets_w4a4_in() -> None:
    loose, strict = (predicted("A100", max_quality_loss=limit).decision for limit in (0.5, 0.15))
    assert (loose.format, strict.format) == ("w4a4", "w4a8")
    assert (loose.speedup_fp16 or 0) > 1.5 * (strict.speedup_fp16 or 0)
    assert 0.3 < (loose.expected_loss or 0) <= 0.365


def test_a_mix_has_to_gain_more_than_the_prior_resolves() -> None:
    """k per channel loses nothing that was measured, and o little: still g128 everywhere is the simpler plan."""
    decision = predicted("RTX 3090", PLAIN, format="w4a4").decision
    faster = [c for c in predicted("RTX 3090", PLAIN).front if c.loss - 0.272 < 0.02]
    assert len(faster) > 1 and decision.granularity == "g128"


def test_no_loss_allowed_means_fp16() -> None:
    decision = predicted("A100", max_quality_loss=0.0).decision
    assert (decision.format, decision.speedup_fp16, decision.expected_loss) == ("fp16", 1.0, 0.0)
    assert "nats expected where 0 are allowed" in decision.reason


def test_a_speedup_that_nothing_reaches_means_fp16() -> None:
    decision = predicted("A100", format="w4a4", min_speedup=9.0).decision
    assert decision.format == "fp16"
    assert "W4A4 per channel comes nearest" in decision.reason and "less than the 9x asked for" in decision.reason


@pytest.mark.parametrize("device", ["H100", "H200", "H20"])
def test_emulated_int4_is_never_planned(device: str) -> None:
    found = predicted(device, format="w4a4", max_quality_loss=9.0)
    assert found.decision.format == "fp16"
    assert "INT4 is emulated on compute capability 9.0" in found.decision.reason
    assert "INT8 Tensor Cores instead: W4A8" in found.decision.reason
    assert not [item for item in found.balance if item.format == "w4a4"]
    assert any("W4A4 run all the same, their values widened to INT8" in note for note in found.notes)


@pytest.mark.parametrize("device", ["A100", "B300"])
def test_widening_int4_is_not_offered_where_int4_is_native_or_int8_is_slow(device: str) -> None:
    assert not any("widened to INT8" in note for note in predicted(device).notes)


@pytest.mark.parametrize("device", ["B200", "B300", "RTX 5090", "RTX PRO 6000"])
def test_block_scales_in_hardware_are_named_with_their_kernels(device: str) -> None:
    found = predicted(device, max_quality_loss=9.0)
    assert found.decision.format in ("fp16", "fp8")
    note = next(note for note in found.notes if note.startswith("Block scales are in hardware"))
    assert all(name in note for name in ("NVFP4", "MXFP4", "QuTLASS", "CUTLASS", "vLLM"))
    assert found.w4a4.format == "fp16"


def test_no_int8_plan_on_10_3() -> None:
    found = predicted("B300", max_quality_loss=9.0)
    assert "never plan INT8" in why(found, "w4a8")
    assert any(note.startswith("No INT8 plan") for note in found.notes)


def test_turing_stays_in_fp16_because_no_kernels_are_offered() -> None:
    found = predicted("T4")
    assert found.decision.reason.startswith("Stay in FP16.")
    assert "W4A16, W4A8, W4A4: no kernels of ours" in found.decision.reason
    assert found.decision.fits_memory is False
    assert any("do not fit" in note and "--tp 2" in note for note in found.notes)


def test_the_listing_of_the_l40s_is_doubted() -> None:
    note = next(note for note in predicted("L40S").notes if "INT4 TOPS" in note)
    assert "lists 733" in note and "gives 1466" in note
    assert not [note for note in predicted("RTX 4090").notes if "INT4 TOPS" in note]


@pytest.mark.parametrize("format", ["fp8", "w4a16", "w4a8", "w4a4", "fp16"])
def test_a_format_that_is_asked_for_and_gains_is_taken(format: str) -> None:
    found = predicted("RTX 4090", format=format, workload="decode:16")
    assert found.decision.format == format
    assert found.w4a4.format == "w4a4"  # the paper's question is answered beside


def test_fp8_on_ampere_is_refused_with_the_reason() -> None:
    found = predicted("A100", format="fp8")
    assert found.decision.format == "fp16"
    assert "FP8: no FP8 Tensor Core on 8.0" in found.decision.reason


def test_w4a16_for_prefill_is_counted_as_unpacking_and_fp16() -> None:
    decision = predicted("A100", format="w4a16", workload="prefill:2048").decision
    assert decision.format == "fp16"
    assert "no gain beyond the noise" in decision.reason


# Measured on an H100: FP16 and W4A16 at M = 1, FP16 at M = 1024 (Llama-3-8B's and 70B's layers, microseconds).
@pytest.mark.parametrize(
    ("m", "n", "k", "format", "us"),
    [
        (1, 4096, 4096, "fp16", 16.2),
        (1, 28672, 4096, "fp16", 82.2),
        (1, 4096, 14336, "fp16", 45.6),
        (1, 57344, 8192, "fp16", 325),
        (1, 28672, 4096, "w4a16", 82.2 / 3.14),
        (1, 57344, 8192, "w4a16", 325 / 3.72),
        (1024, 28672, 4096, "fp16", 355),
        (4096, 57344, 8192, "fp16", 5627),
        (4096, 28672, 4096, "fp16", 1367),
    ],
)
def test_modelled_times_meet_timed_ones_on_an_h100(m: int, n: int, k: int, format: Any, us: float) -> None:
    from apex4_probe.gemm_time import GemmTimer
    from apex4_probe.rates import Rates

    timer = GemmTimer(Rates.of(H100, measurements()), {})
    assert timer.linear(m, n, k, format, "g128" if format == "w4a16" else "none").us == pytest.approx(us, rel=0.12)


def test_measured_prefill_gains_on_an_h100_are_met() -> None:
    """W4A8 per channel 2.01x, two-level 1.98x and FP8 1.92x FP16 for the GEMM alone, quantisation aside."""
    from apex4_probe.balance import Variant, strategy_balance
    from apex4_probe.gemm_time import GemmTimer
    from apex4_probe.rates import Rates

    rates = Rates.of(H100, measurements())
    costs = {}
    for granularity, strategy in (("channel", "none"), ("g128i", "widen")):
        found = strategy_balance(rates, Variant("w4a8", granularity, strategy), co_issue())  # type: ignore[arg-type]
        assert found is not None
        costs["w4a8", granularity] = found
    timer = GemmTimer(rates, costs)  # type: ignore[arg-type]
    shape = (4096, 57344, 8192)
    fp16 = timer.linear(*shape, "fp16", "none").us

    def gain(format: Any, granularity: Any) -> float:
        time = timer.linear(*shape, format, granularity)
        return fp16 / (time.us - time.quantise)

    assert gain("w4a8", "channel") == pytest.approx(2.01, rel=0.03)
    assert gain("w4a8", "g128i") == pytest.approx(1.98, rel=0.03)
    assert gain("fp8", "none") == pytest.approx(1.92, rel=0.03)


def test_a_measured_device_is_planned_from_its_measurements() -> None:
    found = recorded(workload="decode:16*16,prefill:2048")
    assert found.decision.format == "w4a8"
    assert "measured here" in found.decision.reason
    assert {item.overlap_origin for item in found.balance if item.granularity == "g128"} == {"measured"}
    assert found.rho["int8"].measured == pytest.approx(29.645, abs=0.01)
    assert {time.origin for layer in found.layers for time in layer.times} == {"predicted"}  # modelled, not timed


def test_without_co_issue_the_overlap_is_predicted_and_confidence_no_longer_high() -> None:
    measured = recorded(workload="prefill:2048", format="w4a8", max_quality_loss=0.09).decision
    assert (measured.format, measured.granularity, measured.confidence) == ("w4a8", "g128i", "high")
    found = recorded(points=[], workload="prefill:2048", format="w4a8", max_quality_loss=0.09)
    assert {item.overlap_origin for item in found.balance} == {"predicted"}
    assert (found.decision.granularity, found.decision.confidence) == ("g128i", "medium")


def test_missing_measurements_fall_back_to_the_architecture() -> None:
    memory = [m for m in measurements() if m.name.startswith("memory")]
    lost = Measurement(name="ffma", instruction="FFMA", unit="TFLOPS", origin="measured", unsupported="probe failed")
    found = plan(H100, [*memory, lost], [], question(), load_model("llama-3-8b"))
    assert found.decision.format in ("fp8", "w4a8")
    assert found.rho["int8"].per_clock == pytest.approx(32)
    assert found.rho["int8"].measured is None
    assert found.decision.confidence != "high"


def test_without_any_bandwidth_it_says_so() -> None:
    with pytest.raises(ApexError, match="without a measured memory bandwidth"):
        plan(H100, [], [], question(), load_model("llama-3-8b"))


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ApexError, match="unknown dequantisation strategy imaginary"):
        predicted("A100", {"imaginary"})


def test_layers_add_up_to_the_workload() -> None:
    found = predicted("A100", workload="decode:16*3,prefill:2048")
    weights = (3, 1)
    total = sum(layer.count * w * t.us for layer in found.layers for w, t in zip(weights, layer.times, strict=True))
    fp16 = sum(layer.count * w * t.us_fp16 for layer in found.layers for w, t in zip(weights, layer.times, strict=True))
    assert fp16 / total == pytest.approx(found.decision.speedup_fp16)
    low, high = found.decision.speedup_fp16_interval or (0, 0)
    assert low <= fp16 / total <= high
    assert all(t.us_low <= t.us <= t.us_high and t.us_quantise < t.us for layer in found.layers for t in layer.times)


def test_a_decode_step_is_bound_by_memory_and_prefill_by_the_tensor_core() -> None:
    for layer in predicted("A100", format="w4a8").layers:
        if layer.role in ("gate", "up", "down"):
            assert [time.bound_by for time in layer.times] == ["memory", "tensor"]


def test_the_published_mix_is_v_and_down_at_g32() -> None:
    found = predicted("A100")
    published = next(item for item in found.rejected if "as published" in item.variant)
    assert published.variant == "w4a4 mixed (as published: v and down at g32, the rest per channel)"


def test_expected_loss_of_a_mix_is_the_sum_over_its_roles() -> None:
    found = predicted("A100", PLAIN, format="w4a4")
    coarse = {layer.role for layer in found.layers if layer.granularity == "channel"}
    assert coarse and {layer.granularity for layer in found.layers} == {"channel", "g128"}
    delta = {"q": 0.007, "k": 0.0, "v": 0.026, "o": 0.007, "gate": 0.010, "up": 0.010, "down": 0.052}
    steps = sum(delta[role] for role in coarse) / sum(delta.values())
    assert found.decision.expected_loss == pytest.approx(0.272 + (0.365 - 0.272) * steps)


def test_gate_and_up_are_one_gemm_and_never_differ() -> None:
    for device in ("A100", "RTX 3090", "L40S"):
        for candidate in predicted(device).front:
            by_role = {role.layer.role: role.granularity for role in candidate.roles}
            assert by_role["gate"] == by_role["up"]


def test_the_front_is_a_front() -> None:
    front = predicted("A100").front
    assert len(front) > 3
    assert [c.us for c in front] == sorted(c.us for c in front)
    assert all(a.loss > b.loss for a, b in pairwise(front))
    assert front[0].label == "w4a4 per channel" and front[-1].loss == pytest.approx(0.272)


def test_pareto_drops_what_another_beats_in_both() -> None:
    blank = Candidate("w4a4", "mixed", "", (), (), 1.0, 1.0, 1.0, 0.3, 0.0)
    fast, slow_and_worse, fine = (
        dataclasses.replace(blank, us=us, loss=loss) for us, loss in ((1.0, 0.3), (2.0, 0.4), (3.0, 0.1))
    )
    assert pareto([fine, slow_and_worse, fast]) == [fast, fine]


def test_tensor_parallel_ranks_are_planned_by_their_shards() -> None:
    found = predicted("A100", model="llama-3-70b", tensor_parallel=4)
    shapes = {layer.role: (layer.n, layer.k) for layer in found.layers}
    assert shapes["q"] == (2048, 8192) and shapes["down"] == (8192, 7168)
    assert any("all-reduce" in note for note in found.notes)
    with pytest.raises(ApexError, match="does not divide over 3 ranks"):
        predicted("A100", tensor_parallel=3)


def test_what_does_not_fit_is_rejected_and_what_fits_is_taken() -> None:
    found = predicted("A100", model="llama-3-70b")
    assert "do not fit the device's memory" in why(found, "fp16")
    assert found.decision.format in ("w4a8", "w4a16") and found.decision.fits_memory is True
    assert "tokens of a 16-bit KV cache" in found.notes[-1]


def test_a_width_without_whole_groups_of_128_takes_smaller_float_groups() -> None:
    found = predicted("A100", format="w4a4", model="llama-2-7b", tensor_parallel=4)  # down: K = 11008 / 4 = 43 x 64
    assert {layer.role: layer.granularity for layer in found.layers}["down"] == "g64"
    assert {layer.role: layer.granularity for layer in found.layers}["q"] == "g128"


@pytest.mark.parametrize("gpu", ["A100", "H100"])
def test_two_levels_serve_any_width_that_can_be_packed(gpu: str) -> None:
    found = predicted(gpu, format="w4a8", model="llama-2-7b", tensor_parallel=4)  # down: K = 11008 / 4 = 43 x 64
    assert {layer.granularity for layer in found.layers} == {"g128i"} and len(found.layers) == 7


def test_w4a16_is_not_planned_where_its_kernels_cannot_read_the_activations() -> None:
    found = predicted("A100", model="llama-2-7b", tensor_parallel=4)  # down: K = 11008 / 4 = 43 x 64
    assert why(found, "w4a16") == "down has K = 2752, no multiple of 128, and cannot be packed as w4a16"


def test_a_width_that_cannot_be_packed_is_rejected_with_its_k() -> None:
    found = predicted("A100", model="qwen2.5-72b", tensor_parallel=8)  # down: K = 29568 / 8 = 3696
    assert found.decision.format == "fp16"
    assert why(found, "w4a8") == "down has K = 3696, no multiple of 32, and cannot be packed in 4 bit"


def test_a_mixture_of_experts_gets_a_verdict_for_its_attention(tmp_path: Path) -> None:
    shape = {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    found = plan(*predict_device(find("H100")), question(), load_model(str(tmp_path)))
    assert [layer.role for layer in found.layers] == ["q", "k", "v", "o"]
    assert any("mixture of 8 experts" in note for note in found.notes)


@pytest.mark.parametrize("sheet", datasheets(), ids=lambda sheet: sheet.name)
def test_every_known_device_gets_a_plan_with_reasons(sheet: Any) -> None:
    for format in ("auto", "w4a4"):
        found = plan(*predict_device(sheet), question(format=format), load_model("llama-3-8b"))
        assert found.decision.reason.endswith(".") and found.decision.rule
        assert len(found.layers) == 7
        chosen = {(found.decision.format, found.decision.granularity)}
        formats = {item.variant.partition(" ")[0] for item in found.rejected} | {format for format, _ in chosen}
        assert formats == {"fp16", "fp8", "w4a16", "w4a8", "w4a4"}
        assert found.decision.confidence in ("low", "medium")
        assert all(layer.margin is None or layer.margin >= 0 for layer in found.layers)
        assert all(decision.margin is None or decision.margin >= 0 for decision in (found.decision, found.w4a4))


LONGEST_REASON = 500  # characters; a report shows 600


@pytest.mark.parametrize("sheet", datasheets(), ids=lambda sheet: sheet.name)
@pytest.mark.parametrize("options", [{}, {"min_speedup": 9.0}, {"max_quality_loss": 0.0}])
def test_no_reason_is_too_long_to_be_shown(sheet: Any, options: dict[str, float]) -> None:
    figures, model = predict_device(sheet), load_model("llama-3-8b")
    two, many = "decode:16,prefill:2048", "decode:1,decode:4,decode:16,decode:64,prefill:512,prefill:2048"
    for workload, format in ((two, "auto"), (two, "w4a8"), (many, "auto")):
        for strategies in (None, {"i2f_fmul_ffma", "i2f_ffma"}):
            asked = question(workload, format=format, **options)
            found = plan(*figures, asked, model, strategies=strategies)
            reasons = [found.decision.reason, found.w4a4.reason, *(layer.reason for layer in found.layers)]
            assert max(map(len, reasons)) <= LONGEST_REASON, max(reasons, key=len)


def test_the_margin_is_over_the_runner_up_where_that_is_slower() -> None:
    found = predicted("RTX 3090", format="w4a4")
    slower = next(item.why for item in found.rejected if item.variant == found.decision.runner_up)
    theirs = float(slower.rpartition("(")[2].partition("x")[0])
    assert found.decision.margin == pytest.approx((found.decision.speedup_fp16 or 0) / theirs - 1, abs=0.005)
    assert found.decision.margin > 0


def test_a_faster_runner_up_leaves_no_margin_and_the_reason_says_what_it_would_lose() -> None:
    decision = predicted("A100", PLAIN, format="w4a4").decision
    assert (decision.margin, decision.runner_up) == (None, "w4a4 per channel")
    assert "W4A4 per channel would be the fastest at 3.3" in decision.reason and "nats more." in decision.reason
    two_level = recorded(format="w4a8").decision
    assert (two_level.granularity, two_level.runner_up, two_level.margin) == ("g128i", "w4a8 per channel", None)
    assert "W4A8 per channel is 0." in two_level.reason and "which is noise" in two_level.reason


def test_a_layer_in_which_the_runner_up_is_faster_has_no_margin() -> None:
    """The published mix runs q, k, o per channel, faster than g128, and v and down at g32, slower."""
    found = predicted("RTX 3090", format="w4a4")
    assert "as published" in (found.decision.runner_up or "")
    margins = {layer.role: layer.margin for layer in found.layers}
    assert margins["o"] is None and margins["gate"] is None
    assert (margins["down"] or 0) > 0.1


def test_a_next_plan_that_is_faster_but_not_the_fastest_is_named() -> None:
    found = predicted("A100", {"magic_ffma2", "imad"}, format="w4a4", min_speedup=1.5)
    assert (found.decision.granularity, found.decision.margin) == ("g128", None)
    assert "Next in quality comes W4A4 a128i, 2." in found.decision.reason


def test_two_level_scales_say_why_not_g128_and_what_per_channel_would_lose() -> None:
    decision = predicted("RTX 3090").decision
    assert (decision.format, decision.granularity) == ("w4a8", "g128i")
    assert "g128 was not taken for its cost: the kernel takes 1.19x the per-channel one" in decision.reason
    assert "so the kernel takes 1.02x the per-channel one" in decision.reason
    assert "W4A8 per channel is 2.0% faster, which is noise, and would lose 0.10 nats" in decision.reason


def test_many_points_are_told_by_their_extremes() -> None:
    points = "decode:1,decode:4,decode:16,prefill:512,prefill:2048"
    found = predicted("A100", workload=points, format="w4a8")
    assert " to decode at " in found.decision.reason or " to prefill of " in found.decision.reason
    times = [time for time in found.layers[4].times if time.bound_by == "memory"]
    gains = sorted(time.us_fp16 / time.us for time in times)
    told = f"{gains[0]:.2f} to {gains[-1]:.2f}x FP16, bound by memory bandwidth at {len(times)} of 5; "
    assert found.layers[4].reason.startswith(told)


def test_a_measured_device_notes_what_its_co_issue_data_show() -> None:
    h100 = nearest("9.0", "wgmma")
    assert h100 is not None
    found = plan(h100.device, h100.measurements, h100.co_issue, question(), load_model("llama-3-8b"))
    assert sum(note.startswith("Co-issue measured here") for note in found.notes) == 1
    assert not [note for note in predicted("H100").notes if note.startswith("Co-issue")]


def test_a_device_that_does_not_tell_its_memory_is_planned_without_a_fit() -> None:
    device = Device(**{**H100.model_dump(), "memory_mib": None})
    assert plan(device, measurements(), [], question(), load_model("llama-3-8b")).decision.fits_memory is None
