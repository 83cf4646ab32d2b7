"""`up` and `down`, killed at every step: the next run completes what was begun, and nothing is there twice or left behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gridstead.cluster.host import Host
from gridstead.cluster.providers.podman.engine import RUNTIME, Podman
from leftovers import leftovers
from support import cluster, killed_after, two_at_once

if TYPE_CHECKING:
    from pathlib import Path


def test_up_and_down_killed_at_every_step(small: Path) -> None:
    names = {"server001", "worker001", "worker002"}
    steps = len(json.loads(cluster("plan", "--site", small, "--json").stdout))
    assert steps == 11
    # Once through the whole plan first, so that no later run stops to build the image.
    cluster("up", "--site", small, "--no-configure")
    cluster("down", "--site", small, "--volumes")
    killed = 0
    for step in range(1, steps + 1):
        killed += killed_after(step, "up", "--site", small, "--no-configure")
        cluster("up", "--site", small, "--no-configure")
        seen = json.loads(cluster("inventory", "--site", small).stdout)["_meta"]["hostvars"]
        assert set(seen) == names, f"after a kill at step {step}"
        assert len({node["gridstead_address"] for node in seen.values()}) == len(names)
        assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []
        # And the way down, killed at as many steps.
        killed_after(step, "down", "--site", small, "--volumes")
        cluster("down", "--site", small, "--volumes")
        assert leftovers("faults") == [], f"after a kill of down at step {step}"
    assert killed >= steps - 1, f"only {killed} of {steps} runs were killed before they ended"


def test_two_at_once(small: Path) -> None:
    two_at_once(small, "--no-configure", seconds=120)


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
