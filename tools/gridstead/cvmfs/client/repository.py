"""A repository as a mount sees it: what is published, its tree, its files."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gridstead.cvmfs.client.attributes import Attributes
from gridstead.cvmfs.client.blacklist import Blacklist
from gridstead.cvmfs.client.cache import Cache
from gridstead.cvmfs.client.fetch import Downloader
from gridstead.cvmfs.client.files import OpenFile
from gridstead.cvmfs.client.publication import Publication, Schedule
from gridstead.cvmfs.client.store import Store
from gridstead.cvmfs.client.tree import ROOT, NotFoundError, Tree
from gridstead.cvmfs.errors import CvmfsError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridstead.cvmfs.client.config import Configuration
    from gridstead.cvmfs.client.tree import Directory
    from gridstead.cvmfs.entry import Entry
    from gridstead.cvmfs.manifest import Manifest

_log = logging.getLogger(__name__)


class Repository:
    """Everything of a mount that does not depend on how it is mounted.

    Args:
        configuration: what to go by.

    Raises:
        InputError: the cache directory cannot be used.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        try:
            cache = Cache(configuration.cache, configuration.quota)
        except OSError as error:
            raise InputError(f"the cache directory {configuration.cache} cannot be used: {error.strerror}") from None
        downloader = Downloader(configuration.servers, configuration.proxies, configuration.timing)
        external = None
        if configuration.external_servers:
            external = Downloader(configuration.external_servers, configuration.external_proxies, configuration.external_timing)
        self.store = Store(cache, downloader, external)
        self._blacklist = Blacklist(configuration.blacklist)
        self.publication = Publication(configuration.fqrn, configuration.keys, self.store, configuration.state, self._blacklist)
        self.schedule = Schedule(configuration.max_ttl)
        self.tree = Tree(self.store)
        self.attributes = Attributes(configuration, self.publication, self.schedule, self.store, self.tree)
        self._follows = configuration.follow and configuration.snapshot is None

    def close(self) -> None:
        """Close the connections and catalogues."""
        self.store.downloader.close()
        if self.store.external is not None:
            self.store.external.close()
        self.tree.close()

    def load(self) -> Manifest:
        """Load the revision to begin with.

        Raises:
            CvmfsError: there is none that can be trusted, or its root catalogue cannot be had.
        """
        manifest = self.publication.mount()
        self._show(manifest)
        self.schedule.done(manifest.ttl)
        return manifest

    def check(self) -> Manifest:
        """Load the revision that the servers have, whatever was seen before.

        Raises:
            CvmfsError: there is none that can be trusted, or its root catalogue cannot be had.
        """
        manifest = self.publication.refresh()
        self._show(manifest)
        return manifest

    def _show(self, manifest: Manifest) -> bool:
        """Show the revision of a manifest, or the one that the configuration says; whether it is another one than before."""
        snapshot = self.configuration.snapshot
        catalog, size = snapshot.find(manifest, self.store) if snapshot else (manifest.catalog, manifest.catalog_size)
        changed = self.tree.replace_root(catalog, size)
        self._blacklist.check_revision(self.configuration.fqrn, self.tree.revision)
        return changed

    def refresh(self) -> list[str] | None:
        """Look for a new revision, and show it.

        Returns:
            The names in the root directory under which something may have changed; None when there is no new revision.

        Raises:
            RevokedError: what is shown must not be shown any more.
            CvmfsError: the servers have none that can be trusted; the present one stays.
        """
        self._blacklist.reload()
        try:
            if self._follows:
                return self._refresh()
            self.schedule.done(self.publication.current.ttl if self.publication.current else 0)
            return None
        finally:
            self._blacklist.check_revision(self.configuration.fqrn, self.tree.revision)

    def _refresh(self) -> list[str] | None:
        ttl = self.publication.current.ttl if self.publication.current else 0
        try:
            manifest = self.publication.refresh()
            before = self.tree.run(lambda: self.tree.directory(ROOT))
            changed = self._show(manifest)
        except CvmfsError:
            self.schedule.failed(ttl)
            raise
        self.schedule.done(manifest.ttl)
        if not changed:
            return None
        _log.info("%s: revision %d", self.configuration.fqrn, manifest.revision)
        return self.tree.run(lambda: self.tree.changed_names(before))

    # Without a mount: for checks and tests

    def find(self, path: str) -> tuple[int, Entry]:
        """The inode and entry of a path.

        Raises:
            NotFoundError: there is none.
        """
        inode = self.tree.run(lambda: self.tree.inode_of(path))
        return inode, self.tree.run(lambda: self.tree.entry(inode))

    def open(self, inode: int) -> OpenFile:
        """Open a file. For a thread: may take a download of a catalogue."""
        entry = self.tree.run(lambda: self.tree.entry(inode))
        return OpenFile(self.store, entry, inode, self.tree.run(lambda: self.tree.chunks(inode)) if entry.chunked else ())

    def read(self, path: str) -> bytes:
        """All of a file.

        Raises:
            CvmfsError: it cannot be had.
        """
        inode, entry = self.find(path)
        return self.open(inode).read(0, entry.size)

    def walk(self, path: str = "") -> Iterator[tuple[int, Entry]]:
        """All inodes and entries below a directory, parents first."""
        inode = self.tree.run(lambda: self.tree.inode_of(path))
        directory: Directory = self.tree.run(lambda: self.tree.directory(inode))
        after = 0
        while True:
            children = self.tree.run(lambda: self.tree.page(directory, after, 500))  # noqa: B023 - called at once
            if not children:
                return
            for child in children:
                yield child.inode, child.entry
                if child.entry.is_directory:
                    yield from self.walk(child.entry.path)
            after = children[-1].row


__all__ = ["NotFoundError", "Repository"]
