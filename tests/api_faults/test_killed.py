"""`up` and `down`, killed at every step, against real APIs: the next run completes what was begun; nothing is there twice."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from project import INNER_WHOLE, WHOLE, inventory, more
from support import cluster, killed_after, two_at_once

if TYPE_CHECKING:
    from pathlib import Path


def test_up_and_down_killed_at_every_step(small: Path, member: Any) -> None:
    before = inventory(member)
    steps = len(json.loads(cluster("plan", "--site", small, "--json").stdout))
    assert steps == 19
    # Each run is killed after the first step that it completes, with whatever else is under way, until one has none left.
    killed = 0
    while killed_after(1, "up", "--site", small, "--no-wait"):
        killed += 1
        assert killed <= steps
    assert killed >= 5, f"only {killed} runs of up were killed"
    cluster("up", "--site", small, "--no-wait")
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []
    assert more(before, inventory(member)) == WHOLE
    killed = 0
    while killed_after(1, "down", "--site", small, "--volumes", "--yes"):
        killed += 1
        assert killed <= steps
    assert killed >= 5, f"only {killed} runs of down were killed"
    cluster("down", "--site", small, "--volumes", "--yes")
    assert inventory(member) == before


def test_two_at_once(inner: Path, member: Any) -> None:
    before = inventory(member)
    two_at_once(inner, "--no-wait", seconds=300)
    assert more(before, inventory(member)) == INNER_WHOLE


def test_down_without_the_state_directory(inner: Path, member: Any, tmp_path: Path, monkeypatch: Any) -> None:
    before = inventory(member)
    state = tmp_path / "state"
    monkeypatch.setenv("GRIDSTEAD_STATE", str(state))
    cluster("up", "--site", inner, "--no-wait")
    shutil.rmtree(state)
    nodes = json.loads(cluster("inventory", "--site", inner).stdout)["_meta"]["hostvars"]
    assert set(nodes) == {"server001", "worker001", "worker002"}
    shutil.rmtree(state, ignore_errors=True)
    made = inventory(member)
    refused = cluster("down", "--site", inner, "--volumes", "--yes", check=False)
    assert refused.returncode == 2
    assert "--adopt" in refused.stderr
    assert inventory(member) == made
    cluster("down", "--site", inner, "--volumes", "--yes", "--adopt")
    assert inventory(member) == before
