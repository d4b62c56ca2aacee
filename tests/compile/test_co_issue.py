"""The co-issue loops: the machine code holds the MMAs, the named work and nothing that would blur the ratio."""

from collections import Counter
from functools import cache

import pytest

from apex4_probe.architecture import architecture
from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import compile_kernel
from apex4_probe.microbench import co_issue
from apex4_probe.microbench.co_issue import ALL_K, MIXES, SINGLE, Curve

DEFAULT = [
    (cc, curve) for cc in ("8.0", "8.6", "8.9", "9.0", "12.0") for curve in co_issue.curves(architecture(cc), False)
]
FULL_HOPPER = co_issue.curves(architecture("9.0"), True)


def label(value) -> str:
    if isinstance(value, Curve):
        return f"{value.loop.mma}-{value.loop.shape}-{value.placement}-{value.instruction}"
    return str(value)


@cache
def cubin(curve: Curve, target: str, with_mma: bool = True):
    return compile_kernel(curve.kernel(target, with_mma))


@pytest.mark.slow
@pytest.mark.parametrize(("cc", "curve"), DEFAULT, ids=label)
def test_default_curves_hold_their_loop(cc: str, curve: Curve):
    assert co_issue.verify(curve, cubin(curve, architecture(cc).target))


# One MMA type and width per placement and instruction: the others differ in the wrapper alone.
WIDE = [
    c for c in FULL_HOPPER if c.loop.mma == "wgmma.s8" and c.loop.wgmma.n == (128 if c.instruction in MIXES else 256)
]


@pytest.mark.slow
@pytest.mark.parametrize("curve", WIDE, ids=label)
def test_full_curves_on_hopper(curve: Curve):
    compiled = cubin(curve, "sm_90a")
    assert co_issue.verify(curve, compiled)
    listing = sass.disassemble(compiled.image)["probe"]
    outer = listing.count(listing.hot_loop("IGMMA"))
    assert sass.matching(outer, r"WARPGROUP\.DEPBAR") == 1, "one wait for the whole group: ptxas did not serialise it"


def test_verify_refuses_another_instruction():
    curve = next(c for c in FULL_HOPPER if c.instruction == "ffma" and c.placement == "same_warps")
    imad = Curve(curve.loop, curve.placement, "imad", curve.ks)
    assert not co_issue.verify(curve, cubin(imad, "sm_90a"))


def test_work_alone_has_no_mma():
    curve = next(c for c in FULL_HOPPER if c.instruction == "ffma" and c.placement == "at_issue")
    listing = sass.disassemble(cubin(curve, "sm_90a", with_mma=False).image)["probe"]
    assert not any("MMA" in instruction.opcode for instruction in listing.instructions)
    assert any(listing.count(body)["FFMA"] == curve.loop.accumulators for body in listing.loops())


def test_full_set_on_hopper_is_what_the_profile_promises():
    points = Counter((c.loop.mma, c.loop.shape, c.placement) for c in FULL_HOPPER if c.instruction in SINGLE)
    assert set(points.values()) == {len(SINGLE)}
    wgmma = {key for key in points if key[0].startswith("wgmma")}
    assert {(mma, shape.split("k")[0]) for mma, shape, _ in wgmma} == {
        (f"wgmma.{operand}", f"m64n{n}") for operand in ("s8", "f16") for n in (64, 128, 256)
    }
    assert {placement for *_, placement in wgmma} == {"other_warps", "at_issue", "after_complete", "no_handover"}
    assert {placement for mma, _, placement in points if mma.startswith("mma")} == {"same_warps", "other_warps"}
    assert all(c.ks == ALL_K for c in FULL_HOPPER if c.instruction in SINGLE)


def test_architectures_without_int8_mma_have_no_curves_and_native_int4_has_its_own():
    assert co_issue.curves(architecture("7.5"), True) == ()
    assert {c.loop.operand for c in co_issue.curves(architecture("8.0"), True)} == {"s8", "f16", "s4"}
    assert {c.loop.operand for c in co_issue.curves(architecture("12.0"), True)} == {"s8", "f16"}
