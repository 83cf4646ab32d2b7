"""What people do with a repository: create, publish in a transaction or at once, tag, roll back, sign again."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gridstead.cvmfs.database import update_properties
from gridstead.cvmfs.digest import CATALOG, CERTIFICATE, METAINFO
from gridstead.cvmfs.entry import ROOT_PLACE, NestedRef
from gridstead.cvmfs.errors import CvmfsError, InputError
from gridstead.cvmfs.history import TRUNK, TRUNK_PREVIOUS, Tag
from gridstead.cvmfs.manifest import Manifest
from gridstead.cvmfs.publish.builder import Builder, Revision
from gridstead.cvmfs.publish.catalogs import opened
from gridstead.cvmfs.publish.checkout import checkout
from gridstead.cvmfs.publish.content import ContentWriter
from gridstead.cvmfs.publish.dirtab import DIRTAB_NAME, LARGEST, Dirtab
from gridstead.cvmfs.publish.index import Index
from gridstead.cvmfs.publish.layout import Layout
from gridstead.cvmfs.publish.repository import Keys, Repository, check_tag_name
from gridstead.cvmfs.publish.settings import Settings
from gridstead.cvmfs.publish.store import Store
from gridstead.cvmfs.signing import Certificate, Signer
from gridstead.cvmfs.whitelist import VALID_DAYS, Whitelist
from gridstead.pki import certificates, files, rsa

_PUBLIC = 0o644
#: How long a repository's certificate is valid. Clients do not look at it: the whitelist is what expires.
_CERTIFICATE_DAYS = 3650


@dataclass(frozen=True)
class Report:
    """What a publication has done.

    Attributes:
        changed: whether there is a new revision.
        revision: the number of the current revision.
        catalog: its root catalogue.
        files: how many files it has.
        read: how many of them were read.
        objects: how many objects are new.
        bytes: their size as stored.
        left_out: special files that were not published.
        seconds: how long it took.
    """

    changed: bool
    revision: int
    catalog: str
    files: int
    read: int
    objects: int
    bytes: int
    left_out: tuple[str, ...]
    seconds: float


def create(layout: Layout, settings: Settings, metainfo: dict[str, str]) -> Repository:
    """Create a repository with keys of its own and an empty first revision. One that a killed run has begun is finished.

    Args:
        layout: where.
        settings: how it is published.
        metainfo: what is said about it, such as administrator and description.

    Raises:
        InputError: it is there already.
        CvmfsError: it cannot be written.
    """
    with layout.locked():
        if layout.manifest.exists():
            raise InputError(f"there is a repository {layout.fqrn} already")
        _mint_keys(layout)
        store = Store(layout.web)
        store.make()
        layout.settings.parent.mkdir(parents=True, exist_ok=True)
        files.write(layout.settings, settings.text().encode(), _PUBLIC)
        _sign_whitelist(layout, settings, VALID_DAYS)
        files.write(layout.master_replica, b"", _PUBLIC)
        layout.tree.mkdir(mode=0o755, exist_ok=True)
        repository = Repository(layout)
        keys = Keys.read(layout)
        staging = repository.staging()
        revision = Revision(1, int(time.time()))
        with Index(layout.index) as index, ContentWriter(staging, settings) as content:
            built = Builder(staging, settings, index, content, revision, Dirtab()).build(layout.tree, None, None)
        manifest = Manifest(
            catalog=built.ref.hash,
            name=layout.fqrn,
            certificate=staging.put(keys.certificate_pem, CERTIFICATE),
            revision=revision.number,
            ttl=settings.repository_ttl,
            published=revision.modified,
            catalog_size=built.ref.size,
            metainfo=staging.put(json.dumps(metainfo, sort_keys=True).encode() + b"\n", METAINFO),
            garbage_collectable=settings.garbage_collection,
        )
        trunk = Tag(TRUNK, built.ref.hash, revision.number, revision.modified, "current HEAD", built.ref.size)
        repository.release(staging, manifest, keys, [trunk])
    return repository


def _mint_keys(layout: Layout) -> None:
    """Make the keys that are not there."""
    layout.keys.mkdir(parents=True, exist_ok=True, mode=0o755)
    for file in (layout.master_key, layout.repository_key):
        if not file.exists():
            files.write(file, rsa.private_pem(rsa.new_key()))
    # The public halves are made anew: after a kill one might be of another key.
    files.write(layout.public_key, Signer(layout.master_key.read_bytes(), str(layout.master_key)).public, _PUBLIC)
    key = rsa.load_private(layout.repository_key.read_bytes(), str(layout.repository_key))
    files.write(
        layout.certificate, certificates.self_signed(key, f"{layout.fqrn} CernVM-FS Release Managers"[:64], _CERTIFICATE_DAYS), _PUBLIC
    )


def _sign_whitelist(layout: Layout, settings: Settings, days: int) -> Whitelist:
    try:
        master = Signer(layout.master_key.read_bytes(), str(layout.master_key))
        certificate = Certificate(layout.certificate.read_bytes(), str(layout.certificate))
    except OSError as error:
        raise CvmfsError(f"{error.filename} cannot be read: {error.strerror}") from None
    whitelist = Whitelist.make(layout.fqrn, [certificate], algorithm=settings.hash_algorithm, days=days, now=time.time())
    files.write(layout.whitelist, whitelist.sign(master, settings.hash_algorithm), _PUBLIC)
    return whitelist


def resign(repository: Repository, days: int = VALID_DAYS, unless: int = 0) -> tuple[bool, Whitelist]:
    """Sign the whitelist for some days from now.

    Args:
        repository: the repository.
        days: how long it is to be valid.
        unless: when it is right and valid for more than so many days, it is left as it is.

    Returns:
        Whether it was signed, and the whitelist.

    Raises:
        CvmfsError: the master key is not there.
    """
    layout = repository.layout
    with layout.locked():
        if unless:
            try:
                current = repository.whitelist(time.time() + unless * 86400)
            except CvmfsError:
                pass
            else:
                if Keys.read(layout).certificate.fingerprint(repository.settings.hash_algorithm) in current.fingerprints:
                    return False, current
        return True, _sign_whitelist(layout, repository.settings, days)


def transaction(repository: Repository) -> Path:
    """Open a transaction.

    Returns:
        The working tree, which is what is published now, and can be changed.

    Raises:
        CvmfsError: one is open, or the tree cannot be written.
    """
    layout = repository.layout
    with layout.locked():
        repository.refuse_in_transaction()
        _restore(repository)
        files.write(layout.transaction, f"{repository.manifest.catalog}\n".encode())
    return layout.tree


def abort(repository: Repository) -> None:
    """Give an open transaction up: the working tree becomes what is published.

    Raises:
        CvmfsError: none is open.
    """
    with repository.layout.locked():
        if not repository.in_transaction:
            raise CvmfsError(f"{repository.layout.fqrn} has no open transaction")
        _restore(repository)
        repository.layout.transaction.unlink()


def _restore(repository: Repository) -> None:
    layout, manifest = repository.layout, repository.manifest
    layout.scratch.mkdir(exist_ok=True)
    root = NestedRef(ROOT_PLACE, manifest.catalog, manifest.catalog_size)
    with Index(layout.index) as index:
        checkout(repository.store, root, layout.tree, layout.scratch, index)


def publish(repository: Repository, source: Path | None = None, tag: Tag | None = None) -> Report:
    """Publish a tree as a new revision, if it is another one than what is published.

    Args:
        repository: the repository.
        source: the tree; None for that of the open transaction, which is closed then.
        tag: a tag for it; its name and description count.

    Raises:
        InputError: there is no such tree, or its dirtab or the tag's name is wrong.
        CvmfsError: no transaction is open, or one is and another tree is given; or something in the tree cannot be published.
    """
    began = time.monotonic()
    layout, settings = repository.layout, repository.settings
    if source is not None and not source.is_dir():
        raise InputError(f"{source} is no directory")
    with layout.locked():
        if source is None:
            if not repository.in_transaction:
                raise CvmfsError(f"{layout.fqrn} has no open transaction", hint="open one, or name the directory that is to be published")
        else:
            repository.refuse_in_transaction()
        tree = layout.tree if source is None else source
        staging = repository.staging()
        before = repository.manifest
        if tag is not None:
            check_tag_name(tag.name, repository.tags(before, staging.scratch))
        revision = Revision(before.revision + 1, int(time.time()))
        root = NestedRef(ROOT_PLACE, before.catalog, before.catalog_size)
        with ExitStack() as stack:
            old = stack.enter_context(opened(repository.store, root, staging.scratch))
            index = stack.enter_context(Index(layout.index))
            content = stack.enter_context(ContentWriter(staging, settings))
            builder = Builder(staging, settings, index, content, revision, _dirtab(tree))
            built = builder.build(tree, old, root)
        objects, written = staging.objects, staging.bytes
        if built.changed:
            repository.next_revision(staging, built.ref, revision.number, revision.modified, tag)
        elif tag is not None:
            named = Tag(tag.name, built.ref.hash, before.revision, before.published, tag.description, built.ref.size)
            repository.release(staging, before, Keys.read(layout), [*repository.tags(before, staging.scratch), named])
        if source is None:
            layout.transaction.unlink()
    return Report(
        built.changed,
        revision.number if built.changed else before.revision,
        str(built.ref.hash),
        builder.files,
        builder.read,
        objects,
        written,
        tuple(builder.left_out),
        time.monotonic() - began,
    )


def _dirtab(tree: Path) -> Dirtab:
    file = tree / DIRTAB_NAME
    try:
        with file.open("rb") as stream:
            text = stream.read(LARGEST + 1)
    except FileNotFoundError:
        return Dirtab()
    except OSError as error:
        raise CvmfsError(f"{file} cannot be read: {error.strerror}") from None
    if len(text) > LARGEST:
        raise InputError(f"{file} has more than {LARGEST} bytes")
    return Dirtab.parse(text.decode("utf-8", "surrogateescape"))


def add_tag(repository: Repository, name: str, description: str, revision: str | None) -> Tag:
    """Give a revision a name.

    Args:
        repository: the repository.
        name: the tag.
        description: what is to be said of it.
        revision: another tag, or the number of a revision; None for the current one.

    Raises:
        InputError: no such revision, or no such name, or it is there already.
    """
    with repository.layout.locked():
        staging = repository.staging()
        manifest = repository.manifest
        tags = repository.tags(manifest, staging.scratch)
        check_tag_name(name, tags)
        ref = repository.revision(revision, staging.scratch)
        with opened(repository.store, ref, staging.scratch) as catalog:
            number, modified = catalog.revision, catalog.last_modified
        tag = Tag(name, ref.hash, number, modified, description, ref.size)
        repository.release(staging, manifest, Keys.read(repository.layout), [*tags, tag])
    return tag


def remove_tag(repository: Repository, name: str) -> None:
    """Take a revision's name away.

    Raises:
        InputError: there is no such tag, or it is the publisher's own.
    """
    with repository.layout.locked():
        staging = repository.staging()
        manifest = repository.manifest
        tags = repository.tags(manifest, staging.scratch)
        if name in (TRUNK, TRUNK_PREVIOUS) or all(tag.name != name for tag in tags):
            own = [tag.name for tag in tags if tag.name not in (TRUNK, TRUNK_PREVIOUS)]
            raise InputError(
                f"{repository.layout.fqrn} has no tag {name!r} that could be removed", hint=f"there are {', '.join(own) or 'none'}"
            )
        repository.release(staging, manifest, Keys.read(repository.layout), [tag for tag in tags if tag.name != name])


def rollback(repository: Repository, target: str) -> Manifest:
    """Make an old revision's content a new revision. Clients never go back to an old one.

    Args:
        repository: the repository.
        target: a tag or the number of a revision.

    Raises:
        InputError: there is none.
        CvmfsError: a transaction is open.
    """
    with repository.layout.locked():
        repository.refuse_in_transaction()
        staging = repository.staging()
        before = repository.manifest
        ref = repository.revision(target, staging.scratch)
        revision, modified = before.revision + 1, int(time.time())
        file = repository.store.extract(ref.hash, staging.scratch / "rollback", size=ref.size or None)
        values = {"revision": str(revision), "previous_revision": str(before.catalog), "last_modified": str(modified)}
        update_properties(file, {**values, "TTL": str(repository.settings.repository_ttl)})
        size = file.stat().st_size
        catalog = NestedRef(ROOT_PLACE, staging.put_file(file, CATALOG), size)
        return repository.next_revision(staging, catalog, revision, modified, None)
