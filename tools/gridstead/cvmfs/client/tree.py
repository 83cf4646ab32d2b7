"""The catalogues of a mounted repository as one tree of inodes.

An inode is a catalogue's number and a row in it, so nothing has to be remembered of the millions that the kernel may have seen:
only which catalogues they are in, and how many each. Catalogues are opened when something in them is looked at, and the ones
used longest ago are closed.

A new revision brings new catalogues, with new numbers. What has not changed keeps its inode (and with it the kernel's page cache,
and the name of a running program), as long as the kernel still knows inodes of the older catalogue. A directory keeps it in any
case and shows what it has now; a file that is open shows what it had.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gridstead.cvmfs.catalog import CatalogReader
from gridstead.cvmfs.client.store import DiskObject, Reference, Store
from gridstead.cvmfs.entry import ROOT_PLACE
from gridstead.cvmfs.errors import CvmfsError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridstead.cvmfs.digest import Hash
    from gridstead.cvmfs.entry import Chunk, Entry, Place

_T = TypeVar("_T")

#: The mount's root, whatever the revision (FUSE_ROOT_ID).
ROOT = 1
_SHIFT = 40
_ROWS = (1 << _SHIFT) - 1
#: Catalogues open at a time; SQLite's own cache has 2 MB for each at most.
_OPEN = 48
#: Entries and directories remembered.
_ENTRIES = 8192
#: Older revisions of one catalogue in which unchanged entries are looked for.
_GENERATIONS = 8
#: Bytes that a catalogue may have when nobody says how many it has.
_CATALOG_LIMIT = 4 << 30


class NotFoundError(CvmfsError):
    """There is nothing of that name, or no longer."""

    def __init__(self, message: str, number: int = errno.ENOENT) -> None:
        super().__init__(message)
        self.number = number


class NotOpenError(Exception):
    """A catalogue has to be opened first, which may take a download."""

    def __init__(self, slot: Slot) -> None:
        super().__init__(slot)
        self.slot = slot


class Slot:
    """A catalogue at its place in the tree.

    Attributes:
        number: its part of the inodes.
        place: where it is.
        hash: which catalogue.
        size: its bytes; 0 when nobody has said.
        lookups: how many lookups of its inodes the kernel has not taken back.
    """

    __slots__ = ("hash", "lookups", "number", "place", "size")

    def __init__(self, number: int, place: Place, hash_: Hash, size: int) -> None:
        self.number = number
        self.place = place
        self.hash = hash_
        self.size = size
        self.lookups = 0

    @property
    def path(self) -> str:
        """The directory it is at."""
        return self.place.mountpoint


class Directory(NamedTuple):
    """A directory as it is in the current revision.

    Attributes:
        path: where it is.
        entry: its attributes.
        content: the catalogue in which its children are.
    """

    path: str
    entry: Entry
    content: Slot


class Child(NamedTuple):
    """A directory's entry in a listing.

    Attributes:
        row: where to go on after it.
        inode: its inode.
        entry: its attributes.
    """

    row: int
    inode: int
    entry: Entry


class _Open(NamedTuple):
    """An open catalogue, and what keeps its file where it is."""

    reader: CatalogReader
    held: object


class Tree:
    """A repository's tree. Operations are quick and never download; see ``run``.

    Args:
        store: gives the catalogues.

    Attributes:
        revision: which revision is shown, by its root catalogue.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._slots: dict[int, Slot] = {}
        self._by_place: dict[Place, list[Slot]] = {}
        self._next = 1
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._directories: OrderedDict[int, Directory] = OrderedDict()
        self._root: Slot | None = None
        self.revision = 0

    def now(self, operation: Callable[[], _T]) -> _T:
        """Run an operation of this class.

        Raises:
            NotOpenError: a catalogue is not open: use ``run``, in a thread.
        """
        with self._lock:
            return operation()

    def run(self, operation: Callable[[], _T]) -> _T:
        """Run an operation of this class, with all downloads that it needs. For a thread: other operations go on meanwhile.

        Raises:
            CvmfsError: a catalogue cannot be had.
        """
        while True:
            try:
                return self.now(operation)
            except NotOpenError as missing:
                self._install(missing.slot, self._load(missing.slot))

    # Catalogues

    def replace_root(self, catalog: Hash, size: int) -> bool:
        """Show another revision. For a thread.

        Args:
            catalog: its root catalogue.
            size: that one's bytes; 0 when nobody has said.

        Returns:
            Whether it is another one.

        Raises:
            CvmfsError: it cannot be had; the old revision is shown as before.
        """
        with self._lock:
            old = self._root
            if old is not None and old.hash == catalog:
                return False
            slot = self._slot(ROOT_PLACE, catalog, size)
        opened = self._load(slot)
        opened.reader.root()
        wanted = opened.reader.properties.get("voms_authz", "").strip()
        if wanted:
            opened.reader.close()
            raise CvmfsError(
                f"only members of {wanted.splitlines()[0]!r} may read the repository, and this client does not ask who somebody is",
                hint="the official client does, with a helper for credentials",
            )
        revision = opened.reader.revision
        with self._lock:
            self._install(slot, opened)
            self._root = slot
            self.revision = revision
            self._directories.clear()
        return True

    def close(self) -> None:
        """Close all catalogues."""
        with self._lock:
            for opened in self._open.values():
                opened.reader.close()
            self._open.clear()

    @property
    def root(self) -> Slot:
        """The root catalogue."""
        if self._root is None:
            raise CvmfsError("no revision is loaded")
        return self._root

    def open_catalogs(self) -> int:
        """How many catalogues are open."""
        return len(self._open)

    def counters(self, path: str) -> tuple[Slot, dict[str, int]]:
        """The catalogue in which a path's content is, and its counters."""
        slot, entry = self._resolve(path)
        if entry.is_directory:
            slot = self._content(slot, entry)
        return slot, self._reader(slot).statistics()

    def _slot(self, place: Place, catalog: Hash, size: int) -> Slot:
        there = self._by_place.setdefault(place, [])
        for slot in there:
            if slot.hash == catalog:
                return slot
        slot = Slot(self._next, place, catalog, size)
        self._next += 1
        self._slots[slot.number] = slot
        there.append(slot)
        return slot

    def _load(self, slot: Slot) -> _Open:
        reference = Reference(slot.hash, slot.size or None, limit=_CATALOG_LIMIT)
        for attempt in range(2):
            found = self._store.get(reference)
            if isinstance(found, DiskObject) and found.path.exists():
                # SQLite reads the file itself, unchecked: so all of it is checked now.
                found.pin()
                try:
                    found.verify()
                    return _Open(CatalogReader(found.path, slot.place), found)
                except (FormatError, OSError):
                    self._store.drop(reference)
                    if attempt:
                        raise
                continue
            # The cache's disk is full. SQLite needs a file: one in memory, then.
            memory = Path("/dev/shm")  # noqa: S108 - a file without a name
            with tempfile.NamedTemporaryFile(dir=memory if memory.is_dir() else None) as file:
                file.write(found.read(0, found.size))
                file.flush()
                return _Open(CatalogReader(Path(file.name), slot.place), None)
        raise CvmfsError(f"catalogue {slot.hash} of {slot.path or '/'} does not stay in the cache")

    def _install(self, slot: Slot, opened: _Open) -> None:
        with self._lock:
            if slot.number in self._open:
                opened.reader.close()
            else:
                self._open[slot.number] = opened
                self._slots[slot.number] = slot
                there = self._by_place.setdefault(slot.place, [])
                if slot not in there:
                    there.append(slot)
            while len(self._open) > _OPEN:
                number = next(number for number in self._open if number not in (slot.number, self._root.number if self._root else 0))
                self._open.pop(number).reader.close()
                self._sweep(self._slots[number])

    def _reader(self, slot: Slot) -> CatalogReader:
        opened = self._open.get(slot.number)
        if opened is None:
            raise NotOpenError(slot)
        self._open.move_to_end(slot.number)
        return opened.reader

    def _sweep(self, slot: Slot) -> None:
        """Forget a catalogue that neither the kernel nor this revision's root needs."""
        if slot.lookups or slot is self._root or slot.number in self._open:
            return
        self._slots.pop(slot.number, None)
        there = self._by_place.get(slot.place, [])
        if slot in there:
            there.remove(slot)
            if not there:
                del self._by_place[slot.place]

    # Paths

    def _content(self, slot: Slot, entry: Entry) -> Slot:
        """The catalogue in which a directory's children are."""
        if not (entry.nested_mountpoint or entry.bind_mountpoint):
            return slot
        nested = self._reader(slot).find_nested(entry.path)
        if nested is None:
            raise FormatError(f"{entry.path} is the place of a nested catalogue, but there is none")
        return self._slot(nested.place, nested.hash, nested.size)

    def _resolve(self, path: str) -> tuple[Slot, Entry]:
        """Where a path is in the current revision.

        Raises:
            NotFoundError: it is not there.
        """
        slot = self.root
        entry = self._reader(slot).root()
        at = ""
        for name in path.split("/")[1:]:
            if not entry.is_directory:
                raise NotFoundError(f"{at} is no directory", errno.ENOTDIR)
            slot = self._content(slot, entry)
            at = f"{at}/{name}"
            found = self._reader(slot).lookup(at)
            if found is None:
                raise NotFoundError(f"there is no {at}")
            entry = found
        return slot, entry

    # Inodes

    def directory(self, inode: int) -> Directory:
        """A directory by its inode.

        Raises:
            NotFoundError: ESTALE, when the current revision does not have it.
        """
        known = self._directories.get(inode)
        if known is not None:
            self._directories.move_to_end(inode)
            return known
        path = "" if inode == ROOT else self._row(inode).path
        try:
            slot, entry = self._resolve(path)
        except NotFoundError as error:
            raise NotFoundError(str(error), errno.ESTALE) from None
        if not entry.is_directory:
            raise NotFoundError(f"{path} is no directory any more", errno.ESTALE)
        found = Directory(path, entry, self._content(slot, entry))
        self._directories[inode] = found
        if len(self._directories) > _ENTRIES:
            self._directories.popitem(last=False)
        return found

    def entry(self, inode: int) -> Entry:
        """What an inode is: a directory as it is now, anything else as it was when the inode was given.

        Raises:
            NotFoundError: ESTALE, when it is of no catalogue that is known.
        """
        if inode == ROOT:
            return self.directory(inode).entry
        entry = self._row(inode)
        if entry.is_directory:
            try:
                return self.directory(inode).entry
            except NotFoundError:
                return entry  # gone since, and a process still stands in it
        return entry

    def chunks(self, inode: int) -> list[Chunk]:
        """The chunks of a chunked file."""
        return self._reader(self._owner(inode)).chunks(self._row(inode))

    def lookup(self, parent: int, name: bytes) -> tuple[int, Entry]:
        """The inode of a name, which the kernel now knows once more: ``forget`` takes that back.

        Raises:
            NotFoundError: there is no such name.
        """
        directory = self.directory(parent)
        path = f"{directory.path}/{os.fsdecode(name)}"
        found = self._reader(directory.content).find(path)
        if found is None:
            raise NotFoundError(f"there is no {path}")
        inode = self._inode(directory.content, *found)
        self.remember(inode)
        return inode, found[1]

    def inode_of(self, path: str) -> int:
        """The inode that a path has now, for the kernel to be told about.

        Raises:
            NotFoundError: there is no such path.
        """
        if not path:
            return ROOT
        slot, _ = self._resolve(path)
        found = self._reader(slot).find(path)
        if found is None:
            raise NotFoundError(f"there is no {path}")
        return self._inode(slot, *found)

    def page(self, directory: Directory, after: int, limit: int) -> list[Child]:
        """Some of a directory's entries; the kernel does not know them by that, see ``remember``.

        Args:
            directory: the directory.
            after: the last row already seen; 0 for the first page.
            limit: how many.

        Returns:
            Entries, none at the end. Hidden ones are left out, so that there may be fewer than ``limit``.
        """
        children: list[Child] = []
        while not children:
            rows = self._reader(directory.content).page(directory.path, after, limit)
            if not rows:
                break
            after = rows[-1][0]
            children = [Child(row, self._inode(directory.content, row, entry), entry) for row, entry in rows if not entry.hidden]
        return children

    def changed_names(self, before: Directory) -> list[str]:
        """The names of an older root directory under which the current one may show something else."""
        root = self.directory(ROOT)
        changed: list[str] = []
        after = 0
        while True:
            rows = self._reader(before.content).page(before.path, after, 1000)
            if not rows:
                return changed
            after = rows[-1][0]
            for _, old in rows:
                new = self._reader(root.content).lookup(old.path)
                if (
                    new is None
                    or not self._same(before.content, old, root.content, new)
                    or not self._unchanged_below(before, old, root, new)
                ):
                    changed.append(old.name)

    def _unchanged_below(self, before: Directory, old: Entry, root: Directory, new: Entry) -> bool:
        if not old.is_directory:
            return True
        old_content, new_content = self._content(before.content, old), self._content(root.content, new)
        return old_content is new_content and old_content is not before.content

    def remember(self, inode: int) -> None:
        """Count that the kernel knows an inode once more."""
        self._slots[inode >> _SHIFT].lookups += 1

    def forget(self, inode: int, number: int) -> None:
        """Count that the kernel knows an inode some times less."""
        with self._lock:
            slot = self._slots.get(inode >> _SHIFT)
            if slot is not None:
                slot.lookups = max(0, slot.lookups - number)
                self._sweep(slot)

    def release(self, slot: Slot) -> None:
        """Give back a catalogue whose ``lookups`` were counted up."""
        with self._lock:
            slot.lookups -= 1
            self._sweep(slot)

    def _owner(self, inode: int) -> Slot:
        slot = self._slots.get(inode >> _SHIFT)
        if slot is None:
            raise NotFoundError(f"inode {inode} is of no catalogue that is known", errno.ESTALE)
        return slot

    def _row(self, inode: int) -> Entry:
        """The entry of an inode in its own catalogue."""
        entry = self._entries.get(inode)
        if entry is not None:
            self._entries.move_to_end(inode)
            return entry
        entry = self._reader(self._owner(inode)).entry(inode & _ROWS)
        if entry is None:
            raise NotFoundError(f"inode {inode} is not in its catalogue", errno.ESTALE)
        self._note(inode, entry)
        return entry

    def _note(self, inode: int, entry: Entry) -> None:
        self._entries[inode] = entry
        if len(self._entries) > _ENTRIES:
            self._entries.popitem(last=False)

    def _inode(self, slot: Slot, row: int, entry: Entry) -> int:
        """The inode of an entry: of an older catalogue when nothing has changed since."""
        owner = slot
        there = self._by_place.get(slot.place, [])
        if len(there) > 1:
            for older in there[-_GENERATIONS - 1 :]:
                if older is slot:
                    break
                if older.lookups and older.number in self._open:
                    before = self._reader(older).find(entry.path)
                    if before is not None and self._same(older, before[1], slot, entry):
                        owner, row = older, before[0]
                        break
        if entry.hardlink_group:
            return owner.number << _SHIFT | self._reader(owner).first_link(row)
        inode = owner.number << _SHIFT | row
        self._note(inode, entry)
        return inode

    def _same(self, older: Slot, before: Entry, slot: Slot, entry: Entry) -> bool:
        if before.is_directory or entry.is_directory:
            return before.is_directory and entry.is_directory
        if before._replace(hardlink_group=0) != entry._replace(hardlink_group=0):
            return False
        return not entry.chunked or self._reader(older).chunks(before) == self._reader(slot).chunks(entry)
