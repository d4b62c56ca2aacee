"""Figures measured on an H100 80GB HBM3, as records: what the decisions are tested from."""

from __future__ import annotations

from apex4_probe.deployment import CoIssue, Device, Measurement

H100 = Device(
    name="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    architecture="Hopper",
    sm_count=132,
    memory_mib=81559,
    max_sm_clock_mhz=1980,
)
TENSOR = {  # name: MAC per clock and SM, T op/s burst, SM clock
    "wgmma.s8.m64n256k32.rs": (4092, 1871, 1790),
    "wgmma.s8.m64n256k32.ss": (4095, 1906, 1790),
    "wgmma.f16.m64n256k16.ss": (2046, 866, 1650),
    "wgmma.e4m3.m64n256k32.ss": (4092, 1710, 1630),
    "mma.s8.m16n8k32": (2706, 1239, 1820),
    "mma.f16.m16n8k16": (1353, 614, 1820),
}
LANES = {"ffma": 123, "fadd": 123, "fmul": 123, "imad": 63.5, "lop3": 63.5, "i2f": 63.5, "prmt": 63.5, "hfma2": 104}


def measurements() -> list[Measurement]:
    tensor = [
        Measurement(
            name=name, instruction="", emulated=False, operands="random", regime="burst", value=tops, unit="TOPS",
            per_clk_per_sm=mac, per_clk_unit="MAC", sm_clock_mhz=clock, origin="measured",
        )
        for name, (mac, tops, clock) in TENSOR.items()
    ]  # fmt: skip
    emulated = [
        Measurement(
            name="mma.s4.m16n8k64", instruction="IMMA.16864.S4.S4", emulated=True, operands="random", regime="burst",
            value=47.8, unit="TOPS", sm_clock_mhz=1980, origin="measured",
        )
    ]  # fmt: skip
    lanes = [
        Measurement(
            name=name, instruction=name.upper(), emulated=False, regime="burst",
            value=rate * 132 * 1980e6 * (2 if name == "ffma" else 1) / 1e12,
            unit="TFLOPS" if name == "ffma" else "Tinstr/s",
            per_clk_per_sm=rate, per_clk_unit="instr", sm_clock_mhz=1980, origin="measured",
        )
        for name, rate in LANES.items()
    ]  # fmt: skip
    memory = [
        Measurement(name="memory.read", instruction="", value=3060, unit="GB/s", origin="measured"),
        Measurement(name="memory.copy", instruction="", value=2945, unit="GB/s", origin="measured"),
        Measurement(name="launch.graph", instruction="", value=1.0, unit="us", origin="measured"),
    ]
    return [*tensor, *emulated, *lanes, *memory]


def co_issue() -> list[CoIssue]:
    """In place, the hand-over right after issue; I2F + FFMA pairs reach 118 instructions per clock alone."""
    points = [
        ("m64n256k32.rs", "lop3", 1, 0.504, 1.13),
        ("m64n128k32.rs", "mix.imad", 1, 0.504, 1.13),
        ("m64n128k32.rs", "mix.magic_fadd_ffma", 1, 0.520, 1.14),
        ("m64n128k32.rs", "mix.i2f_ffma", 1, 0.542, 1.465),
    ]
    return [
        CoIssue(
            mma="wgmma.s8", shape=shape, placement="at_issue", instruction=instruction, k=k, cycles_over_mma_alone=both,
            cuda_over_mma_alone=alone, overlap=(1 + alone - both) / min(1, alone), origin="measured",
        )
        for shape, instruction, k, alone, both in points
    ]  # fmt: skip
