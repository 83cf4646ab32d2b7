"""Nodes have the checkout's package, whole, and no older ones pile up."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from testinfra.host import Host

testinfra_hosts = ["ansible://cvmfs_stratum0", "ansible://cvmfs_client"]

SOURCE = Path(__file__).parents[5] / "tools/gridstead"
HOME = "/usr/local/lib/gridstead"
#: Digests of all modules below a directory, by their paths.
DIGESTS = (
    "import hashlib, pathlib, sys; top = pathlib.Path(sys.argv[1]);"
    "print(*sorted(f'{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(top)}' for p in top.rglob('*.py')), sep='\\n')"
)


def in_use(host: Host) -> str:
    """The directory that the command takes the package from."""
    return str(host.check_output("sed -n 's/^sys.path.insert(0, \"\\(.*\\)\")$/\\1/p' /usr/local/bin/gridstead-cvmfs"))


def test_it_is_the_checkouts(host: Host) -> None:
    there = dict(
        reversed(line.split(" ", 1)) for line in host.check_output(shlex.join(["python3", "-c", DIGESTS, in_use(host)])).splitlines()
    )
    here = {
        f"gridstead/{path.relative_to(SOURCE)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("cvmfs", "pki")
        for path in (SOURCE / part).rglob("*.py")
    }
    assert here
    assert {path: digest for path, digest in there.items() if "/cvmfs/" in path or "/pki/" in path} == here


def test_the_command_runs_for_everybody(host: Host) -> None:
    said = host.run("runuser -u nobody -- gridstead-cvmfs --help")
    assert said.rc == 0, said.stderr
    assert "publish" in said.stdout


def test_an_unpacking_that_was_cut_off_leaves_nothing_half(host: Host) -> None:
    """Fed half an archive, as by a connection that ends: no directory, and the old package is what runs."""
    unpack = (SOURCE.parent.parent / "roles/gridstead_package/files/unpack.py").read_text()
    before = host.check_output(f"ls -A {HOME}")
    cut = f"tar --create --gzip --directory {in_use(host)} gridstead | head -c 20000 | base64"
    assert host.run("sh -c %s x %s", f'{cut} | python3 -I -c "$1" {HOME}/cut', unpack).rc != 0
    assert host.check_output(f"ls -A {HOME}") == before
