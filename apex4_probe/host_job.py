"""``run`` over several GPUs of one host: a profile each, ``host.json``, one page and one table that compare them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from apex4_probe.all_reduce import all_reduce_note
from apex4_probe.compare_job import CSV, JSON, as_csv, as_json
from apex4_probe.compare_records import Comparison, Subject
from apex4_probe.comparison import compare_profiles
from apex4_probe.deployment import Profile
from apex4_probe.discovery import LocalGpu
from apex4_probe.emit import Display, write_one
from apex4_probe.errors import ApexError
from apex4_probe.files import write_set
from apex4_probe.flow import Question, Request, Targets
from apex4_probe.host_findings import groups, odd_ones, poor_links
from apex4_probe.host_measure import Found, measure_host
from apex4_probe.host_records import HOST, Host, HostGpu
from apex4_probe.microbench.together import SECONDS
from apex4_probe.output_folder import PROFILE
from apex4_probe.profile_file import seal
from apex4_probe.progress import reporting


def host_job(
    targets: Targets, question: Question, request: Request, folder: Path, display: Display
) -> tuple[dict[Path, Profile], Host]:
    """Measure every GPU of ``targets``; a profile is written as soon as it is measured, the rest at the end.

    Raises ApexError where not one GPU could be measured, after the table that says why.
    """
    for gpu in targets.gpus:
        if gpu.busy:
            display.remark(f"Warning: {gpu.busy}.", style="yellow")
    written: dict[Path, Profile] = {}

    def keep(gpu: LocalGpu, profile: Profile) -> Profile:
        sealed = seal(profile)
        path, _ = write_one(sealed, folder / subfolder(gpu.index), True)
        written[path] = sealed
        return sealed

    try:
        with reporting(display.progress) as report:
            found = measure_host(targets.gpus, request, keep, report)
    except KeyboardInterrupt:
        if written:
            display.remark(f"Measured before that: {', '.join(str(path) for path in written)}.")
        raise
    host = describe_host(targets, question, request, found)
    comparison = _comparison(found.profiles, question, request)
    _write(folder, host, found.profiles, comparison)
    from apex4_probe.reports.compare_page import PAGE
    from apex4_probe.reports.host_terminal import print_host

    print_host(host, found.profiles, display.figures)
    if not written:
        raise ApexError("not one GPU could be measured: " + "; ".join(_failures(host)))
    each = ", ".join(subfolder(index) for index in found.profiles)
    display.remark(f"\nWritten to {folder}: {PAGE} with its figures, {CSV}, {JSON}, {HOST}; profiles in {each}.")
    return written, host


def subfolder(index: int) -> str:
    return f"gpu{index}"


def describe_host(targets: Targets, question: Question, request: Request, found: Found) -> Host:
    """The host's record, from everything that was found."""
    measured = [
        HostGpu(
            index=gpu.index,
            nvml_index=gpu.nvml_index,
            name=gpu.device.name,
            mig=gpu.device.mig,
            profile=f"{subfolder(gpu.index)}/{PROFILE}" if gpu.index in found.profiles else None,
            reason=found.failed.get(gpu.index),
            failed=gpu.index in found.failed,
            together=found.together.get(gpu.index, []),
            together_failed=found.together_failed.get(gpu.index),
        )
        for gpu in targets.gpus
    ]
    left_out = [
        HostGpu(index=item.index, nvml_index=item.nvml_index, name=item.name, reason=item.reason, failed=item.failed)
        for item in targets.left_out
    ]
    one_model = len(groups(found.profiles)) == 1
    first = next(iter(found.profiles.values()), None)
    ends = {end for item in found.links for end in (item.first, item.link.peer)}
    return Host(
        tool_version=version("apex4-probe"),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=request.command,
        gpus=[*measured, *left_out],
        links=found.links,
        links_failed=found.links_failed,
        odd=odd_ones(found.profiles),
        poor_links=poor_links(found.links),
        together_s=SECONDS if request.together else None,
        all_reduce=all_reduce_note(
            [item.link for item in found.links],
            len(ends),
            question.model.hidden_size,
            question.workload,
            first.layers if first is not None and one_model else (),
        ),
    )


def _comparison(profiles: dict[int, Profile], question: Question, request: Request) -> Comparison | None:
    """Side by side as ``compare`` puts them, without its pairs: ``odd_ones`` says more about equal cards in less."""
    if not profiles:
        return None
    subjects = []
    for index, profile in profiles.items():
        name = profile.device.name.removeprefix("NVIDIA ")
        subjects.append(Subject(f"GPU {index} ({name})", profile, f"{subfolder(index)}/{PROFILE}"))
    compared = compare_profiles(subjects, question.workload, question.model, command=request.command)
    return replace(compared, pairs=())


def _write(folder: Path, host: Host, profiles: dict[int, Profile], comparison: Comparison | None) -> None:
    """``host.json`` last: who finds it finds all else."""
    files: dict[str, bytes | str] = {}
    if comparison is not None:
        from apex4_probe.reports.compare_page import comparison_files
        from apex4_probe.reports.host_tables import host_section

        pages = comparison_files(comparison, host_section(host, profiles))
        files = {CSV: as_csv(comparison), JSON: as_json(comparison) + "\n", **pages}
    files[HOST] = host.model_dump_json(indent=1, exclude_none=True) + "\n"
    write_set(folder, files)


def _failures(host: Host) -> Iterable[str]:
    return (f"{gpu.label}, {gpu.reason}" for gpu in host.gpus)
