"""What `up` does to nodes that do not answer, and to a cluster that is another's: nothing is lost that nobody asked to lose."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from gridstead.cluster.host import Host
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.podman.engine import Podman
from support import CLUSTER, Site, cluster, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEC = """\
name: policy
provider: podman
repair: {patience: 2, boot: 60}
nodes:
  server:
    count: 1
    services: [nfs_server]
    volumes:
      - {name: data, size: 100M, mount: /data, filesystem: ext4}
  worker:
    count: 2
    services: [nfs_client]
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cluster.yml of a small cluster that is up."""
    path = tmp_path_factory.mktemp("policy") / "cluster.yml"
    path.write_text(SPEC)
    try:
        cluster("up", "--site", path, "--no-configure")
        yield path
    finally:
        path.write_text(SPEC)
        cluster("down", "--site", path, "--volumes", "--yes", "--adopt")


def up(spec: Path, *options: str, check: bool = True) -> Any:
    """Run `up` without Ansible; what it did, or, where it may fail, how it ended."""
    done = cluster("up", "--site", spec, "--no-configure", "--json", *options, check=check)
    return [(step["action"], step["name"]) for step in json.loads(done.stdout)["steps"]] if check else done


def inside(node: str, command: str) -> str:
    """Run a command on a node without ssh."""
    return Podman(Host())("exec", f"policy-{node}", "sh", "-c", command)


def shut(node: str, *, for_good: bool) -> None:
    """Have a node answer no more, until it boots or for good."""
    inside(node, "systemctl mask --now ssh.service ssh.socket" if for_good else "systemctl stop ssh.socket ssh.service")


def identity(spec: Path) -> dict[str, str]:
    """What each node has on its own disk: another word is another node."""
    word = "test -s /root/word || cat /proc/sys/kernel/random/uuid > /root/word; cat /root/word"
    return {node: inside(node, word) for node in Site.look(spec).nodes}


def test_a_node_that_comes_back_by_a_reboot_keeps_what_it_has(spec: Path) -> None:
    before = identity(spec)
    shut("worker001", for_good=False)
    assert up(spec) == [("reboot", "worker001")]
    assert identity(spec) == before


def test_a_node_without_state_is_made_anew_when_no_reboot_helps(spec: Path) -> None:
    before = identity(spec)
    shut("worker001", for_good=True)
    assert up(spec) == [("reboot", "worker001"), ("replace", "worker001")]
    after = identity(spec)
    assert {node for node in before if before[node] != after[node]} == {"worker001"}


def test_a_node_with_state_is_made_anew_only_when_asked(spec: Path) -> None:
    before = identity(spec)
    shut("server001", for_good=True)
    done = up(spec, check=False)
    assert done.returncode == 1, done.stderr
    assert "server001: no answer over ssh for 2 s" in done.stderr
    assert "reboot" in done.stderr
    assert "of server001 is lost with its own disk: the shared directories" in done.stderr
    assert f"tools/cluster up --site {spec.parent} --replace server001" in done.stderr
    assert identity(spec) == before
    assert up(spec, "--replace", "server001") == [("replace", "server001")]
    after = identity(spec)
    assert {node for node in before if before[node] != after[node]} == {"server001"}


def test_where_no_node_answers_none_is_touched(spec: Path) -> None:
    before = identity(spec)
    for node in before:
        shut(node, for_good=False)
    done = up(spec, check=False)
    assert done.returncode == 1
    assert "like every other node" in done.stderr
    for node in before:
        inside(node, "systemctl start ssh.service")
    assert up(spec) == []
    assert identity(spec) == before


def test_from_another_state_directory_it_is_anothers(spec: Path, tmp_path: Path) -> None:
    """Two users, two homes, `sudo -E`."""
    before = identity(spec)
    elsewhere = {"GRIDSTEAD_STATE": str(tmp_path / "state")}
    smaller = tmp_path / "cluster.yml"
    smaller.write_text(SPEC.replace("count: 2", "count: 1"))
    for command in (["up", "--no-configure"], ["down"], ["down", "--volumes", "--yes"], ["stop"]):
        done = cluster(*command, "--site", smaller, check=False, env=elsewhere)
        assert done.returncode == 2, done.stderr
        assert "a cluster policy is there and belongs to " in done.stderr
        assert "--adopt" in done.stderr
    assert identity(spec) == before
    assert up(spec) == []


def test_the_lock_lies_with_the_data(spec: Path, tmp_path: Path) -> None:
    first = subprocess.Popen(
        [CLUSTER, "up", "--site", spec, "--no-configure", "--replace", "worker001"],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert first.stderr is not None, "stderr=PIPE makes it one"
    with first.stderr:
        next(line for line in first.stderr if "✓" in line)
        second = cluster("down", "--site", spec, check=False, env={"GRIDSTEAD_STATE": str(tmp_path / "state")})
        first.stderr.read()
    assert first.wait(timeout=120) == 0
    assert second.returncode == 1
    assert f"process {first.pid}" in second.stderr


def test_the_state_directory_is_lost_and_the_cluster_taken_over(spec: Path) -> None:
    before = identity(spec)
    shutil.rmtree(SitePaths(spec, "policy").state)
    assert up(spec, check=False).returncode == 2
    assert up(spec, "--adopt") == []
    assert identity(spec) == before
    until("ssh to open with the new key", lambda: Site.look(spec).nodes["worker001"].booted)


def test_data_are_not_deleted_without_a_word(spec: Path) -> None:
    done = cluster("down", "--site", spec, "--volumes", check=False)
    assert done.returncode == 2
    assert "cluster policy holds data: server001-data" in done.stderr
    assert "--yes" in done.stderr
    assert up(spec) == []
