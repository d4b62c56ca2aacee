"""``run`` over two GPUs of one host: the same figures as each alone, the link between them, and the time it takes.

Prints what it finds, for ``pytest -rP``. Five runs' worth of GPU time: 8 minutes on two H100s.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apex4_probe.deployment import Profile
from apex4_probe.discovery import survey
from apex4_probe.errors import ApexError
from apex4_probe.host_measure import Found, measure_together
from apex4_probe.host_records import Host
from apex4_probe.profile_file import load_profile

SAME_PER_CLOCK = 0.01  # of two runs on one card, whatever ran on the other meanwhile
OVERHEAD_S = 30.0  # of a run over two, beyond two runs


def whole_gpus() -> list[int]:
    try:
        return [gpu.index for gpu in survey("all").gpus if gpu.device.mig is None]
    except ApexError:
        return []


pytestmark = pytest.mark.skipif(
    len(whole_gpus()) < 2, reason=f"needs two whole GPUs of one host; here are {len(whole_gpus())}"
)


def run(out: Path, cache: Path, device: str) -> float:
    """Seconds of ``apex4-probe run --device DEVICE``, as its user waits."""
    start = time.monotonic()
    command = [sys.executable, "-c", "from apex4_probe.cli import main; main()", "run", "--require-gpu"]
    answer = subprocess.run(
        [*command, "--device", device, "--out", str(out)],
        env={**os.environ, "APEX4_PROBE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(answer.stdout[-6000:])
    assert answer.returncode == 0, answer.stderr
    return time.monotonic() - start


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[dict[int, Profile], dict[int, Profile], Host, float, float]:
    """Profiles of each GPU by itself and in one run, the host's record, seconds of a single run and of that one."""
    folder = tmp_path_factory.mktemp("several")
    cache = folder / "cache"
    first, second = whole_gpus()[:2]
    run(folder / "first", cache, str(first))  # compiles everything
    single_s = run(folder / "second", cache, str(second))
    both_s = run(folder / "both", cache, f"{first},{second}")
    alone = {
        first: load_profile(folder / "first" / "profile.yaml"),
        second: load_profile(folder / "second" / "profile.yaml"),
    }
    both = {index: load_profile(folder / "both" / f"gpu{index}" / "profile.yaml") for index in alone}
    host = Host.model_validate_json((folder / "both" / "host.json").read_text())
    return alone, both, host, single_s, both_s


def test_per_clock_each_gpu_is_what_it_is_alone(runs):
    alone, both, _, _, _ = runs
    for index, profile in both.items():
        before = {(m.name, m.operands, m.regime): m for m in alone[index].measurements}
        ratios = {
            f"{m.name} {m.operands or ''} {m.regime}": m.per_clk_per_sm
            / before[m.name, m.operands, m.regime].per_clk_per_sm
            for m in profile.measurements
            if m.per_clk_per_sm and m.name.startswith(("mma.", "wgmma.", "ffma", "i2f", "imad"))
        }
        assert len(ratios) >= 8
        worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
        print(f"GPU {index}: {len(ratios)} figures per clock, furthest off {worst} at {ratios[worst]:.4f}")
        assert all(ratio == pytest.approx(1.0, abs=SAME_PER_CLOCK) for ratio in ratios.values()), ratios


def test_the_link_is_measured_and_stands_in_both_profiles(runs):
    _, both, host, _, _ = runs
    assert host.links_failed == [] and host.poor_links == []
    (pair,) = host.links
    link = pair.link
    print(json.dumps(link.model_dump(), indent=1))
    assert link.unsupported is None and link.origin == "measured"
    assert link.path != "unknown"
    assert link.to_peer_gb_per_s >= 5.0 and link.from_peer_gb_per_s >= 5.0  # four lanes of PCIe 4 bring 7
    assert max(link.to_peer_gb_per_s, link.from_peer_gb_per_s) <= link.both_gb_per_s * 1.05
    assert link.both_gb_per_s <= (link.to_peer_gb_per_s + link.from_peer_gb_per_s) * 1.05
    assert link.copy_us < 100
    if link.path == "nvlink" and both[pair.first].device.compute_capability == "9.0":
        assert link.nvlinks >= 12
        assert link.to_peer_gb_per_s >= 0.7 * 25.0 * link.nvlinks  # 25 GB/s a link and direction (NVLink 4)
    first, second = both.values()
    assert first.links[0].to_peer_gb_per_s == pytest.approx(second.links[0].from_peer_gb_per_s)
    assert any(note.startswith("All-reduce, estimated") for note in first.notes)
    print(host.all_reduce)


def test_the_host_link_is_measured(runs):
    _, both, _, _, _ = runs
    for index, profile in both.items():
        found = {m.name: m for m in profile.measurements if m.name.startswith("host.")}
        print(f"GPU {index}:", {name: (m.value, m.configuration) for name, m in found.items()})
        assert set(found) == {"host.to_device", "host.from_device"}
        assert all(m.value and m.value > 2.0 for m in found.values())


def test_equal_cards_are_told_apart_only_by_more_than_their_spread(runs):
    _, _, host, _, _ = runs
    for odd in host.odd:
        print(f"GPU {odd.index} beside GPU {odd.reference}:", odd.model_dump_json(indent=1))
        for figure in odd.figures:
            assert abs(figure.ratio - 1) > figure.bound


def test_both_take_no_longer_than_two_runs_and_half_a_minute(runs):
    _, _, _, single_s, both_s = runs
    print(f"one GPU {single_s:.1f} s, both {both_s:.1f} s: {both_s - 2 * single_s:+.1f} s beyond twice one")
    assert both_s <= 2 * single_s + OVERHEAD_S


def test_together_beside_alone():
    indices, found = whole_gpus()[:2], Found()
    measure_together(indices, found, lambda step, share: print(f"{share:.2f} {step}"))
    assert found.together_failed == {}
    for index in indices:
        roles = {pair.role: pair for pair in found.together[index]}
        assert {"copy", "host"} <= set(roles) and {"int8", "fp16"} & set(roles)
        for role, pair in roles.items():
            print(
                f"GPU {index} {role}: {pair.alone.value:.1f} → {pair.together.value:.1f} {pair.alone.unit}, "
                f"{pair.ratio:.3f}; MHz {pair.alone.sm_clock_mhz} → {pair.together.sm_clock_mhz}; "
                f"W {pair.alone.power_w} → {pair.together.power_w}; {pair.together.throttle}"
            )
            assert 0.2 < pair.ratio < 1.1
        assert roles["copy"].ratio == pytest.approx(1.0, abs=0.1)  # each has its own memory
