"""A repository on disk: its state, and how a new state of it is released."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gridstead.cvmfs.digest import CERTIFICATE, HISTORY
from gridstead.cvmfs.entry import ROOT_PLACE, NestedRef
from gridstead.cvmfs.errors import CvmfsError, InputError, TrustError
from gridstead.cvmfs.history import TRUNK, TRUNK_PREVIOUS, Tag, is_tag_name, read_history, write_history
from gridstead.cvmfs.manifest import Manifest, SignedManifest
from gridstead.cvmfs.publish.catalogs import opened
from gridstead.cvmfs.publish.layout import Layout
from gridstead.cvmfs.publish.settings import Settings, read_settings
from gridstead.cvmfs.publish.store import Staging, Store
from gridstead.cvmfs.signing import Certificate, Signer
from gridstead.cvmfs.whitelist import Whitelist
from gridstead.pki import files

_PUBLIC = 0o644


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CvmfsError(f"{file} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Keys:
    """What signs a repository.

    Attributes:
        certificate: the certificate of the repository's key.
        certificate_pem: its text.
        signer: that key.
    """

    certificate: Certificate
    certificate_pem: bytes
    signer: Signer

    @classmethod
    def read(cls, layout: Layout) -> Keys:
        """The repository's own.

        Raises:
            TrustError: key and certificate are not of each other, or are unusable.
            CvmfsError: one cannot be read.
        """
        pem = _read(layout.certificate)
        certificate = Certificate(pem, str(layout.certificate))
        signer = Signer(_read(layout.repository_key), str(layout.repository_key))
        if not signer.fits(certificate):
            raise TrustError(f"{layout.repository_key} is not the key of {layout.certificate}")
        return cls(certificate, pem, signer)


class Repository:
    """A repository that is published here.

    Args:
        layout: where it is.

    Raises:
        InputError: there is none, or its settings are wrong.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.settings: Settings = read_settings(layout.settings)
        self.store = Store(layout.web)

    def signed_manifest(self) -> SignedManifest:
        """The manifest of the current revision.

        Raises:
            CvmfsError: it is not there or damaged.
        """
        signed = Manifest.parse(_read(self.layout.manifest))
        if signed.manifest.name != self.layout.fqrn:
            raise TrustError(f"{self.layout.manifest} is of repository {signed.manifest.name}")
        return signed

    @property
    def manifest(self) -> Manifest:
        """What the manifest of the current revision says."""
        return self.signed_manifest().manifest

    def whitelist(self, now: float | None = None) -> Whitelist:
        """The whitelist, verified.

        Raises:
            TrustError: it is wrong or its time is over.
        """
        return Whitelist.load(_read(self.layout.whitelist), self.layout.fqrn, [_read(self.layout.public_key)], now)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self.layout.transaction.exists()

    def refuse_in_transaction(self) -> None:
        """Check that no transaction is open.

        Raises:
            CvmfsError: one is.
        """
        if self.in_transaction:
            raise CvmfsError(f"{self.layout.fqrn} has an open transaction", hint="publish it or abort it first")

    @contextmanager
    def reading(self) -> Iterator[Path]:
        """A directory for decompressed catalogues, for who only reads."""
        with tempfile.TemporaryDirectory(prefix="gridstead-cvmfs-") as scratch:
            yield Path(scratch)

    def tags(self, manifest: Manifest, scratch: Path) -> list[Tag]:
        """The tags of a revision, newest first."""
        if manifest.history is None:
            return []
        file = scratch / "history"
        try:
            return read_history(self.store.extract(manifest.history, file))
        finally:
            file.unlink(missing_ok=True)

    def revisions(self, manifest: Manifest, scratch: Path, most: int | None = None) -> Iterator[tuple[int, int, NestedRef]]:
        """Revisions from the current one back, as far as they are there: number, Unix time, root catalogue.

        Args:
            manifest: the current one.
            scratch: a directory for decompressed catalogues.
            most: how many.
        """
        ref: NestedRef | None = NestedRef(ROOT_PLACE, manifest.catalog, manifest.catalog_size)
        while ref is not None and (most is None or most > 0) and self.store.has(ref.hash):
            with opened(self.store, ref, scratch) as catalog:
                number, modified, previous = catalog.revision, catalog.last_modified, catalog.previous
            yield number, modified, ref
            ref = NestedRef(ROOT_PLACE, previous, 0) if previous else None
            most = None if most is None else most - 1

    def revision(self, name: str | None, scratch: Path) -> NestedRef:
        """The root catalogue of a revision.

        Args:
            name: a tag, a number, or None for the current one.
            scratch: a directory for decompressed catalogues.

        Raises:
            InputError: there is none of that name.
        """
        manifest = self.manifest
        if name is None:
            return NestedRef(ROOT_PLACE, manifest.catalog, manifest.catalog_size)
        tags = self.tags(manifest, scratch)
        for tag in tags:
            if tag.name == name:
                return NestedRef(ROOT_PLACE, tag.catalog, tag.size)
        if name.isascii() and name.isdigit():
            for tag in tags:
                if tag.revision == int(name):
                    return NestedRef(ROOT_PLACE, tag.catalog, tag.size)
            for number, _, ref in self.revisions(manifest, scratch):
                if number == int(name):
                    return ref
        raise InputError(
            f"{self.layout.fqrn} has no tag or revision {name!r}", hint=f"its tags are {', '.join(tag.name for tag in tags) or 'none'}"
        )

    def staging(self) -> Staging:
        """Where new objects go. To be called under the lock."""
        self.layout.scratch.mkdir(exist_ok=True)
        return Staging(self.store, self.layout.scratch, self.settings.hash_algorithm)

    def release(self, staging: Staging, manifest: Manifest, keys: Keys, tags: Sequence[Tag]) -> Manifest:
        """Make a new state of the repository the current one: first all objects, durably; then the manifest, at once.

        Args:
            staging: the new objects.
            manifest: the new manifest; certificate and history are filled in.
            keys: what signs it.
            tags: all tags.

        Returns:
            The manifest as it was written.
        """
        file = staging.scratch / "history"
        write_history(file, self.layout.fqrn, tags, manifest.history)
        manifest = replace(
            manifest,
            history=staging.put_file(file, HISTORY),
            certificate=staging.put(keys.certificate_pem, CERTIFICATE),
        )
        staging.commit()
        files.write(self.layout.manifest, manifest.sign(keys.signer), _PUBLIC)
        return manifest

    def next_revision(self, staging: Staging, catalog: NestedRef, revision: int, modified: int, tag: Tag | None) -> Manifest:
        """Release a root catalogue as the next revision; moves the tags of trunk.

        Args:
            staging: its new objects.
            catalog: the root catalogue.
            revision: its number.
            modified: Unix time.
            tag: a further tag of it; its name and description count.
        """
        before = self.manifest
        tags = self.tags(before, staging.scratch)
        trunk = Tag(TRUNK, catalog.hash, revision, modified, "current HEAD", catalog.size)
        new = [trunk]
        new += [old._replace(name=TRUNK_PREVIOUS, description="default undo target") for old in tags if old.name == TRUNK]
        if tag is not None:
            new.append(trunk._replace(name=tag.name, description=tag.description))
        names = {item.name for item in new}
        manifest = replace(
            before, catalog=catalog.hash, catalog_size=catalog.size, revision=revision, published=modified,
            ttl=self.settings.repository_ttl, garbage_collectable=self.settings.garbage_collection,
        )  # fmt: skip
        return self.release(staging, manifest, Keys.read(self.layout), [*new, *(old for old in tags if old.name not in names)])


def check_tag_name(name: str, tags: Sequence[Tag] = ()) -> None:
    """Check the name of a tag that is to be made.

    Raises:
        InputError: it is none, the publisher's own, or there already.
    """
    if not is_tag_name(name):
        raise InputError(f"{name!r} is no name for a tag", hint="letters, digits and . _ : @ / - would be right")
    if name in (TRUNK, TRUNK_PREVIOUS):
        raise InputError(f"{name} is moved by publishing only")
    if name.isdigit():
        raise InputError(f"{name!r} is no name for a tag: it would be taken for the number of a revision")
    if any(tag.name == name for tag in tags):
        raise InputError(f"there is a tag {name} already", hint="remove it first")
