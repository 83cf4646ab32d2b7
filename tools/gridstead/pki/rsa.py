"""RSA keys, and signatures by PKCS #1 type 1 padding of any text.

CVMFS signs whitelists with that padding around a plain text, without the DigestInfo that says a hash algorithm, and manifests by
SHA-1. Both are done here from the padding up: older versions of ``cryptography`` cannot sign a plain text, and hosts whose policy
forbids SHA-1 signatures (EL9) refuse the other although CVMFS has no choice.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from gridstead.pki.errors import PkiError

#: DER of a DigestInfo of SHA-1 up to the digest (RFC 8017, section 9.2, note 1).
SHA1_DIGEST_INFO = bytes.fromhex("3021300906052b0e03021a05000414")
#: Smaller keys can be broken.
SMALLEST_KEY = 2048


def new_key(bits: int = SMALLEST_KEY) -> RSAPrivateKey:
    """A new private key."""
    return generate_private_key(public_exponent=65537, key_size=bits)


def private_pem(key: RSAPrivateKey) -> bytes:
    """A private key as PEM, not encrypted, in the form that all versions of OpenSSL and CVMFS read."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def public_pem(key: RSAPublicKey) -> bytes:
    """A public key as PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_private(pem: bytes, what: str) -> RSAPrivateKey:
    """A private key from PEM.

    Args:
        pem: its text.
        what: its name in error messages.

    Raises:
        PkiError: it is no unencrypted RSA key.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PkiError(f"{what}: no private key in PEM without a password") from None
    if not isinstance(key, RSAPrivateKey):
        raise PkiError(f"{what}: no RSA key")
    return key


def load_public(pem: bytes, what: str) -> RSAPublicKey:
    """A public key from PEM.

    Args:
        pem: its text.
        what: its name in error messages.

    Raises:
        PkiError: it is no RSA key.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PkiError(f"{what}: no public key in PEM") from None
    if not isinstance(key, RSAPublicKey):
        raise PkiError(f"{what}: no RSA key")
    return key


def sign(key: RSAPrivateKey, text: bytes) -> bytes:
    """Sign a text as it is (EMSA-PKCS1-v1_5 without DigestInfo).

    Raises:
        PkiError: the text is too long for the key.
    """
    size = (key.key_size + 7) // 8
    if len(text) > size - 11:
        raise PkiError(f"{len(text)} bytes are too many to be signed with a key of {key.key_size} bits")
    padded = b"\x00\x01" + b"\xff" * (size - len(text) - 3) + b"\x00" + text
    numbers = key.private_numbers()
    modulus = numbers.public_numbers.n
    signature = pow(int.from_bytes(padded, "big"), numbers.d, modulus).to_bytes(size, "big")
    # A fault in the computation must not get out: it would give the key away.
    if not signs(key.public_key(), signature, text):
        raise PkiError("the signature just made does not verify")
    return signature


def signs(key: RSAPublicKey, signature: bytes, text: bytes) -> bool:
    """Whether a signature is one of exactly that text, as ``sign`` makes them."""
    try:
        return key.recover_data_from_signature(signature, PKCS1v15(), None) == text
    except (InvalidSignature, ValueError):
        return False
