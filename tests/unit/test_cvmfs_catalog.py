"""Catalogues and histories: written the official way, read without trusting them."""

# ruff: noqa: S608  the statements are put together from this file's own numbers
from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridstead.cvmfs.catalog import CatalogReader
from gridstead.cvmfs.catalog_writer import COUNTERS, CatalogWriter, Counters
from gridstead.cvmfs.digest import CATALOG, CHUNK, Hash, path_key
from gridstead.cvmfs.entry import (
    FLAG_BIND_MOUNTPOINT,
    FLAG_CHUNKED,
    FLAG_DIRECTORY,
    FLAG_EXTERNAL,
    FLAG_FILE,
    FLAG_HIDDEN,
    FLAG_LINK,
    FLAG_NESTED_MOUNTPOINT,
    FLAG_NESTED_ROOT,
    FLAG_SPECIAL,
    Chunk,
    Entry,
    Kind,
    NestedRef,
    Place,
    file_flags,
)
from gridstead.cvmfs.errors import CvmfsError, FormatError
from gridstead.cvmfs.history import Tag, read_history, write_history

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
CONTENT = Hash.of(b"content")

ROOT = Entry("", DIRECTORY, 4096, 100, 5, nlink=4, flags=FLAG_DIRECTORY)
BIG = Entry("/lib/big", FILE, 300, 100, flags=file_flags("shake128", chunked=True))
CHUNKS = (Chunk(0, 100, Hash.of(b"1", "shake128", CHUNK)), Chunk(100, 200, Hash.of(b"2", "shake128", CHUNK)))
ENTRIES = [
    ROOT,
    Entry("/bin", DIRECTORY, 4096, 100, nlink=2, flags=FLAG_DIRECTORY),
    Entry("/bin/a", FILE | 0o111, 7, -3, 999_999_999, 1000, 4_294_967_295, 2, 1, CONTENT, flags=file_flags(), xattr_blob=b"\1\1\1\1ab"),
    Entry("/bin/b", FILE | 0o111, 7, -3, 999_999_999, 1000, 4_294_967_295, 2, 1, CONTENT, flags=file_flags()),
    Entry("/bin/\udcff\n", FILE, 1, hash=Hash.of(b"x", "rmd160"), flags=file_flags("rmd160", "none")),
    Entry("/lib", DIRECTORY, 4096, 100, nlink=3, flags=FLAG_DIRECTORY),
    BIG,
    Entry("/lib/link", stat.S_IFLNK | 0o777, 15, 1, symlink="$(VAR:-x)/\udcfe\udcff/y", flags=FLAG_FILE | FLAG_LINK),
    Entry("/lib/pipe", stat.S_IFIFO | 0o600, flags=FLAG_FILE | FLAG_SPECIAL),
    Entry("/lib/null", stat.S_IFCHR | 0o666, rdev=259, flags=FLAG_FILE | FLAG_SPECIAL),
    Entry("/lib/nested", DIRECTORY, 4096, 1, nlink=2, flags=FLAG_DIRECTORY | FLAG_NESTED_MOUNTPOINT),
    Entry("/far", FILE, 9, hash=CONTENT, flags=file_flags() | FLAG_EXTERNAL | FLAG_HIDDEN),
]
NESTED = NestedRef(Place.at("/lib/nested"), Hash.of(b"nested", suffix=CATALOG), 4711)


def write(file: Path, entries: list[Entry] | None = None, root_prefix: str = "") -> Path:
    with CatalogWriter(file, root_prefix) as writer:
        writer.add(ENTRIES if entries is None else entries)
        if entries is None:
            writer.add_chunks(BIG, CHUNKS)
            writer.add_nested([NESTED])
        writer.finish(revision=3, modified=1234, previous=Hash.of(b"before", suffix=CATALOG), ttl=None if root_prefix else 60)
    return file


@pytest.fixture(name="catalog")
def _catalog(tmp_path: Path) -> Path:
    return write(tmp_path / "catalog")


def everything(file: Path, mountpoint: str = "") -> list[object]:
    """All that can be read from a catalogue, in every way."""
    found: list[object] = []
    with CatalogReader(file, Place.at(mountpoint)) as reader:
        found += [reader.statistics(), reader.count(), reader.nested(), list(reader.objects())]
        directories = [reader.root()]
        while directories:
            directory = directories.pop()
            for entry in reader.listdir(directory.path):
                found += [entry, entry.xattrs(), reader.lookup(entry.path)]
                if entry.chunked:
                    found.append(reader.chunks(entry))
                if entry.nested_mountpoint:
                    found.append(reader.find_nested(entry.path))
                elif entry.is_directory:
                    directories.append(entry)
    return found


def test_what_was_written_is_read(catalog: Path) -> None:
    with CatalogReader(catalog) as reader:
        assert (reader.revision, reader.ttl, reader.last_modified, reader.schema) == (3, 60, 1234, 2.5)
        assert reader.previous == Hash.of(b"before", suffix=CATALOG)
        assert reader.root() == ROOT
        for entry in ENTRIES:
            assert reader.lookup(entry.path) == entry
        assert reader.listdir("/bin") == sorted(entry for entry in ENTRIES if entry.path.startswith("/bin/"))
        assert reader.lookup("/nowhere") is None
        assert reader.listdir("/nowhere") == []
        assert tuple(reader.chunks(BIG)) == CHUNKS
        assert reader.nested() == [NESTED]
        assert reader.find_nested("/lib/nested") == NESTED
        assert reader.find_nested("/lib") is None
        assert reader.count() == len(ENTRIES)
        assert {name.path for name in reader.objects()} == {
            CONTENT.path, Hash.of(b"x", "rmd160").path, *(chunk.hash.path for chunk in CHUNKS)
        }  # fmt: skip
        reader.check_integrity()


def test_decoded_flags(catalog: Path) -> None:
    with CatalogReader(catalog) as reader:
        kinds = {entry.path: entry.kind for entry in ENTRIES}
        assert {path: (reader.lookup(path) or ROOT).kind for path in kinds} == kinds
        assert kinds["/lib/null"] is Kind.CHARACTER
        far, big = reader.lookup("/far"), reader.lookup("/lib/big")
        assert far is not None
        assert far.external
        assert far.hidden
        assert big is not None
        assert (big.algorithm, big.compression, big.chunked, big.hash) == ("shake128", "zlib", True, None)


def test_counters(catalog: Path) -> None:
    with CatalogReader(catalog) as reader:
        said = reader.statistics()
    expected = dict.fromkeys(COUNTERS, 0) | {
        "regular": 5,
        "symlink": 1,
        "special": 2,
        "dir": 4,
        "nested": 1,
        "chunked": 1,
        "chunks": 2,
        "file_size": 324,
        "chunked_size": 300,
        "xattr": 1,
        "external": 1,
        "external_file_size": 9,
    }
    assert said == {f"self_{name}": value for name, value in expected.items()} | {f"subtree_{name}": 0 for name in COUNTERS}


def test_counters_of_what_is_nested() -> None:
    inner, outer, outermost = Counters(), Counters(), Counters()
    inner.count(ENTRIES[2])
    outer.count(ROOT)
    outer.add_nested(inner)
    outermost.add_nested(outer)
    assert (outermost.below["regular"], outermost.below["dir"], outermost.own["dir"]) == (1, 1, 0)


def test_tables_are_the_official_ones(catalog: Path) -> None:
    """As sqlite_master of a catalogue made by the official server 2.12 has them."""
    connection = sqlite3.connect(catalog)
    made = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    assert page == 1024
    assert made == {
        "properties": "CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key))",
        "catalog": (
            "CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER, hash BLOB, size "
            "INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER, xattr BLOB, "
            " CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2))"
        ),
        "idx_catalog_parent": "CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2)",
        "chunks": (
            "CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER,  hash BLOB,  CONSTRAINT pk_chunks PRIMARY KEY "
            "(md5path_1, md5path_2, offset, size),  FOREIGN KEY (md5path_1, md5path_2) REFERENCES    catalog(md5path_1, md5path_2))"
        ),
        "nested_catalogs": "CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path))",
        "bind_mountpoints": "CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path))",
        "statistics": "CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter))",
    }


def test_rows_are_as_the_official_programs_write_them(catalog: Path) -> None:
    connection = sqlite3.connect(catalog)
    connection.text_factory = bytes
    assert connection.execute("SELECT parent_1, parent_2, name, symlink, hardlinks FROM catalog WHERE name = ''").fetchall() == [
        (0, 0, b"", b"", 4)
    ]
    rows = connection.execute("SELECT hardlinks, typeof(name), typeof(symlink), typeof(hash) FROM catalog WHERE name = 'a'").fetchall()
    assert rows == [(1 << 32 | 2, b"text", b"text", b"blob")]
    assert connection.execute("SELECT hash FROM catalog WHERE name = 'big'").fetchall() == [(None,)]
    assert connection.execute("SELECT typeof(path), sha1, size FROM nested_catalogs").fetchall() == [
        (b"text", str(NESTED.hash).encode(), 4711)
    ]
    properties = dict(connection.execute("SELECT key, value FROM properties").fetchall())
    connection.close()
    assert properties == {
        b"schema": b"2.5", b"schema_revision": b"7", b"TTL": b"60", b"revision": b"3", b"last_modified": b"1234",
        b"previous_revision": str(Hash.of(b"before")).encode(),
    }  # fmt: skip


def test_pages_hold_all_of_a_large_directory(tmp_path: Path) -> None:
    entries = [Entry("", DIRECTORY, nlink=2, flags=FLAG_DIRECTORY)]
    entries += [Entry(f"/f{number}", FILE, hash=CONTENT, flags=file_flags()) for number in range(2500)]
    with CatalogReader(write(tmp_path / "large", entries)) as reader:
        found: list[Entry] = []
        after = 0
        while page := reader.page("", after, 700):
            after = page[-1][0]
            found += [entry for _, entry in page]
    assert sorted(found) == sorted(entries[1:])


def test_nested_catalogues_know_their_place(tmp_path: Path) -> None:
    root = Entry("/a/b", DIRECTORY, nlink=2, flags=FLAG_DIRECTORY | FLAG_NESTED_ROOT)
    inside = Entry("/a/b/c", FILE, hash=CONTENT, flags=file_flags())
    file = write(tmp_path / "nested", [root, inside], "/a/b")
    with CatalogReader(file, Place.at("/a/b")) as reader:
        assert reader.root() == root
        assert reader.listdir("/a/b") == [inside]
        assert reader.ttl is None
        with pytest.raises(FormatError, match="is not below"):
            reader.lookup("/a/bc")
    with pytest.raises(FormatError, match="says it is the catalogue of /a/b"):
        CatalogReader(file, Place.at("/a/c"))
    with CatalogReader(file, Place("/old", None)) as reader:
        assert reader.root().path == "/old"
        assert [entry.path for entry in reader.listdir("/old")] == ["/old/c"]
    with pytest.raises(FormatError, match="says it is the catalogue of /a/b; /x would be right"):
        CatalogReader(file, Place("/old", "/x"))


def test_a_place_that_is_not_utf8(tmp_path: Path) -> None:
    """Its name stands in the catalogue's properties."""
    path = "/caf\udce9"
    root = Entry(path, DIRECTORY, nlink=2, flags=FLAG_DIRECTORY | FLAG_NESTED_ROOT)
    with CatalogReader(write(tmp_path / "nested", [root], path), Place.at(path)) as reader:
        assert reader.root() == root


def test_catalogues_below_a_bound_one_know_their_place(tmp_path: Path) -> None:
    """It says where it was made for, and so do those nested in it."""
    with CatalogReader(write(tmp_path / "root"), Place("/snap/v1", None)) as reader:
        assert reader.nested() == [NESTED._replace(place=Place("/snap/v1/lib/nested", "/lib/nested"))]
        assert reader.find_nested("/snap/v1/lib/nested") == reader.nested()[0]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CvmfsError, match="cannot be written"), CatalogWriter(tmp_path / "new") as writer:
        writer.add([ROOT, ROOT])
    assert list(tmp_path.iterdir()) == []


# Catalogues made by an enemy

Change = Callable[[sqlite3.Connection], object]


def spoil(*statements: str) -> Change:
    return lambda connection: [connection.execute(statement) for statement in statements]


def rename(name: bytes) -> Change:
    """An entry with a name of our choice, at the key that belongs to it."""

    def change(connection: sqlite3.Connection) -> None:
        first, second = path_key(f"/bin/{name.decode('utf-8', 'surrogateescape')}")
        query = "UPDATE catalog SET name = CAST(? AS TEXT), md5path_1 = ?, md5path_2 = ? WHERE name = 'a'"
        connection.execute(query, (name, first, second))

    return change


HOSTILE = {
    "parent": rename(b".."),
    "self": rename(b"."),
    "no name": rename(b""),
    "slash": rename(b"x/../../y"),
    "absolute": rename(b"/etc/passwd"),
    "zero byte": rename(b"a\0b"),
    "too long": rename(b"x" * 256),
    "name is a number": spoil("UPDATE catalog SET name = 7 WHERE name = 'a'", "UPDATE catalog SET name = CAST(name AS BLOB) WHERE name = '7'"),
    "name is null": spoil("UPDATE catalog SET name = NULL WHERE name = 'a'"),
    "another entry's key": spoil("UPDATE catalog SET name = 'z' WHERE name = 'a'"),
    "negative size": spoil("UPDATE catalog SET size = -1 WHERE name = 'a'"),
    "size is text": spoil("UPDATE catalog SET size = 'large' WHERE name = 'a'"),
    "size is a fraction": spoil("UPDATE catalog SET size = 1.5 WHERE name = 'a'"),
    "no mode": spoil("UPDATE catalog SET mode = 0 WHERE name = 'a'"),
    "large mode": spoil(f"UPDATE catalog SET mode = {1 << 40} WHERE name = 'a'"),
    "directory that is a file": spoil(f"UPDATE catalog SET mode = {FILE} WHERE name = 'bin'"),
    "file that is a directory": spoil(f"UPDATE catalog SET mode = {DIRECTORY} WHERE name = 'a'"),
    "link that is a file": spoil(f"UPDATE catalog SET flags = {FLAG_FILE} WHERE name = 'link'"),
    "link to nowhere": spoil("UPDATE catalog SET symlink = '' WHERE name = 'link'"),
    "link with a zero byte": spoil("UPDATE catalog SET symlink = CAST(X'610062' AS TEXT) WHERE name = 'link'"),
    "link is null": spoil("UPDATE catalog SET symlink = NULL WHERE name = 'link'"),
    "no content": spoil("UPDATE catalog SET hash = NULL WHERE name = 'a'"),
    "short hash": spoil("UPDATE catalog SET hash = X'00' WHERE name = 'a'"),
    "hash is text": spoil("UPDATE catalog SET hash = 'aaaaaaaaaaaaaaaaaaaa' || 'b' WHERE name = 'a'"),
    "unknown hash": spoil("UPDATE catalog SET flags = flags | 0x700 WHERE name = 'a'"),
    "unknown compression": spoil("UPDATE catalog SET flags = flags | 0x3800 WHERE name = 'a'"),
    "negative flags": spoil("UPDATE catalog SET flags = -4 WHERE name = 'a'"),
    "chunked directory": spoil(f"UPDATE catalog SET flags = flags | {FLAG_CHUNKED} WHERE name = 'bin'"),
    "chunked link": spoil(f"UPDATE catalog SET flags = flags | {FLAG_CHUNKED} WHERE name = 'link'"),
    "special file": spoil(f"UPDATE catalog SET flags = flags | {FLAG_SPECIAL} WHERE name = 'a'"),
    "nested root inside": spoil(f"UPDATE catalog SET flags = flags | {FLAG_NESTED_ROOT} WHERE name = 'bin'"),
    "two kinds of mountpoint": spoil(f"UPDATE catalog SET flags = flags | {FLAG_BIND_MOUNTPOINT} WHERE name = 'nested'"),
    "owner": spoil("UPDATE catalog SET uid = -1 WHERE name = 'a'"),
    "time is text": spoil("UPDATE catalog SET mtime = 'now' WHERE name = 'a'"),
    "nanoseconds": spoil("UPDATE catalog SET mtimens = 1000000000 WHERE name = 'a'"),
    "attributes are text": spoil("UPDATE catalog SET xattr = 'user' WHERE name = 'a'"),
    "attributes are garbage": spoil("UPDATE catalog SET xattr = X'01FF' WHERE name = 'a'"),
    "attributes of tomorrow": spoil("UPDATE catalog SET xattr = X'0200' WHERE name = 'a'"),
    "gap between chunks": spoil("UPDATE chunks SET offset = 101 WHERE offset = 100"),
    "chunks overlap": spoil("UPDATE chunks SET offset = 99 WHERE offset = 100"),
    "chunks are short": spoil("DELETE FROM chunks WHERE offset = 100"),
    "no chunks": spoil("DELETE FROM chunks"),
    "chunk of nothing": spoil("UPDATE chunks SET size = 0 WHERE offset = 0"),
    "chunk's hash": spoil("UPDATE chunks SET hash = X'' WHERE offset = 0"),
    "no root": spoil("DELETE FROM catalog WHERE name = ''"),
    "root is a file": spoil(f"UPDATE catalog SET mode = {FILE}, flags = 4, hash = zeroblob(20) WHERE name = ''"),
    "nested outside": spoil("UPDATE nested_catalogs SET path = '/../etc'"),
    "nested at the root": spoil("UPDATE nested_catalogs SET path = ''"),
    "nested nowhere": spoil("UPDATE nested_catalogs SET path = NULL"),
    "nested hash": spoil("UPDATE nested_catalogs SET sha1 = '../../../etc/passwd'"),
    "nested size": spoil("UPDATE nested_catalogs SET size = -1"),
    "schema of tomorrow": spoil("UPDATE properties SET value = '3.0' WHERE key = 'schema'"),
    "schema of old": spoil("UPDATE properties SET value = '1.0' WHERE key = 'schema'"),
    "no schema": spoil("DELETE FROM properties WHERE key = 'schema'"),
    "schema is not a number": spoil("UPDATE properties SET value = 'nan' WHERE key = 'schema'"),
    "revision": spoil("UPDATE properties SET value = '-1' WHERE key = 'revision'"),
    "huge revision": spoil("UPDATE properties SET value = '9999999999999999999999' WHERE key = 'revision'"),
    "TTL": spoil("UPDATE properties SET value = 'soon' WHERE key = 'TTL'"),
    "property is no text": spoil("UPDATE properties SET value = X'FF' WHERE key = 'TTL'"),
    "previous": spoil("UPDATE properties SET value = 'xyz' WHERE key = 'previous_revision'"),
    "counter": spoil("UPDATE statistics SET value = 'many' WHERE counter = 'self_dir'"),
    "no table": spoil("DROP TABLE chunks"),
    "no column": spoil("ALTER TABLE chunks RENAME COLUMN hash TO other"),
    "view": spoil("DROP TABLE statistics", "CREATE VIEW statistics AS SELECT 'self_dir' AS counter, abs(-9223372036854775808) AS value"),
    "endless view": spoil(
        "DROP TABLE statistics",
        "CREATE VIEW statistics AS WITH RECURSIVE e(counter, value) AS (SELECT 'a', 1 UNION ALL SELECT 'a', value + 1 FROM e) SELECT * FROM e",
    ),
    "trigger": spoil("CREATE TRIGGER t AFTER INSERT ON chunks BEGIN DELETE FROM catalog; END"),
    "virtual table": spoil("CREATE VIRTUAL TABLE more USING fts5(text)"),
    "computed column": spoil("DROP TABLE statistics", "CREATE TABLE statistics (counter TEXT, value AS (abs(-9223372036854775807 - 1)))"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_catalogues_are_format_errors(catalog: Path, what: str) -> None:
    connection = sqlite3.connect(catalog)
    HOSTILE[what](connection)
    connection.commit()
    connection.close()
    with pytest.raises(FormatError):
        everything(catalog)


def test_one_bad_row_spoils_only_itself(catalog: Path) -> None:
    connection = sqlite3.connect(catalog)
    HOSTILE["unknown hash"](connection)
    connection.commit()
    connection.close()
    with CatalogReader(catalog) as reader:
        with pytest.raises(FormatError, match="/bin/a"):
            reader.lookup("/bin/a")
        assert reader.lookup("/bin/b") == ENTRIES[3]


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"no database at all" * 100, bytes(4096)])
def test_what_is_no_database_is_a_format_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "catalog").write_bytes(content)
    with pytest.raises(FormatError):
        CatalogReader(tmp_path / "catalog")
    with pytest.raises(FormatError):
        read_history(tmp_path / "catalog")


def test_a_missing_file_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be opened"):
        CatalogReader(tmp_path / "nothing")


def test_awkward_file_names(tmp_path: Path) -> None:
    file = tmp_path / "a?mode=rwc&b#c%20d"
    assert everything(write(file))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_catalogues_never_crash(catalog: Path, draw: st.DataObject) -> None:
    """A catalogue's own hash tells damage on the way; this is for what was damaged before. Names and places stay what they can be."""
    whole = catalog.read_bytes()
    data = bytearray(whole)
    if draw.draw(st.booleans()):
        data = data[: draw.draw(st.integers(0, len(data) - 1))]
    else:
        for _ in range(draw.draw(st.integers(1, 5))):
            # Mostly where something is: a catalogue is mostly empty.
            at = draw.draw(st.sampled_from([place for place, value in enumerate(whole) if value]))
            data[at] ^= 1 << draw.draw(st.integers(0, 7))
    damaged = catalog.with_name("damaged")
    damaged.write_bytes(data)
    try:
        found = everything(damaged)
    except FormatError:
        return
    for entry in found:
        if isinstance(entry, Entry):
            assert ".." not in entry.path.split("/")
            assert entry.path.startswith("/")


# Histories


TAGS = [
    Tag("trunk", Hash.of(b"2", suffix=CATALOG), 2, 200, "current HEAD", 2000),
    Tag("v1", Hash.of(b"1", suffix=CATALOG), 1, 100, "ünï", 1000),
]


def test_histories_round_trip(tmp_path: Path) -> None:
    write_history(tmp_path / "history", "sw.grid.test", TAGS[::-1], None)
    assert read_history(tmp_path / "history") == TAGS
    connection = sqlite3.connect(tmp_path / "history")
    assert connection.execute("SELECT channel, branch FROM tags").fetchall() == [(0, ""), (0, "")]
    assert connection.execute("SELECT * FROM branches").fetchall() == [("", None, 0)]
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tags SET hash = 'xyz' WHERE name = 'v1'",
        "UPDATE tags SET revision = -1 WHERE name = 'v1'",
        "UPDATE tags SET name = '../../x y' WHERE name = 'v1'",
        "UPDATE tags SET description = X'FF' WHERE name = 'v1'",
        "UPDATE properties SET value = '2.0' WHERE key = 'schema'",
        "DROP TABLE tags",
    ],
)
def test_hostile_histories_are_format_errors(tmp_path: Path, statement: str) -> None:
    write_history(tmp_path / "history", "sw.grid.test", TAGS, None)
    connection = sqlite3.connect(tmp_path / "history")
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(FormatError):
        read_history(tmp_path / "history")
