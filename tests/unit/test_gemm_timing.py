"""Interleaved and sustained timing on a GPU that is a list of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

import pytest

from apex4_probe.microbench.gemm_timing import (
    Call,
    Candidate,
    GpuLostError,
    Replay,
    Timing,
    interleaved,
    sustained,
)


@dataclass
class FakeGpu:
    """Calls advance a clock when they run; a graph runs them again. ``replayed``: the buffers of every replay."""

    now_us: float = 0.0
    replayed: list[list[str]] = field(default_factory=list)
    used: list[str] = field(default_factory=list)

    def call(self, name: str, cost_us: Callable[[], float]) -> Call:
        def run() -> None:
            self.used.append(name)
            self.now_us += cost_us()

        return run

    def record(self, calls: Sequence[Call], count: int) -> Replay:
        def replay() -> float:
            start = self.now_us
            self.used = []
            for i in range(count):
                calls[i % len(calls)]()
            self.replayed.append(self.used)
            return (self.now_us - start) / 1e3

        return replay


def steady(gpu: FakeGpu, key: str, buffers: int, cost_us: float) -> Candidate:
    return Candidate(key, [gpu.call(f"{key}{i}", lambda: cost_us) for i in range(buffers)])


def test_a_graph_goes_round_all_buffers_until_it_has_enough_work() -> None:
    gpu = FakeGpu()
    timings = interleaved([steady(gpu, "a", 3, 10.0)], rounds=2, graph_ms=0.1, record=gpu.record)
    assert timings == {"a": Timing(us=10.0, spread=0.0, samples=2)}
    # 0.1 ms is 10 calls of 10 us, rounded up to whole turns of three buffers; each of them equally often
    assert gpu.replayed[-1] == ["a0", "a1", "a2"] * 4


def test_a_long_call_still_visits_every_buffer_once() -> None:
    gpu = FakeGpu()
    interleaved([steady(gpu, "a", 5, 900.0)], rounds=1, graph_ms=0.5, record=gpu.record)
    assert gpu.replayed[-1] == ["a0", "a1", "a2", "a3", "a4"]


def test_a_graph_holds_four_calls_however_long_they_are() -> None:
    gpu = FakeGpu()
    interleaved([steady(gpu, "a", 2, 9000.0)], rounds=1, graph_ms=4.0, record=gpu.record)
    assert gpu.replayed[-1] == ["a0", "a1", "a0", "a1"]


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    gpu = FakeGpu()
    # two pilots, the uncounted round, three that count; four calls a graph
    a_costs = chain(repeat(7.0, 2), *(repeat(cost, 4) for cost in (50.0, 10.0, 11.0, 12.0)))
    b_costs = chain(repeat(7.0, 2), *(repeat(cost, 4) for cost in (99.0, 30.0, 20.0, 40.0)))

    def once(key: str, costs: Iterator[float]) -> Candidate:
        return Candidate(key, [gpu.call(key, lambda: next(costs))])

    timings = interleaved([once("a", a_costs), once("b", b_costs)], rounds=3, graph_ms=0.005, record=gpu.record)
    assert timings["a"].us == pytest.approx(11.0)
    assert timings["b"].us == pytest.approx(30.0)
    # percentiles of 20, 30, 40 by linear interpolation: 22 and 38
    assert timings["b"].spread == pytest.approx((38.0 - 22.0) / 30.0)
    assert timings["b"].samples == 3
    turns = [key for key, *_ in gpu.replayed[4:]]
    assert [set(turns[i : i + 2]) for i in range(0, 8, 2)] == [{"a", "b"}] * 4  # each once a round


def test_no_candidate_keeps_its_neighbour_and_every_process_has_the_same_order() -> None:
    def turns() -> list[str]:
        gpu = FakeGpu()
        interleaved([steady(gpu, key, 1, 5.0) for key in "abcde"], rounds=8, graph_ms=0.005, record=gpu.record)
        return [used[0][0] for used in gpu.replayed[10:]]  # two pilots each before

    order = turns()
    assert len(order) == 45 and order == turns()
    before_e = [order[i - 1] for i in range(1, 45) if order[i] == "e"]
    assert set(before_e) == set("abcd")
    assert max(before_e.count(key) for key in "abcd") <= 4


def test_what_fails_is_told_and_the_others_are_timed() -> None:
    gpu = FakeGpu()

    def broken() -> None:
        raise ValueError("tile does not fit\nsecond line")

    told: dict[str, str] = {}
    candidates = [steady(gpu, "a", 1, 5.0), Candidate("bad", [broken]), steady(gpu, "b", 1, 6.0)]
    timings = interleaved(candidates, rounds=2, graph_ms=0.01, record=gpu.record, refused=told.__setitem__)
    assert {key: timing.us for key, timing in timings.items()} == pytest.approx({"a": 5.0, "b": 6.0})
    assert told == {"bad": "tile does not fit"}


def test_without_a_listener_a_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("no kernel image")

    assert interleaved([Candidate("bad", [broken])], record=FakeGpu().record) == {}
    assert "bad was not timed: no kernel image" in caplog.text


def test_a_lost_gpu_ends_it_and_names_who_did_it() -> None:
    def record(_calls: Sequence[Call], _count: int) -> Replay:
        raise GpuLostError("illegal address")

    with pytest.raises(GpuLostError, match=r"^a: illegal address$"):
        interleaved([steady(FakeGpu(), "a", 1, 5.0)], record=record)


def test_sustained_counts_only_the_second_half() -> None:
    gpu = FakeGpu()
    costs = chain(repeat(100.0, 2), repeat(100.0, 8), repeat(200.0, 16))
    candidate = Candidate("a", [gpu.call("a", lambda: next(costs))])
    # two pilots; four calls a graph; 4000 us of GPU time are six replays: 400, 400, 800, 800, 800, 800
    assert sustained(candidate, seconds=4e-3, graph_ms=0.1, record=gpu.record) == Timing(200.0, 0.0, 3)


def test_sustained_raises_what_the_candidate_raises() -> None:
    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        sustained(Candidate("bad", [broken]), record=FakeGpu().record)


def test_a_gpu_lost_while_replaying_names_whose_turn_it_was() -> None:
    gpu = FakeGpu()
    turns = iter(range(100))

    def record(calls: Sequence[Call], count: int) -> Replay:
        replay = gpu.record(calls, count)

        def faulty() -> float:
            if next(turns) == 7:  # two pilots each, then the fourth turn: b's second
                raise GpuLostError("illegal address")
            return replay()

        return faulty

    with pytest.raises(GpuLostError, match=r"^b: illegal address$"):
        interleaved([steady(gpu, "a", 1, 5.0), steady(gpu, "b", 1, 5.0)], record=record)
