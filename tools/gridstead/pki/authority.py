"""A certificate authority in a directory: its key and certificate, and the certificates that it issues.

Everything a site's grid services and users need to know each other by: ``ca.key`` and ``ca.pem``, ``NAME.key`` and ``NAME.pem`` for each
certificate. What is there and fits is left; what is missing, about to expire or meant for something else is issued anew, for the
same key. Certificates follow RFC 5280 to the letter: since Python 3.13 and OpenSSL 3 those that do not are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gridstead.pki import files, rsa
from gridstead.pki.errors import PkiError

#: Parts of a name that grid certificates have, as OpenSSL writes them.
ATTRIBUTES = {
    "DC": NameOID.DOMAIN_COMPONENT,
    "C": NameOID.COUNTRY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
}
CA_BITS = 3072
#: Clocks of a site's machines are not all right.
BACKDATED = timedelta(hours=1)


@dataclass(frozen=True)
class Request:
    """A certificate that is wanted.

    Args:
        name: of its files.
        subject: whom it names, as in ``/DC=test/DC=grid/CN=alice``.
        hosts: host names, for a service's; none for a person's, which no service can use.
    """

    name: str
    subject: str
    hosts: tuple[str, ...] = ()


def parsed(subject: str) -> x509.Name:
    """A name from its text, ``/DC=test/DC=grid/CN=alice``.

    Raises:
        PkiError: it is no such text.
    """
    parts = [part.partition("=") for part in subject.split("/")[1:]]
    if not subject.startswith("/") or not parts or any(name not in ATTRIBUTES or not value for name, _, value in parts):
        known = ", ".join(ATTRIBUTES)
        raise PkiError(f"{subject!r} is no name of a certificate; one such as /DC=test/DC=grid/CN=alice, of {known}, is right")
    try:
        return x509.Name([x509.NameAttribute(ATTRIBUTES[name], value) for name, _, value in parts])
    except ValueError as error:
        raise PkiError(f"{subject!r} is no name of a certificate: {error}") from None


def written(name: x509.Name) -> str:
    """A name as its text, the reverse of :func:`parsed`; of a part of another kind the number of its kind stands there."""
    short = {oid: text for text, oid in ATTRIBUTES.items()}
    return "".join(f"/{short.get(part.oid, part.oid.dotted_string)}={part.value!s}" for part in name)


def subject_of(pem: bytes, what: str) -> str:
    """Whom a certificate names.

    Args:
        pem: its text.
        what: its name in error messages.

    Raises:
        PkiError: it is no certificate.
    """
    try:
        return written(x509.load_pem_x509_certificate(pem).subject)
    except ValueError:
        raise PkiError(f"{what}: no certificate in PEM") from None


class Authority:
    """The authority in a directory. Several processes may use it at once.

    Args:
        directory: where its files are, 0700.
        subject: its name; only a new certificate of its own takes it up.
        days: for how many days a new certificate of its own is valid.
        renew: certificates with fewer days left are issued anew.
    """

    def __init__(self, directory: Path, subject: str, *, days: int = 3650, renew: int = 30) -> None:
        self.directory = directory
        self.name = parsed(subject)
        self.days = days
        self.renew = renew

    def ensure(self, requests: Iterable[Request], *, days: int = 397, pretend: bool = False) -> list[str]:
        """Make that all is there and valid: the authority itself, and certificates.

        Args:
            requests: the certificates.
            days: for how many days new ones are valid; never for longer than the authority.
            pretend: write nothing.

        Returns:
            The names of the files that were (or would be) written.

        Raises:
            PkiError: the directory or the authority's key is unusable, or a request is.
        """
        wanted = list(requests)
        for request in wanted:
            if not request.name or "/" in request.name or request.name.startswith(".") or request.name == "ca":
                raise PkiError(f"{request.name!r} can be no name of a certificate's files")
        if pretend and not self._path("ca.key").exists():
            return ["ca.key", "ca.pem", *(f"{one.name}.{end}" for one in wanted for end in ("key", "pem"))]
        with self._locked():
            done: list[str] = []
            key = self._key("ca", CA_BITS, done, pretend=pretend)
            authority = self._present("ca")
            if not authority or authority.subject != self.name or not self._fits(authority, key, authority, key, ()):
                authority = self._sign(key, self.name, key, None, self.days)
                self._write("ca.pem", authority.public_bytes(Encoding.PEM), done, pretend=pretend)
            for request in wanted:
                own = self._key(request.name, rsa.SMALLEST_KEY, done, pretend=pretend)
                name, present = parsed(request.subject), self._present(request.name)
                if not present or present.subject != name or not self._fits(present, own, authority, key, request.hosts):
                    issued = self._sign(own, name, key, authority, days, request.hosts)
                    self._write(f"{request.name}.pem", issued.public_bytes(Encoding.PEM), done, pretend=pretend)
            return done

    def _path(self, name: str) -> Path:
        return self.directory / name

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise PkiError(f"{self.directory}: {error.strerror}; a directory that can be written is right") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, name: str, content: bytes, done: list[str], *, pretend: bool) -> None:
        if not pretend:
            files.write(self._path(name), content)
        done.append(name)

    def _key(self, name: str, bits: int, done: list[str], *, pretend: bool) -> RSAPrivateKey:
        """The key of that name, a new one where there is none. One that cannot be read is an error: who has its certificate counts on it."""
        path = self._path(f"{name}.key")
        if path.exists():
            return rsa.load_private(path.read_bytes(), f"{path} (without it a new one is made)")
        key = rsa.new_key(bits)
        self._write(path.name, rsa.private_pem(key), done, pretend=pretend)
        return key

    def _present(self, name: str) -> x509.Certificate | None:
        try:
            return x509.load_pem_x509_certificate(self._path(f"{name}.pem").read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def _fits(
        self, present: x509.Certificate, own: RSAPrivateKey, authority: x509.Certificate, key: RSAPrivateKey, hosts: tuple[str, ...]
    ) -> bool:
        """Whether a certificate is of this key, this authority and these hosts, and for long enough."""
        left = present.not_valid_after_utc - datetime.now(timezone.utc)  # noqa: UP017  nodes have Python 3.9, without datetime.UTC
        try:
            names = tuple(present.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName))
        except x509.ExtensionNotFound:
            names = ()
        try:
            key.public_key().verify(present.signature, present.tbs_certificate_bytes, PKCS1v15(), SHA256())
        except InvalidSignature:
            return False
        mine = present.public_key() == own.public_key() and present.issuer == authority.subject
        return mine and names == hosts and left > timedelta(days=self.renew)

    def _sign(
        self,
        own: RSAPrivateKey,
        name: x509.Name,
        key: RSAPrivateKey,
        authority: x509.Certificate | None,
        days: int,
        hosts: tuple[str, ...] = (),
    ) -> x509.Certificate:
        """A new certificate: of the authority itself when there is none yet."""
        now = datetime.now(timezone.utc).replace(microsecond=0)  # noqa: UP017  as above
        end = now + timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority.subject if authority else name)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(min(end, authority.not_valid_after_utc) if authority else end)
            .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
            .add_extension(_usage(authority=authority is None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )
        if authority:
            purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        return builder.sign(key, SHA256())


def _usage(*, authority: bool) -> x509.KeyUsage:
    """What a key may do: sign certificates, or prove its owner and agree on keys; the latter makes proxies (RFC 3820) possible."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
