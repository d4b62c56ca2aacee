"""The verb ``bench``: every legal variant against torch's FP16, INT8 and FP8 in one process; table, files and plot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timezone
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from apex4_probe.architecture import architecture
from apex4_probe.bench_plan import BenchRequest, Plan, finalists, only, read
from apex4_probe.bench_records import Bench, BenchHeader, ChainTiming, Refusal, bench_csv, bench_json
from apex4_probe.checkout import commit
from apex4_probe.deployment import GemmTiming, Measurement
from apex4_probe.discovery import LocalGpu, NoGpuError, discover, environment
from apex4_probe.errors import ApexError
from apex4_probe.files import write_set
from apex4_probe.gemm_bench import why_no_torch
from apex4_probe.microbench.clocks import DISCARDED
from apex4_probe.microbench.gemm_buffers import ROTATE_BYTES
from apex4_probe.output_folder import choose, require_writable, slug
from apex4_probe.progress import Report, reporting
from apex4_probe.rates import MMA_SYNC, WGMMA, Operand, Rates
from apex4_probe.selection import best_tiles

if TYPE_CHECKING:
    from apex4_probe.emit import Display
    from apex4_probe.microbench.gemm_chain import Link
    from apex4_probe.microbench.gemm_records import Roof

JSON, CSV, PLOT = "bench.json", "bench.csv", "bench.png"
FOLDER = "apex4-bench-{device}-{date}"
CHAIN_M = 64  # up to here a GEMM is so short that launching counts
HEAT_ROUNDS, HEAT_MS = 3, 0.5  # of the tiles' first heat: it tells 5 % apart, the second one 1 %
ROOF_SHARE, CHAIN_SHARE = 0.1, 0.95  # of the progress: where the ceilings are measured, where the chains begin
OPERANDS: tuple[Operand, ...] = ("f16", "e4m3", "s8", "s4")


def bench_job(request: BenchRequest, out: str | None, *, display: Display) -> Bench:
    """Time, write the files and print the table. Raises ApexError before timing for everything that can be known then;
    no partial file is left."""
    plan = read(request)
    gpu = the_gpu(request.device)
    folder = choose(out, slug(gpu.device.name, gpu.device.mig), date.today(), FOLDER)
    require_writable(folder)
    if gpu.busy:
        display.remark(f"Warning: {gpu.busy}.", style="yellow")
    with reporting(display.progress) as progress:
        bench = run_bench(gpu, plan, request, progress)
    from apex4_probe.reports.bench_plot import bench_figure
    from apex4_probe.reports.bench_terminal import print_bench
    from apex4_probe.reports.figure_style import to_png

    files: dict[str, bytes | str] = {CSV: bench_csv(bench)}
    if (figure := bench_figure(bench)) is not None:
        files[PLOT] = to_png(figure)
    files[JSON] = bench_json(bench) + "\n"  # last: who finds it finds the rest beside it
    write_set(folder, files)
    print_bench(bench, display.figures)
    display.remark(f"\nWritten to {folder}: {', '.join(reversed(files))}.")
    return bench


def wrong(bench: Bench) -> list[GemmTiming]:
    """The records whose output was checked and is not right."""
    return [record for record in bench.records if record.exact is False]


def the_gpu(selection: str) -> LocalGpu:
    """Raises ApexError where there is no GPU, more than one is named, or torch cannot use it."""
    try:
        found = discover(selection)
    except NoGpuError as error:
        raise NoGpuError(f"bench times kernels on a GPU, and there is none to use: {error}") from error
    if len(found) != 1:
        raise ApexError(f"--device {selection}: bench times one GPU at a time; name one")
    if missing := why_no_torch():
        raise ApexError(f"bench compares with torch, and {missing}")
    return found[0]


def run_bench(gpu: LocalGpu, plan: Plan, request: BenchRequest, progress: Report) -> Bench:
    """Everything that ``plan`` asks, on one GPU."""
    from apex4_probe import peers
    from apex4_probe.microbench.execution import Gpu

    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with Gpu(gpu.index) as watched:  # its clock is sampled all the while
        progress("measuring the roofline", 0.0)
        roof = measured_roof(gpu)
        start = time.monotonic()
        records, refused = _time_all(gpu, plan, roof, progress)
        progress("a transformer block in a row", CHAIN_SHARE)
        warnings = [gpu.busy] if gpu.busy else []
        chains = _chains(gpu, plan, records, lambda key, why: warnings.append(f"{key} was not timed: {why}"))
        if slowed := sorted(watched.conditions(start).throttle & DISCARDED):
            warnings.append(
                f"heat or a power brake slowed the GPU ({', '.join(slowed)}): ratios hold, times may be long"
            )
    header = BenchHeader(
        tool_version=version("apex4-probe"),
        created=created,
        command=request.command,
        commit=commit(),
        model=plan.title,
        device=gpu.device,
        environment=environment(gpu.driver, gpu.cuda),
        peers=peers.versions(plan.peers),
        rotate_bytes=ROTATE_BYTES,
        read_gb_s=roof.read_gb_s,
        tensor_tops={str(operand): rate for operand, rate in roof.tops.items()},
        warnings=warnings,
    )
    return Bench(header=header, records=records, chains=chains, refused=refused)


def _time_all(gpu: LocalGpu, plan: Plan, roof: Roof, progress: Report) -> tuple[list[GemmTiming], list[Refusal]]:
    """Shape by shape, so that the weights of one are in memory at a time, and at each M everything in one go."""
    from apex4_probe.kernels.launch import chip
    from apex4_probe.microbench.gemm_buffers import GemmBuffers
    from apex4_probe.microbench.gemm_candidates import time_gemms

    records: list[GemmTiming] = []
    refused: list[Refusal] = []
    shapes = list(dict.fromkeys((gemm.n, gemm.k) for gemm in plan.gemms))
    for place, (n, k) in enumerate(shapes):
        buffers = GemmBuffers(n, k, gpu.index)
        for number, m in enumerate(plan.tokens):
            done = (place + number / len(plan.tokens)) / len(shapes)
            progress(f"{n} x {k}, M = {m}", ROOF_SHARE + (CHAIN_SHARE - ROOF_SHARE) * done)
            picks, why_not = plan.picks(n, k, m, chip(gpu.index))
            if plan.tiles == "best":
                heat = time_gemms(
                    n, k, m, picks, (), device=gpu.index, buffers=buffers,
                    rounds=HEAT_ROUNDS, graph_ms=HEAT_MS, refused=why_not.__setitem__,
                )  # fmt: skip
                picks = finalists(picks, heat)
            timing = partial(
                time_gemms, n, k, m,
                device=gpu.index, buffers=buffers, peers=[(peer.variant, peer.prepare) for peer in plan.peers],
                roof=roof,
                refused=why_not.__setitem__,
            )  # fmt: skip
            if plan.tiles != "best":
                records += timing(picks, methods=plan.methods, check=plan.check)
            else:
                for method in plan.methods:  # those after the first time the fastest tiles alone
                    timed = best_tiles(timing(picks, methods=(method,), check=plan.check))
                    picks = only(picks, {(record.variant, record.tile) for record in timed})
                    records += timed
            refused += [Refusal(n=n, k=k, m=m, candidate=key, why=why) for key, why in why_not.items()]
        buffers.release()
    return records, refused


def measured_roof(gpu: LocalGpu) -> Roof:
    """The ceilings of this GPU, measured now. Raises ApexError where its bandwidth cannot be measured."""
    import cupy

    from apex4_probe.microbench import suite

    facts = architecture(gpu.device.compute_capability)
    every = {name for names in (*MMA_SYNC.values(), *WGMMA.values()) for name in names}
    names = {name for name in every if facts.support(name).level == "native"}
    measurements = suite.remeasure(gpu.index, {"memory.read", *names})
    cupy.get_default_memory_pool().free_all_blocks()  # gigabytes that torch is about to want
    return roof_of(gpu, measurements)


def roof_of(gpu: LocalGpu, measurements: Sequence[Measurement]) -> Roof:
    """GB/s of a pure read, and the dense T op/s that kernels of each operand can build on; hardware's own only."""
    from apex4_probe.microbench.gemm_records import Roof

    rates = Rates.of(gpu.device, measurements)
    found = {operand: rates.kernel_tensor(operand) for operand in OPERANDS}
    tops = {
        operand: 2 * rate.per_clk * gpu.device.sm_count * rate.clock_mhz * 1e-6
        for operand, rate in found.items()
        if rate is not None and rate.origin == "measured"
    }
    return Roof(rates.read_bandwidth().value, tops)


def chain_links(plan: Plan, records: Iterable[GemmTiming], m: int) -> list[Link]:
    """For every GEMM of the block the w4a8 variant and tile that was fastest at ``m``; empty where one has none."""
    from apex4_probe.kernels import catalogue
    from apex4_probe.microbench.gemm_chain import Link

    names = {variant.name for variant in catalogue.VARIANTS}
    ours = [record for record in records if record.m == m and record.format == "w4a8" and record.variant in names]
    links = []
    for gemm in plan.gemms:
        best = min((r for r in ours if (r.n, r.k) == (gemm.n, gemm.k)), key=lambda record: record.us, default=None)
        if best is None:
            return []
        variant = catalogue.by_name(best.variant)
        links.append(Link(gemm.n, gemm.k, variant, catalogue.tile_named(variant, best.tile)))
    return links


def _chains(
    gpu: LocalGpu, plan: Plan, records: Sequence[GemmTiming], refused: Callable[[str, str], None]
) -> list[ChainTiming]:
    from apex4_probe.microbench import gemm_chain

    found = []
    for m in (m for m in plan.tokens if plan.block and m <= CHAIN_M):
        links = chain_links(plan, records, m)
        times = gemm_chain.time_chain(links, m, device=gpu.index, refused=refused) if links else {}
        plain, pdl, dense = (times.get(key) for key in (gemm_chain.PLAIN, gemm_chain.PDL, gemm_chain.FP16))
        if plain is None:
            continue
        found.append(
            ChainTiming(
                m=m,
                links=[link.name for link in links],
                us=plain.us,
                spread=plain.spread,
                us_pdl=pdl.us if pdl else None,
                spread_pdl=pdl.spread if pdl else None,
                us_fp16=dense.us if dense else None,
            )
        )
    return found
