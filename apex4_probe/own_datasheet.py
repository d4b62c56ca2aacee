"""A device of one's own to predict: one entry of ``profiles/datasheets.yaml`` in a file.

    My Prototype:                                    # the device's name
      compute_capability: "8.9"
      sm_count: 100                                  # a bare number: its source is the file
      boost_clock_mhz: {value: 2500, source: "internal roadmap"}
      fp32_tflops: 64
      memory_gb_s: 1000

Every figure of ``datasheets.FIGURES`` may be given, dense; what is left out is derived from the architecture where that
is possible. Needed: ``compute_capability``, ``memory_gb_s``, and two of SM count, clock and FP32 rate. ``aliases`` and
``note`` are optional. The file is plain data from a stranger, so it is read as strictly as a profile.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from types import MappingProxyType
from typing import Any

from apex4_probe.architecture import architecture
from apex4_probe.datasheets import FIGURES, Datasheet, Figure, sources
from apex4_probe.errors import ApexError
from apex4_probe.files import read_limited
from apex4_probe.strict_yaml import parse_mapping

MAX_BYTES = 64 * 1024  # an entry takes one
NAME_LIMIT = 100  # characters: it becomes a file's name
NOTE_LIMIT = 600
SMALLEST, LARGEST = 1e-3, 1e9  # no figure of a device is outside; arithmetic on it stays finite
LEAST_MEMORY = 1.0  # GB: less than a MiB would be none at all
MOST_SMS = 10_000
_WHERE_TO_LOOK = "profiles/datasheets.yaml has examples"


def load_datasheet(path: str | os.PathLike[str]) -> Datasheet:
    """The device that the file at ``path`` describes. Raises ApexError naming file, device and field."""
    return parse_datasheet(read_limited(path, MAX_BYTES), os.fspath(path))


def parse_datasheet(text: str, where: str) -> Datasheet:
    """The device that ``text`` describes; ``where`` names the file in messages and is the source of bare figures."""
    devices = parse_mapping(text, where)
    if "schema_version" in devices:
        raise ApexError(f"{where} is a deployment profile, not the datasheet of a device: apex4-probe show prints it")
    if not devices or not all(isinstance(entry, dict) for entry in devices.values()):
        raise ApexError(f"{where}: expected one device, as NAME: {{compute_capability: …, …}}; {_WHERE_TO_LOOK}")
    if len(devices) > 1:
        raise ApexError(f"{where}: expected one device, found {len(devices)}: give each a file of its own")
    ((name, entry),) = devices.items()
    if not 1 <= len(name.strip()) <= NAME_LIMIT:
        raise ApexError(f"{where}: the device's name has {len(name)} characters, expected 1 to {NAME_LIMIT}")
    if not name.strip().isprintable():
        raise ApexError(f"{where}: the device's name {reprlib.repr(name)} holds characters that cannot be printed")
    return _datasheet(name.strip(), entry, f"{where}: {reprlib.repr(name)}", where)


def _datasheet(name: str, entry: dict[str, Any], here: str, where: str) -> Datasheet:
    known = ("aliases", "compute_capability", *FIGURES, "note")
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ApexError(f"{here}: {reprlib.repr(key)} is no field of a device: {hint}")
    figures = {key: _figure(key, entry[key], f"{here}: {key}", where) for key in FIGURES if entry.get(key) is not None}
    if "memory_gb_s" not in figures:
        raise ApexError(f"{here}: memory_gb_s is missing: without a memory bandwidth nothing can be predicted")
    if sum(key in figures for key in ("sm_count", "boost_clock_mhz", "fp32_tflops")) < 2:
        raise ApexError(f"{here}: two of sm_count, boost_clock_mhz and fp32_tflops are needed, the third follows")
    return Datasheet(
        name=name,
        aliases=_aliases(entry.get("aliases"), f"{here}: aliases"),
        compute_capability=_compute_capability(entry.get("compute_capability"), f"{here}: compute_capability"),
        figures=MappingProxyType(figures),
        note=_text(entry.get("note") or "", f"{here}: note"),
    )


def _compute_capability(given: Any, here: str) -> str:
    if given is None:
        raise ApexError(f'{here} is missing: give major.minor, for example "8.6"')
    text = str(given) if isinstance(given, (str, float)) else ""
    if not re.fullmatch(r"\d{1,2}\.\d", text, re.ASCII):
        raise ApexError(f'{here}: expected major.minor such as "8.6", found {reprlib.repr(given)}')
    try:
        return architecture(text).compute_capability
    except ApexError as error:
        raise ApexError(f"{here}: {error}") from None


def _figure(key: str, given: Any, here: str, where: str) -> Figure:
    source = f"given in {where}"
    if isinstance(given, dict):
        if set(given) - {"value", "source"} or "value" not in given:
            raise ApexError(f"{here}: expected a number, or {{value: NUMBER, source: TEXT}}")
        named = _text(given.get("source") or source, f"{here}: source")
        source = sources().get(named, named)  # a copied entry keeps its short names
        given = given["value"]
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise ApexError(f"{here}: expected a number, found {reprlib.repr(given)}")
    smallest = LEAST_MEMORY if key == "memory_gb" else SMALLEST
    if not smallest <= given <= LARGEST:
        raise ApexError(f"{here}: {given:.6g} is out of range, expected {smallest:g} to {LARGEST:g}")
    if key == "sm_count" and (given != int(given) or not 1 <= given <= MOST_SMS):
        raise ApexError(f"{here}: expected a whole number from 1 to {MOST_SMS}, found {given:.6g}")
    return Figure(float(given), source)


def _aliases(given: Any, here: str) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(alias, str) for alias in given):
        raise ApexError(f"{here}: expected a list of names, found {reprlib.repr(given)}")
    return tuple(given)


def _text(given: Any, here: str) -> str:
    if not isinstance(given, str) or len(given) > NOTE_LIMIT:
        raise ApexError(f"{here}: expected text of at most {NOTE_LIMIT} characters, found {reprlib.repr(given)}")
    return given
