"""How a job's profiles leave: as files (all of a folder or none), on the terminal, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from apex4_probe.deployment import Profile
from apex4_probe.errors import ApexError
from apex4_probe.files import write_set
from apex4_probe.host_records import Host
from apex4_probe.output_folder import PROFILE, slug
from apex4_probe.profile_file import load_profile, profile_text, refuse_to_lose_measurements

OF_THE_RUN = {"created", "environment", "provenance", "tool_version", "checksum"}  # what differs between equal answers


@dataclass(frozen=True)
class Display:
    """``figures``: what was asked for. ``remarks``: the first line, warnings, where files lie. ``progress``: a bar."""

    figures: Console
    remarks: Console
    progress: Console

    def remark(self, sentence: str, style: str = "") -> None:
        self.remarks.print(sentence, style=style, markup=False, soft_wrap=True)


def write_one(profile: Profile, folder: Path, force: bool) -> tuple[Path, str]:
    """Write a profile with its report and figures; returns the profile's path and the sentence that says where."""
    from apex4_probe.reports.page import report_files

    path = folder / PROFILE
    refuse_to_lose_measurements(profile, path, force)
    # The profile last: who finds it finds the report beside it.
    files: dict[str, bytes | str] = {**report_files(profile), PROFILE: profile_text(profile)}
    write_set(folder, files)
    names = [PROFILE, *(name for name in files if name != PROFILE)]
    return path, f"\nWritten to {folder}: {', '.join(names)}."


def write_many(profiles: Sequence[Profile], folder: Path, force: bool) -> tuple[dict[Path, Profile], str]:
    """Write one file a device; returns the profiles by their paths and the sentence that says where.

    A file that already holds the same answer is left as it is: a folder under version control changes when its figures
    do, not when somebody runs the tool again.
    """
    named = {f"{slug(profile.device.name)}.yaml": profile for profile in profiles}
    kept = {name: old for name, new in named.items() if (old := _same_answer(new, folder / name)) is not None}
    for name, profile in named.items():
        refuse_to_lose_measurements(profile, folder / name, force)
    write_set(folder, {name: profile_text(profile) for name, profile in named.items() if name not in kept})
    unchanged = f", {len(kept)} of them there before with the same figures and left as they are" if kept else ""
    written = {folder / name: kept.get(name, profile) for name, profile in named.items()}
    return written, f"\n{len(named)} profiles in {folder}{unchanged}."


def as_json(profiles: Iterable[tuple[Path | None, Profile]], host: Host | None = None) -> str:
    """The same shape for one profile and for many; ``path`` is null where nothing was written.

    ``host``: of several GPUs that were measured, what ``host.json`` holds.
    """
    entries = [
        {"path": None if path is None else str(path), "profile": profile.model_dump(mode="json")}
        for path, profile in profiles
    ]
    about = {} if host is None else {"host": host.model_dump(mode="json", exclude_none=True)}
    return json.dumps({"profiles": entries, **about}, indent=2, allow_nan=False)


def answer(profile: Profile) -> dict[str, Any]:
    """What a profile says, without when, where and by which command it was said."""
    return profile.model_dump(mode="json", exclude=OF_THE_RUN)


def _same_answer(profile: Profile, path: Path) -> Profile | None:
    """The profile at ``path`` where it says the same as ``profile``; None: it does not, or cannot be read."""
    if profile.origin != "predicted" or not path.exists():
        return None
    try:
        there = load_profile(path)
    except ApexError:
        return None
    return there if answer(there) == answer(profile) else None
