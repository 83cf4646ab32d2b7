"""Signed letters: what manifest and whitelist have in common, and the certificate that signs a manifest.

A letter is its text, a line ``--``, the text's hash in hexadecimal digits, a line feed, and a signature of those digits
(cvmfs/crypto/signature.cc, CutLetter and VerifyLetter).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from gridstead.cvmfs.digest import Hash
from gridstead.cvmfs.errors import CorruptObjectError, FormatError, TrustError
from gridstead.pki import certificates, rsa
from gridstead.pki.errors import PkiError

_SEPARATOR = b"--\n"
#: Where a comment behind a fingerprint begins.
_COMMENT = re.compile(r"[ \t#]")


@dataclass(frozen=True)
class Letter:
    """A text with its signature, not verified yet.

    Attributes:
        text: what is signed.
        printed: the hash of the text, as it stands in the letter. This is what the signature is of.
        signature: the signature.
    """

    text: bytes
    printed: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes, what: str, limit: int) -> Letter:
        """Take a letter apart.

        Args:
            data: the letter.
            what: its name in error messages.
            limit: how many bytes it may have.

        Raises:
            FormatError: it is no letter.
            CorruptObjectError: its text does not have the hash it says.
        """
        if len(data) > limit:
            raise FormatError(f"{what} has {len(data)} bytes; more than {limit} are not taken")
        at = data.find(b"\n" + _SEPARATOR)
        if at < 0:
            raise FormatError(f"{what} has no line -- that ends its text: is it truncated?")
        text, rest = data[: at + 1], data[at + 1 + len(_SEPARATOR) :]
        printed, newline, signature = rest.partition(b"\n")
        if not newline or not signature:
            raise FormatError(f"{what} has no signature: is it truncated?")
        try:
            expected = Hash.parse(printed.decode("ascii"))
        except (FormatError, UnicodeDecodeError):
            raise FormatError(f"{what} has no hash behind its text") from None
        if Hash.of(text, expected.algorithm) != expected:
            raise CorruptObjectError(f"{what} is corrupt: its text does not have the hash {expected}")
        return cls(text, printed, signature)

    def data(self) -> bytes:
        """The whole letter."""
        return self.text + _SEPARATOR + self.printed + b"\n" + self.signature


def _digest_info(text: bytes) -> bytes:
    return rsa.SHA1_DIGEST_INFO + hashlib.sha1(text, usedforsecurity=False).digest()


class Signer:
    """A private key of a repository: its master key or the key of its certificate.

    Args:
        pem: the key.
        what: its name in error messages.

    Raises:
        TrustError: it is no key.
    """

    def __init__(self, pem: bytes, what: str) -> None:
        try:
            self._key = rsa.load_private(pem, what)
        except PkiError as error:
            raise TrustError(str(error)) from None

    @property
    def public(self) -> bytes:
        """The public key as PEM."""
        return rsa.public_pem(self._key.public_key())

    def fits(self, certificate: Certificate) -> bool:
        """Whether the certificate is of this key."""
        return certificate.public == self.public

    def plain(self, text: bytes, algorithm: str = "sha1") -> bytes:
        """A whitelist's letter: the printed hash is signed as it is."""
        printed = str(Hash.of(text, algorithm)).encode("ascii")
        return Letter(text, printed, rsa.sign(self._key, printed)).data()

    def hashed(self, text: bytes, algorithm: str = "sha1") -> bytes:
        """A manifest's letter: the SHA-1 of the printed hash is signed, whatever the hash algorithm."""
        printed = str(Hash.of(text, algorithm)).encode("ascii")
        return Letter(text, printed, rsa.sign(self._key, _digest_info(printed))).data()


def signed_plainly(letter: Letter, master_key: bytes, what: str) -> bool:
    """Whether a master key has signed a whitelist's letter.

    Args:
        letter: the letter.
        master_key: a public key as PEM.
        what: the key's name in error messages.

    Raises:
        TrustError: it is no public key.
    """
    try:
        return rsa.signs(rsa.load_public(master_key, what), letter.signature, letter.printed)
    except PkiError as error:
        raise TrustError(str(error)) from None


class Certificate:
    """A repository's certificate, whose key signs its manifests.

    Args:
        pem: the certificate.
        what: its name in error messages.

    Raises:
        TrustError: it is no certificate.
    """

    def __init__(self, pem: bytes, what: str) -> None:
        try:
            self._der, self._key = certificates.load(pem, what)
        except PkiError as error:
            raise TrustError(str(error)) from None

    @property
    def public(self) -> bytes:
        """Its public key as PEM."""
        return rsa.public_pem(self._key)

    def fingerprint(self, algorithm: str = "sha1") -> str:
        """Its fingerprint as whitelists have it: pairs of capital hexadecimal digits, and the algorithm if it is not SHA-1."""
        return format_fingerprint(Hash.of(self._der, algorithm))

    def signed(self, letter: Letter) -> bool:
        """Whether its key has signed a manifest's letter."""
        return rsa.signs(self._key, letter.signature, _digest_info(letter.printed))


def format_fingerprint(fingerprint: Hash) -> str:
    """A certificate's hash as whitelists have it."""
    pairs = ":".join(fingerprint.hex[at : at + 2] for at in range(0, len(fingerprint.hex), 2))
    return (pairs + str(fingerprint)[len(fingerprint.hex) :]).upper()


def parse_fingerprint(line: str) -> Hash:
    """A line of a whitelist: a fingerprint, perhaps with a comment behind it (signature.cc, MkFromFingerprint).

    Raises:
        FormatError: it is none.
    """
    return Hash.parse(_COMMENT.split(line, maxsplit=1)[0].replace(":", "").lower())
