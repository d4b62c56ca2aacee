"""The main job: discover, measure, plan, write the profile and its report; without a GPU, predict and say so.

Everything that can be refused (model, workload, folder, an earlier measured profile) is refused before the GPU is
touched, and the files of a run appear together at its end or not at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, get_args

from apex4_probe.checkout import commit
from apex4_probe.deployment import (
    CoIssue,
    Device,
    Environment,
    Format,
    GemmTiming,
    Measurement,
    PeerLink,
    Profile,
    Provenance,
    WorkloadRecord,
)
from apex4_probe.discovery import LeftOut, LocalGpu, NoGpuError, environment, survey
from apex4_probe.errors import ApexError
from apex4_probe.models import DEFAULT_MODEL, Model, load_model, shard
from apex4_probe.workload import DEFAULT_WORKLOAD, parse_workload

if TYPE_CHECKING:
    from apex4_probe.datasheets import Datasheet
    from apex4_probe.microbench.suite import MeasuredSet
    from apex4_probe.tuning import Tuned

ProgressCallback = Callable[[str, float], None]  # what is being done, and how much of the measuring is behind us, 0 … 1
MAX_TENSOR_PARALLEL = 1024
MEASURING_SHARE = {False: 0.5, True: 0.7}  # by --full, of a run that also times kernels: 31 to 40 s (H100) of 75


@dataclass(frozen=True)
class Request:
    """What was asked for, as typed. ``command`` goes into the profile."""

    model: str = DEFAULT_MODEL
    workload: str = DEFAULT_WORKLOAD
    format: str = "auto"
    max_quality_loss: float = 0.15
    min_speedup: float = 1.2
    tensor_parallel: int = 1
    device: str | int = "0"
    full: bool = False
    together: bool = False
    like: str | None = None
    require_gpu: bool = False
    command: str = ""


@dataclass(frozen=True)
class Question:
    """A request whose every part has been read and found good."""

    model: Model
    workload: WorkloadRecord


@dataclass(frozen=True)
class Targets:
    """What a request comes down to on this machine: GPUs to measure, or datasheets to predict from and why.

    ``left_out``: GPUs that were asked for and cannot be measured; their reasons stand in the host's table.
    """

    gpus: tuple[LocalGpu, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    datasheets: tuple[Datasheet, ...] = ()
    reason: str = ""

    @property
    def measured(self) -> bool:
        return bool(self.gpus)

    @property
    def several(self) -> bool:
        """Whether this is about a host rather than about one GPU."""
        return len(self.gpus) + len(self.left_out) > 1

    @property
    def first_line(self) -> str:
        """What a reader must know before any figure."""
        if self.measured:
            return f"Measuring {_listed(self.gpus)}."
        return f"Nothing was measured: {self.reason}. Every figure below is predicted from datasheets."


def read(request: Request) -> Question:
    """Validate a request. Raises ApexError naming the option."""
    if request.format not in ("auto", *get_args(Format)):
        raise ApexError(f"--format {request.format}: expected auto, {', '.join(get_args(Format))}")
    if not 0 <= request.max_quality_loss < math.inf:
        raise ApexError(f"--max-quality-loss {request.max_quality_loss}: expected nats per token, 0 or more")
    if not 0 <= request.min_speedup < math.inf:
        raise ApexError(f"--min-speedup {request.min_speedup}: expected a ratio, 0 or more")
    if not 1 <= request.tensor_parallel <= MAX_TENSOR_PARALLEL:
        raise ApexError(f"--tp {request.tensor_parallel}: expected 1 to {MAX_TENSOR_PARALLEL} shards")
    model = shard(load_model(request.model), request.tensor_parallel)
    workload = WorkloadRecord(
        model=model.name,
        points=parse_workload(request.workload),
        tensor_parallel=request.tensor_parallel,
        format=request.format,  # type: ignore[arg-type]  # checked above
        max_quality_loss=request.max_quality_loss,
        min_speedup=request.min_speedup,
    )
    return Question(model, workload)


def find_targets(request: Request) -> Targets:
    """GPUs, else datasheets. Raises ApexError for an unknown --like, or where no GPU that was named can be used."""
    from apex4_probe.datasheets import datasheets, find

    if request.together and request.like is not None:
        raise ApexError("--like predicts one GPU and --together measures several at once: choose one")
    if request.like is not None:
        if request.require_gpu:
            raise ApexError("--like predicts and --require-gpu insists on measuring: choose one")
        return Targets(datasheets=(find(request.like),), reason=f"--like asks for {find(request.like).name}")
    try:
        found = survey(request.device)
    except NoGpuError as error:
        if request.together:
            raise NoGpuError(f"{error}, and --together measures several GPUs at once") from error
        if request.require_gpu:
            raise NoGpuError(
                f'{error}, and --require-gpu was given; predict instead: apex4-probe run --like "RTX 3090"'
            ) from error
        return Targets(datasheets=tuple(datasheets()), reason=str(error))
    if not found.gpus:
        raise ApexError("; ".join(item.reason for item in found.left_out))
    if request.together and len(found.gpus) < 2:
        raise ApexError(
            f"--together needs two GPUs or more and --device {request.device} gives one: name them, as in "
            "--device all --together"
        )
    return Targets(gpus=found.gpus, left_out=found.left_out)


def measure(
    gpu: LocalGpu,
    question: Question,
    request: Request,
    progress: ProgressCallback,
    links: Sequence[PeerLink] = (),
) -> Profile:
    """Measure one GPU and decide. ``links``: to other GPUs of the host, measured before. Raises ApexError."""
    from apex4_probe.all_reduce import all_reduce_note
    from apex4_probe.architecture import architecture
    from apex4_probe.gemm_bench import torch_installed, why_no_torch
    from apex4_probe.microbench import suite
    from apex4_probe.tuning import Tuned

    start = time.monotonic()
    measuring = MEASURING_SHARE[request.full] if torch_installed() else 1.0
    measured = suite.measure(
        gpu.index, full=request.full, progress=lambda what, share: progress(what, share * measuring)
    )
    if missing := why_no_torch():
        tuned = Tuned(notes=(f"Kernels and GEMMs were not timed: {missing}.",))
    else:
        tuned = _tune(
            gpu, measured, question, request, lambda what, share: progress(what, measuring + (1 - measuring) * share)
        )
    progress("planning", 1.0)
    facts = architecture(gpu.device.compute_capability)
    notes = [] if facts.kernels else [f"The kernel catalogue has nothing for this GPU: {facts.kernels_reason}"]
    profile = _profile(
        gpu.device,
        environment(gpu.driver, gpu.cuda),
        measured.measurements,
        measured.co_issue,
        question,
        Provenance(
            command=request.command,
            commit=commit(),
            duration_s=round(time.monotonic() - start, 1),
            mode="full" if request.full else "default",
            warnings=[*([gpu.busy] if gpu.busy else []), *measured.warnings, *tuned.warnings],
        ),
        [*notes, *tuned.notes],
        timings=tuned.timings,
    )
    if not links:
        return profile
    told = all_reduce_note(links, len(links) + 1, question.model.hidden_size, profile.workload, profile.layers)
    return profile.model_copy(update={"links": list(links), "notes": [*profile.notes, *([told] if told else [])]})


def _tune(
    gpu: LocalGpu, measured: MeasuredSet, question: Question, request: Request, progress: ProgressCallback
) -> Tuned:
    """Time what the plan may choose. Raises ApexError where the GPU fails."""
    from apex4_probe.field import timer_of
    from apex4_probe.gemm_bench import TorchBench
    from apex4_probe.kernels import catalogue
    from apex4_probe.kernels.launch import chip
    from apex4_probe.rates import Rates
    from apex4_probe.tuning import BUDGET_S, tune
    from apex4_probe.tuning_plan import cells

    timer = timer_of(Rates.of(gpu.device, measured.measurements), measured.co_issue)
    wanted = cells(question.model, question.workload, timer, chip(gpu.index), catalogue.VARIANTS)
    bench = TorchBench(gpu.index)
    try:
        return tune(wanted, bench, BUDGET_S[request.full], progress=progress)
    finally:
        bench.release()


def predict(datasheet: Datasheet, question: Question, request: Request) -> Profile:
    """The profile that ``datasheet``'s GPU would have, every figure marked predicted or datasheet."""
    from apex4_probe.assumptions import assumptions
    from apex4_probe.prediction import predict_device

    device, measurements, co_issue = predict_device(datasheet)
    provenance = Provenance(command=request.command, commit=commit(), mode="predicted")
    profile = _profile(device, environment(), measurements, co_issue, question, provenance, [], datasheet)
    assumed = assumptions(datasheet, profile.measurements, profile.co_issue, profile.balance)
    return profile.model_copy(update={"notes": [*profile.notes, *assumed]})


def _profile(
    device: Device,
    here: Environment,
    measurements: Sequence[Measurement],
    co_issue: Sequence[CoIssue],
    question: Question,
    provenance: Provenance,
    notes: Sequence[str],
    datasheet: Datasheet | None = None,
    timings: Sequence[GemmTiming] = (),
) -> Profile:
    from apex4_probe.planner import plan
    from apex4_probe.selection import kernel_tables

    planned = plan(device, measurements, co_issue, question.workload, question.model, sheet=datasheet, timings=timings)
    return Profile(
        tool_version=version("apex4-probe"),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        origin="predicted" if provenance.mode == "predicted" else "measured",
        device=device,
        environment=here,
        provenance=provenance,
        measurements=list(measurements),
        co_issue=list(co_issue),
        rho=planned.rho,
        balance=list(planned.balance),
        decision=planned.decision,
        w4a4=planned.w4a4,
        workload=question.workload,
        layers=list(planned.layers),
        kernels=kernel_tables(timings),
        gemm_timings=list(timings),
        rejected=list(planned.rejected),
        notes=[*planned.notes, *(note for note in notes if note not in planned.notes)],
    )


def run(
    device: int | str = 0,
    *,
    model: str = DEFAULT_MODEL,
    workload: str = DEFAULT_WORKLOAD,
    format: str = "auto",
    max_quality_loss: float = 0.15,
    min_speedup: float = 1.2,
    tp: int = 1,
    full: bool = False,
    like: str | None = None,
    progress: ProgressCallback = lambda _step, _done: None,
) -> Profile:
    """What the verb does for one GPU, without writing a file: measure ``device`` and decide, or predict ``like``.

    Raises NoGpuError where there is no GPU and ``like`` is None, ApexError for everything else that is refused.
    """
    request = Request(
        model, workload, format, max_quality_loss, min_speedup, tp, device, full, like=like, require_gpu=like is None
    )
    request = replace(request, command=f"apex4_probe.run({', '.join(arguments_told(request))})")
    question = read(request)
    targets = find_targets(request)
    if targets.datasheets:
        return predict(targets.datasheets[0], question, request)
    if targets.several:
        raise ApexError(
            f"apex4_probe.run measures one GPU a call and device={device!r} names "
            f"{len(targets.gpus) + len(targets.left_out)}: call it for each, or type apex4-probe run --device {device}"
        )
    return measure(targets.gpus[0], question, request, progress)


def arguments_told(request: Request) -> list[str]:
    """The arguments of a Python call that repeats ``request``: those that are not the default."""
    names = {"tensor_parallel": "tp"}
    return [
        f"{names.get(field.name, field.name)}={getattr(request, field.name)!r}"
        for field in fields(Request)
        if field.name not in ("command", "require_gpu", "together") and getattr(request, field.name) != field.default
    ]


def _listed(gpus: Sequence[LocalGpu]) -> str:
    """``GPU 0 (NVIDIA H100 PCIe)``; of several, those of one model together."""
    if len(gpus) == 1:
        return describe(gpus[0])
    kinds: dict[str, list[int]] = {}
    for gpu in gpus:
        kinds.setdefault(_kind(gpu), []).append(gpu.index)
    return ", ".join(
        f"GPU{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} ({kind})"
        for kind, numbers in kinds.items()
    )


def describe(gpu: LocalGpu) -> str:
    return f"GPU {gpu.index} ({_kind(gpu)})"


def _kind(gpu: LocalGpu) -> str:
    return gpu.device.name + (f", MIG slice {gpu.device.mig}" if gpu.device.mig else "")
