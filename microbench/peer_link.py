"""Copies from one GPU to another of the same host: each direction, both at once, and what the smallest copy takes.

Copy engines do the work, straight over NVLink or PCIe where the two can reach each other, else by way of host memory,
as ``cudaMemcpyPeerAsync`` does for everybody. Data are compared once: on hosts whose IOMMU or PCIe access control
redirects peer traffic, copies finish at full speed and arrive wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from apex4_probe.deployment import PeerLink
from apex4_probe.microbench.execution import Gpu, Sample
from apex4_probe.microbench.stopping import StoppingRule, spread
from apex4_probe.microbench.topology import Route, route

BYTES = 1 << 28  # 0.7 ms over eighteen NVLinks of the fourth generation, hundreds of times what starting a copy costs
SMALL_BYTES, SMALL_COPIES = 16, 64
CHECKED_BYTES = 1 << 22
BUDGET_S = 0.08
ALREADY_ENABLED = 704  # cudaErrorPeerAccessAlreadyEnabled

Rate = tuple[float, float, int]  # median seconds, spread, samples


def measure(first: Gpu, second: Gpu, peer_name: str) -> PeerLink:
    """The link from ``first`` to ``second``, both opened; ``peer_name``: of the second, for the record."""
    way = _route(first, second)
    access = _enable(first, second)
    link = partial(
        PeerLink, peer=second.index, peer_name=peer_name, path=way.path, nvlinks=way.nvlinks, peer_access=access
    )
    pair = _Buffers(first, second)
    if not pair.arrives():
        return link(
            unsupported="copied data arrive changed: peer-to-peer traffic is redirected on this host (IOMMU or PCIe "
            "access control services); NCCL needs NCCL_P2P_DISABLE=1 here",
        )
    there = _timed(first, pair.stream, lambda: pair.copy(0, 1))
    back = _timed(first, pair.stream, lambda: pair.copy(1, 0))
    both = _timed(first, pair.stream, pair.both)
    small = _timed(first, pair.stream, pair.small)
    rates = [size / rate[0] / 1e9 for size, rate in ((pair.size, there), (pair.size, back), (2 * pair.size, both))]
    return link(
        to_peer_gb_per_s=rates[0],
        from_peer_gb_per_s=rates[1],
        both_gb_per_s=rates[2],
        copy_us=small[0] / SMALL_COPIES * 1e6,
        samples=min(there[2], back[2], both[2]),
        spread=max(there[1], back[1], both[1]),
    )


def _timed(gpu: Gpu, stream: Any, work: Callable[[], None]) -> Rate:
    """Back to back, without the pauses that a burst of arithmetic needs: copies do not meet the power cap."""
    import cupy

    with cupy.cuda.Device(gpu.index), stream:

        def once() -> Sample:
            return gpu.timed(work)

        once()
        rule = StoppingRule(BUDGET_S)
        while not rule.done:
            rule.add(1.0, once().wall_s)
    kept = rule.wall_s[-rule.window :]
    return median(kept), spread(kept), len(kept)


class _Buffers:
    """Two buffers on each of the two GPUs, and the copies between them, issued on the first GPU's ``stream``.

    Not on the default stream, with which copies between GPUs may synchronise.
    """

    def __init__(self, first: Gpu, second: Gpu) -> None:
        import cupy

        self._cupy, self._indices = cupy, (first.index, second.index)
        free = []
        for index in self._indices:
            with cupy.cuda.Device(index):
                free.append(cupy.cuda.runtime.memGetInfo()[0])
        self.size = min(BYTES, min(free) // 8)
        self._source, self._target = [], []
        for index in self._indices:
            with cupy.cuda.Device(index):
                self._source.append(cupy.zeros(self.size, cupy.uint8))
                self._target.append(cupy.zeros(self.size, cupy.uint8))
                cupy.cuda.runtime.deviceSynchronize()
        with cupy.cuda.Device(second.index):
            self._other = cupy.cuda.Stream(non_blocking=True)
            self._arrived = cupy.cuda.Event(disable_timing=True)
        with cupy.cuda.Device(first.index):
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self._started = cupy.cuda.Event(disable_timing=True)

    def copy(self, source: int, target: int, size: int | None = None, stream: Any = None) -> None:
        """From end ``source`` (0 or 1) to end ``target``."""
        to, of = self._target[target].data.ptr, self._source[source].data.ptr
        here, there = self._indices[source], self._indices[target]
        size = self.size if size is None else size
        self._cupy.cuda.runtime.memcpyPeerAsync(to, there, of, here, size, (stream or self.stream).ptr)

    def both(self) -> None:
        """Both directions at once: the way back runs on the second GPU's stream, from our start to our end."""
        self._started.record(self.stream)
        self._other.wait_event(self._started)
        self.copy(0, 1)
        with self._cupy.cuda.Device(self._indices[1]):
            self.copy(1, 0, stream=self._other)
            self._arrived.record(self._other)
        self.stream.wait_event(self._arrived)

    def small(self) -> None:
        for _ in range(SMALL_COPIES):
            self.copy(0, 1, SMALL_BYTES)

    def arrives(self) -> bool:
        """Whether random data come out as they went in, in both directions."""
        cupy, size = self._cupy, min(CHECKED_BYTES, self.size)
        sent = np.random.default_rng(1).integers(0, 256, size, np.uint8)
        received = []
        for source, target in ((0, 1), (1, 0)):
            with cupy.cuda.Device(self._indices[source]):
                self._source[source][:size].set(sent)
                cupy.cuda.runtime.deviceSynchronize()
            with cupy.cuda.Device(self._indices[0]):
                self.copy(source, target, size)
                self.stream.synchronize()
            with cupy.cuda.Device(self._indices[target]):
                received.append(self._target[target][:size].get())
        return all(np.array_equal(sent, data) for data in received)


def _route(first: Gpu, second: Gpu) -> Route:
    if first.nvml is None or second.nvml is None:
        return Route("unknown")
    return route(first.nvml, first.nvml_handle, second.nvml_handle)


def _enable(first: Gpu, second: Gpu) -> bool:
    """Let each reach the other's memory where the hardware can; False: the driver stages copies in host memory."""
    import cupy

    runtime = cupy.cuda.runtime
    for here, there in ((first, second), (second, first)):
        if not runtime.deviceCanAccessPeer(here.index, there.index):
            return False
    for here, there in ((first, second), (second, first)):
        with cupy.cuda.Device(here.index):
            try:
                runtime.deviceEnablePeerAccess(there.index)
            except runtime.CUDARuntimeError as error:
                if error.status != ALREADY_ENABLED:
                    return False
    return True
