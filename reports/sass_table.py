"""What the kernels' hot loops execute and what that costs, as tables of text; a section an architecture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from apex4_probe.reports import wording
from apex4_probe.reports.tables import PIPES, Column, Row, Table
from apex4_probe.sass_records import Bound, Bounds, HotLoop, NotCounted, SassRecord

BOUNDS = {"overlap": "overlap", "mma_and_dequantisation": "MMA+deq.", "all_pipes": "sequence"}
EXECUTED = (
    "Instructions per accumulator and 128 of K, read from the machine code. Deq.: scaling a group's sums, or widening "
    "INT4 before the MMA; loads: of the load/store unit; rest: addresses, loop, barriers. Registers and bytes of local "
    "memory of a thread (0: no spills), bytes of shared memory of a CTA, warps that an SM holds."
)
PIPE_CYCLES = (
    "SM cycles of a CTA's tile and 128 of K that each pipe is busy, at the architecture's documented rates. Shared "
    "memory counts every lane's bytes; issue: the slots that all instructions pass."
)
BOUNDED = (
    "Over the best per-channel tile of the same format under the same bound, and the speed-up over FP16 at its Tensor "
    "Core peak (GeForce cards run FP16 with fp32 sums at half of it: twice the speed-up). Overlap: the longest "
    "pipe; MMA+deq.: these two in sequence; sequence: every pipe after the other."
)


def executed_table(records: Sequence[SassRecord], loops: Sequence[HotLoop]) -> Table:
    """Instructions and resources, a loop a row; ``loops`` in the records' order."""
    titles = ("MMA", "deq.", "loads", "rest", "regs", "shared", "local", "warps")
    rows = []
    for arch, pairs in _by_architecture(records, loops):
        rows.append(Row((arch,), section=True))
        rows += [
            Row(
                (
                    *_names(record),
                    f"{record.mma:.2f}",
                    f"{record.dequantisation:.2f}",
                    f"{loop.loads:.3f}",
                    f"{record.other - loop.loads:.3f}",
                    str(record.registers),
                    str(record.shared_bytes),
                    str(record.local_bytes),
                    str(loop.warps_per_sm),
                )
            )
            for record, loop in pairs
        ]
    return Table("What the hot loops execute", (*_NAMES, *_figures(titles)), tuple(rows), EXECUTED)


def pipes_table(records: Sequence[SassRecord], loops: Sequence[HotLoop]) -> Table:
    """Cycles of every pipe; arguments as ``executed_table``."""
    rows = []
    for arch, pairs in _by_architecture(records, loops):
        rows.append(Row((arch,), section=True))
        rows += [Row((*_names(record), *(f"{record.pipes[pipe]:.0f}" for pipe in PIPES))) for record, _ in pairs]
    return Table("Cycles of every pipe", (*_NAMES, *_figures(PIPES)), tuple(rows), PIPE_CYCLES)


def bounds_table(records: Sequence[SassRecord], loops: Sequence[HotLoop]) -> Table:
    """Three bounds against per channel and FP16; arguments as ``executed_table``."""
    titles = [f"{name} {what}" for name in BOUNDS.values() for what in ("× channel", "× FP16")]
    rows = []
    for arch, pairs in _by_architecture(records, loops):
        rows.append(Row((arch,), section=True))
        rows += [
            Row((*_names(record), *(cell for bound in in_order(record.bounds) for cell in _bound(bound))))
            for record, _ in pairs
        ]
    return Table("Between full overlap and none", (*_NAMES, *_figures(titles)), tuple(rows), BOUNDED)


def not_counted(missing: Sequence[NotCounted]) -> list[tuple[str, str]]:
    """(variant, why and where); the same reason on many architectures is told once."""
    ordered = sorted(missing, key=lambda item: (item.variant, item.why))
    return [
        (wording.clean(variant), f"{wording.prose(why)} ({', '.join(item.arch for item in group)})")
        for (variant, why), group in groupby(ordered, key=lambda item: (item.variant, item.why))
    ]


def in_order(bounds: Bounds) -> tuple[Bound, Bound, Bound]:
    return bounds.overlap, bounds.mma_and_dequantisation, bounds.all_pipes


_NAMES = (Column("variant", name=True), Column("warp tile"))


def _figures(titles: Sequence[str]) -> Iterator[Column]:
    return (Column(title, numeric=True) for title in titles)


def _by_architecture(
    records: Sequence[SassRecord], loops: Sequence[HotLoop]
) -> Iterator[tuple[str, list[tuple[SassRecord, HotLoop]]]]:
    for arch, group in groupby(zip(records, loops, strict=True), key=lambda pair: pair[0].arch):
        yield arch, list(group)


def _names(record: SassRecord) -> tuple[str, str]:
    return wording.clean(record.variant), record.warp_tile.replace("x", "×")


def _bound(bound: Bound) -> tuple[str, str]:
    return wording.ABSENT if bound.over_channel is None else f"{bound.over_channel:.2f}", f"{bound.speedup_fp16:.2f}"
