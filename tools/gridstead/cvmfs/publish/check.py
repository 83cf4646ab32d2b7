"""Is a whole repository right? Every signature, every catalogue with its counters, every object's bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gridstead.cvmfs.catalog import CatalogReader
from gridstead.cvmfs.catalog_writer import Counters
from gridstead.cvmfs.digest import Hash
from gridstead.cvmfs.entry import ROOT_PLACE, Entry, Kind, NestedRef, Place
from gridstead.cvmfs.errors import CvmfsError
from gridstead.cvmfs.objects import SMALL_OBJECT
from gridstead.cvmfs.publish.catalogs import opened
from gridstead.cvmfs.publish.dirtab import MARKER_NAME
from gridstead.cvmfs.publish.repository import Repository
from gridstead.cvmfs.publish.store import Store


@dataclass
class Findings:
    """What a check has seen.

    Attributes:
        problems: one sentence each.
        catalogs: how many were checked.
        objects: how many objects of files were checked.
        bytes: how many bytes of files these have.
    """

    problems: list[str] = field(default_factory=list)
    catalogs: int = 0
    objects: int = 0
    bytes: int = 0

    def seen(self, step: Callable[[], None]) -> None:
        """Do a step; an error in it is a problem of the repository."""
        try:
            step()
        except CvmfsError as error:
            self.problems.append(str(error).replace("\n", " "))


def check(repository: Repository) -> Findings:
    """Check a repository: the current revision and all tags.

    Raises:
        CvmfsError: its manifest cannot even be read.
    """
    findings = Findings()
    signed = repository.signed_manifest()
    manifest = signed.manifest

    def trust() -> None:
        certificate = b"".join(repository.store.blocks(manifest.certificate, limit=SMALL_OBJECT))
        signed.verify(repository.layout.fqrn, certificate, repository.whitelist())

    with repository.reading() as scratch, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        findings.seen(trust)
        roots = [NestedRef(ROOT_PLACE, manifest.catalog, manifest.catalog_size)]

        def history() -> None:
            roots.extend(NestedRef(ROOT_PLACE, tag.catalog, tag.size) for tag in repository.tags(manifest, scratch))

        findings.seen(history)
        if manifest.metainfo:
            findings.seen(lambda: _drain(repository.store.blocks(manifest.metainfo)) if manifest.metainfo else None)
        checker = _Checker(repository.store, scratch, findings, pool)
        for root in roots:
            findings.seen(lambda root=root: checker.revision(root))  # type: ignore[misc]  # mypy takes the default for a parameter
    return findings


def _drain(blocks: Iterable[bytes]) -> None:
    for _ in blocks:
        pass


class _Checker:
    """Checks revisions; what several have in common is checked once."""

    def __init__(self, store: Store, scratch: Path, findings: Findings, pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._scratch = scratch
        self._findings = findings
        self._pool = pool
        self._catalogs: dict[tuple[Place, Hash], tuple[Counters, Entry]] = {}
        self._objects: set[Hash] = set()

    def revision(self, root: NestedRef) -> None:
        """Check all that belongs to a root catalogue."""
        self._catalog(root)

    def _problem(self, text: str) -> None:
        self._findings.problems.append(text)

    def _catalog(self, ref: NestedRef) -> tuple[Counters, Entry]:
        """Check a catalogue and all below it.

        Returns:
            What it holds, and its root.

        Raises:
            CvmfsError: it cannot be read on.
        """
        key = (ref.place, ref.hash)
        if key not in self._catalogs:
            with opened(self._store, ref, self._scratch) as catalog:
                self._findings.catalogs += 1
                catalog.check_integrity()
                self._catalogs[key] = _Walk(self, catalog).run(), catalog.root()
        return self._catalogs[key]

    def nested(self, ref: NestedRef, mountpoint: Entry) -> Counters | None:
        """Check a nested catalogue against the entry that stands for it in its parent."""
        try:
            counters, root = self._catalog(ref)
        except CvmfsError as error:
            self._problem(str(error))
            return None
        if root._replace(flags=0) != mountpoint._replace(flags=0):
            self._problem(f"{ref.path}: the mountpoint and the root of its nested catalogue differ")
        if not root.nested_root:
            self._problem(f"{ref.path}: the root of the nested catalogue does not say that it is one")
        return counters

    def bound(self, ref: NestedRef) -> None:
        """Check a catalogue at a bind mountpoint. What it holds is counted where it is from."""
        try:
            self._catalog(ref)
        except CvmfsError as error:
            self._problem(str(error))

    def contents(self, wanted: list[tuple[str, Hash, str, int]]) -> None:
        """Check objects of files: path, name, compression and size of each."""

        def one(path: str, name: Hash, compression: str, size: int) -> str | None:
            try:
                _drain(self._store.blocks(name, compression=compression, size=size))
            except CvmfsError as error:
                return f"{path}: {error.message}"
            return None

        new = {name: (path, name, compression, size) for path, name, compression, size in wanted if name not in self._objects}
        self._objects |= new.keys()
        self._findings.objects += len(new)
        self._findings.bytes += sum(size for *_, size in new.values())
        for problem in self._pool.map(lambda item: one(*item), new.values()):
            if problem:
                self._problem(problem)

    def report(self, where: str, what: str) -> None:
        """Note a problem."""
        self._problem(f"{where or '/'}: {what}")


class _Walk:
    """Goes through one catalogue (the rules are those of cvmfs/swissknife_check.cc)."""

    def __init__(self, checker: _Checker, catalog: CatalogReader) -> None:
        self._checker = checker
        self._catalog = catalog
        self._counters = Counters()
        self._mountpoints: dict[str, Entry] = {}
        self._binds: set[str] = set()
        self._entries = 0

    def run(self) -> Counters:
        """Check the catalogue; what it holds."""
        catalog, where = self._catalog, self._catalog.mountpoint
        root = catalog.root()
        self._count(root)
        stack = [root]
        while stack:
            stack += self._directory(stack.pop())
        if self._entries != catalog.count():
            self._checker.report(where, f"the catalogue has {catalog.count()} entries, of which {self._entries} can be reached")
        nested = {ref.path: ref for ref in catalog.nested()}
        if nested.keys() - self._binds != self._mountpoints.keys():
            wrong = sorted((nested.keys() - self._binds) ^ self._mountpoints.keys())
            self._checker.report(where, f"mountpoints and nested catalogues disagree at {', '.join(wrong)}")
        for path in self._binds & nested.keys():
            self._checker.bound(nested[path])
        for path, entry in self._mountpoints.items():
            if path in nested:
                counters = self._checker.nested(nested[path], entry)
                if counters:
                    self._counters.add_nested(counters)
        said, found = catalog.statistics(), self._counters.statistics()
        for name, value in found.items():
            if said.get(name, 0) != value:
                self._checker.report(where, f"the counter {name} is {said.get(name, 0)}; {value} would be right")
        return self._counters

    def _count(self, entry: Entry, chunks: int = 0) -> None:
        self._entries += 1
        self._counters.count(entry, chunks)

    def _directory(self, directory: Entry) -> list[Entry]:
        """Check a directory's entries; its subdirectories in the same catalogue."""
        catalog, report = self._catalog, self._checker.report
        entries = catalog.listdir(directory.path)
        inside: list[Entry] = []
        groups: dict[int, list[Entry]] = {}
        wanted: list[tuple[str, Hash, str, int]] = []
        for entry in entries:
            chunks = catalog.chunks(entry) if entry.chunked else []
            self._count(entry, len(chunks))
            if entry.is_directory:
                if entry.bind_mountpoint:
                    self._binds.add(entry.path)
                elif entry.nested_mountpoint:
                    self._mountpoints[entry.path] = entry
                else:
                    inside.append(entry)
            elif entry.hardlink_group:
                groups.setdefault(entry.hardlink_group, []).append(entry)
            elif entry.nlink != 1:
                report(entry.path, f"has {entry.nlink} names, but belongs to no group")
            if entry.kind is Kind.SYMLINK and entry.size != len(os.fsencode(entry.symlink)):
                report(entry.path, f"is a link of {entry.size} bytes, but its target has {len(os.fsencode(entry.symlink))}")
            if entry.kind is Kind.FILE and not entry.external:
                wanted += [(entry.path, chunk.hash, entry.compression, chunk.size) for chunk in chunks]
                if entry.hash:
                    wanted.append((entry.path, entry.hash, entry.compression, entry.size))
            if entry.name == MARKER_NAME and directory.path not in ("", catalog.mountpoint):
                report(entry.path, "marks a nested catalogue, but there is none")
        self._links(directory, entries, groups)
        self._checker.contents(wanted)
        return inside

    def _links(self, directory: Entry, entries: list[Entry], groups: dict[int, list[Entry]]) -> None:
        """Check link counts, and that a nested catalogue is marked."""
        catalog, report = self._catalog, self._checker.report
        for group in groups.values():
            if any((entry.nlink, entry.hash, entry.mode, entry.size) != (len(group), *_same(group[0])) for entry in group):
                report(group[0].path, f"is one of {len(group)} names of a file, which differ")
        if directory.path == catalog.mountpoint and catalog.root_prefix and all(entry.name != MARKER_NAME for entry in entries):
            report(directory.path, f"is the root of a nested catalogue, but has no {MARKER_NAME}")
        expected = 2 + sum(entry.is_directory for entry in entries)
        if directory.nlink != expected:
            report(directory.path, f"has the link count {directory.nlink}; {expected} would be right")


def _same(entry: Entry) -> tuple[Hash | None, int, int]:
    return entry.hash, entry.mode, entry.size
