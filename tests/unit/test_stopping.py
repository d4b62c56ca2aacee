"""The stopping rule, fed with synthetic series."""

import itertools

import pytest

from apex4_probe.microbench.stopping import MAX_SAMPLES, MIN_SAMPLES, StoppingRule, spread


def feed(rule: StoppingRule, cycles, walls) -> int:
    for count, (c, w) in enumerate(zip(cycles, walls, strict=False), start=1):
        rule.add(c, w)
        if rule.done:
            return count
    raise AssertionError("the rule never stopped")


def test_steady_series_stops_at_the_minimum():
    rule = StoppingRule(budget_s=10)
    assert feed(rule, itertools.repeat(1000.0), itertools.repeat(1e-3)) == MIN_SAMPLES
    assert rule.steady


def test_settling_clock_is_waited_for():
    """Wall time falls for forty samples while cycles are steady: the standard error keeps the rule sampling."""
    walls = [2e-3 - 2e-5 * min(i, 40) for i in range(1000)]
    rule = StoppingRule(budget_s=10)
    stopped = feed(rule, itertools.repeat(1000.0), walls)
    assert stopped > 40
    assert rule.steady


def test_noise_in_cycles_is_not_steady_however_long_it_lasts():
    noisy = itertools.cycle([1000.0, 1100.0])
    rule = StoppingRule(budget_s=0.05)
    assert feed(rule, noisy, itertools.repeat(1e-3)) == 50  # the budget of 50 ms, a millisecond each
    assert not rule.steady


def test_budget_never_cuts_below_the_minimum():
    rule = StoppingRule(budget_s=1e-9)
    noisy = itertools.cycle([1000.0, 1100.0])
    assert feed(rule, noisy, itertools.repeat(1e-3)) == MIN_SAMPLES


def test_number_of_samples_is_bounded():
    rule = StoppingRule(budget_s=1e9)
    assert feed(rule, itertools.cycle([1.0, 2.0]), itertools.repeat(1e-6)) == MAX_SAMPLES


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5.0], 0.0), ([1.0, 1.0, 1.0], 0.0), ([float(v) for v in range(1, 12)], 8 / 6)],
)
def test_spread_is_the_inner_80_per_cent_over_the_median(values, expected):
    assert spread(values) == pytest.approx(expected)
