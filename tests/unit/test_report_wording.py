"""How figures, names and verdicts are written."""

from __future__ import annotations

import pytest
from sample_profile import predicted_profile, sample_co_issue, sample_profile

from apex4_probe.deployment import CoIssue, Decision, RhoFigure
from apex4_probe.reports import verdict, wording
from apex4_probe.reports.co_issue_curves import curves, knee_text, leading_shapes


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1905.6, "1906"),
        (614.0, "614"),
        (47.84, "47.8"),
        (2.0, "2.00"),
        (0.0313, "0.0313"),
        (0, "0"),
        (33200.0, "33200"),
        (2.5e9, "2.5e+09"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_number_shows_three_significant_digits(value: float | None, shown: str) -> None:
    assert wording.number(value) == shown


def test_predicted_figures_are_marked() -> None:
    assert wording.number(569.0, "predicted") == "~569"
    assert wording.times(1.624, "predicted") == "~1.62×"
    assert wording.number(569.0, "datasheet") == "569"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("line\nbreak\ttab", "line break tab"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b2J\x07", "\\x9b2J\\x07"),
        ("\ud800", "\\ud800"),
        ("RTX 3090 ×é漢", "RTX 3090 ×é漢"),
    ],
)
def test_clean_makes_controls_visible_and_leaves_letters(text: str, shown: str) -> None:
    assert wording.clean(text) == shown


def test_long_text_is_cut_and_says_so() -> None:
    assert wording.clean("x" * 10_000) == "x" * 80 + "… (10000 characters)"
    assert wording.clip("x" * 10_000, 20) == "x" * 19 + "…"
    assert wording.clip("x" * 20, 20) == "x" * 20


def test_emulated_rho_reads_so() -> None:
    assert wording.rho_reading(RhoFigure(usable=False, reason="emulated: by INT8")) == "emulated, not usable"
    assert wording.rho_reading(RhoFigure(usable=False, reason="block scales are in hardware")) == "not usable"
    assert wording.rho_reading(RhoFigure(usable=True)) == "usable"


def _point(k: int, ratio: float, **changes: object) -> CoIssue:
    fields = {"mma": "mma.s8", "shape": "m16n8k32", "placement": "same_warps", "instruction": "ffma"}
    return CoIssue.model_validate({**fields, "k": k, "cycles_over_mma_alone": ratio, "origin": "measured", **changes})


@pytest.mark.parametrize(
    ("ratios", "knee", "text"),
    [
        ([1.0, 1.0, 1.05, 1.06, 1.4], 2, "2"),
        ([1.38, 1.38], None, "none"),
        ([1.0, 1.01, 1.02], 2, "≥ 2"),
        ([1.0, 1.2, 1.04], 0, "0"),  # a point back under the limit behind one above it is noise, not free work
    ],
)
def test_knee(ratios: list[float], knee: int | None, text: str) -> None:
    (curve,) = curves([_point(k, ratio) for k, ratio in enumerate(ratios)])
    assert curve.knee == knee
    assert knee_text(curve) == text


def test_curves_are_told_apart_sorted_by_k_and_predicted_if_any_point_is() -> None:
    records = [_point(2, 1.2), _point(0, 1.0), _point(1, 1.1, origin="predicted"), _point(0, 1.0, instruction="imad")]
    ffma, imad = curves(records)
    assert (ffma.ks, ffma.ratios, ffma.origin) == ([0, 1, 2], [1.0, 1.1, 1.2], "predicted")
    assert (imad.ks, imad.origin) == ([0], "measured")


def test_leading_shape_is_the_widest() -> None:
    shapes = ["m64n64k32.rs", "m64n256k32.rs", "m64n128k32.rs"]
    gathered = curves([_point(0, 1.0, mma="wgmma.s8", shape=shape) for shape in shapes] + sample_co_issue()[-2:])
    assert leading_shapes(gathered) == {"wgmma.s8": "m64n256k32.rs", "mma.s8": "m16n8k32"}


def test_headline_of_a_measured_and_of_a_predicted_profile() -> None:
    sentence = verdict.headline(sample_profile())
    assert sentence == (
        "On NVIDIA H100 80GB HBM3, use W4A8 g128i (integer weight scales per group of 128) for llama-3-8b: "
        "~1.92× FP16 over the workload (1.42–2.04×), 4.0% ahead of FP8."
    )
    assert verdict.headline(predicted_profile()).startswith("Predicted, not measured: on NVIDIA H100")


def test_headline_that_stays_in_fp16_claims_no_speedup() -> None:
    decision = Decision(
        format="fp16", granularity="none", reason="r", speedup_fp16=1.0, margin=0.2, confidence="high", rule="x"
    )
    sentence = verdict.headline(sample_profile(decision=decision))
    assert sentence == "On NVIDIA H100 80GB HBM3, stay in FP16 for llama-3-8b."


@pytest.mark.parametrize(
    ("granularity", "answer"),
    [("channel", "Coarse: W4A4 channel"), ("g128", "Fine: W4A4 g128"), ("mixed", "Mixed: W4A4 mixed")],
)
def test_the_papers_question(granularity: str, answer: str) -> None:
    fields = {"format": "w4a4", "granularity": granularity, "reason": "r", "confidence": "low", "rule": "x"}
    decision = Decision.model_validate({**fields, "speedup_fp16": 1.5})
    told = verdict.w4a4_answer(sample_profile(w4a4=decision))
    assert told.startswith(answer)
    assert "~1.50× FP16" in told


def test_the_papers_question_without_an_answer() -> None:
    assert "does not answer" in verdict.w4a4_answer(sample_profile(w4a4=None))
    assert verdict.w4a4_answer(sample_profile()).startswith("Stay in FP16")
