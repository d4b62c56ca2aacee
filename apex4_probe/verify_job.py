"""The verb ``verify``: does a profile still hold on this machine, by what it is and, if asked, by what it measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apex4_probe.deployment import Profile
from apex4_probe.discovery import discover, environment
from apex4_probe.errors import ApexError
from apex4_probe.profile_file import load_profile
from apex4_probe.verification import Drift, Mismatch, compare, drift

# One figure for each resource that a decision rests on: Tensor Cores by both instruction families, CUDA cores,
# conversion, memory. Together a few seconds.
REMEASURED = (
    "mma.s4.m16n8k64",
    "mma.s8.m16n8k32",
    "mma.f16.m16n8k16",
    "wgmma.s8.m64n256k32.rs",
    "wgmma.f16.m64n256k16.ss",
    "ffma",
    "i2f",
    "memory.copy",
)


@dataclass(frozen=True)
class Outcome:
    profile: str
    hard: tuple[Mismatch, ...]
    soft: tuple[Mismatch, ...]
    drift: tuple[Drift, ...] | None  # None: not measured
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.hard and not any(figure.significant for figure in self.drift or ())


def verify(path: Path, *, device: str = "0", measure: bool = False) -> Outcome:
    """Compare a profile with one GPU of this machine. Raises ApexError, among others where there is no GPU."""
    profile = load_profile(path)
    names = figures_to_remeasure(profile) if measure else []
    gpus = discover(device)
    if len(gpus) != 1:
        raise ApexError(f"--device {device} names {len(gpus)} GPUs; a profile is verified against one")
    gpu = gpus[0]
    held = compare(profile, gpu.device, environment(gpu.driver, gpu.cuda))
    warnings = (gpu.busy,) if gpu.busy else ()
    # On another GPU there is nothing that could have drifted.
    if not measure or held.hard:
        return Outcome(str(path), held.hard, held.soft, None, warnings)
    from apex4_probe.microbench import suite

    again = drift(profile.measurements, suite.remeasure(gpu.index, set(names)))
    return Outcome(str(path), held.hard, held.soft, tuple(again), warnings)


def figures_to_remeasure(profile: Profile) -> list[str]:
    """Those of REMEASURED that the profile measured in hardware. Raises ApexError where it has none."""
    in_hardware = [figure for figure in profile.measurements if figure.value is not None and not figure.emulated]
    measured = {figure.name for figure in in_hardware if figure.origin == "measured"}
    names = [name for name in REMEASURED if name in measured]
    if not names:
        raise ApexError("this profile holds no measured figure for --measure to check; apex4-probe run writes one here")
    return names


def as_json(outcome: Outcome) -> str:
    return json.dumps({"holds": outcome.holds, **asdict(outcome)}, indent=2)


def print_outcome(outcome: Outcome, console: Console) -> None:
    for warning in outcome.warnings:
        console.print(Text(f"Warning: {warning}.", style="yellow"))
    _print_mismatches("Hard mismatches: the profile must not be used here", outcome.hard, console)
    _print_mismatches("Soft mismatches: it may be used, its figures may be off", outcome.soft, console)
    if outcome.drift:
        _print_drift(outcome.drift, console)
    elif outcome.drift is not None:
        console.print("Nothing that was measured again is in the profile.")
    verdict = "The profile holds on this machine." if outcome.holds else "The profile does not hold on this machine."
    console.print(Text(verdict, style="bold green" if outcome.holds else "bold red"))


def _print_mismatches(title: str, mismatches: Sequence[Mismatch], console: Console) -> None:
    if mismatches:
        rows = [(item.field, item.profile_value, item.machine_value, item.why) for item in mismatches]
        _print_table(title, ("field", "in the profile", "here", "what it means"), rows, console)


def _print_drift(figures: Sequence[Drift], console: Console) -> None:
    table = Table(title="Measured again", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("figure")
    for head in ("unit", "before", "now", "change", ""):
        table.add_column(head, no_wrap=True, justify="right" if head in ("before", "now", "change") else "left")
    for figure in figures:
        change = "–" if figure.ratio is None else f"{figure.ratio - 1:+.1%}"
        judgement = "drifted" if figure.significant else "same"
        cells = (figure.name, figure.unit, _figure(figure.before), _figure(figure.now), change, judgement)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    for figure in figures:
        if figure.significant:
            console.print(Text(f"{figure.name}, {figure.unit}: {figure.why}."))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Text cells: a profile is a stranger's file and must not be read as markup."""
    table = Table(*heads, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    console.print(table)
