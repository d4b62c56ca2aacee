"""Reading nvdisasm's text: loops, counts, calls, spills, and holes in the addresses."""

from collections import Counter

import pytest

from apex4_probe.kernels.sass import DisassemblyError, matching, parse
from apex4_probe.microbench.sass_gate import check


def listing(body: str, kernel: str = "probe"):
    """A listing with continuous addresses from one instruction or label a line."""
    lines, address = [f".text.{kernel}:"], 0
    for line in body.strip().splitlines():
        text = line.strip()
        if text.endswith(":"):
            lines.append(text)
        else:
            lines.append(f"        /*{address:04x}*/                   {text} ;")
            address += 16
    return parse("\n".join(lines))[kernel]


MERGED = """
MOV R1, RZ
.L_x_0:
HMMA.16816.F32 R4, R8, R12, R4
HMMA.16816.F32 R4, R8, R12, R4
F2FP.F16.E4M3.UNPACK_B R2, R3
UIADD3 UR4, UR4, 0x1, URZ
ISETP.LE.AND P0, PT, R20, UR4, PT
@!P0 BRA `(.L_x_0)
EXIT
.L_x_9:
BRA `(.L_x_9)
"""


def test_hot_loop_counts_every_instruction_of_one_pass():
    kernel = listing(MERGED)
    counts = kernel.count(kernel.hot_loop("HMMA"))
    assert counts["HMMA.16816.F32"] == 2
    assert sum(counts.values()) == 6
    assert len(kernel.loops()) == 1, "the branch to itself behind EXIT is no loop"


def test_presence_is_not_enough():
    gate = check(listing(MERGED), "HMMA", expected=4)
    assert not gate.verified
    assert "2 HMMA.16816.F32 in the hot loop where the source has 4" in gate.why


def test_other_instructions_in_the_loop_are_not_believed():
    padded = ".L_x_0:\n" + "FFMA R1, R1, R2, R3\n" * 8 + "MOV R9, R9\n" * 8 + "@P0 BRA `(.L_x_0)\nEXIT"
    gate = check(listing(padded), "FFMA", expected=8)
    assert not gate.verified
    assert "9 other instructions" in gate.why


def test_emulation_is_the_named_instruction_gone_and_calls_are_followed():
    emulated = """
    .L_x_0:
    CALL.REL.NOINC `($__internal_0_$__mma)
    CALL.REL.NOINC `($__internal_0_$__mma)
    @P0 BRA `(.L_x_0)
    EXIT
    $__internal_0_$__mma:
    LOP3.LUT R1, R2, R3, R4, 0x96, !PT
    LOP3.LUT R1, R2, R3, R4, 0x96, !PT
    IMMA.16832.S8.S8 R4, R8, R12, R4
    RET.REL.NODEC R0
    """
    kernel = listing(emulated)
    gate = check(kernel, r"IMMA\.16864\.S4\.S4", expected=2)
    assert gate.emulated
    assert gate.verified
    assert gate.instruction == "IMMA.16832.S8.S8"
    assert gate.per_operation == (3 + 2 * 4) / 2
    assert kernel.count(kernel.hot_loop("IMMA"))["LOP3.LUT"] == 4


def test_removed_loop_is_an_error_not_a_figure():
    assert "no loop" in check(listing("MOV R1, R2\nEXIT"), "FFMA", expected=8).why


def test_spills_are_seen():
    spilled = listing(".L_x_0:\n" + "FFMA R1, R1, R2, R3\n" * 32 + "STL [R1], R2\n@P0 BRA `(.L_x_0)\nEXIT")
    assert spilled.has_local_memory()
    assert "spill" in check(spilled, "FFMA", expected=32).why


def test_nested_loops_give_the_innermost_that_holds_the_opcode():
    nested = """
    .L_outer:
    IMMA.16832.S8.S8 R4, R8, R12, R4
    .L_inner:
    FFMA R1, R1, R2, R3
    @P0 BRA `(.L_inner)
    @P1 BRA `(.L_outer)
    EXIT
    """
    kernel = listing(nested)
    assert kernel.count(kernel.hot_loop("FFMA")) == Counter({"FFMA": 1, "BRA": 1})
    assert kernel.count(kernel.hot_loop("IMMA"))["IMMA.16832.S8.S8"] == 1


def test_a_missing_address_means_an_unknown_instruction():
    text = ".text.probe:\n /*0000*/ MOV R1, R2 ;\n /*0020*/ EXIT ;"
    with pytest.raises(DisassemblyError, match="no instruction at 0x10 of probe"):
        parse(text)


def test_matching_is_from_the_beginning():
    counts = Counter({"IMAD": 4, "IMAD.MOV.U32": 2, "UIMAD": 1})
    assert matching(counts, "IMAD") == 6
    assert matching(counts, "IMAD$") == 4
