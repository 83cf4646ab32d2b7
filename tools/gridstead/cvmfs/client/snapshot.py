"""A certain revision instead of the newest one: CVMFS_ROOT_HASH, CVMFS_REPOSITORY_TAG, CVMFS_REPOSITORY_DATE (cvmfs/mountpoint.cc, DetermineRootHash)."""

from __future__ import annotations

import calendar
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gridstead.cvmfs.client.store import Reference
from gridstead.cvmfs.digest import CATALOG, Hash
from gridstead.cvmfs.errors import CvmfsError, FormatError, InputError
from gridstead.cvmfs.history import Tag, is_tag_name, read_history

if TYPE_CHECKING:
    from gridstead.cvmfs.client.store import Store
    from gridstead.cvmfs.manifest import Manifest

#: Bytes that a history may have: a tag takes some 200.
_HISTORY_LIMIT = 64 << 20
_DATE = "%Y-%m-%dT%H:%M:%SZ"


class Snapshot(NamedTuple):
    """Which revision; the first of these that is set counts.

    Attributes:
        catalog: its root catalogue.
        tag: its tag.
        moment: the newest tagged one that was there then, Unix time.
    """

    catalog: Hash | None = None
    tag: str = ""
    moment: int | None = None

    @classmethod
    def parse(cls, root_hash: str, tag: str, date: str) -> Snapshot | None:
        """What the three parameters say; None when none of them is set.

        Raises:
            InputError: one is wrong.
        """
        try:
            catalog = Hash.parse(root_hash.lower(), CATALOG) if root_hash else None
        except FormatError:
            raise InputError(
                f"CVMFS_ROOT_HASH is '{root_hash}'; the hash of a root catalogue, 40 hexadecimal digits, would be right"
            ) from None
        if tag and not is_tag_name(tag):
            raise InputError(f"CVMFS_REPOSITORY_TAG is '{tag}', which is no name of a tag")
        moment = None
        if date:
            try:
                moment = calendar.timegm(time.strptime(date, _DATE))
            except ValueError:
                raise InputError(f"CVMFS_REPOSITORY_DATE is '{date}'; YYYY-MM-DDTHH:MM:SSZ would be right") from None
        return cls(catalog, tag, moment) if catalog or tag or date else None

    def find(self, manifest: Manifest, store: Store) -> tuple[Hash, int]:
        """The root catalogue, and its bytes; 0 when not known.

        Args:
            manifest: of the repository, verified.
            store: fetches its history.

        Raises:
            CvmfsError: there is no such revision, or the history cannot be had.
        """
        if self.catalog is not None:
            return self.catalog, 0
        tags = _tags(manifest, store)
        if self.tag:
            found = next((tag for tag in tags if tag.name == self.tag), None)
            if found is None:
                names = ", ".join(tag.name for tag in tags[:8]) or "none"
                raise CvmfsError(f"{manifest.name} has no tag '{self.tag}' (CVMFS_REPOSITORY_TAG)", hint=f"the newest ones are {names}")
        else:
            moment = self.moment or 0
            found = next((tag for tag in tags if tag.timestamp <= moment), None)
            if found is None:
                when = time.strftime(_DATE, time.gmtime(moment))
                raise CvmfsError(f"{manifest.name} has no tag as old as {when} (CVMFS_REPOSITORY_DATE)")
        return found.catalog, found.size


def _tags(manifest: Manifest, store: Store) -> list[Tag]:
    """All tags, the newest revision first."""
    if manifest.history is None:
        raise CvmfsError(f"{manifest.name} has no history, and so no tags")
    data = store.content(Reference(manifest.history, None, limit=_HISTORY_LIMIT))
    with tempfile.NamedTemporaryFile() as file:  # SQLite reads files only
        file.write(data)
        file.flush()
        return read_history(Path(file.name))
