"""What ``bench --sass`` writes: what every kernel's hot loop executes, and the least and most that it costs an SM."""

from __future__ import annotations

import csv
import io
import json
from functools import cache
from importlib.resources import files

from pydantic import Field, ValidationError

from apex4_probe.deployment import Format, Granularity, Record
from apex4_probe.errors import ApexError

SASS_SCHEMA_VERSION = "1.0"  # major.minor, as a profile's
SHIPPED = "sass/sass.json"  # in profiles/, the tool's own output; `make sass` writes it


class HotLoop(Record):
    """One compiled kernel, counted per accumulator and 128 of K (kernels/sass_counts.py says what counts as what).

    ``tile``: the catalogue's name; ``warp_tile``: weight rows x tokens of a warp; ``accumulators``: of a CTA's tile.
    ``dequantisation``, ``widening``, ``other``: thread-instructions by rate; ``loads``: of the load/store unit;
    ``shared_traffic``: bytes through shared memory. ``shared_bytes``: of a CTA; ``registers``, ``local_bytes``: of a
    thread. ``ctas_per_sm``, ``warps_per_sm``: resident, by registers, shared memory and the architecture's limits.
    """

    variant: str
    format: Format
    granularity: Granularity
    strategy: str
    arch: str  # NVRTC's target
    compute_capability: str
    tile: str
    warp_tile: str
    accumulators: int = Field(gt=0)
    mma: float = Field(gt=0)
    mma_rate: str
    dequantisation: dict[str, float]
    widening: dict[str, float]
    other: dict[str, float]
    loads: float
    issue_only: float
    shared_traffic: float
    registers: int
    shared_bytes: int
    local_bytes: int
    threads: int
    ctas_per_sm: int
    warps_per_sm: int
    nvrtc: str

    @property
    def scaling(self) -> float:
        """Instructions of dequantisation and widening."""
        return sum(self.dequantisation.values()) + sum(self.widening.values())

    @property
    def rest(self) -> float:
        """Instructions that are neither MMA nor dequantisation nor widening, loads among them."""
        return self.loads + self.issue_only + sum(self.other.values())


class Bound(Record):
    """SM cycles of a CTA's tile and 128 of K; over the per-channel kernel of the format under the same bound (None:
    there is none), and the speed-up over FP16 at its Tensor Core peak."""

    cycles: float
    over_channel: float | None
    speedup_fp16: float


class Bounds(Record):
    """``overlap``: the longest pipe. ``mma_and_dequantisation``: these two in sequence, all else behind them.
    ``all_pipes``: every pipe after the other; issue slots are no pipe of their own."""

    overlap: Bound
    mma_and_dequantisation: Bound
    all_pipes: Bound


class SassRecord(Record):
    """One variant on one architecture. Instructions per accumulator and 128 of K: ``dequantisation`` with widening,
    ``other`` with loads. ``pipes``: cycles of the CTA's tile and 128 of K."""

    variant: str
    format: Format
    granularity: Granularity
    strategy: str
    arch: str
    warp_tile: str
    mma: float
    dequantisation: float
    other: float
    registers: int
    shared_bytes: int
    local_bytes: int
    pipes: dict[str, float]
    bounds: Bounds
    nvrtc: str


class SassHeader(Record):
    schema_version: str = Field(default=SASS_SCHEMA_VERSION, pattern=r"^\d+\.\d+$")
    tool_version: str
    nvrtc: str
    disassembler: str
    command: str


class NotCounted(Record):
    variant: str
    arch: str
    why: str


class SassReport(Record):
    """The file ``sass.json``. ``loops`` holds what was compiled, a loop a record and in their order; ``records`` what
    follows from it and the architecture's rates."""

    header: SassHeader
    records: list[SassRecord]
    loops: list[HotLoop]
    not_counted: list[NotCounted] = Field(default_factory=list)


COLUMNS = (
    "variant", "format", "granularity", "strategy", "arch", "warp_tile", "mma", "dequantisation", "other", "registers",
    "shared_bytes", "local_bytes", "nvrtc",
)  # fmt: skip


def sass_json(report: SassReport) -> str:
    return json.dumps(report.model_dump(mode="json"), indent=1, allow_nan=False)


def sass_csv(report: SassReport) -> str:
    """One record a line; a column a pipe (``pipes.tensor``) and three a bound (``bounds.overlap.cycles``)."""
    rows = []
    for record in report.records:
        values = record.model_dump(mode="json")
        row = {name: values[name] for name in COLUMNS}
        row |= {f"pipes.{pipe}": cycles for pipe, cycles in record.pipes.items()}
        row |= {f"bounds.{name}.{key}": v for name, bound in values["bounds"].items() for key, v in bound.items()}
        rows.append(row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@cache
def shipped_loops() -> tuple[HotLoop, ...]:
    """What the catalogue compiles to, as it ships; read at the first call. Raises ApexError where it is damaged."""
    text = files("apex4_probe.profiles").joinpath(SHIPPED).read_text(encoding="utf-8")
    return tuple(parse_sass(text, SHIPPED).loops)


def parse_sass(text: str, name: str) -> SassReport:
    """Read what ``sass_json`` wrote. Raises ApexError naming the field that is wrong."""
    try:
        return SassReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ApexError(
            f"{name}: {where}: {first['msg']}; a sass.json is what apex4-probe bench --sass writes"
        ) from None
