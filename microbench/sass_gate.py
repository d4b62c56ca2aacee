"""Believing a probe only if its hot loop holds the instruction it is named after, as often as its source says."""

from __future__ import annotations

from dataclasses import dataclass

from apex4_probe.kernels import sass

# Instructions of a hot loop besides the named one, as a share of it: the loop's own counter, compare and branch.
OVERHEAD = 0.15


@dataclass(frozen=True)
class Gate:
    """What the machine code says. ``verified``: named instruction present as often as expected, little else, no spills;
    for an emulated one: known to be absent. ``per_operation``: instructions that one operation costs, emulation
    included."""

    instruction: str  # the mnemonic that does the work, modifiers included
    verified: bool
    emulated: bool
    per_operation: float
    why: str = ""  # when not verified


def check(listing: sass.Listing, opcode: str, expected: int, *, overhead: float = OVERHEAD) -> Gate:
    """Hold ``expected`` instructions matching the regular expression ``opcode`` in the hot loop of ``listing``.

    None of them at all means that the compiler emulated the instruction: then ``emulated`` is set, and the gate is
    verified in the sense that this is known.
    """
    body = listing.hot_loop(opcode)
    counts = listing.count(body)
    total, found = sum(counts.values()), sass.matching(counts, opcode)
    if not body:
        return Gate(opcode, False, False, 0.0, "no loop in the machine code: the compiler removed it")
    if found == 0:
        return Gate(_workhorse(counts), True, True, total / expected)
    named = max((name for name in counts if sass.matching({name: 1}, opcode)), key=counts.__getitem__)
    why = ""
    if found != expected:
        why = f"{found} {named} in the hot loop where the source has {expected}"
    elif (others := total - found) > expected * overhead + 4:
        why = f"{others} other instructions beside {found} {named} in the hot loop"
    elif listing.has_local_memory():
        why = "registers spill to local memory"
    return Gate(named, not why, False, total / expected, why)


def _workhorse(counts: dict[str, int]) -> str:
    """The instruction that stands in for the named one: the MMA that emulation uses, or the most frequent."""
    mmas = [name for name in counts if "MMA" in name]
    return max(mmas or counts, key=counts.__getitem__)
