"""Which commit of this tool is running, when it runs from a checkout or from a copy that was told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def commit(root: Path = HERE) -> str | None:
    """Full hash, with "-dirty" when tracked files differ from it; None for an installed package or without git.

    ``$APEX4_PROBE_COMMIT`` speaks for a copy without its history, such as one sent to a machine that has the GPU.
    """
    if told := os.environ.get("APEX4_PROBE_COMMIT"):
        return told
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
