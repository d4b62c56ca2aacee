"""Timing short GPU work fairly: CUDA graphs of many calls over rotated buffers, replayed in turn, timed by events.

A graph leaves out what Python and the driver cost a call, and candidates that take turns within one process share the
clock's drift, so that ratios between them hold to a per cent where the times themselves move by 3 to 5 %.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from apex4_probe.errors import ApexError
from apex4_probe.microbench.stopping import spread

Call = Callable[[], object]  # enqueues its work once on torch's current stream; what it returns is dropped
Replay = Callable[[], float]  # runs a recorded graph once and waits; milliseconds on the GPU
Refused = Callable[[str, str], None]  # a candidate's key, and why it has no time

ROUNDS = 15
# Work in one graph: a replay's own 5 to 10 us are then a quarter of a per cent at most.
GRAPH_MS, LEAST_CALLS = 4.0, 4
SUSTAINED_S = 0.2  # the power cap pulls a Tensor Core load down within 30 ms (H200), so that the second half is settled
# Idle before a sustained candidate, on which what ran before it otherwise tells. FP16 on an H100, 28672 x 4096,
# M = 4096, three times in other orders: 562 to 660 TFLOPS without, 628 to 645 with it.
REST_S = 0.1
PILOT_CALLS = 8  # of a first graph, which tells how many calls the real one needs
MAX_CALLS = 20_000  # nodes of one graph; of an empty kernel (1 us), five times GRAPH_MS


@dataclass(frozen=True)
class Candidate:
    """``calls``: the same work on different buffers each, so many that none is in the L2 when its turn comes again.

    A call may allocate through torch alone (its blocks go to the graph's pool) and must not wait for the device.
    """

    key: str
    calls: Sequence[Call]


@dataclass(frozen=True)
class Timing:
    """``us``: of one call, the median over ``samples`` replays; ``spread``: (90th - 10th percentile) / median."""

    us: float
    spread: float
    samples: int


class GpuLostError(ApexError):
    """A fault such as an illegal address, after which the process can use the GPU for nothing more."""


class Recorder(Protocol):
    """Turns calls into something that can be replayed and timed; the GPU's is GraphRecorder, tests have their own."""

    def __call__(self, calls: Sequence[Call], count: int) -> Replay:
        """``count`` calls, going round ``calls`` from the first. Raises whatever a call raises."""
        ...


def log_refused(key: str, why: str) -> None:
    logging.getLogger(__name__).warning("%s was not timed: %s", key, why)


def interleaved(
    candidates: Iterable[Candidate],
    rounds: int = ROUNDS,
    graph_ms: float = GRAPH_MS,
    *,
    record: Recorder | None = None,
    refused: Refused = log_refused,
) -> dict[str, Timing]:
    """Time of one call of each candidate, by key: one graph each, replayed in turn ``rounds`` times after a first round
    that is not counted. ``record``: by default CUDA graphs on torch's current device. Each round has another order, the
    same in every process: at the power cap a candidate is faster behind one that draws little, so none may keep its
    neighbour.

    A candidate that raises is told to ``refused`` and left out. Raises GpuLostError.
    """
    record = record or GraphRecorder()
    graphs: dict[str, tuple[Replay, int]] = {}
    for candidate in candidates:
        try:
            graphs[candidate.key] = _graph(candidate, graph_ms, record)
        except GpuLostError as error:
            raise GpuLostError(f"{candidate.key}: {error}") from error
        except Exception as error:  # a peer's library may raise anything
            refused(candidate.key, one_line(error))
    times: dict[str, list[float]] = {key: [] for key in graphs}
    order, shuffled = list(graphs), random.Random(0)
    for turn in range(rounds + 1):
        shuffled.shuffle(order)
        for key in order:
            replay, count = graphs[key]
            try:
                milliseconds = replay()
            except GpuLostError as error:
                raise GpuLostError(f"{key}: {error}") from error
            if turn:
                times[key].append(milliseconds * 1e3 / count)
    return {key: _timing(samples) for key, samples in times.items()}


def sustained(
    candidate: Candidate,
    seconds: float = SUSTAINED_S,
    graph_ms: float = GRAPH_MS,
    *,
    record: Recorder | None = None,
) -> Timing:
    """The candidate back to back for ``seconds`` of GPU time, after a rest of REST_S; the first half, in which the
    clock settles, is dropped.

    Raises what the candidate raises.
    """
    replay, count = _graph(candidate, graph_ms, record or GraphRecorder())
    samples: list[float] = []
    elapsed_ms = 0.0
    time.sleep(REST_S)
    while elapsed_ms < seconds * 1e3 or len(samples) < 2:
        milliseconds = replay()
        elapsed_ms += milliseconds
        samples.append(milliseconds * 1e3 / count)
    return _timing(samples[len(samples) // 2 :])


class GraphRecorder:
    """Records CUDA graphs on a stream of its own and replays them between two events.

    Its graphs share one memory pool: what their calls allocate is scratch that the next graph may overwrite.
    """

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, calls: Sequence[Call], count: int) -> Replay:
        graph = self._torch.cuda.CUDAGraph()
        self._stream.wait_stream(self._torch.cuda.current_stream())
        with self._torch.cuda.stream(self._stream):
            try:
                for call in calls:  # compiles, loads and fills caches, none of which may happen during capture
                    call()
                self._stream.synchronize()
                self._capture(graph, calls, count)
            except Exception:
                self._require_device()
                raise
        return lambda: self._replay(graph)

    def _capture(self, graph: Any, calls: Sequence[Call], count: int) -> None:
        # Not torch.cuda.graph: it collects garbage and empties torch's cache at each capture, 0.1 s a time.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            for i in range(count):
                calls[i % len(calls)]()
        except Exception:
            with suppress(RuntimeError):  # an invalidated capture says so again when it ends
                graph.capture_end()
            raise
        graph.capture_end()

    def _replay(self, graph: Any) -> float:
        before, after = self._events
        try:
            with self._torch.cuda.stream(self._stream):
                before.record()
                graph.replay()
                after.record()
            after.synchronize()
        except RuntimeError:
            self._require_device()
            raise
        return float(before.elapsed_time(after))

    def _require_device(self) -> None:
        """After a fault such as an illegal address every further call fails, whoever makes it."""
        try:
            self._torch.cuda.synchronize()
        except RuntimeError as error:
            raise GpuLostError(f"the GPU can no longer be used by this process: {one_line(error)}") from error


def _graph(candidate: Candidate, graph_ms: float, record: Recorder) -> tuple[Replay, int]:
    """A graph of at least ``graph_ms`` and LEAST_CALLS that goes round all buffers a whole number of times, and its
    number of calls."""
    buffers = len(candidate.calls)
    pilot_calls = min(buffers, PILOT_CALLS)
    pilot = record(candidate.calls, pilot_calls)
    pilot()
    per_call_ms = max(pilot() / pilot_calls, 1e-6)
    passes = math.ceil(min(max(graph_ms / per_call_ms, LEAST_CALLS), MAX_CALLS) / buffers)
    return record(candidate.calls, passes * buffers), passes * buffers


def _timing(samples: Sequence[float]) -> Timing:
    return Timing(median(samples), spread(samples), len(samples))


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
