"""What ``bench`` writes: a header that says on what, with what and when, and a record for every time."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from pydantic import Field, ValidationError

from apex4_probe.deployment import Device, Environment, GemmTiming, Record
from apex4_probe.errors import ApexError
from apex4_probe.files import read_limited

BENCH_SCHEMA_VERSION = "1.0"  # major.minor, as a profile's
LIMIT_BYTES = 64 << 20  # a record is some 600 bytes; every tile of every variant over a dozen shapes is a few MiB
COLUMNS = tuple(GemmTiming.model_fields)


class BenchHeader(Record):
    """``rotate_bytes``: over how many bytes of weights each candidate went round. ``warnings``: what disturbed it."""

    schema_version: str = Field(default=BENCH_SCHEMA_VERSION, pattern=r"^\d+\.\d+$")
    tool_version: str
    created: str  # ISO 8601, UTC
    command: str
    commit: str | None = None
    model: str
    device: Device
    environment: Environment
    peers: dict[str, str] = Field(default_factory=dict)  # versions of the peers' distributions that are installed
    rotate_bytes: int = Field(gt=0)
    read_gb_s: float | None = None  # the ceilings behind roofline_fraction, measured before
    tensor_tops: dict[str, float] = Field(default_factory=dict)  # by operand
    warnings: list[str] = Field(default_factory=list)


class ChainTiming(Record):
    """The GEMMs of one transformer block with the quantisation of each one's input, in a row in one CUDA graph.

    ``us``: as launched by default; ``us_pdl``: with programmatic dependent launch, None where the GPU has none.
    ``us_fp16``: the same GEMMs in torch FP16. What lies between the GEMMs of a model (attention, norms) is left out.
    """

    m: int = Field(gt=0)
    links: list[str]  # "6144 x 4096 w4a8.small.channel rows=32,…", in order
    us: float = Field(gt=0)
    spread: float = Field(ge=0)
    us_pdl: float | None = None
    spread_pdl: float | None = None
    us_fp16: float | None = None


class Refusal(Record):
    """A candidate without a time, and why. ``candidate``: its variant, with its tile where it has one."""

    n: int
    k: int
    m: int
    candidate: str
    why: str


class Bench(Record):
    """The file ``bench.json``."""

    header: BenchHeader
    records: list[GemmTiming]
    chains: list[ChainTiming] = Field(default_factory=list)
    refused: list[Refusal] = Field(default_factory=list)


def bench_json(bench: Bench) -> str:
    return json.dumps(bench.model_dump(mode="json"), indent=1, allow_nan=False)


def bench_csv(bench: Bench) -> str:
    """One record a line, the schema's names; what is absent is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(record.model_dump(mode="json") for record in bench.records)
    return buffer.getvalue()


def load_bench(path: str | Path) -> Bench:
    """Read a ``bench.json``. Raises ApexError naming the field that is wrong, or another major schema version."""
    text = read_limited(path, LIMIT_BYTES)
    try:
        bench = Bench.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ApexError(f"{path}: {where}: {first['msg']}; a bench.json is what apex4-probe bench writes") from None
    version = bench.header.schema_version
    if version.partition(".")[0] != BENCH_SCHEMA_VERSION.partition(".")[0]:
        raise ApexError(
            f"{path}: header.schema_version is {version}, this version reads {BENCH_SCHEMA_VERSION}; run bench again"
        )
    return bench
