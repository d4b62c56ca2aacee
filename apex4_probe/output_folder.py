"""Where a run's files go: the folder's name, and whether it can be written, asked before anything is measured."""

from __future__ import annotations

import os
import re
import tempfile
from datetime import date
from pathlib import Path

from apex4_probe.errors import ApexError

PROFILE = "profile.yaml"
DEFAULT_TEMPLATE = "apex4-{device}-{date}"


def slug(device_name: str, mig: str | None = None) -> str:
    """ "NVIDIA H100 80GB HBM3" is h100-80gb-hbm3; a MIG slice carries its profile's name."""
    name = re.sub(r"^\s*NVIDIA\s+(GeForce\s+)?", "", device_name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9.]+", "-", f"{name} {mig or ''}".lower()).strip("-.") or "gpu"


def choose(template: str | None, device: str, today: date, default: str = DEFAULT_TEMPLATE) -> Path:
    """The folder that ``--out`` names ({device} and {date} filled in), or one of our naming that does not exist yet."""
    text = (template or default).replace("{device}", device).replace("{date}", today.isoformat())
    if template:
        return Path(text).expanduser()
    folder, counter = Path(text), 1
    while os.path.lexists(folder):
        counter += 1
        folder = Path(f"{text}-{counter}")
    return folder


def require_writable(folder: Path) -> None:
    """Try it with a file, since permissions alone do not tell of read-only mounts or full disks; leaves nothing behind.

    Raises ApexError.
    """
    if (folder / PROFILE).is_dir():
        raise ApexError(f"--out {folder}: {PROFILE} in it is a folder; choose another one")
    try:
        existing = folder
        while not os.path.lexists(existing):
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0" * 65536)
            file.flush()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ApexError(f"--out {folder}: cannot write there ({reason.lower()}); choose another folder") from error
