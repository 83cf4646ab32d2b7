"""Catalogues: what is in a repository, or in a part of it. Read here; ``catalog_writer`` writes them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gridstead.cvmfs.database import ReadOnlyDatabase
from gridstead.cvmfs.digest import CATALOG, CHUNK, DIGEST_SIZE, PLAIN, Hash, path_key
from gridstead.cvmfs.entry import (
    FLAG_EXTERNAL,
    FLAG_FILE,
    FLAG_LINK,
    ROOT_PLACE,
    Chunk,
    Entry,
    NestedRef,
    Place,
    check_entry,
    check_name,
    hash_algorithm,
)
from gridstead.cvmfs.errors import FormatError

if TYPE_CHECKING:
    from typing import Self

#: Schemas that can be read. All repositories of today have 2.5.
OLDEST_SCHEMA, NEWEST_SCHEMA = 2.4, 2.5

_COLUMNS = (
    *("md5path_1", "md5path_2", "parent_1", "parent_2", "hardlinks", "hash", "size"),
    *("mode", "mtime", "flags", "name", "symlink", "uid", "gid"),
)
_NAME = _COLUMNS.index("name")
_TABLES = {
    "catalog": _COLUMNS,
    "chunks": ("md5path_1", "md5path_2", "offset", "size", "hash"),
    "nested_catalogs": ("path", "sha1"),
    "properties": ("key", "value"),
    "statistics": ("counter", "value"),
}
#: Since schema revision 4.
_OPTIONAL = {"bind_mountpoints": ("path", "sha1")}
_UNSIGNED_32 = 1 << 32
#: Directories above each other; a path of Linux has no more.
_DEEPEST = 2048
_NANOSECONDS = 10**9


class CatalogReader:
    """A catalogue in a file. Safe to use from several threads.

    What a catalogue says is not believed: every row is checked when it is read. So a catalogue made by an enemy is an error, and
    never leads out of its repository.

    Args:
        file: the decompressed catalogue. It must not change while it is open; it can be removed.
        place: where it is in the repository, and where it may say that it is.

    Attributes:
        mountpoint: where it is, "" for a root catalogue.
        root_prefix: where it says it is.
        schema: its version.
        revision: the repository's revision at which it was written.
        ttl: how long clients go by a root catalogue, seconds; None where it does not say.
        last_modified: when it was written, Unix time.
        previous: the catalogue that it replaced.
        properties: all of this as it stands there.

    Raises:
        FormatError: it is no catalogue that can be read, or one of another place.
    """

    def __init__(self, file: Path, place: Place = ROOT_PLACE) -> None:
        self.mountpoint = place.mountpoint
        self._what = f"the catalogue of {self.mountpoint or '/'}"
        self._database = ReadOnlyDatabase(file, self._what, _TABLES, _OPTIONAL)
        try:
            self._read_properties(place)
            has = self._database.has
            optional = [name if has("catalog", name) else "NULL" for name in ("mtimens", "xattr")]
            self._fields = ", ".join([*_COLUMNS, *optional, "rowid"])
            self._nested_queries = [
                (f"SELECT path, sha1, {'size' if has(table, 'size') else '0'} FROM {table}", table == "bind_mountpoints")  # noqa: S608  names from this file
                for table in ("nested_catalogs", "bind_mountpoints")
                if has(table, "path")
            ]
        except BaseException:
            self._database.close()
            raise

    def _read_properties(self, place: Place) -> None:
        self.properties = self._database.properties()
        try:
            self.schema = float(self.properties.get("schema", ""))
        except ValueError:
            raise FormatError(f"{self._what} does not say its schema") from None
        if not OLDEST_SCHEMA - 0.01 < self.schema < NEWEST_SCHEMA + 0.01:
            raise FormatError(f"{self._what} has schema {self.schema}; {OLDEST_SCHEMA} to {NEWEST_SCHEMA} can be read")
        self.root_prefix = self.properties.get("root_prefix", "")
        if place.prefix not in (self.root_prefix, None):
            raise FormatError(f"{self._what} says it is the catalogue of {self.root_prefix or '/'}; {place.prefix or '/'} would be right")
        self.revision = self._property("revision", 0)
        self.last_modified = self._property("last_modified", 0)
        self.ttl = self._property("TTL") if "TTL" in self.properties else None
        previous = self.properties.get("previous_revision", "")
        self.previous = Hash.parse(previous, CATALOG) if previous.strip("0") else None

    def _property(self, name: str, default: int | None = None) -> int:
        text = self.properties.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise FormatError(f"{self._what} has the property {name} {text[:40]!r}, which is no number")
        return int(text)

    def _inside(self, path: str) -> str:
        """A path of the repository as this catalogue has it."""
        if path != self.mountpoint and not path.startswith(f"{self.mountpoint}/"):
            raise FormatError(f"{path!r} is not below {self.mountpoint or '/'}")
        return self.root_prefix + path[len(self.mountpoint) :]

    def _outside(self, path: str) -> str:
        return self.mountpoint + path[len(self.root_prefix) :]

    def statistics(self) -> dict[str, int]:
        """The counters, as self_regular or subtree_dir.

        Raises:
            FormatError: they are damaged.
        """
        rows = self._database.rows("SELECT counter, value FROM statistics")
        return {self._database.text(name): self._database.number(value) for name, value in rows}

    def count(self) -> int:
        """How many entries there are, with its root."""
        return self._database.number(self._database.rows("SELECT count(*) FROM catalog")[0][0])

    def root(self) -> Entry:
        """Its root.

        Raises:
            FormatError: it has none, or one that is no directory.
        """
        entry = self.lookup(self.mountpoint)
        if entry is None or not entry.is_directory:
            raise FormatError(f"{self._what} has no root directory")
        return entry

    def lookup(self, path: str) -> Entry | None:
        """The entry of a path, when it is in this catalogue.

        Raises:
            FormatError: the catalogue is damaged.
        """
        found = self.find(path)
        return found[1] if found else None

    def find(self, path: str) -> tuple[int, Entry] | None:
        """The entry of a path with its number, when it is in this catalogue. A number is good for ``entry`` and ``page``.

        Raises:
            FormatError: the catalogue is damaged.
        """
        inside = self._inside(path)
        rows = self._database.rows(f"SELECT {self._fields} FROM catalog WHERE md5path_1 = ? AND md5path_2 = ?", path_key(inside))  # noqa: S608  names of columns, all from this file
        if not rows:
            return None
        return self._database.number(rows[0][-1]), self._entry(rows[0], inside.rpartition("/")[0], inside)

    def entry(self, number: int) -> Entry | None:
        """The entry of a number; None when there is no such one.

        Raises:
            FormatError: the catalogue is damaged, or the entry hangs on no directory.
        """
        names: list[bytes] = []
        rows = self._database.rows("SELECT name, md5path_1, md5path_2, parent_1, parent_2 FROM catalog WHERE rowid = ?", (number,))
        root = path_key(self.root_prefix)
        while rows:
            name, *keys = rows[0]
            key_1, key_2, parent_1, parent_2 = map(self._database.key, keys)
            if (key_1, key_2) == root:
                path = "".join(f"/{os.fsdecode(name)}" for name in reversed(names))
                return self.lookup(self.mountpoint + path)
            if not isinstance(name, bytes) or len(names) > _DEEPEST:
                break
            check_name(name, self.mountpoint)
            names.append(name)
            query = "SELECT name, md5path_1, md5path_2, parent_1, parent_2 FROM catalog WHERE md5path_1 = ? AND md5path_2 = ?"
            rows = self._database.rows(query, (parent_1, parent_2))
        if not names and not rows:
            return None
        raise FormatError(f"{self._what} has an entry {number} that hangs on no directory")

    def first_link(self, number: int) -> int:
        """The number that stands for all names of one file: the lowest of its hardlinks, which are all in one directory.

        Raises:
            FormatError: the catalogue is damaged.
        """
        query = (
            "SELECT min(other.rowid) FROM catalog AS one, catalog AS other WHERE one.rowid = ? "
            "AND other.parent_1 = one.parent_1 AND other.parent_2 = one.parent_2 AND other.hardlinks = one.hardlinks"
        )
        return self._database.number(self._database.rows(query, (number,))[0][0])

    def listdir(self, path: str) -> list[Entry]:
        """The entries of a directory, in the order of their names, hidden ones too. For large directories there is ``page``.

        Raises:
            FormatError: the catalogue is damaged.
        """
        return sorted((entry for _, entry in self._children(path, "", ())), key=lambda entry: entry.path)

    def page(self, path: str, after: int = 0, limit: int = 1000) -> list[tuple[int, Entry]]:
        """Some entries of a directory, in an order that does not change.

        Args:
            path: the directory.
            after: the number of the last entry already seen; 0 for the first page.
            limit: how many.

        Returns:
            Numbers and entries; less than ``limit`` of them on the last page.

        Raises:
            FormatError: the catalogue is damaged.
        """
        return self._children(path, "AND rowid > ? ORDER BY rowid LIMIT ?", (after, limit))

    def _children(self, path: str, rest: str, values: tuple[int, ...]) -> list[tuple[int, Entry]]:
        inside = self._inside(path)
        query = f"SELECT {self._fields} FROM catalog WHERE parent_1 = ? AND parent_2 = ? {rest}"  # noqa: S608  as above
        found = []
        for row in self._database.rows(query, (*path_key(inside), *values)):
            name = row[_NAME]
            if not isinstance(name, bytes):
                raise FormatError(f"{self._what} has an entry without a name in {path!r}")
            check_name(name, path)
            found.append((self._database.number(row[-1]), self._entry(row, inside, f"{inside}/{os.fsdecode(name)}")))
        return found

    def _entry(self, row: tuple[int | float | bytes | None, ...], parent: str, inside: str) -> Entry:
        """A row as an entry, checked against the path at which it has to be."""
        key_1, key_2, parent_1, parent_2, hardlinks, digest, size, mode, mtime, flags, name, symlink, uid, gid, mtime_ns, xattrs, _ = row
        number, path = self._database.number, self._outside(inside)
        root = inside == self.root_prefix
        if (key_1, key_2) != path_key(inside) or name != os.fsencode(inside.rpartition("/")[2]):
            raise FormatError(f"{self._what} has an entry {name!r} that is not where it belongs, at {path!r}")
        if not root and (parent_1, parent_2) != path_key(parent):
            raise FormatError(f"{self._what} has {path!r} in another directory")
        if not isinstance(hardlinks, int) or not isinstance(mtime, int) or not isinstance(symlink, bytes):
            raise FormatError(f"{path!r} has values of wrong types")
        if not isinstance(xattrs, bytes) and xattrs is not None:
            raise FormatError(f"{path!r} has extended attributes that are no bytes")
        flags, mode, size = number(flags, _UNSIGNED_32), number(mode, 1 << 16), number(size)
        device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        entry = Entry(
            path=path,
            mode=mode,
            size=0 if device else size,
            mtime=mtime,
            mtime_ns=0 if mtime_ns is None else number(mtime_ns, _NANOSECONDS),
            uid=number(uid, _UNSIGNED_32),
            gid=number(gid, _UNSIGNED_32),
            # Shifted as unsigned: the official programs do so.
            nlink=max(1, hardlinks & 0xFFFFFFFF),
            hardlink_group=hardlinks >> 32 & 0xFFFFFFFF,
            symlink=os.fsdecode(symlink) if flags & FLAG_LINK else "",
            flags=flags,
            rdev=size if device else 0,
            xattr_blob=xattrs,
        )
        if flags & FLAG_FILE and stat.S_ISREG(mode) and digest:
            if not isinstance(digest, bytes) or len(digest) != DIGEST_SIZE:
                raise FormatError(f"{path!r} has a hash of a wrong length")
            entry = entry._replace(hash=Hash(digest, entry.algorithm))
        check_entry(entry, root=root)
        return entry

    def chunks(self, entry: Entry) -> list[Chunk]:
        """The chunks of a chunked file, which together are all of it, in their order.

        Raises:
            FormatError: they are not all of it, or overlap.
        """
        query = "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ? AND md5path_2 = ? ORDER BY offset"
        chunks, end = [], 0
        for offset, size, digest in self._database.rows(query, path_key(self._inside(entry.path))):
            if offset != end or not isinstance(size, int) or size <= 0 or not isinstance(digest, bytes) or len(digest) != DIGEST_SIZE:
                raise FormatError(f"{entry.path!r} has a chunk at {offset!r} with {size!r} bytes; one at {end} would be right")
            chunks.append(Chunk(end, size, Hash(digest, entry.algorithm, CHUNK)))
            end += size
        if end != entry.size or not chunks:
            raise FormatError(f"{entry.path!r} has chunks with {end} bytes together; {entry.size} would be right")
        return chunks

    def nested(self) -> list[NestedRef]:
        """The catalogues nested in this one, and those bound into it.

        Raises:
            FormatError: one is at an impossible place.
        """
        return [self._nested(row, bound=bound) for query, bound in self._nested_queries for row in self._database.rows(query)]

    def find_nested(self, path: str) -> NestedRef | None:
        """The catalogue nested or bound at exactly this directory.

        Raises:
            FormatError: the catalogue is damaged.
        """
        value = os.fsencode(self._inside(path))
        for query, bound in self._nested_queries:
            # A text parameter could not hold a name that is not UTF-8.
            rows = self._database.rows(f"{query} WHERE path = CAST(? AS TEXT)", (value,))
            if rows:
                return self._nested(rows[0], bound=bound)
        return None

    def _nested(self, row: tuple[int | float | bytes | None, ...], *, bound: bool) -> NestedRef:
        path, digest, size = row
        if not isinstance(path, bytes):
            raise FormatError(f"{self._what} has a nested catalogue without a place")
        inside = os.fsdecode(path)
        if not inside.startswith(f"{self.root_prefix}/"):
            raise FormatError(f"{self._what} has a nested catalogue at {inside!r}, which is outside")
        for name in path.split(b"/")[1:]:
            check_name(name, inside)
        place = Place(self._outside(inside), None if bound else inside)
        return NestedRef(place, Hash.parse(self._database.text(digest), CATALOG), 0 if size is None else self._database.number(size))

    def objects(self) -> Iterator[Hash]:
        """All objects that its files need. For looking after a repository: nothing but the hashes is checked.

        Raises:
            FormatError: the catalogue is damaged.
        """
        files = f"SELECT hash, flags FROM catalog WHERE length(hash) > 0 AND flags & {FLAG_FILE} AND NOT flags & {FLAG_EXTERNAL}"  # noqa: S608  numbers from this program
        join = "SELECT chunks.hash, flags FROM chunks JOIN catalog USING (md5path_1, md5path_2)"
        chunks = f"{join} WHERE NOT flags & {FLAG_EXTERNAL}"
        for query, suffix in ((files, PLAIN), (chunks, CHUNK)):
            for digest, flags in self._database.rows(query):
                if not isinstance(digest, bytes) or not isinstance(flags, int):
                    raise FormatError(f"{self._what} has a hash that is none")
                yield Hash(digest, hash_algorithm(flags, self._what), suffix)

    def check_integrity(self) -> None:
        """Check the whole file for damage; reading entries finds only damage on the way to them.

        Raises:
            FormatError: it is damaged.
        """
        answer = self._database.rows("PRAGMA integrity_check(1)")
        if answer != [(b"ok",)]:
            raise FormatError(f"{self._what} is damaged: {answer[0][0]!r}")

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
