"""How figures and names are written, the same on the terminal, in the page and in the plots.

Everything that comes out of a profile passes ``clean`` before it is shown: a profile is a file that strangers send.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

from apex4_probe.deployment import Format, Granularity, Measurement, Origin, RhoFigure

ABSENT = "–"
NAME_LIMIT = 80  # characters of a name that a table or an axis can bear
KERNEL_LIMIT = 120  # of a variant with its tile
PROSE_LIMIT = 600  # characters of a sentence

FORMATS: dict[Format, str] = {"fp16": "FP16", "fp8": "FP8", "w4a16": "W4A16", "w4a8": "W4A8", "w4a4": "W4A4"}
GRANULARITIES: dict[Granularity, str] = {
    "none": "",
    "channel": "one scale per channel and token",
    "a128i": "integer activation scales per group of 128",
    "g128": "float scales per group of 128",
    "g64": "float scales per group of 64",
    "g32": "float scales per group of 32",
    "g128i": "integer weight scales per group of 128",
    "g128r": "weight scales in sixteenths per group of 128",
    "mixed": "a granularity for each layer",
}
STRATEGIES = {
    "none": "none in the loop",
    "i2f_fmul_ffma": "I2F + FMUL + FFMA",
    "i2f_ffma": "I2F + FFMA",
    "magic_ffma2": "magic number, 2 FFMA",
    "magic_fadd_ffma": "magic number, FADD + FFMA",
    "imad": "integer scale, IMAD",
    "widen": "while widening INT4 to INT8",
    "widen_rounded": "while widening INT4 to INT8, rounded",
    "before_mma": "before the MMA",
    "ffma": "FFMA on FP32 sums",
}
PLACEMENTS = {
    "other_warps": "in other warps",
    "at_issue": "hand-over at issue",
    "after_complete": "hand-over after completion",
    "no_handover": "no hand-over",
    "same_warps": "in the same warps",
}


def clean(text: str, limit: int = NAME_LIMIT) -> str:
    """One line of harmless text: controls, escapes, bidirectional overrides and lone surrogates become visible escapes.

    Anything longer than ``limit`` characters is cut, and the cut says how long it was.
    """
    total = len(text)
    head = text[:limit]
    shown = "".join(_visible(character) for character in head)
    return shown if total <= limit else f"{shown}… ({total} characters)"


def clip(text: str, limit: int) -> str:
    """As ``clean``, for places that bear only ``limit`` characters: a longer text ends in an ellipsis."""
    shown = clean(text[: limit + 1], limit + 1)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        point = ord(character)
        return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}"
    return character


def prose(text: str) -> str:
    return clean(text, PROSE_LIMIT)


def number(value: float | None, origin: Origin = "measured") -> str:
    """Three significant digits, whole numbers from 100 up; ``~`` marks what was predicted."""
    if value is None or not math.isfinite(value):
        return ABSENT
    mark = "~" if origin == "predicted" else ""
    magnitude = abs(value)
    if value == 0:
        return mark + "0"
    if magnitude >= 1e7 or magnitude < 1e-3:
        return f"{mark}{value:.3g}"
    decimals = max(0, 2 - math.floor(math.log10(magnitude)))
    return f"{mark}{value:.{decimals}f}"


def percent(fraction: float | None, decimals: int = 1) -> str:
    return ABSENT if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{decimals}f}%"


def times(ratio: float | None, origin: Origin = "measured") -> str:
    """A speed-up or slow-down: ``1.62×``."""
    if ratio is None or not math.isfinite(ratio):
        return ABSENT
    return f"{'~' if origin == 'predicted' else ''}{ratio:.2f}×"


def interval(low: float, high: float) -> str:
    return f"{low:.2f}–{high:.2f}×"


def format_name(value: Format) -> str:
    return FORMATS[value]


def choice(fmt: Format, granularity: Granularity) -> str:
    """Short name of a choice: ``W4A8 g128i``."""
    return FORMATS[fmt] if granularity == "none" else f"{FORMATS[fmt]} {granularity}"


def plan_name(label: str) -> str:
    """A plan's label, its format in capitals: ``W4A8 per channel``."""
    format, space, rest = clean(label).partition(" ")
    return f"{format.upper()}{space}{rest}"


def verdict_word(fmt: Format, granularity: Granularity) -> str:
    """What people call it: coarse, fine, mixed, W4A16, FP8 or stay in FP16."""
    if fmt == "fp16":
        return "stay in FP16"
    if fmt in ("fp8", "w4a16"):
        return FORMATS[fmt]
    return {"channel": "coarse", "mixed": "mixed", "none": "coarse"}.get(granularity, "fine")


def described(fmt: Format, granularity: Granularity) -> str:
    """``W4A8 g128i (integer weight scales per group of 128)``."""
    words = GRANULARITIES[granularity]
    return f"{choice(fmt, granularity)} ({words})" if words else choice(fmt, granularity)


def strategy_name(strategy: str) -> str:
    return STRATEGIES.get(strategy, clean(strategy))


def placement_name(placement: str) -> str:
    return PLACEMENTS.get(placement, clean(placement))


def throttle(reasons: Iterable[str]) -> str:
    return ", ".join(clean(reason).replace("_", " ") for reason in reasons) or "none"


def sass_check(measurement: Measurement) -> str:
    """What the disassembly of the hot loop said."""
    if measurement.emulated:
        return "emulated"
    if measurement.sass_verified:
        return "verified"
    if measurement.sass_verified is False:
        return "not verified"
    return "not checked" if measurement.origin == "measured" and measurement.instruction else ABSENT


def rho_reading(figure: RhoFigure) -> str:
    """``usable``, or in words why it is no number to decide on."""
    if figure.usable:
        return "usable"
    return "emulated, not usable" if figure.reason.lower().startswith("emulated") else "not usable"
