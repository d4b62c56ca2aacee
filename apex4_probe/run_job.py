"""The verb ``run``: what is measured or predicted, where its files go, and what the terminal shows meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from apex4_probe.deployment import Profile
from apex4_probe.files import write_set
from apex4_probe.flow import ProgressCallback, Question, Request, Targets, find_targets, measure, predict, read
from apex4_probe.output_folder import PROFILE, choose, require_writable, slug
from apex4_probe.profile_file import profile_text, refuse_to_lose_measurements, seal


@dataclass(frozen=True)
class Display:
    """``figures``: what was asked for. ``remarks``: the first line, warnings, where files lie. ``progress``: a bar."""

    figures: Console
    remarks: Console
    progress: Console


def run_job(request: Request, out: str | None, *, force: bool, display: Display) -> dict[Path, Profile]:
    """Measure or predict, write every profile with its report, and return the profiles by their files.

    Raises ApexError before measuring for everything that can be known then; no partial file is left.
    """
    question = read(request)
    targets = find_targets(request)
    folder = choose(out, _folder_name(targets), date.today())
    require_writable(folder)
    display.remarks.print(targets.first_line, style="bold", markup=False, soft_wrap=True)
    if targets.gpus:
        return _measure_all(targets, question, request, folder, display)
    if len(targets.datasheets) == 1:
        profile = seal(predict(targets.datasheets[0], question, request))
        return dict([_write_one(profile, folder, force, display)])
    return _tour(targets, question, request, folder, force, display)


def as_json(profiles: Mapping[Path, Profile]) -> str:
    """The same shape for one profile and for many."""
    entries = [{"path": str(path), "profile": profile.model_dump(mode="json")} for path, profile in profiles.items()]
    return json.dumps({"profiles": entries}, indent=2, allow_nan=False)


def _measure_all(
    targets: Targets, question: Question, request: Request, folder: Path, display: Display
) -> dict[Path, Profile]:
    """One GPU after another, so that they do not share power and bus; each is written as soon as it is done."""
    written: dict[Path, Profile] = {}
    for gpu in targets.gpus:
        if gpu.busy:
            display.remarks.print(f"Warning: {gpu.busy}.", style="yellow", markup=False, soft_wrap=True)
        with progress_bar(display.progress) as progress:
            profile = seal(measure(gpu, question, request, progress))
        own = folder if len(targets.gpus) == 1 else folder / f"gpu{gpu.index}"
        path, profile = _write_one(profile, own, True, display)
        written[path] = profile
    return written


def _write_one(profile: Profile, folder: Path, force: bool, display: Display) -> tuple[Path, Profile]:
    from apex4_probe.reports.page import report_files
    from apex4_probe.reports.terminal import print_profile

    path = folder / PROFILE
    refuse_to_lose_measurements(profile, path, force)
    # The profile last: who finds it finds the report beside it.
    files: dict[str, bytes | str] = {**report_files(profile), PROFILE: profile_text(profile)}
    write_set(folder, files)
    print_profile(profile, display.figures)
    names = [PROFILE, *(name for name in files if name != PROFILE)]
    display.remarks.print(f"\nWritten to {folder}: {', '.join(names)}.", markup=False, soft_wrap=True)
    return path, profile


def _tour(
    targets: Targets, question: Question, request: Request, folder: Path, force: bool, display: Display
) -> dict[Path, Profile]:
    """Every known device: a profile each and one table; pages only for a device that somebody asked about."""
    from apex4_probe.reports.terminal import print_tour

    profiles: dict[str, Profile] = {}
    for datasheet in targets.datasheets:
        profile = seal(predict(datasheet, question, request))
        name = f"{slug(profile.device.name)}.yaml"
        refuse_to_lose_measurements(profile, folder / name, force)
        profiles[name] = profile
    write_set(folder, {name: profile_text(profile) for name, profile in profiles.items()})
    print_tour(list(profiles.values()), display.figures)
    display.remarks.print(
        f"\n{len(profiles)} profiles written to {folder}. One device in full, with a report: "
        f'apex4-probe run --like "{targets.datasheets[0].name}"',
        markup=False,
        soft_wrap=True,
    )
    return {folder / name: profile for name, profile in profiles.items()}


def _folder_name(targets: Targets) -> str:
    measured = {slug(gpu.device.name, gpu.device.mig) for gpu in targets.gpus}
    names = measured or {slug(datasheet.name) for datasheet in targets.datasheets}
    if len(names) == 1:
        return names.pop()
    return f"{len(targets.gpus)}-gpus" if targets.gpus else "known-devices"


@contextmanager
def progress_bar(console: Console) -> Iterator[ProgressCallback]:
    """A bar with the current step and the time so far; silent where nobody watches."""
    if console.quiet or not console.is_terminal:
        yield lambda _step, _done: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda step, done: bar.update(task, description=step, completed=done)
