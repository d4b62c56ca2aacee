"""Everything that ``run`` measures, in order, within its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from apex4_probe.architecture import Architecture
from apex4_probe.deployment import CoIssue, Measurement
from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import compile_all
from apex4_probe.microbench import bandwidth, co_issue, host_link, instructions, throughput
from apex4_probe.microbench.execution import Gpu
from apex4_probe.microbench.instructions import PROBES, InstructionProbe
from apex4_probe.microbench.throughput import PreparedProbe

Progress = Callable[[str, float], None]  # what is being done now; the share of the whole that is done, 0 … 1

# Shares of the whole that end compiling, bursts, bandwidth and sustained rates, as seen on an H100.
_STAGES = {False: (0.1, 0.55, 0.7, 0.95), True: (0.3, 0.5, 0.57, 0.67)}


UNSTEADY = 0.10  # a spread that a person should know of


@dataclass(frozen=True)
class MeasuredSet:
    """What one GPU measured."""

    measurements: list[Measurement]
    co_issue: list[CoIssue]
    warnings: list[str]


def selected(architecture: Architecture, names: set[str] | None = None) -> list[InstructionProbe]:
    """The instruction probes of an architecture, MMA shapes that it lacks left out; ``names`` narrows the choice."""
    probes = [p for p in PROBES if not p.is_mma or p.name in architecture.mma_probes]
    return [p for p in probes if names is None or p.name in names]


def measure(gpu_index: int, *, full: bool = False, progress: Progress = lambda _what, _share: None) -> MeasuredSet:
    """Measure the CUDA device ``gpu_index``. Raises ApexError (no CuPy, unknown architecture, compile failure)."""
    with Gpu(gpu_index) as gpu:
        architecture = gpu.architecture
        compiled, probed, moved, sustained = _STAGES[full]
        probes = selected(architecture)
        curves = co_issue.curves(architecture, full)
        configurations = {probe: probe.configurations(architecture) for probe in probes}
        wanted = list(dict.fromkeys(c.kernel for group in configurations.values() for c in group))
        progress("compiling probes", 0.0)
        # A word for every file: who watches this process takes silence for a hang.
        images = compile_all(wanted, lambda _n, _of: progress("compiling probes", 0.0))
        cubins = dict(zip(wanted, images, strict=True))
        curve_cubins = co_issue.compile_curves(
            curves, architecture.target, lambda n, of: progress("compiling co-issue probes", compiled / 2 * n / of)
        )
        progress("reading machine code", compiled / 2)
        sass.disassemble_all([cubin.image for cubin in (*cubins.values(), *curve_cubins.values())])

        measurements: list[Measurement] = []
        prepared: list[PreparedProbe] = []
        for number, probe in enumerate(probes):
            progress(probe.name, compiled + (probed - compiled) * number / len(probes))
            ready = throughput.prepare(gpu, probe, [(c, cubins[c.kernel]) for c in configurations[probe]])
            prepared.append(ready)
            measurements += ready.bursts()
        progress("memory, L2, shared memory, launches, host link", probed)
        measurements += bandwidth.measure(gpu) + host_link.measure(gpu)

        for number, ready in enumerate(prepared):
            progress(f"{ready.probe.name}, sustained", moved + (sustained - moved) * number / len(prepared))
            measurements += ready.sustained()
        measurements += _refused(architecture)

        probe_curves = co_issue.CoIssueProbe(gpu, curve_cubins)
        records: list[CoIssue] = []
        for number, curve in enumerate(curves):
            share = sustained + (1 - sustained) * number / len(curves)
            progress(f"co-issue {curve.loop.mma} {curve.loop.shape} {curve.placement} {curve.instruction}", share)
            records += probe_curves.measure(curve)
        progress("measured", 1.0)
        return MeasuredSet(measurements, records, _warnings(architecture, measurements))


def remeasure(gpu_index: int, names: set[str]) -> list[Measurement]:
    """The named figures again, for ``verify --measure``: those of ``names`` that this GPU can give."""
    with Gpu(gpu_index) as gpu:
        found: list[Measurement] = []
        prepared: list[PreparedProbe] = []
        for probe in selected(gpu.architecture, names):
            configurations = probe.configurations(gpu.architecture)
            cubins = compile_all([c.kernel for c in configurations])
            prepared.append(throughput.prepare(gpu, probe, list(zip(configurations, cubins, strict=True))))
            found += prepared[-1].bursts()
        if names & set(bandwidth.DESCRIPTIONS):
            found += [m for m in bandwidth.measure(gpu) if m.name in names]
        if names & set(host_link.DESCRIPTIONS):
            found += [m for m in host_link.measure(gpu) if m.name in names]
        return found + [record for ready in prepared for record in ready.sustained()]


def describe(name: str) -> str:
    """One plain sentence: what the measurement ``name`` measures. Empty for an unknown name."""
    described = {probe.name: probe.description for probe in PROBES} | bandwidth.DESCRIPTIONS | host_link.DESCRIPTIONS
    return described.get(name, "")


def _refused(architecture: Architecture) -> list[Measurement]:
    """A row with the reason for every MMA that this architecture has not."""
    mmas = [p for p in PROBES if p.is_mma and architecture.support(p.name).level == "refused"]
    return [instructions.unsupported(probe, architecture.support(probe.name).reason) for probe in mmas]


def _warnings(architecture: Architecture, measurements: list[Measurement]) -> list[str]:
    found = []
    try:
        sass.disassembler()
    except sass.DisassemblyError as error:
        found.append(str(error))
    if architecture.tcgen05:
        found.append(architecture.tcgen05)
    discarded = sum(m.discarded for m in measurements)
    if discarded:
        found.append(f"{discarded} samples were taken while heat or a power brake slowed the GPU; they were discarded")
    # The host's own latency is never steady; its spread beside it says so.
    gpu = [m for m in measurements if m.name != "launch.stream" and m.spread is not None]
    hot = [m.name for m in gpu if (m.spread or 0.0) > UNSTEADY]
    if hot:
        found.append(f"unsteady (spread over {UNSTEADY:.0%}), so read with care: {', '.join(dict.fromkeys(hot))}")
    return found
