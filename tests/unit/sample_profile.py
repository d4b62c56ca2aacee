"""One realistic deployment profile for tests: an H100 SXM with measured figures, and the layers of Llama-3-8B.

Throughputs, clocks and bandwidths are what an H100 80GB HBM3 reads; co-issue curves follow the law found there:
CUDA-core work is free up to 0.42 of the MMA's own time, then adds in full. Times of layers are arithmetic on those
figures. Nothing here is a result of the tool: tests that need a real file read ``profiles/measured``.
"""

from __future__ import annotations

from typing import Any

from apex4_probe.deployment import (
    CoIssue,
    Decision,
    Device,
    Environment,
    GemmTiming,
    LayerPlan,
    LayerTime,
    Measurement,
    Profile,
    Provenance,
    Rejected,
    RhoFigure,
    StrategyBalance,
    WorkloadPoint,
    WorkloadRecord,
)
from apex4_probe.selection import kernel_tables

SM_COUNT = 132
FFMA_PER_CLK = 123.0
IMAD_PER_CLK = 63.5  # the same for LOP3, I2F, PRMT, SHF
S8_MAC_PER_CLK = 4092.0
F16_MAC_PER_CLK = 2046.0
FREE_SHARE = 0.42  # of the MMA's own time: so much CUDA-core work costs no cycles


def sample_device(**changes: Any) -> Device:
    fields: dict[str, Any] = {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "architecture": "Hopper",
        "sm_count": SM_COUNT,
        "memory_mib": 81559,
        "l2_mib": 50.0,
        "mig": None,
        "ecc": True,
        "power_limit_w": 700.0,
        "max_sm_clock_mhz": 1980.0,
        "max_memory_clock_mhz": 2619.0,
    }
    return Device(**{**fields, **changes})


def sample_environment(**changes: Any) -> Environment:
    fields: dict[str, Any] = {
        "driver": "580.95.05",
        "cuda_driver": "13.0",
        "nvrtc": "13.0",
        "cupy": "13.6.0",
        "torch": "2.13.0",
        "python": "3.11.2",
        "platform": "Linux-6.1.0-x86_64",
        "disassembler": "nvdisasm 13.0",
    }
    return Environment(**{**fields, **changes})


def _tensor(
    name: str,
    instruction: str,
    mac_per_clk: float,
    peak: float,
    clock_mhz: float,
    *,
    operands: str = "random",
    regime: str = "burst",
) -> Measurement:
    return Measurement.model_validate(
        {
            "name": name,
            "instruction": instruction,
            "emulated": False,
            "sass_verified": True,
            "operands": operands,
            "regime": regime,
            "value": 2 * mac_per_clk * SM_COUNT * clock_mhz * 1e-6,
            "unit": "TOPS" if ".s8." in name else "TFLOPS",
            "per_clk_per_sm": mac_per_clk,
            "per_clk_unit": "MAC",
            "peak_fraction": mac_per_clk / peak,
            "samples": 24,
            "spread": 0.004,
            "sm_clock_mhz": clock_mhz,
            "temperature_c": 48.0,
            "power_w": 640.0 if regime == "burst" else 698.0,
            "throttle": ["power_cap"] if regime == "sustained" else [],
            "configuration": {"warps": 8, "ilp": 2, "ctas_per_sm": 1},
            "origin": "measured",
        }
    )


def _cuda_core(name: str, instruction: str, per_clk: float, clock_mhz: float = 1980.0) -> Measurement:
    flops = name.startswith("ffma")
    return Measurement(
        name=name,
        instruction=instruction,
        emulated=False,
        sass_verified=True,
        regime="burst",
        value=(2 if flops else 1) * per_clk * SM_COUNT * clock_mhz * 1e-6,
        unit="TFLOPS" if flops else "Tinstr/s",
        per_clk_per_sm=per_clk,
        per_clk_unit="instr",
        samples=24,
        spread=0.002,
        sm_clock_mhz=clock_mhz,
        temperature_c=45.0,
        power_w=390.0,
        configuration={"warps": 16, "ilp": 8},
        origin="measured",
    )


def _other(name: str, instruction: str, value: float, unit: str, per_clk: float | None = None) -> Measurement:
    return Measurement(
        name=name,
        instruction=instruction,
        sass_verified=True if instruction else None,
        regime="burst",
        value=value,
        unit=unit,
        per_clk_per_sm=per_clk,
        per_clk_unit="B" if per_clk is not None else None,
        samples=24,
        spread=0.006,
        sm_clock_mhz=1980.0,
        temperature_c=45.0,
        power_w=310.0,
        origin="measured",
    )


def sample_measurements() -> list[Measurement]:
    emulated = Measurement(
        name="mma.s4.m16n8k64",
        instruction="IMMA.16832.S8.S8",
        emulated=True,
        sass_verified=False,
        operands="random",
        regime="burst",
        value=47.8,
        unit="TOPS",
        per_clk_per_sm=91.4,
        per_clk_unit="MAC",
        samples=24,
        spread=0.003,
        sm_clock_mhz=1980.0,
        temperature_c=46.0,
        power_w=420.0,
        origin="measured",
    )
    absent = Measurement(
        name="mma.mxf4nvf4.m16n8k64",
        instruction="",
        unit="TFLOPS",
        origin="measured",
        unsupported="block-scaled FP4 needs compute capability 12.x; this GPU has 9.0",
    )
    return [
        _tensor("wgmma.s8.m64n256k32.rs", "IGMMA.64x256x32.S8.S8", S8_MAC_PER_CLK, 4096, 1790.0),
        _tensor("wgmma.s8.m64n256k32.ss", "IGMMA.64x256x32.S8.S8", 4095.0, 4096, 1790.0),
        _tensor("wgmma.s8.m64n256k32.ss", "IGMMA.64x256x32.S8.S8", 4095.0, 4096, 1980.0, operands="zeros"),
        _tensor("wgmma.s8.m64n256k32.ss", "IGMMA.64x256x32.S8.S8", 4095.0, 4096, 1560.0, regime="sustained"),
        _tensor("wgmma.f16.m64n256k16.ss", "HGMMA.64x256x16.F32", F16_MAC_PER_CLK, 2048, 1650.0),
        _tensor("wgmma.f16.m64n256k16.ss", "HGMMA.64x256x16.F32", F16_MAC_PER_CLK, 2048, 1410.0, regime="sustained"),
        _tensor("wgmma.e4m3.m64n256k32.ss", "QGMMA.64x256x32.F32.E4M3.E4M3", 4092.0, 4096, 1630.0),
        _tensor("mma.s8.m16n8k32", "IMMA.16832.S8.S8", 2706.0, 4096, 1820.0),
        _tensor("mma.f16.m16n8k16", "HMMA.16816.F32", 1353.0, 2048, 1820.0),
        _tensor("mma.bf16.m16n8k16", "HMMA.16816.F32.BF16", 1353.0, 2048, 1820.0),
        emulated,
        absent,
        _cuda_core("ffma", "FFMA", FFMA_PER_CLK),
        _cuda_core("ffma.two_fresh", "FFMA", 99.0),
        _cuda_core("ffma.three_fresh", "FFMA", 84.0),
        _cuda_core("fadd", "FADD", 123.0),
        _cuda_core("fmul", "FMUL", 123.0),
        _cuda_core("hfma2", "HFMA2", 104.0),
        _cuda_core("imad", "IMAD", IMAD_PER_CLK),
        _cuda_core("lop3", "LOP3.LUT", IMAD_PER_CLK),
        _cuda_core("shf", "SHF.R.U32", IMAD_PER_CLK),
        _cuda_core("prmt", "PRMT", IMAD_PER_CLK),
        _cuda_core("i2f", "I2FP.F32.S32", IMAD_PER_CLK),
        _other("memory.copy", "LDG.E.128", 2945.0, "GB/s"),
        _other("memory.read", "LDG.E.128", 3060.0, "GB/s"),
        _other("l2.read", "LDG.E.128", 5620.0, "GB/s", 21.5),
        _other("shared.read", "LDS.128", 33200.0, "GB/s", 127.0),
        _other("launch.graph", "", 1.02, "us"),
        _other("launch.stream", "", 2.3, "us"),
    ]


def _co_issue_point(mma: str, shape: str, placement: str, instruction: str, *, k: int, lanes: float) -> CoIssue:
    """``lanes``: thread-instructions per clock and SM. Per accumulator and 128 of K the s8 MMA takes 1/32 clock."""
    cuda = k * 32 / lanes
    hidden = {"mma.s8": 0.1 * cuda}.get(mma, min(cuda, FREE_SHARE))
    start = {"after_complete": 1.38, "no_handover": 1.0}.get(placement, 1.0)
    both = start + cuda - hidden
    return CoIssue.model_validate(
        {
            "mma": mma,
            "shape": shape,
            "placement": placement,
            "instruction": instruction,
            "k": k,
            "cycles_over_mma_alone": both,
            "cuda_over_mma_alone": cuda if k else None,
            "wall_over_mma_alone": both * 1.01 if k else 1.0,
            "overlap": (1 + cuda - both) / min(1.0, cuda) if k else None,
            "spread": 0.001,
            "sm_clock_mhz": 1790.0,
            "throttle": [],
            "samples": 12,
            "sass_verified": True,
            "origin": "measured",
        }
    )


def sample_co_issue() -> list[CoIssue]:
    curves = [
        ("wgmma.s8", "m64n256k32.rs", "at_issue", "ffma", FFMA_PER_CLK),
        ("wgmma.s8", "m64n256k32.rs", "at_issue", "i2f_ffma", 42.0),
        ("wgmma.s8", "m64n256k32.rs", "at_issue", "imad", IMAD_PER_CLK),
        ("wgmma.s8", "m64n256k32.rs", "after_complete", "ffma", FFMA_PER_CLK),
        ("wgmma.s8", "m64n256k32.rs", "other_warps", "ffma", FFMA_PER_CLK),
        ("wgmma.s8", "m64n256k32.rs", "other_warps", "nop", 500.0),
        ("mma.s8", "m16n8k32", "same_warps", "ffma", FFMA_PER_CLK),
    ]
    return [
        _co_issue_point(mma, shape, placement, instruction, k=k, lanes=lanes)
        for mma, shape, placement, instruction, lanes in curves
        for k in range(9)
    ]


def _strategy(
    fmt: str, granularity: str, strategy: str, mma: str, *, mac: float, fma: int, conversion: int
) -> StrategyBalance:
    """Pipes in SM cycles per accumulator and 128 of K; the coarse kernel takes the Tensor Core's time."""
    pipes = {
        "tensor": 128 / mac,
        "fma": fma / FFMA_PER_CLK,
        "conversion": conversion / IMAD_PER_CLK,
        "issue": (fma + conversion) / 128,
        "shared": 0.0104,
    }
    cuda = pipes["fma"] + pipes["conversion"]
    full, none = max(pipes.values()), pipes["tensor"] + cuda
    overlap = min(1.0, FREE_SHARE * pipes["tensor"] / cuda) if cuda else 1.0
    expected = max(full, none - overlap * min(pipes["tensor"], cuda))
    return StrategyBalance.model_validate(
        {
            "format": fmt,
            "granularity": granularity,
            "strategy": strategy,
            "mma": mma,
            "pipes": pipes,
            "overlap": overlap,
            "overlap_origin": "measured",
            "cycles_full_overlap": full,
            "cycles_no_overlap": none,
            "cycles_expected": expected,
            "over_channel": expected / pipes["tensor"],
            "bound_by": max(pipes, key=lambda pipe: pipes[pipe]),
            "origin": "measured",
            "source": "instruction counts x measured rates; overlap from co-issue wgmma.s8 at_issue",
        }
    )


def sample_balance() -> list[StrategyBalance]:
    s8, f16 = "wgmma.s8.m64n256k32.rs", "wgmma.f16.m64n256k16.ss"
    return [
        _strategy("w4a8", "channel", "none", s8, mac=S8_MAC_PER_CLK, fma=0, conversion=0),
        _strategy("w4a8", "g128i", "widen", s8, mac=S8_MAC_PER_CLK, fma=0, conversion=0),
        _strategy("w4a8", "g128", "magic_fadd_ffma", s8, mac=S8_MAC_PER_CLK, fma=2, conversion=0),
        _strategy("w4a8", "g128", "i2f_ffma", s8, mac=S8_MAC_PER_CLK, fma=1, conversion=1),
        _strategy("w4a8", "g128", "i2f_fmul_ffma", s8, mac=S8_MAC_PER_CLK, fma=2, conversion=1),
        _strategy("w4a16", "g128", "before_mma", f16, mac=F16_MAC_PER_CLK, fma=0, conversion=0),
    ]


# Llama-3-8B: role, N, K; 32 layers of each
LLAMA_3_8B = [
    ("q", 4096, 4096),
    ("k", 1024, 4096),
    ("v", 1024, 4096),
    ("o", 4096, 4096),
    ("gate", 14336, 4096),
    ("up", 14336, 4096),
    ("down", 4096, 14336),
]


def _layer(role: str, n: int, k: int) -> LayerPlan:
    times = []
    for m in (16, 2048):
        us_fp16 = max(2 * m * n * k / 700e6, 2 * n * k / 3.06e6) + 2.0
        us = max(2 * m * n * k / 1350e6, n * k / 2 / 3.06e6) + 2.6
        times.append(
            LayerTime(
                m=m,
                us=us,
                us_low=0.94 * us,
                us_high=1.35 * us,
                us_fp16=us_fp16,
                us_quantise=0.6,
                bound_by="memory" if m == 16 else "tensor",
                origin="predicted",
            )
        )
    return LayerPlan.model_validate(
        {
            "role": role,
            "n": n,
            "k": k,
            "count": 32,
            "format": "w4a8",
            "granularity": "g128i",
            "reason": "the group scale is applied while widening, before the MMA: fine at the coarse kernel's speed",
            "margin": 0.04,
            "times": times,
        }
    )


# N x K of the GEMMs that a block of Llama-3-8B runs: qkv, o, gate_up, down
GEMMS = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
# variant, format, granularity, strategy, tile, share of FP16's time at M = 16 and at M = 2048, quantises
CANDIDATES = [
    ("fp16", "fp16", "none", "", "", (1.0, 1.0), False),
    ("fp8", "fp8", "channel", "quantised by torch.compile", "", (0.61, 0.54), True),
    ("w4a8.small.g128i", "w4a8", "g128i", "widen", "rows=32,warps=16,stages=2", (0.36, 3.1), True),
    ("w4a8.mma.g128i", "w4a8", "g128i", "widen", "rows=128,tokens=256,stages=3,split_k=1", (0.55, 0.52), True),
    ("w4a8.mma.channel", "w4a8", "channel", "none", "rows=128,tokens=256,stages=4,split_k=1", (0.54, 0.51), True),
    ("w4a16.small.g128", "w4a16", "g128", "before_mma", "rows=32,warps=8,stages=3", (0.41, 4.0), False),
]


def sample_gemm_timings() -> list[GemmTiming]:
    found = []
    for m in (16, 2048):
        for n, k in GEMMS:
            us_fp16 = max(2 * m * n * k / 700e6, 2 * n * k / 3.06e6) + 5.0
            quantise = 2.2 + 3.0 * m * k / 3.06e6
            for variant, fmt, granularity, strategy, tile, shares, quantises in CANDIDATES:
                us = us_fp16 * shares[m > 16]
                found.append(
                    GemmTiming.model_validate(
                        {
                            "n": n,
                            "k": k,
                            "m": m,
                            "variant": variant,
                            "format": fmt,
                            "granularity": granularity,
                            "strategy": strategy,
                            "tile": tile,
                            "us": us,
                            "us_quantise": quantise if quantises else 0.0,
                            "spread": 0.004,
                            "samples": 15,
                            "tops": 2 * m * n * k / us * 1e-6,
                            "speedup_fp16": us_fp16 / us,
                        }
                    )
                )
    return found


def sample_profile(**changes: Any) -> Profile:
    """A measured H100 profile with an empty checksum; ``changes`` replace top-level fields. Validated."""
    fields: dict[str, Any] = {
        "tool_version": "0.1.0",
        "created": "2026-02-03T10:15:00Z",
        "origin": "measured",
        "device": sample_device(),
        "environment": sample_environment(),
        "provenance": Provenance(command="apex4-probe run", commit="0123abc", duration_s=71.4),
        "measurements": sample_measurements(),
        "co_issue": sample_co_issue(),
        "rho": {
            "int4": RhoFigure(usable=False, reason="emulated: mma s4 becomes INT8 and logic instructions on this GPU"),
            "int8": RhoFigure(datasheet=1979 / 67, measured=1934.0 / 64.3, per_clock=4095 / FFMA_PER_CLK, usable=True),
        },
        "balance": sample_balance(),
        "decision": Decision(
            format="w4a8",
            granularity="g128i",
            reason="W4A8 with two-level group scales is the fastest plan within the quality limit",
            margin=0.04,
            runner_up="fp8",
            speedup_fp16=1.92,
            speedup_fp16_interval=(1.42, 2.04),
            confidence="medium",
            rule="the fastest plan whose expected quality loss stays within 0.15 nats",
            expected_loss=0.09,
            fits_memory=True,
        ),
        "w4a4": Decision(
            format="fp16",
            granularity="none",
            reason="INT4 Tensor Core instructions are emulated on this GPU",
            confidence="high",
            rule="the best expected quality among the W4A4 plans that reach 1.2 times FP16",
            expected_loss=0.0,
        ),
        "workload": WorkloadRecord(
            model="llama-3-8b",
            points=[
                WorkloadPoint(phase="decode", m=16, weight=1.0),
                WorkloadPoint(phase="prefill", m=2048, weight=1.0),
            ],
        ),
        "layers": [_layer(*shape) for shape in LLAMA_3_8B],
        "kernels": kernel_tables(sample_gemm_timings()),
        "gemm_timings": sample_gemm_timings(),
        "rejected": [
            Rejected(variant="w4a8 g128 (I2F + FMUL + FFMA)", why="dequantisation alone takes as long as the MMA"),
            Rejected(variant="w4a4 g128", why="INT4 is emulated: 47.8 TOPS"),
        ],
        "notes": ["mma.sync reaches 66 % of the INT8 peak on this architecture; only wgmma reaches it."],
    }
    return Profile.model_validate({**fields, **changes})


def predicted_profile(**changes: Any) -> Profile:
    """The same device as if predicted from its datasheet: no figure in it is marked measured."""
    measured = sample_profile()
    source = "arithmetic on the datasheet"
    predicted: dict[str, Any] = {"origin": "predicted", "source": source}
    fields: dict[str, Any] = {
        "origin": "predicted",
        "provenance": Provenance(command='apex4-probe run --like "H100 SXM"', mode="predicted"),
        "environment": sample_environment(driver=None, cuda_driver=None),
        "measurements": [
            record.model_copy(update={**predicted, "samples": 0, "spread": None, "sass_verified": None})
            for record in measured.measurements
        ],
        "co_issue": [
            record.model_copy(update={**predicted, "samples": 0, "spread": None, "sass_verified": None})
            for record in measured.co_issue
        ],
        "rho": {
            kind: figure.model_copy(update={"measured": None, "per_clock": None})
            for kind, figure in measured.rho.items()
        },
        "balance": [
            record.model_copy(update={**predicted, "overlap_origin": "predicted"}) for record in measured.balance
        ],
        "kernels": [],
        "gemm_timings": [],
    }
    return sample_profile(**{**fields, **changes})
