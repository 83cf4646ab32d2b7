"""The site's certificate authority: what it issues is strict, kept as long as it fits, and renewed in time."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from gridstead.pki.authority import Authority, Request, parsed, subject_of, written
from gridstead.pki.errors import PkiError

SPACE = "/DC=test/DC=grid/O=trial"
HOST = Request("host-ce.grid.test", f"{SPACE}/CN=ce.grid.test", ("ce.grid.test",))
USER = Request("user-alice", f"{SPACE}/CN=alice")


def authority(directory: Path, **options: int) -> Authority:
    return Authority(directory / "ca", f"{SPACE}/CN=Authority", **options)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "ca").iterdir() if path.name != ".lock"}


def certificate(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / "ca" / f"{name}.pem").read_bytes())


def test_what_it_issues_is_good_for_those_who_are_strict(tmp_path: Path) -> None:
    authority(tmp_path).ensure([HOST, USER])
    policy = PolicyBuilder().store(Store([certificate(tmp_path, "ca")]))
    policy.build_server_verifier(x509.DNSName("ce.grid.test")).verify(certificate(tmp_path, HOST.name), [])
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("other.grid.test")).verify(certificate(tmp_path, HOST.name), [])
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("alice")).verify(certificate(tmp_path, USER.name), [])
    alice = certificate(tmp_path, USER.name)
    assert written(alice.subject) == USER.subject
    usage = alice.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature, "without it a proxy of hers is none (RFC 3820)"
    assert not usage.key_cert_sign


def test_all_is_private(tmp_path: Path) -> None:
    authority(tmp_path).ensure([HOST])
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()} == {0o600}


def test_the_second_time_nothing_is_written(tmp_path: Path) -> None:
    files = ["ca.key", "ca.pem", "host-ce.grid.test.key", "host-ce.grid.test.pem", "user-alice.key", "user-alice.pem"]
    assert authority(tmp_path).ensure([HOST, USER], pretend=True) == files
    assert not (tmp_path / "ca").exists()
    assert authority(tmp_path).ensure([HOST, USER]) == files
    before = contents(tmp_path)
    assert authority(tmp_path).ensure([USER, HOST]) == []
    assert contents(tmp_path) == before


def test_what_expires_soon_is_renewed_for_its_key(tmp_path: Path) -> None:
    authority(tmp_path).ensure([HOST, USER], days=20)
    before = contents(tmp_path)
    assert authority(tmp_path, renew=10).ensure([HOST, USER]) == []
    assert authority(tmp_path, renew=20).ensure([HOST, USER], pretend=True) == ["host-ce.grid.test.pem", "user-alice.pem"]
    assert contents(tmp_path) == before
    assert authority(tmp_path, renew=20).ensure([HOST, USER], days=397) == ["host-ce.grid.test.pem", "user-alice.pem"]
    assert contents(tmp_path)["user-alice.key"] == before["user-alice.key"]
    assert certificate(tmp_path, "user-alice").not_valid_after_utc > datetime.now(UTC) + timedelta(days=390)


def test_the_authority_renews_itself_and_what_it_issued_stays_good(tmp_path: Path) -> None:
    authority(tmp_path, days=40).ensure([USER])
    alice = certificate(tmp_path, "user-alice")
    assert alice.not_valid_after_utc == certificate(tmp_path, "ca").not_valid_after_utc, "never longer than the authority"
    assert authority(tmp_path, renew=60).ensure([]) == ["ca.pem"]
    alice.verify_directly_issued_by(certificate(tmp_path, "ca"))


@pytest.mark.parametrize("other", [Request(HOST.name, HOST.subject, ("new.grid.test",)), Request(HOST.name, f"{SPACE}/CN=new", HOST.hosts)])
def test_what_is_for_something_else_now_is_issued_anew(tmp_path: Path, other: Request) -> None:
    authority(tmp_path).ensure([HOST])
    assert authority(tmp_path).ensure([other]) == ["host-ce.grid.test.pem"]
    assert authority(tmp_path).ensure([other]) == []


def test_an_authority_of_another_name_or_key_issues_all_anew(tmp_path: Path) -> None:
    authority(tmp_path).ensure([USER])
    renamed = Authority(tmp_path / "ca", "/O=Else/CN=Authority")
    assert renamed.ensure([USER]) == ["ca.pem", "user-alice.pem"]
    (tmp_path / "ca" / "ca.key").unlink()
    assert renamed.ensure([USER]) == ["ca.key", "ca.pem", "user-alice.pem"]
    certificate(tmp_path, "user-alice").verify_directly_issued_by(certificate(tmp_path, "ca"))


def test_a_certificate_that_is_none_is_issued_anew_and_a_key_that_is_none_is_told(tmp_path: Path) -> None:
    authority(tmp_path).ensure([USER])
    (tmp_path / "ca" / "user-alice.pem").write_text("cut o")
    assert authority(tmp_path).ensure([USER]) == ["user-alice.pem"]
    (tmp_path / "ca" / "ca.key").write_text("cut o")
    before = contents(tmp_path)
    with pytest.raises(PkiError, match=r"ca\.key .*no private key"):
        authority(tmp_path).ensure([USER])
    assert contents(tmp_path) == before


def test_several_at_once_make_one_authority(tmp_path: Path) -> None:
    users = [Request(f"user-{number}", f"{SPACE}/CN={number}") for number in range(4)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda user: authority(tmp_path).ensure([user]), users))
    for user in users:
        certificate(tmp_path, user.name).verify_directly_issued_by(certificate(tmp_path, "ca"))


@pytest.mark.parametrize("subject", ["", "alice", "/", "/CN", "/CN=", "/XX=a", "/C=Nowhere/CN=a", "CN=alice"])
def test_names_that_are_none(tmp_path: Path, subject: str) -> None:
    with pytest.raises(PkiError, match="is no name of a certificate"):
        authority(tmp_path).ensure([Request("x", subject)])


@pytest.mark.parametrize("name", ["", "../x", ".lock", "ca"])
def test_names_of_files_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(PkiError, match="no name of a certificate's files"):
        authority(tmp_path).ensure([Request(name, USER.subject)])
    assert not (tmp_path / "ca").exists()


def test_names_are_written_as_they_are_read() -> None:
    assert written(parsed(USER.subject)) == USER.subject
    with pytest.raises(PkiError, match="somewhere: no certificate"):
        subject_of(b"text", "somewhere")
