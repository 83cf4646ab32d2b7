"""The cluster's key is in place on all hosts, and a credential made on one is good on the other."""

from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

testinfra_hosts = ["ansible://slurm_controller", "ansible://slurm_node", "ansible://slurm_client"]


def test_service(host: Host) -> None:
    service = host.service("munge")
    journal = host.run("journalctl --no-pager --lines=30 --unit=munge").stdout
    assert service.is_running, journal
    assert service.is_enabled


def test_key_is_private(host: Host) -> None:
    key = host.file("/etc/munge/munge.key")
    assert (key.user, key.group, key.mode) == ("munge", "munge", 0o400)


def test_key_is_not_the_packages_own(host: Host) -> None:
    """All hosts were made from one image or one package: only the cluster's key makes them equal and unlike others."""
    inventory = host.backend.get_variables()
    assert host.file("/etc/munge/munge.key").content == Path(inventory["gridstead_secrets"], "munge.key").read_bytes()


def test_round_trip(host: Host) -> None:
    assert host.run("munge --no-input | unmunge").rc == 0


def unmunged(host: Host, credential: str) -> str:
    """What unmunge says of a credential."""
    return str(host.run("echo %s | unmunge 2>&1", credential).stdout)


@pytest.mark.parametrize("where", [0.25, 0.5, 0.75])
def test_changed_credential_is_refused(host: Host, where: float) -> None:
    """One character of what the key protects, here and there; the format stays whole, so it is the key that says no."""
    credential = host.check_output("munge --no-input").strip()
    assert credential.startswith("MUNGE:")
    assert credential.endswith(":")
    at = len("MUNGE:") + int(where * len(credential[len("MUNGE:") : -1].rstrip("=")))
    forged = f"{credential[:at]}{'B' if credential[at] == 'A' else 'A'}{credential[at + 1 :]}"
    assert "Invalid credential" in unmunged(host, forged)
    assert "Success" in unmunged(host, credential)


def test_credential_made_with_another_key_is_refused(host: Host) -> None:
    """By a second munged, as somebody would run who has everything but the cluster's key."""
    script = """
    mkdir -m 711 /run/forger
    mungekey --create --keyfile=/run/forger/key
    munged --key-file=/run/forger/key --socket=/run/forger/socket --pid-file=/run/forger/pid --seed-file=/run/forger/seed --log-file=/run/forger/log
    munge --no-input --socket=/run/forger/socket
    """
    try:
        credential = host.check_output("sh -e -c %s", script).strip()
        own = host.run("echo %s | unmunge --socket=/run/forger/socket", credential)
        assert "Success" in own.stdout, "otherwise it would show nothing"
        assert "Invalid credential" in unmunged(host, credential)
    finally:
        host.run("munged --stop --pid-file=/run/forger/pid --socket=/run/forger/socket; rm -r /run/forger")


@pytest.mark.parametrize("other", ["slurm_controller", "slurm_node"])
def test_credential_of_another_host(host: Host, other: str) -> None:
    for name in host.backend.ansible_runner.get_hosts(other):
        issuer = testinfra.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)
        credential = issuer.check_output("munge --no-input")
        assert "Success (0)" in host.check_output("echo %s | unmunge", credential).splitlines()[0]
