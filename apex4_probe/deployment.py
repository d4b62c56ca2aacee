"""The deployment profile: everything a consumer needs and everything a reader may doubt.

The models below are the schema. Every figure says where it comes from (``origin``): ``measured`` on this device by this
tool, ``datasheet`` as a vendor lists it, ``predicted`` by arithmetic on either. ``spread`` is
(90th - 10th percentile) / median everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA_VERSION = "1.2"  # major.minor: a reader refuses another major and ignores fields that a newer minor added
PEAK_TOLERANCE = 1.02  # of the physical peak: a reading above it is the timer's error or a loop the compiler emptied

Origin = Literal["measured", "predicted", "datasheet"]
Format = Literal["fp16", "fp8", "w4a16", "w4a8", "w4a4"]
Granularity = Literal["none", "channel", "a128i", "g128", "g64", "g32", "g128i", "g128r", "mixed"]
Role = Literal["q", "k", "v", "o", "gate", "up", "down"]
# What connects two GPUs: NVLink, else NVML's topology levels from the nearest (one board) to the farthest
LinkPath = Literal[
    "nvlink", "board", "pcie_switch", "pcie_switches", "host_bridge", "numa_node", "between_cpus", "unknown"
]


class Record(BaseModel):
    """Frozen data; a field added by a newer minor schema is ignored, never an error.

    The validators below refuse what no honest writer produces, so that a reader need not doubt it: a blank without its
    reason, a reading above the physical peak, "measured" in a profile that was predicted.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Device(Record):
    """The GPU, as NVML and CUDA describe it. ``None``: the driver does not report it on this part."""

    name: str
    compute_capability: str = Field(pattern=r"^\d+\.\d+$")
    architecture: str
    sm_count: int = Field(gt=0)
    memory_mib: int | None = None
    l2_mib: float | None = None
    mig: str | None = None  # MIG slice, e.g. "1g.10gb"; None: the whole GPU
    ecc: bool | None = None
    power_limit_w: float | None = None
    max_sm_clock_mhz: float | None = None
    max_memory_clock_mhz: float | None = None


class Environment(Record):
    driver: str | None = None
    cuda_driver: str | None = None  # CUDA version that the driver supports, "13.0"
    nvrtc: str | None = None
    cupy: str | None = None
    torch: str | None = None
    python: str
    platform: str
    disassembler: str | None = None


class Provenance(Record):
    """How to get this profile again, and what may have disturbed it."""

    command: str
    commit: str | None = None  # of the tool's own checkout; None: installed from a package
    duration_s: float | None = None
    mode: Literal["default", "full", "predicted"] = "default"
    warnings: list[str] = []


# The same rule as Measurement's validator, for readers of the JSON Schema.
_VALUE_OR_REASON: dict[str, Any] = {
    "oneOf": [
        {"required": ["value"], "properties": {"value": {"type": "number"}}},
        {"required": ["unsupported"], "properties": {"unsupported": {"type": "string"}}},
    ]
}


class Measurement(Record):
    """One figure. ``value`` is None exactly when ``unsupported`` says why it cannot be had here.

    ``unit``: TOPS and TFLOPS count two operations a MAC; "Tinstr/s" counts thread-instructions; GB/s is 10^9 bytes.
    ``per_clk_per_sm``: MAC, thread-instructions or bytes (``per_clk_unit``) per SM cycle and SM, from cycles read in
    the kernel, so independent of the clock. ``peak_fraction``: of the physical peak per clock, where one is known.
    """

    model_config = ConfigDict(json_schema_extra=_VALUE_OR_REASON)

    name: str
    instruction: str  # SASS mnemonic counted in the hot loop, e.g. "IMMA.16832.S8.S8"; "" where none is meant
    emulated: bool | None = None  # None: could not be told (no disassembler)
    sass_verified: bool | None = None
    operands: Literal["random", "zeros"] | None = None
    regime: Literal["burst", "sustained"] | None = None
    value: float | None = Field(default=None, ge=0)
    unit: str
    per_clk_per_sm: float | None = Field(default=None, ge=0)
    per_clk_unit: Literal["MAC", "instr", "B"] | None = None
    peak_fraction: float | None = Field(default=None, ge=0, le=PEAK_TOLERANCE)
    samples: int = Field(default=0, ge=0)
    discarded: int = Field(default=0, ge=0)  # samples thrown away because the clock was thermally or hardware limited
    spread: float | None = Field(default=None, ge=0)
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttle: list[str] = []  # e.g. ["power_cap"]
    configuration: dict[str, int | float | str] = {}  # warps, ilp, bytes, … at the plateau
    origin: Origin
    source: str | None = None  # for datasheet figures: where it is listed; for predictions: from what
    unsupported: str | None = None

    @model_validator(mode="after")
    def _a_value_or_the_reason_why_not(self) -> Measurement:
        if (self.value is None) == (self.unsupported is None):
            raise ValueError(
                f"{self.name!r:.60} has neither a value nor the reason why not (unsupported)"
                if self.value is None
                else f"{self.name!r:.60} has a value and is called unsupported"
            )
        return self


class PeerLink(Record):
    """The way from this GPU to another one of its host, and what copies over it reach.

    ``peer``: CUDA's number of the other GPU when this was measured. ``path``: as NVML tells it; ``nvlinks``: active
    ones between the two, or from this GPU into an NVSwitch. ``peer_access``: copies go straight; False: the driver
    stages them in host memory. GB/s is 10^9 bytes; ``both_gb_per_s``: the sum of both directions at once.
    ``copy_us``: of 16 bytes, many copies back to back. ``spread``: the largest of the three rates'. Rates are None
    exactly when ``unsupported`` says why they cannot be had.
    """

    peer: int = Field(ge=0)
    peer_name: str
    path: LinkPath
    nvlinks: int | None = Field(default=None, ge=0)
    peer_access: bool | None = None
    to_peer_gb_per_s: float | None = Field(default=None, gt=0)
    from_peer_gb_per_s: float | None = Field(default=None, gt=0)
    both_gb_per_s: float | None = Field(default=None, gt=0)
    copy_us: float | None = Field(default=None, gt=0)
    samples: int = Field(default=0, ge=0)
    spread: float | None = Field(default=None, ge=0)
    origin: Origin = "measured"
    unsupported: str | None = None

    @model_validator(mode="after")
    def _rates_or_the_reason_why_not(self) -> PeerLink:
        rates = (self.to_peer_gb_per_s, self.from_peer_gb_per_s, self.both_gb_per_s, self.copy_us)
        if any((rate is None) == (self.unsupported is None) for rate in rates):
            raise ValueError(f"the link to GPU {self.peer} needs all its rates, or none and the reason (unsupported)")
        return self

    def mirrored(self, peer: int, peer_name: str) -> PeerLink:
        """The same link as the other end sees it; ``peer``, ``peer_name``: this end."""
        there, back = self.to_peer_gb_per_s, self.from_peer_gb_per_s
        swapped = {"to_peer_gb_per_s": back, "from_peer_gb_per_s": there}
        return self.model_copy(update={"peer": peer, "peer_name": peer_name, **swapped})


class CoIssue(Record):
    """Tensor Core loop with ``k`` CUDA-core instructions per accumulator and four MMA K-steps.

    ``cycles_over_mma_alone``: t_both / t_mma, of the slowest SM; ``sm_spread``: its cycles over the median SM's, minus
    1 (warpgroups may fall into step on some SMs only). ``overlap`` = (t_mma + t_cuda - t_both) / min(t_mma, t_cuda),
    t_cuda from the same loop without the MMA; None at k = 0. ``wall_over_mma_alone``: the same ratio in wall time, so
    that contention (both move) and power (only this one does) can be told apart.
    """

    mma: str  # "wgmma.s8", "wgmma.f16", "mma.s8", "mma.f16"
    shape: str  # "m64n256k32.rs", "m16n8k32"
    placement: Literal["other_warps", "at_issue", "after_complete", "no_handover", "same_warps"]
    instruction: str  # "ffma", "ffma3", "fadd", "imad", "lop3", "i2f_ffma", "nop", or a dequantisation mix
    k: int = Field(ge=0)
    cycles_over_mma_alone: float
    cuda_over_mma_alone: float | None = None  # t_cuda / t_mma
    wall_over_mma_alone: float | None = None
    overlap: float | None = None
    spread: float | None = Field(default=None, ge=0)
    sm_spread: float | None = Field(default=None, ge=0)
    sm_clock_mhz: float | None = None
    throttle: list[str] = []
    samples: int = 0
    sass_verified: bool | None = None
    origin: Origin
    source: str | None = None


class RhoFigure(Record):
    """Tensor Core over CUDA Core throughput, the paper's rho: operations over FP32 operations, two per MAC and FMA."""

    datasheet: float | None = None
    measured: float | None = None
    per_clock: float | None = None  # MAC per clock and SM over FFMA per clock and SM
    usable: bool
    reason: str = ""  # when not usable: "emulated: …", "block scales are in hardware: …"


class StrategyBalance(Record):
    """What one dequantisation strategy costs per accumulator and 128 of K, pipe by pipe, in SM cycles."""

    format: Format
    granularity: Granularity
    strategy: str
    mma: str  # name of the measurement that gives the tensor rate
    pipes: dict[str, float]  # tensor, fma, alu, conversion, shared, issue
    overlap: float  # of CUDA-core work behind the Tensor Core, 0 … 1
    overlap_origin: Origin
    cycles_full_overlap: float
    cycles_no_overlap: float
    cycles_expected: float
    over_channel: float  # cycles_expected over those of the same format per channel
    bound_by: str
    origin: Origin
    source: str


class Decision(Record):
    format: Format
    granularity: Granularity
    reason: str
    margin: float | None = None  # workload time of the runner-up over ours, minus 1; None: no slower one, or none
    runner_up: str | None = None
    speedup_fp16: float | None = None  # over the whole workload
    speedup_fp16_interval: tuple[float, float] | None = None  # no overlap … full overlap
    confidence: Literal["high", "medium", "low"]
    rule: str  # the rule of choice in one sentence
    expected_loss: float | None = None  # nats per token, from the quality prior
    fits_memory: bool | None = None


class LayerTime(Record):
    """One layer at ``m`` tokens. ``origin`` measured: its GEMM, that of FP16 and the quantisation were timed here.

    A role that runs in a fused GEMM (qkv, gate_up) has its share of it by N. ``kernel``: what was timed, "variant
    tile"; None where the time is predicted. ``bound_by``: by the model, even where the time was measured.
    """

    m: int
    us: float
    us_low: float  # full overlap of the pipes; us where measured
    us_high: float  # none; us where measured
    us_fp16: float
    us_quantise: float = 0.0  # quantising the activations; included in us
    bound_by: str
    kernel: str | None = None
    origin: Origin


class KernelChoice(Record):
    """What ``linear`` launches for up to ``m_max`` tokens: a catalogue variant and its tile.

    ``us`` includes ``us_quantise``, the quantisation of the activations. ``runner_up``: the fastest candidate of
    another kind for this GEMM at ``m_max`` tokens, whatever its format, "variant tile", "fp16" or "fp8";
    ``runner_up_us``: likewise with quantisation.
    """

    m_max: int = Field(gt=0)
    variant: str
    tile: str  # "rows=32,warps=16,stages=2"
    stages: int
    split_k: int
    us: float
    us_quantise: float
    speedup: float  # over FP16, quantisation counted
    runner_up: str | None = None
    runner_up_us: float | None = None
    origin: Origin


class KernelTable(Record):
    """The kernels of one GEMM shape in one packing, by number of tokens. ``n``: of the GEMM that runs, fused or not.

    A table stands here for every packing that was tuned, chosen by the plan or not, because a caller may pack another.
    """

    n: int = Field(gt=0)
    k: int = Field(gt=0)
    format: Format
    granularity: Granularity
    kernels: list[KernelChoice] = Field(min_length=1)  # m_max ascending

    @model_validator(mode="after")
    def _ascending(self) -> KernelTable:
        bounds = [kernel.m_max for kernel in self.kernels]
        if bounds != sorted(set(bounds)):
            raise ValueError(f"m_max does not ascend from kernel to kernel: {bounds!s:.100}")
        return self

    def for_tokens(self, m: int) -> KernelChoice:
        """The kernel for ``m`` tokens: the one tuned for the next larger M, never the nearest.

        What is legal and was chosen for more tokens serves fewer. Above the largest M that was tuned its kernel
        stands, and the caller asks the catalogue whether it is legal there: those for small M are not.
        """
        return next((kernel for kernel in self.kernels if m <= kernel.m_max), self.kernels[-1])


class GemmTiming(Record):
    """One GEMM candidate, timed. ``us``: without quantising its activations, which is ``us_quantise``.

    ``variant``: a catalogue variant, or a baseline: "fp16", "fp8", "int8", "read" (a pure read of the packed nibbles'
    bytes). ``tops``: 2 m n k over us; ``gb_per_s``: the bytes that must move over us; ``speedup_*``: that baseline's us
    over ours, quantisation left out on both sides; ``roofline_fraction``: the longer of memory and Tensor Core time at
    the measured rates over us. ``exact``: bit-equal to the reference where the arithmetic is integer, else within one
    rounding of the output type; None: not checked. ``version``: of a peer's library.
    """

    n: int
    k: int
    m: int
    variant: str
    format: Format | Literal["int8", "read"]
    granularity: Granularity
    strategy: str = ""
    tile: str = ""
    method: Literal["interleaved", "sustained"] = "interleaved"
    us: float = Field(gt=0)
    us_quantise: float = Field(default=0.0, ge=0)
    spread: float = Field(ge=0)
    samples: int = Field(default=0, ge=0)
    tops: float | None = None
    gb_per_s: float | None = None
    speedup_fp16: float | None = None
    speedup_fp8: float | None = None
    speedup_int8: float | None = None
    roofline_fraction: float | None = None
    exact: bool | None = None
    version: str | None = None
    origin: Origin = "measured"


class LayerPlan(Record):
    role: Role
    n: int
    k: int
    count: int
    format: Format
    granularity: Granularity
    reason: str
    margin: float | None = None
    times: list[LayerTime] = []


class WorkloadPoint(Record):
    phase: Literal["decode", "prefill"]
    m: int = Field(gt=0)
    weight: float = Field(gt=0)


class WorkloadRecord(Record):
    model: str
    points: list[WorkloadPoint]
    tensor_parallel: int = 1
    format: Literal["auto", "fp16", "fp8", "w4a16", "w4a8", "w4a4"] = "auto"
    max_quality_loss: float = 0.15
    min_speedup: float = 1.2


class Rejected(Record):
    variant: str  # "w4a4 g128 (I2F + FMUL + FFMA)"
    why: str


class Profile(Record):
    """The file itself. ``checksum``: sha256 over the canonical JSON of every other field."""

    schema_version: str = Field(default=SCHEMA_VERSION, pattern=r"^\d+\.\d+$")
    tool_version: str
    created: str  # ISO 8601, UTC
    origin: Literal["measured", "predicted"]
    device: Device
    environment: Environment
    provenance: Provenance
    measurements: list[Measurement]
    co_issue: list[CoIssue] = []
    rho: dict[Literal["int4", "int8"], RhoFigure] = {}
    balance: list[StrategyBalance] = []
    decision: Decision
    w4a4: Decision | None = None  # the paper's question, answered beside --format auto
    workload: WorkloadRecord
    layers: list[LayerPlan]
    kernels: list[KernelTable] = []  # what runtime.linear launches; empty: nothing was tuned, its defaults hold
    gemm_timings: list[GemmTiming] = []  # each candidate's best tile by GEMM and M, the baselines included
    links: list[PeerLink] = []  # to the other GPUs of the host that were measured in the same run
    rejected: list[Rejected] = []
    notes: list[str] = []  # sentences for the reader: block scales in hardware, tcgen05 not probed, …
    checksum: str = ""

    def to_frame(
        self,
        section: Literal[
            "measurements", "co_issue", "balance", "layers", "kernels", "gemm_timings", "links"
        ] = "measurements",
    ) -> DataFrame:
        """A section as a pandas DataFrame: a row a record, the schema's names and units; what is absent is NaN.

        "balance" has a column a pipe (``pipes.tensor``, …); "layers" a row for every layer role and M, "kernels" for
        every table and ``m_max``. ``frame.attrs`` says which device, origin and tool version. Raises ApexError for
        another section.
        """
        from apex4_probe import frames

        about = {"device": self.device.name, "origin": self.origin, "tool_version": self.tool_version}
        if section == "layers":
            return frames.nested(LayerPlan, LayerTime, self.layers, "times", about)
        if section == "kernels":
            return frames.nested(KernelTable, KernelChoice, self.kernels, "kernels", about)
        records: dict[str, tuple[type[Record], Sequence[Record]]] = {
            "measurements": (Measurement, self.measurements),
            "co_issue": (CoIssue, self.co_issue),
            "balance": (StrategyBalance, self.balance),
            "gemm_timings": (GemmTiming, self.gemm_timings),
            "links": (PeerLink, self.links),
        }
        return frames.flat(*frames.section_of(records, section), about)

    @model_validator(mode="after")
    def _origin_fits_the_figures(self) -> Profile:
        if self.origin == "measured":
            if not any(figure.origin == "measured" and figure.value is not None for figure in self.measurements):
                raise ValueError('origin is "measured", but no measurement is')
            return self
        places = [
            *((f"measurements: {figure.name!r}", figure.origin) for figure in self.measurements),
            *(
                (f"co_issue: {point.mma!r} {point.instruction!r} k = {point.k}", point.origin)
                for point in self.co_issue
            ),
            *((f"rho: {kind}", "measured") for kind, figure in self.rho.items() if figure.measured is not None),
            *(
                (f"balance: {item.strategy!r}", origin)
                for item in self.balance
                for origin in (item.origin, item.overlap_origin)
            ),
            *((f"layers: {layer.role}", time.origin) for layer in self.layers for time in layer.times),
            *((f"kernels: {kernel.variant!r}", kernel.origin) for table in self.kernels for kernel in table.kernels),
            *((f"gemm_timings: {timing.variant!r}", timing.origin) for timing in self.gemm_timings),
            *((f"links: to GPU {link.peer}", link.origin) for link in self.links),
        ]
        for place, origin in places:
            if origin == "measured":
                raise ValueError(f'origin is "predicted", but {place:.100} is marked measured')
        return self


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the file, shipped as ``profiles/profile.schema.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Profile.model_json_schema()}
