"""Recording CUDA graphs, against a stand-in of torch.cuda that keeps what was asked of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest

from apex4_probe.microbench.gemm_timing import GpuLostError, GraphRecorder

torch = pytest.importorskip("torch")


class FakeCuda:
    """``lost``: every synchronisation fails, as after an illegal address."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.lost = False
        self.clock_ms = 0.0
        self.stream = "default"

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    class Stream:
        def wait_stream(self, other: str) -> None:
            fake.log.append(f"wait for {other}")

        def synchronize(self) -> None:
            fake.synchronize()
            fake.log.append("synchronise")

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = fake.clock_ms
            fake.log.append(f"event on {fake.stream}")

        def synchronize(self) -> None:
            fake.synchronize()

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    class Graph:
        def capture_begin(self, pool: str, capture_error_mode: str) -> None:
            fake.log.append(f"begin in {pool}, {capture_error_mode}")

        def capture_end(self) -> None:
            fake.log.append("end")

        def replay(self) -> None:
            fake.clock_ms += 3.5
            fake.log.append(f"replay on {fake.stream}")

    @contextmanager
    def on(stream: object) -> Any:
        assert isinstance(stream, Stream)
        fake.stream = "its own stream"
        yield
        fake.stream = "default"

    members = {
        "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "stream": on, "graph_pool_handle": lambda: "pool",
        "current_stream": lambda: fake.stream, "synchronize": fake.synchronize,
    }  # fmt: skip
    for name, member in members.items():
        monkeypatch.setattr(torch.cuda, name, member)
    return fake


def test_every_call_is_warm_before_the_capture_and_replays_are_timed(cuda: FakeCuda) -> None:
    calls = [lambda: cuda.log.append("a"), lambda: cuda.log.append("b")]
    replay = GraphRecorder()(calls, 3)
    assert cuda.log == [
        "wait for default", "a", "b", "synchronise", "begin in pool, thread_local", "a", "b", "a", "end",
    ]  # fmt: skip
    cuda.log.clear()
    assert replay() == 3.5
    assert cuda.log == ["event on its own stream", "replay on its own stream", "event on its own stream"]


def test_a_call_that_cannot_be_captured_ends_the_capture(cuda: FakeCuda) -> None:
    turns = iter(range(10))

    def once() -> None:
        if next(turns):
            raise ValueError("operation not permitted when stream is capturing")

    with pytest.raises(ValueError, match="not permitted"):
        GraphRecorder()([once], 1)
    assert cuda.log[-2:] == ["begin in pool, thread_local", "end"]


def test_a_fault_on_the_gpu_is_told_from_a_call_that_failed(cuda: FakeCuda) -> None:
    def faulty() -> None:
        cuda.lost = True

    with pytest.raises(GpuLostError, match=r"can no longer be used by this process: CUDA error: an illegal memory"):
        GraphRecorder()([faulty], 1)


def test_a_fault_that_shows_when_the_graph_runs_is_one_too(cuda: FakeCuda) -> None:
    replay = GraphRecorder()([lambda: None], 1)
    cuda.lost = True
    with pytest.raises(GpuLostError, match="illegal memory"):
        replay()
