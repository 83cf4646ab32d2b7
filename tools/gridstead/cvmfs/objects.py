"""Objects as they are stored: compressed, and named by the hash of their compressed bytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from gridstead.cvmfs.digest import Hash, new_hasher
from gridstead.cvmfs.errors import CorruptObjectError, FormatError

#: How objects may be compressed, by their number in a catalogue entry's flags (cvmfs/compression.h).
COMPRESSIONS = ("zlib", "none")
#: Bytes that a certificate or metainfo may have at most.
SMALL_OBJECT = 1 << 20

_STEP = 1 << 20


def compress(data: bytes, level: int = zlib.Z_DEFAULT_COMPRESSION) -> bytes:
    """Bytes as they are stored."""
    return zlib.compress(data, level)


def verify(stored: bytes, expected: Hash) -> None:
    """Check an object as it is stored.

    Raises:
        CorruptObjectError: it is not the object of that hash.
    """
    found = Hash.of(stored, expected.algorithm, expected.suffix)
    if found != expected:
        raise CorruptObjectError(f"object {expected.path} is corrupt: its {len(stored)} bytes have the hash {found}")


class Unpacker:
    """Verifies and decompresses an object that comes piece by piece.

    What ``feed`` returns is not to be used before ``finish`` has returned: only then the hash is known to be right. Nothing
    grows beyond what is promised, so a decompression bomb ends in an error.

    Args:
        expected: the object's hash.
        compression: ``zlib`` or ``none``.
        size: how many bytes it has when decompressed; None when nobody has said.
        limit: how many it may have at most, when ``size`` is not known.

    Raises:
        FormatError: no such compression, or neither size nor limit is given.
    """

    def __init__(self, expected: Hash, *, compression: str = "zlib", size: int | None = None, limit: int | None = None) -> None:
        if compression not in COMPRESSIONS:
            raise FormatError(f"{compression!r} is no compression of CVMFS; there are {', '.join(COMPRESSIONS)}")
        most = size if size is not None else limit
        if most is None:
            raise FormatError(f"object {expected.path}: neither its size nor a limit is known")
        self._expected = expected
        self._hasher = new_hasher(expected.algorithm)
        self._zlib = zlib.decompressobj() if compression == "zlib" else None
        self._size = size
        self._most = most
        self._produced = 0

    def _corrupt(self, what: str) -> CorruptObjectError:
        return CorruptObjectError(f"object {self._expected.path} is corrupt: {what}")

    def _count(self, data: bytes) -> bytes:
        self._produced += len(data)
        if self._produced > self._most:
            raise self._corrupt(f"it has more than {self._most} bytes when decompressed")
        return data

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Take stored bytes, give decompressed ones, a MiB at a time at most: a kilobyte may stand for a megabyte. All of them are to be taken.

        Raises:
            CorruptObjectError: it does not decompress, or is larger than promised.
        """
        self._hasher.update(block)
        if self._zlib is None:
            yield self._count(block)
            return
        if self._zlib.eof and block:
            raise self._corrupt("there are bytes behind its compressed data")
        while block:
            try:
                piece = self._zlib.decompress(block, min(_STEP, self._most - self._produced + 1))
            except zlib.error as error:
                raise self._corrupt(f"it does not decompress: {error}") from None
            block = self._zlib.unconsumed_tail
            yield self._count(piece)
        if self._zlib.unused_data:
            raise self._corrupt("there are bytes behind its compressed data")

    def finish(self) -> bytes:
        """The last decompressed bytes. When this returns, all of the object was right.

        Raises:
            CorruptObjectError: hash or size are wrong, or it ends too early.
        """
        rest = b""
        if self._zlib is not None:
            try:
                while not self._zlib.eof:
                    part = self._count(self._zlib.decompress(b"", min(_STEP, self._most - self._produced + 1)))
                    if not part:
                        raise self._corrupt("its compressed data ends too early")
                    rest += part
            except zlib.error as error:
                raise self._corrupt(f"it does not decompress: {error}") from None
        if self._size is not None and self._produced != self._size:
            raise self._corrupt(f"it has {self._produced} bytes when decompressed; {self._size} would be right")
        if self._hasher.digest() != self._expected.digest:
            raise self._corrupt(f"its bytes have the hash {Hash(self._hasher.digest(), self._expected.algorithm)}")
        return rest


def unpack(stored: bytes, expected: Hash, *, compression: str = "zlib", size: int | None = None, limit: int = SMALL_OBJECT) -> bytes:
    """Verify and decompress an object in memory.

    Args:
        stored: its bytes as stored.
        expected: its hash.
        compression: ``zlib`` or ``none``.
        size: how many bytes it has when decompressed, when that is known.
        limit: how many it may have at most, when not.

    Raises:
        CorruptObjectError: it is not that object, does not decompress, or has another size.
    """
    # First the hash: what does not have it never reaches the decompressor.
    verify(stored, expected)
    unpacker = Unpacker(expected, compression=compression, size=size, limit=limit)
    return b"".join([*unpacker.feed(stored), unpacker.finish()])
