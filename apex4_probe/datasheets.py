"""What the vendor lists for a device: the origin "datasheet" of every figure that was not measured here.

The figures are data, in ``profiles/datasheets.yaml``: dense, each with its source. Adding a device is one entry there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import yaml

from apex4_probe.errors import ApexError

FIGURES = (
    "sm_count",
    "boost_clock_mhz",
    "int4_tops",
    "int8_tops",
    "fp16_tflops",  # fp32 accumulators
    "fp8_tflops",  # fp32 accumulators
    "fp4_tflops",  # block-scaled
    "fp32_tflops",
    "memory_gb",
    "memory_gb_s",
    "l2_mb",
    "power_w",
)
MAKER_WORDS = {"nvidia", "geforce", "tesla"}  # older drivers print names without them, and people omit them


@dataclass(frozen=True)
class Figure:
    """A listed figure. ``source``: the vendor's document, "formula: …", or "unsourced" (listings only)."""

    value: float
    source: str


@dataclass(frozen=True)
class Datasheet:
    """One device. ``figures``: those of ``FIGURES`` that are known; ``note``: what to know before believing them."""

    name: str  # as NVML prints it
    aliases: tuple[str, ...]
    compute_capability: str
    figures: Mapping[str, Figure] = field(hash=False)
    note: str = ""

    def value(self, figure: str) -> float | None:
        """The listed figure, in the unit its name says; None: not listed. ValueError: no such figure."""
        if figure not in FIGURES:
            raise ValueError(f"{figure!r} is no datasheet figure: one of {', '.join(FIGURES)}")
        found = self.figures.get(figure)
        return found.value if found else None

    @property
    def rho_int4(self) -> float | None:
        """INT4 Tensor Core over FP32 CUDA Core throughput, the paper's rho; None: not in hardware, or not listed."""
        return self._over_fp32("int4_tops")

    @property
    def rho_int8(self) -> float | None:
        """The same ratio for INT8."""
        return self._over_fp32("int8_tops")

    def _over_fp32(self, figure: str) -> float | None:
        tensor, fp32 = self.value(figure), self.value("fp32_tflops")
        return tensor / fp32 if tensor and fp32 else None


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in MAKER_WORDS)


@cache
def _data() -> Mapping[str, Any]:
    text = files("apex4_probe.profiles").joinpath("datasheets.yaml").read_text(encoding="utf-8")
    return MappingProxyType(yaml.safe_load(text))


def sources() -> Mapping[str, str]:
    """The documents that the figures are from, by the short names that the file gives them."""
    return MappingProxyType(_data()["sources"])


@cache
def datasheets() -> tuple[Datasheet, ...]:
    """Every device we have figures of, in the file's order."""
    data = _data()
    return tuple(
        Datasheet(
            name=name,
            aliases=tuple(entry["aliases"]),
            compute_capability=entry["compute_capability"],
            figures=MappingProxyType(
                {
                    key: Figure(entry[key]["value"], data["sources"][entry[key]["source"]])
                    for key in FIGURES
                    if key in entry
                }
            ),
            note=entry.get("note", ""),
        )
        for name, entry in data["devices"].items()
    )


def for_device(nvml_name: str) -> Datasheet | None:
    """The datasheet of exactly the device that NVML calls ``nvml_name``; None: we have none, or it is a MIG slice."""
    words = _words(nvml_name)
    return next((sheet for sheet in datasheets() if _words(sheet.name) == words), None)


def find(name: str) -> Datasheet:
    """The device that a person means by ``name``.

    In this order: its name or an alias, whatever the case, punctuation and maker's words; the one device whose name
    holds all of its words. ApexError: none does, or several do; it lists the nearest names.
    """
    words = _words(name)
    by_words = {_words(alias): sheet for sheet in datasheets() for alias in (sheet.name, *sheet.aliases)}
    if words in by_words:
        return by_words[words]
    holding = [sheet for sheet in datasheets() if words and set(words) <= set(_words(sheet.name))]
    if len(holding) == 1:
        return holding[0]
    if holding:
        raise ApexError(f"{name!r} is ambiguous, it may mean {_listing(holding)}: give one of these names.")
    near = difflib.get_close_matches(" ".join(words), [" ".join(key) for key in by_words], n=3, cutoff=0.5)
    meant = list(dict.fromkeys(by_words[tuple(match.split())] for match in near))
    hint = f"did you mean {_listing(meant)}? " if meant else ""
    raise ApexError(
        f"No datasheet figures for {name!r}: {hint}apex4-probe predict --list shows all {len(datasheets())} known "
        "devices."
    )


def _listing(sheets: list[Datasheet]) -> str:
    return " or ".join(f'"{sheet.name}"' for sheet in sheets)
