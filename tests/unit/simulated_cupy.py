"""Enough of CuPy to copy between the memories of simulated GPUs: buffers are NumPy's, and the clock counts bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from apex4_probe.microbench.execution import Sample

GB = 1e9


class CudaError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Buffer:
    """An array on one GPU (-1: pinned host memory)."""

    def __init__(self, machine: Machine, device: int, size: int) -> None:
        self.data = SimpleNamespace(ptr=len(machine.buffers))
        self.ptr, self.device = self.data.ptr, device
        self.content = np.zeros(size, np.uint8)
        machine.buffers.append(self)

    def __getitem__(self, part: slice) -> Any:
        def fill(values: Any) -> None:
            self.content[part] = values

        return SimpleNamespace(get=self.content[part].copy, set=fill)


class Stream:
    def __init__(self, number: int) -> None:
        self.ptr = number

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def wait_event(self, _event: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Machine:
    """``rates``: GB/s by (from, to). ``latency_s``: of a copy. ``corrupt``: copies whose data change on the way."""

    def __init__(
        self,
        rates: dict[tuple[int, int], float],
        *,
        latency_s: float = 2e-6,
        reachable: bool = True,
        corrupt: frozenset[tuple[int, int]] = frozenset(),
        pinned: bool = True,
        free: int = 1 << 26,
    ) -> None:
        self.rates, self.latency_s, self.reachable = rates, latency_s, reachable
        self.corrupt, self.pinned, self.free = corrupt, pinned, free
        self.buffers: list[Buffer] = []
        self.device = 0
        self.enabled: list[tuple[int, int]] = []
        self.created = 0
        self.streams: dict[int, float] = {}  # seconds of work issued on each

    # the module

    @property
    def cuda(self) -> Any:
        return self

    @property
    def runtime(self) -> Any:
        return SimpleNamespace(
            CUDARuntimeError=CudaError,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            memGetInfo=lambda: (8 * self.free, 80 << 30),
            memcpyPeerAsync=self._peer_copy,
            memcpyAsync=self._copy,
            deviceCanAccessPeer=lambda _here, _there: self.reachable,
            deviceEnablePeerAccess=self._enable,
            deviceSynchronize=lambda: None,
        )

    uint8 = np.uint8

    @contextmanager
    def Device(self, index: int) -> Iterator[None]:  # noqa: N802
        before, self.device = self.device, index
        yield
        self.device = before

    def Stream(self, non_blocking: bool) -> Any:  # noqa: N802
        assert non_blocking
        self.created += 1
        return Stream(self.created)

    def Event(self, disable_timing: bool) -> Any:  # noqa: N802
        assert disable_timing
        return SimpleNamespace(record=lambda _stream: None)

    def get_current_stream(self) -> Any:
        return Stream(0)

    def zeros(self, size: int, _kind: Any) -> Buffer:
        return Buffer(self, self.device, size)

    def alloc(self, size: int) -> Buffer:
        return Buffer(self, self.device, size)

    def alloc_pinned_memory(self, size: int) -> Buffer:
        if not self.pinned:
            raise CudaError(2)
        return Buffer(self, -1, size)

    # its innards

    def _enable(self, peer: int) -> None:
        if (self.device, peer) in self.enabled:
            raise CudaError(704)
        self.enabled.append((self.device, peer))

    def _peer_copy(self, to: int, there: int, of: int, here: int, size: int, stream: int) -> None:
        assert (self.buffers[to].device, self.buffers[of].device) == (there, here)
        self._move(to, of, size, stream)

    def _copy(self, to: int, of: int, size: int, kind: int, stream: int) -> None:
        assert (self.buffers[of].device == -1) == (kind == 1)
        self._move(to, of, size, stream)

    def _move(self, to: int, of: int, size: int, stream: int) -> None:
        source, target = self.buffers[of], self.buffers[to]
        target.content[:size] = source.content[:size]
        way = (source.device, target.device)
        if way in self.corrupt:
            target.content[size // 2] ^= 1
        busy = self.streams.get(stream, 0.0)
        self.streams[stream] = busy + size / (self.rates[way] * GB) + self.latency_s


class SimulatedGpu:
    """Wall time is that of the stream with the most work: streams run beside each other."""

    def __init__(self, machine: Machine, index: int, nvml: Any = None) -> None:
        self.machine, self.index, self.nvml, self.nvml_handle = machine, index, nvml, nvml and nvml.handle(index)
        self.timed_on: list[int] = []

    def timed(self, work: Callable[[], None]) -> Sample:
        self.timed_on.append(self.machine.device)
        self.machine.streams = {}
        work()
        return Sample(float("nan"), max(self.machine.streams.values()))
