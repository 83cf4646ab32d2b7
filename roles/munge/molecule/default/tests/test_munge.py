"""The cluster's key is in place on all hosts, and a credential made on one is good on the other."""

from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

testinfra_hosts = ["ansible://slurm_controller", "ansible://slurm_node"]


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


def test_forged_credential_is_refused(host: Host) -> None:
    result = host.run("munge --no-input | tr A-M N-Z | unmunge")
    assert result.rc != 0


@pytest.mark.parametrize("other", ["slurm_controller", "slurm_node"])
def test_credential_of_another_host(host: Host, other: str) -> None:
    for name in host.backend.ansible_runner.get_hosts(other):
        issuer = testinfra.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)
        credential = issuer.check_output("munge --no-input")
        assert "Success (0)" in host.check_output("echo %s | unmunge", credential).splitlines()[0]
