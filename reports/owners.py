"""A page for owners, in Markdown: what is predicted for each GPU and when it was, and the command that tests it there.

What was measured stands beside its prediction where a comparison holds both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from apex4_probe.compare_records import Answer, Comparison, Entry, Gain
from apex4_probe.deployment import Decision, Format, Granularity
from apex4_probe.reports import compare_words as words
from apex4_probe.reports import wording
from apex4_probe.reports.paste import escaped, markdown_table
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

PAGE = "owners.md"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .()+-]*")
STRAIGHTFORWARD = "i2f_fmul_ffma"
# format, granularity, and whether it is the straightforward kernel: a column each
COLUMNS: tuple[tuple[str, Format, Granularity, bool], ...] = (
    ("W4A4 g128, straightforward", "w4a4", "g128", True),
    ("W4A4 g128, ours", "w4a4", "g128", False),
    ("W4A4 a128i", "w4a4", "a128i", False),
    ("W4A4 per channel", "w4a4", "channel", False),
    ("W4A8 g128i", "w4a8", "g128i", False),
    ("FP8", "fp8", "none", False),
)
INTRODUCTION = (
    "Predictions, each with its date; what was measured stands behind its prediction. If you have one of these GPUs, "
    "one command measures it and sets both side by side. A prediction that turns out wrong is worth an issue."
)
HOW = (
    "Speed-up over FP16 of all linear layers, quantising the activations included; in brackets from no overlap of the "
    "pipes to full overlap. Straightforward: group scales by I2F + FMUL + FFMA per accumulator; ours: two FFMA on a "
    "magic-number accumulator. Instructions are counted in the machine code of the kernels (`apex4-probe bench "
    "--sass`), rates are the datasheet's and the architecture's."
)


def owners_page(comparison: Comparison) -> str | None:
    """The page; None where nothing in the comparison was predicted and planned."""
    predicted = [entry for entry in comparison.entries if not words.is_measured(entry) and entry.answer]
    if not predicted:
        return None
    asked = comparison.workload
    points = ", ".join(words.point_name(phase, m) for phase, m in words.points(comparison))
    lines = ["# If you have one of these GPUs", "", INTRODUCTION, ""]
    lines += [f"Model {escaped(wording.clean(asked.model))}; {escaped(points)}. {HOW}", ""]
    lines += [markdown_table(_overview(_beside(predicted, comparison.entries))), ""]
    for entry in predicted:
        lines += _section(entry)
    return "\n".join(lines).rstrip() + "\n"


def gain(answer: Answer, format: Format, granularity: Granularity, straightforward: bool) -> Gain | None:
    """The speed-up of a packing: of the straightforward strategy, or of the cheapest other one. None: it cannot run."""
    found = [g for g in answer.gains if (g.format, g.granularity) == (format, granularity)]
    return next((g for g in found if (g.strategy == STRAIGHTFORWARD) == straightforward), None)


def command(device: str) -> str:
    """Measures the GPU and sets the result beside what is predicted for ``device``. It is made to be pasted into a
    shell: a name from a stranger's file that a shell might read as more than text does not get there."""
    name = device.removeprefix("NVIDIA ")
    other = f'"{name}"' if _PLAIN.fullmatch(name) else "PREDICTED.yaml"
    return f"apex4-probe run --full --out my-gpu && apex4-probe compare my-gpu {other}"


def _beside(predicted: Sequence[Entry], entries: Sequence[Entry]) -> list[Entry]:
    """Each prediction, with what was measured on such a device behind it."""
    rows = []
    for entry in predicted:
        same = [e for e in entries if words.is_measured(e) and e.subject.device == entry.subject.device and e.answer]
        rows += [entry, *same]
    return rows


def _overview(entries: Sequence[Entry]) -> Table:
    rows = []
    for entry in entries:
        answer = entry.answer
        assert answer is not None  # the caller's choice
        cells = [words.beside_origin(entry), f"{words.origin(entry)} {_day(entry)}"]
        cells += [_cell(gain(answer, *column[1:])) for column in COLUMNS]
        cells += [_choice(decision) for decision in (answer.decision, answer.plain, answer.w4a4)]
        rows.append(Row(tuple(cells)))
    titles = ["GPU", "as of", *(f"#{title}" for title, *_ in COLUMNS)]
    titles += ["best within the quality limit", "within W4A4, straightforward", "within W4A4, ours"]
    return Table("", columns_of(*titles), tuple(rows))


def _section(entry: Entry) -> list[str]:
    answer, profile = entry.answer, entry.subject.profile
    assert answer is not None  # the caller's choice
    lines = [f"## {escaped(words.label(entry))}", ""]
    lines += [f"Predicted on {_day(entry)} by apex4-probe {escaped(wording.clean(profile.tool_version))}.", ""]
    lines += [f"- Any format: {escaped(wording.prose(answer.decision.reason))}"]
    lines += [f"- Within W4A4: {escaped(wording.prose(answer.w4a4.reason))}"]
    lines += [f"- Within W4A4 by the straightforward kernel: {escaped(wording.prose(answer.plain.reason))}"]
    lines += [f"- {escaped(wording.prose(flag.sentence))}" for flag in entry.flags]
    for time in answer.times:
        where = words.point_name(time.phase, time.m)
        spans = f"{wording.number(time.us_low)}–{wording.number(time.us_high)}"
        fp16 = f"FP16 ~{wording.number(time.us_fp16)} µs"
        lines.append(f"- {where}: ~{wording.number(time.us)} µs ({spans}) for all linear layers, {fp16}")
    return [*lines, "", "```", command(profile.device.name), "```", ""]


def _cell(found: Gain | None) -> str:
    return ABSENT if found is None else words.with_interval(found.speedup, (found.low, found.high), found.origin)


def _choice(decision: Decision) -> str:
    stays = decision.format == "fp16"
    return "stay in FP16" if stays else wording.choice(decision.format, decision.granularity)


def _day(entry: Entry) -> str:
    return wording.clean(entry.subject.profile.created)[:10]
