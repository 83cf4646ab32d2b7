"""Clients of the cluster read and write over NFSv4 with the right owners; nobody else gets in; without its volume the server stays down."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from role_support import instances, run_role, started_anew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testinfra.host import Host

testinfra_hosts = ["ansible://frontend"]

SERVICE = "nfs-ganesha"
# Every byte there is, so that nothing that alters text goes unnoticed.
ALL_BYTES = "python3 -c 'import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096)'"


def journal(host: Host) -> str:
    return str(host.run("journalctl --no-pager --lines=30 --unit=%s", SERVICE).stdout)


def other(host: Host, name: str) -> Host:
    return host.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_runner.inventory_file)


@pytest.fixture(name="client")
def _client(host: Host) -> Host:
    return other(host, "compute001")


@pytest.fixture(name="stranger")
def _stranger(host: Host) -> Host:
    return other(host, "stranger001")


@pytest.fixture(name="server")
def _server(host: Host) -> str:
    return str(host.backend.get_variables()["gridstead_address"])


def url(server: str, path: str, uid: int) -> str:
    return f"nfs://{server}{path}?version=4&uid={uid}&gid={uid}"


def test_service(host: Host) -> None:
    service = host.service(SERVICE)
    assert service.is_running, journal(host)
    assert service.is_enabled


def test_nothing_of_nfs3_listens(host: Host) -> None:
    listening = host.check_output("ss --no-header --listening --tcp --udp --numeric")
    assert ":2049 " in listening, journal(host)
    assert ":111 " not in listening
    for unit in ("rpcbind.service", "rpcbind.socket", "rpc-statd.service", "run-rpc_pipefs.mount"):
        assert host.run("systemctl is-enabled %s", unit).stdout.strip() == "masked"


@pytest.mark.parametrize(
    ("path", "owner", "mode"),
    [
        ("/grid/home", "root", 0o755),
        ("/grid/session", "grid", 0o755),
        ("/grid/cache", "grid", 0o755),
        ("/grid/runtime", "grid", 0o755),
        ("/grid/home/grid", "grid", 0o700),
        ("/grid/home/alice", "alice", 0o700),
        ("/grid/home/bob", "bob", 0o700),
    ],
)
def test_directories(host: Host, path: str, owner: str, mode: int) -> None:
    directory = host.file(path)
    assert (directory.user, directory.group, directory.mode) == (owner, owner, mode)


def test_each_server_has_its_own_shares(host: Host) -> None:
    archive = other(host, "archive001")
    assert "Path = /grid;" in host.file("/etc/ganesha/exports.conf").content_string
    assert "/data" not in host.file("/etc/ganesha/exports.conf").content_string
    assert "Path = /data;" in archive.file("/etc/ganesha/exports.conf").content_string
    assert "/grid" not in archive.file("/etc/ganesha/exports.conf").content_string
    assert archive.service(SERVICE).is_running
    assert not archive.file("/grid/home").exists, "what lies below another's share is the other's to make"


def test_home_has_the_skeleton(host: Host) -> None:
    profile = host.file("/grid/home/alice/.bashrc")
    assert profile.content == host.file("/etc/skel/.bashrc").content
    assert profile.user == "alice"


def test_directories_are_on_the_volume(host: Host) -> None:
    volume = host.backend.get_variables()["gridstead_volumes"][0]
    number = host.check_output("stat --dereference --format %%Hr:%%Lr %s", str(volume["device"]))
    assert host.check_output("stat --format %%Hd:%%Ld %s", "/grid/session") == number


def test_client_writes_server_sees_owner_and_bytes(host: Host, client: Host, server: str) -> None:
    client.check_output("sh -c %s", f"{ALL_BYTES} > /tmp/bytes")
    wanted = client.check_output("sha256sum /tmp/bytes").split()[0]
    result = client.run("timeout 30 nfs-cp /tmp/bytes %s", url(server, "/grid/home/alice/from-client", 2001))
    assert result.rc == 0, result.stderr + journal(host)
    written = host.file("/grid/home/alice/from-client")
    assert (written.uid, written.gid) == (2001, 2001)
    assert written.sha256sum == wanted


def test_server_writes_client_reads_the_same_bytes(host: Host, client: Host, server: str) -> None:
    host.check_output("sh -c %s", f"{ALL_BYTES} > /grid/session/from-server && chown grid:grid /grid/session/from-server")
    wanted = host.file("/grid/session/from-server").sha256sum
    source = url(server, "/grid/session/from-server", 2000)
    assert client.check_output("sh -c %s", f"timeout 30 nfs-cat '{source}' | sha256sum").split()[0] == wanted, journal(host)


def test_client_sees_owners(client: Host, server: str) -> None:
    listing = client.check_output("timeout 30 nfs-ls %s", url(server, "/grid/home", 0))
    owners = {fields[-1]: (fields[2], fields[3]) for fields in map(str.split, listing.splitlines())}
    assert {name: owners[name] for name in ("grid", "alice", "bob")} == {
        "grid": ("2000", "2000"),
        "alice": ("2001", "2001"),
        "bob": ("2002", "2002"),
    }


def test_homes_are_private(host: Host, client: Host, server: str) -> None:
    host.check_output("sh -c %s", "echo private > /grid/home/alice/private && chmod 644 /grid/home/alice/private")
    assert client.run("timeout 30 nfs-cat %s", url(server, "/grid/home/alice/private", 2001)).stdout == "private\n"
    assert "private" not in client.run("timeout 30 nfs-cat %s", url(server, "/grid/home/alice/private", 2002)).stdout


def test_root_of_a_client_is_nobody(host: Host, client: Host, server: str) -> None:
    assert client.run("timeout 30 nfs-cp /etc/hostname %s", url(server, "/grid/home/root-was-here", 0)).rc != 0
    assert not host.file("/grid/home/root-was-here").exists
    assert "private" not in client.run("timeout 30 nfs-cat %s", url(server, "/grid/home/alice/private", 0)).stdout


def test_a_node_that_is_no_client_is_turned_away(stranger: Host, client: Host, server: str) -> None:
    assert "home" in client.check_output("timeout 30 nfs-ls %s", url(server, "/grid", 2001))
    refused = stranger.run("timeout 30 nfs-ls %s", url(server, "/grid", 2001))
    assert refused.rc != 0
    assert "home" not in refused.stdout
    assert "NFS4ERR" in refused.stderr, "it was the network, not the server, that said no"


def test_a_new_client_gets_in_and_the_server_is_not_restarted(host: Host, client: Host, stranger: Host, server: str) -> None:
    """Also when the run that wrote the exports ended before the server read them. A lease is settled at the start, and asks for a restart."""

    def allowed() -> bool:
        return bool(stranger.run("timeout 30 nfs-ls %s", url(server, "/grid", 2001)).rc == 0)

    addresses = [str(node.backend.get_variables()["gridstead_address"]) for node in (host, client, stranger)]
    before = instances(host, SERVICE)
    try:
        run_role(host, "nfs_server", {"nfs_server_clients": addresses}, cut_off=True)
        assert not allowed()
        run_role(host, "nfs_server", {"nfs_server_clients": addresses})
        assert allowed(), journal(host)
        assert not started_anew(before, instances(host, SERVICE))
        run_role(host, "nfs_server", {"nfs_server_clients": addresses, "nfs_server_lease": 21})
        assert started_anew(before, instances(host, SERVICE)) == {SERVICE}
    finally:
        run_role(host, "nfs_server")
    assert not allowed()


@pytest.fixture(name="unmounted")
def _unmounted(host: Host) -> Iterator[None]:
    host.check_output("systemctl stop %s", SERVICE)
    host.check_output("umount /grid")
    yield
    host.check_output("mount /grid")
    host.check_output("systemctl reset-failed %s; systemctl start %s", SERVICE, SERVICE)


@pytest.mark.usefixtures("unmounted")
def test_without_its_volume_the_server_does_not_start(host: Host) -> None:
    """It would export the empty directory below the mount point."""
    assert host.run("systemctl start %s", SERVICE).rc != 0
    assert not host.service(SERVICE).is_running
    assert "AssertPathExists=/grid/.gridstead-share was not met" in host.run("systemctl status --no-pager %s", SERVICE).stdout


def test_a_killed_server_comes_back(host: Host, client: Host, server: str) -> None:
    pid = host.check_output("systemctl show --property MainPID --value %s", SERVICE)
    host.check_output("kill -KILL %s", pid)
    deadline = time.monotonic() + 20
    while client.run("timeout 10 nfs-ls %s", url(server, "/grid", 2001)).rc != 0:
        assert time.monotonic() < deadline, journal(host)
        time.sleep(0.5)
    assert host.check_output("systemctl show --property MainPID --value %s", SERVICE) != pid
