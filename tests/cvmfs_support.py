"""CVMFS repositories and trees for tests."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gridstead.cvmfs.catalog import CatalogReader
from gridstead.cvmfs.entry import Entry, NestedRef
from gridstead.cvmfs.publish import operations
from gridstead.cvmfs.publish.catalogs import opened
from gridstead.cvmfs.publish.layout import Layout
from gridstead.cvmfs.publish.repository import Repository
from gridstead.cvmfs.publish.settings import Settings
from gridstead.pki import files, rsa

FQRN = "sw.grid.test"
#: Small, so that a small file comes out in chunks.
CHUNK = 64 * 1024


@functools.cache
def _key(number: int) -> bytes:  # noqa: ARG001  the cache tells keys apart by it
    return rsa.private_pem(rsa.new_key())


_numbers = itertools.count()


def make(prefix: Path, fqrn: str = FQRN, **settings: object) -> Repository:
    """A new repository below a directory. Its keys are other ones than those of the repository made before."""
    layout = Layout(fqrn, prefix)
    layout.keys.mkdir(parents=True, exist_ok=True)
    # Making keys takes longer than all else.
    pair = next(_numbers) % 2 * 2
    for number, file in enumerate((layout.master_key, layout.repository_key)):
        if not file.exists():
            files.write(file, _key(pair + number))
    chosen = {"avg_chunk_size": CHUNK, **settings}
    return operations.create(layout, Settings(fqrn, **chosen), {"description": "of a test"})  # type: ignore[arg-type]


def grow(tree: Path) -> Path:
    """A tree with one of everything that can be published."""
    for name in ("bin", "lib/python", "etc", "nested/deep", "packages/a", "packages/b", "packages/.hidden"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/hello").write_text("#!/bin/sh\necho hello\n")
    (tree / "bin/hello").chmod(0o755)
    os.link(tree / "bin/hello", tree / "bin/hello-again")
    os.link(tree / "bin/hello", tree / "lib/hello-from-afar")
    (tree / "empty").touch()
    (tree / "big").write_bytes(os.urandom(5 * CHUNK + 17))
    (tree / "just-whole").write_bytes(os.urandom(2 * CHUNK))
    (tree / "lib/python/mod.py").write_text("x=1\n")
    (tree / "lib/link").symlink_to("../bin/hello")
    (tree / "lib/variant").symlink_to("$(GRID_ARCH:-x86_64)/lib")
    (tree / "etc/ünïcode name.txt").write_text("umlauts\n")
    (tree / os.fsdecode(b"etc/not utf-8 \xff\xfe")).write_text("bytes\n")
    (tree / "etc/line\nfeed").write_text("a line feed\n")
    (tree / "nested/.cvmfscatalog").touch()
    (tree / "nested/deep/data").write_text("deep\n")
    (tree / "nested/deep/setuid").touch(0o644)
    (tree / "nested/deep/setuid").chmod(0o4755)
    (tree / ".cvmfsdirtab").write_text("# packages\n/packages/*\n! */b\n")
    (tree / "packages/a/one").write_text("1\n")
    (tree / "packages/b/two").write_text("2\n")
    os.utime(tree / "empty", ns=(-5_000_000_001, -5_000_000_001))
    return tree


def tree_of(top: Path) -> dict[str, tuple[object, ...]]:
    """All that a directory tree holds, by path; hard links only within a directory, as CVMFS has them."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, _, _ in os.walk(top):
        names = list(os.scandir(directory))
        inodes = [name.inode() for name in names]
        for name in names:
            status = name.stat(follow_symlinks=False)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = (Path(name.path).read_bytes(), inodes.count(name.inode()))
            elif stat.S_ISLNK(status.st_mode):
                content = str(Path(name.path).readlink())
            found["/" + os.path.relpath(name.path, top)] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return found


@contextlib.contextmanager
def root_of(repository: Repository, revision: str | None = None) -> Iterator[CatalogReader]:
    """A revision's root catalogue."""
    with repository.reading() as scratch, opened(repository.store, repository.revision(revision, scratch), scratch) as catalog:
        yield catalog


def read_back(repository: Repository, revision: str | None = None) -> dict[str, tuple[object, ...]]:
    """All that a revision holds, as ``tree_of`` tells it; every object is verified."""
    found: dict[str, tuple[object, ...]] = {}

    def walk(catalog: CatalogReader, directory: str, scratch: Path) -> None:
        for entry in catalog.listdir(directory):
            found[entry.path] = (entry.mode, entry.uid, entry.gid, entry.mtime * 10**9 + entry.mtime_ns, content(catalog, entry))
            if entry.nested_mountpoint:
                ref = catalog.find_nested(entry.path)
                assert ref is not None
                with opened(repository.store, ref, scratch) as nested:
                    walk(nested, entry.path, scratch)
            elif entry.is_directory:
                walk(catalog, entry.path, scratch)

    def content(catalog: CatalogReader, entry: Entry) -> object:
        if entry.symlink:
            return entry.symlink
        if not stat.S_ISREG(entry.mode):
            return None
        parts = [(part.hash, part.size) for part in catalog.chunks(entry)] if entry.chunked else [(entry.hash, entry.size)]
        data = b"".join(
            block for name, size in parts if name for block in repository.store.blocks(name, compression=entry.compression, size=size)
        )
        return data, entry.nlink

    with repository.reading() as scratch:
        root = repository.revision(revision, scratch)
        with opened(repository.store, root, scratch) as catalog:
            walk(catalog, "", scratch)
    return found


def shape_of(repository: Repository) -> list[object]:
    """What all catalogues of the current revision say, without what depends on how the revision came about: times, numbers, and hashes of
    nested catalogues."""
    shape: list[object] = []

    def look(ref: NestedRef, scratch: Path) -> None:
        with opened(repository.store, ref, scratch) as catalog:
            directories = [catalog.root()]
            rows: list[object] = [catalog.root()]
            while directories:
                for entry in catalog.listdir(directories.pop().path):
                    rows.append((entry, tuple(catalog.chunks(entry)) if entry.chunked else ()))
                    if entry.is_directory and not entry.nested_mountpoint:
                        directories.append(entry)
            shape.append((ref.path, rows, sorted(catalog.statistics().items())))
            nested = sorted(catalog.nested())
        for child in nested:
            look(child, scratch)

    with repository.reading() as scratch:
        look(repository.revision(None, scratch), scratch)
    return shape
