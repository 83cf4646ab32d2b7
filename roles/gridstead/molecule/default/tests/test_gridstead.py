"""Roles of the built collection, used from outside the checkout, make a node; its state lies on its volume, and no service starts without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://slurm_controller"]

ROOT = "/var/lib/state"
PLACES = {
    "mariadb": ("/var/lib/mysql", "mysql"),
    "slurmctld": ("/var/lib/slurm/slurmctld", "slurm"),
    "cvmfs": ("/srv/cvmfs", "root"),
    "cvmfs-keys": ("/etc/cvmfs/keys", "root"),
    "cvmfs-repositories": ("/etc/cvmfs/repositories.d", "root"),
    "cvmfs-spool": ("/var/spool/cvmfs", "root"),
}
SERVICES = ("mariadb", "slurmdbd", "slurmctld", "nginx")


def test_state_lies_on_the_volume(host: Host) -> None:
    assert host.mount_point(ROOT).exists
    for name, (place, owner) in PLACES.items():
        assert host.file(place).linked_to == f"{ROOT}/{name}"
        assert host.file(f"{ROOT}/{name}").user == owner
        assert host.check_output("findmnt --noheadings --output=TARGET --target %s", f"{place}/.") == ROOT
    key = host.file(f"{ROOT}/munge/munge.key")
    assert (key.user, key.mode) == ("root", 0o400)
    assert key.sha256sum == host.file("/etc/munge/munge.key").sha256sum


def test_the_services_work(host: Host) -> None:
    assert host.check_output("scontrol ping").count("is UP") == 1
    assert host.check_output("sacctmgr --noheader --parsable2 list cluster format=cluster") == "mol-gridstead"
    assert host.run("curl --silent --fail --output /dev/null localhost:8000/cvmfs/sw.grid.test/.cvmfspublished").rc == 0


@pytest.fixture
def no_volume(host: Host) -> Iterator[None]:
    host.check_output("systemctl stop slurmctld slurmdbd mariadb nginx")
    # An empty file system in its place, as the disk below would be: systemd would wait for a device that is gone.
    host.check_output("mount -t tmpfs tmpfs %s", ROOT)
    yield
    host.check_output("umount %s", ROOT)
    host.check_output("systemctl start mariadb slurmdbd slurmctld nginx")


@pytest.mark.usefixtures("no_volume")
def test_without_the_volume_no_service_begins_anew(host: Host) -> None:
    for service in SERVICES:
        assert host.run("systemctl start %s", service).rc != 0, service
        assert host.check_output("systemctl show --property=AssertResult --value %s", service) == "no", service
    assert host.check_output("ls -A %s", ROOT) == ""
