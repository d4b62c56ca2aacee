"""The verb ``bench --sass``: compile the catalogue, read its machine code, say what it costs. Needs no GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from apex4_probe.architecture import Architecture, known
from apex4_probe.bench_plan import matching
from apex4_probe.datasheets import datasheets
from apex4_probe.errors import ApexError
from apex4_probe.files import write_set
from apex4_probe.output_folder import choose, require_writable
from apex4_probe.progress import Report, reporting
from apex4_probe.sass_bounds import sass_records
from apex4_probe.sass_records import HotLoop, NotCounted, SassHeader, SassReport, sass_csv, sass_json

if TYPE_CHECKING:
    from apex4_probe.emit import Display
    from apex4_probe.kernels.variant import Chip, Tile, Variant

DEFAULT_ARCHITECTURES = "sm_80,sm_86,sm_89"  # where INT4 Tensor Cores are and mma.sync reaches their rate
JSON, CSV, PLOT = "sass.json", "sass.csv", "sass.png"
FOLDER = "apex4-sass-{date}"
LEADING = ((4096, 4096, 4096), (16, 4096, 4096))  # M, N, K of the GEMMs whose default tiles are counted
SMS = 100  # of an architecture without a listed device; the default tile of so large a GEMM hardly depends on it
RESERVED_BYTES = 1024  # of shared memory, by the driver, a CTA (CUDA C++ Programming Guide, 8.0 and later)
REGISTERS, SCHEDULERS, WARP_GRAIN = 65536, 4, 256  # of an SM; registers are given to a warp by 256 (CUDA occupancy)
COMPILED, READ = 0.6, 0.95  # of the progress


@dataclass(frozen=True)
class SassRequest:
    """What was asked for, as typed. ``architectures``: NVRTC targets or compute capabilities; ``variants``: globs."""

    architectures: str = DEFAULT_ARCHITECTURES
    variants: str = "*"
    tiles: Literal["default", "all"] = "default"
    command: str = ""


@dataclass(frozen=True)
class _Pick:
    facts: Architecture
    chip: Chip
    variant: Variant
    tile: Tile


def sass_job(request: SassRequest, out: str | None, *, display: Display) -> SassReport:
    """Count, write the files and print the tables. Raises ApexError before anything is written."""
    chosen = parse_architectures(request.architectures)
    variants = matching(request.variants)
    folder = choose(out, "", date.today(), FOLDER)
    require_writable(folder)
    display.remark("Nothing is run: kernels are compiled and their machine code is counted.", style="bold")
    with reporting(display.progress) as progress:
        report = counted(chosen, variants, request, progress)
    from apex4_probe.reports.figure_style import to_png
    from apex4_probe.reports.sass_plot import sass_figure
    from apex4_probe.reports.sass_terminal import print_sass

    figure = sass_figure(report.records, report.loops)
    files: dict[str, bytes | str] = {CSV: sass_csv(report), **({PLOT: to_png(figure)} if figure is not None else {})}
    files[JSON] = sass_json(report) + "\n"  # last: who finds it finds the rest beside it
    write_set(folder, files)
    print_sass(report, display.figures)
    display.remark(f"\nWritten to {folder}: {', '.join(reversed(files))}.")
    return report


def parse_architectures(text: str) -> tuple[Architecture, ...]:
    """ "sm_80,8.6" without repetition, in the order given. Raises ApexError for what has no kernels of ours."""
    with_kernels = [facts for facts in known() if facts.kernels]
    names = {name: facts for facts in known() for name in (facts.target, facts.compute_capability)}
    names |= {facts.target.rstrip("af"): facts for facts in known()}
    found = {}
    for part in (part.strip().lower() for part in text.split(",")):
        if (facts := names.get(part)) is None:
            targets = ", ".join(facts.target for facts in with_kernels)
            raise ApexError(f"--arch: {part[:40]!r} is no known architecture; there are kernels for {targets}")
        if not facts.kernels:
            raise ApexError(f"--arch {part}: no kernels for {facts.name}: {facts.kernels_reason}")
        found[facts.target] = facts
    return tuple(found.values())


def counted(
    architectures: Sequence[Architecture], variants: Sequence[Variant], request: SassRequest, progress: Report
) -> SassReport:
    """Compile and count everything that was asked for, and the per-channel kernels to compare with.

    Raises ApexError without NVRTC or a disassembler, or where nothing can be counted.
    """
    from apex4_probe.kernels.catalogue import VARIANTS
    from apex4_probe.kernels.sass import disassembler

    formats = {variant.format for variant in variants}
    beside = [v for v in VARIANTS if v.format in formats and v.granularity == "channel" and v not in variants]
    picks: list[_Pick] = []
    references: list[_Pick] = []
    missing: list[NotCounted] = []
    for facts in architectures:
        chip = chip_of(facts)
        for variant in variants:
            tiles, why = tiles_of(variant, chip, request.tiles)
            picks += [_Pick(facts, chip, variant, tile) for tile in tiles]
            missing += [] if tiles else [NotCounted(variant=variant.name, arch=facts.target, why=why)]
        references += [_Pick(facts, chip, v, tile) for v in beside for tile in tiles_of(v, chip, "default")[0]]
    if not picks:
        raise ApexError(f"nothing can be counted: {missing[0].variant} on {missing[0].arch}: {missing[0].why}")
    loops = list(_loops([*picks, *references], progress))
    own, others = loops[: len(picks)], loops[len(picks) :]
    header = SassHeader(
        tool_version=version("apex4-probe"), nvrtc=own[0].nvrtc, disassembler=disassembler()[1], command=request.command
    )
    return SassReport(header=header, records=sass_records(own, others), loops=own, not_counted=missing)


def chip_of(facts: Architecture) -> Chip:
    """A chip of this architecture as launches see it: the SMs of the first device that is listed."""
    from apex4_probe.kernels.variant import Chip

    listed = (s.value("sm_count") for s in datasheets() if s.compute_capability == facts.compute_capability)
    sms = next((int(count) for count in listed if count), SMS)
    return Chip(facts.compute_capability, facts.target, sms, facts.limits.cta_shared_bytes)


def tiles_of(variant: Variant, chip: Chip, wanted: Literal["default", "all"]) -> tuple[list[Tile], str]:
    """The variant's default tiles of a large GEMM and of a decode step, or every tile; and why there are none."""
    from apex4_probe.kernels.catalogue import legal
    from apex4_probe.kernels.variant import Shape

    if variant.then_fp16:
        return [], "it writes FP16 weights to memory and calls torch's GEMM: it has no MMA of its own"
    shapes = [Shape(*shape) for shape in LEADING]
    possible = [shape for shape in shapes if not legal(variant, shape, chip)]
    if not possible:
        return [], legal(variant, shapes[-1], chip)
    if wanted == "all":
        return [tile for tile in variant.tiles if not all(variant.refuses(tile, s, chip) for s in possible)], ""
    return list(dict.fromkeys(variant.default(shape, chip) for shape in possible)), ""


def _loops(picks: Sequence[_Pick], progress: Report) -> Iterator[HotLoop]:
    from apex4_probe.kernels import catalogue, sass
    from apex4_probe.kernels.compile import compile_all

    kernels = [catalogue.kernel(pick.variant, pick.tile, pick.chip.target, bf16=False) for pick in picks]
    progress(f"compiling {len(kernels)} kernels", 0.0)
    cubins = compile_all(kernels, lambda n, of: progress(kernels[min(n, of - 1)].name, COMPILED * n / of))
    progress("reading their machine code", COMPILED)
    sass.disassemble_all([cubin.image for cubin in cubins])
    progress("counting", READ)
    for pick, cubin in zip(picks, cubins, strict=True):
        yield hot_loop(pick.facts, pick.chip, pick.variant, pick.tile, cubin.image)


def hot_loop(facts: Architecture, chip: Chip, variant: Variant, tile: Tile, image: bytes) -> HotLoop:
    """The record of one compiled kernel. Raises ApexError where its machine code has no loop with an MMA."""
    from apex4_probe.kernels import sass
    from apex4_probe.kernels.compile import nvrtc_version
    from apex4_probe.kernels.sass_counts import count
    from apex4_probe.kernels.variant import Shape

    found = asdict(count(sass.disassemble(image)["gemm"], variant.format, variant.strategy))
    geometry = variant.geometry(tile, Shape(tile["tokens"], LEADING[0][1], LEADING[0][2]), chip)
    registers = sass.registers(image)
    shared = geometry.shared_bytes + sass.static_shared_bytes(image, "gemm")
    ctas = resident_ctas(facts, registers, shared, geometry.threads)
    warps = geometry.threads // 32
    rows, tokens = warp_tile(tile, warps)
    return HotLoop(
        variant=variant.name,
        format=variant.format,
        granularity=variant.granularity,
        strategy=variant.strategy,
        arch=facts.target,
        compute_capability=facts.compute_capability,
        tile=tile.name,
        warp_tile=f"{rows}x{tokens}",
        accumulators=tile["rows"] * tile["tokens"],
        registers=registers,
        shared_bytes=shared,
        local_bytes=sass.local_bytes(image),
        threads=geometry.threads,
        ctas_per_sm=ctas,
        warps_per_sm=ctas * warps,
        nvrtc="{}.{}".format(*nvrtc_version()),
        **found,
    )


def warp_tile(tile: Tile, warps: int) -> tuple[int, int]:
    """Weight rows and tokens of a warp. Families without ``warp_rows`` split K over the warps of the same rows."""
    parameters = dict(tile.parameters)
    if rows := parameters.get("warp_rows"):
        return rows, tile["rows"] * tile["tokens"] // warps // rows
    return tile["rows"] // parameters.get("row_warps", 1), tile["tokens"]


def resident_ctas(facts: Architecture, registers: int, shared_bytes: int, threads: int) -> int:
    """CTAs that an SM holds at a time: by registers, shared memory, warps and CTAs."""
    warps = threads // 32
    a_warp = -(-registers * 32 // WARP_GRAIN) * WARP_GRAIN
    by_registers = SCHEDULERS * (REGISTERS // SCHEDULERS // a_warp) // warps
    by_shared = facts.limits.shared_bytes // (shared_bytes + RESERVED_BYTES)
    return min(by_registers, by_shared, facts.limits.warps // warps, facts.limits.ctas)
