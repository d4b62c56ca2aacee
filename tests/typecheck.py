"""mypy --strict over every package, and the proof that it sees them.

The top-level folders are mapped to ``apex4_probe.*`` by setuptools. An editable install does that with an import hook,
which mypy does not execute: it would take ``apex4_probe.kernels`` for missing, or for Any. So the packages are laid out
as their import names say, by symbolic links, and mypy reads that. Called as a program it also plants a type error in a
copy of each mapped package and fails unless mypy objects.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("microbench", "kernels", "profiles", "reports")
PLANTED = "\nplanted_type_error: int = 'text'\n"


def lay_out(destination: Path) -> Path:
    """``destination/apex4_probe`` with a link to every file and mapped folder; returns ``destination``."""
    package = destination / "apex4_probe"
    shutil.rmtree(destination, ignore_errors=True)
    package.mkdir(parents=True)
    for source in (ROOT / "apex4_probe").iterdir():
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    for folder in MAPPED:
        (package / folder).symlink_to(ROOT / folder, target_is_directory=True)
    return destination


def mypy(layout: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """mypy over the layout; ``cache`` may be shared by the runs of one process."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)]
    environment = {**os.environ, "MYPYPATH": str(layout)}
    return subprocess.run(
        [*command, "-p", "apex4_probe"], cwd=layout, env=environment, capture_output=True, text=True, check=False
    )


def plant(layout: Path, folder: str) -> Path:
    """Replace the link to ``folder`` by a copy whose ``__init__.py`` holds a type error; returns that file."""
    link = layout / "apex4_probe" / folder
    link.unlink()
    shutil.copytree(ROOT / folder, link, ignore=shutil.ignore_patterns("*.yaml", "*.json", "measured", "__pycache__"))
    target = link / "__init__.py"
    target.write_text(target.read_text() + PLANTED)
    return target


def main() -> int:
    # A folder of its own, cache included: two calls at once, or a cache of another state, must not decide anything.
    with tempfile.TemporaryDirectory() as scratch:
        layout, cache = Path(scratch) / "layout", Path(scratch) / "cache"
        result = mypy(lay_out(layout), cache)
        print(result.stdout + result.stderr, end="")
        if result.returncode != 0:
            return result.returncode
        for folder in MAPPED:
            plant(lay_out(layout), folder)
            planted = mypy(layout, cache)
            if planted.returncode != 1 or f"apex4_probe/{folder}/__init__.py" not in planted.stdout:
                print(f"mypy does not see apex4_probe.{folder}: a planted type error went unnoticed", file=sys.stderr)
                return 1
    print(f"mypy sees {', '.join(f'apex4_probe.{folder}' for folder in MAPPED)}: a type error planted in each is found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
