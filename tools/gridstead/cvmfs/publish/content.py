"""The content of files: read, compressed, hashed and staged, on all processors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from gridstead.cvmfs.digest import CHUNK, PLAIN, Hash
from gridstead.cvmfs.entry import Chunk
from gridstead.cvmfs.errors import CvmfsError
from gridstead.cvmfs.publish.index import stamp
from gridstead.cvmfs.publish.settings import Settings
from gridstead.cvmfs.publish.store import Staging

if TYPE_CHECKING:
    from typing import Self

#: Smaller pieces are done faster than they are handed to another thread.
_WORTH_A_THREAD = 64 * 1024


class Content(NamedTuple):
    """Where a file's content is: in one object or in chunks."""

    hash: Hash | None
    chunks: tuple[Chunk, ...] = ()


class _Piece(NamedTuple):
    file: str
    stamp: str
    offset: int
    size: int
    suffix: str


def _read(piece: _Piece) -> bytes:
    """A piece of a file that is still the file that was seen.

    Raises:
        CvmfsError: it is not, or cannot be read.
    """
    try:
        descriptor = os.open(piece.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = b""
            while len(data) < piece.size:
                more = os.pread(descriptor, piece.size - len(data), piece.offset + len(data))
                if not more:
                    break
                data = data + more if data else more
            unchanged = stamp(os.fstat(descriptor)) == piece.stamp and len(data) == piece.size
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CvmfsError(f"{piece.file} cannot be read: {error.strerror}") from None
    if not unchanged:
        raise CvmfsError(f"{piece.file} was changed while it was being published", hint="publish again when nothing writes to it")
    return data


class ContentWriter:
    """Puts files' content into the repository. A context manager, for its threads.

    Args:
        staging: where new objects go.
        settings: whether and how files are cut and compressed.
    """

    def __init__(self, staging: Staging, settings: Settings) -> None:
        self._staging = staging
        self._compression = settings.compression_algorithm
        self._chunk = settings.avg_chunk_size if settings.use_file_chunking else None
        workers = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None

    def chunked(self, size: int) -> bool:
        """Whether a file of a size is cut into chunks."""
        return self._chunk is not None and size > 2 * self._chunk

    def put(self, files: Iterable[tuple[str, os.stat_result]]) -> list[Content]:
        """Stage the content of files.

        Args:
            files: paths and what ``lstat`` has said of them.

        Returns:
            Where each one's content is, in the same order.

        Raises:
            CvmfsError: one cannot be read, or changes meanwhile.
        """
        contents: list[Content] = []
        cut: list[tuple[int, list[_Piece]]] = []
        whole: list[tuple[int, _Piece]] = []
        for file, status in files:
            size = status.st_size
            mark = stamp(status)
            if self._chunk is not None and self.chunked(size):
                step = self._chunk
                pieces = [_Piece(file, mark, offset, min(step, size - offset), CHUNK) for offset in range(0, size, step)]
                cut.append((len(contents), pieces))
            else:
                whole.append((len(contents), _Piece(file, mark, 0, size, PLAIN)))
            contents.append(Content(None))
        names = self._all([piece for _, piece in whole])
        for number, (place, _) in enumerate(whole):
            contents[place] = Content(names[number])
        for place, pieces in cut:
            names = self._all(pieces)
            contents[place] = Content(None, tuple(Chunk(piece.offset, piece.size, names[n]) for n, piece in enumerate(pieces)))
        return contents

    def _all(self, pieces: list[_Piece]) -> list[Hash]:
        large = [piece for piece in pieces if piece.size >= _WORTH_A_THREAD]
        if self._pool is None or len(large) < 2:
            return [self._one(piece) for piece in pieces]
        done = {piece: self._pool.submit(self._one, piece) for piece in large}
        return [done[piece].result() if piece in done else self._one(piece) for piece in pieces]

    def _one(self, piece: _Piece) -> Hash:
        try:
            return self._staging.put(_read(piece), piece.suffix, self._compression)
        except OSError as error:
            raise CvmfsError(f"the content of {piece.file} cannot be stored: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
