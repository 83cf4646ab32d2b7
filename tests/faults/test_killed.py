"""`up` and `down`, killed after every step: the next run completes what was begun, and nothing is there twice or left behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gridstead.cluster.host import Host
from gridstead.cluster.providers.podman.engine import RUNTIME, Podman
from leftovers import leftovers
from support import cluster, killed_after, two_at_once

if TYPE_CHECKING:
    from pathlib import Path

#: How many runs at least must have been killed: steps that need nothing of each other end at the same moment, the more the faster the machine.
MANY = 2


def test_up_and_down_killed_after_every_step(small: Path) -> None:
    names = {"server001", "worker001", "worker002"}
    steps = len(json.loads(cluster("plan", "--site", small, "--json").stdout))
    assert steps == 11
    # Before the first run that is killed, so that none of them stops to build the image.
    cluster("image", "build")
    # Each run is killed after the first step that it completes, with whatever else is under way, until one has none left.
    killed = 0
    while killed_after(1, "up", "--site", small, "--no-configure"):
        killed += 1
        assert killed <= steps, "runs that were killed got no further"
    assert killed >= MANY, f"only {killed} runs of up were killed"
    cluster("up", "--site", small, "--no-configure")
    seen = json.loads(cluster("inventory", "--site", small).stdout)["_meta"]["hostvars"]
    assert set(seen) == names
    assert len({node["gridstead_address"] for node in seen.values()}) == len(names)
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []
    killed = 0
    while killed_after(1, "down", "--site", small, "--volumes", "--yes"):
        killed += 1
        assert killed <= steps, "runs that were killed got no further"
    assert killed >= MANY, f"only {killed} runs of down were killed"
    cluster("down", "--site", small, "--volumes", "--yes")
    assert leftovers("faults") == []


@pytest.mark.parametrize("step", [2, 5, 8])
def test_one_run_completes_what_a_killed_one_began(small: Path, step: int) -> None:
    """As above, but from a kill in the midst of many steps, and with nothing killed in between."""
    assert killed_after(step, "up", "--site", small, "--no-configure")
    cluster("up", "--site", small, "--no-configure")
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []
    assert killed_after(step, "down", "--site", small, "--volumes", "--yes")
    cluster("down", "--site", small, "--volumes", "--yes")
    assert leftovers("faults") == []


def test_two_at_once(small: Path) -> None:
    two_at_once(small, "--no-configure", seconds=120)


@pytest.mark.machine  # it writes podman's one table of addresses
def test_an_address_that_podman_never_gave_back(small: Path) -> None:
    """What podman killed in the middle of a start leaves: a lease whose holder is gone, which no removal of a network ends."""
    cluster("up", "--site", small, "--no-configure")
    leases = RUNTIME / "networks" / "ipam.db"
    before = leases.read_bytes()
    podman = Podman(Host())
    podman("rm", "--force", "--time", "0", "faults-worker001")
    leases.write_bytes(before)
    cluster("up", "--site", small, "--no-configure")
    assert leases.read_bytes() != before
    # The others' leases were forgotten with it: they end and start like any node.
    cluster("stop", "--site", small)
    cluster("up", "--site", small, "--no-configure")
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []
