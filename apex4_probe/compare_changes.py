"""Two profiles of one device: what changed, and whether it is more than noise explains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from apex4_probe import verification
from apex4_probe.compare_records import Change, Difference, Pair, Significance, Subject
from apex4_probe.deployment import Measurement, Profile

# "Cards of one name differ by 4 %" in T op/s, cycles by 0.1 % (H100 80GB HBM3, measured by this project); the upper end
# of the 4 to 5 % that the planner's margin reckons with.
CARD_TOLERANCE = 0.05
ONE_CARD = (
    f"A profile holds no serial number, so these may be one card twice or two cards of one name. Two such cards differ "
    f"by 4 to 5 % per second: a change is called beyond cards only where it exceeds the noise and {CARD_TOLERANCE:.0%}."
)
PREDICTED = (
    "One of the two is predicted: the ratios below are what the prediction missed, not a change, and have no spread to "
    "be judged by."
)
BOTH_PREDICTED = "Both are predicted: nothing that was measured can have changed."


def pairs(subjects: Sequence[Subject]) -> list[Pair]:
    """Every two profiles of one device (name and MIG slice), in the order given."""
    return [_pair(one, other) for one, other in combinations(subjects, 2) if one.device == other.device]


def _pair(first: Subject, second: Subject) -> Pair:
    origins = {first.profile.origin, second.profile.origin}
    differences = _differences(first, second)
    if origins == {"measured"}:
        return Pair(first, second, ONE_CARD, differences, measured_changes(first.profile, second.profile))
    if origins == {"predicted"}:
        return Pair(first, second, BOTH_PREDICTED, differences, ())
    return Pair(first, second, PREDICTED, differences, _prediction_error(first, second))


def _differences(first: Subject, second: Subject) -> tuple[Difference, ...]:
    """Of device and environment; between a measured and a predicted profile there would be nothing but rounding."""
    if first.profile.origin != second.profile.origin:
        return ()
    found = verification.compare(first.profile, second.profile.device, second.profile.environment)
    shown = [item for item in (*found.hard, *found.soft) if item.field.startswith(("device.", "environment."))]
    versions = first.profile.tool_version, second.profile.tool_version
    differences = [Difference(item.field, item.profile_value, item.machine_value, item.why) for item in shown]
    if versions[0] != versions[1]:
        differences.append(Difference("tool_version", *versions, "its probes and rules may differ"))
    return tuple(differences)


def measured_changes(first: Profile, second: Profile) -> tuple[Change, ...]:
    """Every figure that both measured, per second and per clock, second over first."""
    spreads = _spreads(first.measurements), _spreads(second.measurements)
    changes = []
    for drift in verification.drift(first.measurements, second.measurements):
        per_clock = drift.unit.endswith("/clk/SM")
        floor = verification.PER_CLOCK_FLOOR if per_clock else verification.PER_SECOND_FLOOR
        bound = max(floor, (spreads[0].get(drift.name, 0.0) + spreads[1].get(drift.name, 0.0)) / 2)
        beyond = bound + (0.0 if per_clock else CARD_TOLERANCE)
        if not drift.significant:
            changes.append(_change(drift, bound, "same", f"within the {bound:.1%} that two runs may differ by"))
        elif drift.ratio is None:
            changes.append(_change(drift, None, "changed", drift.why))
        elif abs(drift.ratio - 1) > beyond:
            why = f"more than the {beyond:.1%} that noise{'' if per_clock else ' and two cards of one name'} explain"
            changes.append(_change(drift, bound, "beyond cards", why))
        else:
            why = f"more than the {bound:.1%} of noise, less than the {beyond:.1%} that two cards may differ by"
            changes.append(_change(drift, bound, "changed", why))
    return tuple(changes)


def _change(drift: verification.Drift, bound: float | None, significance: Significance, why: str) -> Change:
    return Change(drift.name, drift.unit, drift.before, drift.now, drift.ratio, bound, significance, why)


def _spreads(measurements: Sequence[Measurement]) -> dict[str, float]:
    return {" ".join(part for part in (m.name, m.operands, m.regime) if part): m.spread or 0.0 for m in measurements}


def _prediction_error(first: Subject, second: Subject) -> tuple[Change, ...]:
    """Primary figures that both hold, measured over predicted whichever was given first."""
    one, other = _primary(first), _primary(second)
    changes = []
    for name in [name for name in one if name in other]:
        before, after = one[name], other[name]
        if before.value and after.value and before.unit == after.unit:
            ratio = after.value / before.value
            why = "predicted first" if first.profile.origin == "predicted" else "measured first"
            changes.append(Change(name, after.unit, before.value, after.value, ratio, None, "prediction", why))
    return tuple(changes)


def _primary(subject: Subject) -> dict[str, Measurement]:
    return {
        figure.name: figure
        for figure in subject.profile.measurements
        if figure.operands != "zeros" and figure.regime != "sustained" and figure.value and not figure.emulated
    }
