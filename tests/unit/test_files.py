"""Files appear whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apex4_probe.errors import ApexError
from apex4_probe.files import read_limited, write_set, write_whole


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder, hidden files too: contents, None for a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def assert_one_sentence(error: BaseException, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    for part in parts:
        assert part in text


def failing(*, after: int, error: BaseException, real: Any) -> Any:
    """``real``, until it has been called ``after`` times."""
    calls = 0

    def replacement(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise error
        return real(*args)

    return replacement


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("content", "stored"), [("ρ = 16 –\n", "ρ = 16 –\n".encode()), (b"\x89PNG\x00", b"\x89PNG\x00")]
)
def test_writes_text_as_utf8_and_bytes_as_they_are(tmp_path: Path, content: str | bytes, stored: bytes) -> None:
    write_whole(tmp_path / "new" / "deeper" / "file", content)
    assert tree(tmp_path) == {"new": None, "new/deeper": None, "new/deeper/file": stored}


def test_replaces_the_previous_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("a much longer previous content")
    (tmp_path / "other").write_text("other")
    write_whole(tmp_path / "profile.yaml", "new")
    assert tree(tmp_path) == {"profile.yaml": b"new", "other": b"other"}


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_whole(tmp_path / "shared", "x")
    finally:
        os.umask(previous)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o640


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_name_of_the_longest_kind(tmp_path: Path) -> None:
    write_whole(tmp_path / ("n" * 255), "x")
    assert tree(tmp_path) == {"n" * 255: b"x"}


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ApexError) as caught:
        write_whole(tmp_path / "file" / "deeper" / "profile.yaml", "x")
    assert_one_sentence(caught.value, str(tmp_path / "file" / "deeper" / "profile.yaml"), "is a file")
    assert tree(tmp_path) == {"file": b"kept"}


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").mkdir()
    with pytest.raises(ApexError) as caught:
        write_set(tmp_path, {"report.html": "x", "profile.yaml": "x"})
    assert_one_sentence(caught.value, "profile.yaml", "is a directory", "name a file")
    assert tree(tmp_path) == {"profile.yaml": None}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, the folder that even root cannot write to")
@pytest.mark.parametrize("path", ["/proc/profile.yaml", "/proc/new/profile.yaml"])
def test_a_folder_that_cannot_be_written(path: str) -> None:
    with pytest.raises(ApexError) as caught:
        write_whole(path, "x")
    assert_one_sentence(caught.value, path, "choose another path")


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(ApexError) as caught:
        write_whole("/dev/null", "x")
    assert_one_sentence(caught.value, "/dev/null", "not a file")
    assert Path("/dev/null").is_char_device()


def test_paths_and_texts_that_no_file_system_takes(tmp_path: Path) -> None:
    for path, content, part in [("a\0b", "x", "null"), ("n" * 256, "x", "shorter name"), ("f", "\ud800", "surrogate")]:
        with pytest.raises(ApexError) as caught:
            write_whole(tmp_path / "new" / path, content)
        assert_one_sentence(caught.value, part)
    assert tree(tmp_path) == {}


OLD = {"profile.yaml": b"old profile", "report.html": b"old report"}
NEW: dict[str, bytes | str] = {"plots/rho.png": b"new plot", "report.html": "new report", "profile.yaml": "new profile"}


@pytest.mark.parametrize("error", [NO_SPACE, KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
@pytest.mark.parametrize(
    ("function", "after"),
    [("fsync", 0), ("fsync", 2), ("replace", 0), ("replace", 1), ("replace", 2), ("mkdir", 0), ("open", 1)],
)
def test_interrupted_anywhere_everything_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, after: int, error: BaseException
) -> None:
    for name, content in OLD.items():
        (tmp_path / name).write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing(after=after, error=error, real=getattr(os, function)))
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ApexError) as caught:
            write_set(tmp_path, NEW)
    if error is NO_SPACE:
        assert_one_sentence(caught.value, str(tmp_path), "no space left on device", "free some space")
    assert tree(tmp_path) == OLD

    write_set(tmp_path, NEW)  # and the next attempt finds nothing in its way
    assert tree(tmp_path) == {
        "plots": None,
        "plots/rho.png": b"new plot",
        "profile.yaml": b"new profile",
        "report.html": b"new report",
    }


def test_renamed_in_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed: list[str] = []
    real = os.replace

    def recording(source: Path, target: Path) -> None:
        renamed.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", recording)
    write_set(tmp_path, NEW)
    assert renamed == ["rho.png", "report.html", "profile.yaml"]


LIMITED = """
import resource, sys
from apex4_probe.errors import ApexError
from apex4_probe.files import write_set
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_set(sys.argv[1], {"report.html": "fits", "profile.yaml": "x" * 65537})
except ApexError as error:
    print(error)
    sys.exit(2)
"""


def test_file_size_limit_of_the_process(tmp_path: Path) -> None:
    """The kernel's signal for it (SIGXFSZ) would kill a process that did not ignore it."""
    (tmp_path / "profile.yaml").write_bytes(b"old profile")
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stderr) == (2, "")
    assert result.stdout.count("\n") == 1
    assert "profile.yaml: file too large; raise the file size limit (ulimit -f)" in result.stdout
    assert tree(tmp_path) == {"profile.yaml": b"old profile"}


def test_reads_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("–abc".encode())
    assert read_limited(path, 6) == "–abc"
    with pytest.raises(ApexError) as caught:
        read_limited(path, 5)
    assert_one_sentence(caught.value, str(path), "larger than 5 bytes")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ApexError, match="larger than 1,048,576 bytes"):
        read_limited("/dev/zero", 2**20)


def test_drops_the_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfname: x")
    assert read_limited(tmp_path / "text", 100) == "name: x"


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"gr\xfcn")
    for path, part in [
        (tmp_path / "absent", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "latin", "not UTF-8 text (byte 2)"),
        (tmp_path / "latin" / "deeper", "not a directory"),
        (tmp_path / "a\0b", "null"),
    ]:
        with pytest.raises(ApexError) as caught:
            read_limited(path, 1000)
        assert_one_sentence(caught.value, str(path), part)
