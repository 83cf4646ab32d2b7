"""The content-addressed cache: decompressed objects on disk, checked on every read.

A file in the cache is the object's bytes, then a SHA-1 for each block of them, then a footer that ties both to the object's
hash. A read checks the blocks it touches, so a flipped bit, a hole left by a power failure or a file of another object is seen
before a byte of it is served. SQLite reads catalogues in place: it goes by the size in its own header, not by the file's.

Several processes may share a directory: objects come in by rename, the sum of sizes is kept under a lock, and what a process
must not lose (its open catalogues) it holds with a shared flock(2), which ends with the process however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import struct
import threading
import time
from typing import TYPE_CHECKING, Union

from gridstead.cvmfs.digest import CATALOG, Hash
from gridstead.cvmfs.errors import CorruptObjectError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Bytes covered by one checksum: what a read of one byte costs.
BLOCK = 64 * 1024
#: An object up to this size is written in one go; and so much of one is kept in memory when the disk takes nothing.
IN_MEMORY = 1 << 20
#: What an object may have at most to be served from memory when the disk is full: more than any publisher's largest chunk.
MEMORY_LIMIT = 64 << 20
#: An object's last use is noted no more often than this, seconds.
_STAMP_S = 60.0
_DIGEST = 20
_MAGIC = b"GSCVMFS1"
_FOOTER = struct.Struct(f"<8sQI{_DIGEST}s")
_COUNT = struct.Struct("<q")
#: Why a disk does not take an object; anything else is an error of ours.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def _name(key: Hash) -> str:
    text = str(key)
    return f"{text[:2]}/{text[2:]}{key.suffix}"


def _check(key: Hash, size: int, digests: bytes) -> bytes:
    content = b"%s %d %d " % (_name(key).encode(), size, BLOCK)
    return hashlib.sha1(content + digests, usedforsecurity=False).digest()


class DiskObject:
    """An object in the cache, open for reading; closed when nobody has it any more.

    Attributes:
        size: its bytes.
        path: where it is, while the cache holds it.
    """

    __slots__ = ("_digests", "_fd", "_key", "path", "size")

    def __init__(self, fd: int, path: Path, key: Hash, size: int, digests: bytes) -> None:
        self._fd = fd
        self.path = path
        self.size = size
        self._key = key
        self._digests = digests

    def __del__(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset, fewer at the end.

        Raises:
            CorruptObjectError: the disk gives other bytes than were written.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        first, last = offset // BLOCK, (end - 1) // BLOCK
        start = first * BLOCK
        data = self._pread(min((last + 1) * BLOCK, self.size) - start, start)
        view = memoryview(data)
        for index in range(first, last + 1):
            block = view[(index - first) * BLOCK : (index - first + 1) * BLOCK]
            if hashlib.sha1(block, usedforsecurity=False).digest() != self._digests[index * _DIGEST : (index + 1) * _DIGEST]:
                raise CorruptObjectError(f"{self.path}: the cached bytes from {index * BLOCK} on are not those that were written")
        return data[offset - start : end - start]

    def _pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise CorruptObjectError(f"{self.path}: the cached file ends at {offset + len(data)}")
            data += more
        return data

    def verify(self) -> None:
        """Read all of it.

        Raises:
            CorruptObjectError: the disk gives other bytes than were written.
        """
        for offset in range(0, self.size, IN_MEMORY):
            self.read(offset, IN_MEMORY)

    def pin(self) -> None:
        """Keep the cache, of this and other processes, from evicting it as long as this object lives."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)


class MemoryObject:
    """An object that the disk did not take.

    Attributes:
        size: its bytes.
    """

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset, fewer at the end."""
        return self._data[offset : offset + size]


#: What reads have in common.
Object = Union[DiskObject, MemoryObject]  # noqa: UP007 - evaluated on nodes with Python 3.9


class Writer:
    """An object on its way into the cache: nobody sees it before ``commit``.

    Small ones, and all when the disk is full, are collected in memory.
    """

    def __init__(self, cache: Cache, key: Hash) -> None:
        self._cache = cache
        self._key = key
        self._buffer = bytearray()
        self._hashed = bytearray()
        self._digests = bytearray()
        self._size = 0
        self._file: tuple[int, Path] | None = None
        self._disk_takes_it = True

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            OSError: ENOSPC, when the disk is full and the object too large for memory.
        """
        self._size += len(data)
        self._hashed += data
        while len(self._hashed) >= BLOCK:
            self._seal(BLOCK)
        self._buffer += data
        if len(self._buffer) >= IN_MEMORY and self._disk_takes_it:
            self._flush()
        if not self._disk_takes_it and len(self._buffer) > MEMORY_LIMIT:
            raise OSError(errno.ENOSPC, f"no space in the cache, and object {self._key.path} is too large for memory")

    def _seal(self, size: int) -> None:
        self._digests += hashlib.sha1(memoryview(self._hashed)[:size], usedforsecurity=False).digest()
        del self._hashed[:size]

    def _flush(self) -> None:
        """Write what is in memory; make room and try again when the disk is full; from then on all stays in memory."""
        for attempt in range(2):
            try:
                if self._file is None:
                    self._file = self._cache.temporary()
                while self._buffer:
                    del self._buffer[: os.write(self._file[0], memoryview(self._buffer)[: 1 << 20])]
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                if attempt == 0:
                    self._cache.make_room()
            else:
                return
        self._disk_takes_it = False
        if self._file is not None:
            fd, path = self._file
            written = os.fstat(fd).st_size
            if written > MEMORY_LIMIT:
                raise OSError(errno.ENOSPC, f"no space in the cache, and object {self._key.path} is too large for memory")
            self._buffer[:0] = os.pread(fd, written, 0)
            self._file = None
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()

    def commit(self) -> Object:
        """The object, now in the cache; in memory when the disk did not take it."""
        if self._hashed:
            self._seal(len(self._hashed))
        content = bytes(self._buffer) if self._file is None else None
        footer = _FOOTER.pack(_MAGIC, self._size, BLOCK, _check(self._key, self._size, bytes(self._digests)))
        if self._disk_takes_it:
            self._buffer += self._digests + footer
            self._flush()
        if self._file is None or not self._disk_takes_it:
            return MemoryObject(content if content is not None else bytes(self._buffer[: self._size]))
        fd, temporary = self._file
        self._file = None
        try:
            path = self._cache.accept(temporary, self._key, os.fstat(fd).st_size)
        except OSError:
            # A full disk may have no room for a directory either. The file is open and whole: it is served as it is.
            path = temporary
            with contextlib.suppress(OSError):
                temporary.unlink()
        fcntl.flock(fd, fcntl.LOCK_UN)
        return DiskObject(fd, path, self._key, self._size, bytes(self._digests))

    def abandon(self) -> None:
        """Forget it."""
        if self._file is not None:
            fd, path = self._file
            self._file = None
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()


class Cache:
    """A cache directory.

    Args:
        directory: where; made when it is not there.
        quota: bytes that it may hold; None for no limit. When there are more, those used longest ago go, down to half of it.

    Raises:
        OSError: the directory cannot be made or written.
    """

    def __init__(self, directory: Path, quota: int | None = None) -> None:
        self.directory = directory
        self.quota = quota
        self.cleanups: list[float] = []
        self._temporary = directory / "tmp"
        self._evicting = threading.Lock()
        self._counting = threading.Lock()
        self._temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._usage = os.open(directory / "usage", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._clean()
        if os.fstat(self._usage).st_size != _COUNT.size:
            self._set_usage(sum(size for _, size, _ in self._scan()))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # not there when the directory could not be made
            os.close(self._usage)

    def open(self, key: Hash) -> DiskObject | None:
        """An object, when it is there.

        Raises:
            CorruptObjectError: what is there is not the object; it is gone now.
        """
        path = self.directory / _name(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            found = self._read_footer(fd, path, key)
        except BaseException:
            os.close(fd)
            raise
        if found is None:
            os.close(fd)
            self.remove(key)
            raise CorruptObjectError(f"{path}: the cached file is not the object it is named after")
        return found

    @staticmethod
    def _read_footer(fd: int, path: Path, key: Hash) -> DiskObject | None:
        status = os.fstat(fd)
        if status.st_size < _FOOTER.size:
            return None
        magic, size, block, check = _FOOTER.unpack(os.pread(fd, _FOOTER.size, status.st_size - _FOOTER.size))
        length = -(-size // BLOCK) * _DIGEST
        if magic != _MAGIC or block != BLOCK or size + length + _FOOTER.size != status.st_size:
            return None
        digests = os.pread(fd, length, size)
        if check != _check(key, size, digests):
            return None
        if time.time() - status.st_mtime > _STAMP_S:
            with contextlib.suppress(OSError):
                os.utime(fd)
        return DiskObject(fd, path, key, size, digests)

    def writer(self, key: Hash) -> Writer:
        """Begin to write an object."""
        return Writer(self, key)

    def remove(self, key: Hash) -> None:
        """Take an object out, when it is there."""
        path = self.directory / _name(key)
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self._add_usage(-size)

    def usage(self) -> int:
        """Bytes of all objects."""
        with self._locked():
            return self._get_usage()

    def temporary(self) -> tuple[int, Path]:
        """A new file that ``accept`` takes; locked, so that no other process that starts now sweeps it away."""
        path = self._temporary / f"{os.getpid()}.{secrets.token_hex(8)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd, path

    def accept(self, temporary: Path, key: Hash, size: int) -> Path:
        """Make a finished file an object of the cache.

        Returns:
            Where it is.
        """
        path = self.directory / _name(key)
        try:
            temporary.rename(path)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.rename(path)
        if self._add_usage(size) > (self.quota if self.quota is not None else float("inf")):
            self.make_room()
        return path

    def make_room(self) -> None:
        """Evict what was used longest ago, until half of the quota, or of what there is, is free."""
        if not self._evicting.acquire(blocking=False):
            return
        try:
            found = sorted(self._scan())
            total = sum(size for _, size, _ in found)
            target = min(total, self.quota if self.quota is not None else total) // 2
            for _, size, path in found:
                if total <= target:
                    break
                if not path.endswith(CATALOG) or not _pinned(path):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)  # noqa: PTH108 - a million Path objects would be a lot of memory
                    total -= size
            self._set_usage(total)
            self.cleanups = [moment for moment in self.cleanups if moment > time.time() - 86400] + [time.time()]
        finally:
            self._evicting.release()

    def _scan(self) -> Iterator[tuple[float, int, str]]:
        """All objects: time of last use, bytes, path."""
        for number in range(256):
            try:
                entries = os.scandir(self.directory / f"{number:02x}")
            except FileNotFoundError:
                continue
            with entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield status.st_mtime, status.st_size, entry.path

    def _clean(self) -> None:
        """Remove the unfinished files of processes that are no more."""
        for path in self._temporary.iterdir():
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(fd)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the sum of sizes, among threads and among processes."""
        with self._counting:
            fcntl.flock(self._usage, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._usage, fcntl.LOCK_UN)

    def _get_usage(self) -> int:
        data = os.pread(self._usage, _COUNT.size, 0)
        return int(_COUNT.unpack(data)[0]) if len(data) == _COUNT.size else 0

    def _set_usage(self, value: int) -> None:
        # On a full disk the number is a little wrong until the next count.
        with contextlib.suppress(OSError), self._locked():
            os.pwrite(self._usage, _COUNT.pack(value), 0)

    def _add_usage(self, difference: int) -> int:
        value = 0
        with contextlib.suppress(OSError), self._locked():
            value = max(0, self._get_usage() + difference)
            os.pwrite(self._usage, _COUNT.pack(value), 0)
        return value


def _pinned(path: str) -> bool:
    """Whether some process holds an object."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
