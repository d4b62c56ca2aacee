"""How long one linear layer takes: as it was timed here; else memory or Tensor Core and CUDA Cores, and a fixed time.

One model for all formats, so that its errors cancel where formats are compared; its results are predicted, from rates
that may be measured. Where the very GEMM was timed on the GPU at hand, the timing stands in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from apex4_probe.balance import DEPTH, GROUP
from apex4_probe.deployment import Format, Granularity, Origin, StrategyBalance
from apex4_probe.rates import Operand, Rates, worst
from apex4_probe.selection import GemmKey, Timed, candidate_name, total_us

# What GEMMs reached of the burst MMA rate on an H100 80GB HBM3 at M = 1024 and 4096, over eight layer shapes of
# Llama-3-8B and 70B: cuBLAS FP16 716 of 866 TFLOPS. FP8 and W4A8 per channel (our wgmma prototype) were timed as
# multiples of FP16 in one run: 1.92x, of 1710, and 2.01x, of 1871. mma.sync kernels are taken to reach the same share.
EFFICIENCY: dict[Operand, float] = {"f16": 0.83, "e4m3": 0.80, "s8": 0.77, "s4": 0.77}
# At M = 1 a GEMM takes 5.5 to 8 us more than its bytes at the read bandwidth, in FP16 and in W4A16 alike; launch 1.0.
GEMM_FIXED_US = 5.5  # measured, H100 80GB HBM3, CUDA graph of 16 calls with rotated weights
STREAM_FIXED_US = 0.8  # of a pure read, beside launch and bytes: 1.84 TB/s at 8 MB, 3.06 at 235 MB; measured, same card
SMALL_M = (
    64  # up to here W4A16 kernels widen in registers; public ones are slower than FP16 at M = 1024 (measured, H100)
)
M_TILE = 16  # rows that an MMA computes at least

WEIGHT_BITS: dict[Format, int] = {"fp16": 16, "fp8": 8, "w4a16": 4, "w4a8": 4, "w4a4": 4}
ACTIVATION_BITS: dict[Format, int] = {"fp16": 16, "fp8": 8, "w4a16": 16, "w4a8": 8, "w4a4": 4}
OPERANDS: dict[Format, Operand] = {"fp16": "f16", "fp8": "e4m3", "w4a16": "f16", "w4a8": "s8", "w4a4": "s4"}


@dataclass(frozen=True)
class Time:
    """Microseconds. ``low``: all pipes overlap; ``high``: none do; ``quantise`` is part of all three.

    Measured: the three are one figure, and ``kernel`` says of what; ``bound_by`` is the model's word even then.
    """

    us: float
    low: float
    high: float
    quantise: float
    bound_by: str
    origin: Origin = "predicted"
    kernel: str = ""

    def plus(self, other: Time) -> Time:
        longer = self if self.us >= other.us else other
        return Time(
            self.us + other.us,
            self.low + other.low,
            self.high + other.high,
            self.quantise + other.quantise,
            longer.bound_by,
            worst((self.origin, other.origin)),
        )


def weight_bytes(n: int, k: int, format: Format, granularity: Granularity) -> float:
    """Packed weights [n, k] and scales: fp32 a row, fp16 a group (or two bytes, an integer scale and zero)."""
    scales = 0.0 if format == "fp16" else 4.0 * n
    if granularity in GROUP and granularity != "a128i":  # a128i keeps its group scales on the activations
        scales += 2.0 * n * ceil(k / GROUP[granularity])
    return n * k * WEIGHT_BITS[format] / 8 + scales


@dataclass(frozen=True)
class GemmTimer:
    """``costs``: the best strategy of each (format, granularity) whose kernel is considered. ``timed``: on this GPU."""

    rates: Rates
    costs: Mapping[tuple[Format, Granularity], StrategyBalance]
    timed: Timed = field(default_factory=dict)

    def linear(self, m: int, n: int, k: int, format: Format, granularity: Granularity) -> Time:
        """One linear layer [m, k] x [n, k], quantisation of its input included.

        KeyError: no kernel of this format and granularity is considered here.
        """
        modelled = self.modelled(m, n, k, format, granularity)
        timing = self.timed.get(GemmKey(m, n, k, format, granularity))
        if timing is None:
            return modelled
        us = total_us(timing)
        return Time(us, us, us, timing.us_quantise, modelled.bound_by, timing.origin, candidate_name(timing))

    @property
    def fixed_us(self) -> float:
        """What every GEMM takes beside its bytes and its arithmetic."""
        return self.rates.launch_us().value + GEMM_FIXED_US

    def modelled(self, m: int, n: int, k: int, format: Format, granularity: Granularity) -> Time:
        """As ``linear``, whether it was timed or not."""
        if format == "w4a16" and m > SMALL_M:
            unpack = self._stream_us(weight_bytes(n, k, format, granularity) + 2.0 * n * k)
            return self.linear(m, n, k, "fp16", "none").plus(Time(unpack, unpack, unpack, 0.0, "memory"))
        quantise = self._quantise_us(m, k, format, granularity)
        memory = self._memory_us(m, n, k, format, granularity)
        tiles = -(-m // M_TILE) * M_TILE * n * (k / DEPTH)
        expected, low, high, pipe = self._cycles(format, granularity)
        per_cycle = tiles / (self.rates.device.sm_count * self._clock_mhz(format) * EFFICIENCY[OPERANDS[format]])
        fixed = self.fixed_us
        compute = expected * per_cycle
        bound_by = "launch" if fixed > max(memory, compute) else "memory" if memory >= compute else pipe
        return Time(
            us=quantise + fixed + max(memory, compute),
            low=quantise + fixed + max(memory, low * per_cycle),
            high=quantise + fixed + max(memory, high * per_cycle),
            quantise=quantise,
            bound_by=bound_by,
        )

    def _cycles(self, format: Format, granularity: Granularity) -> tuple[float, float, float, str]:
        """Expected, lowest and highest SM cycles per accumulator and 128 of K, and the pipe that binds."""
        if format in ("w4a8", "w4a4"):
            cost = self.costs[format, granularity]
            return cost.cycles_expected, cost.cycles_full_overlap, cost.cycles_no_overlap, cost.bound_by
        tensor = self.rates.tensor(OPERANDS[format])
        if tensor is None:
            raise KeyError(format)
        cycles = DEPTH / tensor.per_clk
        return cycles, cycles, cycles, "tensor"

    def _clock_mhz(self, format: Format) -> float:
        tensor = self.rates.kernel_tensor(OPERANDS[format])
        if tensor is None:
            raise KeyError(format)
        return tensor.clock_mhz

    def _memory_us(self, m: int, n: int, k: int, format: Format, granularity: Granularity) -> float:
        activations = _activation_bytes(m, k, format, granularity)
        return self._read_us(weight_bytes(n, k, format, granularity) + activations + 2.0 * m * n)

    def _quantise_us(self, m: int, k: int, format: Format, granularity: Granularity) -> float:
        """A kernel of its own reads 16 bit and writes the quantised activations (and rotates them on the way)."""
        if ACTIVATION_BITS[format] == 16:
            return 0.0
        return self._stream_us(2.0 * m * k + _activation_bytes(m, k, format, granularity))

    def _stream_us(self, size: float) -> float:
        return self.rates.launch_us().value + STREAM_FIXED_US + self._read_us(size)

    def _read_us(self, size: float) -> float:
        return size / (self.rates.read_bandwidth().value * 1e3)


def _activation_bytes(m: int, k: int, format: Format, granularity: Granularity) -> float:
    scales = 0.0 if ACTIVATION_BITS[format] == 16 else 4.0 * m
    if format == "w4a4" and granularity in GROUP:
        scales += (1.0 if granularity == "a128i" else 2.0) * m * k / GROUP[granularity]
    return m * k * ACTIVATION_BITS[format] / 8 + scales
