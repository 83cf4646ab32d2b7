"""Jobs that wait make nodes, idle nodes go: `tools/cluster autoscale` on a whole site, with Slurm's own queue.

Part openstack-full runs this on virtual machines too.
"""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from support import CLUSTER, PATIENCE, Site, cluster, until

if TYPE_CHECKING:
    from pathlib import Path

    from support import Node


def submit(frontend: Node) -> str:
    """A job that has a node for itself, for longer than any test."""
    return frontend.out("sbatch --parsable --exclusive --chdir=/ --output=/dev/null --wrap='sleep 7200'", user="grid")


def queue(frontend: Node, form: str, *options: str) -> list[str]:
    return frontend.out(f"squeue --noheader --user=grid {' '.join(options)} --format='{form}'").splitlines()


def first(event: str, *command: str | Path) -> dict[str, Any]:
    """Run a command that goes on until it is interrupted; returns the first event of a name, and interrupts it then."""
    process = subprocess.Popen([CLUSTER, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None, "stdout=PIPE makes it one"
    seen: list[dict[str, Any]] = []
    try:
        with process.stdout:
            for line in process.stdout:
                seen.append(json.loads(line))
                if seen[-1]["event"] == event:
                    return seen[-1]
        pytest.fail(f"it ended without {event}: {seen}")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


@pytest.mark.timeout(3600)  # emulated machines boot for minutes
def test_waiting_jobs_make_a_node_and_an_idle_one_goes(whole: Path) -> None:
    declared = (whole / "cluster.yml").read_text()
    site = Site.look(whole)
    frontend, computes = site.first("slurm_controller"), site.having("slurm_node")
    kind, count = computes[0].kind, len(computes)
    names, new = [node.name for node in computes], f"{kind}{count + 1:03d}"
    limits = ["autoscale", "--site", str(whole), "--min", str(count), "--max", str(count + 1), kind, "--json"]
    try:
        for _ in range(count + 6):
            submit(frontend)
        until("six jobs to wait", lambda: len([why for why in queue(frontend, "%r") if why in ("Resources", "Priority")]) == 6)

        grown = cluster(*limits, "--once", timeout=600 * PATIENCE)
        assert [(it["event"], it["nodes"], it["count"]) for it in map(json.loads, grown.stdout.splitlines())] == [
            ("grow", [new], count + 1)
        ]
        until("a job on the new node", lambda: queue(frontend, "%T", f"--nodelist={new}") == ["RUNNING"])
        assert cluster(*limits, "--once").stdout == "", "no more than the limit"

        # The job on the new node goes on: of the others one is left over.
        last = queue(frontend, "%A", f"--nodelist={new}")[0]
        frontend.sh(f"scancel {' '.join(job for job in queue(frontend, '%A') if job != last)}")
        gone = first("shrink", *limits, "--idle", "5s", "--interval", "1s")
        assert (gone["nodes"], gone["count"]) == ([names[-1]], count)
        assert set(Site.look(whole).nodes) == {*site.nodes, new} - {names[-1]}
        assert queue(frontend, "%A|%T") == [f"{last}|RUNNING"]
        assert f"count: {count}" in (whole / "cluster.yml").read_text()
    finally:
        frontend.sh("scancel --user=grid")
        (whole / "cluster.yml").write_text(declared)
        cluster("--site", whole, "up", "--no-verify", timeout=600 * PATIENCE)
    assert set(Site.look(whole).nodes) == set(site.nodes)
