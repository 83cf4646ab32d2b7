"""The catalogues of a revision that is published, taken out of their objects when they are needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from gridstead.cvmfs.catalog import CatalogReader
from gridstead.cvmfs.entry import Entry, NestedRef
from gridstead.cvmfs.errors import FormatError
from gridstead.cvmfs.publish.store import Store

_counter = itertools.count()


class Found(NamedTuple):
    """An entry and the catalogue it is in."""

    entry: Entry
    catalog: CatalogReader


@contextmanager
def opened(store: Store, ref: NestedRef, scratch: Path) -> Iterator[CatalogReader]:
    """A catalogue, verified and open.

    Args:
        store: the objects.
        ref: the catalogue.
        scratch: a directory for the decompressed file, which is gone at once when it is open.

    Raises:
        FormatError: it is damaged.
    """
    file = scratch / f"{ref.hash}.{next(_counter)}.open"
    try:
        store.extract(ref.hash, file, size=ref.size or None)
        reader = CatalogReader(file, ref.place)
    finally:
        file.unlink(missing_ok=True)
    with reader:
        yield reader


def nested_at(found: Found) -> NestedRef | None:
    """The catalogue that holds the content of a directory, when that is not the one that holds the directory.

    Raises:
        FormatError: it should be there and is not.
    """
    if not (found.entry.nested_mountpoint or found.entry.bind_mountpoint):
        return None
    ref = found.catalog.find_nested(found.entry.path)
    if ref is None:
        raise FormatError(f"{found.entry.path!r} is a mountpoint without a nested catalogue")
    return ref


@contextmanager
def located(store: Store, root: NestedRef, path: str, scratch: Path) -> Iterator[Found | None]:
    """The entry of a path in a revision; of a nested catalogue's mountpoint its root, in the nested catalogue.

    Args:
        store: the objects.
        root: the revision's root catalogue.
        path: from the repository's root, "" for it.
        scratch: a directory for decompressed catalogues.

    Raises:
        FormatError: a catalogue on the way is damaged.
    """
    with ExitStack() as stack:
        catalog = stack.enter_context(opened(store, root, scratch))
        found: Found | None = Found(catalog.root(), catalog)
        at = ""
        for name in path.split("/")[1:]:
            at += f"/{name}"
            entry = found.catalog.lookup(at) if found else None
            found = Found(entry, found.catalog) if entry and found else None
            ref = nested_at(found) if found else None
            if found and ref:
                catalog = stack.enter_context(opened(store, ref, scratch))
                found = Found(catalog.root(), catalog)
        yield found
