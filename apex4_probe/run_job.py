"""The verb ``run``: what is measured or predicted, where its files go, and what the terminal shows meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from apex4_probe.deployment import Profile
from apex4_probe.discovery import LocalGpu
from apex4_probe.emit import Display, write_one
from apex4_probe.flow import Question, Request, Targets, find_targets, measure, read
from apex4_probe.host_job import host_job
from apex4_probe.host_records import Host
from apex4_probe.output_folder import choose, require_writable, slug
from apex4_probe.predict_job import predict_sheets
from apex4_probe.profile_file import seal
from apex4_probe.progress import reporting


@dataclass(frozen=True)
class Answer:
    """``profiles`` by their files. ``host``: of several GPUs, what is known of all; None: one GPU, or a prediction."""

    profiles: dict[Path, Profile]
    host: Host | None = None

    @property
    def complete(self) -> bool:
        """Whether every GPU that should have been measured was."""
        return self.host is None or not self.host.failures


def run_job(request: Request, out: str | None, *, force: bool, display: Display) -> Answer:
    """Measure or predict, and write every profile with its report.

    Raises ApexError before measuring for everything that can be known then; no partial file is left.
    """
    question = read(request)
    targets = find_targets(request)
    folder = choose(out, _folder_name(targets), date.today())
    require_writable(folder)
    display.remark(targets.first_line, style="bold")
    if targets.several:
        return Answer(*host_job(targets, question, request, folder, display))
    if targets.gpus:
        return Answer(_measure_one(targets.gpus[0], question, request, folder, display))
    sheets, many = targets.datasheets, len(targets.datasheets) > 1
    answers = predict_sheets(sheets, question, request, folder, force=force, many=many, display=display)
    return Answer({path: profile for path, profile in answers if path is not None})


def _measure_one(
    gpu: LocalGpu, question: Question, request: Request, folder: Path, display: Display
) -> dict[Path, Profile]:
    from apex4_probe.reports.terminal import print_profile

    if gpu.busy:
        display.remark(f"Warning: {gpu.busy}.", style="yellow")
    with reporting(display.progress) as progress:
        profile = seal(measure(gpu, question, request, progress))
    path, where = write_one(profile, folder, True)
    print_profile(profile, display.figures)
    display.remark(where)
    return {path: profile}


def _folder_name(targets: Targets) -> str:
    measured = {slug(gpu.device.name, gpu.device.mig) for gpu in targets.gpus}
    names = measured or {slug(datasheet.name) for datasheet in targets.datasheets}
    if len(names) == 1 and not targets.several:
        return names.pop()
    if not targets.gpus:
        return "known-devices"
    return f"{len(targets.gpus)}x-{names.pop()}" if len(names) == 1 else f"{len(targets.gpus)}-gpus"
