"""Doctor: what it says about machines that lack something, and when it calls that a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_profile import sample_device

from apex4_probe import discovery, doctor
from apex4_probe.discovery import LocalGpu, NoGpuError
from apex4_probe.doctor import Finding
from apex4_probe.errors import ApexError

GPU = LocalGpu(
    index=0,
    uuid="GPU-0",
    device=sample_device(),
    nvml_index=0,
    sm_clock_mhz=345.0,
    memory_clock_mhz=2619.0,
    power_w=70.0,
    temperature_c=33.0,
    other_processes=0,
    utilisation=0.0,
    driver="580.95.05",
    cuda="13.0",
)


def no_gpu(_selection: str) -> list[LocalGpu]:
    raise NoGpuError("no NVIDIA driver found (NVML: library not found)")


def one_gpu(_selection: str) -> list[LocalGpu]:
    return [GPU]


def named(findings: list[Finding], what: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.what == what]
    return finding


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that pip could install for the GPU is there."""
    monkeypatch.setattr(doctor, "installed_version", lambda *_packages: None)
    monkeypatch.setattr("apex4_probe.kernels.compile._nvrtc", refuse)
    monkeypatch.setattr("apex4_probe.kernels.sass.disassembler", refuse)
    from apex4_probe.kernels.compile import nvrtc_version

    nvrtc_version.cache_clear()


def refuse() -> None:
    raise ApexError("it is not there")


def test_here_and_without_a_gpu_everything_installed_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APEX4_PROBE_CACHE", str(tmp_path / "cache"))
    findings = doctor.examine(no_gpu)
    assert named(findings, "GPU").state == "missing"
    assert 'apex4-probe run --like "RTX 3090"' in named(findings, "GPU").mend
    assert named(findings, "NVRTC").state == "ok"
    assert named(findings, "NVRTC").detail.endswith("compiles for sm_80")
    assert named(findings, "cache folder") == Finding("cache folder", "ok", str(tmp_path / "cache"))
    assert list((tmp_path / "cache").rglob("*.cubin")) == []  # the test kernel does not stay
    assert doctor.healthy(findings)


@pytest.mark.usefixtures("missing")
def test_what_is_missing_fails_only_where_a_gpu_could_be_measured() -> None:
    assert doctor.healthy(doctor.examine(no_gpu))
    findings = doctor.examine(one_gpu)
    assert not doctor.healthy(findings)
    assert {finding.what for finding in findings if finding.state == "missing" and finding.required} == {
        "CuPy",
        "NVRTC",
    }
    assert named(findings, "disassembler").mend == "pip install nvidia-cuda-nvdisasm"
    assert named(findings, "torch").required is False
    for what in ("CuPy", "NVRTC"):
        assert named(findings, what).mend.startswith("pip install 'apex4-probe[cuda1")


def test_the_extra_that_is_recommended_suits_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cuda_version", lambda: 12080)
    monkeypatch.setattr(doctor, "installed_version", lambda *_packages: None)
    assert named(doctor.examine(one_gpu), "CuPy").mend == "pip install 'apex4-probe[cuda12]'"


def test_a_gpu_that_cannot_be_used_is_a_failure_with_its_sentence() -> None:
    def too_old(_selection: str) -> list[LocalGpu]:
        raise ApexError("driver 470 runs CUDA 11.4 and this tool needs CUDA 12.0")

    findings = doctor.examine(too_old)
    assert named(findings, "GPU").detail == "driver 470 runs CUDA 11.4 and this tool needs CUDA 12.0"
    assert not doctor.healthy(findings)


def test_several_gpus_a_busy_one_and_a_slice_are_told() -> None:
    busy = replace(GPU, index=1, other_processes=3, device=sample_device(mig="1g.10gb", sm_count=16))
    findings = doctor.examine(lambda _selection: [GPU, busy])
    assert "2 GPUs" in named(findings, "GPU").detail
    assert "--device all" in named(findings, "GPU").detail
    assert named(findings, "GPU 0").state == "ok"
    assert named(findings, "GPU 1").state == "warning"
    assert "16 SMs, MIG slice 1g.10gb; GPU 1 is busy: 3 other compute processes" in named(findings, "GPU 1").detail


def test_an_nvrtc_that_answers_its_version_and_cannot_compile_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from apex4_probe.kernels import compile as compiler

    def broken(kernel: compiler.Kernel) -> compiler.Cubin:
        raise compiler.CompileError(
            "NVRTC 13.0 cannot compile doctor for sm_80: failed to open libnvrtc-builtins.so.13.0"
        )

    monkeypatch.setattr(compiler, "compile_kernel", broken)
    finding = doctor.examine_nvrtc("cuda13", required=True)
    assert finding.state == "missing"
    assert "libnvrtc-builtins" in finding.detail


def test_an_unwritable_cache_is_a_warning_with_the_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APEX4_PROBE_CACHE", str(tmp_path / "file" / "cache"))
    finding = doctor.examine_cache()
    assert finding.state == "warning"
    assert finding.mend == "export APEX4_PROBE_CACHE=FOLDER"


def test_wsl_is_recognised_by_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(finding.what == "WSL2" for finding in doctor.examine(no_gpu))
    monkeypatch.setattr(discovery.platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    assert named(doctor.examine(no_gpu), "WSL2").state == "warning"


def test_the_verb_prints_json_that_agrees_with_its_exit_code() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", "from apex4_probe.cli import main; main()", "doctor", "--json"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    report = json.loads(answer.stdout)
    assert report["healthy"] is True
    assert answer.returncode == 0
    assert report["findings"][0]["what"] == "GPU"
