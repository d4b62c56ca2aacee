"""Static facts: the support table cell by cell, every rate with a source, and the bounds that readings are held to."""

from __future__ import annotations

import pytest

from apex4_probe.architecture import Architecture, architecture, known
from apex4_probe.errors import ApexError

KNOWN = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
RATES = {
    **dict.fromkeys(("mma.s4", "mma.s8", "mma.f16", "mma.bf16", "mma.e4m3", "mma.fp4"), "MAC"),
    **dict.fromkeys(("ffma", "fadd", "fmul", "hfma2", "imad", "lop3", "shf", "prmt", "i2f", "issue"), "instr"),
    "shared_bytes": "B",
}

# Compiled and disassembled once for every target (ptxas 13.0 and 13.5): N native, a number: emulated by about so many
# instructions, - refused.
SUPPORT = """
                          7.5  8.0  8.6  8.7  8.9  9.0  10.0 10.3 11.0 12.0 12.1
mma.s4.m16n8k64           -    N    N    N    N    192  192  192  192  192  192
mma.s4.m16n8k32           -    N    N    N    N    101  101  101  101  101  101
mma.s4.m8n8k32            N    N    N    N    N    68   71   71   71   71   71
mma.s8.m16n8k32           -    N    N    N    N    N    N    N    N    N    N
mma.f16.m16n8k16          -    N    N    N    N    N    N    N    N    N    N
mma.bf16.m16n8k16         -    N    N    N    N    N    N    N    N    N    N
mma.e4m3.m16n8k32         -    -    -    -    N    18   18   18   18   N    N
mma.mxf4nvf4.m16n8k64     -    -    -    -    -    -    -    -    -    N    N
mma.mxf4.m16n8k64         -    -    -    -    -    -    -    -    -    N    N
wgmma.s8.m64n256k32.ss    -    -    -    -    -    N    -    -    -    -    -
wgmma.s8.m64n256k32.rs    -    -    -    -    -    N    -    -    -    -    -
wgmma.f16.m64n256k16.ss   -    -    -    -    -    N    -    -    -    -    -
wgmma.e4m3.m64n256k32.ss  -    -    -    -    -    N    -    -    -    -    -
mma.s8.m8n8k16            N    N    N    N    N    N    1    1    1    1    1
mma.f16.m16n8k8           N    N    N    N    N    N    N    N    N    N    N
"""


def support_cells() -> list[tuple[str, str, str]]:
    header, *rows = SUPPORT.strip().splitlines()
    columns = header.split()
    return [
        (name, cc, cell)
        for name, *cells in (row.split() for row in rows)
        for cc, cell in zip(columns, cells, strict=True)
    ]


def test_known_architectures() -> None:
    assert tuple(a.compute_capability for a in known()) == KNOWN


@pytest.mark.parametrize(("name", "cc", "cell"), support_cells())
def test_support_table(name: str, cc: str, cell: str) -> None:
    support = architecture(cc).support(name)
    expected = {"N": "native", "-": "refused"}.get(cell, "emulated")
    assert support.level == expected
    assert support.emulated_by == (int(cell) if expected == "emulated" else None)
    assert bool(support.reason) == (expected != "native")


@pytest.mark.parametrize("arch", known(), ids=lambda a: a.compute_capability)
def test_entry_is_complete(arch: Architecture) -> None:
    assert {key: rate.unit for key, rate in arch.rates.items()} == RATES
    for key, rate in arch.rates.items():
        assert rate.source, key
        known_value = rate.source != "unsourced" and not rate.absent
        assert (rate.value is not None) == known_value, key
        assert rate.assumed is None or rate.source == "unsourced", key
    assert arch.target.removesuffix("a") == "sm_" + arch.compute_capability.replace(".", "")
    assert arch.kernels != bool(arch.kernels_reason)


@pytest.mark.parametrize("arch", known(), ids=lambda a: a.compute_capability)
def test_absent_rates_are_those_of_missing_instructions(arch: Architecture) -> None:
    """A rate may be absent only where no MMA of its class is native, apart from tcgen05's own FP8 and FP4."""
    for key, rate in arch.rates.items():
        native = [s.name for s in arch.instructions.values() if s.rate == key and s.level == "native"]
        if key.startswith("mma."):
            assert not (rate.absent and native), key
        if key == "mma.s4":
            assert rate.absent == (not native)


@pytest.mark.parametrize(
    ("name", "cc", "sass"),
    [
        ("mma.s4.m16n8k64", "8.6", "IMMA.16864.S4.S4"),
        ("mma.s4.m8n8k32", "7.5", "IMMA.8832.S4.S4"),
        ("mma.s8.m16n8k32", "9.0", "IMMA.16832.S8.S8"),
        ("mma.f16.m16n8k16", "8.0", "HMMA.16816.F32"),
        ("mma.e4m3.m16n8k32", "8.9", "QMMA.16832.F32.E4M3.E4M3"),
        ("mma.mxf4nvf4.m16n8k64", "12.0", "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"),
        ("mma.mxf4.m16n8k64", "12.1", "OMMA.SF.16864.F32.E2M1.E2M1.E8"),
        ("wgmma.s8.m64n256k32.rs", "9.0", "IGMMA.64x256x32.S8.S8"),
        ("i2f", "8.0", "I2F"),
        ("i2f", "8.6", "I2FP.F32.S32"),
        ("ffma.three_fresh", "8.0", "FFMA"),
    ],
)
def test_native_mnemonic(name: str, cc: str, sass: str) -> None:
    assert architecture(cc).support(name).sass == sass


@pytest.mark.parametrize(
    ("cc", "name", "peak"),
    [
        ("8.0", "mma.s4.m16n8k64", 4096),
        ("8.6", "mma.s4.m16n8k64", 2048),
        ("8.9", "mma.s4.m8n8k32", 2048),
        ("8.0", "mma.s8.m16n8k32", 2048),
        ("8.9", "mma.e4m3.m16n8k32", 1024),
        ("8.6", "mma.f16.m16n8k16", 512),
        ("7.5", "mma.s4.m8n8k32", 2048),
        ("9.0", "wgmma.s8.m64n256k32.rs", 4096),
        ("9.0", "mma.s8.m16n8k32", 4096),
        ("9.0", "wgmma.f16.m64n256k16.ss", 2048),
        ("9.0", "wgmma.e4m3.m64n256k32.ss", 4096),
        ("9.0", "mma.s4.m16n8k64", 4096),  # emulated: two INT8 MMAs, so INT8's rate
        ("9.0", "mma.e4m3.m16n8k32", 2048),  # emulated: two FP16 MMAs, so FP16's rate
        ("12.0", "mma.mxf4nvf4.m16n8k64", 2048),
        ("8.0", "mma.e4m3.m16n8k32", None),
        ("10.3", "mma.s8.m16n8k32", None),
        ("8.0", "ffma", 64),
        ("8.6", "ffma.two_fresh", 128),
        ("9.0", "fadd", 128),
        ("9.0", "imad", 64),
        ("8.0", "i2f", 16),
        ("9.0", "i2f", 64),
        ("8.6", "i2f", None),  # open: I2FP is emitted, the throughput table's 16 is I2F's
        ("9.0", "shared.read", 128),
        ("9.0", "l2.read", None),
        ("9.0", "memory.copy", None),
        ("9.0", "launch.graph", None),
    ],
)
def test_peak(cc: str, name: str, peak: float | None) -> None:
    assert architecture(cc).peak(name) == peak


@pytest.mark.parametrize("name", ["mma.s4", "ffmaa", "wgmma.s8.m64n8k32.ss", ""])
def test_unknown_measurement_name_is_no_silent_pass(name: str) -> None:
    with pytest.raises(ValueError, match="no canonical instruction name"):
        architecture("9.0").peak(name)


def test_measured_rates_do_not_exceed_the_peaks() -> None:
    """Readings on an H100 (thread-instructions and MAC per clock and SM) stay within 2 % above the bounds."""
    hopper = architecture("9.0")
    readings: dict[str, float] = {
        "wgmma.s8.m64n256k32.ss": 4095,
        "wgmma.f16.m64n256k16.ss": 2046,
        "ffma": 123,
        "ffma.three_fresh": 84,
    }
    readings |= {"imad": 63.5, "lop3": 63.5, "prmt": 63.5, "i2f": 63.5, "hfma2": 104, "mma.s8.m16n8k32": 2706}
    for name, reading in readings.items():
        peak = hopper.peak(name)
        assert peak is not None and 0.5 * peak < reading <= 1.02 * peak, name
    assert hopper.mma_sync_fraction is not None
    assert hopper.mma_sync_fraction.value == pytest.approx(2706 / 4096, abs=0.005)


def test_flags() -> None:
    def where(flag: str) -> set[str]:
        return {a.compute_capability for a in known() if getattr(a, flag)}

    assert where("block_scales_in_hardware") == {"10.0", "10.3", "11.0", "12.0", "12.1"}
    assert where("tcgen05") == {"10.0", "10.3", "11.0"}
    assert where("no_int8_plan") == {"10.3"}
    assert where("kernels") == {"8.0", "8.6", "8.7", "8.9", "9.0"}


def test_probes_leave_out_refused_and_inferior_shapes() -> None:
    assert architecture("7.5").mma_probes == ("mma.s4.m8n8k32", "mma.s8.m8n8k16", "mma.f16.m16n8k8")
    assert "mma.s8.m8n8k16" not in architecture("8.0").mma_probes
    assert {n for n in architecture("9.0").mma_probes if n.startswith("wgmma")} == {
        "wgmma.s8.m64n256k32.ss",
        "wgmma.s8.m64n256k32.rs",
        "wgmma.f16.m64n256k16.ss",
        "wgmma.e4m3.m64n256k32.ss",
    }


def test_assumption_serves_predictions_only() -> None:
    i2f = architecture("8.6").rates["i2f"]
    assert (i2f.value, i2f.for_prediction) == (None, 64)
    assert architecture("8.0").rates["i2f"].for_prediction == 16


@pytest.mark.parametrize(
    ("cc", "message"),
    [
        ("13.0", "is not in profiles/architectures.yaml, which knows 7.5, .*12.1: add one entry"),
        ("7.0", "predates INT4 Tensor Cores.*needs 7.5"),
        ("hopper", "give major.minor"),
        ("9", "give major.minor"),
    ],
)
def test_unknown_architecture(cc: str, message: str) -> None:
    with pytest.raises(ApexError, match=message):
        architecture(cc)
