"""Processes that do one job on one GPU for us: started, listened to, and ended whatever state they are in.

A CUDA call that hangs cannot be interrupted and one that fails takes its process's context with it, so each GPU gets a
process. It is given its task on stdin as a line of JSON and answers with lines of JSON on stdout (``worker`` is its
side). Silence for too long is a hang: every job reports as it goes. A worker has a session of its own, so that Ctrl-C
reaches this process alone, which then ends them; and it ends itself when its stdin closes, should we be killed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from apex4_probe.errors import ApexError

COMMAND: tuple[str, ...] = (sys.executable, "-m", "apex4_probe.worker")
TERMINATE_S, KILL_S = 3.0, 10.0  # a process that waits inside the driver survives even SIGKILL: it is left behind
MAX_SENTENCE = 300


@dataclass(frozen=True)
class Limits:
    """``silence_s``: between two messages. The longest silent step is compiling one probe or one of torch's GEMMs.

    ``total_s``: of one job; a full run takes 5 minutes on an H100.
    """

    silence_s: float = 180.0
    total_s: float = 1800.0


LIMITS = Limits()


class WorkerError(ApexError):
    """A worker did not do its job: it hung, died or said why not."""


class Worker:
    """One process and its job, as a context manager: leaving it ends the process. ``task``: as ``worker`` reads it."""

    def __init__(self, task: Mapping[str, Any], limits: Limits | None = None) -> None:
        self._limits = limits or LIMITS
        self._task = task
        self._inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._step = "starting"

    def __enter__(self) -> Worker:
        # With APEX4_PROBE_DEBUG=1 everything that the worker and the libraries in it say is shown as it comes.
        self._log: IO[bytes] | None = None if os.environ.get("APEX4_PROBE_DEBUG") == "1" else tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # modules in the current folder are none of ours
        )
        try:
            self._end = time.monotonic() + self._limits.total_s
            threading.Thread(target=self._listen, name="worker", daemon=True).start()
            self.send(self._task)
        except BaseException:  # Ctrl-C
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; twice does no harm."""
        self._stop()
        if self._log is not None:
            self._log.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """A line to the worker's stdin; one that is gone already is told of by the next ``receive``."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Everything that the worker says until it is done. Raises WorkerError."""
        while (message := self._next())["kind"] != "done":
            yield message

    def expect(self, kind: str) -> dict[str, Any]:
        """The next message of ``kind``; progress on the way is passed over. Raises WorkerError."""
        while (message := self._next())["kind"] != kind:
            if message["kind"] == "done":
                raise WorkerError(f"its process ended without {kind}")
        return message

    def _next(self) -> dict[str, Any]:
        left = self._end - time.monotonic()
        try:
            message = self._inbox.get(timeout=max(0.0, min(self._limits.silence_s, left)))
        except queue.Empty:
            what = (
                f"it hung: no progress for {self._limits.silence_s:.0f} s"
                if left > self._limits.silence_s
                else f"it took more than {self._limits.total_s:.0f} s"
            )
            ended = "was ended" if self._stop() else "could not be ended (it waits inside the driver)"
            raise WorkerError(f"{what} at {self._step!r}; its process {ended}") from None
        if message is None:
            raise WorkerError(f"its process {self._death()} at {self._step!r}{self._last_words()}")
        if message["kind"] == "error":
            raise WorkerError(str(message["sentence"])[:MAX_SENTENCE])
        if message["kind"] == "progress":
            self._step = str(message["step"])
        return message

    def _listen(self) -> None:
        """Every line of the worker's stdout; None at its end. What is no message of ours is passed over."""
        assert self._process.stdout is not None
        with suppress(ValueError, OSError):  # closed under the reader's hands when the worker is ended
            for line in self._process.stdout:
                with suppress(ValueError):
                    message = json.loads(line)
                    if isinstance(message, dict) and "kind" in message:
                        self._inbox.put(message)
        self._inbox.put(None)

    def _death(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(TERMINATE_S)
            if code < 0:
                return f"was killed by {_signal_name(-code)}"
            return f"ended with exit code {code}"
        return "closed its output"

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return f" ({lines[-1][:MAX_SENTENCE]})" if lines else ""

    def _stop(self) -> bool:
        """End the worker and whatever it has started; False where the system cannot."""
        process = self._process
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        for number, patience in ((signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, KILL_S)):
            if process.poll() is not None:
                break
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        if process.stdout is not None and process.poll() is not None:
            process.stdout.close()
        return process.poll() is not None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
