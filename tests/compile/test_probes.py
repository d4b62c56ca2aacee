"""Every instruction probe compiles for every architecture that has it, and its hot loop holds what its name says."""

import re
from functools import cache

import pytest

from apex4_probe.architecture import architecture, known
from apex4_probe.kernels import sass
from apex4_probe.kernels.compile import CompileError, Kernel, compile_kernel
from apex4_probe.microbench import instructions
from apex4_probe.microbench.instructions import PROBES, InstructionProbe
from apex4_probe.microbench.sources import probe_kernel

ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
CELLS = [
    pytest.param(probe, cc, id=f"{probe.name}-{cc}")
    for probe in PROBES
    for cc in ARCHITECTURES
    if not probe.is_mma or architecture(cc).support(probe.name).level != "refused"
]
REFUSED = [
    pytest.param(probe, cc, id=f"{probe.name}-{cc}")
    for probe in PROBES
    for cc in ARCHITECTURES
    if probe.is_mma and architecture(cc).support(probe.name).level == "refused"
]
# Instructions that replace one emulated MMA, against the table in profiles/architectures.yaml: the probe keeps operands
# live, so calls and moves come on top of what the table counts.
EMULATION_SLACK = (0.75, 1.5)


@cache
def cubin(kernel: Kernel):
    return compile_kernel(kernel)


@pytest.mark.slow
@pytest.mark.parametrize(("probe", "cc"), CELLS)
def test_hot_loop_holds_the_named_instruction(probe: InstructionProbe, cc: str):
    where = architecture(cc)
    by_kernel = {configuration.kernel: configuration for configuration in probe.configurations(where)}
    for kernel, configuration in by_kernel.items():
        gate = instructions.gate(probe, configuration, cubin(kernel), where)
        support = where.support(probe.name)
        assert gate.verified, f"{kernel.name}: {gate.why}"
        assert gate.emulated == (support.level == "emulated")
        if gate.emulated:
            low, high = EMULATION_SLACK
            assert support.emulated_by * low <= gate.per_operation <= max(support.emulated_by * high, 8), kernel.name
        else:
            assert gate.instruction.startswith(support.sass)
            assert gate.per_operation >= 1


@pytest.mark.parametrize(("probe", "cc"), REFUSED)
def test_refused_instruction_has_a_reason_and_does_not_compile(probe: InstructionProbe, cc: str):
    where = architecture(cc)
    assert where.support(probe.name).reason
    row = instructions.unsupported(probe, where.support(probe.name).reason)
    assert row.value is None
    assert row.unsupported
    with pytest.raises(CompileError, match=where.target):
        compile_kernel(probe.configurations(where)[0].kernel)


def test_every_architecture_in_the_table_is_one_that_nvrtc_compiles_for():
    for where in known():
        compile_kernel(Kernel("empty", 'extern "C" __global__ void empty() {}', where.target))


def test_operands_that_do_not_change_would_be_merged():
    """Why emulated probes keep operands live: without it ptxas leaves 8 HMMA of sixteen e4m3 MMAs, which take 32."""

    def hmmas(live: int) -> int:
        macros = {"MMA": "mma_e4m3_m16n8k32", "ILP": 4, "MMAS_PER_ITERATION": 16, "LIVE_OPERANDS": live}
        listing = sass.disassemble(cubin(probe_kernel("mma_sync.cu", "sm_90a", **macros)).image)["probe"]
        return sass.matching(listing.count(listing.hot_loop("HMMA")), "HMMA")

    assert hmmas(live=1) == 32
    assert hmmas(live=0) < 32


@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_memory_kernels_use_sixteen_byte_accesses(cc: str):
    image = cubin(probe_kernel("memory.cu", architecture(cc).target, IN_FLIGHT=4)).image
    kernels = sass.disassemble(image)
    copy = kernels["copy"].count(kernels["copy"].hot_loop("LDG"))
    assert sass.matching(copy, r"LDG\..*128") == 4
    assert sass.matching(copy, r"STG\..*128") == 4
    shared = kernels["shared_read"].count(kernels["shared_read"].hot_loop(r"LDS"))
    assert sass.matching(shared, r"LDS.*\.128") == 16
    assert not any(listing.has_local_memory() for listing in kernels.values())


def test_compile_failure_names_kernel_target_and_line():
    with pytest.raises(CompileError, match=r"cannot compile broken for sm_80: broken\.cu\(1\): error.*nonsense"):
        compile_kernel(Kernel("broken", "nonsense x;", "sm_80"))


def test_cubin_is_recompiled_when_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("APEX4_PROBE_CACHE", str(tmp_path))
    kernel = Kernel("empty", 'extern "C" __global__ void empty() {}', "sm_80")
    first = compile_kernel(kernel)
    damaged = bytearray(first.path.read_bytes())
    damaged[100] ^= 0xFF
    first.path.write_bytes(damaged)
    again = compile_kernel(kernel)
    assert again.image == first.image
    assert first.path.read_bytes()[: len(first.image)] == first.image


def test_source_options_target_and_headers_all_shape_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("APEX4_PROBE_CACHE", str(tmp_path))
    source = '#include "h"\nextern "C" __global__ void empty() {}'
    variants = [
        Kernel("k", source, "sm_80", (("h", ""),)),
        Kernel("k", source + "\n", "sm_80", (("h", ""),)),
        Kernel("k", source, "sm_86", (("h", ""),)),
        Kernel("k", source, "sm_80", (("h", "// other"),)),
        Kernel("k", source, "sm_80", (("h", ""),), ("-DX=1",)),
    ]
    assert len({compile_kernel(kernel).path for kernel in variants}) == len(variants)


def test_descriptions_are_plain_sentences_and_names_are_canonical():
    for probe in PROBES:
        assert architecture("9.0").support(probe.name)
        assert len(probe.description) > 10
        assert re.fullmatch(r"[a-z0-9_.]+", probe.name)
