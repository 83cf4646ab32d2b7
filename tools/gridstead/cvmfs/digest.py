"""Hashes of content, and the names that objects and paths have because of them."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, replace
from os import fsencode
from typing import Protocol

from gridstead.cvmfs.errors import CvmfsError, FormatError

#: Hash algorithms of content by their number in a catalogue entry's flags (cvmfs/crypto/hash.h, without MD5).
ALGORITHMS = ("sha1", "rmd160", "shake128")
#: Bytes of every digest; SHAKE-128 is cut to it.
DIGEST_SIZE = 20

PLAIN = ""
CATALOG = "C"
CHUNK = "P"
CERTIFICATE = "X"
HISTORY = "H"
METAINFO = "M"
SUFFIXES = (PLAIN, CATALOG, CHUNK, CERTIFICATE, HISTORY, METAINFO)

_HASH = re.compile(r"([0-9a-f]{40})(?:-(rmd160|shake128))?", re.ASCII)


class Hasher(Protocol):
    """What all hash algorithms have in common."""

    def update(self, data: bytes, /) -> None:
        """Hash further bytes."""

    def digest(self) -> bytes:
        """The digest of all bytes so far, ``DIGEST_SIZE`` long."""


class _Shake128:
    """SHAKE-128 cut to the size of the other digests."""

    def __init__(self) -> None:
        self._shake = hashlib.shake_128()

    def update(self, data: bytes, /) -> None:
        self._shake.update(data)

    def digest(self) -> bytes:
        return self._shake.digest(DIGEST_SIZE)


def new_hasher(algorithm: str = "sha1") -> Hasher:
    """A running hash.

    Args:
        algorithm: one of ``ALGORITHMS``.

    Raises:
        FormatError: there is no such algorithm.
        CvmfsError: this host's OpenSSL does not have it (RIPEMD-160 is a legacy algorithm, and off on some).
    """
    if algorithm == "sha1":
        return hashlib.sha1(usedforsecurity=False)
    if algorithm == "shake128":
        return _Shake128()
    if algorithm == "rmd160":
        try:
            return hashlib.new("ripemd160")
        except ValueError:
            raise CvmfsError(
                "this host's OpenSSL has no RIPEMD-160, which this repository uses", hint="enable OpenSSL's legacy provider"
            ) from None
    raise FormatError(f"{algorithm!r} is no hash algorithm of CVMFS; there are {', '.join(ALGORITHMS)}")


@dataclass(frozen=True)
class Hash:
    """A content hash: of an object as it is stored, that is compressed.

    Attributes:
        digest: its 20 bytes.
        algorithm: one of ``ALGORITHMS``.
        suffix: what kind of object it names, one of ``SUFFIXES``.
    """

    digest: bytes
    algorithm: str = "sha1"
    suffix: str = PLAIN

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_SIZE:
            raise FormatError(f"a digest has {len(self.digest)} bytes; {DIGEST_SIZE} would be right")
        if self.algorithm not in ALGORITHMS:
            raise FormatError(f"{self.algorithm!r} is no hash algorithm of CVMFS; there are {', '.join(ALGORITHMS)}")
        if self.suffix not in SUFFIXES:
            raise FormatError(f"{self.suffix!r} is no kind of object; there are {', '.join(SUFFIXES[1:])} and none")

    @classmethod
    def parse(cls, text: str, suffix: str = PLAIN) -> Hash:
        """The hash that a text says: 40 hexadecimal digits, then ``-rmd160``, ``-shake128`` or nothing.

        Args:
            text: the text. Kinds of objects are not part of it, as in manifests and catalogues.
            suffix: what kind of object it is.

        Raises:
            FormatError: it is no hash.
        """
        match = _HASH.fullmatch(text)
        if match is None:
            raise FormatError(f"{text[:60]!r} is no hash; 40 lower-case hexadecimal digits and perhaps -rmd160 or -shake128 would be right")
        return cls(bytes.fromhex(match[1]), match[2] or "sha1", suffix)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha1", suffix: str = PLAIN) -> Hash:
        """The hash of bytes."""
        hasher = new_hasher(algorithm)
        hasher.update(data)
        return cls(hasher.digest(), algorithm, suffix)

    @property
    def hex(self) -> str:
        """The digest alone, in hexadecimal digits."""
        return self.digest.hex()

    def __str__(self) -> str:
        return self.hex if self.algorithm == "sha1" else f"{self.hex}-{self.algorithm}"

    @property
    def path(self) -> str:
        """Where the object is, from the repository's root: ``data/hh/rest[-algorithm][suffix]``."""
        text = str(self)
        return f"data/{text[:2]}/{text[2:]}{self.suffix}"

    def with_suffix(self, suffix: str) -> Hash:
        """The same hash as the name of another kind of object."""
        return replace(self, suffix=suffix)


def path_key(path: str) -> tuple[int, int]:
    """A path's key in catalogues: its MD5 as two little-endian signed integers (cvmfs/sql.h, BindMd5).

    Args:
        path: from the repository's root: "" is the root itself, others begin with a slash.
    """
    first, second = struct.unpack("<qq", hashlib.md5(fsencode(path), usedforsecurity=False).digest())
    return first, second
