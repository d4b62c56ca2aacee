"""Why figures of one profile fall short of another's, as far as the profiles' own fields tell.

A cause is named where a record shows it (throttle reasons, clocks, power limit, temperature, another process, the
driver), never guessed. Pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from statistics import median

from apex4_probe.deployment import Measurement, Profile

HOTTER_C = 10.0  # an H100 moves by as much over the bursts of one run (52 to 62 °C, measured): less says nothing
THERMAL = frozenset({"hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake"})
CLOCK_EXPLAINS = 0.02  # left of a ratio once the clocks are divided out: twice the floor of a figure per clock


def causes(profile: Profile, reference: Profile, short: Collection[str], there: str) -> tuple[str, ...]:
    """Clauses that explain why the figures named ``short`` (as ``figure_name`` has them) are below ``reference``'s.

    ``there``: where or when that was, after its figure: "on GPU 0".
    """
    figures = [figure for figure in profile.measurements if figure_name(figure) in short]
    if not figures:
        return ()
    before = {figure_name(figure): figure for figure in reference.measurements}
    busy = [warning for warning in profile.provenance.warnings if " is busy: " in warning]
    return (
        *_clock(figures, before, there),
        *_power(profile, reference, figures, there),
        *_heat(figures, before, there),
        *(f"other processes: {warning}" for warning in busy),
        *_host_link(figures, before, there),
        *_set_up(profile, reference, there),
    )


def figure_name(figure: Measurement) -> str:
    """As ``verification.drift`` names it."""
    return " ".join(part for part in (figure.name, figure.operands, figure.regime) if part)


def _clock(figures: Sequence[Measurement], before: dict[str, Measurement], there: str) -> Iterable[str]:
    """Figures whose shortfall is the SM clock's, as far as it was read."""
    explained = []
    for figure in figures:
        known = before.get(figure_name(figure))
        if not (known and figure.value and known.value and figure.sm_clock_mhz and known.sm_clock_mhz):
            continue
        ratio, clocks = figure.value / known.value, figure.sm_clock_mhz / known.sm_clock_mhz
        if clocks < 1 - CLOCK_EXPLAINS and abs(ratio / clocks - 1) <= CLOCK_EXPLAINS:
            explained.append(clocks)
    if explained:
        yield (
            f"clock: the SM ran at {median(explained):.2f} times the clock {there}, which accounts for "
            f"{len(explained)} of the {len(figures)} shortfalls"
        )


def _power(profile: Profile, reference: Profile, figures: Sequence[Measurement], there: str) -> Iterable[str]:
    here, other = profile.device.power_limit_w, reference.device.power_limit_w
    if here is not None and other is not None and here < other:
        yield f"power limit: {here:g} W here, {other:g} W {there}"
    capped = sum("power_cap" in figure.throttle for figure in figures)
    if capped:
        yield f"power cap: {capped} of the {len(figures)} ran into it"


def _heat(figures: Sequence[Measurement], before: dict[str, Measurement], there: str) -> Iterable[str]:
    throttled = sum(bool(THERMAL & set(figure.throttle)) for figure in figures)
    discarded = sum(figure.discarded for figure in figures)
    if throttled or discarded:
        yield (
            f"heat: {throttled} of the {len(figures)} ran under a thermal or hardware slowdown, and {discarded} "
            "samples were discarded for one"
        )
        return
    hotter = [
        (figure.temperature_c, known.temperature_c)
        for figure in figures
        if (known := before.get(figure_name(figure))) is not None
        and figure.temperature_c is not None
        and known.temperature_c is not None
        and figure.temperature_c > known.temperature_c + HOTTER_C
    ]
    if hotter:
        here, other = max(hotter, key=lambda pair: pair[0] - pair[1])
        yield f"heat: up to {here:.0f} °C here, {other:.0f} °C {there}"


def _host_link(figures: Sequence[Measurement], before: dict[str, Measurement], there: str) -> Iterable[str]:
    for figure in figures:
        known = before.get(figure_name(figure))
        here, other = pcie(figure), pcie(known) if known else ""
        if here and other and here != other:
            yield f"host link: {here} here, {other} {there}"
            return


def _set_up(profile: Profile, reference: Profile, there: str) -> Iterable[str]:
    here, other = profile.environment.driver, reference.environment.driver
    if here and other and here != other:
        yield f"driver: {here} here, {other} {there}"
    if profile.device.ecc and reference.device.ecc is False:
        yield f"ECC: on here, off {there}; on GDDR parts it costs memory bandwidth"


def pcie(figure: Measurement) -> str:
    """``PCIe 5 x16``, as the link was trained while ``figure`` was measured; empty where it does not say."""
    generation, width = (figure.configuration.get(key) for key in ("pcie_generation", "pcie_width"))
    return f"PCIe {generation} x{width}" if generation and width else ""
