"""What a comparison of profiles consists of. Frozen data: ``comparison`` computes it, ``reports`` shows it.

Every figure keeps where it comes from, so that measured and predicted ones can stand side by side without being mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apex4_probe.deployment import Decision, Format, Granularity, LayerPlan, Origin, Profile, WorkloadRecord

RateKind = Literal["INT4", "INT8", "FP8", "FP16", "FP32"]
Significance = Literal["same", "changed", "beyond cards", "prediction"]


@dataclass(frozen=True)
class Subject:
    """One profile of the comparison. ``label``: unique in it; ``where``: the file, "shipped" or "datasheet"."""

    label: str
    profile: Profile
    where: str

    @property
    def device(self) -> tuple[str, str | None]:
        """What makes two profiles of one device: its name, and its MIG slice."""
        return self.profile.device.name, self.profile.device.mig


@dataclass(frozen=True)
class Rate:
    """The best throughput of one kind in hardware; ``tops`` None: ``absent`` says why.

    ``tops``: T op/s, two a MAC or FMA, dense, burst. ``per_clk``: MAC or FMA per SM cycle and SM. ``per_watt``:
    T op/s per W, of ``watt_tops`` at ``watts``; ``watts_are`` says which power that is and ``watts_measured`` whether
    both were measured under the same sustained load.
    """

    kind: RateKind
    instruction: str
    tops: float | None = None
    per_clk: float | None = None
    origin: Origin = "predicted"
    per_watt: float | None = None
    watt_tops: float | None = None
    watts: float | None = None
    watts_are: str = ""
    watts_measured: bool = False
    absent: str = ""


@dataclass(frozen=True)
class Gain:
    """Speed-up over FP16 of one uniform plan or of the published mix over the whole workload.

    ``origin``: measured where every GEMM of it and of FP16 was timed on the device; else predicted, ``low`` without
    overlap of the pipes and ``high`` with all of it. ``strategy``: how its group scales are applied.
    """

    format: Format
    granularity: Granularity
    strategy: str
    speedup: float
    low: float
    high: float
    expected_loss: float
    origin: Origin


@dataclass(frozen=True)
class PhaseTime:
    """All linear layers of the model once at M tokens, microseconds, in the format that was chosen and in FP16."""

    phase: Literal["decode", "prefill"]
    m: int
    us: float
    us_low: float  # full overlap of the pipes
    us_high: float  # none
    us_fp16: float
    origin: Origin


@dataclass(frozen=True)
class Cost:
    """US dollars per million tokens of one phase: the price of the GPUs while their linear layers run."""

    phase: Literal["decode", "prefill"]
    m: int
    usd: float
    usd_low: float
    usd_high: float
    usd_fp16: float
    usd_per_hour: float


@dataclass(frozen=True)
class Flag:
    """What must be known before a row is believed: a word for the table, a sentence for the reader."""

    word: str
    sentence: str


@dataclass(frozen=True)
class Answer:
    """What the planner says of one profile for the comparison's workload.

    ``plain``: within W4A4 when kernels apply group scales as the paper's does (I2F, FMUL, FFMA per accumulator).
    """

    decision: Decision
    w4a4: Decision
    plain: Decision
    layers: tuple[LayerPlan, ...]
    gains: tuple[Gain, ...]
    times: tuple[PhaseTime, ...]


@dataclass(frozen=True)
class Entry:
    """One row. ``answer`` None: ``unplanned`` says why no plan could be made."""

    subject: Subject
    rates: tuple[Rate, ...]
    answer: Answer | None
    unplanned: str
    flags: tuple[Flag, ...]
    costs: tuple[Cost, ...] = ()


@dataclass(frozen=True)
class Region:
    """Best expected quality at one rho for a wanted speed-up over FP16 in (``low``, ``high``]; ``high`` may be inf."""

    strategies: Literal["plain", "all"]
    phase: Literal["decode", "prefill"]
    m: int
    rho: float
    low: float
    high: float
    format: Format
    granularity: Granularity


@dataclass(frozen=True)
class RegionMap:
    """``regions`` for each strategy set, phase and rho; ``assumption``: one sentence on the chip they hold for."""

    regions: tuple[Region, ...]
    assumption: str


@dataclass(frozen=True)
class Change:
    """One figure in two profiles of a device. ``ratio``: second over first; ``bound``: what noise explains of it."""

    figure: str
    unit: str
    first: float | None
    second: float | None
    ratio: float | None
    bound: float | None
    significance: Significance
    why: str


@dataclass(frozen=True)
class Difference:
    """A field in which two profiles of one device differ."""

    field: str
    first: str
    second: str
    why: str


@dataclass(frozen=True)
class Pair:
    """Two profiles of one device name. ``caution``: what the comparison cannot know."""

    first: Subject
    second: Subject
    caution: str
    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Comparison:
    entries: tuple[Entry, ...]
    workload: WorkloadRecord
    map: RegionMap
    pairs: tuple[Pair, ...]
    remarks: tuple[str, ...]  # sentences: what was left out, where the workload comes from
    command: str = ""
