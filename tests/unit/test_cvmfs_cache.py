"""The client's cache: what comes out is what went in, or nothing; whatever happens to the disk or the process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridstead.cvmfs.client import cache as caches
from gridstead.cvmfs.client.cache import BLOCK, IN_MEMORY, Cache, DiskObject, MemoryObject
from gridstead.cvmfs.digest import CATALOG, Hash
from gridstead.cvmfs.errors import CorruptObjectError

TOOLS = Path(caches.__file__).resolve().parents[3]


def put(cache: Cache, content: bytes, suffix: str = "") -> Hash:
    """Write an object, in pieces as they come from the network."""
    key = Hash.of(content, suffix=suffix)
    writer = cache.writer(key)
    for offset in range(0, len(content), 50_000):
        writer.write(content[offset : offset + 50_000])
    writer.commit()
    return key


def path_of(cache: Cache, key: Hash) -> Path:
    return cache.directory / str(key)[:2] / (str(key)[2:] + key.suffix)


def whole(cache: Cache, key: Hash) -> bytes | None:
    """All of an object, read in pieces of odd sizes; None when it is not there."""
    found = cache.open(key)
    if found is None:
        return None
    return b"".join(found.read(offset, 77_777) for offset in range(0, found.size, 77_777))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, IN_MEMORY - 1, IN_MEMORY, 3 * IN_MEMORY + 5])
def test_objects_come_out_as_they_went_in(cache: Cache, size: int) -> None:
    content = os.urandom(size)
    key = put(cache, content)
    assert whole(cache, key) == content
    assert Cache(cache.directory).open(key) is not None, "another process sees it"


@given(offset=st.integers(0, 3 * BLOCK), size=st.integers(0, 3 * BLOCK))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_range(cache: Cache, offset: int, size: int) -> None:
    content = bytes(range(256)) * (5 * BLOCK // 512)
    key = Hash.of(content)
    found = cache.open(key) or cache.open(put(cache, content))
    assert found is not None
    assert found.read(offset, size) == content[offset : offset + size]


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
def test_a_damaged_file_is_never_believed(cache: Cache, data: st.DataObject) -> None:
    """Flipped bits, truncation, added bytes, zeros after a power failure: an error or nothing, never other bytes."""
    content = bytes(range(256)) * 600
    key = put(cache, content)
    path = path_of(cache, key)
    file = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "zero"]))
    if kind == "flip":
        at = data.draw(st.integers(0, len(file) - 1))
        file[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del file[data.draw(st.integers(0, len(file) - 1)) :]
    elif kind == "grow":
        file += data.draw(st.binary(min_size=1, max_size=64))
    else:
        at = data.draw(st.integers(0, len(file) - 1))
        file[at:] = bytes(len(file) - at)
        if bytes(file) == path.read_bytes():
            return
    path.write_bytes(file)
    try:
        seen = whole(cache, key)
    except CorruptObjectError:
        return
    assert seen is None, f"{kind}: damaged bytes came out"


def test_damage_below_an_open_object_is_seen(cache: Cache) -> None:
    content = os.urandom(4 * BLOCK)
    found = cache.open(put(cache, content))
    assert isinstance(found, DiskObject)
    with found.path.open("r+b") as file:
        file.seek(2 * BLOCK + 7)
        file.write(b"\0" * 16)
    assert found.read(0, 2 * BLOCK) == content[: 2 * BLOCK], "the other blocks are good"
    with pytest.raises(CorruptObjectError):
        found.read(2 * BLOCK, 1)


def test_the_file_of_another_object_is_not_taken(cache: Cache) -> None:
    one, other = put(cache, b"one"), put(cache, b"other")
    path_of(cache, other).rename(path_of(cache, one))
    with pytest.raises(CorruptObjectError):
        cache.open(one)
    assert cache.open(one) is None, "and it is gone"


def test_what_was_used_longest_ago_is_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", quota=1_000_000)
    keys = []
    for number in range(8):
        keys.append(put(cache, os.urandom(100_000)))
        os.utime(path_of(cache, keys[-1]), (number, number))
    assert cache.open(keys[0]) is not None  # notes the use: now the youngest
    before = cache.usage()
    keys += [put(cache, os.urandom(100_000)) for _ in range(3)]
    there = [number for number, key in enumerate(keys) if path_of(cache, key).exists()]
    assert 800_000 < before <= 1_000_000
    assert cache.usage() <= 700_000, "down to half of the quota, then what came after"
    assert 0 in there
    assert 1 not in there
    assert there[-1] == 10
    assert cache.usage() == sum(path.stat().st_size for path in cache.directory.glob("??/*"))
    assert len(cache.cleanups) == 1


def test_an_evicted_object_that_is_open_can_be_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", quota=200_000)
    content = os.urandom(120_000)
    found = cache.open(put(cache, content))
    for _ in range(4):
        put(cache, os.urandom(120_000))
    assert found is not None
    assert cache.open(Hash.of(content)) is None
    assert found.read(0, 200_000) == content


def test_pinned_catalogues_stay(tmp_path: Path) -> None:
    """Also when another process evicts."""
    cache = Cache(tmp_path / "cache", quota=300_000)
    key = put(cache, os.urandom(100_000), CATALOG)
    held = cache.open(key)
    assert held is not None
    held.pin()
    other = Cache(tmp_path / "cache", quota=300_000)
    for _ in range(6):
        put(other, os.urandom(100_000))
    assert cache.open(key) is not None
    del held
    for _ in range(6):
        put(other, os.urandom(100_000))
    assert cache.open(key) is None


def test_processes_share_the_sum(tmp_path: Path) -> None:
    first, second = Cache(tmp_path / "cache", quota=10**9), Cache(tmp_path / "cache", quota=10**9)
    put(first, os.urandom(1000))
    put(second, os.urandom(1000))
    assert first.usage() == second.usage() == sum(path.stat().st_size for path in first.directory.glob("??/*"))


def test_full_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader gets its bytes from memory; the cache holds no half of an object."""
    taken = 0
    write = os.write

    def full(fd: int, data: bytes) -> int:
        nonlocal taken
        taken += len(data)
        if taken > 2 * IN_MEMORY:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    for size in (5 * IN_MEMORY + 3, 10, 3 * IN_MEMORY):
        content = os.urandom(size)
        writer = cache.writer(Hash.of(content))
        for offset in range(0, size, 100_000):
            writer.write(content[offset : offset + 100_000])
        found = writer.commit()
        assert isinstance(found, MemoryObject)
        assert found.size == size
        assert found.read(0, size) == content
        assert cache.open(Hash.of(content)) is None
    assert not list((cache.directory / "tmp").iterdir())


def test_full_disk_and_too_large_for_memory(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MEMORY_LIMIT", 2 * IN_MEMORY)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    writer = cache.writer(Hash.of(b"large"))
    writer.write(bytes(IN_MEMORY))
    writer.write(bytes(IN_MEMORY))
    with pytest.raises(OSError, match="too large for memory"):
        writer.write(b"one more")
    writer.abandon()


def test_full_disk_that_eviction_helps(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [put(cache, os.urandom(10_000)) for _ in range(4)]
    write = os.write

    def full_until_evicted(fd: int, data: bytes) -> int:
        if len(list(cache.directory.glob("??/*"))) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full_until_evicted)
    content = os.urandom(50_000)
    assert whole(cache, put(cache, content)) == content
    assert sum(path_of(cache, key).exists() for key in old) == 2


WRITER = """
import os, sys
from pathlib import Path
from gridstead.cvmfs.client.cache import Cache
from gridstead.cvmfs.digest import Hash
cache = Cache(Path(sys.argv[1]), quota=20_000_000)
print("begun", flush=True)
number = 0
while True:
    content = (b"%d " % number) * 300_000
    writer = cache.writer(Hash.of(content))
    for offset in range(0, len(content), 65536):
        writer.write(content[offset : offset + 65536])
    writer.commit()
    number += 1
"""


def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    """What a killed process leaves is whole objects, and unfinished files that the next one removes."""
    directory = tmp_path / "cache"
    found = 0
    for round_ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(TOOLS)}
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.037 * round_)
        process.kill()
        process.wait()
        process.stdout.close()
        cache = Cache(directory, quota=20_000_000)
        assert not list((directory / "tmp").iterdir())
        for path in directory.glob("??/*"):
            key = Hash.parse(path.parent.name + path.name)
            content = whole(cache, key)
            assert content is not None
            assert Hash.of(content) == key
            found += 1
    assert found


def test_unfinished_files_of_the_living_stay(cache: Cache) -> None:
    content = os.urandom(3 * IN_MEMORY)
    writer = cache.writer(Hash.of(content))
    writer.write(content)
    Cache(cache.directory)
    assert isinstance(writer.commit(), DiskObject)
    assert whole(cache, Hash.of(content)) == content


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Cache(tmp_path / "file" / "cache")
