"""What the servers publish: the manifest, believed only when the whole chain from the master key to it is right.

The newest revision seen is kept on disk. An older one is refused, whoever offers it, and with no server in reach the
repository is mounted as it was last seen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from gridstead.cvmfs.client.fetch import FetchError
from gridstead.cvmfs.client.store import Reference
from gridstead.cvmfs.errors import CorruptObjectError, CvmfsError, ExpiredError, FormatError, TrustError
from gridstead.cvmfs.manifest import MANIFEST_LIMIT, MANIFEST_NAME, Manifest, SignedManifest
from gridstead.cvmfs.objects import SMALL_OBJECT
from gridstead.cvmfs.signing import Certificate
from gridstead.cvmfs.whitelist import WHITELIST_LIMIT, WHITELIST_NAME, Whitelist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gridstead.cvmfs.client.blacklist import Blacklist
    from gridstead.cvmfs.client.store import Store

_log = logging.getLogger(__name__)


class StaleError(CvmfsError):
    """All servers offer an older revision than one that was seen."""


class Publication:
    """The published revisions of a repository.

    Args:
        fqrn: its name.
        keys: public master keys, PEM.
        store: fetches.
        state: a directory for what was seen last.
        blacklist: what is not trusted whatever the whitelist says.
    """

    def __init__(self, fqrn: str, keys: list[bytes], store: Store, state: Path, blacklist: Blacklist) -> None:
        self.fqrn = fqrn
        self.keys = keys
        self._store = store
        self._state = state
        self._blacklist = blacklist
        self._whitelist: Whitelist | None = None
        self.current: Manifest | None = None

    def mount(self) -> Manifest:
        """The revision to begin with: the newest one of the servers, or the last one seen when they are down or behind.

        Raises:
            CvmfsError: there is none that can be trusted.
        """
        stored = self._stored()
        # Also when its whitelist has expired it says how far the repository has come.
        self.current = stored
        try:
            return self.refresh()
        except (FetchError, StaleError, CorruptObjectError) as error:
            if stored is None:
                raise
            self._check_stored_whitelist()
            _log.warning("%s; revision %d of %s was seen last and is mounted", error, stored.revision, self.fqrn)
            return stored

    def refresh(self) -> Manifest:
        """The newest revision of the servers.

        Raises:
            FetchError: no server gives one.
            StaleError: they only have older ones than was seen.
            TrustError, FormatError: what they give cannot be trusted.
        """
        hosts = self._store.downloader.hosts
        for last in [*[False] * (len(hosts.choices) - 1), True]:
            host = hosts.order()[0]
            try:
                return self._refresh()
            except TrustError as error:
                if last:
                    raise
                _log.error("server %s: %s", host, error)
                hosts.failed(host)
        raise TrustError(f"{self.fqrn}: there is no server")

    def _refresh(self) -> Manifest:
        signed = self._fetch_manifest()
        if self.current is not None and signed.manifest == self.current and self._whitelist is not None:
            with contextlib.suppress(ExpiredError):
                self._whitelist.check()
                self._certificate(signed)
                return self.current
        manifest = self._verify(signed)
        if manifest != self.current:
            self._keep("manifest", signed.letter.data())
        self.current = manifest
        return manifest

    def _fetch_manifest(self) -> SignedManifest:
        stale: list[int] = []

        def consume(blocks: Iterator[bytes]) -> SignedManifest:
            # What cannot be it is asked for again past the proxies' caches, and then of the next server.
            try:
                signed = Manifest.parse(_small(blocks, MANIFEST_LIMIT, "the manifest"))
            except CorruptObjectError:
                raise
            except FormatError as error:
                raise CorruptObjectError(str(error)) from None
            if signed.manifest.name != self.fqrn:
                raise CorruptObjectError(f"the manifest is of repository {signed.manifest.name}, not of {self.fqrn}")
            if self.current is not None and not _follows(signed.manifest, self.current):
                stale.append(signed.manifest.revision)
                raise CorruptObjectError(f"revision {signed.manifest.revision} is older than revision {self.current.revision}, seen before")
            return signed

        try:
            return self._store.downloader.get(MANIFEST_NAME, consume)
        except CorruptObjectError as error:
            if stale and self.current is not None:
                raise StaleError(
                    f"{self.fqrn}: the servers offer revision {max(stale)}, but revision {self.current.revision} was seen before",
                    hint=f"if the repository was made anew with the same key, remove {self._state}",
                ) from None
            raise TrustError(f"{self.fqrn}: {error}") from None

    def _verify(self, signed: SignedManifest) -> Manifest:
        certificate = self._certificate(signed)
        try:
            whitelist = self._fetch_whitelist()
        except FetchError:
            whitelist = self._check_stored_whitelist()
        manifest = signed.verify(self.fqrn, certificate, whitelist)
        self._whitelist = whitelist
        return manifest

    def _certificate(self, signed: SignedManifest) -> bytes:
        """The certificate of a manifest.

        Raises:
            TrustError: it is not trusted any more.
        """
        certificate = self._store.content(Reference(signed.manifest.certificate, None, limit=SMALL_OBJECT))
        self._blacklist.check_certificate(Certificate(certificate, f"the certificate of {self.fqrn}"), self.fqrn)
        return certificate

    def _fetch_whitelist(self) -> Whitelist:
        loaded: list[bytes] = []
        reasons: list[CvmfsError] = []

        def consume(blocks: Iterator[bytes]) -> Whitelist:
            data = _small(blocks, WHITELIST_LIMIT, "the whitelist")
            try:
                whitelist = Whitelist.load(data, self.fqrn, self.keys)
            except CvmfsError as error:
                # A proxy or a server may have an old or damaged one, another one the right one.
                reasons.append(error)
                raise CorruptObjectError(str(error)) from None
            loaded.append(data)
            return whitelist

        try:
            whitelist = self._store.downloader.get(WHITELIST_NAME, consume)
        except CorruptObjectError as error:
            raise (reasons[-1] if reasons else TrustError(f"{self.fqrn}: {error}")) from None
        self._keep("whitelist", loaded[-1])
        return whitelist

    # What was seen last

    def _stored(self) -> Manifest | None:
        """The manifest seen last, its signature verified; its whitelist may have expired."""
        try:
            signed = Manifest.parse((self._state / "manifest").read_bytes())
            whitelist = self._stored_whitelist(lasting=True)
            return signed.verify(self.fqrn, self._certificate(signed), whitelist)
        except FileNotFoundError:
            return None
        except (CvmfsError, OSError) as error:
            _log.warning("what was last seen of %s cannot be used: %s", self.fqrn, error)
            return None

    def _stored_whitelist(self, *, lasting: bool) -> Whitelist:
        data = (self._state / "whitelist").read_bytes()
        return Whitelist.load(data, self.fqrn, self.keys, now=0 if lasting else None)

    def _check_stored_whitelist(self) -> Whitelist:
        try:
            whitelist = self._stored_whitelist(lasting=False)
        except OSError as error:
            raise FetchError(f"the whitelist of {self.fqrn} can be had neither from a server nor from {self._state}: {error}") from None
        self._whitelist = whitelist
        return whitelist

    def _keep(self, name: str, data: bytes) -> None:
        """Write a file, all of it or not at all."""
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._state / f"{name}.{os.getpid()}"
            temporary.write_bytes(data)
            temporary.replace(self._state / name)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._state / name, error)


def _follows(new: Manifest, old: Manifest) -> bool:
    """Whether a manifest may come after another one: newer, or the same, or the same revision signed again."""
    if new.revision != old.revision:
        return new.revision > old.revision
    return new.catalog == old.catalog or new.published > old.published


def _small(blocks: Iterator[bytes], limit: int, what: str) -> bytes:
    data = b""
    for block in blocks:
        data += block
        if len(data) > limit:
            raise CorruptObjectError(f"{what} has more than {limit} bytes")
    return data


class Schedule:
    """When to look for a new revision.

    Args:
        most: seconds after which at the latest; None for as long as the manifest says.
        clock: gives the time, seconds.
    """

    #: How soon after a failure, seconds.
    AGAIN = 15.0

    def __init__(self, most: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._due = clock()

    def done(self, ttl: float) -> None:
        """A look at a manifest with this TTL succeeded."""
        self._due = self._clock() + max(1.0, min(ttl, self._most if self._most is not None else ttl))

    def failed(self, ttl: float) -> None:
        """A look failed."""
        self._due = self._clock() + max(1.0, min(ttl, self.AGAIN))

    def wait(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._due - self._clock())
