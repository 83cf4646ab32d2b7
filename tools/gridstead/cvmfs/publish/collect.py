"""Garbage collection: removing what no revision needs that is to be kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gridstead.cvmfs.digest import Hash
from gridstead.cvmfs.entry import ROOT_PLACE, NestedRef, Place
from gridstead.cvmfs.errors import CvmfsError, InputError
from gridstead.cvmfs.publish.catalogs import opened
from gridstead.cvmfs.publish.repository import Repository
from gridstead.cvmfs.publish.store import Store


@dataclass(frozen=True)
class Collected:
    """What a collection has done, or would do.

    Attributes:
        kept: how many revisions are kept.
        objects: how many objects were removed.
        bytes: their size.
    """

    kept: int
    objects: int
    bytes: int


def collect(repository: Repository, keep: int, *, dry_run: bool = False) -> Collected:
    """Remove objects that are in none of the last revisions and in no tag's.

    Args:
        repository: the repository.
        keep: how many revisions are kept besides the tagged ones, counted from the current one.
        dry_run: only look.

    Raises:
        InputError: the repository's settings do not allow it, or nothing would be kept.
        CvmfsError: a catalogue that is to be kept is damaged; nothing is removed then.
    """
    if keep < 1:
        raise InputError(f"{keep} revisions to keep; 1 or more would be right")
    if not repository.settings.garbage_collection:
        raise InputError(f"{repository.layout.settings} says CVMFS_GARBAGE_COLLECTION=false")
    with repository.layout.locked():
        repository.layout.scratch.mkdir(exist_ok=True)
        manifest, scratch = repository.manifest, repository.layout.scratch
        roots = {ref.hash: ref for _, _, ref in repository.revisions(manifest, scratch, keep)}
        roots.update((tag.catalog, NestedRef(ROOT_PLACE, tag.catalog, tag.size)) for tag in repository.tags(manifest, scratch))
        reached = {str(name.path) for name in (manifest.certificate, manifest.history, manifest.metainfo) if name}
        seen: set[tuple[Place, Hash]] = set()
        for root in roots.values():
            _mark(repository.store, root, scratch, reached, seen)
        objects = size = 0
        for path in repository.store.names():
            if str(path.relative_to(repository.store.web)) in reached:
                continue
            try:
                size += path.stat().st_size
                if not dry_run:
                    path.unlink()
            except OSError as error:
                raise CvmfsError(f"{path} cannot be removed: {error.strerror}") from None
            objects += 1
    return Collected(len(roots), objects, size)


def _mark(store: Store, root: NestedRef, scratch: Path, reached: set[str], seen: set[tuple[Place, Hash]]) -> None:
    """Note all objects that a root catalogue needs."""
    waiting = [root]
    while waiting:
        ref = waiting.pop()
        if (ref.place, ref.hash) in seen:
            continue
        seen.add((ref.place, ref.hash))
        reached.add(ref.hash.path)
        with opened(store, ref, scratch) as catalog:
            reached.update(name.path for name in catalog.objects())
            waiting += catalog.nested()
