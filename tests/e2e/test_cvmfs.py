"""Software from CVMFS: jobs run it, a second publication reaches mounted clients, and a web server that goes away takes nothing with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from support import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support import Node, Site

HELLO = "software/hello/current/bin/hello"


@pytest.fixture(scope="module")
def stratum0(site: Site) -> Node:
    """Where the site's own repository is published."""
    return site.first("cvmfs_stratum0")


@pytest.fixture(scope="module")
def clients(site: Site) -> list[Node]:
    """The nodes that mount it."""
    found = site.having("cvmfs_client")
    assert found, f"site {site.name} has no node with cvmfs_client"
    return found


@pytest.fixture(scope="module")
def fqrn(site: Site) -> str:
    """The repository."""
    return f"sw.{site.domain}"


@pytest.fixture
def publish(stratum0: Node, fqrn: str) -> Iterator[Callable[[str], int]]:
    """Change the repository by a shell script in its tree; gives the new revision. What was there before is published again at the end."""
    before = revision_published(stratum0, fqrn)

    def change(script: str) -> int:
        stratum0.sh(f"gridstead-cvmfs transaction {fqrn}")
        done = stratum0.sh(f"(set -e; cd /var/spool/cvmfs/{fqrn}/tree; {script}) && gridstead-cvmfs publish {fqrn}", check=False)
        if done.rc:
            stratum0.sh(f"gridstead-cvmfs abort {fqrn}", check=False)
            pytest.fail(str(done))
        return revision_published(stratum0, fqrn)

    yield change
    if revision_published(stratum0, fqrn) != before:
        stratum0.sh(f"gridstead-cvmfs rollback {fqrn} {before}")


def revision_published(stratum0: Node, fqrn: str) -> int:
    """The repository's current revision."""
    # Only above the line of dashes: the signature below it may have any byte, also a line that begins with S.
    return int(stratum0.out(f"sed -n '/^--$/q; s/^S//p' /srv/cvmfs/{fqrn}/.cvmfspublished"))


def ttl(stratum0: Node, fqrn: str) -> int:
    """How long clients go by what they have, with what caches on the way add to it, seconds."""
    return int(stratum0.out(f"grep --text ^D /srv/cvmfs/{fqrn}/.cvmfspublished")[1:]) + 20


def reload(node: Node, fqrn: str, revision: int) -> None:
    """Have a client look for a new revision now, and wait until it shows it."""
    node.sh(f"systemctl reload gridstead-cvmfs@{fqrn}.service")
    query = f'python3 -c \'import os; print(os.getxattr("/cvmfs/{fqrn}", "user.revision").decode())\''
    until(f"revision {revision} on {node.name}", lambda: node.out(query) == str(revision), seconds=30)


def test_a_job_runs_software_from_cvmfs(controller: Node, computes: list[Node], fqrn: str) -> None:
    """An interpreter script, a shared library and a file of more than 24 MB, on every compute node."""
    for node in computes:
        said = controller.out(f"cd /; srun --nodelist={node.name} /cvmfs/{fqrn}/{HELLO} </dev/null", user="alice")
        assert f"Hello from {node.name}" in said, f"{said}\n{node.journal(f'gridstead-cvmfs@{fqrn}')}"
        assert "26214400 bytes" in said


def test_every_client_shows_what_is_published(stratum0: Node, clients: list[Node], fqrn: str) -> None:
    wanted = stratum0.out(f"gridstead-cvmfs cat {fqrn} /software/hello/1.0/share/data.bin | sha256sum")
    for node in clients:
        assert node.out(f"sha256sum </cvmfs/{fqrn}/software/hello/1.0/share/data.bin") == wanted, node.name


def test_a_second_publication_is_seen_within_the_ttl(stratum0: Node, clients: list[Node], fqrn: str, publish: Callable[[str], int]) -> None:
    """By clients that are not told, that have looked for the name already, and that have the old revision mounted all the while."""
    for node in clients:
        assert node.sh(f"cat /cvmfs/{fqrn}/e2e/version", check=False).rc != 0
    publish("mkdir -p e2e; echo second >e2e/version")
    began = time.monotonic()
    patience = ttl(stratum0, fqrn)
    for node in clients:
        until(
            f"the second publication on {node.name}",
            lambda node=node: node.sh(f"cat /cvmfs/{fqrn}/e2e/version", check=False).stdout == "second\n",
            seconds=patience - (time.monotonic() - began),
            pause=1,
        )


def test_without_the_web_server(stratum0: Node, controller: Node, computes: list[Node], fqrn: str, publish: Callable[[str], int]) -> None:
    """What is cached is read, and jobs run it; what is not fails in the end; with the server all is well again."""
    revision = publish("mkdir -p e2e; date +%s%N >e2e/not-cached")
    fresh = stratum0.out(f"gridstead-cvmfs cat {fqrn} /e2e/not-cached")
    node = computes[0]
    reload(node, fqrn, revision)
    run = f"cd /; srun --nodelist={node.name} /cvmfs/{fqrn}/{HELLO} </dev/null"
    controller.sh(run, user="alice")
    try:
        stratum0.sh("systemctl stop nginx")
        assert "Hello from" in controller.out(run, user="alice")
        failed = node.sh(f"cat /cvmfs/{fqrn}/e2e/not-cached", check=False)
        assert "Input/output error" in failed.stderr, str(failed)
    finally:
        stratum0.sh("systemctl start nginx")
    until("the client to recover", lambda: node.sh(f"cat /cvmfs/{fqrn}/e2e/not-cached", check=False).stdout.strip() == fresh, seconds=30)


def test_a_restart_of_the_web_server_kills_no_job(
    stratum0: Node, controller: Node, computes: list[Node], fqrn: str, publish: Callable[[str], int]
) -> None:
    """A job that reads files for the first time, one after the other, while nginx is restarted again and again."""
    revision = publish("mkdir -p e2e/restart; for n in $(seq 60); do echo $n-$(date +%s%N) >e2e/restart/$n; done")
    node = computes[0]
    reload(node, fqrn, revision)
    read = f"cd /; srun --nodelist={node.name} sh -c 'for n in $(seq 60); do cat /cvmfs/{fqrn}/e2e/restart/$n || exit 1; sleep 0.1; done'"
    stratum0.sh("systemd-run --quiet --collect --unit=e2e-restarting sh -c 'for n in 1 2 3; do systemctl restart nginx; sleep 1; done'")
    said = controller.sh(f"{read} </dev/null", user="alice", check=False)
    assert said.rc == 0, f"{said}\n{node.journal(f'gridstead-cvmfs@{fqrn}')}"
    assert len(said.stdout.split()) == 60
    until("nginx to be left alone", lambda: stratum0.sh("systemctl is-active e2e-restarting", check=False).rc != 0, seconds=60)


def test_a_killed_client_comes_back(computes: list[Node], fqrn: str) -> None:
    node, unit = computes[-1], f"gridstead-cvmfs@{fqrn}.service"
    main = f"systemctl show --property=MainPID --value {unit}"
    killed = node.out(main)
    node.sh(f"systemctl kill --signal=KILL {unit}")
    until("another process", lambda: node.out(main) not in {killed, "0"}, seconds=30)
    until(
        f"the mount of {node.name}",
        lambda: node.sh(f"test -x /cvmfs/{fqrn}/{HELLO}", check=False).rc == 0,
        seconds=30,
    )


def test_alice_can_change_nothing(computes: list[Node], fqrn: str) -> None:
    refused = computes[0].sh(f"touch /cvmfs/{fqrn}/x", user="alice", check=False)
    assert "Read-only file system" in refused.stderr, str(refused)
    assert computes[0].sh("ls /var/lib/cvmfs/shared", user="alice", check=False).rc != 0, "the cache is nobody's business"


def test_the_operator_publishes_a_directory(site: Site, stratum0: Node, fqrn: str, tmp_path: Path) -> None:
    """From the operator's machine, with the operator's command; and it is undone the same way."""
    before = revision_published(stratum0, fqrn)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "answer").write_text("#!/bin/sh\necho 42\n")
    (tmp_path / "bin" / "answer").chmod(0o755)
    site.cluster("cvmfs", "publish", fqrn, tmp_path)
    try:
        assert revision_published(stratum0, fqrn) > before
        assert "bin" in site.cluster("cvmfs", "ls", fqrn).stdout.split()
        assert site.cluster("cvmfs", "cat", fqrn, "/bin/answer").stdout == "#!/bin/sh\necho 42\n"
        site.cluster("cvmfs", "check", fqrn)
    finally:
        site.cluster("cvmfs", "rollback", fqrn, str(before))
    wrong = site.cluster("cvmfs", "publish", fqrn, tmp_path / "nowhere", check=False)
    assert wrong.returncode == 2
    assert "no such directory" in wrong.stderr
