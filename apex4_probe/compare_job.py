"""The verb ``compare``: which profiles, which question, and the files and table that come out."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex4_probe.compare_records import Comparison, Subject
from apex4_probe.comparison import compare_profiles, frame, labelled, tables_of
from apex4_probe.datasheets import Datasheet, datasheets, find
from apex4_probe.deployment import Profile, WorkloadRecord
from apex4_probe.errors import ApexError
from apex4_probe.files import write_set
from apex4_probe.flow import Question, Request, predict, read
from apex4_probe.models import DEFAULT_MODEL, PRESETS
from apex4_probe.output_folder import PROFILE, choose, require_writable
from apex4_probe.profile_file import load_profile, seal
from apex4_probe.shipped import shipped_profiles
from apex4_probe.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

CSV, JSON = "compare.csv", "compare.json"
SHIPPED, DATASHEET, GIVEN = "shipped", "datasheet", "given"
Found = tuple[Profile | Datasheet, str]  # and where it is from: a path, or one of the words above
LONGEST_NAME = 4096  # PATH_MAX of Linux
FORMULA = ("=", "+", "-", "@")  # a cell that begins so is a formula to a spreadsheet


@dataclass(frozen=True)
class Wishes:
    """What was asked for, as typed; None: not said, so taken from the profiles where they agree, else the default."""

    profiles: tuple[str, ...] = ()
    every: bool = False
    model: str | None = None
    workload: str | None = None
    format: str | None = None
    max_quality_loss: float | None = None
    min_speedup: float | None = None
    tensor_parallel: int | None = None
    prices: tuple[str, ...] = ()
    command: str = ""


def compare(
    profiles: Sequence[str | Path | Profile] = (),
    *,
    every: bool = False,
    model: str | None = None,
    workload: str | None = None,
    format: str | None = None,
    max_quality_loss: float | None = None,
    min_speedup: float | None = None,
    tp: int | None = None,
) -> pd.DataFrame:
    """One row a profile, as pandas. ``profiles``: Profile objects, files, folders, or device names; ``every``: and all
    known devices. The question is put to all of them anew, from their stored measurements.

    ApexError: a name or file is not known, or fewer than two profiles are left.
    """
    records = [item for item in profiles if isinstance(item, Profile)]
    names = tuple(str(item) for item in profiles if not isinstance(item, Profile))
    wishes = Wishes(names, every, model, workload, format, max_quality_loss, min_speedup, tp)
    return frame(_compared(wishes, records, strict=True))


def compare_job(wishes: Wishes, out: str | None, *, figures: Console, remarks: Console) -> Comparison:
    """Compare, write the files and print the table. Raises ApexError; then no partial file is left."""
    folder = choose(out, "comparison", date.today())
    require_writable(folder)
    comparison = _compared(wishes, [])
    from apex4_probe.reports.compare_page import comparison_files
    from apex4_probe.reports.compare_terminal import print_comparison

    pages = comparison_files(comparison)
    files: dict[str, bytes | str] = {CSV: as_csv(comparison), JSON: as_json(comparison) + "\n", **pages}
    write_set(folder, files)
    print_comparison(comparison, figures)
    names = ", ".join(reversed(files))
    remarks.print(f"\nWritten to {folder}: {names}.", markup=False, soft_wrap=True)
    return comparison


def as_json(comparison: Comparison) -> str:
    """Every table of the comparison as a list of records, absent figures as null; the unrounded numbers."""
    import pandas as pd

    tables = {
        name: json.loads(pd.DataFrame(records).to_json(orient="records", double_precision=15)) if records else []
        for name, records in tables_of(comparison).items()
    }
    question = comparison.workload.model_dump(mode="json")
    said = {"workload": question, "remarks": list(comparison.remarks), "assumption": comparison.map.assumption}
    return json.dumps({**said, **tables}, indent=1, allow_nan=False)


def as_csv(comparison: Comparison) -> str:
    """One row a profile. A text that a spreadsheet would execute begins with an apostrophe."""
    table = frame(comparison).reset_index().map(_inert)
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    shown = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in cell)
    return f"'{shown}" if shown.startswith(FORMULA) else shown


def _compared(wishes: Wishes, records: Sequence[Profile], strict: bool = False) -> Comparison:
    if not wishes.profiles and not wishes.every and not records:
        raise ApexError("nothing to compare: name two profiles, folders or devices, or pass --all")
    _check_prices(wishes.prices)
    order: list[Found] = [(profile, GIVEN) for profile in records]
    remarks, errors = [], []
    for name in wishes.profiles:
        try:
            order.append(_locate(name))
        except ApexError as error:
            if strict:
                raise
            errors.append(error)
            remarks.append(f"Left out: {error}.")
    if wishes.every:
        order += [(profile, SHIPPED) for profile in shipped_profiles()]
        order += [(sheet, DATASHEET) for sheet in datasheets()]
    order, doubles = _once(order)
    if len(order) < 2:
        raise errors[0] if errors else ApexError(_too_few(order, doubles))
    request, origin = _request(wishes, [item for item, _ in order if isinstance(item, Profile)])
    question = read(request)
    profiles = [(_profile_of(item, question, request), where) for item, where in order]
    subjects = labelled(profiles)
    return compare_profiles(
        subjects,
        question.workload,
        question.model,
        prices=_prices(wishes.prices, subjects),
        remarks=[origin, *doubles, *remarks],
        command=wishes.command,
    )


def _profile_of(item: Profile | Datasheet, question: Question, request: Request) -> Profile:
    return item if isinstance(item, Profile) else seal(predict(item, question, request))


def _locate(name: str) -> Found:
    """A file, a folder with a profile in it, or a known device: measured where a profile ships, else its datasheet."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ApexError(f"{name[:80]!r}{'…' if len(name) > 80 else ''} is neither a readable file nor a known device")
    path = Path(name).expanduser()
    if os.path.isdir(path):  # False where the name is none, which pathlib answers by an exception
        if not (path / PROFILE).is_file():
            raise ApexError(f"{name} is a folder without {PROFILE}: name the profile itself")
        return load_profile(path / PROFILE), str(path / PROFILE)
    if os.path.exists(path) or "/" in name or path.suffix.lower() in (".yaml", ".yml", ".json"):
        return load_profile(path), str(path)
    sheet = find(name)
    shipped = [profile for profile in shipped_profiles() if profile.device.name == sheet.name]
    return (shipped[0], SHIPPED) if shipped else (sheet, DATASHEET)


def _once(order: Sequence[Found]) -> tuple[list[Found], list[str]]:
    """Without what was given twice, and a sentence about each such thing."""
    kept: list[Found] = []
    seen: dict[str, str] = {}
    remarks = []
    for item, where in order:
        key = (item.checksum or repr(id(item))) if isinstance(item, Profile) else f"datasheet {item.name}"
        name = item.device.name if isinstance(item, Profile) else item.name
        if key in seen:
            remarks.append(f"The same profile of {name[:80]} was given twice ({seen[key]}, {where}) and counts once.")
        else:
            seen[key] = where
            kept.append((item, where))
    return kept, remarks


def _too_few(order: Sequence[Found], doubles: Sequence[str]) -> str:
    if doubles:
        return f"{doubles[0].rstrip('.')}: name a second one to compare it with"
    item, where = order[0]
    shown = f"apex4-probe show {where}" if where not in (SHIPPED, DATASHEET, GIVEN) else "apex4-probe predict"
    if where in (SHIPPED, DATASHEET):
        name = item.device.name if isinstance(item, Profile) else item.name
        shown = f'apex4-probe predict "{name}"'
    return f"one profile alone has nothing to be compared with: name a second one, or look at it with {shown}"


def _request(wishes: Wishes, profiles: Sequence[Profile]) -> tuple[Request, str]:
    """The question, and a sentence that says where its model comes from."""
    stored = {_asked(profile.workload) for profile in profiles if profile.workload.model in PRESETS}
    shared = next(iter(stored)) if len(stored) == 1 and len(profiles) == len(_known(profiles)) else None
    model, workload, tensor_parallel = shared or (DEFAULT_MODEL, DEFAULT_WORKLOAD, 1)
    defaults = Request()
    request = Request(
        model=wishes.model or model,
        workload=wishes.workload or workload,
        format=wishes.format or defaults.format,
        max_quality_loss=defaults.max_quality_loss if wishes.max_quality_loss is None else wishes.max_quality_loss,
        min_speedup=defaults.min_speedup if wishes.min_speedup is None else wishes.min_speedup,
        tensor_parallel=wishes.tensor_parallel or tensor_parallel,
        command=wishes.command,
    )
    source = "as asked" if wishes.model else "that all profiles were made for" if shared else "the default"
    return request, (
        f"Every profile answers the same question, from its own figures: {request.model} ({source}), "
        f"{request.workload}, --format {request.format}."
    )


def _known(profiles: Sequence[Profile]) -> list[Profile]:
    return [profile for profile in profiles if profile.workload.model in PRESETS]


def _asked(workload: WorkloadRecord) -> tuple[str, str, int]:
    points = ",".join(f"{p.phase}:{p.m}*{p.weight:g}".removesuffix("*1") for p in workload.points)
    return workload.model, points, workload.tensor_parallel


def _check_prices(prices: Sequence[str]) -> None:
    for price in prices:
        _price(price)


def _price(text: str) -> tuple[str, float]:
    name, sign, value = text.rpartition("=")
    try:
        usd = float(value)
    except ValueError:
        usd = math.nan
    if not sign or not name.strip() or not 0 <= usd < math.inf:
        raise ApexError(f'--price {text[:100]!r}: expected NAME=USD_PER_HOUR, as in "RTX 3090=0.25"')
    return name.strip(), usd


def _prices(prices: Sequence[str], subjects: Sequence[Subject]) -> Mapping[str, float]:
    """By label. A price goes to the profile of that label, or to every profile of the device that the name means."""
    found: dict[str, float] = {}
    for text in prices:
        name, usd = _price(text)
        exact = [s for s in subjects if name.lower() in (s.label.lower(), s.profile.device.name.lower())]
        if not exact:
            try:
                meant = find(name).name
            except ApexError:
                meant = ""
            exact = [subject for subject in subjects if subject.profile.device.name == meant]
        if not exact:
            known = ", ".join(subject.label[:60] for subject in subjects[:20])
            raise ApexError(f"--price {name[:80]!r} is none of the compared GPUs, which are {known}")
        found.update({subject.label: usd for subject in exact})
    return found
