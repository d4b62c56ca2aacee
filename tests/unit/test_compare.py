"""Comparison records: rho and verdicts of known GPUs, rates, regions, costs, two profiles of one device."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
from hostile_profile import empty_profile, hostile_profile
from sample_profile import predicted_profile, sample_device, sample_measurements, sample_profile

from apex4_probe import compare_changes
from apex4_probe.compare_job import Wishes, _compared, compare
from apex4_probe.compare_records import Change, Comparison, Entry
from apex4_probe.compare_regions import RHOS
from apex4_probe.comparison import compare_profiles, labelled, tables_of
from apex4_probe.datasheets import datasheets
from apex4_probe.deployment import Profile
from apex4_probe.flow import Request, read
from apex4_probe.reports import wording
from apex4_probe.shipped import shipped_profiles

QUESTION = read(Request())


@cache
def everything() -> Comparison:
    return _compared(Wishes(every=True, prices=("RTX 3090=0.36",)), [])


def compared(*profiles: Profile) -> Comparison:
    return compare_profiles(labelled([(p, "given") for p in profiles]), QUESTION.workload, QUESTION.model)


def entry(device: str, origin: str = "predicted") -> Entry:
    return next(
        e
        for e in everything().entries
        if device in e.subject.profile.device.name and e.subject.profile.origin == origin
    )


def verdict(decision: object) -> str:
    return wording.verdict_word(decision.format, decision.granularity)  # type: ignore[attr-defined]


def test_all_devices_and_all_measured_profiles_are_there_once() -> None:
    kinds = [(e.subject.profile.device.name, e.subject.profile.origin) for e in everything().entries]
    assert len(kinds) == len(set(kinds)) == len(datasheets()) + len(shipped_profiles())
    labels = [e.subject.label for e in everything().entries]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("device", "rho", "plain"),
    [
        ("RTX 3090", 16, "fine"),
        ("A40", 16, "fine"),
        ("L40S", 8, "fine"),
        ("A100-SXM4-80GB", 64, "mixed"),  # the paper: g128 is 0.43x FP16 there, mixed 1.2 to 1.4x
        ("RTX 4090", 16, "fine"),
        ("T4", 32, "stay in FP16"),
    ],
)
def test_rho_and_the_papers_verdicts(device: str, rho: float, plain: str) -> None:
    found = entry(device)
    assert found.answer is not None
    assert found.subject.profile.rho["int4"].datasheet == pytest.approx(rho, rel=0.005)
    assert verdict(found.answer.plain) == plain


def test_group_scales_by_the_plain_strategy_gain_nothing_on_an_a100() -> None:
    answer = entry("A100-SXM4-80GB").answer
    assert answer is not None
    g128 = {g.strategy: g.speedup for g in answer.gains if (g.format, g.granularity) == ("w4a4", "g128")}
    assert g128["i2f_fmul_ffma"] < 1
    assert g128["magic_ffma2"] > QUESTION.workload.min_speedup
    assert all(gain.low <= gain.speedup <= gain.high for gain in answer.gains)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("L40S", {"datasheet anomaly"}),
        ("RTX 4090", set()),
        ("A100-SXM4-80GB", set()),
        ("H20", {"INT4 emulated"}),
        ("RTX 5090", {"INT4 emulated", "block scales in hardware", "no kernels"}),
    ],
)
def test_flags(device: str, words: set[str]) -> None:
    assert {flag.word for flag in entry(device).flags} == words


def test_the_l40s_flag_gives_both_figures() -> None:
    assert (
        entry("L40S")
        .flags[0]
        .sentence.startswith("Its datasheet lists 733 INT4 TOPS, the architecture's rate gives 1466.")
    )


def test_emulated_int4_is_no_rate_and_no_rho() -> None:
    found = entry("H100", "measured")
    int4 = next(rate for rate in found.rates if rate.kind == "INT4")
    assert (int4.tops, int4.per_clk, int4.per_watt) == (None, None, None)
    assert "no IMMA.16864.S4.S4" in int4.absent


def test_per_watt_takes_throughput_and_power_of_the_same_sustained_load() -> None:
    found = compared(sample_profile(), predicted_profile()).entries
    measured = {rate.kind: rate for rate in found[0].rates}
    predicted = {rate.kind: rate for rate in found[1].rates}
    sustained = next(m for m in sample_measurements() if m.regime == "sustained" and m.name == "wgmma.s8.m64n256k32.ss")
    assert sustained.value is not None
    assert (measured["INT8"].watts, measured["INT8"].watt_tops) == (698.0, sustained.value)
    assert measured["INT8"].per_watt == pytest.approx(sustained.value / 698.0)
    assert measured["INT8"].watts_measured and not measured["FP32"].watts_measured
    assert (measured["FP32"].watts, measured["FP32"].watts_are) == (700, "datasheet power")
    assert (predicted["INT8"].watts, predicted["INT8"].watts_are) == (700, "datasheet power")
    unlisted = compared(sample_profile(device=sample_device(name="Unlisted", power_limit_w=123.0))).entries[0]
    assert [(r.watts, r.watts_are) for r in unlisted.rates if r.kind == "FP32"] == [(123.0, "power limit")]


def test_regions_fill_every_speed_up_in_the_order_of_falling_quality() -> None:
    order = {"w4a16": 0, "w4a4": 1, "fp16": 2}
    for strategies in ("plain", "all"):
        for phase in ("decode", "prefill"):
            for rho in RHOS:
                stairs = [
                    r for r in everything().map.regions if (r.strategies, r.phase, r.rho) == (strategies, phase, rho)
                ]
                assert stairs[0].low == 1 and stairs[-1].high == math.inf
                assert all(one.high == other.low for one, other in pairwise(stairs))
                assert [order[r.format] for r in stairs] == sorted(order[r.format] for r in stairs)
                assert stairs[-1].format == "fp16"


def test_regions_say_what_the_planner_says_of_the_reference() -> None:
    """The A100 itself lies at rho 64: its own speed-up of g128 is where the fine region ends."""
    at = next(
        r
        for r in everything().map.regions
        if (r.strategies, r.phase, r.granularity) == ("all", "prefill", "g128") and math.isclose(r.rho, 64)
    )
    from apex4_probe.datasheets import find
    from apex4_probe.flow import predict, read

    request = Request(workload="prefill:2048", format="w4a4", min_speedup=at.high - 0.01)
    assert predict(find("A100"), read(request), request).decision.granularity == "g128"
    request = Request(workload="prefill:2048", format="w4a4", min_speedup=at.high + 0.01)
    assert predict(find("A100"), read(request), request).decision.granularity != "g128"


def test_fine_reaches_further_where_rho_is_small() -> None:
    reach = [
        r.high
        for r in everything().map.regions
        if (r.strategies, r.phase, r.format, r.granularity) == ("plain", "prefill", "w4a4", "g128")
    ]
    assert len(reach) > 5 and reach == sorted(reach, reverse=True)


def test_times_are_sums_over_all_layers() -> None:
    answer = entry("RTX 3090").answer
    assert answer is not None
    for index, time in enumerate(answer.times):
        assert time.us == pytest.approx(sum(layer.count * layer.times[index].us for layer in answer.layers))
        assert time.us_low <= time.us <= time.us_high < time.us_fp16


def test_cost_of_a_million_tokens() -> None:
    found = entry("RTX 3090")
    assert found.answer is not None
    decode, cost = found.answer.times[0], found.costs[0]
    assert (cost.phase, cost.m, cost.usd_per_hour) == ("decode", 16, 0.36)
    seconds = 1e6 / 16 * decode.us * 1e-6
    assert cost.usd == pytest.approx(seconds * 0.36 / 3600)
    assert cost.usd_fp16 == pytest.approx(1e6 / 16 * decode.us_fp16 * 1e-6 * 0.36 / 3600)
    assert [e.subject.label for e in everything().entries if e.costs] == [found.subject.label]


def _again(factor: float, per_clock: float = 1.0, spread: float = 0.004) -> Profile:
    """The sample's card measured again, INT8 ``factor`` as fast."""
    figures = [
        m.model_copy(
            update={
                "value": m.value * factor,
                "per_clk_per_sm": (m.per_clk_per_sm or 0) * per_clock,
                "peak_fraction": None,
                "spread": spread,
            }
        )
        if m.name == "mma.s8.m16n8k32" and m.value
        else m
        for m in sample_measurements()
    ]
    return sample_profile(measurements=figures)


def _change(second: Profile, unit: str) -> Change:
    (pair,) = compare_changes.pairs(labelled([(sample_profile(), "a"), (second, "b")]))
    return next(c for c in pair.changes if c.figure.startswith("mma.s8.m16n8k32") and c.unit == unit)


@pytest.mark.parametrize(
    ("factor", "spread", "significance"),
    [
        (0.95, 0.004, "same"),  # two runs on one card differ by as much
        (0.92, 0.004, "changed"),  # more than noise, and yet what two cards of one name may differ by
        (0.88, 0.004, "beyond cards"),  # more than 6 % of noise and 5 % between cards
        (0.88, 0.25, "same"),  # noisy: half of both spreads added is 12.7 %
    ],
)
def test_significance_per_second(factor: float, spread: float, significance: str) -> None:
    change = _change(_again(factor, spread=spread), "TOPS")
    assert change.significance == significance
    assert change.ratio == pytest.approx(factor)
    assert change.bound == pytest.approx(max(0.06, (0.004 + spread) / 2))


@pytest.mark.parametrize(("factor", "significance"), [(0.995, "same"), (0.97, "beyond cards")])
def test_cards_do_not_differ_per_clock(factor: float, significance: str) -> None:
    assert _change(_again(1.0, per_clock=factor), "MAC/clk/SM").significance == significance


def test_two_cards_of_one_name_are_named_as_such_and_prediction_is_no_change() -> None:
    subjects = labelled([(sample_profile(), "a"), (_again(0.9), "b"), (predicted_profile(), "c")])
    assert [s.label for s in subjects] == [
        "H100 80GB HBM3, measured #1",
        "H100 80GB HBM3, measured #2",
        "H100 80GB HBM3, predicted",
    ]
    same, *against = compare_changes.pairs(subjects)
    assert "two cards of one name" in same.caution and "5%" in same.caution
    assert len(against) == 2
    assert {c.significance for pair in against for c in pair.changes} == {"prediction"}
    other = sample_profile(environment=sample_profile().environment.model_copy(update={"driver": "999.1"}))
    (pair,) = compare_changes.pairs(labelled([(sample_profile(), "a"), (other, "b")]))
    assert [(d.field, d.first, d.second) for d in pair.differences] == [("environment.driver", "580.95.05", "999.1")]


def test_a_mig_slice_is_another_device() -> None:
    slice_ = sample_profile(device=sample_device(mig="1g.10gb"))
    assert compare_changes.pairs(labelled([(sample_profile(), "a"), (slice_, "b")])) == []


def test_profiles_that_cannot_be_planned_keep_their_row_and_say_why() -> None:
    unknown = sample_profile(device=sample_device(name="Future", compute_capability="99.0"))
    found = compared(unknown, empty_profile(), hostile_profile()).entries
    assert found[0].answer is None and "99.0" in found[0].unplanned
    assert found[1].answer is None and "bandwidth" in found[1].unplanned
    assert len(found) == 3


def test_frame_has_a_row_a_profile_and_the_datas_numbers() -> None:
    frame = compare(["A100", "RTX 3090", sample_profile()])
    assert list(frame.index) == ["H100 80GB HBM3", "A100-SXM4-80GB", "GeForce RTX 3090"]
    assert frame.loc["A100-SXM4-80GB", "rho_int4_datasheet"] == 64
    assert frame.loc["H100 80GB HBM3", "origin"] == "measured"
    assert frame.loc["GeForce RTX 3090", "plain_granularity"] == "g128"
    assert set(tables_of(everything())["profiles"][0]) >= set(frame.columns)


def test_another_model_is_planned_from_the_same_measurements() -> None:
    small, large = compare(["A40", "RTX 3090"]), compare(["A40", "RTX 3090"], model="qwen2.5-0.5b")
    assert small.loc["A40", "rho_int4_datasheet"] == large.loc["A40", "rho_int4_datasheet"]
    assert small.loc["A40", "w4a4_speedup"] != large.loc["A40", "w4a4_speedup"]
