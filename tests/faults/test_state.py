"""A frontend made anew under jobs is who it was: what its services must not lose lies on a volume."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from gridstead.cluster.paths import SitePaths
from support import Node, Site, cluster, until

if TYPE_CHECKING:
    from pathlib import Path

#: Jobs by sbatch and by ARC. More of them than there are processors: the others wait.
BATCH_JOBS, ARC_JOBS = 40, 10
HOME = "/grid/home/grid"
#: A job says that it begins, waits for the gate and says that it ends: it runs for as long as the test wants.
JOB = f"echo begin $SLURM_JOB_ID >>{HOME}/began; until test -e {HOME}/gate; do sleep 1; done; echo end $SLURM_JOB_ID >>{HOME}/ended"


def identity(frontend: Node) -> dict[str, str]:
    """What a frontend that was made anew must have in common with the one before."""
    return {
        "munge key": frontend.out("sha256sum </etc/munge/munge.key"),
        "CVMFS keys": frontend.out("cd /etc/cvmfs/keys && sha256sum *"),
        "CVMFS revision": frontend.out("grep -a ^S /srv/cvmfs/sw.grid.test/.cvmfspublished"),
        "Slurm's next job": frontend.out("scontrol show config | grep NEXT_JOB_ID"),
        "accounted jobs": frontend.out(
            "sacct --allusers --noheader --allocations --parsable2 --format=jobid,user,submit --starttime=2000-01-01"
        ),
        "samples": frontend.out("readlink -f /var/lib/prometheus/metrics2; ls /var/lib/prometheus/metrics2/wal | head -n 1"),
        "ARC's jobs": frontend.out("arcstat --all --format=' ' 2>/dev/null | grep ^Job: | sort", user="grid"),
    }


def host_keys(node: Node) -> set[str]:
    """The host keys that a node shows to whoever connects, from outside."""
    address = str(node.variables["ansible_host"])
    said = subprocess.run(["ssh-keyscan", address], capture_output=True, text=True, check=False).stdout
    return {line for line in said.splitlines() if not line.startswith("#")}


def running(frontend: Node) -> set[str]:
    """Jobs at work, with the time at which each was started."""
    return set(frontend.out("squeue --noheader --states=running --format='%i %S'").splitlines())


def test_a_frontend_made_anew_goes_on_under_jobs(whole: Path) -> None:
    site = Site.look(whole)
    frontend = site.first("slurm_controller")
    slots = sum(int(node.variables["gridstead_flavor"]["cpus"]) for node in site.having("slurm_node"))
    frontend.sh(f"rm -f {HOME}/gate {HOME}/began {HOME}/ended")
    description = f"""&(executable="/bin/sh")(arguments="-c" "{JOB}")(stdout="out")(jobname="gated")"""
    frontend.sh(
        f"cat >{HOME}/gated.xrsl <<'EOF'\n{description}\nEOF\nfor n in $(seq {ARC_JOBS}); do arcsub {HOME}/gated.xrsl; done", user="grid"
    )
    until("some of ARC's jobs to run", lambda: len(running(frontend)) >= slots // 2, seconds=120)
    submit = f"sbatch --parsable --output=/dev/null --wrap='{JOB}'"
    frontend.sh(f"for n in $(seq {BATCH_JOBS}); do {submit}; done", user="grid")
    until("every processor to be busy", lambda: len(running(frontend)) == slots)
    began = until("all of them to say so", lambda: _lines(frontend, "began", slots))
    queued = until("all of ARC's jobs to be Slurm's", lambda: _queue(frontend, BATCH_JOBS + ARC_JOBS), seconds=120)
    keys = host_keys(frontend)
    assert keys
    before, at_work, boots = identity(frontend), running(frontend), {node.name: node.booted for node in site.nodes.values()}

    # No first job: it would wait for a processor.
    cluster("--site", whole, "up", "--replace", frontend.name, "--no-verify", timeout=1200)

    site = Site.look(whole)
    frontend = site.first("slurm_controller")
    assert {node.name for node in site.nodes.values() if node.booted != boots[node.name]} == {frontend.name}
    assert identity(frontend) == before
    assert host_keys(frontend) == keys
    known = {" ".join(line.split()[1:3]) for line in SitePaths(whole / "cluster.yml", site.name).known_hosts.read_text().splitlines()}
    assert len(known) == len(site.nodes), "one of each node, and none of the time in between"
    assert "nothing to do" in cluster("--site", whole, "up", "--no-verify").stdout
    until("the nodes to register", lambda: not frontend.out("sinfo --noheader --states=down,no_respond --format=%N"))
    assert running(frontend) == at_work
    assert _queue(frontend, 0) == queued
    assert _lines(frontend, "began", slots) == began, "a job that ran was started again"

    frontend.sh(f"touch {HOME}/gate", user="grid")
    until("all jobs to end", lambda: not frontend.out("squeue --noheader"), seconds=300)
    for file in ("began", "ended"):
        names = [line.split()[1] for line in frontend.out(f"cat {HOME}/{file}").splitlines()]
        assert sorted(names) == sorted(queued), f"each job {file} once"
    states = frontend.out(f"sacct --noheader --allocations --parsable2 --format=jobid,state --jobs={','.join(sorted(queued))}").splitlines()
    assert {line.split("|")[0] for line in states if line.endswith("|COMPLETED")} == queued
    until(
        "ARC to see the end of its jobs",
        lambda: int(frontend.sh("arcstat --all 2>/dev/null | grep --count 'State: Finished'", user="grid", check=False).stdout) >= ARC_JOBS,
        seconds=120,
    )
    until("the site's software on the compute nodes", lambda: all(node.out("ls /cvmfs/sw.grid.test") for node in site.having("slurm_node")))


def _queue(frontend: Node, number: int) -> set[str]:
    """Slurm's jobs, once there are so many; else none."""
    jobs = set(frontend.out("squeue --noheader --format=%i").split())
    return jobs if len(jobs) >= number else set()


def _lines(frontend: Node, file: str, number: int) -> list[str]:
    """The lines of a file in the home directory, once there are so many; else nothing."""
    lines = sorted(frontend.out(f"cat {HOME}/{file} 2>/dev/null || true").splitlines())
    return lines if len(lines) >= number else []
