"""From a revision to a directory tree."""

from __future__ import annotations

import os
import shutil
import stat
import time
from contextlib import ExitStack
from pathlib import Path

from gridstead.cvmfs.catalog import CatalogReader
from gridstead.cvmfs.entry import Entry, Kind, NestedRef
from gridstead.cvmfs.errors import CvmfsError
from gridstead.cvmfs.publish.catalogs import Found, nested_at, opened
from gridstead.cvmfs.publish.index import TOO_FRESH_NS, Index, identity, stamp
from gridstead.cvmfs.publish.store import Store

_PERMISSIONS = 0o7777


def checkout(store: Store, root: NestedRef, target: Path, scratch: Path, index: Index) -> None:
    """Make a directory what a revision is: what is right stays, all else is changed or removed.

    Args:
        store: the objects.
        root: the revision's root catalogue.
        target: the directory; it is made.
        scratch: a directory for decompressed catalogues.
        index: what is known of the files in it.

    Raises:
        CvmfsError: it cannot be written, or the repository is damaged.
    """
    try:
        _Checkout(store, scratch, index).tree(root, target)
    except OSError as error:
        raise CvmfsError(f"{error.filename or target} cannot be written: {error.strerror}") from None


class _Checkout:
    def __init__(self, store: Store, scratch: Path, index: Index) -> None:
        self._store = store
        self._scratch = scratch
        self._index = index
        self._written = False

    def tree(self, root: NestedRef, target: Path) -> None:
        """Write a tree."""
        with opened(self._store, root, self._scratch) as catalog:
            entry = catalog.root()
            self._make_directory(target)
            self._directory(catalog, entry, target)
        if self._written:
            # What is changed from now on has a later time than what was just written.
            time.sleep(TOO_FRESH_NS / 1e9)

    def _directory(self, catalog: CatalogReader, entry: Entry, target: Path) -> None:
        known = self._index.directory(entry.path)
        remembered: dict[str, tuple[str, bytes]] = {}
        entries = catalog.listdir(entry.path)
        names = {child.name for child in entries}
        with os.scandir(target) as present:
            for found in list(present):
                if found.name not in names:
                    self._remove(Path(found.path))
        groups: dict[int, Path] = {}
        for child in entries:
            path = target / child.name
            if child.is_directory:
                self._make_directory(path)
                with ExitStack() as stack:
                    inside, ref = catalog, nested_at(Found(child, catalog))
                    if ref:
                        inside = stack.enter_context(opened(self._store, ref, self._scratch))
                    self._directory(inside, child, path)
            elif child.hardlink_group in groups:
                self._link(groups[child.hardlink_group], path)
            else:
                self._file(catalog, child, path, known.get(child.name))
                if child.hardlink_group:
                    groups[child.hardlink_group] = path
        # Only now: another name of a file changes its ctime.
        for child in entries:
            if child.kind is Kind.FILE:
                content = identity(child.hash, catalog.chunks(child) if child.chunked else ())
                remembered[child.name] = (stamp(os.lstat(target / child.name)), content)
        self._index.remember(entry.path, known, remembered)
        self._attributes(entry, target)

    def _file(self, catalog: CatalogReader, entry: Entry, path: Path, known: tuple[str, bytes] | None) -> None:
        """Write what is no directory, unless it is there as it should be."""
        chunks = catalog.chunks(entry) if entry.chunked else []
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            status = None
        if status is not None and stat.S_IFMT(status.st_mode) == stat.S_IFMT(entry.mode):
            unchanged = (
                known == (stamp(status), identity(entry.hash, chunks)) and status.st_nlink == entry.nlink
                if entry.kind is Kind.FILE
                else entry.kind is Kind.SYMLINK and os.readlink(path) == entry.symlink  # noqa: PTH115  with the target as it is
            )
            if unchanged:
                self._attributes(entry, path)
                return
        if status is not None:
            self._remove(path)
        self._written = True
        if entry.kind is Kind.SYMLINK:
            path.symlink_to(entry.symlink)
        elif entry.kind is Kind.FILE:
            parts = [(chunk.hash, chunk.size) for chunk in chunks] if entry.hash is None else [(entry.hash, entry.size)]
            with path.open("xb") as stream:
                for name, size in parts:
                    for block in self._store.blocks(name, compression=entry.compression, size=size):
                        stream.write(block)
        else:
            os.mknod(path, entry.mode, entry.rdev)
        self._attributes(entry, path)

    def _link(self, first: Path, path: Path) -> None:
        if path.exists() and path.samefile(first):
            return
        self._remove(path)
        os.link(first, path)
        self._written = True

    def _make_directory(self, path: Path) -> None:
        if not path.is_dir() or path.is_symlink():
            self._remove(path)
            path.mkdir(parents=True)
            self._written = True

    def _remove(self, path: Path) -> None:
        self._written = True
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _attributes(self, entry: Entry, path: Path) -> None:
        """Owner, permissions, extended attributes and time, as far as they are not right."""
        status = os.lstat(path)
        if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
            status = os.lstat(path)
        if entry.kind is not Kind.SYMLINK and stat.S_IMODE(status.st_mode) != entry.mode & _PERMISSIONS:
            path.chmod(entry.mode & _PERMISSIONS)
        for name, value in entry.xattrs().items():
            if name not in os.listxattr(path, follow_symlinks=False) or os.getxattr(path, name, follow_symlinks=False) != value:
                os.setxattr(path, name, value, follow_symlinks=False)
        moment = entry.mtime * 10**9 + entry.mtime_ns
        if status.st_mtime_ns != moment:
            os.utime(path, ns=(moment, moment), follow_symlinks=False)
