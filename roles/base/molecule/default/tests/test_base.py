"""Names resolve, users have the site's ids everywhere, the node keeps UTC, sshd takes keys only."""

from __future__ import annotations

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://all"]

USERS = {"grid": 2000, "alice": 2001, "bob": 2002}


def test_the_node_resolves_itself(host: Host) -> None:
    variables = host.backend.get_variables()
    name, address = variables["inventory_hostname"], variables["gridstead_address"]
    assert host.check_output("hostname") == name
    assert host.check_output("hostname -f") == f"{name}.{variables['gridstead_domain']}"
    assert host.check_output("getent ahostsv4 %s", name).split()[0] == address


def test_the_node_resolves_the_frontend_from_its_own_file(host: Host) -> None:
    variables = host.backend.get_variables()
    address = host.get_host("ansible://frontend001", ansible_inventory=host.backend.ansible_runner.inventory_file).backend.get_variables()[
        "gridstead_address"
    ]
    fqdn = f"frontend001.{variables['gridstead_domain']}"
    assert host.check_output("getent -s files hosts %s", fqdn).split() == [address, fqdn, "frontend001"]


def test_hosts_of_a_compute_node_do_not_name_other_compute_nodes(host: Host) -> None:
    """Otherwise a node that is added would change every other node."""
    names = host.file("/etc/hosts").content_string
    variables = host.backend.get_variables()
    expected = (
        {"frontend001", variables["inventory_hostname"]}
        if "compute" in variables["group_names"]
        else {"frontend001", "compute001", "compute002"}
    )
    assert {n for n in ("frontend001", "compute001", "compute002") if f" {n}\n" in names} == expected


@pytest.mark.parametrize(("name", "uid"), USERS.items())
def test_user(host: Host, name: str, uid: int) -> None:
    user = host.user(name)
    assert (user.uid, user.gid, user.group) == (uid, uid, name)
    assert (user.home, user.shell) == (f"/grid/home/{name}", "/bin/bash")
    assert user.password.startswith("!"), "a user of the site must not have a password"


@pytest.mark.parametrize("name", USERS)
def test_user_gets_a_shell(host: Host, name: str) -> None:
    result = host.run("su --login --command 'id --user --name; echo $SHELL; echo $LANG' %s", name)
    assert result.stdout.split() == [name, "/bin/bash", "C.UTF-8"], result.stderr


def test_slurm_has_its_id_and_no_shell(host: Host) -> None:
    user = host.user("slurm")
    assert (user.uid, user.gid) == (64030, 64030)
    assert user.shell.endswith("nologin")


def test_no_homes_are_made(host: Host) -> None:
    """They are on the shared file system; a local one would hide that it is missing."""
    assert not host.file("/grid/home/alice").exists


@pytest.mark.parametrize("program", ["curl", "getfacl", "less", "time", "vi"])
def test_programs(host: Host, program: str) -> None:
    assert host.exists(program)


def test_utc(host: Host) -> None:
    assert host.check_output("date +%Z") == "UTC"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("passwordauthentication", "no"),
        ("kbdinteractiveauthentication", "no"),
        ("permitrootlogin", "without-password"),
        ("x11forwarding", "no"),
    ],
)
def test_sshd(host: Host, option: str, value: str) -> None:
    assert f"{option} {value}" in host.check_output("sshd -T").splitlines()


def test_the_running_sshd_refuses_passwords(host: Host) -> None:
    """What is configured is also what the running daemon does."""
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o PubkeyAuthentication=no -o BatchMode=yes"
    # The status is printed, because testinfra takes 255 for a failure of its own connection.
    result = host.run(f"ssh {options} root@localhost true; echo status $?")
    assert "status 255" in result.stdout
    assert "Permission denied (publickey)" in result.stderr
