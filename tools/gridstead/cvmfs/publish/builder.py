"""From a directory tree to the catalogues and objects of a revision."""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from gridstead.cvmfs import xattr
from gridstead.cvmfs.catalog import CatalogReader
from gridstead.cvmfs.catalog_writer import CatalogWriter, Counters
from gridstead.cvmfs.digest import CATALOG
from gridstead.cvmfs.entry import (
    FLAG_CHUNKED,
    FLAG_DIRECTORY,
    FLAG_FILE,
    FLAG_LINK,
    FLAG_NESTED_MOUNTPOINT,
    FLAG_NESTED_ROOT,
    Chunk,
    Entry,
    NestedRef,
    Place,
    file_flags,
)
from gridstead.cvmfs.errors import CvmfsError
from gridstead.cvmfs.publish.catalogs import opened
from gridstead.cvmfs.publish.content import Content, ContentWriter
from gridstead.cvmfs.publish.dirtab import MARKER_NAME, Dirtab
from gridstead.cvmfs.publish.index import TOO_FRESH_NS, Index, identity, stamp
from gridstead.cvmfs.publish.settings import Settings
from gridstead.cvmfs.publish.store import Staging

#: What a directory's size is said to be, whatever the file system says: so the same tree is the same catalogue everywhere.
_DIRECTORY_SIZE = 4096
_BATCH = 2000
_PUBLISHED = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


class _Name(NamedTuple):
    """An entry of a directory that is read."""

    name: str
    file: str
    status: os.stat_result


class Built(NamedTuple):
    """A catalogue that was built.

    Attributes:
        ref: the catalogue.
        counters: what it and all below it hold.
        changed: whether it is another one than before.
        entry: its root directory, without the flags of a mountpoint.
    """

    ref: NestedRef
    counters: Counters
    changed: bool
    entry: Entry


class Revision(NamedTuple):
    """What a new revision is to say of itself."""

    number: int
    modified: int


class _Catalog:
    """A catalogue that is being built, beside the one that it may replace."""

    def __init__(self, writer: CatalogWriter, path: str, before: CatalogReader | None) -> None:
        self.writer = writer
        self.path = path
        self.before = before
        self.changed = before is None
        self.nested: list[NestedRef] = []
        self.groups = itertools.count(1)
        self._batch: list[Entry] = []

    def old(self, directory: str) -> dict[str, Entry]:
        """What a directory has held, by name."""
        return {entry.name: entry for entry in self.before.listdir(directory)} if self.before else {}

    def chunks(self, entry: Entry | None) -> tuple[Chunk, ...]:
        """The chunks that a file has had."""
        return tuple(self.before.chunks(entry)) if self.before and entry and entry.chunked else ()

    def add(self, entry: Entry, old: Entry | None) -> None:
        """Add an entry that may have been there before."""
        self.changed = self.changed or entry != old
        self._batch.append(entry)
        if len(self._batch) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        self.writer.add(self._batch)
        self._batch.clear()


class Builder:
    """Builds one revision.

    Args:
        staging: where new objects go.
        settings: how they are made.
        index: what is known of files.
        content: what reads files.
        revision: what the new catalogues say of themselves.
        dirtab: which directories get catalogues of their own.

    Attributes:
        files: how many files there are.
        read: how many of them were read, because they are new or may have changed.
        left_out: paths of special files that are not published.
    """

    def __init__(
        self, staging: Staging, settings: Settings, index: Index, content: ContentWriter, revision: Revision, dirtab: Dirtab
    ) -> None:
        self._staging = staging
        self._settings = settings
        self._index = index
        self._content = content
        self._revision = revision
        self._dirtab = dirtab
        self._flags = file_flags(settings.hash_algorithm, settings.compression_algorithm)
        # Names of one file in several directories are several files to CVMFS, but with the same content.
        self._linked: dict[tuple[int, int], Content] = {}
        self._number = itertools.count()
        self.files = 0
        self.read = 0
        self.left_out: list[str] = []

    def build(self, source: Path, before: CatalogReader | None, before_ref: NestedRef | None) -> Built:
        """Build all catalogues of a tree.

        Args:
            source: the tree.
            before: the root catalogue of the revision before.
            before_ref: its name.

        Returns:
            The root catalogue.

        Raises:
            CvmfsError: something in the tree cannot be read, changes meanwhile, or cannot be published.
        """
        try:
            status = os.lstat(source)
        except OSError as error:
            raise CvmfsError(f"{source} cannot be read: {error.strerror}") from None
        root = _Name("", str(source), status)
        try:
            return self._catalog(root, "", self._list(root.file, ""), before, before_ref)
        except RecursionError:
            raise CvmfsError(f"{source}: catalogues are nested too deeply", hint=f"remove some of the {MARKER_NAME} files") from None

    def _list(self, directory: str, path: str) -> list[_Name]:
        """What a directory holds, in the order of names."""
        try:
            with os.scandir(directory) as found:
                names = [_Name(entry.name, entry.path, entry.stat(follow_symlinks=False)) for entry in found]
        except FileNotFoundError as error:
            raise CvmfsError(f"{error.filename or directory} went away while it was being published") from None
        except OSError as error:
            raise CvmfsError(f"{error.filename or directory} cannot be read: {error.strerror}") from None
        special = {name.name: name for name in names if stat.S_IFMT(name.status.st_mode) not in _PUBLISHED}
        if special and not self._settings.ignore_special_files:
            raise CvmfsError(
                f"{min(special.values()).file} is no file, directory or link, and cannot be published",
                hint="remove it, or set CVMFS_IGNORE_SPECIAL_FILES=true in server.conf to leave such files out",
            )
        self.left_out += [f"{path}/{name}" for name in sorted(special)]
        return sorted(name for name in names if name.name not in special)

    def _catalog(self, root: _Name, path: str, names: list[_Name], before: CatalogReader | None, before_ref: NestedRef | None) -> Built:
        """Build the catalogue that begins at a directory, and all below it."""
        file = self._staging.scratch / f"{next(self._number)}.catalog"
        with CatalogWriter(file, path) as writer:
            catalog = _Catalog(writer, path, before)
            entry = self._fill(catalog, root, names)
            writer.add_nested(catalog.nested)
            if before is not None:
                ttl = None if path else self._settings.repository_ttl
                catalog.changed |= sorted(catalog.nested) != sorted(before.nested()) or ttl != before.ttl
            if before_ref is not None and not catalog.changed:
                writer.discard()
                return Built(before_ref, writer.counters, changed=False, entry=entry)
            writer.finish(
                revision=self._revision.number,
                modified=self._revision.modified,
                previous=before_ref.hash if before_ref else None,
                ttl=None if path else self._settings.repository_ttl,
            )
        size = file.stat().st_size
        return Built(NestedRef(Place.at(path), self._staging.put_file(file, CATALOG), size), writer.counters, changed=True, entry=entry)

    def _fill(self, catalog: _Catalog, root: _Name, names: list[_Name]) -> Entry:
        """Put a directory and all below it, as far as it belongs to the same catalogue, into the catalogue."""
        old_root = catalog.before.root() if catalog.before else None
        listed: list[_Name] | None = names
        stack: list[tuple[_Name, str, Entry | None]] = [(root, catalog.path, old_root)]
        first = None
        while stack:
            name, path, old_entry = stack.pop()
            listed, names = None, self._list(name.file, path) if listed is None else listed
            if path != catalog.path and self._wants_catalog(path, names):
                self._nest(catalog, name, path, names, old_entry)
                continue
            directories = [entry for entry in names if stat.S_ISDIR(entry.status.st_mode)]
            entry = self._directory(path, name, len(directories), FLAG_NESTED_ROOT if path == catalog.path != "" else 0)
            first = first or entry
            catalog.add(entry, old_entry)
            old = catalog.old(path)
            self._files(catalog, path, [entry for entry in names if not stat.S_ISDIR(entry.status.st_mode)], old)
            have = {entry.name for entry in names}
            if path == catalog.path != "" and MARKER_NAME not in have:
                # The dirtab wants the catalogue, and the official programs want a marker where a catalogue is.
                have.add(MARKER_NAME)
                catalog.add(self._marker(entry), old.get(MARKER_NAME))
            catalog.changed |= catalog.before is not None and have != old.keys()
            stack += [(entry, f"{path}/{entry.name}", old.get(entry.name)) for entry in reversed(directories)]
        catalog.flush()
        assert first is not None, "the stack began with one"  # noqa: S101  for mypy
        return first

    def _wants_catalog(self, path: str, names: Sequence[_Name]) -> bool:
        return self._dirtab.wants(path) or any(name.name == MARKER_NAME and stat.S_ISREG(name.status.st_mode) for name in names)

    def _nest(self, catalog: _Catalog, name: _Name, path: str, names: list[_Name], old_entry: Entry | None) -> None:
        """Build a nested catalogue and put its mountpoint into its parent."""
        with ExitStack() as stack:
            ref = None
            if catalog.before and old_entry and old_entry.nested_mountpoint:
                ref = catalog.before.find_nested(path)
            before = stack.enter_context(opened(self._staging.store, ref, self._staging.scratch)) if ref else None
            built = self._catalog(name, path, names, before, ref)
        catalog.nested.append(built.ref)
        catalog.writer.counters.add_nested(built.counters)
        catalog.add(built.entry._replace(flags=FLAG_DIRECTORY | FLAG_NESTED_MOUNTPOINT), old_entry)

    def _files(self, catalog: _Catalog, path: str, names: list[_Name], old: dict[str, Entry]) -> None:
        """Put what is no directory into the catalogue, and its content into the repository."""
        known = self._index.directory(path)
        regular = [name for name in names if stat.S_ISREG(name.status.st_mode)]
        contents = self._contents(catalog, regular, old, known)
        groups: dict[int, list[_Name]] = {}
        for name in regular:
            if name.status.st_nlink > 1:
                groups.setdefault(name.status.st_ino, []).append(name)
        numbers = {inode: next(catalog.groups) for inode, members in groups.items() if len(members) > 1}
        remembered: dict[str, tuple[str, bytes]] = {}
        now = time.time_ns()
        for name in names:
            old_entry = old.get(name.name)
            entry = self._plain(path, name)
            if name.name in contents:
                content = contents[name.name]
                group = numbers.get(name.status.st_ino, 0)
                entry = entry._replace(
                    hash=content.hash,
                    flags=self._flags | (FLAG_CHUNKED if content.chunks else 0),
                    hardlink_group=group,
                    nlink=len(groups[name.status.st_ino]) if group else 1,
                )
                if content.chunks:
                    catalog.writer.add_chunks(entry, content.chunks)
                    catalog.changed |= entry != old_entry or content.chunks != catalog.chunks(old_entry)
                if now - name.status.st_ctime_ns > TOO_FRESH_NS:
                    remembered[name.name] = (stamp(name.status), identity(content.hash, content.chunks))
            catalog.add(entry, old_entry)
        self._index.remember(path, known, remembered)

    def _contents(
        self, catalog: _Catalog, names: list[_Name], old: dict[str, Entry], known: dict[str, tuple[str, bytes]]
    ) -> dict[str, Content]:
        """Where the content of files is; of those that have changed, it is put there."""
        contents: dict[str, Content] = {}
        read: dict[tuple[int, int], list[_Name]] = {}
        for name in names:
            self.files += 1
            content = self._unchanged(catalog, name, old.get(name.name), known.get(name.name))
            inode = (name.status.st_dev, name.status.st_ino)
            content = content or self._linked.get(inode)
            if content is None:
                read.setdefault(inode, []).append(name)
            else:
                contents[name.name] = content
        self.read += len(read)
        written = self._content.put((members[0].file, members[0].status) for members in read.values())
        for (inode, members), content in zip(read.items(), written):  # noqa: B905  strict= came with Python 3.10
            contents.update((member.name, content) for member in members)
            if members[0].status.st_nlink > 1:
                self._linked[inode] = content
        return contents

    def _unchanged(self, catalog: _Catalog, name: _Name, old: Entry | None, known: tuple[str, bytes] | None) -> Content | None:
        """A file's content as it is in the repository, when nothing has touched the file since."""
        if old is None or known is None or known[0] != stamp(name.status) or old.flags & ~FLAG_CHUNKED != self._flags:
            return None
        content = Content(old.hash, catalog.chunks(old))
        return content if known[1] == identity(content.hash, content.chunks) and old.size == name.status.st_size else None

    def _directory(self, path: str, name: _Name, directories: int, flags: int) -> Entry:
        entry = self._base(path, name)
        return entry._replace(size=_DIRECTORY_SIZE, nlink=2 + directories, flags=FLAG_DIRECTORY | flags)

    def _marker(self, directory: Entry) -> Entry:
        empty = self._staging.put(b"", compression=self._settings.compression_algorithm)
        return directory._replace(
            path=f"{directory.path}/{MARKER_NAME}",
            mode=stat.S_IFREG | 0o644,
            size=0,
            nlink=1,
            flags=self._flags,
            hash=empty,
            xattr_blob=None,
        )

    def _plain(self, path: str, name: _Name) -> Entry:
        """A file, without its content, or a link."""
        entry = self._base(f"{path}/{name.name}", name)
        if not stat.S_ISLNK(name.status.st_mode):
            return entry._replace(size=name.status.st_size)
        try:
            target = os.readlink(name.file)  # noqa: PTH115  asked for every link of a tree
        except OSError as error:
            raise CvmfsError(f"{name.file} cannot be read: {error.strerror}") from None
        return entry._replace(size=len(os.fsencode(target)), symlink=target, flags=FLAG_FILE | FLAG_LINK)

    def _base(self, path: str, name: _Name) -> Entry:
        status = name.status
        mtime, mtime_ns = divmod(status.st_mtime_ns, 10**9)
        attributes = self._attributes(name) if self._settings.include_xattrs else None
        return Entry(path, status.st_mode, 0, mtime, mtime_ns, status.st_uid, status.st_gid, xattr_blob=attributes)

    def _attributes(self, name: _Name) -> bytes | None:
        """Extended attributes; those that are too long for CVMFS are left out, as the official publisher does."""
        try:
            found = {key: os.getxattr(name.file, key, follow_symlinks=False) for key in os.listxattr(name.file, follow_symlinks=False)}
        except OSError as error:
            raise CvmfsError(f"the extended attributes of {name.file} cannot be read: {error.strerror}") from None
        return xattr.build({key: value for key, value in found.items() if len(os.fsencode(key)) <= xattr.LIMIT >= len(value)})
