"""The site's authority: its key stays on the controller, and what it issued is strict enough for everybody."""

import stat
from pathlib import Path

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://arc_rest"]

ANCHORS = "/etc/grid-security/certificates"


def directory(host: Host) -> Path:
    """Where it is on the controller."""
    return Path(str(host.ansible.get_variables()["gridstead_secrets"])) / "ca"


def test_keys_are_the_controllers_alone(host: Host) -> None:
    keys = list(directory(host).glob("*.key"))
    assert {path.name for path in keys} >= {"ca.key", "host-frontend001.grid.test.key", "user-alice.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [*keys, *directory(host).glob("*.pem")]} == {0o600}
    assert stat.S_IMODE(directory(host).stat().st_mode) == 0o700
    words = (directory(host) / "ca.key").read_text().splitlines()[3]
    assert host.run(f"grep --recursive --files-with-matches '{words}' /etc /var/lib /grid /root /tmp").stdout == ""


@pytest.mark.parametrize(
    ("path", "owner", "mode"),
    [
        ("/etc/grid-security/arc-ce/hostkey.pem", "grid", 0o400),
        ("/etc/grid-security/arc-ce-root/hostkey.pem", "root", 0o400),
        ("/grid/home/alice/.globus/userkey.pem", "alice", 0o400),
        ("/grid/home/bob/.globus/usercert.pem", "bob", 0o444),
    ],
)
def test_whose_files_are_whose(host: Host, path: str, owner: str, mode: int) -> None:
    file = host.file(path)
    assert (file.user, file.mode) == (owner, mode)


@pytest.mark.parametrize(
    ("purpose", "certificate"),
    [("sslserver", "/etc/grid-security/arc-ce/hostcert.pem"), ("sslclient", "/grid/home/alice/.globus/usercert.pem")],
)
def test_certificates_are_strict(host: Host, purpose: str, certificate: str) -> None:
    host.check_output(f"openssl verify -x509_strict -purpose {purpose} -CApath {ANCHORS} -no-CAfile -no-CAstore {certificate}")


def test_a_user_is_no_server(host: Host) -> None:
    assert host.run(f"openssl verify -purpose sslserver -CApath {ANCHORS} /grid/home/alice/.globus/usercert.pem").rc != 0


def test_programs_find_the_authority_and_what_it_may_name(host: Host) -> None:
    name = host.check_output(f"openssl x509 -noout -hash -in {ANCHORS}/gridstead-site.pem")
    assert host.file(f"{ANCHORS}/{name}.0").linked_to == f"{ANCHORS}/gridstead-site.pem"
    assert '"/DC=test/DC=grid/O=mol-arc/*"' in host.file(f"{ANCHORS}/{name}.signing_policy").content_string
