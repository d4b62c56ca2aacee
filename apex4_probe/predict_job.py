"""The verb ``predict``: a GPU that is not here, from its datasheet and the balance model; for ``run`` too."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from rich.console import Console

from apex4_probe import flow
from apex4_probe.datasheets import Datasheet, datasheets, find
from apex4_probe.deployment import Profile
from apex4_probe.emit import Display, write_many, write_one
from apex4_probe.errors import ApexError
from apex4_probe.flow import Question, Request
from apex4_probe.models import DEFAULT_MODEL
from apex4_probe.output_folder import choose, require_writable, slug
from apex4_probe.own_datasheet import load_datasheet
from apex4_probe.profile_file import seal
from apex4_probe.progress import Report, reporting
from apex4_probe.workload import DEFAULT_WORKLOAD

Answers = list[tuple[Path | None, Profile]]  # a profile and the file that holds it; None: nothing was written
SLOW_S = 2.0  # what takes longer says how far it is


def predict_job(device: str | None, request: Request, out: str | None, *, force: bool, display: Display) -> Answers:
    """Predict ``device`` (a name, or the path of a datasheet of one's own; None: all known) and print it.

    With ``out`` everything is written there as well. Raises ApexError before anything is written.
    """
    question = flow.read(request)
    sheets = datasheets() if device is None else (sheet_of(device),)
    folder = None
    if out is not None:
        folder = choose(out, slug(sheets[0].name) if device is not None else "known-devices", date.today())
        require_writable(folder)
    what = sheets[0].name if device is not None else f"all {len(sheets)} known devices"
    display.remark(f"Nothing was measured: {what} predicted from datasheet and balance model.", style="bold")
    return predict_sheets(sheets, question, request, folder, force=force, many=device is None, display=display)


def sheet_of(device: str) -> Datasheet:
    """The datasheet that a person means: a file's where ``device`` ends in .yaml or .yml or is one, else by name.

    Raises ApexError.
    """
    path = Path(device).expanduser()
    if path.suffix.lower() in (".yaml", ".yml") or path.is_file():
        return load_datasheet(path)
    return find(device)


def predict_sheets(
    sheets: Sequence[Datasheet],
    question: Question,
    request: Request,
    folder: Path | None,
    *,
    force: bool,
    many: bool,
    display: Display,
) -> Answers:
    """Predict, print and, into ``folder``, write. ``many``: one table over all and one file each, without pages."""
    if many:
        return _tour(sheets, question, request, folder, force, display)
    from apex4_probe.reports.prediction_terminal import print_prediction

    profile = seal(flow.predict(sheets[0], question, request))
    path, where = (None, "") if folder is None else write_one(profile, folder, force)
    print_prediction(profile, display.figures)
    if where:
        display.remark(where)
    return [(path, profile)]


def _tour(
    sheets: Sequence[Datasheet],
    question: Question,
    request: Request,
    folder: Path | None,
    force: bool,
    display: Display,
) -> Answers:
    """Every known device in one table; pages only for a device that somebody asked about."""
    from apex4_probe.reports.terminal import print_tour

    with reporting(display.progress) as report:
        profiles = _predict_all(sheets, question, request, report)
    answers: Answers = [(None, profile) for profile in profiles]
    where = ""
    if folder is not None:
        written, where = write_many(profiles, folder, force)
        answers = list(written.items())
    print_tour([profile for _, profile in answers], display.figures)
    if where:
        display.remark(where)
    display.remark(f'\nOne device in full, with a report: apex4-probe predict "{sheets[0].name}" --out DIR')
    return answers


def _predict_all(sheets: Sequence[Datasheet], question: Question, request: Request, report: Report) -> list[Profile]:
    start = time.monotonic()
    profiles = []
    for number, sheet in enumerate(sheets):
        if time.monotonic() - start > SLOW_S:
            report(sheet.name, number / len(sheets))
        profiles.append(seal(flow.predict(sheet, question, request)))
    return profiles


def predict(
    device: str,
    *,
    model: str = DEFAULT_MODEL,
    workload: str = DEFAULT_WORKLOAD,
    format: str = "auto",
    max_quality_loss: float = 0.15,
    min_speedup: float = 1.2,
    tp: int = 1,
) -> Profile:
    """What the verb does for one device, without printing or writing: a profile in which nothing is measured.

    ``device``: a known device's name or alias, or the path of a datasheet of one's own. Raises ApexError.
    """
    request = Request(model, workload, format, max_quality_loss, min_speedup, tp)
    call = f"apex4_probe.predict({', '.join([repr(device), *flow.arguments_told(request)])})"
    return flow.predict(sheet_of(device), flow.read(request), replace(request, command=call))


def print_list(console: Console) -> None:
    """Every known device: the name to give, its compute capability, and what else it is called."""
    from apex4_probe.reports.console_table import ConsoleTables
    from apex4_probe.reports.tables import Row, Table, columns_of

    rows = tuple(Row((sheet.name, sheet.compute_capability, ", ".join(sheet.aliases) or "–")) for sheet in datasheets())
    caption = "NVIDIA, GeForce and Tesla may be left out. For a device of your own: apex4-probe predict FILE.yaml"
    ConsoleTables(console).table(
        Table(f"{len(rows)} known devices", columns_of("device", "cc", "aliases"), rows, caption)
    )


def list_json() -> str:
    devices = [
        {"name": sheet.name, "compute_capability": sheet.compute_capability, "aliases": list(sheet.aliases)}
        for sheet in datasheets()
    ]
    return json.dumps({"devices": devices}, indent=2)


def require_one_question(device: str | None, every: bool, listed: bool) -> None:
    """Raise ApexError unless exactly one of a device, --all and --list was given."""
    if (device is not None) + every + listed != 1:
        raise ApexError(
            'predict: name one device ("RTX 3090"), or the file of a datasheet of your own (gpu.yaml), or give --all, '
            "or --list"
        )
