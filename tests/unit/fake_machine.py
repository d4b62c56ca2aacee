"""A machine for the command line: with the sample profile's H100, whose figures are recorded, or without a GPU.

Called as a program it is apex4-probe on that machine: ``python fake_machine.py no-gpu run --quiet``. The scenario
``interrupted`` presses Ctrl-C half way through the measuring.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace

from sample_profile import sample_co_issue, sample_device, sample_measurements

from apex4_probe import flow, gemm_bench, verify_job
from apex4_probe.deployment import Measurement
from apex4_probe.discovery import LocalGpu, NoGpuError, Survey
from apex4_probe.microbench import suite

H100 = LocalGpu(
    index=0,
    uuid="GPU-11112222-3333-4444-5555-666677778888",
    device=sample_device(),
    nvml_index=0,
    sm_clock_mhz=345.0,
    memory_clock_mhz=2619.0,
    power_w=71.5,
    temperature_c=34.0,
    other_processes=0,
    utilisation=0.0,
    driver="580.95.05",
    cuda="13.0",
)


def discover_nothing(_selection: object) -> list[LocalGpu]:
    raise NoGpuError("no NVIDIA driver found (NVML: library not found)")


def survey_nothing(_selection: object) -> Survey:
    return Survey(tuple(discover_nothing(_selection)), ())


def discover_one(_selection: object) -> list[LocalGpu]:
    return [H100]


def survey_one(_selection: object) -> Survey:
    return Survey((H100,), ())


def discover_two(_selection: object) -> list[LocalGpu]:
    return [H100, replace(H100, index=1, other_processes=2)]


def measure(gpu_index: int, *, full: bool, progress: flow.ProgressCallback) -> suite.MeasuredSet:
    progress("mma.s8.m16n8k32", 0.5)
    return suite.MeasuredSet(sample_measurements(), sample_co_issue(), [f"recorded for GPU {gpu_index}, full={full}"])


def measure_interrupted(gpu_index: int, *, full: bool, progress: flow.ProgressCallback) -> suite.MeasuredSet:
    progress("mma.s8.m16n8k32", 0.5)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
    return measure(gpu_index, full=full, progress=progress)


def remeasure(_gpu_index: int, names: set[str]) -> list[Measurement]:
    return [figure for figure in sample_measurements() if figure.name in names]


def no_torch() -> str:
    return "torch is not installed: pip install 'apex4-probe[torch]'"


def main() -> None:
    scenario = sys.argv.pop(1)
    flow.survey = survey_nothing if scenario == "no-gpu" else survey_one
    verify_job.discover = discover_nothing if scenario == "no-gpu" else discover_one
    suite.measure = measure_interrupted if scenario == "interrupted" else measure
    suite.remeasure = remeasure
    gemm_bench.torch_installed = lambda: False
    gemm_bench.why_no_torch = no_torch
    from apex4_probe.cli import main as apex4_probe

    apex4_probe()


if __name__ == "__main__":
    main()
