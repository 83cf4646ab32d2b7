"""The extended attributes that the client adds to those in the catalogues, as the official one does (cvmfs/magic_xattr.cc)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gridstead.cvmfs.client.routes import public
from gridstead.cvmfs.client.store import Reference
from gridstead.cvmfs.entry import Entry, Kind
from gridstead.cvmfs.errors import CvmfsError
from gridstead.cvmfs.objects import SMALL_OBJECT

if TYPE_CHECKING:
    from gridstead.cvmfs.client.config import Configuration
    from gridstead.cvmfs.client.publication import Publication, Schedule
    from gridstead.cvmfs.client.store import Store
    from gridstead.cvmfs.client.tree import Tree

_Value = Callable[[Entry, int], str]


class Attributes:
    """The client's own attributes. They hide ones of the same name in a catalogue. For threads: some take a download.

    Args:
        configuration: of the mount.
        publication: which revision.
        schedule: when the next one.
        store: of the objects.
        tree: of the catalogues.
    """

    def __init__(self, configuration: Configuration, publication: Publication, schedule: Schedule, store: Store, tree: Tree) -> None:
        self._configuration = configuration
        self._publication = publication
        self._schedule = schedule
        self._store = store
        self._tree = tree
        self._mounted = time.monotonic()
        self.opened = 0
        self.directories_opened = 0
        everywhere: dict[str, _Value] = {
            "catalog_counters": lambda entry, _: self._catalog_counters(entry),
            "expires": lambda *_: str(int(schedule.wait() // 60)),
            "fqrn": lambda *_: configuration.fqrn,
            "host": lambda *_: public(store.downloader.hosts.order()[0]),
            "host_list": lambda *_: ";".join(map(public, store.downloader.hosts.order())),
            "hitrate": lambda *_: self._hitrate(),
            "inode_max": lambda *_: str((1 << 64) - 1),
            "maxfd": lambda *_: str(os.sysconf("SC_OPEN_MAX")),
            "ncleanup24": lambda *_: str(sum(moment > time.time() - 86400 for moment in store.cache.cleanups)),
            "nclg": lambda *_: str(tree.open_catalogs()),
            "ndiropen": lambda *_: str(self.directories_opened),
            "ndownload": lambda *_: str(store.downloader.statistics.downloads),
            "nioerr": lambda *_: str(store.downloader.statistics.errors),
            "nopen": lambda *_: str(self.opened),
            "pid": lambda *_: str(os.getpid()),
            "proxy": lambda *_: public(store.downloader.proxies.order()[0]),
            "pubkeys": lambda *_: b"".join(publication.keys).decode("ascii", "replace"),
            "repo_counters": lambda *_: _counters(tree.run(lambda: tree.counters(""))[1]),
            "repo_metainfo": lambda *_: self._metainfo(),
            "revision": lambda *_: str(self._revision()),
            "root_hash": lambda *_: str(tree.root.hash),
            "rx": lambda *_: str(store.downloader.statistics.received // 1024),
            "speed": lambda *_: self._speed(),
            "tag": lambda *_: configuration.snapshot.tag if configuration.snapshot else "",
            "timeout": lambda *_: f"{configuration.timing.proxy:g}",
            "timeout_direct": lambda *_: f"{configuration.timing.direct:g}",
            "timestamp_last_ioerr": lambda *_: str(int(store.downloader.statistics.last_error)),
            "uptime": lambda *_: str(int((time.monotonic() - self._mounted) // 60)),
            "usedfd": lambda *_: str(len(os.listdir("/proc/self/fd"))),  # noqa: PTH208 - names only
            "version": lambda *_: "gridstead",
        }
        regular: dict[str, _Value] = {
            "chunk_list": self._chunk_list,
            "chunks": lambda entry, inode: str(len(tree.run(lambda: tree.chunks(inode))) if entry.chunked else 1),
            "compression": lambda entry, _: entry.compression,
            "direct_io": lambda entry, _: str(int(entry.direct_io)),
            "external_file": lambda entry, _: str(int(entry.external)),
        }
        hashed: dict[str, _Value] = {
            "hash": lambda entry, _: str(entry.hash),
            "lhash": lambda entry, _: self._local_hash(entry),
        }
        self._everywhere = {f"user.{name}": value for name, value in everywhere.items()}
        self._regular = {f"user.{name}": value for name, value in regular.items()}
        self._hashed = {f"user.{name}": value for name, value in hashed.items()}
        self._link: dict[str, _Value] = dict.fromkeys(("user.rawlink", "xfsroot.rawlink"), lambda entry, _: entry.symlink)

    def names(self, entry: Entry) -> list[str]:
        """The attributes that are listed: those of the catalogue, and the client's own where CVMFS_MAGIC_XATTRS_VISIBILITY says.

        Any other can be asked for as well. But what is listed, programs copy with a file (``cp -a``, ``rsync -X``).
        """
        magic = self._configuration.magic
        own = self._of(entry) if magic == "always" or (magic == "rootonly" and not entry.path) else ()
        return sorted({*own, *entry.xattrs()})

    def get(self, entry: Entry, inode: int, name: str) -> bytes | None:
        """An attribute; None when there is no such one.

        Raises:
            CvmfsError: it cannot be had.
        """
        value = self._of(entry).get(name)
        if value is None:
            return entry.xattrs().get(name)
        return value(entry, inode).encode("utf-8", "surrogateescape")

    def _of(self, entry: Entry) -> dict[str, _Value]:
        values = dict(self._everywhere)
        if entry.kind is Kind.FILE:
            values.update(self._regular)
        if entry.hash is not None:
            values.update(self._hashed)
        if entry.kind is Kind.SYMLINK:
            values.update(self._link)
        return values

    def _revision(self) -> int:
        if self._configuration.snapshot is not None or self._publication.current is None:
            return self._tree.revision
        return self._publication.current.revision

    def _catalog_counters(self, entry: Entry) -> str:
        slot, counters = self._tree.run(lambda: self._tree.counters(entry.path))
        return f"catalog_hash: {slot.hash}\ncatalog_mountpoint: {slot.path}\n{_counters(counters)}"

    def _chunk_list(self, entry: Entry, inode: int) -> str:
        chunks = self._tree.run(lambda: self._tree.chunks(inode)) if entry.chunked else []
        parts = [(str(chunk.hash), chunk.offset, chunk.size) for chunk in chunks]
        rows = parts or [(str(entry.hash), 0, entry.size)]
        return "hash,offset,size\n" + "".join(f"{text},{offset},{size}\n" for text, offset, size in rows)

    def _hitrate(self) -> str:
        statistics = self._store.downloader.statistics
        if not statistics.requests:
            return "n/a"
        return f"{100 * (1 - statistics.downloads / statistics.requests):.3f}"

    def _speed(self) -> str:
        statistics = self._store.downloader.statistics
        return f"{statistics.received / 1024 / statistics.seconds:.0f}" if statistics.seconds else "n/a"

    def _metainfo(self) -> str:
        manifest = self._publication.current
        if manifest is None or manifest.metainfo is None:
            return "metainfo not available"
        return self._store.content(Reference(manifest.metainfo, None, limit=SMALL_OBJECT)).decode("utf-8", "surrogateescape")

    def _local_hash(self, entry: Entry) -> str:
        """Whether the cache holds the right bytes; unlike the official client's it is the hash of the stored object then."""
        if entry.hash is None:
            return "Not in cache"
        try:
            found = self._store.at_hand(Reference(entry.hash, entry.size, entry.compression))
            if found is None:
                return "Not in cache"
            for offset in range(0, found.size, 1 << 20):
                found.read(offset, 1 << 20)
        except (CvmfsError, OSError) as error:
            return f"I/O error ({error})"
        return str(entry.hash)


def _counters(counters: dict[str, int]) -> str:
    """Counters as the official client shows them: what is in a catalogue and what is in those below it, added up."""
    sums: dict[str, int] = {}
    for name, value in counters.items():
        kind = name.partition("_")[2]
        sums[kind] = sums.get(kind, 0) + value
    return "".join(f"{name},{value}\n" for name, value in sorted(sums.items()))
