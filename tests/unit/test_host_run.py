"""``run`` over several recorded GPUs, its workers being real processes: what it writes, prints and exits with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import recorded_host

from apex4_probe import cli, flow, workers
from apex4_probe.deployment import Profile
from apex4_probe.host_records import Host
from apex4_probe.profile_file import load_profile

HERE = Path(recorded_host.__file__)
pytestmark = pytest.mark.slow  # every test starts processes that import everything
IMPORTS_S = 60.0  # a worker's first word comes after its imports, on however busy a machine


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def text(self) -> str:
        return " ".join(self.out.split())

    @property
    def host(self) -> Host:
        return Host.model_validate_json((self.folder / "host.json").read_text())

    @property
    def profiles(self) -> dict[str, Profile]:
        return {path.parent.name: load_profile(path) for path in sorted(self.folder.glob("*/profile.yaml"))}


Run = Callable[..., Answer]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The verb in this process, on a recorded host; its workers are processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APEX4_PROBE_DEBUG", raising=False)
    pids = tmp_path / "pids"
    pids.mkdir()
    monkeypatch.setenv(recorded_host.PIDS, str(pids))

    def call(scenario: str, *arguments: str, device: str = "all", silence_s: float = IMPORTS_S) -> Answer:
        monkeypatch.setattr(flow, "survey", recorded_host.survey_of(scenario))
        monkeypatch.setattr(workers, "COMMAND", recorded_host.command(scenario))
        monkeypatch.setattr(workers, "LIMITS", workers.Limits(silence_s, 600.0))
        command = ["apex4-probe", "run", "--device", device, "--out", "host", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        assert living(pids) == []
        assert list(tmp_path.rglob(".apex4-*")) == []
        return Answer(stop.value.code, out, err, tmp_path / "host")

    return call


def living(pids: Path) -> list[str]:
    return [path.name for path in pids.iterdir() if Path(f"/proc/{path.name}").exists()]


def test_two_equal_gpus_get_a_profile_each_and_a_table(run: Run) -> None:
    answer = run("two", "--workload", "decode:16,prefill:2048")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "Measuring GPUs 0, 1 (NVIDIA H100 80GB HBM3)."
    assert "2 GPUs measured; none differs from another of its model by more than the spread." in answer.text
    assert list(answer.profiles) == ["gpu0", "gpu1"]
    for number, profile in enumerate(answer.profiles.values()):
        (link,) = profile.links
        assert (link.peer, link.path, link.nvlinks, link.to_peer_gb_per_s) == (1 - number, "nvlink", 18, 370.0)
        assert profile.provenance.command == (
            "apex4-probe run --device all --out host --workload decode:16,prefill:2048"
        )
        assert profile.provenance.warnings == ["recorded, full=False"]  # not that our own copies kept it busy
        assert profile.schema_version == "1.2"
        assert any(note.startswith("All-reduce, estimated: over 2 GPUs") for note in profile.notes)
        assert "Links to the other GPUs" in (answer.folder / f"gpu{number}" / "report.html").read_text()
    host = answer.host
    assert [(gpu.index, gpu.profile, gpu.reason) for gpu in host.gpus] == [
        (0, "gpu0/profile.yaml", None),
        (1, "gpu1/profile.yaml", None),
    ]
    assert host.odd == [] and host.failures == [] and host.together_s is None
    assert {path.name for path in answer.folder.iterdir()} >= {
        "host.json", "compare.html", "compare.csv", "compare.json", "gpu0", "gpu1"
    }  # fmt: skip
    steps = [line.split(" ", 1)[1] for line in map(str.strip, answer.err.splitlines())]
    assert any("GPU 1: mma.s8.m16n8k32" in step for step in steps)
    shares = [int(match) for match in re.findall(r"^ *(\d+)%", answer.err, re.MULTILINE)]
    assert shares == sorted(shares) and shares[-1] == 100


def test_the_odd_one_out_is_named_with_its_cause_and_is_no_failure(run: Run) -> None:
    answer = run("slow-second", "--json")
    assert answer.code == 0
    said = json.loads(answer.out)
    assert [entry["path"] for entry in said["profiles"]] == ["host/gpu0/profile.yaml", "host/gpu1/profile.yaml"]
    (odd,) = said["host"]["odd"]
    assert (odd["index"], odd["reference"]) == (1, 0)
    assert "power limit: 350 W here, 700 W on GPU 0" in odd["causes"]
    assert any(cause.startswith("clock: the SM ran at 0.70 times the clock on GPU 0") for cause in odd["causes"])
    assert Host.model_validate(said["host"]) == answer.host


@pytest.mark.parametrize(
    ("scenario", "failed", "measured", "told"),
    [
        ("error", 1, ["gpu0", "gpu2"], "RuntimeError: cudaErrorIllegalAddress: an illegal memory access was encount"),
        ("crash", 1, ["gpu0"], "its process was killed by SIGSEGV at 'mma.s8.m16n8k32'"),
        ("taken", 0, ["gpu1"], "the NVIDIA driver sees no GPU"),
    ],
)
def test_a_gpu_that_fails_half_way_is_a_row_with_its_reason_and_exit_code_1(
    run: Run, scenario: str, failed: int, measured: list[str], told: str
) -> None:
    answer = run(scenario)
    assert answer.code == 1
    assert list(answer.profiles) == measured
    assert not (answer.folder / f"gpu{failed}").exists()
    (failure,) = answer.host.failures
    assert failure.index == failed and failure.reason is not None and failure.reason.startswith(told)
    assert f"{failed} – not measured: {told}" in answer.text
    assert f"of {len(measured) + 1} GPUs measured; GPU {failed} failed" in answer.text
    assert told in " ".join((answer.folder / "compare.html").read_text().replace("&#39;", "'").split())


@pytest.mark.slow
def test_a_gpu_that_hangs_is_given_up_and_the_next_one_measured(run: Run) -> None:
    answer = run("hang", silence_s=12.0)
    assert answer.code == 1
    assert list(answer.profiles) == ["gpu1"]
    (failure,) = answer.host.failures
    assert failure.reason == "it hung: no progress for 12 s at 'mma.s8.m16n8k32'; its process was ended"


def test_where_none_can_be_measured_the_table_says_why_and_the_exit_code_is_2(run: Run) -> None:
    answer = run("none")
    assert answer.code == 2
    line = answer.err.splitlines()[-1]
    assert line.startswith("apex4-probe: not one GPU could be measured: GPU 0, RuntimeError: cudaErrorIllegalAddress")
    assert "GPU 1, its process was killed by SIGSEGV" in line
    assert "0 of 2 GPUs measured; GPU 0 and GPU 1 failed." in answer.text
    assert [path.name for path in answer.folder.iterdir()] == ["host.json"]


@pytest.mark.parametrize(
    ("scenario", "code", "told"),
    [
        ("hidden", 0, "smi 2 – not measured: it is cut into 7 MIG slices, of which CUDA shows a process one at most"),
        ("lost", 1, "1 – not measured: the driver has lost the GPU; reset it"),
    ],
)
def test_what_cannot_be_measured_from_the_start_is_a_row_too(run: Run, scenario: str, code: int, told: str) -> None:
    answer = run(scenario)
    assert answer.code == code  # to be cut into slices is no fault, to be lost is
    assert "1 of 2 GPUs measured" in answer.text and told in answer.text
    assert list(answer.profiles) == ["gpu0"]


def test_a_slice_beside_a_whole_gpu_is_measured_without_links(run: Run) -> None:
    answer = run("sliced")
    assert answer.code == 0
    assert answer.host.links == [] and answer.host.all_reduce is None
    assert [profile.links for profile in answer.profiles.values()] == [[], []]
    assert answer.profiles["gpu1"].device.mig == "3g.40gb"
    assert "MIG 3g.40gb" in answer.text
    assert "2 GPUs measured; no two are of one model" in answer.text


@pytest.mark.slow
def test_a_pair_that_hangs_costs_neither_the_other_pairs_nor_the_gpus(run: Run) -> None:
    answer = run("link-hangs", silence_s=12.0)
    assert answer.code == 0
    host = answer.host
    assert [(item.first, item.link.peer) for item in host.links] == [(0, 2), (1, 2)]
    assert host.links_failed == [
        "GPU 0 and GPU 1: it hung: no progress for 12 s at 'link of GPU 0 and GPU 1'; its process was ended"
    ]
    assert "The link of GPU 0 and GPU 1: it hung" in answer.text
    assert len(answer.profiles) == 3


def test_together_gives_the_ratio_of_each_load_to_the_same_load_alone(run: Run) -> None:
    answer = run("two", "--together")
    assert answer.code == 0
    host = answer.host
    assert host.together_s == 4.0
    for gpu in host.gpus:
        assert [(pair.role, round(pair.ratio or 0.0, 3)) for pair in gpu.together] == [("int8", 0.9), ("copy", 0.9)]
        first = gpu.together[0]
        assert (first.alone.sm_clock_mhz, first.together.sm_clock_mhz) == (1560.0, 1404.0)
    assert re.search(r"0 +1686 TOPS +1518 +0\.90× +1560 → 1404 +698 → 698", answer.out)


def test_one_that_fails_under_the_load_of_all_is_named_and_the_others_go_on(run: Run) -> None:
    answer = run("together-fails", "--together")
    assert answer.code == 1
    assert len(answer.profiles) == 3
    host = answer.host
    assert {gpu.index: [pair.role for pair in gpu.together] for gpu in host.gpus} == {
        0: ["int8", "copy"],
        1: [],
        2: ["int8", "copy"],
    }
    (failure,) = host.failures
    assert failure.index == 1 and failure.reason is None
    assert "GPU 1 was not measured together with the others: RuntimeError: cudaErrorIllegalAddress" in answer.text


def test_two_named_gpus_of_three(run: Run) -> None:
    answer = run("error", device="2,0")
    assert answer.code == 0
    assert [gpu.index for gpu in answer.host.gpus] == [2, 0]


def test_together_with_one_gpu_is_refused(run: Run) -> None:
    answer = run("two", "--together", device="0")
    assert answer.code == 2
    assert answer.err == (
        "apex4-probe: --together needs two GPUs or more and --device 0 gives one: name them, as in "
        "--device all --together\n"
    )
    assert not answer.folder.exists()


def waits_for(process: subprocess.Popen[str], word: str) -> list[str]:
    """Lines of stderr up to the one with ``word``."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed outright"])
def test_interrupted_half_way_leaves_whole_files_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [sys.executable, str(HERE), "waits", "run", "--device", "all", "--out", "host"]
    environment = {**os.environ, recorded_host.PIDS: str(pids)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        waits_for(process, "GPU 1: mma.s8.m16n8k32")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "apex4-probe: interrupted; no partial file was left"
        assert "Measured before that: host/gpu0/profile.yaml." in " ".join(out.split())
    deadline = time.monotonic() + 20
    while living(pids):
        assert time.monotonic() < deadline, "a worker outlived the run"
        time.sleep(0.1)
    assert list(tmp_path.rglob(".apex4-*")) == []
    assert [path.name for path in (tmp_path / "host").iterdir()] == ["gpu0"]
    assert load_profile(tmp_path / "host" / "gpu0" / "profile.yaml").origin == "measured"
    assert (tmp_path / "host" / "gpu0" / "report.html").read_text().rstrip().endswith("</html>")
