"""The repository is mounted, shows what is published, and comes through what happens to servers, disks and programs."""

from __future__ import annotations

import shlex
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from role_support import instances, run_role, started_anew
from support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from testinfra.host import Host

testinfra_hosts = ["ansible://cvmfs_client"]

FQRN = "sw.grid.test"
MOUNT = f"/cvmfs/{FQRN}"
UNIT = f"gridstead-cvmfs@{FQRN}.service"
TREE = f"/var/spool/cvmfs/{FQRN}/tree"
WEB = f"/srv/cvmfs/{FQRN}"

#: Everything below a directory: type, mode, size, time, links, target or digest.
LISTING = r"""
import hashlib, os, stat, sys
for top, names, files in os.walk(sys.argv[1]):
    names.sort()
    for name in sorted(names + files):
        path = os.path.join(top, name)
        status = os.lstat(path)
        what = ""
        if stat.S_ISLNK(status.st_mode):
            what = os.readlink(path).replace("$(GRID_ARCH:-x86_64)", "aarch64 with a space")
        elif stat.S_ISREG(status.st_mode):
            what = f"{status.st_size} {status.st_nlink} {hashlib.sha256(open(path, 'rb').read()).hexdigest()}"
        print(ascii(os.path.relpath(path, sys.argv[1])), oct(status.st_mode), status.st_mtime_ns, what)
"""


def journal(host: Host) -> str:
    return str(host.run("journalctl --no-pager --lines=40 --unit=%s", UNIT).stdout)


def until(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.3)


def listing(host: Host, directory: str) -> list[str]:
    return host.check_output(shlex.join(["python3", "-c", LISTING, directory])).splitlines()


def attribute(host: Host, name: str, path: str = MOUNT) -> str:
    return host.check_output(shlex.join(["python3", "-c", "import os, sys; print(os.getxattr(*sys.argv[1:]).decode())", path, name]))


@pytest.fixture(name="server")
def _server(host: Host) -> Host:
    return host.get_host("ansible://frontend001", ansible_inventory=host.backend.ansible_runner.inventory_file)


@pytest.fixture(autouse=True)
def _mounted(host: Host) -> Iterator[None]:
    """Each test begins and ends with a client that runs."""
    host.check_output("systemctl start %s", UNIT)
    yield
    host.check_output("systemctl start %s", UNIT)


def publish(server: Host, script: str) -> None:
    """Change the published tree by a shell script that runs in it."""
    server.check_output(f"gridstead-cvmfs transaction {FQRN}")
    server.check_output(
        "sh -c %s", f"(set -e; cd {TREE}; {script}) && gridstead-cvmfs publish {FQRN} || {{ gridstead-cvmfs abort {FQRN}; exit 1; }}"
    )


def reload(host: Host) -> None:
    """Have the client look for a new revision, and wait until it has."""
    server = host.get_host("ansible://frontend001", ansible_inventory=host.backend.ansible_runner.inventory_file)
    # Above the line of dashes: the signature below it may have any byte.
    wanted = server.check_output(f"sed -n '/^--$/q; s/^S//p' {WEB}/.cvmfspublished")
    host.check_output("systemctl reload %s", UNIT)
    until(f"revision {wanted}\n{journal(host)}", lambda: attribute(host, "user.revision") == wanted)


def test_mounted_at_boot_and_by_a_user_of_its_own(host: Host) -> None:
    service = host.service(UNIT)
    assert service.is_running, journal(host)
    assert service.is_enabled
    mount = host.mount_point(MOUNT)
    assert mount.filesystem == "fuse.gridstead-cvmfs"
    assert {"ro", "nosuid", "nodev"} <= set(mount.options)
    main = host.check_output("systemctl show --property=MainPID --value %s", UNIT)
    assert host.check_output("ps -o user= -p %s", main) == "cvmfs"


def test_only_the_sites_repositories(host: Host) -> None:
    assert host.file("/root/once").exists, "there was none before"
    assert host.run("systemctl is-enabled gridstead-cvmfs@gone.grid.test.service").stdout.strip() == "disabled"
    assert "gone.grid.test" not in host.check_output("cat /proc/self/mounts")


def test_software_runs(host: Host) -> None:
    said = host.run(f"runuser -u nobody -- {MOUNT}/software/hello/current/bin/hello")
    assert said.rc == 0, f"{said.stderr}\n{journal(host)}"
    assert "26214400 bytes" in said.stdout


def test_every_byte_and_attribute(host: Host, server: Host) -> None:
    publish(
        server,
        "rm -rf all; mkdir -p all/nested/deep all/dir; touch all/nested/.cvmfscatalog all/empty; echo deep >all/nested/deep/file;"
        "head -c 40000000 /dev/urandom >all/chunked; head -c 300000 /dev/urandom >all/whole; ln all/whole all/hardlink;"
        "ln -s '$(GRID_ARCH:-x86_64)/lib' all/variant; ln -s ../dir all/dir/link; printf x >\"all/$(printf 'n\\303\\244me\\377')\"; chmod 750 all/whole;"
        "for n in $(seq 700); do echo $n >all/dir/file-$n; done",
    )
    reload(host)
    assert listing(host, f"{MOUNT}/all") == listing(server, f"{TREE}/all"), journal(host)
    inodes = host.check_output(f"stat --format=%i {MOUNT}/all/whole {MOUNT}/all/hardlink").split()
    assert inodes[0] == inodes[1]
    assert set(host.check_output(f"ls -a {MOUNT}/all/dir").split()) >= {".", "..", "file-1", "file-700"}


def test_attributes(host: Host) -> None:
    assert attribute(host, "user.fqrn") == FQRN
    assert len(attribute(host, "user.root_hash")) == 40
    assert int(attribute(host, "user.chunks", f"{MOUNT}/software/hello/current/share/data.bin")) > 1
    program = "import os, sys; print(*(name for name in os.listxattr(sys.argv[1]) if os.getxattr(sys.argv[1], name) is not None))"
    names = host.check_output(shlex.join(["python3", "-c", program, MOUNT])).split()
    assert {"user.nclg", "user.expires", "user.host", "user.proxy", "user.pubkeys"} <= set(names)


def test_nothing_can_be_written(host: Host) -> None:
    refused = host.run(f"touch {MOUNT}/x")
    assert refused.rc != 0
    assert "Read-only file system" in refused.stderr


def test_new_revision_within_the_ttl(host: Host, server: Host) -> None:
    """A name that was absent, a changed file, and one that is open meanwhile."""
    publish(server, "echo one >version; rm -f later")
    reload(host)
    assert host.run(f"cat {MOUNT}/later").rc != 0
    assert host.check_output(f"cat {MOUNT}/version") == "one"
    host.check_output("rm -f /run/read-now /run/reader")
    host.check_output(
        f"systemd-run --quiet --unit=reader sh -c 'exec 3<{MOUNT}/version; until [ -e /run/read-now ]; do sleep 0.2; done; cat <&3 >/run/reader'"
    )
    publish(server, "echo two >version; echo here >later")
    began = time.monotonic()
    until("the second revision", lambda: host.run(f"cat {MOUNT}/version").stdout == "two\n", seconds=15)
    assert host.check_output(f"cat {MOUNT}/later") == "here", f"after {time.monotonic() - began:.1f} s"
    host.check_output("touch /run/read-now")
    until("the reader's end", lambda: not host.service("reader").is_running, seconds=60)
    assert host.file("/run/reader").content_string == "one\n"


def test_web_server_away_and_back(host: Host, server: Host) -> None:
    publish(server, "echo cached >cached; date +%s%N >not-cached")
    fresh = server.check_output(f"cat {TREE}/not-cached")
    reload(host)
    assert host.check_output(f"cat {MOUNT}/cached") == "cached"
    try:
        server.check_output("systemctl stop nginx")
        assert host.check_output(f"cat {MOUNT}/cached") == "cached"
        failed = host.run(f"cat {MOUNT}/not-cached")
        assert "Input/output error" in failed.stderr, "in the end; a server that is only started again is waited for"
        host.check_output("systemctl restart %s", UNIT)
        assert host.check_output(f"cat {MOUNT}/cached") == "cached", "mounted from the cache"
    finally:
        server.check_output("systemctl start nginx")
    until("the client to recover", lambda: host.run(f"cat {MOUNT}/not-cached").stdout.strip() == fresh)


def test_a_web_server_that_starts_again_kills_no_reader(host: Host, server: Host) -> None:
    """Files are read for the first time, one after the other, while nginx is restarted again and again."""
    publish(server, "rm -rf restart; mkdir restart; for n in $(seq 60); do echo $n$(date +%s%N) >restart/$n; done")
    reload(host)
    server.check_output("systemd-run --quiet --unit=restarting sh -c 'for n in 1 2 3; do systemctl restart nginx; sleep 1; done'")
    read = host.run(f"for n in $(seq 60); do cat {MOUNT}/restart/$n || exit 1; sleep 0.1; done")
    assert read.rc == 0, f"{read.stderr}\n{journal(host)}"
    assert len(read.stdout.split()) == 60
    until("nginx to be left alone", lambda: not server.service("restarting").is_running)


def test_one_forbidden_object_is_nobody_elses(host: Host, server: Host) -> None:
    publish(server, "echo forbidden-$$ >forbidden; rm -rf allowed; mkdir allowed; for n in 1 2 3; do echo allowed-$n-$$ >allowed/$n; done")
    reload(host)
    digest = attribute(host, "user.hash", f"{MOUNT}/forbidden")
    path = f"{WEB}/data/{digest[:2]}/{digest[2:]}"
    server.check_output(f"mv {path} {path}.away; ln -s {path}.away {path}")  # the role's nginx answers 403 for links
    try:
        for number in (1, 2, 3):
            assert "Input/output error" in host.run(f"cat {MOUNT}/forbidden").stderr
            assert "answers 403" in journal(host)
            assert host.check_output(f"cat {MOUNT}/allowed/{number}") == server.check_output(f"cat {TREE}/allowed/{number}")
    finally:
        server.check_output(f"mv {path}.away {path}")


def test_many_readers_that_wait_keep_nobody_else_waiting(host: Host, server: Host) -> None:
    """More than a hundred processes want what the server does not give; what is cached is read meanwhile, and attributes too."""
    publish(server, "echo at-hand >at-hand; rm -rf wanted; mkdir wanted; for n in $(seq 120); do echo $n$(date +%s%N) >wanted/$n; done")
    reload(host)
    assert host.check_output(f"ls {MOUNT}/wanted | wc -l; cat {MOUNT}/at-hand").split() == ["120", "at-hand"]
    server.check_output("systemctl kill --signal=STOP nginx")
    try:
        script = f"for n in $(seq 120); do cat {MOUNT}/wanted/$n >/dev/null 2>&1 & done; cat {MOUNT}/at-hand; jobs -r | wc -l"
        said = host.check_output("bash -c %s", script)
        assert said.split() == ["at-hand", "120"], "all of them still wait"
    finally:
        server.check_output("systemctl kill --signal=CONT nginx")


def test_killed(host: Host) -> None:
    main = "systemctl show --property=MainPID --value %s"
    killed = host.check_output(main, UNIT)
    host.check_output("systemctl kill --signal=KILL %s", UNIT)
    until("another process", lambda: host.check_output(main, UNIT) not in {killed, "0"})
    until(f"the mount to come back\n{journal(host)}", lambda: host.run(f"{MOUNT}/software/hello/current/bin/hello").rc == 0)
    assert host.check_output(f"grep -c ' {MOUNT} ' /proc/self/mounts") == "1", "no dead mount below"


def test_corrupt_object_on_the_server(host: Host, server: Host) -> None:
    """An error, never wrong bytes; and well again when the server is."""
    publish(server, "head -c 100000 /dev/urandom >fragile")
    reload(host)
    digest = attribute(host, "user.hash", f"{MOUNT}/fragile")
    path = f"{WEB}/data/{digest[:2]}/{digest[2:]}"
    flip = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(5000); b = f.read(1); f.seek(5000); f.write(bytes([b[0] ^ 4]))"
    server.check_output(shlex.join(["python3", "-c", flip, path]))
    failed = host.run(f"cat {MOUNT}/fragile >/dev/null")
    assert "Input/output error" in failed.stderr
    server.check_output(shlex.join(["python3", "-c", flip, path]))
    wanted = server.check_output(f"sha256sum <{TREE}/fragile")
    until("the right bytes", lambda: host.run(f"sha256sum <{MOUNT}/fragile").stdout.strip() == wanted)


def test_corrupt_cache(host: Host, server: Host) -> None:
    publish(server, "head -c 100000 /dev/urandom >kept")
    reload(host)
    wanted = server.check_output(f"sha256sum <{TREE}/kept")
    assert host.check_output(f"sha256sum <{MOUNT}/kept") == wanted
    digest = attribute(host, "user.hash", f"{MOUNT}/kept")
    host.check_output("systemctl stop %s", UNIT)  # and with it the kernel's copy
    cached = f"/var/lib/cvmfs/shared/{digest[:2]}/{digest[2:]}"
    host.check_output(f"dd if=/dev/zero of={cached} bs=1 seek=70000 count=10 conv=notrunc")
    host.check_output("systemctl start %s", UNIT)
    assert host.check_output(f"sha256sum <{MOUNT}/kept") == wanted
    assert "fetched again" in journal(host)


def test_wrong_key_is_refused(host: Host, server: Host) -> None:
    server.check_output("test -e /etc/cvmfs/keys/other.grid.test.pub || gridstead-cvmfs create other.grid.test")
    key = server.file("/etc/cvmfs/keys/other.grid.test.pub").content_string
    host.check_output("sh -c %s x %s", 'printf %s "$1" >/run/other.pub', key)
    options = "--set CVMFS_PUBLIC_KEY=/run/other.pub --set CVMFS_CACHE_BASE=/var/tmp/other-cache"
    refused = host.run(f"mkdir -p /run/elsewhere; gridstead-cvmfs mount {options} {FQRN} /run/elsewhere")
    assert refused.rc == 1
    assert "not signed by any of the 1 master keys" in refused.stderr
    assert not host.mount_point("/run/elsewhere").exists


def test_a_revoked_revision_is_shown_no_longer(host: Host) -> None:
    """The mount ends, and none comes back before the node's blacklist lets it."""
    blacklist = "/etc/cvmfs/blacklist"
    try:
        host.check_output(f"echo '<{FQRN} 1000000' >{blacklist}; systemctl reload {UNIT}")
        until("the mount to end", lambda: host.run(f"mountpoint --quiet {MOUNT}").rc != 0)
        until("its reason", lambda: f"of {FQRN} is on this node's blacklist" in journal(host))
        host.run("systemctl restart %s", UNIT)
        assert host.run(f"mountpoint --quiet {MOUNT}").rc != 0
    finally:
        host.check_output(f"rm -f {blacklist}")
    until("the mount to come back", lambda: host.run(f"{MOUNT}/software/hello/current/bin/hello").rc == 0)


def test_check(host: Host) -> None:
    assert "all is well" in host.check_output(f"gridstead-cvmfs mount --check {FQRN}")


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_busy_mount_can_be_restarted(host: Host, user: str) -> None:
    """A process that stands in it does not block the restart."""
    host.check_output(f"systemd-run --quiet --collect --unit=busy-{user} --property=User={user} --working-directory={MOUNT} sleep 60")
    try:
        began = time.monotonic()
        host.check_output("systemctl restart %s", UNIT)
        assert time.monotonic() - began < 25
        assert host.run(f"ls {MOUNT}").rc == 0
    finally:
        host.run(f"systemctl stop busy-{user}")


#: As in converge.yml: where the stratum 0 listens, and what stands in default.local, which all clients read.
SETTINGS = {
    "cvmfs_stratum0_listen": "8001",
    "cvmfs_client_environment": {"GRID_ARCH": "aarch64 with a space"},
    "cvmfs_client_settings": {"CVMFS_TIMEOUT_DIRECT": 3},
}


def test_only_the_client_whose_settings_changed_is_restarted(host: Host, server: Host) -> None:
    """A repository comes, and later its own settings change: programs that run from the other one notice nothing of it."""
    new = "other.grid.test"
    server.check_output(f"test -e /etc/cvmfs/keys/{new}.pub || gridstead-cvmfs create {new}")
    repositories = [{"name": FQRN}, {"name": new}]
    before = instances(host, UNIT)
    try:
        run_role(host, "cvmfs_client", {**SETTINGS, "cvmfs_client_repositories": repositories})
        assert host.mount_point(f"/cvmfs/{new}").exists
        assert not started_anew(before, instances(host, UNIT))
        both = instances(host, UNIT, f"gridstead-cvmfs@{new}.service")
        repositories = [{"name": FQRN}, {"name": new, "settings": {"CVMFS_MAX_TTL": 7}}]
        run_role(host, "cvmfs_client", {**SETTINGS, "cvmfs_client_repositories": repositories}, cut_off=True)
        assert not started_anew(both, instances(host, *both))
        run_role(host, "cvmfs_client", {**SETTINGS, "cvmfs_client_repositories": repositories})
        assert started_anew(both, instances(host, *both)) == {f"gridstead-cvmfs@{new}.service"}
    finally:
        run_role(host, "cvmfs_client", SETTINGS)
    assert not host.mount_point(f"/cvmfs/{new}").exists


def test_new_code_restarts_the_client_whoever_brought_it(host: Host, tmp_path: Path) -> None:
    """On a host that is a stratum 0 too, its role has brought the code when the client's role comes."""
    source = tmp_path / "gridstead"
    shutil.copytree(ROOT / "tools" / "gridstead", source)
    with (source / "cvmfs" / "__init__.py").open("a") as file:
        file.write("# another digest\n")
    code = {"gridstead_package_source": str(source)}
    before = instances(host, UNIT)
    try:
        run_role(host, "gridstead_package", code)
        run_role(host, "cvmfs_client", {**SETTINGS, **code})
        assert started_anew(before, instances(host, UNIT)) == {UNIT}
    finally:
        run_role(host, "cvmfs_client", SETTINGS)
