"""Files that can be made again: written whole with their SHA-256 behind them, and trusted only if it still fits.

Safe between processes: whoever comes second replaces a file by an equal one. A folder that cannot be written is no
error, the work is then done again."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """``$APEX4_PROBE_CACHE``, else the XDG cache folder; not created here."""
    if chosen := os.environ.get("APEX4_PROBE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apex4-probe"


def key_of(*parts: str | bytes) -> str:
    """Hexadecimal key of a sequence of parts; each is hashed by itself, so that no two sequences run together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return digest.hexdigest()


def path_of(kind: str, key: str) -> Path:
    """Where the entry lies; ``kind`` is a folder and the file's ending."""
    return cache_folder() / kind / f"{key}.{kind}"


def read(kind: str, key: str) -> bytes | None:
    """The entry's content, None when it is missing or damaged."""
    try:
        stored = path_of(kind, key).read_bytes()
    except OSError:
        return None
    content, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write(kind: str, key: str, content: bytes) -> Path | None:
    """Keep an entry. None when the folder cannot be written."""
    path = path_of(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    except OSError:
        return None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + hashlib.sha256(content).digest())
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        return None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
