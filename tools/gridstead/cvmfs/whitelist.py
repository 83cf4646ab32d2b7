"""``.cvmfswhitelist``: which certificates may sign a repository, signed by its master key, for a limited time."""

from __future__ import annotations

import calendar
import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gridstead.cvmfs.errors import ExpiredError, FormatError, TrustError
from gridstead.cvmfs.signing import Certificate, Letter, Signer, format_fingerprint, parse_fingerprint, signed_plainly

WHITELIST_NAME = ".cvmfswhitelist"
#: One with a hundred certificates has 6 KB.
WHITELIST_LIMIT = 256 * 1024
#: How long a new one is valid; what the official server sets.
VALID_DAYS = 30

_STAMP = re.compile(r"[0-9]{14}", re.ASCII)
_FORMAT = "%Y%m%d%H%M%S"


def _time(text: str, what: str) -> int:
    try:
        if _STAMP.fullmatch(text):
            return calendar.timegm(time.strptime(text, _FORMAT))
    except (ValueError, OverflowError):
        pass
    raise FormatError(f"the whitelist's {what} is {text[:40]!r}; YYYYMMDDhhmmss would be right")


@dataclass(frozen=True)
class Whitelist:
    """What a whitelist says.

    Attributes:
        created: when it was signed, Unix time.
        expires: when its time is over, Unix time.
        name: the repository's fully qualified name.
        fingerprints: of the certificates, as ``signing.format_fingerprint`` writes them.
    """

    created: int
    expires: int
    name: str
    fingerprints: tuple[str, ...]

    @classmethod
    def make(
        cls, fqrn: str, certificates: Sequence[Certificate], *, algorithm: str = "sha1", days: int = VALID_DAYS, now: float
    ) -> Whitelist:
        """A new whitelist, for some days from now."""
        created = int(now)
        return cls(created, created + days * 86400, fqrn, tuple(certificate.fingerprint(algorithm) for certificate in certificates))

    @classmethod
    def load(cls, data: bytes, fqrn: str, master_keys: Sequence[bytes], now: float | None = None) -> Whitelist:
        """Verify a ``.cvmfswhitelist``: hash, signature, name and time.

        Args:
            data: the file.
            fqrn: the repository it has to be of.
            master_keys: public keys as PEM; one of them has to have signed it.
            now: Unix time; None for the clock's.

        Raises:
            FormatError: it is no whitelist.
            TrustError: no key has signed it, or it is another repository's.
            ExpiredError: its time is over.
        """
        letter = Letter.parse(data, "the whitelist", WHITELIST_LIMIT)
        whitelist = cls._parse(letter.text)
        if not any(signed_plainly(letter, key, f"master key {number} of {fqrn}") for number, key in enumerate(master_keys, 1)):
            raise TrustError(f"the whitelist of {fqrn} is not signed by any of the {len(master_keys)} master keys given")
        if whitelist.name != fqrn:
            raise TrustError(f"the whitelist is of repository {whitelist.name}, not of {fqrn}")
        whitelist.check(now)
        return whitelist

    @classmethod
    def _parse(cls, text: bytes) -> Whitelist:
        try:
            lines = text.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise FormatError("the whitelist has letters that are not ASCII") from None
        if len(lines) < 3 or lines[1][:1] != "E" or lines[2][:1] != "N":
            raise FormatError("the whitelist does not begin with its time, E and its expiry, N and the repository's name")
        fingerprints = []
        for line in lines[3:]:
            if line in ("Vpkcs7", "Wcachain"):
                # Trusting it without doing what it asks for would be less than its owner wants.
                raise TrustError(f"the whitelist asks for {line[1:]}, which this program cannot do")
            # What is no fingerprint is passed over, as the official client does.
            with contextlib.suppress(FormatError):
                fingerprints.append(format_fingerprint(parse_fingerprint(line)))
        return cls(_time(lines[0], "time"), _time(lines[1][1:], "expiry"), lines[2][1:], tuple(fingerprints))

    def check(self, now: float | None = None) -> None:
        """Check that its time is not over.

        Raises:
            ExpiredError: it is.
        """
        moment = time.time() if now is None else now
        if moment >= self.expires:
            ended = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.expires))
            raise ExpiredError(f"the whitelist of {self.name} expired at {ended}", hint="its owner has to sign it again (resign)")

    def text(self) -> bytes:
        """The lines that are signed."""
        lines = [
            time.strftime(_FORMAT, time.gmtime(self.created)),
            f"E{time.strftime(_FORMAT, time.gmtime(self.expires))}",
            f"N{self.name}",
            *self.fingerprints,
        ]
        return "".join(f"{line}\n" for line in lines).encode("ascii")

    def sign(self, master: Signer, algorithm: str = "sha1") -> bytes:
        """The whole file, signed with the master key."""
        return master.plain(self.text(), algorithm)
