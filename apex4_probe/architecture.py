"""Static facts of an architecture: what it has, how fast it can be per clock, and where each figure is from.

The facts are data, in ``profiles/architectures.yaml``; adding an architecture is one entry there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

import yaml

from apex4_probe.errors import ApexError

Unit = Literal["MAC", "instr", "B"]
Level = Literal["native", "emulated", "refused"]

OLDEST = (7, 5)  # the first architecture with INT4 Tensor Cores (NVIDIA Turing GPU Architecture)
UNBOUNDED = ("memory.", "l2.", "launch.")  # measurements that no per-SM-clock rate bounds


@dataclass(frozen=True)
class Rate:
    """What one SM does per clock: dense MAC, thread-instructions or bytes (``unit``).

    ``value`` is None where nobody documents or measured it (``source`` "unsourced") or the hardware has none
    (``absent``). ``assumed`` is a stand-in by analogy, for predictions only.
    """

    value: float | None
    unit: Unit
    source: str
    assumed: float | None = None
    absent: bool = False
    note: str = ""

    @property
    def for_prediction(self) -> float | None:
        return self.assumed if self.value is None else self.value


@dataclass(frozen=True)
class Support:
    """How an architecture executes one canonical instruction.

    ``sass``: the mnemonic that proves native execution, a prefix of what the disassembler prints. ``emulated_by``: how
    many instructions replace one, about. ``reason``: why it is refused, or what emulation means.
    """

    name: str
    level: Level
    sass: str
    rate: str  # key into Architecture.rates
    emulated_by: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """What one SM holds at a time, besides 65536 registers everywhere. ``cta_shared_bytes``: the most of one CTA."""

    warps: int
    ctas: int
    shared_bytes: int
    cta_shared_bytes: int
    source: str


@dataclass(frozen=True)
class Architecture:
    """One compute capability. A flag that is a sentence is empty where it does not hold, and else says why it does."""

    compute_capability: str
    name: str
    target: str  # for NVRTC, e.g. "sm_90a"
    limits: Limits
    rates: Mapping[str, Rate] = field(hash=False)
    instructions: Mapping[str, Support] = field(hash=False)
    mma_probes: tuple[str, ...]  # canonical names that this architecture compiles and that are worth probing on it
    kernels: bool  # whether the kernel catalogue has anything for it
    kernels_reason: str = ""
    block_scales_in_hardware: str = ""
    tcgen05: str = ""
    no_int8_plan: str = ""
    mma_sync_fraction: Rate | None = None  # of the wgmma rate that mma.sync reaches; 9.0 only

    def support(self, name: str) -> Support:
        """How ``name``, a canonical measurement name of an instruction, runs here. ValueError: no such name."""
        support = self.instructions.get(name) or self.instructions.get(name.partition(".")[0])
        if support is None:
            raise ValueError(f"{name!r} is no canonical instruction name (profiles/architectures.yaml lists them)")
        return support

    def peak(self, name: str) -> float | None:
        """Most that one SM can do per clock under the measurement ``name``: MAC, thread-instructions or bytes.

        An emulated MMA is bounded by the instruction that does the work. None: no bound is known, or none applies.
        ValueError: no such name.
        """
        if name.startswith(UNBOUNDED):
            return None
        if name == "shared.read":
            return self.rates["shared_bytes"].value
        return self.rates[self.support(name).rate].value


def _support(name: str, common: Mapping[str, Any], cell: Any, i2f_sass: str) -> Support:
    sass = i2f_sass if name == "i2f" else common["sass"]
    if cell == "native":
        return Support(name, "native", sass, common["rate"])
    if "refused" in cell:
        return Support(name, "refused", sass, common["rate"], reason=cell["refused"])
    worker = common["emulated_by"]
    count = cell["emulated"]
    reason = f"no {sass} here: about {count} instruction{'s' * (count > 1)} with {worker} MMAs take its place"
    return Support(name, "emulated", sass, worker, count, reason)


def _rate(entry: Mapping[str, Any], sources: Mapping[str, str], unit: Unit | None = None) -> Rate:
    return Rate(
        value=entry.get("value"),
        unit=unit or entry["unit"],
        source=sources[entry["source"]],
        assumed=entry.get("assumed"),
        absent=entry["source"] == "absent",
        note=entry.get("note", ""),
    )


def _limits(entry: Mapping[str, Any], sources: Mapping[str, str]) -> Limits:
    return Limits(
        warps=entry["warps"],
        ctas=entry["ctas"],
        shared_bytes=entry["shared_kib"] * 1024,
        cta_shared_bytes=entry["cta_shared_kib"] * 1024,
        source=sources[entry["source"]],
    )


@cache
def _load() -> Mapping[str, Architecture]:
    text = files("apex4_probe.profiles").joinpath("architectures.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    sources, common = data["sources"], data["instructions"]
    found: dict[str, Architecture] = {}
    for cc, entry in data["architectures"].items():
        cells = entry["instructions"]
        instructions = {
            name: _support(name, facts, cells.get(name, "native"), entry["i2f_sass"]) for name, facts in common.items()
        }
        fraction = entry.get("mma_sync_fraction")
        found[cc] = Architecture(
            compute_capability=cc,
            name=entry["name"],
            target=entry["target"],
            limits=_limits(entry["limits"], sources),
            rates=MappingProxyType({key: _rate(rate, sources) for key, rate in entry["rates"].items()}),
            instructions=MappingProxyType(instructions),
            mma_probes=tuple(
                name for name in cells if instructions[name].level != "refused" and cc in common[name].get("only", [cc])
            ),
            kernels=entry["kernels"],
            kernels_reason=entry.get("kernels_reason", ""),
            block_scales_in_hardware=entry.get("block_scales_in_hardware", ""),
            tcgen05=entry.get("tcgen05", ""),
            no_int8_plan=entry.get("no_int8_plan", ""),
            mma_sync_fraction=_rate(fraction, sources, "MAC") if fraction else None,
        )
    return MappingProxyType(found)


def known() -> tuple[Architecture, ...]:
    """Every architecture we have facts of, oldest first."""
    return tuple(_load().values())


def architecture(compute_capability: str) -> Architecture:
    """The facts of ``compute_capability``, e.g. "8.6". ApexError: malformed, too old, or not in the table."""
    table = _load()
    if compute_capability in table:
        return table[compute_capability]
    try:
        major, minor = (int(part) for part in compute_capability.split("."))
    except ValueError:
        raise ApexError(f"{compute_capability!r} is no compute capability: give major.minor, for example 8.6") from None
    if (major, minor) < OLDEST:
        raise ApexError(
            f"Compute capability {compute_capability} predates INT4 Tensor Cores, so there is nothing to measure: "
            "apex4-probe needs 7.5 (Turing) or newer."
        )
    raise ApexError(
        f"Compute capability {compute_capability} is not in profiles/architectures.yaml, which knows "
        f"{', '.join(table)}: add one entry there, starting from a copy of its nearest neighbour."
    )
