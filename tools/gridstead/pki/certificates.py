"""X.509 certificates."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gridstead.pki.errors import PkiError


def self_signed(key: RSAPrivateKey, common_name: str, days: int) -> bytes:
    """A certificate that its own key signs, as PEM.

    Args:
        key: the key it is for.
        common_name: whom it names.
        days: how long it is valid; it begins a day ago, for clocks that are not quite right.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(timezone.utc)  # noqa: UP017  nodes have Python 3.9, without datetime.UTC
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def load(pem: bytes, what: str) -> tuple[bytes, RSAPublicKey]:
    """A certificate from PEM.

    Args:
        pem: its text.
        what: its name in error messages.

    Returns:
        Its DER and its public key.

    Raises:
        PkiError: it is no certificate of an RSA key.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
        der = certificate.public_bytes(Encoding.DER)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise PkiError(f"{what}: no certificate in PEM") from None
    if not isinstance(key, RSAPublicKey):
        raise PkiError(f"{what}: its key is no RSA key")
    return der, key
