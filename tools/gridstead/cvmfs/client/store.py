"""Objects by their hash: from those open already, from the cache, or from the servers; verified in each case."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from gridstead.cvmfs.client.cache import Cache, DiskObject, MemoryObject, Object
from gridstead.cvmfs.client.fetch import Downloader
from gridstead.cvmfs.errors import CorruptObjectError, CvmfsError
from gridstead.cvmfs.objects import Unpacker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridstead.cvmfs.digest import Hash

_log = logging.getLogger(__name__)

#: Objects kept open though nobody has them open.
_OPEN = 512
#: Bytes of objects kept that the disk did not take.
_IN_MEMORY = 96 << 20


class Reference(NamedTuple):
    """Which object, and what is known of it.

    Attributes:
        hash: the object.
        size: its bytes when decompressed; None when nobody has said.
        compression: how it is stored.
        limit: how many bytes it may have when the size is not known.
        external: the path at which an external server has it; None for an object of the repository.
        span: which part of that file it is: offset and bytes; None for all of it.
    """

    hash: Hash
    size: int | None
    compression: str = "zlib"
    limit: int = 0
    external: str | None = None
    span: tuple[int, int] | None = None


class Store:
    """Where objects come from.

    Args:
        cache: keeps them.
        downloader: fetches them.
        external: fetches what is not in the repository; None when no server for that is known.
    """

    def __init__(self, cache: Cache, downloader: Downloader, external: Downloader | None = None) -> None:
        self.cache = cache
        self.downloader = downloader
        self.external = external
        self._lock = threading.Lock()
        self._open: OrderedDict[Hash, Object] = OrderedDict()
        self._memory = 0
        self._coming: dict[Hash, concurrent.futures.Future[Object]] = {}

    def at_hand(self, reference: Reference) -> Object | None:
        """An object that needs no download; None when it has to be fetched.

        Raises:
            CorruptObjectError: the repository promises another size than the object has.
        """
        with self._lock:
            found = self._open.get(reference.hash)
            if found is not None:
                self._open.move_to_end(reference.hash)
        if found is None:
            try:
                found = self.cache.open(reference.hash)
            except CorruptObjectError as error:
                _log.error("%s; it is fetched again", error)
            except OSError as error:
                _log.error("the cache cannot be read: %s", error)
            if found is None:
                return None
            self._keep(reference.hash, found)
        if reference.size is not None and found.size != reference.size:
            raise CorruptObjectError(f"object {reference.hash.path} has {found.size} bytes; the catalogue says {reference.size}")
        return found

    def get(self, reference: Reference) -> Object:
        """An object, fetched if need be. Several threads that want the same one wait for one download.

        Raises:
            CvmfsError: it cannot be had, or not as promised.
        """
        statistics = self.downloader.statistics
        statistics.requests += 1
        while True:
            found = self.at_hand(reference)
            if found is not None:
                return found
            with self._lock:
                coming = self._coming.get(reference.hash)
                mine = coming is None
                if coming is None:
                    coming = self._coming[reference.hash] = concurrent.futures.Future()
            if not mine:
                coming.result()
                continue
            try:
                found = self._download(reference)
            except BaseException as error:
                statistics.errors += 1
                statistics.last_error = time.time()
                coming.set_exception(error)
                # Without a waiter nobody else would ever ask for it.
                coming.exception()
                raise
            else:
                self._keep(reference.hash, found)
                coming.set_result(found)
                return found
            finally:
                with self._lock:
                    del self._coming[reference.hash]

    def drop(self, reference: Reference) -> None:
        """Forget an object that turned out to be damaged in the cache."""
        with self._lock:
            found = self._open.pop(reference.hash, None)
            if isinstance(found, MemoryObject):
                self._memory -= found.size
        self.cache.remove(reference.hash)

    def read(self, reference: Reference, found: Object, offset: int, size: int) -> bytes | None:
        """Bytes of an object, or None when its copy in the cache is damaged: it is dropped then, and to be had again by ``get``."""
        try:
            return found.read(offset, size)
        except (CorruptObjectError, OSError) as error:
            _log.error("%s; it is fetched again", error)
            self.drop(reference)
            return None

    def content(self, reference: Reference) -> bytes:
        """All bytes of a small object.

        Raises:
            CvmfsError: it cannot be had.
        """
        for _ in range(2):
            found = self.get(reference)
            data = self.read(reference, found, 0, found.size)
            if data is not None:
                return data
        raise CorruptObjectError(f"object {reference.hash.path}: the cache's disk gives wrong bytes again and again")

    def _keep(self, key: Hash, found: Object) -> None:
        with self._lock:
            old = self._open.pop(key, None)
            self._open[key] = found
            self._memory += _memory(found) - _memory(old)
            while len(self._open) > _OPEN or (self._memory > _IN_MEMORY and len(self._open) > 1):
                _, gone = self._open.popitem(last=False)
                self._memory -= _memory(gone)

    def _download(self, reference: Reference) -> Object:
        def consume(blocks: Iterator[bytes]) -> Object:
            unpacker = Unpacker(
                reference.hash,
                compression=reference.compression,
                size=reference.size,
                limit=None if reference.size is not None else reference.limit,
            )
            writer = self.cache.writer(reference.hash)
            try:
                for block in blocks:
                    for piece in unpacker.feed(block):
                        writer.write(piece)
                writer.write(unpacker.finish())
                return writer.commit()
            except BaseException:
                writer.abandon()
                raise

        if reference.external is None:
            downloader, path = self.downloader, reference.hash.path
        elif self.external is not None:
            downloader, path = self.external, reference.external.lstrip("/")
        else:
            raise CvmfsError(f"{reference.external} is on an external server", hint="set CVMFS_EXTERNAL_URL to it")
        found = downloader.get(path, consume, span=reference.span)
        downloader.statistics.downloads += 1
        return found


def _memory(found: Object | None) -> int:
    return found.size if isinstance(found, MemoryObject) else 0


__all__ = ["DiskObject", "MemoryObject", "Object", "Reference", "Store"]
