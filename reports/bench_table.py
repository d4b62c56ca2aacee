"""What ``bench`` timed, as tables of text: a section for every shape and M, the fastest tile of every variant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import geometric_mean

from apex4_probe.bench_records import Bench, Refusal
from apex4_probe.deployment import GemmTiming
from apex4_probe.reports import wording
from apex4_probe.reports.tables import Column, Row, Table, columns_of
from apex4_probe.selection import best_tiles

BASELINES = ("fp16", "fp8", "int8", "read")
NAMES = {"fp16": "torch FP16", "fp8": "torch FP8", "int8": "torch INT8", "read": "pure read"}
MANY_TOKENS = 1024  # from here on the Tensor Core is the bound, not memory
METHODS = {
    "interleaved": "GEMMs, all candidates in turn",
    "sustained": "GEMMs, each candidate back to back",
}


def bench_tables(bench: Bench, *, tiles: bool = True) -> list[Table]:
    """A table for every method that was used. ``tiles``: with a column for their names, of up to 60 characters."""
    found = dict.fromkeys(record.method for record in bench.records)
    return [_table(bench, [r for r in bench.records if r.method == method], METHODS[method], tiles) for method in found]


def mean_tables(bench: Bench) -> list[Table]:
    """Over all shapes: the geometric mean of the speed-up over FP16 of each packing's fastest kernel, M by M, and over
    all M from MANY_TOKENS on. A table for every method; none where a single shape was timed."""
    shapes = {(record.n, record.k) for record in bench.records}
    found = dict.fromkeys(record.method for record in bench.records)
    if len(shapes) < 2:
        return []
    return [_means(method, [r for r in bench.records if r.method == method], len(shapes)) for method in found]


def _means(method: str, records: Sequence[GemmTiming], shapes: int) -> Table:
    lines = fastest_of(record for record in records if record.variant not in ("fp16", "read"))
    tokens = sorted({record.m for record in records})
    many = [m for m in tokens if m >= MANY_TOKENS]
    columns: dict[str, list[int]] = {f"M = {m}": [m] for m in tokens}
    if len(many) > 1:
        columns[f"M ≥ {MANY_TOKENS}"] = many

    def mean(line: dict[tuple[int, int, int], float], wanted: Sequence[int]) -> float | None:
        speedups = [speedup for (_, _, m), speedup in line.items() if m in wanted]
        return geometric_mean(speedups) if len(speedups) == shapes * len(wanted) else None

    rows = tuple(
        Row((name, *(_times(mean(line, wanted)) for wanted in columns.values()))) for name, line in lines.items()
    )
    title = f"× FP16 over all shapes, {METHODS[method].partition(', ')[2]}"
    caption = f"Geometric means over the {shapes} shapes, the fastest kernel of each packing."
    return Table(
        title,
        (Column("packing", name=True), *columns_of(*(f"#{c}" for c in columns))),
        rows,
        caption,
    )


def fastest_of(records: Iterable[GemmTiming]) -> dict[str, dict[tuple[int, int, int], float]]:
    """Speed-ups over FP16 by line and (N, K, M); of several kernels of ours that pack alike the fastest. Timings of one
    method."""
    best: dict[str, dict[tuple[int, int, int], float]] = {}
    for record in records:
        if record.speedup_fp16:
            points, cell = best.setdefault(label(record), {}), (record.n, record.k, record.m)
            points[cell] = max(points.get(cell, 0.0), record.speedup_fp16)
    return best


def label(record: GemmTiming) -> str:
    """One line's name: torch's baselines and peers by their own, ours by format and granularity."""
    if record.variant in BASELINES:
        return NAMES[record.variant]
    if record.version:
        return f"{wording.clip(record.variant, 24)} {wording.clip(record.version, 12)}"
    return f"{record.format.upper()} {record.granularity}"


def chain_table(bench: Bench) -> Table:
    """The GEMMs of a transformer block in a row, with and without programmatic dependent launch."""
    rows = tuple(
        Row((
            str(chain.m),
            wording.number(chain.us),
            wording.number(chain.us_pdl),
            wording.number(chain.us - chain.us_pdl if chain.us_pdl else None),
            wording.number(chain.us_fp16),
            _times(chain.us_fp16 and chain.us_fp16 / min(chain.us, chain.us_pdl or chain.us)),
        ))
        for chain in bench.chains
    )  # fmt: skip
    columns = tuple(
        Column(title, numeric=True) for title in ("M", "µs", "µs with PDL", "µs saved", "µs FP16", "× FP16")
    )
    kernels = dict.fromkeys(_variant(link) for chain in bench.chains for link in chain.links)
    caption = (
        "The W4A8 GEMMs of one block, each behind the quantisation of its input, as one CUDA graph; PDL: programmatic "
        f"dependent launch. Kernels: {', '.join(map(wording.clean, kernels))}; bench.json has the tile of each GEMM."
    )
    return Table("A transformer block in a row", columns, rows, caption)


def refusals(bench: Bench) -> list[tuple[str, str]]:
    """(candidate, why and where) for everything that has no time; the same reason at many sizes is told once."""
    ordered = sorted(bench.refused, key=lambda item: (item.candidate, item.why))
    return [
        (wording.clean(candidate), f"{wording.prose(why)} ({_places(list(group))})")
        for (candidate, why), group in groupby(ordered, key=lambda item: (item.candidate, item.why))
    ]


def _variant(link: str) -> str:
    """Of "6144 x 4096 w4a8.small.channel rows=32,…"."""
    return " ".join(link.split(" ")[3:4])


def _table(bench: Bench, records: Sequence[GemmTiming], title: str, tiles: bool) -> Table:
    checked = any(record.exact is not None for record in records)
    titles = ["µs", "spread", "T op/s", "GB/s", "of roof", "× FP16", "× FP8", "µs quantise", *["exact"] * checked]
    names = ("variant", "tile") if tiles else ("variant",)
    columns = [*(Column(name, name=True) for name in names), *(Column(one, numeric=True) for one in titles)]
    rows: list[Row] = []
    for (n, k, m), group in groupby(best_tiles(records), key=lambda record: (record.n, record.k, record.m)):
        cells = sorted(group, key=lambda record: (record.variant not in BASELINES, record.us))
        rows.append(Row((f"{n} × {k}, M = {m}",), section=True))
        rows += [Row((*_names(record, tiles), *_figures(record, checked))) for record in cells]
    told = "" if tiles else "Each variant by its fastest tile, which bench.csv names. "
    return Table(title, tuple(columns), tuple(rows), told + _caption(bench))


def _names(record: GemmTiming, tiles: bool) -> tuple[str, ...]:
    """What a baseline ran on (M padded to 32, say) is told in any case."""
    name = NAMES.get(record.variant, wording.clean(record.variant))
    name += f" {wording.clean(record.version)}" if record.version else ""
    tile = wording.clean(record.tile)
    if tiles:
        return name, tile
    return (f"{name} {tile}".strip() if record.variant in BASELINES else name,)


def _figures(record: GemmTiming, checked: bool) -> tuple[str, ...]:
    exact = {True: "yes", False: "NO", None: wording.ABSENT}[record.exact]
    return (
        wording.number(record.us),
        f"{record.spread:.1%}",
        wording.number(record.tops),
        wording.number(record.gb_per_s),
        wording.ABSENT if record.roofline_fraction is None else f"{record.roofline_fraction:.0%}",
        _times(record.speedup_fp16),
        _times(record.speedup_fp8),
        wording.number(record.us_quantise) if record.us_quantise else wording.ABSENT,
        *([exact] * checked),
    )


def _caption(bench: Bench) -> str:
    header = bench.header
    return (
        f"GPU time of one call in a CUDA graph, weights rotated over {header.rotate_bytes / 1e6:.0f} MB, random data, "
        "median; spread is (90th - 10th percentile) / median. GEMM alone: quantising the activations comes on top and "
        "stands in its own column. Of roof: the longer of memory and Tensor Core time at the rates measured here, over "
        f"the time. torch {header.environment.torch or wording.ABSENT}; INT8 is torch._int_mm, INT32 out, scales not "
        "applied; FP8 is torch._scaled_mm with a scale a row and BF16 out."
    )


def _times(value: float | None) -> str:
    return wording.ABSENT if not value else f"{value:.2f}"


def _places(group: Sequence[Refusal]) -> str:
    sizes = sorted({item.m for item in group})
    shapes = sorted({(item.n, item.k) for item in group})
    where = ", ".join(f"{n} × {k}" for n, k in shapes[:4]) + (", …" if len(shapes) > 4 else "")
    return f"{where}; M = {', '.join(str(m) for m in sizes)}"
