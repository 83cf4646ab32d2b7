"""Two sites of one machine that are worked on at the same time: neither sees, waits for or harms the other."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from leftovers import leftovers
from support import CLUSTER, cluster, standing_still

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEC = """\
name: {name}
provider: podman
nodes:
  node:
    count: 1
    volumes:
      - {{name: data, size: 16M, mount: /data, filesystem: ext4}}
"""
#: The second begins as the first: what belongs to one must be told by the whole name.
NAMES = ("twin", "twin-b")


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The cluster.yml of two clusters of which nothing exists yet."""
    specs = [tmp_path / name / "cluster.yml" for name in NAMES]
    for spec, name in zip(specs, NAMES, strict=True):
        spec.parent.mkdir()
        spec.write_text(SPEC.format(name=name))
    yield specs[0], specs[1]
    for spec in specs:
        cluster("--site", spec, "down", "--volumes", "--yes")
    assert [leftovers(name) for name in NAMES] == [[], []]


def started(spec: Path, *arguments: str) -> subprocess.Popen[str]:
    """tools/cluster under way: its first step is done, others are not."""
    process = subprocess.Popen(
        [str(CLUSTER), *arguments, "--site", str(spec)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None, "stderr=PIPE makes it one"
    for line in process.stderr:
        if "✓" in line:
            return process
    pytest.fail(f"{arguments} ended with {process.wait()} and did no step")


def ended(process: subprocess.Popen[str]) -> None:
    """It goes on to its end, and that is a good one."""
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told


def whole(spec: Path) -> bool:
    """Its node is there and answers, and nothing is left to do."""
    for node in json.loads(cluster("inventory", "--site", spec).stdout)["_meta"]["hostvars"]:
        assert cluster("ssh", node, "--site", spec, "--", "hostname").stdout.strip() == node
    return json.loads(cluster("plan", "--site", spec, "--json").stdout) == []


def test_one_comes_while_the_other_is_half_made(twins: tuple[Path, Path]) -> None:
    first, second = twins
    half = started(first, "up", "--no-configure")
    with standing_still(half):
        cluster("up", "--no-configure", "--site", second)
    ended(half)
    assert whole(first)
    assert whole(second)


def test_one_goes_while_the_other_is_half_made(twins: tuple[Path, Path]) -> None:
    """The last cluster to go takes down what all share: not while another one is on its way."""
    first, second = twins
    cluster("up", "--no-configure", "--site", second)
    half = started(first, "up", "--no-configure")
    with standing_still(half):
        cluster("down", "--volumes", "--yes", "--site", second)
    assert leftovers(NAMES[1]) == []
    ended(half)
    assert whole(first)


def test_one_comes_while_the_other_is_half_gone(twins: tuple[Path, Path]) -> None:
    first, second = twins
    cluster("up", "--no-configure", "--site", first)
    half = started(first, "down", "--volumes", "--yes")
    with standing_still(half):
        cluster("up", "--no-configure", "--site", second)
    ended(half)
    assert whole(second)
    assert leftovers(NAMES[0]) == []


def test_both_at_once(twins: tuple[Path, Path]) -> None:
    """With nobody held back: they share podman, its leases, the image and the processors."""
    for words in (("up", "--no-configure"), ("stop",), ("up", "--no-configure"), ("down", "--volumes", "--yes")):
        runs = [started(spec, *words) for spec in twins]
        for run in runs:
            ended(run)
        if words[0] == "up":
            assert [whole(spec) for spec in twins] == [True, True]
