"""What is remembered of files that were published, so that a file nobody has touched is not read again.

This is a cache: without it, or when it is old, files are read once more and nothing else happens. It says which content a file had when
it had a certain inode, size and times. Whether that content is in the repository is what the catalogue says, not the index.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gridstead.cvmfs.digest import Hash
from gridstead.cvmfs.entry import Chunk
from gridstead.cvmfs.errors import CvmfsError

if TYPE_CHECKING:
    from typing import Self

_STATEMENTS = (
    "CREATE TABLE IF NOT EXISTS files (directory BLOB, name BLOB, stamp TEXT, content BLOB, PRIMARY KEY (directory, name)) WITHOUT ROWID",
    "CREATE TEMPORARY TABLE visited (directory BLOB PRIMARY KEY) WITHOUT ROWID",
)
#: A file changed so shortly before it was read may have been changed again with the same time: clocks of file systems tick slowly.
TOO_FRESH_NS = 50_000_000


def stamp(status: os.stat_result) -> str:
    """What changes when a file is changed."""
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def identity(digest: Hash | None, chunks: Sequence[Chunk]) -> bytes:
    """A name for a file's content."""
    if digest is not None:
        return digest.digest
    parts = (f"{chunk.offset} {chunk.size} {chunk.hash}\n" for chunk in chunks)
    return b"chunks" + Hash.of("".join(parts).encode()).digest


class Index:
    """The index of one repository. A context manager; what happened in it is kept when it ends without an error.

    Args:
        file: where it is.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._connection = self._open()
        except sqlite3.Error:
            # It is a cache: a damaged one is thrown away.
            file.unlink(missing_ok=True)
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(str(self._file), isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN EXCLUSIVE")
            for statement in _STATEMENTS:
                connection.execute(statement)
            connection.execute("SELECT directory, name, stamp, content FROM files LIMIT 1").fetchall()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _run(self, statement: str, rows: Sequence[tuple[bytes | str, ...]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise self._damaged(error) from None

    def _damaged(self, error: sqlite3.Error) -> CvmfsError:
        return CvmfsError(f"{self._file}: {error}", hint="remove it: the next publication then reads all files again")

    def directory(self, path: str) -> dict[str, tuple[str, bytes]]:
        """Stamps and contents of the files of a directory, by name."""
        query = "SELECT name, stamp, content FROM files WHERE directory = ?"
        try:
            rows = self._connection.execute(query, (os.fsencode(path),)).fetchall()
        except sqlite3.Error as error:
            raise self._damaged(error) from None
        return {os.fsdecode(name): (text, content) for name, text, content in rows}

    def remember(self, path: str, known: dict[str, tuple[str, bytes]], now: dict[str, tuple[str, bytes]]) -> None:
        """Note what a directory has.

        Args:
            path: the directory.
            known: what ``directory`` has said.
            now: what is to be known.
        """
        key = os.fsencode(path)
        self._run("INSERT INTO visited VALUES (?)", [(key,)])
        self._run("DELETE FROM files WHERE directory = ? AND name = ?", [(key, os.fsencode(name)) for name in known if name not in now])
        changed = [(key, os.fsencode(name), *value) for name, value in now.items() if known.get(name) != value]
        self._run("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", changed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._run("DELETE FROM files WHERE directory NOT IN (SELECT directory FROM visited)", [()])
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._damaged(error) from None
        finally:
            self._connection.close()
