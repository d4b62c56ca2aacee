"""The cache of cubins and machine code: keys, damage, races, folders that cannot be written."""

import multiprocessing
from pathlib import Path

import pytest

from apex4_probe.kernels import disk_cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("APEX4_PROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_keys_tell_parts_apart():
    assert disk_cache.key_of("ab", "c") != disk_cache.key_of("a", "bc")
    assert disk_cache.key_of("ab") != disk_cache.key_of("ab", "")
    assert disk_cache.key_of("a", "b") == disk_cache.key_of("a", b"b")


def test_round_trip():
    assert disk_cache.read("cubin", "key") is None
    path = disk_cache.write("cubin", "key", b"\x7fELF")
    assert path == disk_cache.path_of("cubin", "key")
    assert disk_cache.read("cubin", "key") == b"\x7fELF"


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:3], lambda _b: b"", lambda b: bytes([b[0] ^ 1]) + b[1:]]
)
def test_damage_is_never_returned(damage):
    path = disk_cache.write("cubin", "key", b"content")
    path.write_bytes(damage(path.read_bytes()))
    assert disk_cache.read("cubin", "key") is None


def test_folder_that_cannot_be_written_is_no_error(folder):
    folder.write_text("a file where the folder should be")
    assert disk_cache.write("cubin", "key", b"content") is None
    assert disk_cache.read("cubin", "key") is None


def _fill(number: int) -> bool:
    disk_cache.write("cubin", "same", b"x" * 100_000)
    disk_cache.write("cubin", f"own{number}", bytes([number]))
    return disk_cache.read("cubin", "same") == b"x" * 100_000


def test_ten_processes_at_once(folder):
    with multiprocessing.get_context("fork").Pool(10) as pool:
        assert all(pool.map(_fill, range(10)))
    assert len(list(folder.rglob("*.cubin"))) == 11
    assert not list(folder.rglob("*.part"))


def test_interrupted_write_leaves_nothing(folder, monkeypatch):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        disk_cache.write("cubin", "key", b"content")
    assert not [path for path in folder.rglob("*") if path.is_file()]
