"""The command line: what it answers, what it refuses in one sentence, and what it leaves on the disk."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import fake_machine
import pytest
import recorded_host
import sample_profile
from typer.main import get_command

import apex4_probe
from apex4_probe import cli, flow, gemm_bench, verify_job
from apex4_probe.checkout import commit
from apex4_probe.deployment import Profile
from apex4_probe.discovery import NoGpuError
from apex4_probe.errors import ApexError, ProfileError
from apex4_probe.microbench import suite
from apex4_probe.output_folder import slug
from apex4_probe.profile_file import load_profile, write_profile

HEAVY = {"torch", "cupy", "matplotlib", "pandas", "numpy", "yaml", "jinja2", "pynvml"}
HELP_SECONDS = 0.5  # the promise of the issue; the best of several runs, since the machine may be busy


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr of a refusal."""
        assert "Traceback" not in self.out + self.err
        (line,) = self.err.splitlines()
        assert line.startswith("apex4-probe: ")
        return line.removeprefix("apex4-probe: ")


Call = Callable[..., Answer]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Runs the command line in this process, in an empty folder, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APEX4_PROBE_DEBUG", raising=False)
    monkeypatch.setattr(flow, "survey", fake_machine.survey_nothing)
    monkeypatch.setattr(verify_job, "discover", fake_machine.discover_nothing)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/apex4-probe", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Answer(stop.value.code, out, err)

    return run


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``call``: the machine has the sample profile's H100."""
    monkeypatch.setattr(flow, "survey", fake_machine.survey_one)
    monkeypatch.setattr(verify_job, "discover", fake_machine.discover_one)
    monkeypatch.setattr(suite, "measure", fake_machine.measure)
    monkeypatch.setattr(suite, "remeasure", fake_machine.remeasure)
    monkeypatch.setattr(gemm_bench, "torch_installed", lambda: False)
    monkeypatch.setattr(gemm_bench, "why_no_torch", fake_machine.no_torch)


def program(*arguments: str, cwd: Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own: ``fake_machine`` SCENARIO VERB …"""
    script = Path(fake_machine.__file__)
    environment = {name: value for name, value in os.environ.items() if name != "APEX4_PROBE_DEBUG"}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, preexec_fn=before, timeout=120,
    )  # fmt: skip


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --help, --version


def test_help_is_quick_and_light() -> None:
    code = (
        "import sys; sys.argv = ['apex4-probe', *sys.argv[1:]]\n"
        "from apex4_probe.cli import main\n"
        "try: main()\n"
        "finally: print('modules:', *sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    seconds = []
    for arguments in (["--help"], ["run", "--help"], ["--help"], ["--help"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)  # processor time: the other core's tests take none of it
        answer = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        loaded = set(answer.stderr.split("modules:")[1].split())
        assert "typer" in loaded
        assert loaded & HEAVY == set()
    assert min(seconds) < HELP_SECONDS


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, apex4_probe; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) & (HEAVY | {"typer", "rich", "pydantic"}) == set()


def test_version_and_the_verbs_that_work(call: Call) -> None:
    assert call("--version") == Answer(0, f"apex4-probe {apex4_probe.__version__}\n", "")
    assert list(get_command(cli.app).commands) == [  # type: ignore[attr-defined]
        "run", "predict", "show", "compare", "verify", "bench", "doctor",
    ]  # fmt: skip
    assert call("quantize", "model").code == 2


# run without a GPU


def test_without_a_gpu_the_first_line_says_so_and_one_device_is_predicted(call: Call, tmp_path: Path) -> None:
    answer = call("run", "--like", "RTX 3090")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.splitlines()[0].startswith("Nothing was measured: --like asks for NVIDIA GeForce RTX 3090.")
    folder = tmp_path / f"apex4-rtx-3090-{date.today().isoformat()}"
    assert {"profile.yaml", "report.html"} <= set(files_in(folder))
    profile = load_profile(folder / "profile.yaml")
    assert profile.origin == "predicted"
    assert profile.provenance.mode == "predicted"
    assert {figure.origin for figure in profile.measurements} <= {"predicted", "datasheet"}
    assert profile.provenance.command == "apex4-probe run --like 'RTX 3090'"  # no path of this machine
    assert "\x1b[" not in answer.out


def test_the_tour_writes_a_profile_a_device_and_one_table(call: Call, tmp_path: Path) -> None:
    from apex4_probe.datasheets import datasheets

    answer = call("run", "--out", "tour")
    assert answer.code == 0
    first = answer.out.splitlines()[0]
    assert first.startswith("Nothing was measured: no NVIDIA driver found (NVML: library not found).")
    assert files_in(tmp_path / "tour") == sorted(f"{slug(sheet.name)}.yaml" for sheet in datasheets())
    for path in (tmp_path / "tour").iterdir():
        profile = load_profile(path)
        assert profile.origin == "predicted"
        assert {figure.origin for figure in profile.measurements} <= {"predicted", "datasheet"}
    assert "RTX 3090" in answer.out


def test_json_is_all_that_stdout_holds_and_quiet_prints_nothing(call: Call, tmp_path: Path) -> None:
    answer = call("run", "--like", "A100", "--out", "here", "--json")
    assert answer.code == 0
    (entry,) = json.loads(answer.out)["profiles"]
    assert entry["path"] == "here/profile.yaml"
    assert Profile.model_validate(entry["profile"]) == load_profile(tmp_path / "here" / "profile.yaml")
    assert answer.err.startswith("Nothing was measured")
    assert call("run", "--like", "A100", "--out", "there", "--quiet") == Answer(0, "", "")
    assert "profile.yaml" in files_in(tmp_path / "there")


def test_require_gpu_insists(call: Call, tmp_path: Path) -> None:
    answer = call("run", "--require-gpu")
    assert answer.code == 2
    assert "no NVIDIA driver found" in answer.sentence
    assert "--require-gpu" in answer.sentence
    assert files_in(tmp_path) == []
    assert call("run", "--require-gpu", "--like", "A100").code == 2


def test_a_folder_of_our_naming_never_exists_before(call: Call, tmp_path: Path) -> None:
    for _ in range(3):
        assert call("run", "--like", "A100", "--quiet").code == 0
    name = f"apex4-a100-sxm4-80gb-{date.today().isoformat()}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}-2", f"{name}-3"]


@pytest.mark.parametrize(
    ("name", "mig", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", None, "h100-80gb-hbm3"),
        ("NVIDIA H100 80GB HBM3", "1g.10gb", "h100-80gb-hbm3-1g.10gb"),
        ("NVIDIA GeForce RTX 4090", None, "rtx-4090"),
        ("Tesla T4", None, "tesla-t4"),
        ("../../etc", None, "etc"),
        ("…", None, "gpu"),
    ],
)
def test_folder_names(name: str, mig: str | None, expected: str) -> None:
    assert slug(name, mig) == expected


# run with a GPU


@pytest.mark.usefixtures("h100")
def test_a_measured_run_ends_in_profile_report_and_terminal(
    call: Call, h100: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "survey", fake_machine.survey_one)
    answer = call("run", "--out", "results/{device}/{date}", "--workload", "decode:64*3,prefill:1024", "--full")
    assert answer.code == 0
    assert answer.err.splitlines() == [" 50% mma.s8.m16n8k32, 0:00 left", "100% planning"]  # no terminal: plain lines
    assert answer.out.splitlines()[0] == "Measuring GPU 0 (NVIDIA H100 80GB HBM3)."
    folder = tmp_path / "results" / "h100-80gb-hbm3" / date.today().isoformat()
    profile = load_profile(folder / "profile.yaml")
    assert profile.origin == "measured"
    assert profile.device == fake_machine.H100.device
    assert (profile.environment.driver, profile.environment.cuda_driver) == ("580.95.05", "13.0")
    assert profile.provenance.mode == "full"
    assert profile.provenance.commit == commit()
    assert profile.provenance.warnings == ["recorded for GPU 0, full=True"]
    recorded = [(m.name, m.operands, m.regime, m.unsupported) for m in sample_profile.sample_measurements()]
    assert [(m.name, m.operands, m.regime, m.unsupported) for m in profile.measurements] == recorded
    values = [m.value or 0.0 for m in sample_profile.sample_measurements()]
    assert [m.value or 0.0 for m in profile.measurements] == pytest.approx(values, rel=1e-5)  # written with six digits
    assert [(point.phase, point.m, point.weight) for point in profile.workload.points] == [
        ("decode", 64, 3.0),
        ("prefill", 1024, 1.0),
    ]
    assert "GPU-1111" not in (folder / "profile.yaml").read_text()
    assert (folder / "report.html").stat().st_size > 1000


def test_everything_is_refused_before_the_gpu_is_touched(
    call: Call, h100: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "survey", fake_machine.survey_one)

    def touched(*_arguments: object, **_options: object) -> None:
        raise AssertionError("measured although the request was bad")

    monkeypatch.setattr(suite, "measure", touched)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "profile.yaml").mkdir(parents=True)
    for arguments in (
        ["--model", "no-such-model"],
        ["--workload", "decode:0"],
        ["--max-quality-loss", "nan"],
        ["--min-speedup", "inf"],
        ["--max-quality-loss", "-0.1"],
        ["--tp", "0"],
        ["--tp", "100000"],
        ["--tp", "3"],
        ["--out", "file"],
        ["--out", "file/below"],
        ["--out", "taken"],
        ["--out", "a\0b"],
        ["--like", "RTX 0000"],
        ["--together", "--quiet"],
        ["--together", "--like", "A100"],
    ):
        answer = call("run", *arguments)
        assert answer.code == 2, arguments
        assert arguments[1].split("\0")[0] in answer.sentence or arguments[0] in answer.sentence
    assert files_in(tmp_path) == ["file", "taken", "taken/profile.yaml"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--format", "int3"],
        ["run", "--nonsense"],
        ["run", "extra"],
        ["nonsense"],
        ["show"],
    ],
)
def test_usage_errors_exit_with_2(call: Call, arguments: list[str]) -> None:
    answer = call(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert "Usage: apex4-probe" in answer.err


def test_a_prediction_replaces_a_measurement_only_by_force(call: Call, tmp_path: Path) -> None:
    kept = write_profile(sample_profile.sample_profile(), tmp_path / "here" / "profile.yaml")
    answer = call("run", "--like", "H100", "--out", "here")
    assert answer.code == 2
    assert "--force" in answer.err
    assert files_in(tmp_path / "here") == ["profile.yaml"]
    assert load_profile(tmp_path / "here" / "profile.yaml") == kept
    assert call("run", "--like", "H100", "--out", "here", "--force", "--quiet").code == 0
    assert load_profile(tmp_path / "here" / "profile.yaml").origin == "predicted"


def test_ctrl_c_half_way_leaves_the_previous_profile_and_nothing_else(tmp_path: Path) -> None:
    kept = write_profile(sample_profile.sample_profile(), tmp_path / "here" / "profile.yaml")
    answer = program("interrupted", "run", "--out", "here", cwd=tmp_path)
    assert answer.returncode == 130
    assert answer.stderr.splitlines() == [
        " 50% mma.s8.m16n8k32, 0:00 left",
        "apex4-probe: interrupted; no partial file was left",
    ]
    assert files_in(tmp_path) == ["here", "here/profile.yaml"]
    assert load_profile(tmp_path / "here" / "profile.yaml") == kept
    assert program("interrupted", "run", "--out", "new", cwd=tmp_path).returncode == 130
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("limit", [1000, 100_000], ids=["refused at the start", "full at the end"])
def test_a_full_disk_leaves_the_previous_profile_and_nothing_else(tmp_path: Path, limit: int) -> None:
    kept = write_profile(sample_profile.sample_profile(), tmp_path / "here" / "profile.yaml")

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    answer = program("h100", "run", "--out", "here", cwd=tmp_path, before=no_room)
    assert answer.returncode == 2
    *progress, line = answer.stderr.splitlines()
    assert all(re.match(r" 50% |100% ", step) for step in progress)
    assert line.startswith("apex4-probe: ") and "file too large" in line
    assert files_in(tmp_path / "here") == ["profile.yaml"]
    assert load_profile(tmp_path / "here" / "profile.yaml") == kept


def test_an_unforeseen_error_is_one_sentence_and_debug_shows_where(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("a line\nand another")

    monkeypatch.setattr(flow, "predict", broken)
    answer = call("run", "--like", "A100", "--quiet")
    assert answer.code == 2
    assert answer.sentence.startswith("internal error: RuntimeError: a line and another")
    monkeypatch.setenv("APEX4_PROBE_DEBUG", "1")
    assert "Traceback" in call("run", "--like", "A100", "--quiet").err


# show, verify


@pytest.fixture
def saved(tmp_path: Path) -> Profile:
    return write_profile(sample_profile.sample_profile(tool_version=apex4_probe.__version__), tmp_path / "profile.yaml")


def test_show_prints_a_profile_or_its_json(call: Call, saved: Profile, tmp_path: Path) -> None:
    assert "H100" in call("show", "profile.yaml").out
    assert "H100" in call("show", str(tmp_path)).out
    assert Profile.model_validate_json(call("show", "profile.yaml", "--json").out) == saved


def test_show_into_a_closed_pipe_is_silent(saved: Profile, tmp_path: Path) -> None:
    script = Path(fake_machine.__file__)
    command = f"{sys.executable} {script} no-gpu show profile.yaml | head -c 10; exit ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.stderr == ""
    assert answer.returncode == 0


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"decision: [", b"schema_version: '9.0'\n", b"a: &a [*a]\n"])
def test_a_bad_profile_is_one_sentence(call: Call, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "profile.yaml").write_bytes(content)
    for verb in ("show", "verify"):
        answer = call(verb, "profile.yaml")
        assert answer.code == 2
        assert "profile.yaml" in answer.sentence
    assert call("show", "absent.yaml").code == 2


def test_verify_without_a_gpu_is_an_environment_error(call: Call, saved: Profile) -> None:
    answer = call("verify", "profile.yaml")
    assert answer.code == 2
    assert "no NVIDIA driver found" in answer.sentence


def test_verify_holds_on_the_machine_it_was_written_on(
    call: Call, h100: None, saved: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_job, "discover", fake_machine.discover_one)
    answer = call("verify", "profile.yaml")
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == "The profile holds on this machine."
    report = json.loads(call("verify", "profile.yaml", "--measure", "--json").out)
    assert report["holds"] is True
    assert report["hard"] == []
    assert len(report["drift"]) >= 8
    assert not any(figure["significant"] for figure in report["drift"])


def test_verify_fails_on_another_gpu_and_does_not_measure_it(
    call: Call, h100: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_job, "discover", fake_machine.discover_one)
    monkeypatch.setattr(suite, "remeasure", None)
    write_profile(sample_profile.sample_profile(device=sample_profile.sample_device(sm_count=114)), tmp_path / "p.yaml")
    answer = call("verify", "p.yaml", "--measure", "--json")
    assert answer.code == 1
    report = json.loads(answer.out)
    assert [(item["field"], item["profile_value"], item["machine_value"]) for item in report["hard"]] == [
        ("device.sm_count", "114", "132")
    ]
    assert report["drift"] is None


def test_verify_measure_fails_on_a_figure_that_moved(
    call: Call, h100: None, saved: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(_gpu_index: int, names: set[str]) -> list[object]:
        return [
            figure.model_copy(update={"value": figure.value * 0.8}) if figure.name == "memory.copy" else figure
            for figure in fake_machine.remeasure(0, names)
            if figure.value is not None
        ]

    monkeypatch.setattr(verify_job, "discover", fake_machine.discover_one)
    monkeypatch.setattr(suite, "remeasure", slower)
    answer = call("verify", "profile.yaml", "--measure", "--json")
    assert answer.code == 1
    moved = [figure for figure in json.loads(answer.out)["drift"] if figure["significant"]]
    assert [(figure["name"], round(figure["ratio"], 3)) for figure in moved] == [("memory.copy burst", 0.8)]


def test_verify_measure_refuses_a_prediction(call: Call, h100: None, tmp_path: Path) -> None:
    write_profile(sample_profile.predicted_profile(), tmp_path / "p.yaml")
    answer = call("verify", "p.yaml", "--measure")
    assert answer.code == 2
    assert "apex4-probe run" in answer.sentence


# from Python


def test_python_does_what_the_verb_does(h100: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = apex4_probe.run(device=0, model="llama-2-7b", format="w4a4")
    assert (profile.origin, profile.workload.model, profile.workload.format) == ("measured", "llama-2-7b", "w4a4")
    assert profile.provenance.command == "apex4_probe.run(model='llama-2-7b', format='w4a4', device=0)"
    assert files_in(tmp_path) == []
    assert apex4_probe.run(like="A40").origin == "predicted"
    monkeypatch.setattr(flow, "survey", recorded_host.survey_of("two"))
    with pytest.raises(ApexError, match="names 2"):
        apex4_probe.run(device="all")
    monkeypatch.setattr(flow, "survey", fake_machine.survey_nothing)
    with pytest.raises(NoGpuError, match="no NVIDIA driver"):
        apex4_probe.run()
    with pytest.raises(ProfileError, match="absent"):
        apex4_probe.load_profile("absent.yaml")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = apex4_probe.nonsense


def test_the_commit_is_that_of_this_checkout_only(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    for arguments in (
        ["init", "-q"],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    found = commit(tmp_path)
    assert found is not None
    assert re.fullmatch(r"[0-9a-f]{40}", found)
    (tmp_path / "inside").mkdir()
    assert commit(tmp_path / "inside") is None
