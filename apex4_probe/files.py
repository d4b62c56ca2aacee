"""Files written whole or not at all, and read within a limit.

A file is written to a temporary neighbour, flushed to the disk and renamed over its target, so that a full disk, a file
size limit (RLIMIT_FSIZE; CPython ignores SIGXFSZ and so sees EFBIG), a missing permission or Ctrl-C leaves the previous
file as it was and nothing beside it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from apex4_probe.errors import ApexError

_ADVICE = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some of your quota or write to another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f) or write to another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "a part of this path is a file: choose another folder",
    errno.EEXIST: "a part of this path is a file: choose another folder",
    errno.EISDIR: "this is a folder: name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write one file, creating its folder where there is none.

    Raises ApexError where the system refuses; then, and on Ctrl-C, a previous file is intact and nothing new is left.
    """
    target = Path(path)
    write_set(target.parent, {target.name: content})


def write_set(folder: str | os.PathLike[str], files: Mapping[str, bytes | str]) -> None:
    """Write several files of one folder, all or none: the name (it may hold "/") and content of each.

    Everything that is likely to fail (creating folders, space, permission) happens while the files are staged under
    temporary names; only then are they renamed, in the order given, and a rename that fails undoes those before it from
    copies of what they replaced. The one gap is a process killed outright between two renames: the files are then
    whole, but of two runs. Put the file that others rely on last.

    Raises ApexError where the system refuses; then, and on Ctrl-C, previous files are intact and nothing new is left.
    """
    root = Path(folder)
    with _one_sentence(root), _undone_on_failure() as undo:
        staged = []
        for name, content in files.items():
            # A symbolic link keeps pointing where it points: what it names is replaced, not the link.
            target = Path(os.path.realpath(root / name))
            with _one_sentence(root / name):
                _make_folder(target.parent, undo)
                if target.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                staged.append((_stage(target, content, undo), _copy_aside(target, undo), target))
        for temporary, previous, target in staged:
            with _one_sentence(target):
                undo.renamed.append((previous, target))
                os.replace(temporary, target)
        for parent in {target.parent for _, _, target in staged}:
            _flush_folder(parent)


def read_limited(path: str | os.PathLike[str], limit: int) -> str:
    """The text of a UTF-8 file of at most ``limit`` bytes (a byte-order mark is dropped).

    Raises ApexError for a missing, unreadable, oversized or non-UTF-8 file and for a folder.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except IsADirectoryError:
        raise ApexError(f"{path} is a folder: name the file in it") from None
    except FileNotFoundError:
        raise ApexError(f"{path} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise ApexError(f"cannot read {path}: {_reason(error)}") from None
    if len(content) > limit:
        raise ApexError(f"{path} is larger than {limit:,} bytes, more than such a file may be: is it the right one?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApexError(f"{path} is not UTF-8 text (byte {error.start}): is it the right file?") from None


class _Undo:
    """What exists on the disk because of an unfinished write."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.temporaries: list[Path] = []
        self.renamed: list[tuple[Path | None, Path]] = []  # copy of what was there (None: nothing) and the target

    def remove_temporaries(self) -> None:
        for temporary in self.temporaries:
            with suppress(OSError):
                temporary.unlink()

    def roll_back(self) -> None:
        for previous, target in reversed(self.renamed):
            with suppress(OSError):
                if previous is not None:
                    os.replace(previous, target)
                else:
                    target.unlink()
        self.remove_temporaries()
        for folder in reversed(self.folders):
            with suppress(OSError):  # not empty: somebody else has put a file there meanwhile
                folder.rmdir()


@contextmanager
def _undone_on_failure() -> Iterator[_Undo]:
    undo = _Undo()
    try:
        yield undo
    except BaseException:  # Ctrl-C too
        undo.roll_back()
        raise
    undo.remove_temporaries()


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        advice = _ADVICE.get(code or 0, "choose another path")
        raise ApexError(f"cannot write {path}: {_reason(error)}; {advice}") from None


def _reason(error: OSError | ValueError) -> str:
    """ValueError: a null byte in the path."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text[:1].lower() + text[1:]


def _make_folder(folder: Path, undo: _Undo) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    for path in reversed(missing):
        undo.folders.append(path)
        os.makedirs(path, exist_ok=True)


def _stage(target: Path, content: bytes | str, undo: _Undo) -> Path:
    try:
        data = content.encode("utf-8") if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise ApexError(f"cannot write {target}: its text holds a lone surrogate (character {error.start})") from None
    # Not tempfile: its files are private (0600), and a profile is there to be shared as the umask allows.
    temporary = _temporary(target, undo)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _copy_aside(target: Path, undo: _Undo) -> Path | None:
    """Made while staging, where a full disk still harms nothing."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "there is something there that is not a file")
    copy = _temporary(target, undo)
    shutil.copy2(target, copy)
    return copy


def _temporary(target: Path, undo: _Undo) -> Path:
    """A name in the same folder, hence on the same disk; short, since the target's may already be of the longest."""
    path = target.with_name(f".apex4-{secrets.token_hex(8)}.tmp")
    undo.temporaries.append(path)  # before it exists, so that Ctrl-C finds it whenever it comes
    return path


def _flush_folder(folder: Path) -> None:
    """Make the renames survive a power cut. Best effort: some network file systems do not offer it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
