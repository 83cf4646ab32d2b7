"""Writing catalogues, in the tables and with the counters of the official programs (schema 2.5, revision 7)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gridstead.cvmfs.database import PROPERTIES, NewDatabase
from gridstead.cvmfs.digest import Hash, path_key
from gridstead.cvmfs.entry import Chunk, Entry, Kind, NestedRef

if TYPE_CHECKING:
    from typing import Self

_STATEMENTS = (
    PROPERTIES,
    (
        "CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER, hash BLOB,"
        " size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER,"
        " xattr BLOB,  CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2))"
    ),
    "CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2)",
    (
        "CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER,  hash BLOB,"
        "  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),"
        "  FOREIGN KEY (md5path_1, md5path_2) REFERENCES    catalog(md5path_1, md5path_2))"
    ),
    "CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path))",
    "CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path))",
    "CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter))",
)
# The name is cast from bytes: a text parameter could not hold one that is not UTF-8.
_ENTRY = (
    "INSERT INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, mtimens, flags, name, symlink,"
    " uid, gid, xattr) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)"
)
_CHUNK = "INSERT INTO chunks (md5path_1, md5path_2, offset, size, hash) VALUES (?, ?, ?, ?, ?)"
_NESTED = "INSERT INTO nested_catalogs (path, sha1, size) VALUES (CAST(? AS TEXT), ?, ?)"

#: What is counted, of a catalogue itself (self_...) and of all below it together (subtree_...).
COUNTERS = (
    *("regular", "symlink", "special", "dir", "nested", "chunked", "chunks"),
    *("file_size", "chunked_size", "xattr", "external", "external_file_size"),
)
SCHEMA, SCHEMA_REVISION = "2.5", "7"


@dataclass
class Counters:
    """What a catalogue holds (cvmfs/catalog_counters.cc).

    Attributes:
        own: of the catalogue itself.
        below: of all catalogues nested in it, at any depth.
    """

    own: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    below: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    def count(self, entry: Entry, chunks: int = 0) -> None:
        """Count an entry of the catalogue, its root included."""
        own, kind = self.own, entry.kind
        if kind is Kind.FILE:
            own["regular"] += 1
            own["file_size"] += entry.size
            if entry.chunked:
                own["chunked"] += 1
                own["chunked_size"] += entry.size
                own["chunks"] += chunks
            if entry.external:
                own["external"] += 1
                own["external_file_size"] += entry.size
        elif kind is Kind.DIRECTORY:
            own["dir"] += 1
            if entry.nested_mountpoint:
                own["nested"] += 1
        elif kind is Kind.SYMLINK:
            own["symlink"] += 1
        else:
            own["special"] += 1
        if entry.xattr_blob is not None:
            own["xattr"] += 1

    def add_nested(self, nested: Counters) -> None:
        """Count what a catalogue nested directly in this one holds, itself and below it."""
        for name in COUNTERS:
            self.below[name] += nested.own[name] + nested.below[name]

    def statistics(self) -> dict[str, int]:
        """All of it, under the names that catalogues have for it."""
        return {f"{where}_{name}": values[name] for where, values in (("self", self.own), ("subtree", self.below)) for name in COUNTERS}

    @classmethod
    def of(cls, statistics: dict[str, int]) -> Counters:
        """From a catalogue's own statistics."""
        return cls(*({name: statistics.get(f"{where}_{name}", 0) for name in COUNTERS} for where in ("self", "subtree")))


class CatalogWriter:
    """A new catalogue. A context manager: on an error its file goes away.

    Args:
        file: where it is written; must not exist.
        root_prefix: the directory at which it is in the repository, "" for a root catalogue.

    Attributes:
        counters: what has been added so far. Nested catalogues' are for the caller to add.
    """

    def __init__(self, file: Path, root_prefix: str = "") -> None:
        self.root_prefix = root_prefix
        self.counters = Counters()
        self._database = NewDatabase(file, _STATEMENTS)

    def add(self, entries: Iterable[Entry]) -> None:
        """Add entries, the root among them.

        Raises:
            CvmfsError: the file cannot be written, or two have the same path.
        """
        self._database.insert(_ENTRY, (self._row(entry) for entry in entries))

    def _row(self, entry: Entry) -> tuple[int | str | bytes | None, ...]:
        if not entry.chunked:
            self.counters.count(entry)
        parent = path_key(entry.path.rpartition("/")[0]) if entry.path else (0, 0)
        links = entry.hardlink_group << 32 | entry.nlink
        digest = None if entry.hash is None else entry.hash.digest
        return (
            *(
                *path_key(entry.path),
                *parent,
                links,
                digest,
                entry.rdev or entry.size,
                entry.mode,
                entry.mtime,
                entry.mtime_ns,
                entry.flags,
            ),
            *(os.fsencode(entry.name), os.fsencode(entry.symlink), entry.uid, entry.gid, entry.xattr_blob),
        )

    def add_chunks(self, entry: Entry, chunks: Sequence[Chunk]) -> None:
        """Add the chunks of a chunked file that is added itself, too."""
        self.counters.count(entry, len(chunks))
        key = path_key(entry.path)
        self._database.insert(_CHUNK, ((*key, chunk.offset, chunk.size, chunk.hash.digest) for chunk in chunks))

    def add_nested(self, nested: Iterable[NestedRef]) -> None:
        """Add references to nested catalogues."""
        self._database.insert(_NESTED, ((os.fsencode(ref.path), str(ref.hash), ref.size) for ref in nested))

    def finish(self, *, revision: int, modified: int, previous: Hash | None, ttl: int | None = None) -> None:
        """Write properties and counters, and close the file.

        Args:
            revision: the repository's revision that it is part of.
            modified: Unix time.
            previous: the catalogue that it replaces.
            ttl: how long clients go by it; for root catalogues.
        """
        values = {"schema": SCHEMA, "schema_revision": SCHEMA_REVISION}
        if self.root_prefix:
            values["root_prefix"] = self.root_prefix
        if ttl is not None:
            values["TTL"] = str(ttl)
        values |= {"last_modified": str(modified), "revision": str(revision), "previous_revision": str(previous or "0" * 40)}
        self._database.properties(values)
        self._database.insert("INSERT INTO statistics (counter, value) VALUES (?, ?)", self.counters.statistics().items())
        self._database.finish()

    def discard(self) -> None:
        """Give it up and remove its file."""
        self._database.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()
