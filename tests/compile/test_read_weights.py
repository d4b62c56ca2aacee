"""The pure read has all its loads in flight at once on every architecture; otherwise it would be no lower bound."""

import re

import pytest

from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import compile_kernel
from apex4_probe.microbench.gemm_baselines import READS
from apex4_probe.microbench.sources import probe_kernel


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
@pytest.mark.parametrize(("entry", "threads", "in_flight", "ctas"), READS)
def test_all_loads_come_before_the_first_use(entry: str, threads: int, in_flight: int, ctas: int, target: str) -> None:
    kernel = probe_kernel("read_weights.cu", target, THREADS=threads, IN_FLIGHT=in_flight, CTAS_PER_SM=ctas)
    opcodes = [instruction.opcode for instruction in sass.disassemble(compile_kernel(kernel).image)[entry].instructions]
    assert not [opcode for opcode in opcodes if opcode.startswith(("LDL", "STL"))]
    order = "".join("L" if opcode.startswith("LDG") else "x" if opcode.startswith("LOP3") else "" for opcode in opcodes)
    assert re.match(rf"x*L{{{in_flight}}}", order), order  # the loop, which comes first
    assert all("128" in opcode for opcode in opcodes if opcode.startswith("LDG"))
