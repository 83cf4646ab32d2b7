"""SQLite files that are part of a repository: opened for reading without trusting what is in them, and written the official way."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

from gridstead.cvmfs.errors import CvmfsError, FormatError

if TYPE_CHECKING:
    from typing import Self

_LARGEST = 1 << 63


class ReadOnlyDatabase:
    """A SQLite file that somebody else has written. Safe to use from several threads.

    The file must not change while it is open; it can be removed.

    Args:
        file: the file.
        what: its name in error messages.
        needed: tables that have to be there, with their columns.
        optional: tables that may be there, with their columns.

    Raises:
        FormatError: it is no such database.
    """

    def __init__(
        self, file: Path, what: str, needed: Mapping[str, Iterable[str]], optional: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        self.what = what
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                f"file:{quote(str(file.absolute()))}?mode=ro&immutable=1", uri=True, check_same_thread=False, isolation_level=None
            )
        except sqlite3.Error as error:
            raise FormatError(f"{what} cannot be opened: {error}") from None
        self._connection.text_factory = bytes
        try:
            # Nothing that the file says is run: no view, no virtual table, no function in an index or a column.
            for pragma in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON"):
                self.rows(f"PRAGMA {pragma}")
            self._tables = self._look(needed, optional or {})
        except BaseException:
            self._connection.close()
            raise

    def _look(self, needed: Mapping[str, Iterable[str]], optional: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
        tables: dict[str, set[str]] = {}
        for kind, name, root in self.rows("SELECT type, name, rootpage FROM sqlite_master WHERE type <> 'index'"):
            if kind != b"table" or not isinstance(name, bytes) or not root:
                raise FormatError(f"{self.what} holds more than tables: {name!r}")
            table = name.decode("ascii", "replace")
            if table not in needed and table not in optional:
                continue
            found = self.rows(f"PRAGMA table_xinfo({table})")
            if any(column[6] for column in found):
                raise FormatError(f"{self.what} has computed columns in table {table}")
            tables[table] = {column[1].decode("ascii", "replace") for column in found if isinstance(column[1], bytes)}
        for table, columns in {**needed, **{name: columns for name, columns in optional.items() if name in tables}}.items():
            missing = set(columns) - tables.get(table, set())
            if missing:
                raise FormatError(f"{self.what} has no {', '.join(sorted(missing))} in a table {table}")
        return tables

    def has(self, table: str, column: str) -> bool:
        """Whether a table that was asked for is there and has a column."""
        return column in self._tables.get(table, ())

    def rows(self, query: str, values: tuple[int | str | bytes, ...] = ()) -> list[tuple[int | float | bytes | None, ...]]:
        """All rows of a query.

        Raises:
            FormatError: the file is damaged.
        """
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeDecodeError) as error:
                # The last: SQLite's message may repeat what is in the file.
                raise FormatError(f"{self.what} is damaged: {error}") from None

    def properties(self) -> dict[str, str]:
        """The table ``properties``; what is not UTF-8 as Python has it in paths.

        Raises:
            FormatError: one is no text.
        """
        found = {}
        for key, value in self.rows("SELECT key, value FROM properties"):
            if not isinstance(value, (int, bytes)):
                raise FormatError(f"{self.what} has a property that is no text: {key!r}")
            # A directory's name need not be UTF-8.
            found[self.text(key)] = os.fsdecode(value) if isinstance(value, bytes) else str(value)
        return found

    def text(self, value: object) -> str:
        """A value that has to be text in UTF-8.

        Raises:
            FormatError: it is not.
        """
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                pass
        raise FormatError(f"{self.what} holds {value!r} where text belongs")

    def number(self, value: object, most: int = _LARGEST) -> int:
        """A value that has to be a number from 0 up to, but not including, ``most``.

        Raises:
            FormatError: it is not.
        """
        if isinstance(value, int) and 0 <= value < most:
            return value
        raise FormatError(f"{self.what} holds {value!r} where a number from 0 on belongs")

    def key(self, value: object) -> int:
        """Half of a path's key: any whole number.

        Raises:
            FormatError: it is none.
        """
        if isinstance(value, int):
            return value
        raise FormatError(f"{self.what} holds {value!r} where half of a key belongs")

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._connection.close()


class NewDatabase:
    """A SQLite file that is being written: once, from the beginning to the end. A context manager: on an error the file goes away.

    Args:
        file: where; must not exist.
        statements: what makes its tables.
    """

    def __init__(self, file: Path, statements: Iterable[str]) -> None:
        self.file = file
        try:
            self._connection = sqlite3.connect(str(file), isolation_level=None)
            # What is left of it after a crash is thrown away: it needs no journal.
            for pragma in ("page_size = 1024", "journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.execute("BEGIN")
            for statement in statements:
                self._connection.execute(statement)
        except sqlite3.Error as error:
            raise CvmfsError(f"{file}: cannot be written: {error}") from None

    def insert(self, statement: str, rows: Iterable[tuple[int | str | bytes | None, ...]]) -> None:
        """Write rows.

        Raises:
            CvmfsError: they cannot be written.
        """
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise CvmfsError(f"{self.file}: cannot be written: {error}") from None

    def properties(self, values: Mapping[str, str]) -> None:
        """Write the table ``properties``."""
        self.insert(f"INSERT {_PROPERTY}", _rows(values))

    def finish(self) -> None:
        """Write what is not written yet, and close.

        Raises:
            CvmfsError: it cannot be written.
        """
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise CvmfsError(f"{self.file}: cannot be written: {error}") from None
        finally:
            self._connection.close()

    def discard(self) -> None:
        """Give it up and remove the file."""
        self._connection.close()
        self.file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.discard()


#: A text parameter could not hold a name that is not UTF-8.
_PROPERTY = "INTO properties (key, value) VALUES (?, CAST(? AS TEXT))"
PROPERTIES = "CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key))"


def _rows(values: Mapping[str, str]) -> list[tuple[int | str | bytes | None, ...]]:
    return [(key, os.fsencode(value)) for key, value in values.items()]


def update_properties(file: Path, values: Mapping[str, str]) -> None:
    """Change properties in a database that was written before.

    Raises:
        CvmfsError: it cannot be written.
    """
    try:
        connection = sqlite3.connect(str(file), isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = OFF")
            connection.executemany(f"INSERT OR REPLACE {_PROPERTY}", _rows(values))
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise CvmfsError(f"{file}: cannot be written: {error}") from None
