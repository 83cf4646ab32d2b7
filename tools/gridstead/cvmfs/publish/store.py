"""The objects of a repository on disk: staged while they are written, put in place together when all of them are safe."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from gridstead.cvmfs.digest import Hash
from gridstead.cvmfs.errors import CorruptObjectError, CvmfsError
from gridstead.cvmfs.objects import Unpacker, compress

_BLOCK = 1 << 20
#: Bytes that a decompressed catalogue or history may have: that of tens of millions of files.
LARGEST_DATABASE = 16 << 30
_MODE = 0o644


def _sync(directory: Path) -> None:
    """Make all that was written to a file system durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(directory))
    finally:
        os.close(descriptor)


class Store:
    """Objects that are published.

    Args:
        web: the repository's directory.
    """

    def __init__(self, web: Path) -> None:
        self.web = web
        self._web = str(web)

    def make(self) -> None:
        """Make its directories: one for each first byte of a hash."""
        for first in range(256):
            (self.web / f"data/{first:02x}").mkdir(parents=True, exist_ok=True)

    def has(self, name: Hash) -> bool:
        """Whether an object is there."""
        return os.path.exists(f"{self._web}/{name.path}")  # noqa: PTH110  asked for every file of a tree

    def blocks(self, name: Hash, *, compression: str = "zlib", size: int | None = None, limit: int = LARGEST_DATABASE) -> Iterator[bytes]:
        """An object, verified and decompressed. What was yielded is right only when no error comes at the end.

        Raises:
            CorruptObjectError: it is damaged.
            CvmfsError: it is not there or cannot be read.
        """
        unpacker = Unpacker(name, compression=compression, size=size, limit=limit)
        try:
            with (self.web / name.path).open("rb") as stream:
                while block := stream.read(_BLOCK):
                    yield from unpacker.feed(block)
        except FileNotFoundError:
            raise CorruptObjectError(f"object {name.path} is missing") from None
        except OSError as error:
            raise CvmfsError(f"object {name.path} cannot be read: {error.strerror}") from None
        yield unpacker.finish()

    def extract(self, name: Hash, target: Path, *, size: int | None = None) -> Path:
        """Write an object decompressed to a file; when this returns, it is right.

        Raises:
            CorruptObjectError: it is damaged or missing.
        """
        with target.open("xb") as stream:
            for block in self.blocks(name, size=size):
                stream.write(block)
        return target

    def names(self) -> Iterator[Path]:
        """The paths of all objects."""
        for first in range(256):
            directory = self.web / f"data/{first:02x}"
            if directory.is_dir():
                with os.scandir(directory) as found:
                    yield from (directory / entry.name for entry in found)


class Staging:
    """New objects, not yet part of the repository.

    They get their places in ``commit``, after all of them are on the disk: whatever has an object's name is whole, also after a
    power cut.

    Args:
        store: the objects that are there.
        scratch: an empty directory on the same file system.
        algorithm: the hash algorithm of new objects.
    """

    def __init__(self, store: Store, scratch: Path, algorithm: str) -> None:
        self.store = store
        self.scratch = scratch
        self.algorithm = algorithm
        self._staged: dict[Hash, str] = {}
        self._scratch = str(scratch)
        #: How many bytes were written.
        self.bytes = 0

    @property
    def objects(self) -> int:
        """How many objects are new."""
        return len(self._staged)

    def put(self, data: bytes, suffix: str = "", compression: str = "zlib") -> Hash:
        """Stage content as an object, unless it is there. May be called from several threads.

        Args:
            data: the content.
            suffix: what kind of object it is.
            compression: ``zlib`` or ``none``.

        Returns:
            Its name.
        """
        stored = compress(data) if compression == "zlib" else data
        name = Hash.of(stored, self.algorithm, suffix)
        if self.store.has(name):
            return name
        path = f"{self._scratch}/{name}{suffix}"
        if self._staged.setdefault(name, path) is path:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            with os.fdopen(descriptor, "wb", 0) as stream:
                _write(stream.fileno(), stored)
            self.bytes += len(stored)
        return name

    def put_file(self, file: Path, suffix: str) -> Hash:
        """Stage a file that was written here, such as a catalogue; the file goes away."""
        name = self.put(file.read_bytes(), suffix)
        file.unlink()
        return name

    def commit(self) -> None:
        """Put all objects in their places, durably."""
        _sync(self.scratch)
        for name, path in self._staged.items():
            Path(path).replace(self.store.web / name.path)
        _sync(self.scratch)
        self._staged.clear()


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
