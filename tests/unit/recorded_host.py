"""Hosts of several recorded GPUs, for the command line and for the processes that it starts.

Called as a program it is apex4-probe on such a host: ``python recorded_host.py two run --device all``. Its workers are
``become_worker`` in processes of their own, with the GPU's answers recorded and all else the product's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fake_machine import H100, no_torch
from sample_profile import sample_co_issue, sample_device, sample_measurements, sample_profile

from apex4_probe import flow, gemm_bench, worker, workers
from apex4_probe.deployment import Device, Measurement, PeerLink, Profile
from apex4_probe.discovery import LeftOut, LocalGpu, NoGpuError, Survey
from apex4_probe.host_job import describe_host
from apex4_probe.host_measure import Found
from apex4_probe.host_records import Host, HostLink, TogetherFigure
from apex4_probe.microbench import suite, together
from apex4_probe.profile_file import seal

HERE = Path(__file__)
PIDS = "RECORDED_HOST_PIDS"  # a folder in which each worker leaves its process id
HANG_S = 600.0
DEVICE = sample_device()


@dataclass(frozen=True)
class Recorded:
    """One GPU. ``factor``: on every rate per second and the SM clock. ``fate``: what happens to it half way through."""

    device: Device = DEVICE
    factor: float = 1.0
    throttle: tuple[str, ...] = ()
    generation: int = 5  # of its PCIe link
    fate: str = ""
    busy: int = 0  # other processes on it

    def measurements(self) -> list[Measurement]:
        rates = [figure for figure in sample_measurements() if figure.value is not None]
        absent = [figure for figure in sample_measurements() if figure.value is None]
        return [*(self._at_its_speed(figure) for figure in (*rates, host_copy(self.generation))), *absent]

    def _at_its_speed(self, figure: Measurement) -> Measurement:
        assert figure.value is not None
        if figure.unit == "us" or figure.name.startswith(("memory.", "l2.", "host.")):
            return figure
        clock = self.factor * (figure.sm_clock_mhz or 0.0)
        return figure.model_copy(
            update={
                "value": self.factor * figure.value,
                "sm_clock_mhz": clock,
                "throttle": sorted({*figure.throttle, *self.throttle}),
            }
        )


def host_copy(generation: int = 5) -> Measurement:
    return Measurement(
        name="host.to_device", instruction="", unit="GB/s", value=55.0 * 2.0 ** (generation - 5), samples=16,
        spread=0.004, regime="burst", origin="measured",
        configuration={"pcie_generation": generation, "pcie_width": 16},
    )  # fmt: skip


WHOLE = Recorded()
H200 = sample_device(name="NVIDIA H200", memory_mib=143771)
SLICE = sample_device(mig="3g.40gb", sm_count=60, memory_mib=40448)
MIG_BOARD = LeftOut(
    None, 2, "NVIDIA H100 80GB HBM3", "it is cut into 7 MIG slices, of which CUDA shows a process one at most", False
)
LOST = LeftOut(1, None, "NVIDIA H100 80GB HBM3", "the driver has lost the GPU; reset it", True)
LIMITED = Recorded(sample_device(power_limit_w=350.0), factor=0.7, throttle=("power_cap",))

HOSTS: dict[str, tuple[Recorded, ...]] = {
    "two": (WHOLE, WHOLE),
    "slow-second": (WHOLE, LIMITED),
    "mixed": (WHOLE, Recorded(H200), Recorded(H200, factor=0.97)),
    "sliced": (WHOLE, Recorded(SLICE)),
    "hidden": (WHOLE,),
    "lost": (WHOLE,),
    "error": (WHOLE, replace(WHOLE, fate="error"), WHOLE),
    "crash": (WHOLE, replace(WHOLE, fate="crash")),
    "taken": (replace(WHOLE, fate="taken"), WHOLE),
    "hang": (replace(WHOLE, fate="hang"), WHOLE),
    "none": (replace(WHOLE, fate="error"), replace(WHOLE, fate="crash")),
    "waits": (WHOLE, replace(WHOLE, fate="hang")),
    "link-hangs": (WHOLE, WHOLE, WHOLE),
    "together-fails": (WHOLE, WHOLE, WHOLE),
}
HIDDEN = {"hidden": (MIG_BOARD,), "lost": (LOST,)}


def local_gpu(index: int, recorded: Recorded) -> LocalGpu:
    return replace(
        H100, index=index, nvml_index=index, device=recorded.device, other_processes=recorded.busy, uuid=f"GPU-{index}"
    )


def survey_of(name: str) -> Callable[[object], Survey]:
    gpus = tuple(local_gpu(index, recorded) for index, recorded in enumerate(HOSTS[name]))

    def survey(selection: object) -> Survey:
        if selection == "all":
            return Survey(gpus, HIDDEN.get(name, ()))
        return Survey(tuple(gpus[int(number)] for number in str(selection).split(",")), ())

    return survey


def link(peer: int, rate: float = 370.0, **fields: Any) -> PeerLink:
    known: dict[str, Any] = {
        "peer": peer, "peer_name": "NVIDIA H100 80GB HBM3", "path": "nvlink", "nvlinks": 18, "peer_access": True,
        "to_peer_gb_per_s": rate, "from_peer_gb_per_s": rate, "both_gb_per_s": 1.95 * rate, "copy_us": 2.0,
        "samples": 16, "spread": 0.002,
    }  # fmt: skip
    return PeerLink(**{**known, **fields})


def unusable(peer: int) -> PeerLink:
    return PeerLink(
        peer=peer, peer_name="NVIDIA H100 80GB HBM3", path="host_bridge", unsupported="copied data arrive changed"
    )


def profile_of(recorded: Recorded, **changes: Any) -> Profile:
    """What measuring ``recorded`` comes to, without measuring."""
    return sample_profile(device=recorded.device, measurements=recorded.measurements(), **changes)


def described(
    *recorded: Recorded,
    failed: Mapping[int, str] | None = None,
    left_out: tuple[LeftOut, ...] = (),
    links: Sequence[HostLink] = (),
    together: Mapping[int, list[TogetherFigure]] | None = None,
) -> tuple[Host, dict[int, Profile]]:
    """A host's record as the job makes it, and the profiles of those GPUs that did not fail."""
    failed = failed or {}
    request = flow.Request(device="all", together=together is not None, command="apex4-probe run --device all")
    gpus = tuple(local_gpu(index, gpu) for index, gpu in enumerate(recorded))
    profiles = {index: seal(profile_of(gpu)) for index, gpu in enumerate(recorded) if index not in failed}
    found = Found(profiles, dict(failed), list(links), together=dict(together or {}))
    return describe_host(flow.Targets(gpus, left_out), flow.read(request), request, found), profiles


# The worker's side


def become_worker(name: str) -> None:
    host = HOSTS[name]
    if folder := os.environ.get(PIDS):
        (Path(folder) / str(os.getpid())).touch()

    def discover(selection: str) -> list[LocalGpu]:
        recorded = host[int(selection)]
        if recorded.fate == "taken":
            raise NoGpuError("the NVIDIA driver sees no GPU")
        # NVML's utilisation is of the last second, in which the links were measured.
        return [replace(local_gpu(int(selection), recorded), utilisation=1.0)]

    def measure(index: int, *, full: bool, progress: flow.ProgressCallback) -> suite.MeasuredSet:
        progress("mma.s8.m16n8k32", 0.5)
        meet(host[index].fate)
        return suite.MeasuredSet(host[index].measurements(), sample_co_issue(), [f"recorded, full={full}"])

    def measure_link(first: Any, second: Any, peer_name: str) -> PeerLink:
        if (name, first.index, second.index) == ("link-hangs", 0, 1):
            meet("hang")
        return link(second.index, peer_name=peer_name)

    @contextmanager
    def loads(index: int) -> Iterator[dict[together.LoadRole, together.Load]]:
        runs = [0]

        def load(_seconds: float) -> Measurement:
            runs[0] += 1
            if name == "together-fails" and index == 1 and runs[0] == 2:
                meet("error")
            at_once = runs[0] % 2 == 0  # a load runs alone, then with the others
            return figure("wgmma.s8.m64n256k32.ss", regime="sustained", factor=0.9 if at_once else 1.0)

        yield {"int8": load, "copy": load}

    worker.discover = discover  # type: ignore[assignment]
    worker.Gpu = opened  # type: ignore[assignment,misc]
    worker.peer_link.measure = measure_link  # type: ignore[attr-defined]
    worker.together.loads = loads  # type: ignore[attr-defined]
    suite.measure = measure  # type: ignore[assignment]
    gemm_bench.torch_installed = lambda: False
    gemm_bench.why_no_torch = no_torch
    worker.main()


def meet(fate: str) -> None:
    if fate == "error":
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access\nwas encountered")
    if fate == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fate == "hang":
        time.sleep(HANG_S)


def figure(name: str, regime: str, factor: float) -> Measurement:
    """As recorded, at ``factor`` of its rate and clock."""
    found = next(m for m in sample_measurements() if (m.name, m.operands, m.regime) == (name, "random", regime))
    return found.model_copy(
        update={"value": factor * (found.value or 0.0), "sm_clock_mhz": factor * (found.sm_clock_mhz or 0.0)}
    )


@contextmanager
def opened(index: int) -> Iterator[Any]:
    yield SimpleNamespace(index=index)


# The command line's side


def command(name: str) -> tuple[str, ...]:
    """A worker's path holds neither the current folder nor a script's, so this module is told where it lies."""
    program = f"import sys; sys.path.append({str(HERE.parent)!r}); import recorded_host as r; r.become_worker({name!r})"
    return (sys.executable, "-c", program)


def main() -> None:
    name = sys.argv.pop(1)
    flow.survey = survey_of(name)  # type: ignore[assignment]
    workers.COMMAND = command(name)
    from apex4_probe.cli import main as apex4_probe

    apex4_probe()


if __name__ == "__main__":
    main()
