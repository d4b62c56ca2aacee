"""The kernels that were timed and chosen, as tables."""

from __future__ import annotations

from apex4_probe.deployment import GemmTiming, KernelChoice, KernelTable, Profile
from apex4_probe.reports import wording
from apex4_probe.reports.tables import ABSENT, Row, Table, columns_of

CAPTION = (
    "Each kernel serves up to its M. us and speed-up over FP16 count quantising the activations. Next: the fastest of "
    "another kind for the same layer and M, in any format, and its time over ours."
)


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
    """Every kernel of every packing that was tuned, with its tile."""
    rows = tuple(
        Row(
            (
                _shape(table),
                table.format,
                table.granularity,
                str(kernel.m_max),
                wording.clean(kernel.variant),
                wording.clean(kernel.tile),
                *_figures(kernel),
                kernel.origin,
            ),
            predicted=kernel.origin == "predicted",
        )
        for table in profile.kernels
        for kernel in table.kernels
    )
    titles = ("#N × K", "format", "granularity", "#up to M", "kernel", "tile", "#us", "#speed-up", "next")
    return Table("Kernels", columns_of(*titles, "#next over ours", "origin"), rows, CAPTION)


def gemm_timing_table(profile: Profile) -> Table:
    """Every candidate's best tile, and the baselines, as timed."""
    rows = tuple(_timing_row(timing) for timing in profile.gemm_timings)
    titles = ("#N × K", "#M", "candidate", "tile", "#us", "#quantising", "#spread", "#TOPS", "#GB/s", "#over FP16")
    caption = (
        "Microseconds of the GEMM alone, as CUDA graphs that take turns over rotated weights; quantising its "
        "activations comes on top. Over FP16: without quantising."
    )
    return Table("GEMMs as timed", columns_of(*titles, "origin"), rows, caption)


def _timing_row(timing: GemmTiming) -> Row:
    cells = (
        f"{timing.n} × {timing.k}",
        str(timing.m),
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
