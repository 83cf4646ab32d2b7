"""``.cvmfspublished``: which revision of a repository is the current one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import md5

from gridstead.cvmfs.digest import CATALOG, CERTIFICATE, HISTORY, METAINFO, PLAIN, Hash
from gridstead.cvmfs.errors import FormatError, TrustError
from gridstead.cvmfs.signing import Certificate, Letter, Signer, parse_fingerprint
from gridstead.cvmfs.whitelist import Whitelist

MANIFEST_NAME = ".cvmfspublished"
#: Official ones have 600 bytes.
MANIFEST_LIMIT = 64 * 1024
#: The root directory's path key (cvmfs/manifest.cc).
ROOT_PATH = md5(b"", usedforsecurity=False).hexdigest()
#: How long clients go by a manifest before they look again, seconds; what the official server sets.
DEFAULT_TTL = 240

_FQRN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_WORDS = {"yes": True, "no": False}


def is_fqrn(name: str) -> bool:
    """Whether a text can be a repository's fully qualified name, such as ``sw.grid.test``: it becomes part of paths and URLs."""
    return _FQRN.fullmatch(name) is not None and ".." not in name


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        catalog: the root catalogue.
        name: the repository's fully qualified name.
        certificate: the certificate whose key has signed it.
        revision: counts up with every publication.
        ttl: how long clients go by it, seconds.
        published: when, as Unix time; 0 when it does not say.
        catalog_size: bytes of the root catalogue when decompressed; 0 when it does not say.
        history: the database of tags.
        metainfo: a JSON text about the repository.
        reflog: the hash of ``.cvmfsreflog``, which is no object.
        garbage_collectable: whether garbage collection is allowed.
        alternative_name: whether the root catalogue is also there as ``.cvmfsalt-...``.
        root_path: MD5 of the root's path.
        extra: lines that this program does not know, as they are.
    """

    catalog: Hash
    name: str
    certificate: Hash
    revision: int
    ttl: int = DEFAULT_TTL
    published: int = 0
    catalog_size: int = 0
    history: Hash | None = None
    metainfo: Hash | None = None
    reflog: Hash | None = None
    garbage_collectable: bool = False
    alternative_name: bool = False
    root_path: str = ROOT_PATH
    extra: tuple[str, ...] = field(default=())

    @classmethod
    def parse(cls, data: bytes) -> SignedManifest:
        """Take a ``.cvmfspublished`` apart. Who has signed it is not known before ``SignedManifest.verify``.

        Raises:
            FormatError: it is no manifest.
            CorruptObjectError: its text does not have the hash it says.
        """
        letter = Letter.parse(data, "the manifest", MANIFEST_LIMIT)
        try:
            lines = letter.text[:-1].decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise FormatError("the manifest has letters that are not ASCII") from None
        values: dict[str, str] = {}
        extra = []
        for line in lines:
            key = line[:1]
            if not key:
                raise FormatError("the manifest has an empty line")
            if key in values:
                raise FormatError(f"the manifest says {key} twice")
            values[key] = line[1:]
            if key not in "CBRDSGANXHTMY":
                extra.append(line)
        return SignedManifest(_manifest(values, tuple(extra)), letter)

    def text(self) -> bytes:
        """The lines that are signed, in the official order."""
        lines = [
            f"C{self.catalog}",
            f"B{self.catalog_size}",
            f"R{self.root_path}",
            f"D{self.ttl}",
            f"S{self.revision}",
            f"G{'yes' if self.garbage_collectable else 'no'}",
            f"A{'yes' if self.alternative_name else 'no'}",
            *self.extra,
            f"N{self.name}",
            f"X{self.certificate}",
        ]
        if self.history:
            lines.append(f"H{self.history}")
        if self.published:
            lines.append(f"T{self.published}")
        if self.metainfo:
            lines.append(f"M{self.metainfo}")
        if self.reflog:
            lines.append(f"Y{self.reflog}")
        return "".join(f"{line}\n" for line in lines).encode("ascii")

    def sign(self, signer: Signer) -> bytes:
        """The whole file, signed with the key of the certificate."""
        return signer.hashed(self.text(), self.catalog.algorithm)


def _manifest(values: dict[str, str], extra: tuple[str, ...]) -> Manifest:
    def needed(key: str) -> str:
        if key not in values:
            raise FormatError(f"the manifest has no line {key}")
        return values[key]

    def number(key: str, default: int | None = None) -> int:
        text = needed(key) if default is None else values.get(key, str(default))
        if _NUMBER.fullmatch(text) is None:
            raise FormatError(f"the manifest's line {key} says {text[:40]!r}, which is no number")
        return int(text)

    def word(key: str) -> bool:
        text = values.get(key, "no")
        if text not in _WORDS:
            raise FormatError(f"the manifest's line {key} says {text[:40]!r}; yes or no would be right")
        return _WORDS[text]

    def optional(key: str, suffix: str) -> Hash | None:
        return Hash.parse(values[key], suffix) if key in values else None

    if not is_fqrn(needed("N")):
        raise FormatError(f"the manifest's line N says {values['N'][:60]!r}, which is no repository's name")
    if needed("R") != ROOT_PATH:
        raise FormatError(f"the manifest's line R says {values['R'][:40]!r}: it is not of a whole repository")
    return Manifest(
        catalog=Hash.parse(needed("C"), CATALOG),
        name=values["N"],
        certificate=Hash.parse(needed("X"), CERTIFICATE),
        revision=number("S"),
        ttl=number("D"),
        published=number("T", 0),
        catalog_size=number("B", 0),
        history=optional("H", HISTORY),
        metainfo=optional("M", METAINFO),
        reflog=optional("Y", PLAIN),
        garbage_collectable=word("G"),
        alternative_name=word("A"),
        extra=extra,
    )


@dataclass(frozen=True)
class SignedManifest:
    """A manifest with its signature.

    Attributes:
        manifest: what it says. Not to be believed before ``verify``, except for which certificate to fetch.
        letter: the text and its signature.
    """

    manifest: Manifest
    letter: Letter

    def verify(self, fqrn: str, certificate_pem: bytes, whitelist: Whitelist) -> Manifest:
        """Check who has signed it.

        Args:
            fqrn: the repository it has to be of.
            certificate_pem: the object ``manifest.certificate``, verified and decompressed.
            whitelist: the repository's whitelist, verified.

        Returns:
            The manifest, which can be believed now.

        Raises:
            TrustError: it is another repository's, or its certificate is not on the whitelist, or has not signed it.
        """
        if self.manifest.name != fqrn or whitelist.name != fqrn:
            raise TrustError(f"the manifest is of repository {self.manifest.name} and the whitelist of {whitelist.name}, not of {fqrn}")
        certificate = Certificate(certificate_pem, f"the certificate of {fqrn}")
        if not any(certificate.fingerprint(parse_fingerprint(line).algorithm) == line for line in whitelist.fingerprints):
            raise TrustError(f"the certificate {certificate.fingerprint()}, which has signed {fqrn}, is not on its whitelist")
        if not certificate.signed(self.letter):
            raise TrustError(f"the manifest of {fqrn} has a wrong signature")
        return self.manifest
