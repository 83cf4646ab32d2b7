"""Open files: which objects they consist of, and their bytes."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from gridstead.cvmfs.client.store import Object, Reference, Store
from gridstead.cvmfs.errors import CorruptObjectError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridstead.cvmfs.entry import Chunk, Entry

#: Chunks of one file that stay open with it.
_HELD = 4
#: How often a copy in the cache may turn out to be damaged before the read fails.
_ATTEMPTS = 3


class OpenFile:
    """A file that is open. It keeps its content, whatever is published meanwhile.

    Args:
        store: of the objects.
        entry: the file.
        inode: its inode.
        chunks: the chunks of a chunked file.
    """

    def __init__(self, store: Store, entry: Entry, inode: int, chunks: Sequence[Chunk] = ()) -> None:
        self.entry = entry
        self.inode = inode
        self._store = store
        self._lock = threading.Lock()
        self._held: OrderedDict[int, Object] = OrderedDict()
        self._ahead = 0
        external = entry.path if entry.external else None
        if chunks:
            self._offsets = [chunk.offset for chunk in chunks]
            self._parts = [
                Reference(
                    chunk.hash, chunk.size, entry.compression, external=external, span=(chunk.offset, chunk.size) if external else None
                )
                for chunk in chunks
            ]
        elif entry.hash is not None and entry.size:
            self._offsets = [0]
            self._parts = [Reference(entry.hash, entry.size, entry.compression, external=external)]
        else:
            self._offsets, self._parts = [], []

    def is_at_hand(self) -> bool:
        """Whether its first bytes need no download."""
        if not self._parts:
            return True
        found = self._store.at_hand(self._parts[0])
        if found is None:
            return False
        self._hold(0, found)
        return True

    def now(self, offset: int, size: int) -> bytes | None:
        """Bytes from an offset, fewer at the end; None when they have to be fetched, see ``read``.

        Raises:
            CvmfsError: the catalogue promises what is not so.
        """
        pieces = []
        for index, start, length in self._spans(offset, size):
            with self._lock:
                found = self._held.get(index)
            if found is None:
                found = self._store.at_hand(self._parts[index])
                if found is None:
                    return None
                self._hold(index, found)
            piece = self._store.read(self._parts[index], found, start, length)
            if piece is None:
                self._drop(index)
                return None
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset, fewer at the end. For a thread: takes downloads.

        Raises:
            CvmfsError: they cannot be had.
        """
        return b"".join(self._fetched(*span) for span in self._spans(offset, size))

    def _fetched(self, index: int, start: int, length: int) -> bytes:
        for _ in range(_ATTEMPTS):
            found = self._store.get(self._parts[index])
            self._hold(index, found)
            piece = self._store.read(self._parts[index], found, start, length)
            if piece is not None:
                return piece
            self._drop(index)
        raise CorruptObjectError(f"{self.entry.path}: the cache's disk gives wrong bytes again and again")

    def ahead(self, end: int) -> Reference | None:
        """The object that will be wanted next, if it is to be fetched now, while a reader is still busy with the one before it."""
        index = bisect.bisect_right(self._offsets, max(0, end - 1))
        if not 0 < index < len(self._parts) or index <= self._ahead:
            return None
        self._ahead = index
        return None if self._store.at_hand(self._parts[index]) else self._parts[index]

    def _spans(self, offset: int, size: int) -> list[tuple[int, int, int]]:
        """Which objects hold a range of the file: number, offset in it, bytes."""
        end = min(offset + size, self.entry.size)
        spans = []
        index = bisect.bisect_right(self._offsets, offset) - 1
        while offset < end and index < len(self._parts):
            start = offset - self._offsets[index]
            length = min(end - offset, (self._parts[index].size or 0) - start)
            spans.append((index, start, length))
            offset += length
            index += 1
        return spans

    def _hold(self, index: int, found: Object) -> None:
        with self._lock:
            self._held[index] = found
            self._held.move_to_end(index)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)

    def _drop(self, index: int) -> None:
        with self._lock:
            self._held.pop(index, None)
