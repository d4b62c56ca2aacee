"""What a GEMM executes, counted in the machine code of its hot loop: per accumulator and 128 of K, by what it is for.

Pure functions over listings; nothing is run. An instruction that is executed by a warp counts once a thread, so "1.0"
is one instruction for every accumulator of the tile and every 128 of K. The unit follows from the loop itself: its
MMAs' multiply-accumulates over 128.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from apex4_probe.errors import ApexError
from apex4_probe.kernels.formats import Format
from apex4_probe.kernels.sass import Instruction, Listing

DEPTH = 128  # of K, and the lanes' share of a multiply-accumulate
LANES = 32

_MMA = re.compile(r"(?P<kind>[IHQ])MMA\.(?P<shape>\d+)(?:\.SP)?\.(?P<types>.*)")
# Rows, columns and K of what SASS calls 16864: the digits do not say where one number ends (PTX ISA, mma shapes).
_SHAPES = {
    "8816": (8, 8, 16), "8832": (8, 8, 32), "16816": (16, 8, 16), "16832": (16, 8, 32), "16864": (16, 8, 64),
    "1688": (16, 8, 8),
}  # fmt: skip

# What each strategy executes on a group's sums, by the opcodes that nothing else in the loop uses.
DEQUANTISATION: dict[str, str] = {
    "none": r"(?!)",
    "imad": r"IMAD$",
    "magic_ffma2": r"FFMA$",
    "i2f_fmul_ffma": r"(I2F(P\.F32\.S32)?|FMUL|FFMA)$",
    "i2f_ffma": r"(I2F(P\.F32\.S32)?|FFMA)$",
    "magic_fadd_ffma": r"(FADD|FFMA)$",
    "widen": r"(?!)",
    "widen_rounded": r"(?!)",
    "ffma": r"FFMA$",
    "before_mma": r"(?!)",
}
# INT4 to the type that is multiplied, group scales of "widen…" and "before_mma" included; bookkeeping that happens to
# use the same opcodes is counted here.
WIDENING: dict[Format, str] = {
    "w4a4": r"(?!)",
    "w4a8": r"(LOP3|SHF|PRMT|IMAD$|IMAD\.SHL|HFMA2|HADD2|I2F)",
    "w4a16": r"(LOP3|SHF|PRMT|HFMA2|HADD2|HMUL2|I2F|FMUL)",
}

# By whose rate (a name of profiles/architectures.yaml) an opcode is executed. Everything else that reads and writes
# vector registers is taken to run on the ALU, like LOP3.
_RATES: tuple[tuple[str, str], ...] = (
    (r"FFMA", "ffma"), (r"FADD", "fadd"), (r"FMUL", "fmul"), (r"H(FMA2|ADD2|MUL2)", "hfma2"),
    (r"(IMAD|IDP)", "imad"), (r"SHF", "shf"), (r"PRMT", "prmt"), (r"(I2F|F2I|F2F|MUFU)", "i2f"),
)  # fmt: skip
_MEMORY = re.compile(r"(LD|ST|ATOM|RED|CCTL|MEMBAR|UBLK|UTMA|SYNCS)")  # load/store unit: issue slots and shared memory
# Uniform datapath, branches, barriers and waits: they take an issue slot and no pipe that is counted here.
_ISSUE_ONLY = re.compile(r"(U(?!BLK|TMA)|R2UR|BR[AX]|CALL|RET|EXIT|BSSY|BSYNC|BAR|DEPBAR|LDGDEPBAR|WARPSYNC|NOP|YIELD)")


@dataclass(frozen=True)
class Counts:
    """One pass of a hot loop, per accumulator and 128 of K.

    ``mma``: MMAs, of ``mma_rate``, a rate of architectures.yaml. ``dequantisation``, ``widening``, ``other``:
    thread-instructions by the rate that bounds them. ``loads``: of the load/store unit, copies to shared memory
    included; ``issue_only``: what takes an issue slot and no pipe. ``shared_traffic``: bytes through shared memory,
    every lane's own, so a read that lanes share is counted in full.
    """

    mma: float
    mma_rate: str
    dequantisation: Mapping[str, float]
    widening: Mapping[str, float]
    other: Mapping[str, float]
    loads: float
    issue_only: float
    shared_traffic: float

    @property
    def rest(self) -> float:
        """Everything that is neither an MMA nor dequantisation or widening."""
        return self.loads + self.issue_only + sum(self.other.values())

    @property
    def scaling(self) -> float:
        """Dequantisation and widening together."""
        return sum(self.dequantisation.values()) + sum(self.widening.values())


def count(listing: Listing, format: Format, strategy: str) -> Counts:
    """Count the innermost loop that multiplies. ApexError: the kernel has no such loop. KeyError: no such strategy."""
    body = listing.hot_loop(r"[IHQ]MMA")
    executed = listing.count(body)
    mmas = {opcode: n for opcode, n in executed.items() if _MMA.match(opcode)}
    if not mmas:
        raise ApexError(f"{listing.kernel}: its machine code has no loop with an MMA to count")
    unit = sum(macs(opcode) * n for opcode, n in mmas.items()) / LANES / DEPTH
    rates = {mma_rate(opcode) for opcode in mmas}
    by_purpose: dict[str, Counter[str]] = {"dequantisation": Counter(), "widening": Counter(), "other": Counter()}
    loads = issue_only = 0
    for opcode, n in executed.items():
        if opcode in mmas:
            continue
        if re.match(DEQUANTISATION[strategy], opcode):
            by_purpose["dequantisation"][rate_of(opcode)] += n
        elif re.match(WIDENING[format], opcode):
            by_purpose["widening"][rate_of(opcode)] += n
        elif _ISSUE_ONLY.match(opcode):
            issue_only += n
        elif _MEMORY.match(opcode):
            loads += n
        else:
            by_purpose["other"][rate_of(opcode)] += n
    return Counts(
        mma=sum(mmas.values()) / unit,
        mma_rate=min(rates),
        dequantisation=_per(by_purpose["dequantisation"], unit),
        widening=_per(by_purpose["widening"], unit),
        other=_per(by_purpose["other"], unit),
        loads=loads / unit,
        issue_only=issue_only / unit,
        shared_traffic=shared_traffic(body) / LANES / unit,
    )


def macs(opcode: str) -> int:
    """Multiply-accumulates of one MMA (a warp). ApexError: a shape that is not known."""
    match = _MMA.match(opcode)
    if match is None or match["shape"] not in _SHAPES:
        raise ApexError(f"{opcode} is no MMA whose shape is known")
    rows, columns, k = _SHAPES[match["shape"]]
    return rows * columns * k


def mma_rate(opcode: str) -> str:
    """The rate class of an MMA's opcode, as architectures.yaml names it."""
    if opcode.startswith("I"):
        return "mma.s4" if "4.S4" in opcode or "4.U4" in opcode else "mma.s8"
    if opcode.startswith("Q"):
        return "mma.e4m3"
    return "mma.bf16" if "BF16" in opcode else "mma.f16"


def rate_of(opcode: str) -> str:
    """The CUDA-core rate class of an opcode, as architectures.yaml names it."""
    return next((rate for pattern, rate in _RATES if re.match(pattern, opcode)), "lop3")


def shared_traffic(body: Iterable[Instruction]) -> int:
    """Bytes that a warp moves through shared memory in one pass. What never happens (``@!PT``) moves none; asynchronous
    copies write what they bring."""
    return sum(_shared_traffic(i.opcode) for i in body if i.predicate not in ("@!PT", "@!UPT"))


def _shared_traffic(opcode: str) -> int:
    if opcode.startswith("LDSM"):  # 8 rows of 16 bytes a matrix
        return 128 * int((re.search(r"\.([124])$", opcode) or ["", "1"])[1])
    if re.match(r"(LDS|STS|ATOMS|LDGSTS)\b", opcode):
        return LANES * int((re.search(r"\.(64|128)\b", opcode) or ["", "32"])[1]) // 8
    return 0


def _per(counts: Counter[str], unit: float) -> dict[str, float]:
    return {rate: n / unit for rate, n in sorted(counts.items())}
