"""What an all-reduce after each row-parallel layer would take over the links that were measured: an estimate in words.

A transformer block that is split over n GPUs (Megatron-LM's scheme: o and down along K) adds up M x hidden sums twice.
A ring sends 2 (n - 1) / n of them over every link, in 2 (n - 1) steps (Patarasuk and Yuan, Bandwidth optimal all-reduce
algorithms, 2009; NCCL's own "bus bandwidth" is defined by it). It is no benchmark of NCCL, which has better ways than a
ring for few tokens, and through NVSwitches for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apex4_probe.deployment import LayerPlan, PeerLink, WorkloadRecord

BYTES = 2  # of a sum: FP16 or BF16, as vLLM and Megatron-LM send them
PER_BLOCK = 2  # after o and after down


@dataclass(frozen=True)
class RingLink:
    """The slowest link of a ring. ``gb_per_s``: one direction, with the other one busy, as in a ring it is."""

    gb_per_s: float
    hop_us: float


def slowest(links: Sequence[PeerLink]) -> RingLink | None:
    """Of the links that have rates; None: none has."""
    rated = [(link.both_gb_per_s / 2, link.copy_us) for link in links if link.both_gb_per_s and link.copy_us]
    if not rated:
        return None
    return RingLink(min(rate for rate, _ in rated), max(hop for _, hop in rated))


def ring_us(payload_bytes: float, gpus: int, link: RingLink) -> float:
    """Microseconds of a ring all-reduce of ``payload_bytes`` over ``gpus`` GPUs."""
    steps = 2 * (gpus - 1)
    return steps * (payload_bytes / gpus / (link.gb_per_s * 1e3) + link.hop_us)  # GB/s are 10^3 bytes per us


def all_reduce_note(
    links: Sequence[PeerLink], here: int, hidden: int, workload: WorkloadRecord, layers: Sequence[LayerPlan]
) -> str | None:
    """One paragraph for the reader of a plan; None where no link has a rate. ``here``: GPUs that the links connect.

    ``layers``: of the plan, one rank's. Their time stands beside it where the plan is for several shards.
    """
    link = slowest(links)
    if link is None:
        return None
    shards = workload.tensor_parallel
    gpus = shards if shards > 1 else here
    parts = []
    for point in workload.points:
        payload = point.m * hidden * BYTES
        us = PER_BLOCK * ring_us(payload, gpus, link)
        beside = ""
        if shards > 1 and (block := _block_us(layers, point.m)):
            beside = f", beside ~{block:.0f} us of linear layers"
        parts.append(f"~{us:.0f} us for {point.phase} at M = {point.m} ({payload / 2**10:,.0f} KiB each{beside})")
    assumed = f", with {gpus} such links" if gpus > here else ""
    planned = "The plan's times leave it out." if shards > 1 else "The plan is for one GPU and needs none."
    return (
        f"All-reduce, estimated: over {gpus} GPUs a block adds up its outputs {PER_BLOCK} times. As a ring over the "
        f"slowest link measured here ({link.gb_per_s:.0f} GB/s a direction with both busy, {link.hop_us:.1f} us a "
        f"copy{assumed}) that takes {'; '.join(parts)}, per block. NCCL was not run. {planned}"
    )


def _block_us(layers: Sequence[LayerPlan], m: int) -> float:
    return sum(time.us for layer in layers for time in layer.times if time.m == m)
