"""Processes that hang, die, lie or are abandoned: what is said of each, and that none is left. No GPU, no CUDA."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from apex4_probe import workers
from apex4_probe.flow import Request
from apex4_probe.workers import Limits, Worker, WorkerError

# What every script below begins with: it reads its task and can answer.
HEAD = """
import json, os, signal, sys, time
task = json.loads(sys.stdin.readline())
def say(kind, **fields):
    print(json.dumps({"kind": kind, **fields}), flush=True)
"""
QUICK = Limits(silence_s=1.0, total_s=30.0)
Start = Callable[..., Worker]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    def script(body: str, limits: Limits = QUICK, **task: Any) -> Worker:
        monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", HEAD + textwrap.dedent(body)))
        return Worker(task, limits)

    return script


def reason(worker: Worker) -> str:
    """Why the job was not done, its process being gone by then."""
    with pytest.raises(WorkerError) as caught, worker:
        list(worker.messages())
    assert gone(worker)
    return str(caught.value)


def gone(worker: Worker) -> bool:
    try:
        os.kill(worker._process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_messages_come_in_order_until_it_is_done(start: Start) -> None:
    with start("say('progress', step='a', share=0.5); say('answer', sum=sum(task['numbers'])); say('done')",
               numbers=[1, 2]) as worker:  # fmt: skip
        assert list(worker.messages()) == [
            {"kind": "progress", "step": "a", "share": 0.5},
            {"kind": "answer", "sum": 3},
        ]
    assert gone(worker)


def test_what_libraries_print_is_no_message(start: Start) -> None:
    with start("print('loading…'); print('[1, 2]'); print('{\"kinds\": 1}'); say('answer'); say('done')") as worker:
        assert [message["kind"] for message in worker.messages()] == ["answer"]


def test_silence_is_a_hang_and_the_process_is_ended(start: Start) -> None:
    told = reason(start("say('progress', step='mma.s8', share=0.1)\ntime.sleep(600)"))
    assert told == "it hung: no progress for 1 s at 'mma.s8'; its process was ended"


def test_progress_is_no_hang_until_the_whole_takes_too_long(start: Start) -> None:
    body = "while True:\n    say('progress', step='again', share=0.0)\n    time.sleep(0.1)"
    assert reason(start(body, Limits(1.0, 2.0))) == "it took more than 2 s at 'again'; its process was ended"


def test_one_that_does_not_listen_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "TERMINATE_S", 0.3)
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('progress', step='deaf', share=0.0)\ntime.sleep(600)"
    assert "at 'deaf'; its process was ended" in reason(start(body))


def test_what_it_started_ends_with_it(start: Start, tmp_path: Path) -> None:
    body = """
    import subprocess
    child = subprocess.Popen(["sleep", "600"])
    say("child", pid=child.pid)
    time.sleep(600)
    """
    with start(body) as worker:
        pid = worker.expect("child")["pid"]
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the child outlived its worker"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its process was killed by SIGSEGV at 'starting'"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its process was killed by SIGKILL at 'starting'"),
        ("sys.exit(5)", "its process ended with exit code 5 at 'starting'"),
        (
            "print('CUDA driver\\nversion mismatch ', file=sys.stderr)\nsys.exit(1)",
            "its process ended with exit code 1 at 'starting' (version mismatch)",
        ),
        ("say('error', sentence='the driver has lost the GPU')", "the driver has lost the GPU"),
        ("say('error', sentence='x' * 5000)", "x" * 300),
    ],
)
def test_a_death_says_how_and_where(start: Start, body: str, told: str) -> None:
    assert reason(start(body, Limits(20.0, 60.0))) == told


def test_an_expected_answer_that_never_comes_is_a_failure(start: Start) -> None:
    with start("say('done')", Limits(20.0, 60.0)) as worker, pytest.raises(WorkerError, match="ended without ready"):
        worker.expect("ready")


def test_orders_reach_it_and_those_to_the_dead_do_no_harm(start: Start) -> None:
    body = "say('sum', value=json.loads(sys.stdin.readline())['a'] + 1)"
    with start(body, Limits(20.0, 60.0)) as worker:
        worker.send({"a": 1})
        assert worker.expect("sum")["value"] == 2
        with pytest.raises(WorkerError, match="exit code 0"):
            worker.expect("more")
        worker.send({"a": 2})


def test_a_command_that_does_not_exist_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "COMMAND", ("/nowhere/python",))
    with pytest.raises(FileNotFoundError), Worker({}):
        pass


def test_ctrl_c_while_waiting_ends_it(start: Start) -> None:
    with pytest.raises(KeyboardInterrupt), start("say('progress', step='a', share=0.0)\ntime.sleep(600)") as worker:
        for _ in worker.messages():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert gone(worker)


def test_a_worker_whose_caller_is_killed_ends_itself(tmp_path: Path) -> None:
    """The real worker, waiting for orders: its caller gets SIGKILL and can do nothing for it."""
    caller = (
        "import time\n"
        "from apex4_probe.workers import Worker\n"
        "worker = Worker({'job': 'wait'})\n"
        "worker.__enter__()\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    wait = (
        "import os, sys\nfrom apex4_probe import worker\n"
        "worker.JOBS['wait'] = lambda task, say, orders: orders.get()\nworker.main()\n"
    )
    script = tmp_path / "waits.py"
    script.write_text(wait)
    program = f"from apex4_probe import workers\nworkers.COMMAND = ({sys.executable!r}, {str(script)!r})\n" + caller
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(1.0)
        assert Path(f"/proc/{pid}").exists()
        process.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "it works for nobody"
        time.sleep(0.05)


def test_the_real_worker_says_why_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    task = {"job": "alone", "request": asdict(Request()), "links": [], "utilisation": None}
    with (
        Worker(task, Limits(60.0, 60.0)) as worker,
        pytest.raises(WorkerError, match=r"no NVIDIA driver|hides every GPU"),
    ):
        list(worker.messages())
    with Worker({"job": "dance"}, Limits(60.0, 60.0)) as worker, pytest.raises(WorkerError, match="KeyError: 'dance'"):
        list(worker.messages())
