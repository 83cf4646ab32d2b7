"""What a node does not trust any more, whatever whitelists say: certificates by fingerprint, and revisions before a certain one.

The official file (/etc/cvmfs/blacklist), line by line: a fingerprint as whitelists have it, or ``<REPOSITORY REVISION``: no revision before that one
(cvmfs/whitelist.cc, VerifyLoadedCertificate; cvmfs/catalog_mgr_client.cc, IsRevisionBlacklisted).
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from gridstead.cvmfs.errors import FormatError, InputError, RevokedError, TrustError
from gridstead.cvmfs.signing import parse_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from gridstead.cvmfs.digest import Hash
    from gridstead.cvmfs.signing import Certificate

_log = logging.getLogger(__name__)

_REVISION = re.compile(r"<(\S+)[ \t]+(\d{1,19})[ \t]*(?:#.*)?", re.ASCII)


class Blacklist:
    """A node's blacklist.

    Args:
        file: where it is; need not be there.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._fingerprints: frozenset[Hash] = frozenset()
        self._revisions: dict[str, int] = {}
        self._said: frozenset[str] = frozenset()
        self._load()

    def reload(self) -> None:
        """Read it again. When it cannot be read, what it said before holds."""
        try:
            self._load()
        except InputError as error:
            _log.error("%s; what it said before holds", error)

    def _load(self) -> None:
        try:
            lines = self._file.read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise InputError(f"{self._file} cannot be read: {error.strerror}") from None
        fingerprints, revisions, wrong = set(), dict[str, int](), set()
        for line in (line.strip() for line in lines):
            before = _REVISION.fullmatch(line)
            if before:
                revisions[before[1]] = max(int(before[2]), revisions.get(before[1], 0))
            elif line and not line.startswith("#"):
                try:
                    fingerprints.add(parse_fingerprint(line))
                except FormatError:
                    wrong.add(line)
        for line in sorted(wrong - self._said):
            _log.warning("%s: '%s' revokes nothing; a fingerprint, or <REPOSITORY REVISION, would be right", self._file, line[:80])
        self._fingerprints, self._revisions, self._said = frozenset(fingerprints), revisions, frozenset(wrong)

    def check_certificate(self, certificate: Certificate, fqrn: str) -> None:
        """Check that a certificate may have signed a repository.

        Raises:
            TrustError: it may not.
        """
        for algorithm in {revoked.algorithm for revoked in self._fingerprints}:
            fingerprint = certificate.fingerprint(algorithm)
            if parse_fingerprint(fingerprint) in self._fingerprints:
                raise TrustError(f"the certificate {fingerprint}, which has signed {fqrn}, is on this node's blacklist, {self._file}")

    def check_revision(self, fqrn: str, revision: int) -> None:
        """Check that a repository's revision may be shown.

        Raises:
            RevokedError: it may not.
        """
        first = self._revisions.get(fqrn, 0)
        if revision < first:
            raise RevokedError(
                f"revision {revision} of {fqrn} is on this node's blacklist, {self._file}: revisions from {first} on may be shown"
            )
