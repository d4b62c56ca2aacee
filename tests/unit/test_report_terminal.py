"""What `run` and `show` print."""

from __future__ import annotations

import io
import re

import pytest
from hostile_profile import empty_profile, hostile_profile
from rich.console import Console
from sample_profile import predicted_profile, sample_device, sample_profile

from apex4_probe.deployment import LayerTime, Profile
from apex4_probe.reports import verdict
from apex4_probe.reports.terminal import print_profile, print_tour


def printed(profile: Profile, width: int = 80, *, colour: bool = False, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    print_profile(profile, Console(file=stream, width=width, force_terminal=colour, no_color=not colour))
    stream.flush()
    return raw.getvalue().decode(encoding)


def row_of(text: str, name: str) -> list[str]:
    """Cells of the first line that starts with ``name``."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name + " "))
    return re.split(r"\s{2,}", line.strip())


def joined(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("make", [sample_profile, predicted_profile, hostile_profile, empty_profile])
def test_no_line_is_wider_than_the_console(width: int, make: object) -> None:
    profile = make()  # type: ignore[operator]
    assert max(len(line) for line in printed(profile, width).splitlines()) <= width


def test_the_verdict_is_the_first_sentence_and_the_last() -> None:
    profile = sample_profile()
    text = joined(printed(profile))
    assert text.startswith(verdict.headline(profile))
    assert text.endswith(verdict.headline(profile))
    assert printed(profile, colour=True).startswith("\x1b[1mOn NVIDIA H100")  # bold


def test_throughput_row_shows_the_profiles_figures_wide() -> None:
    text = printed(sample_profile(), 120)
    figures = {figure.name: figure for figure in sample_profile().measurements}
    mma = figures["mma.s8.m16n8k32"]
    assert mma.value is not None
    expected = [mma.name, f"{mma.value:.0f} TOPS", "0.4%", "2706 MAC", "66.1%", "1820", "none", "verified", "measured"]
    assert row_of(text, mma.name) == expected
    assert row_of(text, "sustained")[-3:] == ["power cap", "verified", "measured"]
    assert row_of(text, "mma.s4.m16n8k64")[-2:] == ["emulated", "measured"]
    assert row_of(text, "memory.copy")[1:3] == ["2945 GB/s", "0.6%"]


def test_throughput_at_80_columns_keeps_every_figure_on_one_line() -> None:
    text = printed(sample_profile(), 80)
    line = next(line for line in text.splitlines() if "wgmma.e4m3.m64n256k32.ss" in line)
    assert line.split() == ["wgmma.e4m3.m64n256k32.ss", "1761", "TFLOPS", "0.4%", "4092", "MAC", "99.9%", "1630"]
    assert re.search(r"sustained +1686 TOPS .* power cap", text)
    assert re.search(r"mma.s4.m16n8k64 .* emulated", text)
    assert "Without a remark: measured, no power cap" in joined(text)


def test_what_cannot_run_here_says_why() -> None:
    text = joined(printed(sample_profile()))
    assert (
        "mma.mxf4nvf4.m16n8k64 – unsupported: block-scaled FP4 needs compute capability 12.x; this GPU has 9.0" in text
    )


def test_emulated_int4_has_no_rho() -> None:
    text = joined(printed(sample_profile(), 120))
    assert "rho (INT4) – emulated, not usable (mma s4 becomes INT8 and logic instructions on this GPU)" in text
    assert "rho (INT8) 29.5 30.1 33.3 usable" in text


def test_co_issue_summary_shows_ratio_and_knee() -> None:
    text = joined(printed(sample_profile(), 120))
    assert "hand-over after completion ffma 1.38 1.38 1.48 2.00 none measured" in text
    assert "in the same warps ffma 1.00 1.23 1.47 1.94 0 measured" in text
    assert "The report shows 1 more of these curves." in text


def test_balance_and_layers_show_the_profiles_figures() -> None:
    text = joined(printed(sample_profile(), 120))
    assert "g128 i2f_fmul_ffma 31.3 16.3 15.7 10.4 23.4 50.4 1.61× tensor" in text
    gate = next(layer for layer in sample_profile().layers if layer.role == "gate")
    decode, prefill = gate.times
    cells = [
        f"~{time.us_fp16 / time.us:.2f}× ({time.us_fp16 / time.us_high:.2f}–{time.us_fp16 / time.us_low:.2f})"
        for time in (decode, prefill)
    ]
    assert f"gate 14336 × 4096 W4A8 g128i {cells[0]} {cells[1]} 4.0%" in text
    assert "q, k, v, o, gate, up, down: the group scale is applied while widening" in text


def test_many_batch_sizes_become_rows() -> None:
    def at(m: int) -> LayerTime:
        return LayerTime(m=m, us=10.0, us_low=8.0, us_high=16.0, us_fp16=8.0 + m, bound_by="tensor", origin="predicted")

    sizes = (1, 2, 4, 8, 16, 24)
    layer = sample_profile().layers[0].model_copy(update={"times": [at(m) for m in sizes]})
    text = joined(printed(sample_profile(layers=[layer]), 80))
    assert "q 4096 × 4096 W4A8 g128i 1 ~0.90× (0.56–1.12) 4.0% 2 ~1.00× (0.62–1.25) 4 ~1.20×" in text
    assert "24 ~3.20× (2.00–4.00)" in text


def test_predicted_profile_is_marked_throughout() -> None:
    text = printed(predicted_profile(), 120)
    assert text.startswith("Predicted, not measured")
    assert "PREDICTED: nothing in this profile was measured" in text
    assert row_of(text, "ffma")[1:] == ["~64.3 TFLOPS", "–", "~123 instr", "–", "1980", "–", "–", "predicted"]
    assert "measured" not in [
        word for line in text.splitlines() if line.strip()[:4] in ("mma.", "wgmm") for word in line.split()
    ]
    assert "g128 i2f_ffma ~31.3 ~8.13 ~15.7" in joined(text)


def test_hostile_strings_are_shown_as_text() -> None:
    text = printed(hostile_profile(), 100)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    squeezed = re.sub(r"\s", "", text)
    assert "[bold]b[/bold]" in squeezed
    assert "\\x1b[31mred\\x07" in squeezed
    assert "<script>alert(1)</script>" in squeezed
    assert "A" * 700 not in squeezed


def test_colours_carry_no_information() -> None:
    coloured = printed(sample_profile(), colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == printed(sample_profile())


def test_missing_sections_are_said_to_be_missing() -> None:
    text = printed(empty_profile())
    for sentence in ("No measurements", "No rho", "No balance", "Not measured", "No layers", "does not answer"):
        assert sentence in text


def test_ascii_console_gets_ascii() -> None:
    text = printed(sample_profile(), encoding="ascii")
    assert "~1.92x FP16" in text


def test_tour_has_one_row_a_device() -> None:
    measured = sample_profile()
    ampere = predicted_profile(
        device=sample_device(name="NVIDIA GeForce RTX 3090", compute_capability="8.6", architecture="Ampere"),
        rho={"int4": {"datasheet": 16.0, "usable": True}, "int8": {"datasheet": 8.0, "usable": True}},
        decision=measured.decision.model_copy(update={"format": "w4a4", "granularity": "a128i"}),
        w4a4=measured.decision.model_copy(update={"format": "w4a4", "granularity": "a128i"}),
    )
    stay = predicted_profile(decision=measured.w4a4)
    stream = io.StringIO()
    print_tour([measured, ampere, stay], Console(file=stream, width=120))
    text = stream.getvalue()
    row = ["H100 80GB HBM3", "emulated", "30.1", "W4A8 g128i", "FP16", "~1.92× (1.42–2.04)", "measured"]
    assert row_of(text, "H100 80GB HBM3") == row
    row = ["GeForce RTX 3090", "16.0", "8.00", "W4A4 a128i", "a128i", "~1.92× (1.42–2.04)", "predicted"]
    assert row_of(text, "GeForce RTX 3090") == row
    assert "stay in FP16" in text
