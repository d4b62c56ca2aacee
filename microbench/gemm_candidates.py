"""Timing every way to do one linear layer in one process: catalogue variants, torch's own GEMMs, peers, a pure read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from apex4_probe.deployment import GemmTiming
from apex4_probe.errors import ApexError
from apex4_probe.kernels.formats import Format, Granularity
from apex4_probe.kernels.launch import chip
from apex4_probe.kernels.variant import Shape, Tile, Variant
from apex4_probe.microbench.gemm_baselines import baseline, bound, pairs
from apex4_probe.microbench.gemm_buffers import GemmBuffers
from apex4_probe.microbench.gemm_check import agrees, expected
from apex4_probe.microbench.gemm_records import BASELINES, GemmCandidate, Method, Operand, Prepared, Roof, to_records
from apex4_probe.microbench.gemm_timing import (
    GRAPH_MS,
    ROUNDS,
    Candidate,
    GpuLostError,
    Recorder,
    Refused,
    Timing,
    interleaved,
    log_refused,
    one_line,
    sustained,
)

if TYPE_CHECKING:
    from torch import Tensor

    from apex4_probe.kernels.packing import PackedWeight
    from apex4_probe.kernels.quantise import Kind, QuantisedActivations

Pick = tuple[Variant, Tile]
Peer = Callable[[GemmBuffers, "Sequence[Tensor]"], Prepared]  # raises where it cannot run
OPERANDS: dict[Format, Operand] = {"w4a16": "f16", "w4a8": "s8", "w4a4": "s4"}


def time_gemms(
    n: int,
    k: int,
    m: int,
    picks: Sequence[Pick] = (),
    baselines: Sequence[str] = BASELINES,
    *,
    device: int = 0,
    buffers: GemmBuffers | None = None,
    peers: Sequence[tuple[str, Peer]] = (),
    methods: Sequence[Method] = ("interleaved",),
    rounds: int = ROUNDS,
    graph_ms: float = GRAPH_MS,
    roof: Roof | None = None,
    check: bool = False,
    refused: Refused = log_refused,
) -> list[GemmTiming]:
    """Time y[m, n] = x[m, k] times the transpose of W[n, k], FP16 in and out, on random data and rotated weights.

    ``picks``: (variant, tile) of the catalogue. ``baselines``: of "fp16", "fp8", "int8", "read"; without "fp16" no
    record has a speed-up over it. ``buffers``: weights of this n and k to use again from one M to the next, and to
    release by the caller; None: made here and released. ``check``: fill ``exact``. What cannot run is told to
    ``refused`` (key, why), and has no record. Raises GpuLostError.
    """
    import torch

    with torch.cuda.device(device):
        own = buffers or GemmBuffers(n, k, device)
        try:
            prepared = prepare(own, m, picks, baselines, peers, refused)
            return measured((n, k, m), prepared, methods, rounds, graph_ms, roof, check=check, refused=refused)
        finally:
            if buffers is None:
                own.release()


def prepare(
    buffers: GemmBuffers,
    m: int,
    picks: Sequence[Pick],
    baselines: Sequence[str],
    peers: Sequence[tuple[str, Peer]],
    refused: Refused,
) -> Prepared:
    """Candidates of every kind on the same activations; what cannot be made is told to ``refused``."""
    import torch

    from apex4_probe.kernels.gemm import precompile

    with suppress(ApexError):  # in parallel; one that fails says so itself when its turn comes
        precompile(picks, buffers.device.index)
    try:
        xs = buffers.activations(m)
        catalogue = _Catalogue(buffers, xs)
    except torch.OutOfMemoryError as error:
        refused("every candidate", one_line(error))
        return [], []
    makers: list[tuple[str, Callable[[], Prepared]]] = [
        *((name, _baseline_maker(name, buffers, xs)) for name in baselines),
        *((f"{variant.name} {tile.name}", _maker(catalogue, variant, tile)) for variant, tile in picks),
        *((name, _peer_maker(peer, buffers, xs)) for name, peer in peers),
    ]
    candidates: list[GemmCandidate] = []
    quantisers: dict[str, Candidate] = {}
    for key, make in makers:
        try:
            ways, quantise = make()
        except Exception as error:  # torch, a peer's library: whatever they raise is a reason
            refused(key, one_line(error))
            continue
        candidates += ways
        quantisers.update({candidate.key: candidate for candidate in quantise})
    return candidates, list(quantisers.values())


def measured(
    shape: tuple[int, int, int],
    prepared: Prepared,
    methods: Sequence[Method],
    rounds: int = ROUNDS,
    graph_ms: float = GRAPH_MS,
    roof: Roof | None = None,
    *,
    check: bool = False,
    record: Recorder | None = None,
    refused: Refused = log_refused,
) -> list[GemmTiming]:
    """Records of ``prepared`` candidates by each method. ``shape``: (n, k, m)."""
    candidates, quantisers = prepared
    timed = [*(Candidate(way.key, way.calls) for way in candidates), *quantisers]
    exact = _checked(candidates, refused) if check else {}
    records: list[GemmTiming] = []
    for method in methods:
        if method == "interleaved":
            timings = interleaved(timed, rounds, graph_ms, record=record, refused=refused)
        else:
            timings = _sustained(timed, graph_ms, record, refused)
        for way in candidates:
            if way.key in timings and way.quantise and way.quantise not in timings:
                refused(way.key, f"its activations could not be quantised ({way.quantise})")
        records += to_records(shape, candidates, timings, method, roof, exact)
    return records


class _Catalogue:
    """Candidates of the catalogue at one M: they share activations, quantised once a kind, and the output."""

    def __init__(self, buffers: GemmBuffers, xs: Sequence[Tensor]) -> None:
        self._buffers = buffers
        self._xs = xs
        self._out = buffers.out(len(xs[0]))
        self._quantised: dict[Kind, list[QuantisedActivations]] = {}
        self._expected: dict[tuple[Format, Granularity], Tensor] = {}

    def candidate(self, variant: Variant, tile: Tile) -> Prepared:
        import torch

        from apex4_probe.kernels.gemm import gemm
        from apex4_probe.kernels.quantise import activation_kind

        n, k, m = self._buffers.n, self._buffers.k, len(self._xs[0])
        if reason := variant.refuses(tile, Shape(m, n, k), chip(self._buffers.device.index)):
            raise ApexError(reason)
        weights = self._buffers.packed(variant.format, variant.granularity)
        kind = activation_kind(variant)
        inputs = self._inputs(kind)

        def multiply(x: Tensor | QuantisedActivations, packed: PackedWeight) -> object:
            return gemm(x, packed, variant, tile, out=self._out, dtype=torch.float16)

        def check() -> bool:
            y = gemm(inputs[0], weights[0], variant, tile, dtype=torch.float16)
            return agrees(y, self._reference(weights[0]), variant.format)

        way = GemmCandidate(
            variant=variant.name,
            format=variant.format,
            granularity=variant.granularity,
            calls=[bound(multiply, x, packed) for x, packed in pairs(inputs, weights)],
            moved_bytes=weights[0].nbytes + _activation_bytes(kind, m, k, variant.granularity) + 2.0 * m * n,
            operand=OPERANDS[variant.format],
            strategy=variant.strategy,
            tile=tile.name,
            quantise=f"quantise {kind}" if kind else "",
            # What torch multiplies is W rounded to FP16: no error of a kernel's, and more than one rounding of y.
            check=None if variant.then_fp16 else check,
        )
        return [way], self._quantiser(kind) if kind else []

    def _inputs(self, kind: Kind | None) -> Sequence[Tensor | QuantisedActivations]:
        from apex4_probe.kernels.quantise import quantise

        if kind is None:
            return self._xs
        if kind not in self._quantised:
            self._quantised[kind] = [quantise(x, kind=kind) for x in self._xs]
        return self._quantised[kind]

    def _reference(self, packed: PackedWeight) -> Tensor:
        """What every variant of one packing must give for the first weight and activations."""
        kind = (packed.format, packed.granularity)
        if kind not in self._expected:
            self._expected[kind] = expected(self._xs[0], packed)
        return self._expected[kind]

    def _quantiser(self, kind: Kind) -> list[Candidate]:
        from apex4_probe.kernels.quantise import quantise

        def call(x: Tensor) -> object:
            return quantise(x, kind=kind)

        return [Candidate(f"quantise {kind}", [bound(call, x) for x in self._xs])]


def _activation_bytes(kind: Kind | None, m: int, k: int, granularity: Granularity) -> float:
    """With the scales; INT8 activations carry their row's sum beside its scale."""
    if kind is None:
        return 2.0 * m * k
    if kind.startswith("int8"):
        return m * (k + 8.0)
    group = {"a128i": 1 / 128, "g128": 4 / 128, "g64": 4 / 64, "g32": 4 / 32}.get(granularity, 0.0)  # bytes a channel
    return m * (k * (0.5 + group) + 4.0)


def _baseline_maker(name: str, buffers: GemmBuffers, xs: Sequence[Tensor]) -> Callable[[], Prepared]:
    return lambda: baseline(name, buffers, xs)


def _maker(catalogue: _Catalogue, variant: Variant, tile: Tile) -> Callable[[], Prepared]:
    return lambda: catalogue.candidate(variant, tile)


def _peer_maker(peer: Peer, buffers: GemmBuffers, xs: Sequence[Tensor]) -> Callable[[], Prepared]:
    return lambda: peer(buffers, xs)


def _checked(candidates: Iterable[GemmCandidate], refused: Refused) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for way in candidates:
        if way.check is None:
            continue
        try:
            found[way.key] = way.check()
        except Exception as error:  # a kernel that fails here fails again when it is timed, and says so
            refused(f"{way.key} (check)", one_line(error))
    return found


def _sustained(
    timed: Iterable[Candidate], graph_ms: float, record: Recorder | None, refused: Refused
) -> dict[str, Timing]:
    found: dict[str, Timing] = {}
    for candidate in timed:
        try:
            found[candidate.key] = sustained(candidate, graph_ms=graph_ms, record=record)
        except GpuLostError:
            raise
        except Exception as error:  # as in interleaved
            refused(candidate.key, one_line(error))
    return found
