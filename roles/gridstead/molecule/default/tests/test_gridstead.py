"""Roles of the built collection, used from outside the checkout, make a node; its state lies on its volume, and no service starts without."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


# -- host keys -------------------------------------------------------------------------------------------------------

KEPT = f"{ROOT}/ssh/ssh_host_ed25519_key"
UNIT = {
    "name": "ssh.service",
    "reload_on": [
        "/etc/ssh/sshd_config.d/10-gridstead.conf",
        "/etc/ssh/sshd_config.d/04-gridstead-host-keys.conf",
        *(f"/etc/ssh/ssh_host_{kind}_key" for kind in ("ed25519", "ecdsa", "rsa")),
    ],
}


def offered(host: Host) -> str:
    """The host key that a new connection is shown."""
    return host.check_output("ssh-keyscan -t ed25519 localhost 2>/dev/null | grep -v ^#").partition(" ")[2]


def public(host: Host, private: str) -> str:
    return " ".join(host.check_output("ssh-keygen -y -f %s", private).split()[:2])


def connect(host: Host) -> tuple[str, set[str]]:
    """What a new connection from the controller says, held to its known hosts; and the keys that are known of the node."""
    variables = host.backend.get_variables()
    options = shlex.split(variables["ansible_ssh_common_args"])
    key = variables["ansible_ssh_private_key_file"]
    said = subprocess.run(
        ["ssh", "-F", "/dev/null", "-i", key, *options, f"root@{variables['ansible_host']}", "hostname"],
        capture_output=True,
        text=True,
        check=False,
    )
    file = next(word for word in options if word.startswith("UserKnownHostsFile=")).partition("=")[2]
    return said.stdout + said.stderr, {" ".join(line.split()[1:3]) for line in Path(file).read_text().splitlines()}


def keep(host: Host, *, owner: str = "mol-gridstead") -> dict[str, Any]:
    """The action as role base has it run."""
    said = {"root": ROOT, "owner": owner, "mounts": [ROOT], "units": [UNIT]}
    result: dict[str, Any] = host.ansible("gridstead.site.host_keys", json.dumps(said), check=False)
    return result


def test_host_keys_are_kept_on_the_volume(host: Host) -> None:
    key = host.file(KEPT)
    assert (key.user, key.mode, host.file(f"{ROOT}/ssh").mode) == ("root", 0o600, 0o700)
    assert public(host, KEPT) == offered(host)


def test_the_keys_of_the_node_before_come_back(host: Host) -> None:
    present = offered(host)
    host.check_output("mv %s /root/kept && ssh-keygen -q -t ed25519 -N '' -f %s", KEPT, KEPT)
    before = public(host, KEPT)
    assert keep(host)["changed"]
    assert offered(host) == before != present
    assert connect(host) == ("frontend001\n", {before})
    again = keep(host)
    assert not again["changed"], again
    # The first ones, by the same way.
    host.check_output("mv /root/kept %s", KEPT)
    assert keep(host)["changed"]
    assert connect(host) == ("frontend001\n", {present})


def test_keys_of_somebody_else_are_not_taken(host: Host) -> None:
    present = offered(host)
    said = keep(host, owner="another")
    assert "holds the state of mol-gridstead" in said["msg"]
    assert offered(host) == present


# -- without the volume ----------------------------------------------------------------------------------------------


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
