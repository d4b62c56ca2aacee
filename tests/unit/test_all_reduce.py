"""The all-reduce estimate: its arithmetic, and what is said when."""

from __future__ import annotations

import pytest
from recorded_host import link, unusable
from sample_profile import sample_profile

from apex4_probe.all_reduce import RingLink, all_reduce_note, ring_us, slowest
from apex4_probe.deployment import WorkloadRecord

PROFILE = sample_profile()


def workload(tensor_parallel: int) -> WorkloadRecord:
    return PROFILE.workload.model_copy(update={"tensor_parallel": tensor_parallel})


@pytest.mark.parametrize(
    ("payload", "gpus", "us"),
    [
        (16e6, 2, 2 * (8e6 / 100e3 + 2.0)),  # two steps of half the data at 100 GB/s, and two hops
        (16e6, 8, 14 * (2e6 / 100e3 + 2.0)),
        (0.0, 4, 12.0),
        (16e6, 1, 0.0),
    ],
)
def test_a_ring_takes_its_steps_and_its_share_of_the_data_in_each(payload: float, gpus: int, us: float) -> None:
    assert ring_us(payload, gpus, RingLink(100.0, 2.0)) == pytest.approx(us)


def test_the_slowest_link_with_both_directions_busy_decides() -> None:
    links = [link(1, both_gb_per_s=600.0, copy_us=2.0), link(2, both_gb_per_s=400.0, copy_us=1.5)]
    assert slowest(links) == RingLink(200.0, 2.0)
    assert slowest([]) is None


def test_for_one_gpu_a_plan_needs_none_and_says_so() -> None:
    told = all_reduce_note([link(1, both_gb_per_s=400.0)], 2, 4096, workload(1), PROFILE.layers)
    assert told is not None
    us = 2 * ring_us(2048 * 4096 * 2, 2, RingLink(200.0, 2.0))
    assert f"~{us:.0f} us for prefill at M = 2048 (16,384 KiB each)" in told
    assert "over 2 GPUs" in told and told.endswith("NCCL was not run. The plan is for one GPU and needs none.")


def test_for_shards_it_stands_beside_the_layers_of_a_block() -> None:
    told = all_reduce_note([link(1)], 2, 4096, workload(4), PROFILE.layers)
    assert told is not None
    block = sum(time.us for layer in PROFILE.layers for time in layer.times if time.m == 16)
    assert f"(128 KiB each, beside ~{block:.0f} us of linear layers)" in told
    assert "over 4 GPUs" in told and "with 4 such links" in told  # two are here
    assert told.endswith("The plan's times leave it out.")


def test_without_a_rate_nothing_is_estimated() -> None:
    assert all_reduce_note([unusable(1)], 2, 4096, workload(2), PROFILE.layers) is None
