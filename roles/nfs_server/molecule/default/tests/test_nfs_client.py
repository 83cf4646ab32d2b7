"""Both sides see one file system, and a node that does not see the server's refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from role_support import ansible

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from testinfra.host import Host

testinfra_hosts = ["ansible://nfs_client"]

MARKER = "/grid/.gridstead-share"
PLAY = [{"hosts": "nfs_client", "roles": ["nfs_client"]}]


@pytest.fixture(name="server")
def _server(host: Host) -> Host:
    return host.get_host("ansible://frontend001", ansible_inventory=host.backend.ansible_runner.inventory_file)


def converge(host: Host, tmp_path: Path, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Apply the role as an operator does and give Ansible's own words."""
    playbook = tmp_path / "play.json"
    playbook.write_text(json.dumps(PLAY))
    return ansible(host, "ansible-playbook", "--extra-vars", json.dumps(variables), str(playbook))


def test_server_writes_client_reads(host: Host, server: Host) -> None:
    server.check_output("sh -c %s", "echo from the server > /grid/session/s && chown grid:grid /grid/session/s")
    seen = host.file("/grid/session/s")
    assert seen.content_string == "from the server\n"
    assert (seen.user, seen.group) == ("grid", "grid")


def test_client_writes_server_reads(host: Host, server: Host) -> None:
    host.check_output("su --command %s alice", "echo from the client > /grid/home/alice/c")
    seen = server.file("/grid/home/alice/c")
    assert seen.content_string == "from the client\n"
    assert (seen.user, seen.group) == ("alice", "alice")


def test_a_share_of_another_server(host: Host) -> None:
    archive = host.get_host("ansible://archive001", ansible_inventory=host.backend.ansible_runner.inventory_file)
    archive.check_output("sh -c %s", "install -o alice -m 644 /dev/null /data/a && echo from the archive > /data/a")
    assert host.file("/data/a").content_string == "from the archive\n"
    assert host.file("/data/.gridstead-share").content_string.split()[1:3] == ["archive001", "/data"]


def test_a_share_from_outside_the_site(host: Host, tmp_path: Path) -> None:
    """The provider brings it: to the role it is a mount. What the site has below it is made there once, and nothing else is touched."""
    outside = {
        "nfs_client_mounts": [{"path": "/grid", "server": "frontend001"}, {"path": "/outside", "source": "/of/the/provider"}],
        "nfs_server_directories": [{"path": "/grid/home"}, {"path": "/outside/session", "owner": "grid", "group": "grid"}],
        "nfs_server_users": [{"name": "alice", "home": "/outside/alice"}],
    }
    host.check_output("mkdir -p /outside")
    try:
        refused = converge(host, tmp_path, **outside)
        assert refused.returncode != 0
        assert "The shares from outside are mounted" in refused.stdout
        assert not host.file("/outside/session").exists, "it would be the node's own directory"
        host.check_output("mount -t tmpfs outside /outside && touch /outside/theirs")
        assert converge(host, tmp_path, **outside).returncode == 0
        assert (host.file("/outside/session").user, host.file("/outside/alice").user) == ("grid", "alice")
        assert host.file("/outside/alice").mode == 0o700
        assert "changed=0 " in converge(host, tmp_path, **outside).stdout
        assert sorted(host.check_output("ls -A /outside").split()) == ["alice", "session", "theirs"]
    finally:
        host.run("umount /outside; rmdir /outside")


def test_users_start_in_their_shared_home(host: Host) -> None:
    assert host.check_output("su --login --command pwd alice") == "/grid/home/alice"


def test_a_share_that_the_site_has_no_more_is_unmounted(host: Host, tmp_path: Path) -> None:
    """What it is mounted with does not matter to the test: the entry in fstab is what the role goes by."""
    options = "nfs4 nfsvers=4.2,noauto 0 0"
    host.check_output("cp /etc/fstab /root/fstab; mkdir -p /old; mount -t tmpfs old /old")
    host.check_output(f"echo 'frontend001.grid.test:/old /old {options}\nserver.example.org:/theirs /theirs {options}' >> /etc/fstab")
    try:
        assert host.mount_point("/old").exists
        result = converge(host, tmp_path)
        assert result.returncode == 0, result.stdout
        assert not host.mount_point("/old").exists
        assert "/old" not in host.file("/etc/fstab").content_string
        assert "server.example.org:/theirs /theirs" in host.file("/etc/fstab").content_string, "others' entries are theirs"
    finally:
        host.run("umount /old; cp /root/fstab /etc/fstab")


@pytest.fixture(name="marker")
def _marker(server: Host) -> Iterator[str]:
    content = server.file(MARKER).content_string
    yield content
    server.check_output("sh -c %s x %s %s", 'printf "%s" "$1" > $2', content, MARKER)


def test_a_directory_without_the_marker_is_refused(host: Host, server: Host, marker: str, tmp_path: Path) -> None:
    assert marker
    server.check_output("rm %s", MARKER)
    result = converge(host, tmp_path)
    assert result.returncode != 0
    assert "/grid on compute001 is not the file system of frontend001: its marker .gridstead-share is not there" in result.stdout


def test_the_share_of_another_cluster_is_refused(host: Host, server: Host, marker: str, tmp_path: Path) -> None:
    server.check_output("sh -c %s", f"echo other {marker.split(maxsplit=1)[1].strip()} > {MARKER}")
    result = converge(host, tmp_path)
    assert result.returncode != 0
    assert "says 'other frontend001 /grid" in result.stdout


def test_nfs_on_a_kernel_without_it_is_refused(host: Host, tmp_path: Path) -> None:
    if "nfs4" in host.file("/proc/filesystems").content_string.split():
        pytest.skip("this kernel has an NFS client")
    result = converge(host, tmp_path, nfs_client_share="nfs")
    assert result.returncode != 0
    assert "has no NFSv4 client" in result.stdout
    assert "/grid" not in host.file("/etc/fstab").content_string


def test_wrong_share_is_refused(host: Host, tmp_path: Path) -> None:
    result = converge(host, tmp_path, nfs_client_share="smb")
    assert result.returncode != 0
    assert "nfs, directory" in result.stdout
