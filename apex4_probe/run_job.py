"""The verb ``run``: what is measured or predicted, where its files go, and what the terminal shows meanwhile."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from apex4_probe.deployment import Profile
from apex4_probe.emit import Display, write_one
from apex4_probe.flow import Question, Request, Targets, find_targets, measure, read
from apex4_probe.output_folder import choose, require_writable, slug
from apex4_probe.predict_job import predict_sheets
from apex4_probe.profile_file import seal
from apex4_probe.progress import reporting


def run_job(request: Request, out: str | None, *, force: bool, display: Display) -> dict[Path, Profile]:
    """Measure or predict, write every profile with its report, and return the profiles by their files.

    Raises ApexError before measuring for everything that can be known then; no partial file is left.
    """
    question = read(request)
    targets = find_targets(request)
    folder = choose(out, _folder_name(targets), date.today())
    require_writable(folder)
    display.remark(targets.first_line, style="bold")
    if targets.gpus:
        return _measure_all(targets, question, request, folder, display)
    sheets, many = targets.datasheets, len(targets.datasheets) > 1
    answers = predict_sheets(sheets, question, request, folder, force=force, many=many, display=display)
    return {path: profile for path, profile in answers if path is not None}


def _measure_all(
    targets: Targets, question: Question, request: Request, folder: Path, display: Display
) -> dict[Path, Profile]:
    """One GPU after another, so that they do not share power and bus; each is written as soon as it is done."""
    from apex4_probe.reports.terminal import print_profile

    written: dict[Path, Profile] = {}
    for gpu in targets.gpus:
        if gpu.busy:
            display.remark(f"Warning: {gpu.busy}.", style="yellow")
        with reporting(display.progress) as progress:
            profile = seal(measure(gpu, question, request, progress))
        own = folder if len(targets.gpus) == 1 else folder / f"gpu{gpu.index}"
        path, where = write_one(profile, own, True)
        print_profile(profile, display.figures)
        display.remark(where)
        written[path] = profile
    return written


def _folder_name(targets: Targets) -> str:
    measured = {slug(gpu.device.name, gpu.device.mig) for gpu in targets.gpus}
    names = measured or {slug(datasheet.name) for datasheet in targets.datasheets}
    if len(names) == 1:
        return names.pop()
    return f"{len(targets.gpus)}-gpus" if targets.gpus else "known-devices"
