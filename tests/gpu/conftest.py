"""Tests that need an NVIDIA GPU; elsewhere they are skipped with the reason."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apex4_probe.deployment import Profile
from apex4_probe.discovery import NoGpuError, discover
from apex4_probe.errors import ApexError
from apex4_probe.profile_file import load_profile


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    try:
        discover("0")
        reason = ""
    except (NoGpuError, ApexError) as error:
        reason = str(error)
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def run(out: Path, cache: Path, *arguments: str) -> tuple[Profile, float]:
    start = time.monotonic()
    program = "from apex4_probe.cli import main; main()"
    command = [sys.executable, "-c", program, "run", "--require-gpu", "--out", str(out), *arguments]
    answer = subprocess.run(
        command, env={**os.environ, "APEX4_PROBE_CACHE": str(cache)}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return load_profile(out / "profile.yaml"), time.monotonic() - start


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, tuple[Profile, float]]:
    """Profiles and seconds: a cold default run, a warm one, and the full set."""
    folder = tmp_path_factory.mktemp("runs")
    cache = folder / "cache"
    return {
        "cold": run(folder / "cold", cache),
        "warm": run(folder / "warm", cache),
        "full": run(folder / "full", cache, "--full"),
    }


@pytest.fixture(scope="session")
def full(runs) -> Profile:
    return runs["full"][0]
