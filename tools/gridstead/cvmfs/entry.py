"""An entry of a catalogue: a directory, file, link or special file."""

from __future__ import annotations

import enum
import stat
from typing import NamedTuple

from gridstead.cvmfs import xattr
from gridstead.cvmfs.digest import ALGORITHMS, Hash
from gridstead.cvmfs.errors import FormatError
from gridstead.cvmfs.objects import COMPRESSIONS

# Flags of an entry (cvmfs/catalog_sql.h, SqlDirent).
FLAG_DIRECTORY = 1
FLAG_NESTED_MOUNTPOINT = 2
FLAG_FILE = 4
FLAG_LINK = 8
FLAG_SPECIAL = 16
FLAG_NESTED_ROOT = 32
FLAG_CHUNKED = 64
FLAG_EXTERNAL = 128
FLAG_BIND_MOUNTPOINT = 0x4000
FLAG_HIDDEN = 0x8000
FLAG_DIRECT_IO = 0x10000
_HASH_SHIFT = 8
_COMPRESSION_SHIFT = 11

#: Bytes of a name that Linux allows (NAME_MAX).
LONGEST_NAME = 255
#: Bytes of a link's target that are taken; Linux allows 4095, but variables in it may be longer than what they stand for.
LONGEST_TARGET = 65535


class Kind(enum.Enum):
    """What an entry is, by its mode's type bits."""

    DIRECTORY = stat.S_IFDIR
    FILE = stat.S_IFREG
    SYMLINK = stat.S_IFLNK
    FIFO = stat.S_IFIFO
    SOCKET = stat.S_IFSOCK
    CHARACTER = stat.S_IFCHR
    BLOCK = stat.S_IFBLK


_KINDS = {kind.value: kind for kind in Kind}
_SPECIAL = frozenset({Kind.FIFO, Kind.SOCKET, Kind.CHARACTER, Kind.BLOCK})


class Chunk(NamedTuple):
    """A part of a large file, an object of its own.

    Attributes:
        offset: where in the file it begins, bytes.
        size: how many bytes of the file it has.
        hash: the object.
    """

    offset: int
    size: int
    hash: Hash


class Place(NamedTuple):
    """Where a catalogue is, and where it says that it is. Below a bind mountpoint these differ: it was made for another place.

    Attributes:
        mountpoint: the directory it begins at, "" for the root.
        prefix: that directory in its own paths; None where only the catalogue knows, as at a bind mountpoint.
    """

    mountpoint: str
    prefix: str | None

    @classmethod
    def at(cls, path: str) -> Place:
        """The place of a catalogue that was made for where it is."""
        return cls(path, path)


#: A root catalogue's place.
ROOT_PLACE = Place.at("")


class NestedRef(NamedTuple):
    """A catalogue, as the one that it hangs on has it, or as a manifest or a tag has it.

    Attributes:
        place: where it is.
        hash: the catalogue.
        size: its bytes when decompressed; 0 when nobody has said.
    """

    place: Place
    hash: Hash
    size: int

    @property
    def path(self) -> str:
        """The directory it begins at."""
        return self.place.mountpoint


class Entry(NamedTuple):
    """One entry. Paths are decoded like file names in Python, with surrogates for what is not UTF-8.

    Attributes:
        path: from the repository's root: "" is the root itself, others begin with a slash.
        mode: type and permissions as ``st_mode``.
        size: bytes; of a link the length of its raw target.
        mtime: when it was last changed, Unix time in whole seconds.
        mtime_ns: the nanoseconds above that.
        uid: its owner.
        gid: its group.
        nlink: how many names it has in its directory; of a directory 2 and its subdirectories.
        hardlink_group: the same for all names of one file, unique in one catalogue; 0 when it has one name.
        hash: the object with a file's content; None for what is no file, or is there in chunks.
        symlink: a link's raw target, with variables such as ``$(VAR:-default)``; otherwise empty.
        flags: as in the catalogue; the properties below decode them.
        rdev: number of a device.
        xattr_blob: extended attributes as in the catalogue.
    """

    path: str
    mode: int
    size: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    hardlink_group: int = 0
    hash: Hash | None = None
    symlink: str = ""
    flags: int = 0
    rdev: int = 0
    xattr_blob: bytes | None = None

    @property
    def name(self) -> str:
        """The last part of the path; the root's is empty."""
        return self.path.rpartition("/")[2]

    @property
    def kind(self) -> Kind:
        """What it is.

        Raises:
            FormatError: the mode says nothing that there is.
        """
        kind = _KINDS.get(stat.S_IFMT(self.mode))
        if kind is None:
            raise FormatError(f"{self.path!r} has the mode {self.mode:o}, which is no kind of file")
        return kind

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_special(self) -> bool:
        """Whether it is a named pipe, socket or device."""
        return self.kind in _SPECIAL

    @property
    def nested_mountpoint(self) -> bool:
        """Whether its content is in a nested catalogue."""
        return bool(self.flags & FLAG_NESTED_MOUNTPOINT)

    @property
    def nested_root(self) -> bool:
        """Whether it is the root of a nested catalogue, seen from inside."""
        return bool(self.flags & FLAG_NESTED_ROOT)

    @property
    def bind_mountpoint(self) -> bool:
        """Whether its content is another root catalogue."""
        return bool(self.flags & FLAG_BIND_MOUNTPOINT)

    @property
    def chunked(self) -> bool:
        """Whether its content is in chunks."""
        return bool(self.flags & FLAG_CHUNKED)

    @property
    def external(self) -> bool:
        """Whether its content is on another server, not compressed, under its path instead of its hash."""
        return bool(self.flags & FLAG_EXTERNAL)

    @property
    def hidden(self) -> bool:
        """Whether listings leave it out."""
        return bool(self.flags & FLAG_HIDDEN)

    @property
    def direct_io(self) -> bool:
        """Whether the kernel's page cache is to be passed by."""
        return bool(self.flags & FLAG_DIRECT_IO)

    @property
    def algorithm(self) -> str:
        """The hash algorithm of its content and chunks.

        Raises:
            FormatError: its number is none of an algorithm.
        """
        return hash_algorithm(self.flags, self.path)

    @property
    def compression(self) -> str:
        """How its content and chunks are compressed.

        Raises:
            FormatError: its number is none of a compression.
        """
        return _by_number(COMPRESSIONS, self.flags >> _COMPRESSION_SHIFT & 7, "compression", self.path)

    def xattrs(self) -> dict[str, bytes]:
        """Its extended attributes.

        Raises:
            FormatError: they are garbage.
        """
        return xattr.parse(self.xattr_blob)


def hash_algorithm(flags: int, where: str) -> str:
    """The hash algorithm that an entry's flags say.

    Raises:
        FormatError: its number is none of an algorithm.
    """
    return _by_number(ALGORITHMS, flags >> _HASH_SHIFT & 7, "hash algorithm", where)


def _by_number(names: tuple[str, ...], number: int, what: str, path: str) -> str:
    if number >= len(names):
        raise FormatError(f"{path!r} has {what} {number}, which this program does not know")
    return names[number]


def file_flags(algorithm: str = "sha1", compression: str = "zlib", *, chunked: bool = False) -> int:
    """The flags of a file whose content is in the repository."""
    number = ALGORITHMS.index(algorithm) << _HASH_SHIFT | COMPRESSIONS.index(compression) << _COMPRESSION_SHIFT
    return FLAG_FILE | number | (FLAG_CHUNKED if chunked else 0)


def check_name(name: bytes, where: str) -> None:
    """Check a name: it must not lead anywhere but into its directory.

    Raises:
        FormatError: it does.
    """
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > LONGEST_NAME:
        raise FormatError(f"{where!r} has an entry with the name {name[:60]!r}, which no file can have")


def check_entry(entry: Entry, *, root: bool) -> None:
    """Check that an entry makes sense in itself.

    Args:
        entry: the entry.
        root: whether it is the root of its catalogue.

    Raises:
        FormatError: it does not.
    """
    kind, flags, path = entry.kind, entry.flags, entry.path

    def wrong(what: str) -> FormatError:
        return FormatError(f"{path!r} {what}")

    if kind is Kind.DIRECTORY:
        if not flags & FLAG_DIRECTORY or flags & (FLAG_FILE | FLAG_LINK | FLAG_SPECIAL | FLAG_CHUNKED | FLAG_EXTERNAL):
            raise wrong(f"is a directory by its mode, but not by its flags {flags:#x}")
        if entry.nested_root and not root:
            raise wrong("is a nested catalogue's root in the middle of a catalogue")
        if entry.nested_mountpoint and (entry.bind_mountpoint or root):
            raise wrong(f"has flags that exclude each other: {flags:#x}")
        return
    if not flags & FLAG_FILE or flags & (FLAG_DIRECTORY | FLAG_NESTED_MOUNTPOINT | FLAG_NESTED_ROOT | FLAG_BIND_MOUNTPOINT):
        raise wrong(f"is no directory by its mode {entry.mode:o}, but by its flags {flags:#x}")
    if (kind is Kind.SYMLINK) != bool(flags & FLAG_LINK):
        raise wrong(f"has mode {entry.mode:o} and flags {flags:#x}, which disagree on whether it is a link")
    if kind is Kind.SYMLINK and (not entry.symlink or "\0" in entry.symlink or len(entry.symlink) > LONGEST_TARGET):
        raise wrong("is a link with an impossible target")
    if kind is not Kind.FILE:
        if flags & (FLAG_CHUNKED | FLAG_EXTERNAL):
            raise wrong(f"is no file by its mode {entry.mode:o}, but by its flags {flags:#x}")
        return
    if flags & FLAG_SPECIAL:
        raise wrong(f"is a file by its mode {entry.mode:o}, but not by its flags {flags:#x}")
    if entry.hash is None and not entry.chunked:
        raise wrong("is a file without content")
    _ = entry.algorithm, entry.compression
