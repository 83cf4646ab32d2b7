"""A site made by an earlier commit, with jobs running, is taken on by this checkout: nothing is lost and no node is made anew."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from gridstead.cluster.host import Host
from gridstead.cluster.providers.podman.engine import Podman
from support import ROOT, Node, Site, cluster, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The commit whose sites must go on. It moves with each release, to the last one.
EARLIER = "d568e2af1b"
NAME = "gridstead-upgrade"


@dataclass(frozen=True)
class Checkout:
    """The project at an earlier commit.

    Args:
        root: where it lies.
        scratch: where an environment of its own may lie.
    """

    root: Path
    scratch: Path

    def cluster(self, *arguments: str | Path, timeout: float = 1800) -> str:
        """Run its tools/cluster; what it printed."""
        env = {**os.environ, "GRIDSTEAD_VENV": str(self.scratch / "venv")}
        program: list[str | Path] = [self.root / "tools" / "cluster"]
        if (self.root / "requirements/run.txt").read_bytes() == (ROOT / "requirements/run.txt").read_bytes():
            # The same requirements: this run's environment has them, and only the code is the other's.
            program = [sys.executable, "-m", "gridstead.cluster"]
            env |= {"PYTHONPATH": str(self.root / "tools")}
        done = subprocess.run(
            [*program, *arguments],
            env=env,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """The earlier commit, checked out."""
    scratch = tmp_path_factory.mktemp("earlier")
    if subprocess.run(["git", "cat-file", "-e", f"{EARLIER}^{{commit}}"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"this clone has no commit {EARLIER}: it is shallow")
    root = scratch / "checkout"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", root, EARLIER], cwd=ROOT, check=True, capture_output=True)
    try:
        yield Checkout(root, scratch)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", root], cwd=ROOT, check=True, capture_output=True)


@contextlib.contextmanager
def image_kept() -> Iterator[None]:
    """Keep this checkout's node image: one that builds its own image removes those of others that no node uses."""
    name = cluster("image", "build", timeout=1800).stdout.strip()
    podman, kept = Podman(Host()), "localhost/kept-by-the-tests:1"
    podman("tag", name, kept)
    try:
        yield
    finally:
        podman("tag", kept, name)
        podman("untag", kept, kept)


@pytest.fixture(scope="module")
def upgraded(earlier: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a whole site that the earlier commit has made; what happens to it is the test's business."""
    where = tmp_path_factory.mktemp("upgraded") / NAME
    shutil.copytree(earlier.root / "inventories" / "local", where)
    spec = where / "cluster.yml"
    spec.write_text(re.sub(r"(?m)^name: .*$", f"name: {NAME}", spec.read_text()))
    try:
        with image_kept():
            earlier.cluster("--site", where, "up", "--no-verify")
        yield where
    finally:
        cluster("--site", where, "down", "--volumes", "--yes")


def boot_times(site: Site) -> dict[str, str]:
    """When each node's init started."""
    return {name: node.out("stat -c %Z /proc/1") for name, node in site.nodes.items()}


def test_the_next_commit_takes_a_site_on_with_its_jobs(upgraded: Path) -> None:
    site = Site.look(upgraded)
    controller, computes = site.first("slurm_controller"), site.having("slurm_node")
    before = boot_times(site)
    done = [controller.out("sbatch --parsable --wait --output=/dev/null --wrap=true", user="grid") for _ in range(2)]
    # They wait for a word that comes after the upgrade: however long it takes, they run through all of it.
    running = [
        controller.out(
            f"sbatch --parsable --nodelist={node.name} --output=upgrade-%j.out"
            " --wrap='until [ -e ~/upgraded ]; do sleep 0.5; done; echo went on'",
            user="grid",
        )
        for node in computes
    ]
    until("the jobs to run", lambda: _states(controller, running) == ["RUNNING"] * len(running))

    result = json.loads(cluster("--site", upgraded, "up", "--json", timeout=1800).stdout)

    assert not [step for step in result["steps"] if step["action"] in ("replace", "delete", "create") and step["name"] in before], result
    site = Site.look(upgraded)
    controller = site.first("slurm_controller")
    assert boot_times(site) == before
    assert _states(controller, running) == ["RUNNING"] * len(running)
    controller.out("touch ~/upgraded", user="grid")
    until("the jobs to end", lambda: not controller.out("squeue --noheader"))
    for job in running:
        assert controller.out(f"cat ~/upgrade-{job}.out", user="grid") == "went on"
    wanted = dict.fromkeys((*done, *running), "COMPLETED")
    until("all jobs in the accounting", lambda: _accounted(controller, wanted) == wanted)
    cluster("--site", upgraded, "verify", "--quick")
    again = json.loads(cluster("--site", upgraded, "up", "--json").stdout)
    assert again["changed"] is False, again


def _states(controller: Node, jobs: list[str]) -> list[str]:
    """What Slurm says each job does."""
    return [controller.out(f"squeue --noheader --jobs={job} --format=%T") for job in jobs]


def _accounted(controller: Node, jobs: dict[str, str]) -> dict[str, str]:
    """What the accounting says became of each job."""
    listed = controller.out(f"sacct --noheader --parsable2 --allocations --jobs={','.join(jobs)} --format=jobid,state")
    return dict(line.split("|") for line in listed.splitlines())
