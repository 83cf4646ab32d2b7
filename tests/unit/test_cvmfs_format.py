"""Hashes, objects, manifests, whitelists: what is right is read, all else is one clear error and never wrong bytes."""

from __future__ import annotations

import hashlib
import ssl
import time
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridstead.cvmfs import digest, objects, xattr
from gridstead.cvmfs.digest import CATALOG, CHUNK, Hash, path_key
from gridstead.cvmfs.errors import CorruptObjectError, CvmfsError, ExpiredError, FormatError, TrustError
from gridstead.cvmfs.manifest import Manifest, is_fqrn
from gridstead.cvmfs.objects import Unpacker, unpack
from gridstead.cvmfs.signing import Certificate, Signer
from gridstead.cvmfs.whitelist import Whitelist
from gridstead.pki import certificates, rsa

FQRN = "sw.grid.test"
NOW = 1_800_000_000.0


class Keys:
    """A master key, and a certificate with its key."""

    def __init__(self) -> None:
        self.master = Signer(rsa.private_pem(rsa.new_key()), "master")
        key = rsa.new_key()
        self.signer = Signer(rsa.private_pem(key), "key")
        self.pem = certificates.self_signed(key, "a test", 10)
        self.certificate = Certificate(self.pem, "certificate")

    def whitelist(self, **changes: object) -> bytes:
        made = Whitelist.make(FQRN, [self.certificate], now=NOW)
        return replace(made, **changes).sign(self.master)  # type: ignore[arg-type]

    def manifest(self, **changes: object) -> bytes:
        made = Manifest(Hash.of(b"catalogue", suffix=CATALOG), FQRN, Hash.of(b"certificate", suffix="X"), 7, published=int(NOW))
        return replace(made, **changes).sign(self.signer)  # type: ignore[arg-type]


KEYS = Keys()
OTHER = Keys()


# Hashes


@pytest.mark.parametrize("algorithm", digest.ALGORITHMS)
def test_hash_text_round_trip(algorithm: str) -> None:
    name = Hash.of(b"content", algorithm, CHUNK)
    assert Hash.parse(str(name), CHUNK) == name
    assert name.path == f"data/{str(name)[:2]}/{str(name)[2:]}P"


def test_hashes_are_the_well_known_ones() -> None:
    assert Hash.of(b"abc").hex == "a9993e364706816aba3e25717850c26c9cd0d89d"
    assert Hash.of(b"abc", "rmd160").path == "data/8e/b208f7e05d987a9b044a8e98c6b087f15a0bfc-rmd160"
    assert str(Hash.of(b"abc", "shake128")) == hashlib.shake_128(b"abc").hexdigest(20) + "-shake128"


@pytest.mark.parametrize(
    "text", ["", "abc", "g" * 40, "A" * 40, "a" * 39, "a" * 40 + "-md5", "a" * 40 + "C", "a" * 40 + "\n", "../" + "a" * 37]
)
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="is no hash"):
        Hash.parse(text)


def test_missing_ripemd_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def new(name: str) -> object:
        raise ValueError(f"unsupported hash type {name}")

    monkeypatch.setattr(hashlib, "new", new)
    with pytest.raises(CvmfsError, match="no RIPEMD-160"):
        Hash.of(b"abc", "rmd160")


def test_path_keys_are_those_of_the_official_programs() -> None:
    """From a catalogue of the official tools: the root, and /etc/ünïcode name.txt."""
    assert path_key("") == (338333539836370388, 9098107892288553193)
    assert path_key("/etc/ünïcode name.txt") == (3345312275179135041, 1912156812931435556)


# Objects


@given(st.binary(max_size=5000), st.sampled_from(["zlib", "none"]), st.integers(1, 700))
def test_objects_round_trip_in_pieces(data: bytes, compression: str, step: int) -> None:
    stored = objects.compress(data) if compression == "zlib" else data
    unpacker = Unpacker(Hash.of(stored), compression=compression, size=len(data))
    got = b"".join(piece for at in range(0, len(stored), step) for piece in unpacker.feed(stored[at : at + step]))
    assert got + unpacker.finish() == data
    assert unpack(stored, Hash.of(stored), compression=compression, size=len(data)) == data


@given(st.binary(min_size=1, max_size=2000), st.data())
def test_a_damaged_object_is_never_accepted(data: bytes, draw: st.DataObject) -> None:
    stored = bytearray(objects.compress(data))
    name = Hash.of(bytes(stored))
    if draw.draw(st.booleans()):
        bad = bytes(stored[: draw.draw(st.integers(0, len(stored) - 1))])
    else:
        stored[draw.draw(st.integers(0, len(stored) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
        bad = bytes(stored)
    with pytest.raises(CorruptObjectError):
        unpack(bad, name, size=len(data))
    unpacker = Unpacker(name, size=len(data))

    def all_of_it() -> None:
        for at in range(0, len(bad), 100):
            list(unpacker.feed(bad[at : at + 100]))
        unpacker.finish()

    with pytest.raises(CorruptObjectError):
        all_of_it()


@pytest.mark.parametrize("more", [b"x", objects.compress(b"more")])
def test_bytes_behind_an_object_are_refused_even_with_the_right_hash(more: bytes) -> None:
    stored = objects.compress(b"data") + more
    with pytest.raises(CorruptObjectError, match="behind"):
        unpack(stored, Hash.of(stored), size=4)
    unpacker = Unpacker(Hash.of(stored), size=4)
    list(unpacker.feed(stored[: -len(more)]))
    with pytest.raises(CorruptObjectError, match="behind"):
        list(unpacker.feed(more))


def test_a_bomb_ends_early() -> None:
    bomb = zlib.compress(bytes(30 << 20))
    unpacker = Unpacker(Hash.of(bomb), size=1000)
    with pytest.raises(CorruptObjectError, match="more than 1000 bytes"):
        list(unpacker.feed(bomb))
    with pytest.raises(CorruptObjectError, match="more than"):
        unpack(bomb, Hash.of(bomb), limit=5000)


def test_what_was_compressed_well_comes_in_steps() -> None:
    """A few kilobytes of zeros' are many megabytes: never all at once in memory."""
    stored = zlib.compress(bytes(30 << 20))
    unpacker = Unpacker(Hash.of(stored), size=30 << 20)
    sizes = [len(piece) for piece in unpacker.feed(stored)]
    assert max(sizes) <= 1 << 20
    assert sum(sizes) + len(unpacker.finish()) == 30 << 20


def test_another_size_than_promised_is_refused() -> None:
    stored = objects.compress(b"12345")
    for size in (4, 6):
        with pytest.raises(CorruptObjectError):
            unpack(stored, Hash.of(stored), size=size)


def test_unknown_compression_is_refused() -> None:
    with pytest.raises(FormatError, match="no compression"):
        Unpacker(Hash.of(b""), compression="lz4", size=0)


# Manifests and whitelists


def verify(manifest: bytes, whitelist: bytes, now: float = NOW, pem: bytes = KEYS.pem) -> Manifest:
    listed = Whitelist.load(whitelist, FQRN, [KEYS.master.public], now)
    return Manifest.parse(manifest).verify(FQRN, pem, listed)


@pytest.mark.parametrize("algorithm", digest.ALGORITHMS)
def test_signed_by_the_right_keys_is_accepted(algorithm: str) -> None:
    manifest = KEYS.manifest(
        catalog=Hash.of(b"catalogue", algorithm, CATALOG), history=Hash.of(b"h", algorithm, "H"), metainfo=Hash.of(b"m", algorithm, "M"),
        reflog=Hash.of(b"r", algorithm), garbage_collectable=True, alternative_name=True, catalog_size=5, ttl=60, extra=("Lfuture",),
    )  # fmt: skip
    whitelist = Whitelist.make(FQRN, [OTHER.certificate, KEYS.certificate], algorithm=algorithm, now=NOW).sign(KEYS.master, algorithm)
    found = verify(manifest, whitelist)
    assert found.sign(KEYS.signer) == manifest, "it says the same again"
    assert (found.revision, found.ttl, found.extra) == (7, 60, ("Lfuture",))


def test_several_master_keys_may_be_trusted() -> None:
    assert Whitelist.load(KEYS.whitelist(), FQRN, [OTHER.master.public, KEYS.master.public], NOW).name == FQRN


@pytest.mark.parametrize(
    ("manifest", "whitelist", "pem", "error"),
    [
        (KEYS.manifest(), OTHER.whitelist(), KEYS.pem, "not signed by any"),
        (OTHER.manifest(), KEYS.whitelist(), OTHER.pem, "not on its whitelist"),
        (OTHER.manifest(), KEYS.whitelist(), KEYS.pem, "wrong signature"),
        (KEYS.manifest(name="evil.grid.test"), KEYS.whitelist(), KEYS.pem, "of repository evil.grid.test"),
        (KEYS.manifest(), KEYS.whitelist(name="evil.grid.test"), KEYS.pem, "of repository evil.grid.test"),
        (KEYS.manifest(), KEYS.whitelist(), b"no certificate", "no certificate"),
    ],
)
def test_what_is_not_signed_right_is_refused(manifest: bytes, whitelist: bytes, pem: bytes, error: str) -> None:
    with pytest.raises(TrustError, match=error):
        verify(manifest, whitelist, pem=pem)


def test_a_signature_of_the_digest_is_none_of_the_text() -> None:
    """Whitelists are signed without DigestInfo, manifests with it: one cannot stand in for the other."""
    whitelist = Whitelist.make(FQRN, [KEYS.certificate], now=NOW)
    with pytest.raises(TrustError, match="not signed"):
        Whitelist.load(KEYS.master.hashed(whitelist.text()), FQRN, [KEYS.master.public], NOW)
    plain = KEYS.signer.plain(Manifest.parse(KEYS.manifest()).manifest.text())
    with pytest.raises(TrustError, match="wrong signature"):
        verify(plain, KEYS.whitelist())


@pytest.mark.parametrize(("days", "good"), [(29.99, True), (30, False), (31, False), (4000, False)])
def test_whitelists_end(days: float, good: bool) -> None:
    if good:
        verify(KEYS.manifest(), KEYS.whitelist(), NOW + days * 86400)
    else:
        with pytest.raises(ExpiredError, match="expired at 2027-02-14 08:00:00 UTC"):
            verify(KEYS.manifest(), KEYS.whitelist(), NOW + days * 86400)


def test_the_clock_is_asked_when_no_time_is_given() -> None:
    listed = Whitelist.make(FQRN, [KEYS.certificate], now=time.time()).sign(KEYS.master)
    assert Whitelist.load(listed, FQRN, [KEYS.master.public]).name == FQRN
    old = Whitelist.make(FQRN, [KEYS.certificate], now=time.time() - 31 * 86400).sign(KEYS.master)
    with pytest.raises(ExpiredError):
        Whitelist.load(old, FQRN, [KEYS.master.public])


def test_comments_in_whitelists() -> None:
    text = Whitelist.make(FQRN, [KEYS.certificate], now=NOW).text()
    letter = KEYS.master.plain(text.replace(b"\nN", b"\nN", 1)[:-1] + b" # its owner\n# a comment\n")
    assert verify(KEYS.manifest(), letter).revision == 7


@pytest.mark.parametrize("line", [b"Vpkcs7\n", b"Wcachain\n"])
def test_whitelists_that_ask_for_more_are_refused(line: bytes) -> None:
    text = Whitelist.make(FQRN, [KEYS.certificate], now=NOW).text().replace(b"test\n", b"test\n" + line)
    with pytest.raises(TrustError, match="which this program cannot do"):
        verify(KEYS.manifest(), KEYS.master.plain(text))


def changed(data: bytes, draw: st.DataObject) -> bytes:
    """Truncated, or with one bit changed, or with something put in."""
    how = draw.draw(st.integers(0, 2))
    at = draw.draw(st.integers(0, len(data) - 1))
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + bytes([data[at] ^ 1 << draw.draw(st.integers(0, 7))]) + data[at + 1 :]
    return data[:at] + draw.draw(st.binary(min_size=1, max_size=4)) + data[at:]


MANIFEST, WHITELIST = KEYS.manifest(), KEYS.whitelist()


@given(st.data())
def test_no_change_to_a_manifest_goes_unnoticed(draw: st.DataObject) -> None:
    bad = changed(MANIFEST, draw)
    if bad != MANIFEST:
        with pytest.raises(CvmfsError):
            verify(bad, WHITELIST)


@given(st.data())
def test_no_change_to_a_whitelist_goes_unnoticed(draw: st.DataObject) -> None:
    bad = changed(WHITELIST, draw)
    if bad != WHITELIST:
        with pytest.raises(CvmfsError):
            verify(MANIFEST, bad)


# A change may make the serial number negative, which the parser takes with a warning.
@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
@given(st.data())
def test_no_change_to_a_certificate_goes_unnoticed(draw: st.DataObject) -> None:
    """Text around the PEM, and how its lines break, is no part of it: then the certificate is the same."""
    bad = changed(KEYS.pem, draw)
    try:
        verify(MANIFEST, WHITELIST, pem=bad)
    except CvmfsError:
        return
    assert Certificate(bad, "").fingerprint() == KEYS.certificate.fingerprint()


def test_a_certificate_of_an_unknown_version() -> None:
    der = ssl.PEM_cert_to_DER_cert(KEYS.pem.decode())
    version = b"\xa0\x03\x02\x01"
    pem = ssl.DER_cert_to_PEM_cert(der.replace(version + b"\x02", version + b"\x0a", 1))
    with pytest.raises(TrustError, match="no certificate"):
        Certificate(pem.encode(), "that")


@given(st.binary(max_size=300))
def test_garbage_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        Manifest.parse(data)
    with pytest.raises(CvmfsError):
        Whitelist.load(data, FQRN, [KEYS.master.public], NOW)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b"\nS7\n", b"\n", "no line S"),
        (b"\nS7\n", b"\nS-7\n", "which is no number"),
        (b"\nS7\n", "\nS\u0667\n".encode(), "not ASCII"),
        (b"\nS7\n", b"\nS7\nS8\n", "says S twice"),
        (b"\nS7\n", b"\nS7\n\n", "empty line"),
        (b"\nGno\n", b"\nGmaybe\n", "yes or no would be right"),
        (b"\nNsw.grid.test\n", b"\nN../../etc\n", "no repository's name"),
        (b"\nRd41d", b"\nRd41e", "not of a whole repository"),
        (b"\nD240\n", b"\nD1e9\n", "which is no number"),
    ],
)
def test_signed_nonsense_is_a_format_error(old: bytes, new: bytes, error: str) -> None:
    text = Manifest.parse(MANIFEST).letter.text
    assert old in text
    with pytest.raises(FormatError, match=error):
        Manifest.parse(KEYS.signer.hashed(text.replace(old, new)))


@pytest.mark.parametrize("stamp", [b"20260230120000", b"2026123", b"99999999999999", b"2026 101120000", ("\u0662" * 14).encode()])
def test_impossible_times_are_refused(stamp: bytes) -> None:
    text = Whitelist.make(FQRN, [KEYS.certificate], now=NOW).text().split(b"\n")
    text[1] = b"E" + stamp
    with pytest.raises(FormatError):
        Whitelist.load(KEYS.master.plain(b"\n".join(text)), FQRN, [KEYS.master.public], NOW)


def test_oversized_letters_are_not_even_read() -> None:
    with pytest.raises(FormatError, match="more than"):
        Manifest.parse(b"C" * 10**6)


@pytest.mark.parametrize(
    ("name", "good"),
    [("sw.grid.test", True), ("a", True), ("a..b", False), ("", False), (".a", False), ("a/b", False), ("a\n", False), ("x" * 300, False)],
)
def test_names_of_repositories(name: str, good: bool) -> None:
    assert is_fqrn(name) is good


# Keys


def test_signatures_are_openssls() -> None:
    """The manifest's signature is an ordinary one: what any other program verifies."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA1

    letter = Manifest.parse(MANIFEST).letter
    key = x509.load_pem_x509_certificate(KEYS.pem).public_key()
    assert isinstance(key, RSAPublicKey)
    key.verify(letter.signature, letter.printed, PKCS1v15(), SHA1())  # noqa: S303  the format's choice


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_unusable_keys_are_clear_errors(pem: bytes) -> None:
    with pytest.raises(TrustError, match="KEY"):
        Signer(pem, "KEY")
    with pytest.raises(TrustError, match="master key 1"):
        Whitelist.load(WHITELIST, FQRN, [pem], NOW)


def test_keys_of_another_kind_are_clear_errors() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    with pytest.raises(TrustError, match="no RSA key"):
        Signer(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "KEY")
    with pytest.raises(TrustError, match="no RSA key"):
        Whitelist.load(WHITELIST, FQRN, [key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)], NOW)


# Extended attributes


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=255), st.binary(max_size=255), max_size=20
    )
)
def test_attributes_round_trip(attributes: dict[str, bytes]) -> None:
    assert xattr.parse(xattr.build(attributes)) == attributes


@given(st.binary(min_size=1, max_size=60))
def test_garbage_attributes_never_crash(blob: bytes) -> None:
    try:
        found = xattr.parse(blob)
    except FormatError:
        return
    assert xattr.parse(xattr.build(found)) == found


def test_the_official_form_of_attributes() -> None:
    assert xattr.build({"user.b": b"2", "user.a": b"one"}) == b"\1\2\6\3user.aone\6\1user.b2"
    with pytest.raises(FormatError, match="too long"):
        xattr.build({"user.a": b"x" * 256})
