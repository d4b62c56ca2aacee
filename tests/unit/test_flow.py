"""The whole of ``run`` on a machine whose figures are recorded: measure, tune, plan."""

from __future__ import annotations

from functools import partial
from typing import Any

import fake_machine
import pytest
from recorded_bench import CHIP, VARIANTS, RecordedBench

from apex4_probe import flow, gemm_bench, tuning
from apex4_probe.deployment import Profile
from apex4_probe.kernels import catalogue, launch
from apex4_probe.kernels.variant import Shape
from apex4_probe.microbench import suite
from apex4_probe.profile_file import parse_profile, profile_text


def recorded(name: str, shape: Shape) -> float:
    """FP16 at 3 TB/s and 700 TFLOPS; kernels for few tokens win up to 64, then those for many."""
    fp16 = 5 + max(2 * shape.n * shape.k / 3e6, 2 * shape.m * shape.n * shape.k / 7e8)
    return fp16 * (1.0 if name == "fp16" else 0.6 if name == "fp8" else 0.3 if ".small." in name else 0.4)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(flow, "survey", fake_machine.survey_one)
    monkeypatch.setattr(suite, "measure", fake_machine.measure)
    monkeypatch.setattr(gemm_bench, "torch_installed", lambda: True)
    monkeypatch.setattr(gemm_bench, "why_no_torch", lambda: "")
    monkeypatch.setattr(launch, "chip", lambda _device: CHIP)
    monkeypatch.setattr(catalogue, "VARIANTS", VARIANTS)
    return monkeypatch


def run_with(h100: pytest.MonkeyPatch, bench: RecordedBench, **options: Any) -> tuple[Profile, list[tuple[str, float]]]:
    h100.setattr(gemm_bench, "TorchBench", lambda _device: bench)
    steps: list[tuple[str, float]] = []
    return flow.run(0, progress=lambda what, share: steps.append((what, share)), **options), steps


def test_a_run_tunes_plans_from_the_clock_and_writes_both(h100: pytest.MonkeyPatch) -> None:
    profile, steps = run_with(h100, RecordedBench(us=recorded))
    assert profile.decision.format == "w4a8" and profile.decision.confidence == "high"
    assert {time.origin for layer in profile.layers for time in layer.times} == {"measured"}
    shapes = {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)}
    assert {(table.n, table.k) for table in profile.kernels} == shapes
    for table in profile.kernels:
        assert [kernel.m_max for kernel in table.kernels] == [1, 16, 64, 256, 2048]
        assert (table.for_tokens(2).variant, table.for_tokens(65).variant) == (
            f"w4a8.small.{table.granularity}",
            f"w4a8.mma.{table.granularity}",
        )
    assert {timing.variant for timing in profile.gemm_timings} == {"fp16", "fp8", *(v.name for v in VARIANTS)}
    assert parse_profile(profile_text(profile)).kernels  # and it can be read again
    shares = [share for _, share in steps]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert dict(steps)["mma.s8.m16n8k32"] == pytest.approx(0.5 * flow.MEASURING_SHARE[False])


def test_what_was_left_out_stands_in_the_profile(h100: pytest.MonkeyPatch) -> None:
    bench = RecordedBench(us=recorded, seconds_a_candidate=4.0)
    h100.setattr(tuning, "BUDGET_S", {False: 20.0, True: 100.0})
    h100.setattr(tuning, "tune", partial(tuning.tune, clock=bench.clock))
    profile, _ = run_with(h100, bench, workload="decode:16,prefill:2048")
    assert any("not timed, for want of time: " in note for note in profile.notes)
    assert any("not every layer was timed at M = 16, 2048" in w for w in profile.provenance.warnings)
    assert "predicted" in {time.origin for layer in profile.layers for time in layer.times}


def test_without_torch_all_is_predicted_as_before_and_the_notes_say_how_to_change_that(
    h100: pytest.MonkeyPatch,
) -> None:
    h100.setattr(gemm_bench, "torch_installed", lambda: False)
    h100.setattr(gemm_bench, "why_no_torch", fake_machine.no_torch)
    profile, steps = run_with(h100, RecordedBench())
    assert (profile.kernels, profile.gemm_timings) == ([], [])
    assert {time.origin for layer in profile.layers for time in layer.times} == {"predicted"}
    assert profile.notes[-1] == (
        "Kernels and GEMMs were not timed: torch is not installed: pip install 'apex4-probe[torch]'."
    )
    assert dict(steps)["mma.s8.m16n8k32"] == 0.5
