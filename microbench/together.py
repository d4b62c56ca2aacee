"""The loads that GPUs of one host are put under at the same time: Tensor Core, memory and host link, back to back.

A role means the same work on every GPU of one model; which instruction does it depends on the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, get_args

from apex4_probe.deployment import Measurement
from apex4_probe.kernels.compile import compile_all
from apex4_probe.microbench import bandwidth, host_link, suite, throughput
from apex4_probe.microbench.execution import Gpu
from apex4_probe.microbench.instructions import InstructionProbe

LoadRole = Literal["int8", "fp16", "copy", "host"]
ROLES: tuple[LoadRole, ...] = get_args(LoadRole)
TENSOR: dict[LoadRole, str] = {"int8": "s8", "fp16": "f16"}
SECONDS = 4.0  # twice a sustained probe's: power controllers of the GPUs of a node settle on each other within a second

Load = Callable[[float], Measurement]  # runs for so many seconds


@contextmanager
def loads(gpu_index: int) -> Iterator[dict[LoadRole, Load]]:
    """Every role that this GPU can fill, compiled, tuned and warm. Raises ApexError like ``suite.measure``."""
    with Gpu(gpu_index) as gpu:
        found: dict[LoadRole, Load] = {}
        for role, operand in TENSOR.items():
            probe = fastest_probe(gpu, operand)
            load = _tensor(gpu, probe) if probe else None
            if load is not None:
                found[role] = load
        found["copy"] = bandwidth.sustained_copy(gpu)
        with suppress(MemoryError):  # no pinned memory here: the profile's own figure says so
            found["host"] = host_link.copies(gpu)[0].sustained
        yield found


def fastest_probe(gpu: Gpu, operand: str) -> InstructionProbe | None:
    """The leading probe of ``operand`` with the highest peak: wgmma where there is one."""
    leading = [p for p in suite.selected(gpu.architecture) if p.leading and p.name.split(".")[1] == operand]
    return max(leading, key=lambda p: (gpu.architecture.peak(p.name) or 0.0, p.wgmma is not None), default=None)


def _tensor(gpu: Gpu, probe: InstructionProbe) -> Load | None:
    """None: the instruction is emulated here, which only its machine code tells."""
    configurations = probe.configurations(gpu.architecture)
    cubins = compile_all([c.kernel for c in configurations])
    ready = throughput.prepare(gpu, probe, list(zip(configurations, cubins, strict=True)))
    if not ready.leads:
        return None

    def load(seconds: float) -> Measurement:
        (figure,) = ready.sustained(seconds)
        return figure

    return load
