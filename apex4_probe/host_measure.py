"""Measuring every GPU of a host: the links between them, each alone, all at once. A process a GPU, one after another.

What goes wrong on one GPU, in one pair, at one load, becomes its reason; everything else goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations

from apex4_probe.deployment import Measurement, PeerLink, Profile
from apex4_probe.discovery import LocalGpu
from apex4_probe.flow import Request
from apex4_probe.host_records import HostLink, TogetherFigure
from apex4_probe.microbench.together import ROLES, SECONDS
from apex4_probe.progress import Report
from apex4_probe.workers import Worker, WorkerError

LINKS_SHARE, TOGETHER_SHARE = 0.04, 0.2  # of the whole run's time, for the bar


@dataclass
class Found:
    """What is known so far, by CUDA's number. ``profiles``: as the caller keeps them."""

    profiles: dict[int, Profile] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    links: list[HostLink] = field(default_factory=list)
    links_failed: list[str] = field(default_factory=list)
    together: dict[int, list[TogetherFigure]] = field(default_factory=dict)
    together_failed: dict[int, str] = field(default_factory=dict)


def measure_host(
    gpus: Sequence[LocalGpu], request: Request, keep: Callable[[LocalGpu, Profile], Profile], report: Report
) -> Found:
    """Everything that ``request`` asks of ``gpus``. ``keep``: called with each profile at once; returns it as written.

    Raises whatever ``keep`` raises; a GPU's failure is data.
    """
    found = Found()
    end = 1 - TOGETHER_SHARE if request.together else 1.0
    each = (end - LINKS_SHARE) / len(gpus)
    _links(gpus, found, _part(report, 0.0, LINKS_SHARE, ""))
    for number, gpu in enumerate(gpus):
        progress = _part(report, LINKS_SHARE + each * number, each, f"GPU {gpu.index}: ")
        try:
            profile = _alone(gpu, gpus, request, found.links, progress)
        except WorkerError as error:
            found.failed[gpu.index] = str(error)
        else:
            found.profiles[gpu.index] = keep(gpu, profile)
    if request.together:
        measure_together(list(found.profiles), found, _part(report, end, 1 - end, "together: "))
    return found


def links_of(index: int, links: Sequence[HostLink], names: dict[int, str]) -> list[PeerLink]:
    """The links of GPU ``index``, each as that GPU sees it; ``names`` of all GPUs."""
    mirrored = [item.link.mirrored(item.first, names[item.first]) for item in links if item.link.peer == index]
    return [*mirrored, *(item.link for item in links if item.first == index)]


def _part(report: Report, start: float, share: float, prefix: str) -> Report:
    """Progress of a part of the whole."""
    return lambda step, done: report(prefix + step, start + share * done)


def _links(gpus: Sequence[LocalGpu], found: Found, report: Report) -> None:
    """Every pair of whole GPUs. A pair that ends its process is named, and the others go on in another process."""
    whole = {gpu.index: gpu.device.name for gpu in gpus if gpu.device.mig is None}  # a MIG slice has no peer access
    pairs = list(combinations(whole, 2))
    count = len(pairs)
    while pairs:
        task = {"job": "links", "pairs": [(first, second, whole[second]) for first, second in pairs]}
        try:
            with Worker(task) as worker:
                for message in worker.messages():
                    if message["kind"] == "link":
                        link = PeerLink.model_validate(message["link"])
                        found.links.append(HostLink(first=message["first"], link=link))
                        pairs.pop(0)
                    else:
                        report(message["step"], 1 - len(pairs) / count)
            return
        except WorkerError as error:
            first, second = pairs.pop(0)
            found.links_failed.append(f"GPU {first} and GPU {second}: {error}")


def _alone(
    gpu: LocalGpu, gpus: Sequence[LocalGpu], request: Request, links: Sequence[HostLink], report: Report
) -> Profile:
    own = links_of(gpu.index, links, {other.index: other.device.name for other in gpus})
    task = {
        "job": "alone",
        "request": asdict(replace(request, device=str(gpu.index))),
        "links": [link.model_dump(mode="json") for link in own],
        "utilisation": gpu.utilisation,
    }
    profile = None
    with Worker(task) as worker:
        for message in worker.messages():
            if message["kind"] == "profile":
                profile = Profile.model_validate(message["profile"])
            else:
                report(message["step"], message["share"])
    if profile is None:
        raise WorkerError("its process ended without a profile")
    return profile


def measure_together(indices: Sequence[int], found: Found, report: Report) -> None:
    """Each load on one GPU after another with the others idle, then on all at once; the same process does both."""
    with ExitStack() as stack:
        workers = {
            index: stack.enter_context(Worker({"job": "together", "index": index, "seconds": SECONDS}))
            for index in indices
        }
        ready: dict[int, list[str]] = {}

        @contextmanager
        def contained(index: int) -> Iterator[None]:
            """A worker that fails is ended there and then, so that it does not load the host under the others."""
            try:
                yield
            except WorkerError as error:
                found.together_failed[index] = str(error)
                workers.pop(index).close()

        for index in indices:
            report(f"preparing GPU {index}", 0.0)
            found.together[index] = []
            with contained(index):
                ready[index] = list(workers[index].expect("ready")["roles"])
        for number, role in enumerate(ROLES):
            alone: dict[int, Measurement] = {}
            for index in [index for index in workers if role in ready[index]]:
                report(f"{role} load on GPU {index} alone", number / len(ROLES))
                with contained(index):
                    workers[index].send({"role": role})
                    alone[index] = _figure(workers[index])
            report(f"{role} load on {len(alone)} GPUs at once", (number + 0.7) / len(ROLES))
            for index in alone:
                workers[index].send({"role": role})
            for index, figure in alone.items():
                with contained(index):
                    both = TogetherFigure(role=role, alone=figure, together=_figure(workers[index]))
                    found.together[index].append(both)
        report("done", 1.0)


def _figure(worker: Worker) -> Measurement:
    return Measurement.model_validate(worker.expect("figure")["figure"])
