"""The kernels that were timed and chosen, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from apex4_probe.deployment import Format, GemmTiming, Granularity, KernelChoice, KernelTable, Profile
from apex4_probe.reports import wording
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of
from apex4_probe.selection import FORMATS, fastest, total_us

Packing = tuple[Format, Granularity]
CAPTION = (
    "Each kernel serves up to its M. us and speed-up over FP16 count quantising the activations. Next: the fastest of "
    "another kind for the same layer and M, in any format, and its time over ours."
)


def packing_table(profile: Profile) -> Table:
    """Every GEMM at every M, a column a format and granularity: what is fastest there, and by how much."""
    best = fastest(profile.gemm_timings)
    found = dict.fromkeys((key.format, key.granularity) for key in best)
    packings = sorted(found, key=lambda packing: FORMATS.index(packing[0]))
    gemms: dict[tuple[int, int], dict[int, dict[Packing, GemmTiming]]] = {}
    for key, timing in best.items():
        gemms.setdefault((key.n, key.k), {}).setdefault(key.m, {})[key.format, key.granularity] = timing
    rows: list[Row] = []
    for (n, k), by_m in gemms.items():
        rows.append(Row((f"{n} × {k}",), section=True))
        for m, times in sorted(by_m.items()):
            figures = (_total(times[packing]) if packing in times else ABSENT for packing in packings)
            rows.append(Row((str(m), *figures, *_first(times))))
    titles = ("#M", *(f"#{wording.choice(*packing)}" for packing in packings), "fastest", "#ahead by")
    caption = (
        "Microseconds of each packing's fastest kernel as timed here, quantising the activations included. Fastest: "
        "whatever its expected loss; ahead by: time of the next over it, minus 1."
    )
    return Table("Which format at how many tokens", columns_of(*titles), tuple(rows), caption)


def _total(timing: GemmTiming) -> str:
    return wording.number(total_us(timing), timing.origin)


def _first(times: Mapping[Packing, GemmTiming]) -> tuple[str, str]:
    first, *others = sorted(times, key=lambda packing: total_us(times[packing]))
    ahead = total_us(times[others[0]]) / total_us(times[first]) - 1 if others else None
    return wording.choice(*first), wording.percent(ahead)


def chosen_kernel_table(profile: Profile) -> Table:
    """The kernels of the plan's own packings, without their tiles. No rows: nothing was tuned, or it stays in FP16."""
    planned = {(layer.format, layer.granularity) for layer in profile.layers}
    rows = tuple(
        Row(
            (_shape(table), str(kernel.m_max), wording.clean(kernel.variant), *_figures(kernel)),
            predicted=kernel.origin == "predicted",
        )
        for table in profile.kernels
        if (table.format, table.granularity) in planned
        for kernel in table.kernels
    )
    titles = ("#N × K", "#up to M", "kernel", "#us", "#speed-up", "next", "#next over ours")
    return Table("Kernels of the plan", columns_of(*titles), rows, CAPTION)


def kernel_table(profile: Profile) -> Table:
    """Every kernel of every packing that was tuned, with its tile; a section a packing."""
    rows: list[Row] = []
    for table in profile.kernels:
        rows.append(Row((f"{_shape(table)}, {wording.choice(table.format, table.granularity)}",), section=True))
        for kernel in table.kernels:
            names = (wording.clean(kernel.variant), wording.clean(kernel.tile))
            cells = (str(kernel.m_max), *names, *_figures(kernel), kernel.origin)
            rows.append(Row(cells, predicted=kernel.origin == "predicted"))
    titles = ("#up to M", "kernel", "tile", "#us", "#speed-up", "next", "#next over ours", "origin")
    return Table("Kernels", columns_of(*titles), tuple(rows), CAPTION)


def gemm_timing_table(profile: Profile) -> Table:
    """Every candidate's best tile, and the baselines, as timed; a section a GEMM and M, the fastest first."""
    rows: list[Row] = []
    ordered = sorted(profile.gemm_timings, key=_gemm)
    for (n, k, m), group in groupby(ordered, key=_gemm):
        rows.append(Row((f"{n} × {k}, M = {m}",), section=True))
        rows += [_timing_row(timing) for timing in sorted(group, key=total_us)]
    titles = ("candidate", "tile", "#us", "#quantising", "#spread", "#TOPS", "#GB/s", "#over FP16")
    caption = (
        "Microseconds of the GEMM alone, as CUDA graphs that take turns over rotated weights; quantising its "
        "activations comes on top. Over FP16: without quantising."
    )
    return Table("GEMMs as timed", columns_of(*titles, "origin"), tuple(rows), caption)


def _gemm(timing: GemmTiming) -> tuple[int, int, int]:
    return timing.n, timing.k, timing.m


def _timing_row(timing: GemmTiming) -> Row:
    cells = (
        wording.clean(timing.variant),
        wording.clean(timing.tile) or ABSENT,
        wording.number(timing.us, timing.origin),
        wording.number(timing.us_quantise, timing.origin),
        wording.percent(timing.spread),
        wording.number(timing.tops, timing.origin),
        wording.number(timing.gb_per_s, timing.origin),
        wording.times(timing.speedup_fp16, timing.origin),
        timing.origin,
    )
    return Row(cells, predicted=timing.origin == "predicted")


def _shape(table: KernelTable) -> str:
    return f"{table.n} × {table.k}"


def _figures(kernel: KernelChoice) -> tuple[str, str, str, str]:
    behind = None if kernel.runner_up_us is None or kernel.us <= 0 else kernel.runner_up_us / kernel.us
    return (
        wording.number(kernel.us, kernel.origin),
        wording.times(kernel.speedup, kernel.origin),
        wording.clean((kernel.runner_up or ABSENT).partition(" ")[0]),
        wording.times(behind, kernel.origin),
    )
