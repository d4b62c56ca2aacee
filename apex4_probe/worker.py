"""One job in a process of its own, for ``workers``: ``python -m apex4_probe.worker``, a task as JSON on stdin.

Lines of JSON on stdout, each with its ``kind``: progress (step, share), what the job finds (profile, link, ready,
figure), error (sentence), done. Whatever else libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import IO, Any

from apex4_probe.deployment import PeerLink
from apex4_probe.discovery import discover
from apex4_probe.errors import ApexError
from apex4_probe.flow import Request, measure, read
from apex4_probe.microbench import peer_link, together
from apex4_probe.microbench.execution import Gpu

Say = Callable[..., None]  # kind, then the message's fields
Orders = queue.Queue[dict[str, Any]]
ABANDONED = 3  # exit code: whoever started us is gone


def measure_alone(task: Mapping[str, Any], say: Say, _orders: Orders) -> None:
    """``request``, its device being this GPU alone, and ``links``; says its profile.

    ``utilisation``: of this GPU before the links were measured. NVML's own is of the last second, which may be ours.
    """
    request = Request(**task["request"])
    links = [PeerLink.model_validate(link) for link in task["links"]]
    question = read(request)
    (found,) = discover(request.device)
    gpu = replace(found, utilisation=task["utilisation"])
    profile = measure(gpu, question, request, lambda step, share: say("progress", step=step, share=share), links)
    say("profile", profile=profile.model_dump(mode="json"))


def measure_links(task: Mapping[str, Any], say: Say, _orders: Orders) -> None:
    """``pairs`` of CUDA's numbers; says a link a pair, as the first of the two sees it."""
    for first, second, name in task["pairs"]:
        say("progress", step=f"link of GPU {first} and GPU {second}", share=0.0)
        with Gpu(first) as here, Gpu(second) as there:
            link = peer_link.measure(here, there, name)
        say("link", first=first, link=link.model_dump(mode="json"))


def measure_together(task: Mapping[str, Any], say: Say, orders: Orders) -> None:
    """Prepares every load of GPU ``index``, says which are ready, then runs one an order until told to stop."""
    say("progress", step="preparing loads", share=0.0)
    with together.loads(task["index"]) as loads:
        say("ready", roles=list(loads))
        while (role := orders.get().get("role")) is not None:
            say("progress", step=f"{role} load", share=0.0)
            figure = loads[role](task["seconds"])
            say("figure", role=role, figure=figure.model_dump(mode="json"))


JOBS: dict[str, Callable[[Mapping[str, Any], Say, Orders], None]] = {
    "alone": measure_alone,
    "links": measure_links,
    "together": measure_together,
}


def main() -> None:
    """Read a task, do it, say what came of it. Exit code 0 even where the job failed: the message says so."""
    channel = _claim_stdout()

    def say(kind: str, **fields: Any) -> None:
        channel.write(json.dumps({"kind": kind, **fields}) + "\n")
        channel.flush()

    try:
        task = json.loads(sys.stdin.readline())
        JOBS[task["job"]](task, say, _orders())
        say("done")
    except BrokenPipeError:
        os._exit(ABANDONED)
    except Exception as error:
        traceback.print_exc()
        what = " ".join(str(error).split()) or "no reason given"
        say("error", sentence=what if isinstance(error, ApexError) else f"{type(error).__name__}: {what}")
    # A context that has met a fault can hang in its destructor; everything is said, so leave without one.
    sys.stderr.flush()
    os._exit(0)


def _claim_stdout() -> IO[str]:
    """Stdout for our messages alone: what libraries write to it, from C too, goes to stderr from now on."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


def _orders() -> Orders:
    """What comes on stdin after the task. At its end there is nobody left to work for: the process ends at once."""
    found: Orders = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            found.put(json.loads(line))
        os._exit(ABANDONED)

    threading.Thread(target=listen, name="orders", daemon=True).start()
    return found


if __name__ == "__main__":
    main()
