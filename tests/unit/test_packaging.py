"""The wheel holds everything, the Makefile does what it says, and mypy sees what it is given."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import typecheck  # noqa: E402

MAPPED = {"apex4_probe": "apex4_probe", **{name: f"apex4_probe/{name}" for name in typecheck.MAPPED}}
GENERATED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without the network: setuptools is in the test extra."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for folder in MAPPED:
        shutil.copytree(ROOT / folder, tree / folder, ignore=GENERATED)
    out = tmp_path_factory.mktemp("wheel")
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def files_of_the_packages() -> set[str]:
    found = set()
    for folder, package in MAPPED.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = files_of_the_packages()
    assert {
        "apex4_probe/py.typed",
        "apex4_probe/profiles/architectures.yaml",
        "apex4_probe/kernels/compile.py",
    } <= expected
    assert sorted(held ^ expected) == []


def test_the_unpacked_wheel_runs_and_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import apex4_probe, apex4_probe.architecture as a, apex4_probe.datasheets as d; "
        "print(apex4_probe.__file__, a.architecture('8.6').name, len(d.datasheets()) > 10)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == [str(tmp_path / "apex4_probe" / "__init__.py"), "Ampere", "True"]


def test_the_metadata_offers_the_extras_and_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert re.findall(r"^Provides-Extra: (.*)$", texts["METADATA"], re.MULTILINE) == [
        "cuda12",
        "cuda13",
        "torch",
        "test",
    ]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert "apex4-probe = apex4_probe.cli:main" in texts["entry_points.txt"]
    # The core installs on any machine: what needs a GPU or is large comes by an extra or by the Makefile.
    core = [
        line for line in texts["METADATA"].splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert not [line for line in core if re.search(r"torch|cupy|nvidia-cuda", line)]


def make(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed")
    # Not those of the `make test` that may be running this.
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        [program, *arguments], cwd=cwd, env={**outer, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What the Makefile needs to plan its work, with an interpreter in place of a virtual environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "apex4_probe").mkdir()
    shutil.copy(ROOT / "apex4_probe" / "cuda_extra.py", tmp_path / "apex4_probe")
    return tmp_path


def with_environment(project: Path) -> Path:
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return project


@pytest.mark.parametrize(
    ("cuda", "installed"), [("", '--editable "."'), ("cuda12", '".[cuda12]"'), ("cuda13", '".[cuda13,torch]"')]
)
def test_make_run_installs_the_packages_of_the_driver(project: Path, cuda: str, installed: str) -> None:
    plan = make("-n", "run", f"CUDA={cuda}", "ARGS=--model llama-2-7b", cwd=with_environment(project)).stdout
    assert installed in plan
    assert ("torch" in plan) == (cuda == "cuda13")  # PyPI's torch finds no GPU under a driver of CUDA 12
    assert plan.rstrip().endswith(".venv/bin/apex4-probe run --model llama-2-7b")


def test_make_test_installs_torch_pinned_and_first(project: Path) -> None:
    lines = make("-n", "test", "CUDA=", cwd=with_environment(project)).stdout.splitlines()
    installs = [line for line in lines if "pip" in line and " install " in line]
    assert len(installs) == 2
    assert installs[0].split(" install ")[1].startswith('--quiet "torch==2.13.0" >')
    assert '"torch==2.13.0" --editable ".[cuda13,test]"' in installs[1]


def test_a_second_call_installs_nothing_until_pyproject_changes(project: Path) -> None:
    with_environment(project)
    stamp = project / ".venv" / ".installed-run-cpu"
    stamp.touch()
    os.utime(project / "pyproject.toml", (1, 1))
    assert make("-n", "run", "CUDA=", cwd=project).stdout.splitlines() == [".venv/bin/apex4-probe run "]
    (project / "pyproject.toml").touch()
    os.utime(stamp, (2, 2))
    assert "install" in make("-n", "run", "CUDA=", cwd=project).stdout


def test_without_a_new_enough_python_make_says_so(project: Path, tmp_path: Path) -> None:
    empty = tmp_path / "no-programs"
    empty.mkdir()
    answer = make("run", "CUDA=", cwd=project, PATH=str(empty))
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[0].startswith("apex4-probe needs Python 3.10 or newer")
    assert answer.stdout == ""


def test_without_the_venv_module_make_names_the_debian_package(project: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    python = programs / "python3"
    python.write_text(f'#!/bin/bash\n[[ "$*" == *ensurepip* ]] && exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    answer = make("run", "CUDA=", cwd=project, PATH=str(programs))
    version = "{}.{}".format(*sys.version_info[:2])
    assert answer.returncode == 2
    assert f"apt install python{version}-venv" in answer.stderr
    assert not (project / ".venv").exists()


@pytest.mark.slow
def test_mypy_sees_every_mapped_package(tmp_path: Path) -> None:
    for folder in typecheck.MAPPED:
        layout = typecheck.lay_out(tmp_path / "layout")
        typecheck.plant(layout, folder)
        result = typecheck.mypy(layout, cache=tmp_path / "cache")
        assert re.search(
            rf"^apex4_probe/{folder}/__init__\.py:\d+: error: Incompatible types", result.stdout, re.MULTILINE
        )


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            if not link.startswith("https://"):
                assert (ROOT / link).exists(), f"{document} links to {link}, which does not exist"


def test_the_documents_show_only_options_that_exist() -> None:
    from typer.main import get_command

    from apex4_probe.cli import app

    verbs = get_command(app).commands.values()  # type: ignore[attr-defined]  # a group
    known = {option for verb in verbs for parameter in verb.params for option in parameter.opts}
    assert {"--like", "--measure", "--require-gpu"} <= known
    for document in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / document).read_text()))
        assert sorted(used - known - {"--strict"}) == []  # mypy's
