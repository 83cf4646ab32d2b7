"""Machines and daemons that end without a word, with jobs under way; disks that are full. What was promised to users is kept."""

from __future__ import annotations

import contextlib
import json
import shlex
from typing import TYPE_CHECKING

import pytest

from gridstead.cluster.host import Host
from gridstead.cluster.providers.podman.engine import Podman
from support import Node, Site, cluster, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What a daemon's unit is called, and the service in cluster.yml that it belongs to.
DAEMONS = {
    "munge": "slurm_controller",
    "slurmctld": "slurm_controller",
    "slurmdbd": "slurm_accounting",
    "mariadb": "slurm_accounting",
    "arc-ce": "arc_ce",
}
CONTROL = "/var/spool/arc/jobstatus"


@pytest.fixture(name="site")
def _site(whole: Path) -> Site:
    return Site.look(whole)


@pytest.fixture(name="frontend")
def _frontend(site: Site) -> Node:
    """Where users submit."""
    return site.first("slurm_controller")


def crash(site: Site, node: Node) -> None:
    """The node ends as by a power failure: no process of it gets a chance to say good-bye."""
    with contextlib.suppress(RuntimeError):  # so that what a test wrote a moment ago is on the disk
        node.sh("sync", check=False)
    Podman(Host())("kill", "--signal", "KILL", f"{site.name}-{node.name}")


def submit(frontend: Node, script: str, *options: str) -> str:
    """Submit to Slurm as grid; the job's id."""
    return frontend.out(f"cd && sbatch --parsable --output=/dev/null {shlex.join(options)} --wrap={shlex.quote(script)}", user="grid")


def submit_to_the_ce(frontend: Node, script: str, directory: str) -> str:
    """Submit to the CE as grid; the job's id there."""
    quoted = script.replace('"', '""')
    description = f'&(executable="/bin/sh")(arguments="-c" "{quoted}")(jobname="crash")(stdout="out.txt")(stderr="err.txt")'
    frontend.sh(f"mkdir -p {directory} && cat >{directory}/job.xrsl <<'END'\n{description}\nEND", user="grid")
    said = frontend.out(f"cd {directory} && arcsub --joblist=jobs.dat job.xrsl", user="grid")
    return said.split()[-1].rsplit("/", 1)[1]


def saved(frontend: Node, job: str) -> None:
    """Returns when slurmctld has written down what it knows at this moment.

    It does so within five seconds of a change, and not before it answers. What it was told in the last seconds before a crash it forgets, and
    it can't be told otherwise.

    Args:
        frontend: where it runs.
        job: one that has not ended.
    """
    directory = frontend.out("scontrol show config | sed -n 's/^StateSaveLocation *= //p'")
    frontend.sh(f"touch /run/crash-begins; scontrol update jobid={job} comment=crash")
    until("slurmctld to save its state", lambda: frontend.sh(f"test {directory}/job_state -nt /run/crash-begins", check=False).rc == 0)


def states(frontend: Node, jobs: list[str]) -> dict[str, str]:
    """What accounting says of jobs; empty while nobody answers."""
    said = frontend.sh(f"sacct --noheader --allocations --parsable2 --format=jobid,state --jobs={','.join(jobs)}", check=False)
    return dict(line.split("|") for line in said.stdout.splitlines()) if said.rc == 0 else {}


def all_completed(frontend: Node, jobs: list[str]) -> None:
    """None of them is lost."""
    seen: dict[str, str] = {}

    def completed() -> bool:
        seen.update(states(frontend, jobs))
        return seen == dict.fromkeys(jobs, "COMPLETED")

    try:
        until("all jobs to complete", completed, seconds=120)
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen}\n{frontend.sh('squeue; sinfo', check=False).stdout}") from None


def done_on_the_ce(frontend: Node, job: str) -> None:
    until(f"{job} to finish", lambda: frontend.sh(f"test -e {CONTROL}/finished/{job}.status", check=False).rc == 0, seconds=120)


def in_slurm(ce: Node, job: str) -> None:
    """Returns when the A-REX has handed a job on."""
    local = f"{CONTROL}/jobs/{job[:3]}/{job[3:6]}/{job[6:9]}/{job[9:]}/local"
    until(f"{job} to be in Slurm", lambda: ce.sh(f"grep -q ^localid= {local}", check=False).rc == 0)


def ran_once(frontend: Node, log: str, jobs: list[str]) -> None:
    """Each job wrote its line, and wrote it once."""
    assert sorted(frontend.out(f"cat {log}").split()) == sorted(jobs)


@pytest.fixture(name="log")
def _log(frontend: Node) -> Iterator[str]:
    """A directory on the shared file system for what jobs note."""
    path = frontend.out("mktemp -d ~/crash.XXXXXX", user="grid")
    yield path
    frontend.sh(f"rm -rf {path}", user="grid")


def work(frontend: Node, log: str, *, seconds: int, more: int) -> list[str]:
    """A job that runs for a while, and others that wait for it; the first runs already."""
    first = submit(frontend, f"sleep {seconds}; echo $SLURM_JOB_ID >>{log}/ran")
    until("the job to run", lambda: frontend.out(f"squeue --noheader --format=%T --jobs={first}") == "RUNNING")
    return [first, *(submit(frontend, f"echo $SLURM_JOB_ID >>{log}/ran", f"--dependency=afterany:{first}") for _ in range(more))]


def test_all_daemons_are_killed_at_once(site: Site, frontend: Node, log: str) -> None:
    """They come back by themselves; jobs that run go on, jobs that wait get their turn, and accounting has them all."""
    ce = site.first("arc_ce")
    grid_job = submit_to_the_ce(ce, "sleep 20; echo survived", f"{log}/arc")
    jobs = work(frontend, log, seconds=15, more=5)
    in_slurm(ce, grid_job)
    saved(frontend, jobs[0])
    before = {}
    for unit, service in DAEMONS.items():
        node = site.first(service)
        before[unit] = node.out(f"systemctl show --property=MainPID --value {unit}")
        assert before[unit] != "0", node.journal(unit)
        node.sh(f"systemctl kill --signal=KILL {unit}")
    for unit, service in DAEMONS.items():
        node = site.first(service)
        until(
            f"another {unit}",
            lambda node=node, unit=unit: (
                node.sh(f"systemctl is-active {unit}", check=False).stdout.strip() == "active"
                and node.out(f"systemctl show --property=MainPID --value {unit}") not in ("0", before[unit])
            ),
            seconds=60,
        )
    all_completed(frontend, jobs)
    ran_once(frontend, f"{log}/ran", jobs)
    done_on_the_ce(ce, grid_job)
    assert ce.out(f"cat /grid/session/{grid_job}/out.txt") == "survived"


def test_the_frontend_crashes_under_jobs(whole: Path, site: Site, frontend: Node, log: str) -> None:
    """`up` starts it again, as it was: the job that ran has gone on meanwhile, those that waited run, none is lost or runs twice."""
    ce = site.first("arc_ce")
    grid_job = submit_to_the_ce(ce, "sleep 20; echo survived", f"{log}/arc")
    jobs = work(frontend, log, seconds=15, more=5)
    others = {node.name: node.booted for node in site.nodes.values() if node.name != frontend.name}
    in_slurm(ce, grid_job)
    saved(frontend, jobs[0])
    crash(site, frontend)
    assert frontend.booted == ""
    cluster("--site", whole, "up", "--no-verify")
    assert {name: site.nodes[name].booted for name in others} == others
    all_completed(frontend, jobs)
    ran_once(frontend, f"{log}/ran", jobs)
    done_on_the_ce(ce, grid_job)
    assert ce.out(f"cat /grid/session/{grid_job}/out.txt") == "survived"


def test_the_shared_file_system_is_full(whole: Path, site: Site, frontend: Node, log: str) -> None:
    """Whoever writes is told; no daemon ends; with room again all goes on."""
    server, ce = site.first("nfs_server"), site.first("arc_ce")
    share = next(path for path in site.variables["gridstead_shares"] if log.startswith(f"{path}/"))
    frontend.sh(f"touch {log}/hold", user="grid")
    writer = submit(frontend, f"until test -e {log}/go; do sleep 0.2; done; head -c 10000000 /dev/zero >{log}/big")
    until("the job to run", lambda: frontend.out(f"squeue --noheader --format=%T --jobs={writer}") == "RUNNING")
    try:
        # fallocate is quick, and what it leaves is written.
        room = f"$(df --output=avail --block-size=1 {share} | tail -n 1)"
        server.sh(f"fallocate --length {room} {share}/fill; cat /dev/zero >>{share}/fill", check=False)
        assert "No space left" in frontend.sh(f"head -c 1000000 /dev/zero >{log}/mine", user="grid", check=False).stderr
        frontend.sh(f"mv {log}/hold {log}/go", user="grid")
        until("the job to fail", lambda: states(frontend, [writer]) == {writer: "FAILED"}, seconds=60)
        refused = ce.sh("arcsub --joblist=/tmp/full.dat /usr/local/share/gridstead/hello.xrsl", user="grid", check=False)
        for unit, service in DAEMONS.items():
            assert site.first(service).out(f"systemctl is-active {unit}") == "active"
    finally:
        server.sh(f"rm -f {share}/fill")
    assert refused.rc != 0, str(refused)
    job = submit_to_the_ce(ce, "echo room", f"{log}/arc")
    done_on_the_ce(ce, job)
    assert ce.out(f"cat /grid/session/{job}/out.txt") == "room"
    # ARC, which could not make a session directory, took their parent for its user alone. `up` sees that and puts it right.
    changed = json.loads(cluster("--site", whole, "up", "--no-verify", "--json").stdout)["tasks_changed"]
    assert changed in ([], [f"{server.name}: nfs_server : Make the shared directories, homes and markers"])
    assert server.out("stat --format=%a /grid/session") == "755"


@pytest.fixture(name="little_room")
def _little_room(frontend: Node) -> Iterator[str]:
    """slurmctld's state on a file system of a few megabytes, until the test ends; gives its path."""
    # Where it really is: what must outlive the node may lie elsewhere, behind a link.
    path = frontend.out("readlink -f $(scontrol show config | sed -n 's/^StateSaveLocation *= //p')")
    owner = frontend.out(f"stat --format=uid=%u,gid=%g {path}")
    frontend.sh(
        f"systemctl stop slurmctld; rm -rf /run/kept; cp -a {path} /run/kept; mount -t tmpfs -o size=4M,mode=700,{owner} small {path}"
    )
    try:
        frontend.sh(f"cp -a /run/kept/. {path}/; systemctl start slurmctld")
        yield path
    finally:
        frontend.sh(f"systemctl stop slurmctld; rm -rf /run/kept {path}/fill; cp -a {path} /run/kept; umount {path}")
        frontend.sh(f"rm -rf {path}/*; cp -a /run/kept/. {path}/; rm -r /run/kept; systemctl start slurmctld")


def test_slurmctlds_disk_is_full(frontend: Node, little_room: str, log: str) -> None:
    """It refuses what it can't write down, and goes on; with room again it has forgotten nothing, not even by a restart."""
    jobs = work(frontend, log, seconds=8, more=2)
    frontend.sh(f"cat /dev/zero >{little_room}/fill", check=False)
    refused = frontend.sh("cd && sbatch --output=/dev/null --wrap=true", user="grid", check=False)
    assert refused.rc != 0
    assert "I/O error" in refused.stderr, str(refused)
    told = "journalctl --quiet --no-pager --unit=slurmctld --since=-5min; tail -n 200 /var/log/slurm/slurmctld.log"
    until("slurmctld to say what is wrong", lambda: "No space left" in frontend.out(told), seconds=60)
    assert frontend.out("systemctl is-active slurmctld") == "active"
    frontend.sh(f"rm {little_room}/fill")
    jobs += work(frontend, log, seconds=2, more=2)
    frontend.sh("systemctl restart slurmctld")
    all_completed(frontend, jobs)
    ran_once(frontend, f"{log}/ran", jobs)
