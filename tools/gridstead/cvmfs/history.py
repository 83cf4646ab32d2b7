"""The history: a repository's named revisions, its tags (cvmfs/history_sql.cc, schema 1.0 revision 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gridstead.cvmfs.database import PROPERTIES, NewDatabase, ReadOnlyDatabase
from gridstead.cvmfs.digest import CATALOG, Hash
from gridstead.cvmfs.errors import FormatError

#: The tag of the current revision, and that of the one before it; every publication moves them.
TRUNK, TRUNK_PREVIOUS = "trunk", "trunk-previous"

_TABLES = {"properties": ("key", "value"), "tags": ("name", "hash", "revision", "timestamp", "description", "size")}
_STATEMENTS = (
    PROPERTIES,
    (
        "CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER,  CONSTRAINT pk_branch PRIMARY KEY (branch),"
        "   FOREIGN KEY (parent) REFERENCES branches (branch),   CHECK ((branch <> '') OR (parent IS NULL)),"
        "   CHECK ((branch = '') OR (parent IS NOT NULL)))"
    ),
    "INSERT INTO branches (branch, parent, initial_revision) VALUES ('', NULL, 0)",
    (
        "CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER,   timestamp INTEGER, channel INTEGER, description TEXT, size INTEGER,"
        "   branch TEXT, CONSTRAINT pk_tags PRIMARY KEY (name),   FOREIGN KEY (branch) REFERENCES branches (branch))"
    ),
    "CREATE TABLE recycle_bin (hash TEXT, flags INTEGER,   CONSTRAINT pk_hash PRIMARY KEY (hash))",
)
# cvmfs/sanitizer.cc, TagSanitizer.
_TAG = re.compile(r"[A-Za-z0-9_.:@/-]{1,255}", re.ASCII)


class Tag(NamedTuple):
    """A named revision.

    Attributes:
        name: its name.
        catalog: its root catalogue.
        revision: its number.
        timestamp: when it was published, Unix time.
        description: what somebody said of it.
        size: bytes of the root catalogue when decompressed; 0 when not known.
    """

    name: str
    catalog: Hash
    revision: int
    timestamp: int
    description: str = ""
    size: int = 0


def is_tag_name(name: str) -> bool:
    """Whether a text can be the name of a tag."""
    return _TAG.fullmatch(name) is not None


def read_history(file: Path) -> list[Tag]:
    """The tags of a decompressed history, newest first.

    Raises:
        FormatError: it is no history.
    """
    database = ReadOnlyDatabase(file, "the history", _TABLES)
    try:
        schema = database.properties().get("schema", "")
        if schema not in ("1.0", "1"):
            raise FormatError(f"the history has schema {schema!r}; 1.0 can be read")
        tags = []
        text, number = database.text, database.number
        for name, digest, revision, timestamp, description, size in database.rows(
            "SELECT name, hash, revision, timestamp, description, size FROM tags"
        ):
            tag = Tag(
                text(name),
                Hash.parse(text(digest), CATALOG),
                number(revision),
                number(timestamp),
                "" if description is None else text(description),
                0 if size is None else number(size),
            )
            if not is_tag_name(tag.name):
                raise FormatError(f"the history has a tag with the name {tag.name[:60]!r}")
            tags.append(tag)
    finally:
        database.close()
    return sorted(tags, key=lambda tag: (-tag.revision, -tag.timestamp, tag.name))


def write_history(file: Path, fqrn: str, tags: Iterable[Tag], previous: Hash | None) -> None:
    """Write a history.

    Args:
        file: where; must not exist.
        fqrn: the repository's name.
        tags: all tags.
        previous: the history that it replaces.
    """
    with NewDatabase(file, _STATEMENTS) as database:
        database.properties({"schema": "1.0", "schema_revision": "3", "fqrn": fqrn, "previous_revision": str(previous or "0" * 40)})
        database.insert(
            "INSERT INTO tags (name, hash, revision, timestamp, channel, description, size, branch) VALUES (?, ?, ?, ?, 0, ?, ?, '')",
            ((tag.name, str(tag.catalog), tag.revision, tag.timestamp, tag.description, tag.size) for tag in tags),
        )
        database.finish()
